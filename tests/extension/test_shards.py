"""Every shard of an app has its one row in `<app>.shards`, and kernels run only while that is so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.servers import Lender

_APP = "sharded"
_FUNNEL = "funnel pageview -> purchase"


@pytest.fixture
def operator(dsn: str, lender: Lender) -> Iterator[psycopg.Connection[Any]]:
    """A connection that has chosen an app of its own; on Citus with 7 shards."""
    with lender.connection(dsn, autocommit=True) as connection:
        count = 7 if _on_citus(connection) else None
        connection.execute("SELECT heap.create_app(%s, 'UTC', %s)", (_APP, count))
        connection.execute("SELECT set_config('heap.app', %s, false)", (_APP,))
        yield connection
        connection.execute("SELECT heap.drop_app(%s)", (_APP,))


def _on_citus(connection: psycopg.Connection[Any]) -> bool:
    return connection.execute("SELECT heap._has_citus()").fetchone() == (True,)


def _rows_per_shard(connection: psycopg.Connection[Any]) -> list[int]:
    if not _on_citus(connection):
        return [count for (count,) in connection.execute(f"SELECT count(*) FROM {_APP}.shards")]
    counted = "SELECT result::int FROM run_command_on_shards(%s, 'SELECT count(*) FROM %%s')"
    return [count for (count,) in connection.execute(counted, (f"{_APP}.shards",))]


def _uses_kernels(connection: psycopg.Connection[Any]) -> bool:
    (sql,) = connection.execute("SELECT heap.sql(%s)", (_FUNNEL,)).fetchone() or ("",)
    return "heap._funnel_kernel" in sql


def test_a_new_app_has_one_row_in_every_shard(operator: psycopg.Connection[Any]) -> None:
    shards = 7 if _on_citus(operator) else 1
    assert _rows_per_shard(operator) == [1] * shards
    assert operator.execute("SELECT shards FROM heap.app WHERE name = %s", (_APP,)).fetchone() == (shards,)
    assert _uses_kernels(operator)


def test_an_app_of_an_earlier_version_gets_its_shards(operator: psycopg.Connection[Any]) -> None:
    operator.execute(f"DROP TABLE {_APP}.shards")
    operator.execute("UPDATE heap.app SET shards = NULL WHERE name = %s", (_APP,))
    assert not _uses_kernels(operator)
    operator.execute("SELECT heap.make_shards()")
    assert set(_rows_per_shard(operator)) == {1}
    assert _uses_kernels(operator)


def test_an_app_of_an_earlier_version_answers_without_packs_and_gets_them(operator: psycopg.Connection[Any]) -> None:
    operator.execute(f"DROP TABLE {_APP}.packs")
    operator.execute("SELECT heap.define_event('A', 'pageview')")
    operator.execute("SET heap.strategy = 'vector'")
    assert operator.execute('SELECT count(*) FROM heap.funnel(\'"A" -> "A"\')').fetchone() == (2,)
    assert operator.execute("SELECT * FROM heap.pack_health(%s)", (_APP,)).fetchall() == []
    operator.execute("SELECT heap.delete_user(1)")
    operator.execute("SELECT heap.make_shards()")
    assert operator.execute(f"SELECT count(*) FROM {_APP}.packs").fetchone() == (0,)


def test_sql_serves_while_a_shard_may_be_without_its_row(operator: psycopg.Connection[Any]) -> None:
    """As after a split: one more shard than rows."""
    operator.execute(f"DELETE FROM {_APP}.shards WHERE place = (SELECT max(place) FROM {_APP}.shards)")
    operator.execute("UPDATE heap.app SET shards = shards - 1 WHERE name = %s", (_APP,))
    assert not _uses_kernels(operator)
    operator.execute("SELECT heap.make_shards(%s)", (_APP,))
    assert set(_rows_per_shard(operator)) == {1}
    assert _uses_kernels(operator)


def test_erasing_a_user_takes_no_row_of_a_shard(operator: psycopg.Connection[Any]) -> None:
    for (place,) in operator.execute(f"SELECT place FROM {_APP}.shards").fetchall():
        operator.execute("SELECT heap.delete_user(%s)", (place,))
    assert set(_rows_per_shard(operator)) == {1}


def test_sql_serves_while_users_are_being_merged(operator: psycopg.Connection[Any]) -> None:
    """Their events are there twice then, and kernels read what is stored."""
    with operator.transaction(force_rollback=True):
        operator.execute("INSERT INTO heap.user_merge (app, user_id, merged_into, batch) VALUES (%s, 1, 2, 1)", (_APP,))
        assert not _uses_kernels(operator)
