"""Packs on several nodes: they are beside the events of their shard, and of no use where those are moved to."""

from __future__ import annotations

from typing import Any

import psycopg

from heap_extension.citus_cluster import CitusCluster
from heap_extension.maintain import Maintainer

_USERS = 200
_FUNNEL = "\"A\" -> \"B\" within 7 days from '2026-01-01' to '2026-01-31'"


def _users(dsn: str) -> list[int]:
    """As a session of its own is told, which has kept nothing."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT set_config('heap.app', 'moving', false), set_config('heap.strategy', 'vector', false)"
        )
        return [users for (users,) in connection.execute("SELECT users FROM heap.funnel(%s) ORDER BY step", (_FUNNEL,))]


def _packs(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """How many packs are in each state."""
    found = connection.execute("SELECT state, count(*) FROM heap.pack_health('moving') GROUP BY 1").fetchall()
    return dict(found)


def test_a_moved_shard_is_packed_again(big_cluster: CitusCluster) -> None:
    with psycopg.connect(big_cluster.dsn, autocommit=True) as connection:
        connection.execute("SELECT heap.create_app('moving', shard_count => 4)")
        try:
            connection.execute("SELECT set_config('heap.app', 'moving', false)")
            connection.execute("UPDATE heap.settings SET pack_above = 1")
            connection.execute("SELECT heap.make_partitions('moving', '2026-01-01', '2026-01-31')")
            for name in ("A", "B"):
                connection.execute("SELECT heap.define_event(%s, %s)", (name, f"pageview where path = '/{name}'"))
            connection.execute(
                "INSERT INTO moving.events (user_id, time, event_id, type, path) SELECT u, '2026-01-10'::timestamptz +"
                " n * interval '1 hour', n, 'pageview', (ARRAY['/A', '/B'])[n]"
                " FROM generate_series(1, %s) AS u, generate_series(1, 2) AS n",
                (_USERS,),
            )
            assert Maintainer(big_cluster.dsn).run_once()
            assert _packs(connection) == {"valid": 3 * 4}  # those of any event, too
            connection.execute("UPDATE moving.packs SET events = 0, users = NULL, first_user = NULL, last_user = NULL")
            assert _users(big_cluster.dsn) == [0, 0], "it is the packs that are read"
            shard, source, target = connection.execute(
                "SELECT shardid, s.nodeport, w.nodeport FROM citus_shards AS s, pg_dist_node AS w"
                " WHERE table_name = 'moving.users'::regclass AND w.shouldhaveshards AND w.nodeport <> s.nodeport LIMIT 1"
            ).fetchone() or (0, 0, 0)
            move = "SELECT citus_move_shard_placement(%s, '127.0.0.1', %s, '127.0.0.1', %s)"
            connection.execute(move, (shard, source, target))
            (moved,) = _users(big_cluster.dsn)[:1]
            assert 0 < moved < _USERS, "the events of the moved shard, whose packs came along"
            assert _packs(connection) == {"valid": 3 * 3, "stale": 3}
            connection.execute("UPDATE moving.packs SET stamp = ''")
            assert Maintainer(big_cluster.dsn).run_once()
            assert _packs(connection) == {"valid": 3 * 4}  # those of any event, too
            assert _users(big_cluster.dsn) == [_USERS, _USERS]
        finally:
            connection.execute("UPDATE heap.settings SET pack_above = DEFAULT")
            connection.execute("SELECT heap.drop_app('moving')")
