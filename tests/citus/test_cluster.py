"""Several nodes: who has what, shards that move and keep their indexes, nodes that come, go, fall and lag behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from heap_extension.citus_cluster import CitusCluster
from heap_extension.cluster import Cluster
from heap_extension.install import VERSION
from heap_extension.load import Loader
from heap_extension.nodes import create_extension, nodes
from heap_extension.shop import DEFINITIONS, shop_events
from tests.extension.shop_app import NOW

_SHARDS = 8
_STATEMENTS = (
    'funnel "Viewed pricing" -> "Clicked sign up" -> "Purchase" within 14 days over last 60 days',
    'funnel "Viewed pricing" -> "Signed up" within 7 days over last 60 days group by country',
    'trend users of "Viewed product" as visitors, sum(amount) of "Purchase" as revenue by week over last 6 weeks',
    'retention from "Viewed pricing" to "Purchase" by week over last 6 weeks',
    "paths of pageview by path from '/' for 4 steps over last 60 days",
)


def _ensure_shop(dsn: str, shard_count: int | None) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        if connection.execute("SELECT FROM heap.app WHERE name = 'shop'").fetchone() is not None:
            return
        connection.execute("SELECT heap.create_app('shop', 'Europe/Berlin', %s)", (shard_count,))
        connection.execute("SET heap.app = 'shop'")
        loader = Loader(connection, "shop")
        loader.load(shop_events(NOW, users=600))
        for name, definition in DEFINITIONS.items():
            connection.execute("SELECT heap.define_event(%s, %s)", (name, definition))
        loader.tidy()


@pytest.fixture
def shop(big_cluster: CitusCluster) -> Iterator[psycopg.Connection[Any]]:
    """The shop over both workers."""
    _ensure_shop(big_cluster.dsn, _SHARDS)
    with psycopg.connect(big_cluster.dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT set_config('heap.app', 'shop', false), set_config('heap.now', %s, false)", (str(NOW),)
        )
        yield connection


def _answers(connection: psycopg.Connection[Any]) -> dict[str, list[str]]:
    return {
        statement: sorted(row for (row,) in connection.execute("SELECT q::text FROM heap.query(%s) AS q", (statement,)))
        for statement in _STATEMENTS
    }


def _shards(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """The shards of events_default and users on each worker."""
    return dict(
        connection.execute(
            "SELECT nodename || ':' || nodeport, count(*) FROM citus_shards"
            " WHERE table_name IN ('shop.events_default'::regclass, 'shop.users'::regclass) GROUP BY 1"
        ).fetchall()
    )


def _indexes(connection: psycopg.Connection[Any]) -> dict[str | None, set[tuple[str | None, str]]]:
    """What heap.index_health says, per node: events and states."""
    found: dict[str | None, set[tuple[str | None, str]]] = {}
    for node, event, state in connection.execute("SELECT node, event, state FROM heap.index_health('shop')"):
        found.setdefault(node, set()).add((event, state))
    return found


def _all_valid(connection: psycopg.Connection[Any]) -> bool:
    """Every definition has its index on every placement, and nothing else is there."""
    wanted = {(name, "valid") for name in DEFINITIONS}
    found = _indexes(connection)
    return set(found) == {None, *_shards(connection)} and all(states == wanted for states in found.values())


def _name(worker: Cluster) -> str:
    return f"127.0.0.1:{worker.port}"


def test_answers_are_those_of_plain_postgresql(shop: psycopg.Connection[Any], postgres_cluster: Cluster) -> None:
    create_extension(postgres_cluster.dsn)
    dsn = postgres_cluster.dsn.removesuffix("/heap") + "/plain_shop"
    with psycopg.connect(postgres_cluster.dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE plain_shop")
    create_extension(dsn)
    _ensure_shop(dsn, None)
    with psycopg.connect(dsn, autocommit=True) as plain:
        plain.execute("SELECT set_config('heap.app', 'shop', false), set_config('heap.now', %s, false)", (str(NOW),))
        expected = _answers(plain)
    assert all(expected.values())
    assert _answers(shop) == expected


def test_shards_are_on_both_workers_and_a_users_events_with_the_user(
    shop: psycopg.Connection[Any], big_cluster: CitusCluster
) -> None:
    assert _shards(shop) == {_name(worker): _SHARDS for worker in big_cluster.workers}
    groups = shop.execute(
        "SELECT DISTINCT colocation_id, shard_count FROM citus_tables WHERE table_name::text LIKE 'shop.%'"
    ).fetchall()
    assert [shards for _, shards in groups] == [_SHARDS]
    assert _all_valid(shop)


@pytest.mark.parametrize("count", [0, -1, 64_001])
def test_a_number_of_shards_that_cannot_be(shop: psycopg.Connection[Any], count: int) -> None:
    with pytest.raises(psycopg.Error, match="shards cannot be made"):
        shop.execute("SELECT heap.create_app('many', shard_count => %s)", (count,))


def test_shards_without_citus_are_refused(fresh_database: str) -> None:
    create_extension(fresh_database)
    with (
        psycopg.connect(fresh_database) as connection,
        pytest.raises(psycopg.errors.FeatureNotSupported, match="without Citus"),
    ):
        connection.execute("SELECT heap.create_app('one', shard_count => 4)")


class _Inserts:
    """Somebody who inserts all the time; what was refused is in `errors`."""

    def __init__(self, dsn: str) -> None:
        self.dsn, self.sent, self.errors = dsn, 0, list[str]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self._stop.wait(0.02):
                try:
                    connection.execute(
                        "INSERT INTO shop.events (user_id, time, event_id, type, path)"
                        " VALUES (%s, %s, %s, 'inserted', '/pricing')",
                        (1_000_000 + self.sent % 97, NOW + timedelta(seconds=self.sent), 10**15 + self.sent),
                    )
                    self.sent += 1
                except psycopg.Error as error:
                    self.errors.append(str(error))

    def __enter__(self) -> _Inserts:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)


def _remove_inserted(connection: psycopg.Connection[Any], expected: int) -> None:
    (kept,) = connection.execute("SELECT count(*) FROM shop.events WHERE type = 'inserted'").fetchone() or (None,)
    connection.execute("DELETE FROM shop.events WHERE type = 'inserted'")
    assert kept == expected


def test_a_third_worker_takes_its_share_with_every_index_and_gives_it_back(
    shop: psycopg.Connection[Any], big_cluster: CitusCluster
) -> None:
    before = _answers(shop)
    big_cluster.up(3)
    third = big_cluster.workers[2]
    try:
        assert [node.version for node in nodes(shop)] == [VERSION] * 4
        with _Inserts(big_cluster.dsn) as inserts:
            shop.execute("SELECT citus_rebalance_start()")
            shop.execute("SELECT citus_rebalance_wait()")
        assert _shards(shop)[_name(third)] >= _SHARDS // 2
        assert _all_valid(shop), _indexes(shop)
        assert inserts.sent > 10
        assert inserts.errors == []
        _remove_inserted(shop, inserts.sent)
        assert _answers(shop) == before

        with _Inserts(big_cluster.dsn) as inserts:
            shop.execute("SELECT citus_drain_node('127.0.0.1', %s)", (third.port,))
        assert inserts.errors == []
        _remove_inserted(shop, inserts.sent)
        assert _name(third) not in _shards(shop)
        assert _all_valid(shop), _indexes(shop)
        assert _answers(shop) == before
    finally:
        _remove(shop, third)
    assert _answers(shop) == before


def _remove(connection: psycopg.Connection[Any], worker: Cluster) -> None:
    connection.execute("CALL citus_cleanup_orphaned_resources()")
    connection.execute("SELECT citus_remove_node('127.0.0.1', %s)", (worker.port,))
    worker.down()
