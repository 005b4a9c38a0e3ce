"""What a session asks again is prepared, and answers as if it was not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

_FUNNEL = "\"A\" -> \"B\" within 1 day from '2026-01-01' to '2026-01-31'"
_PREPARED = "SELECT name FROM pg_prepared_statements WHERE name ~ '^heap_[0-9a-f]{32}$'"


@pytest.fixture(scope="module")
def app(dsn: str) -> Iterator[str]:
    """An app with one user who does A and B."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT heap.create_app('prepared')")
        _settle(connection)
        for name, path in (("A", "/a"), ("B", "/b")):
            connection.execute("SELECT heap.define_event(%s, %s)", (name, f"pageview where path = '{path}'"))
            _insert(connection, 1, path)
        yield dsn
        connection.execute("SELECT heap.drop_app('prepared')")


@pytest.fixture
def reader(app: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(app, autocommit=True, prepare_threshold=None) as connection:
        _settle(connection)
        yield connection


def _settle(connection: psycopg.Connection[Any]) -> None:
    connection.execute("SELECT set_config('heap.app', 'prepared', false), set_config('heap.now', '2026-02-20', false)")


def _insert(connection: psycopg.Connection[Any], user: int, path: str) -> None:
    connection.execute(
        "INSERT INTO prepared.events (user_id, time, event_id, type, path)"
        " VALUES (%s, '2026-01-05'::timestamptz + %s * interval '1 hour', %s, 'pageview', %s)",
        (user, ord(path[-1]) - ord("a"), ord(path[-1]), path),
    )


def _users(connection: psycopg.Connection[Any], statement: str = _FUNNEL) -> list[int]:
    rows = connection.execute("SELECT users FROM heap.funnel(%s) ORDER BY step", (statement,))
    return [users for (users,) in rows]


def _names(connection: psycopg.Connection[Any]) -> list[str]:
    return [name for (name,) in connection.execute(_PREPARED)]


@pytest.mark.parametrize("strategy", ["vector", "merge"])
def test_what_is_asked_again_is_prepared_and_sees_what_changed(reader: psycopg.Connection[Any], strategy: str) -> None:
    reader.execute("SELECT set_config('heap.strategy', %s, false)", (strategy,))
    assert _users(reader) == [1, 1]
    assert _names(reader) == []
    assert _users(reader) == [1, 1]
    assert len(_names(reader)) == 1
    with reader.transaction(force_rollback=True):
        _insert(reader, 2, "/a")
        assert _users(reader) == [2, 1]
        reader.execute("SELECT heap.define_event('B', 'pageview where path = ''/a''')")
        assert _users(reader) == [2, 0], "one event fills no two steps"
    assert _users(reader) == [1, 1]
    assert len(_names(reader)) == 1


def test_what_others_do_to_prepared_statements_changes_no_answer(reader: psycopg.Connection[Any]) -> None:
    for _ in range(2):
        assert _users(reader) == [1, 1]
    (name,) = _names(reader)
    for command in ("DEALLOCATE ALL", "DISCARD ALL"):
        reader.execute(command.encode())
        _settle(reader)
        assert _users(reader) == [1, 1]
        assert _names(reader) == [name]
    reader.execute(f"DEALLOCATE {name}")
    reader.execute(f"PREPARE {name} AS SELECT 'another'")
    assert _users(reader) == [1, 1]


def test_a_session_prepares_no_more_than_32(reader: psycopg.Connection[Any]) -> None:
    for hours in range(1, 36):
        for _ in range(2):
            assert _users(reader, _FUNNEL.replace("1 day", f"{hours} hours")) == [1, 1]
    assert len(_names(reader)) == 32
    reader.execute("DEALLOCATE ALL")
    for hours in (1, 2, 35):
        assert _users(reader, _FUNNEL.replace("1 day", f"{hours} hours")) == [1, 1]
