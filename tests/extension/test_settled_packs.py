"""Packs of a month that goes on: what is on pages that did not change comes from them, the rest is read."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.rows import class_row

from heap_extension.kernels.packs import encoded
from heap_extension.maintain import Maintainer
from heap_extension.maintain.execute import execute
from heap_extension.maintain.nodes import connect_node
from heap_extension.maintain.work import Kind, PackRow, Wanted, pack_work
from tests import oracle
from tests.slices import in_slices
from tests.waiting import until

_WINDOW = timedelta(days=25)
_START, _END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
_FUNNEL = 'funnel "A" -> "B" -> "C" within 25 days from \'2026-01-01\' to \'2026-01-31\''
_TREND = "trend users of \"A\", count of any by day from '2026-01-01' to '2026-01-31'"
_STEPS = {"A": "/a", "B": "/b", "C": "/c"}
_OTHERS = 60_000
"""Users who do A once each: so many that reading few pages and a pack is sooner done than reading an index."""
_TIMES = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 10, 12, 31)]

Row = tuple[int, datetime, int]
"""User, time and event id."""


@pytest.fixture(scope="module")
def going(dsn: str) -> Iterator[str]:
    """A database with an app whose only month goes on: it has many events of many users, and packs."""
    with _connect(dsn) as connection:
        on_citus = connection.execute("SELECT heap._has_citus()").fetchone() == (True,)
        connection.execute("SELECT heap.create_app('going', shard_count => %s)", (2 if on_citus else None,))
        connection.execute("SELECT heap.make_partitions('going', '2026-01-01', '2026-01-31')")
        connection.execute("UPDATE heap.settings SET pack_after = '100 years', pack_above = 1")
        try:
            connection.execute(
                "INSERT INTO going.events (user_id, time, event_id, type, path)"
                " SELECT 100 + n, '2026-01-10'::timestamptz + make_interval(secs => n %% 1000), n, 'pageview', '/a'"
                " FROM generate_series(1, %s) AS n",
                (_OTHERS,),
            )
            for name, path in _STEPS.items():
                connection.execute("SELECT heap.define_event(%s, %s)", (name, f"pageview where path = '{path}'"))
            connection.execute("VACUUM (ANALYZE) going.events")
            yield dsn
        finally:
            connection.execute("UPDATE heap.settings SET pack_after = DEFAULT, pack_above = DEFAULT")
            connection.execute("SELECT heap.drop_app('going')")


def _connect(dsn: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute("SELECT set_config('heap.app', 'going', false), set_config('heap.strategy', 'vector', false)")
    return connection


def _insert(connection: psycopg.Connection[Any], rows: dict[Row, str]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO going.events (user_id, time, event_id, type, path) VALUES (%s, %s, %s, 'pageview', %s)",
            [(*key, path) for key, path in rows.items()],
        )


def _users(connection: psycopg.Connection[Any]) -> list[int]:
    rows = connection.execute("SELECT users FROM heap.funnel(%s) ORDER BY step", (_FUNNEL,)).fetchall()
    return [users for (users,) in rows] or [0, 0, 0]


def _trend(connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT * FROM heap.trend(%s) ORDER BY 1, 2", (_TREND,)).fetchall()


def _health(connection: psycopg.Connection[Any]) -> list[PackRow]:
    with connection.cursor(row_factory=class_row(PackRow)) as cursor:
        return cursor.execute(f"SELECT {', '.join(PackRow.__slots__)} FROM heap.pack_health('going')").fetchall()


def _settle(dsn: str) -> None:
    """The work of an hour, as `heap maintain` finds it pass by pass: VACUUM, and packs anew."""
    with connect_node(dsn, None) as node:
        events = {
            name: Wanted(predicate, ())
            for name, predicate in node.execute("SELECT name, predicate FROM heap.event_definition WHERE app = 'going'")
        }
        work = pack_work(rows := _health(node), {row.placement for row in rows})
        assert {piece.kind for piece in work} == {Kind.settle}
        for _ in range(2):
            for piece in work:
                execute(node, piece, events.get(piece.event or ""), timedelta(seconds=1), timedelta(seconds=1))
            work = pack_work(_health(node), set())
        assert work == []


def _expected(rows: dict[Row, str]) -> list[int]:
    """What the oracle counts, which tries every chain; the others get no further than A."""
    events = [
        oracle.Event(user, time, event_id, "pageview", columns={"path": path})
        for (user, time, event_id), path in rows.items()
    ]
    tests = [lambda event, path=path: event.get("path") == path for path in _STEPS.values()]
    rules = oracle.Rules(_WINDOW, _START, _END)
    levels = [
        level
        for user in {event.user_id for event in events}
        for level, _ in oracle.counted_chains([event for event in events if event.user_id == user], tests, rules)
    ]
    return [sum(level >= step for level in levels) + (_OTHERS if step == 1 else 0) for step in (1, 2, 3)]


_paths = st.sampled_from(["/a", "/b", "/c", "/d"])
_keys = st.tuples(st.integers(1, 4), st.sampled_from(_TIMES), st.integers(1, 3))
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.dictionaries(_keys, _paths, min_size=1, max_size=6)),
        st.tuples(st.just("insert"), st.dictionaries(_keys, _paths, min_size=1, max_size=6)),
        st.tuples(st.just("delete"), _keys),
        st.tuples(st.just("update"), st.tuples(_keys, _paths)),
        st.tuples(st.just("erase"), st.integers(1, 4)),
        st.tuples(st.just("vacuum"), st.none()),
        st.tuples(st.just("settle"), st.none()),
        st.tuples(st.just("settle"), st.none()),
    ),
    min_size=4,
    max_size=10,
)


@settings(max_examples=12)
@given(steps=_steps)
def test_answers_are_those_of_the_events_there_are(going: str, steps: list[tuple[str, Any]]) -> None:
    rows: dict[Row, str] = {}
    with _connect(going) as connection:
        connection.execute("DELETE FROM going.events WHERE user_id <= 4")
        for what, value in [*steps, ("settle", None), ("insert", {(4, _TIMES[1], 7): "/a", (4, _TIMES[1], 8): "/b"})]:
            match what:
                case "insert":
                    new = {key: path for key, path in value.items() if key not in rows}
                    _insert(connection, new)
                    rows |= new
                case "delete":
                    connection.execute(
                        "DELETE FROM going.events WHERE user_id = %s AND time = %s AND event_id = %s", value
                    )
                    rows.pop(value, None)
                case "update":
                    key, path = value
                    connection.execute(
                        "UPDATE going.events SET path = %s WHERE user_id = %s AND time = %s AND event_id = %s",
                        (path, *key),
                    )
                    rows |= {key: path} if key in rows else {}
                case "erase":
                    connection.execute("SELECT heap.delete_user(%s)", (value,))
                    rows = {key: path for key, path in rows.items() if key[0] != value}
                case "vacuum":
                    connection.execute("VACUUM going.events")
                case "settle":
                    _settle(going)
            assert _users(connection) == _expected(rows), what
        by_packs = _trend(connection)
        connection.execute("SET heap.strategy = 'merge'")
        assert by_packs == _trend(connection)


def test_only_pages_that_changed_are_read(going: str) -> None:
    """Where packs say that all events are of few users, others have those on the pages of the new rows only."""
    with _connect(going) as connection:
        connection.execute("DELETE FROM going.events WHERE user_id <= 4")
        _settle(going)
        _insert(connection, {(1, _TIMES[1], 1): "/a", (2, _TIMES[1], 1): "/a", (1, _TIMES[2], 2): "/b"})
        with _connect(going) as another, another.transaction():
            _insert(another, {(3, _TIMES[1], 1): "/a"})
            assert _users(another) == [_OTHERS + 3, 1, 0], "what nobody else sees yet is seen by who wrote it"
            assert _users(connection) == [_OTHERS + 2, 1, 0]
            (explained, *_) = connection.execute("SELECT heap.explain(%s)", (_FUNNEL,)).fetchone() or ("",)
            assert "packs instead in 1 partition" in explained
            _give_to_first_users(connection)
            assert _users(connection) == [_OTHERS + 2, 1, 0], "what a session keeps needs no packs"
            with _connect(going) as later:
                found = _users(later)
            assert found[0] in range(2, _OTHERS // 10)
            assert found[1:] == [1, 0]
            raise psycopg.Rollback
        connection.execute("DELETE FROM going.packs")
        assert _users(connection) == [_OTHERS + 2, 1, 0]
        _settle(going)
        connection.execute("VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) going.events")
        assert {row.state for row in _health(connection)} <= {"valid", "stale"}
        assert _users(connection) == [_OTHERS + 2, 1, 0]


def test_slices_of_users(going: str) -> None:
    """More events than are in memory at once come by ranges of users."""
    with _connect(going) as connection:
        connection.execute("DELETE FROM going.events WHERE user_id <= 4")
        _settle(going)
        _insert(connection, {(1, _TIMES[1], 1): "/a", (4, _TIMES[1], 1): "/c"})
        for statement in (_FUNNEL, _TREND):
            (query,) = connection.execute("SELECT heap.sql(%s)", (statement,)).fetchone() or ("",)
            assert connection.execute(in_slices(query)).fetchall() == connection.execute(query).fetchall()


def test_each_hour_packs_are_made_anew(going: str) -> None:
    """A maintainer settles what was written to, not more often than it is told to."""
    with _connect(going) as connection, connect_node(going, None) as leader:
        reported: list[str] = []
        maintainer = Maintainer(going, reported.append)

        def passes() -> list[str]:
            reported.clear()
            for _ in range(20):
                if not maintainer.pass_over(leader):
                    break
            return [line.partition(" on going.events")[0] for line in reported if " on going.events" in line]

        connection.execute("UPDATE heap.settings SET pack_every = '1 second'")
        try:
            passes()
            assert {(row.state, row.goes_on) for row in _health(connection)} == {("valid", True)}
            numbers = count()

            def written_and_packed() -> bool:
                rows = {(4, _TIMES[3], number): "/d" for number in islice(numbers, 1000)}
                _insert(connection, rows)  # pages of their own among them
                maintainer._packs_at = 0.0
                connection.execute("SELECT pg_sleep(1.1)")
                done = passes()
                assert "settle" in done
                return "pack A" in done

            until(written_and_packed)  # not while an autovacuum is in the way
            assert {row.state for row in _health(connection)} == {"valid"}
            connection.execute("UPDATE heap.settings SET pack_every = '1 hour'")
            _insert(connection, {(4, _TIMES[3], next(numbers)): "/a"})
            maintainer._packs_at = 0.0
            assert passes() == []
            connection.execute("UPDATE heap.settings SET pack_every = NULL")
            assert {row.state for row in _health(connection)} == {"orphan"}
        finally:
            connection.execute("UPDATE heap.settings SET pack_every = DEFAULT")


def _give_to_first_users(connection: psycopg.Connection[Any]) -> None:
    """Makes the large packs say that all of their events are of their first users."""
    large = "FROM going.packs WHERE events > 1000"
    key = "condition, relation, part, place"
    for first_user, events, *where in connection.execute(f"SELECT first_user, events, {key} {large}").fetchall():
        connection.execute(
            f"UPDATE going.packs SET users = %s, counts = %s WHERE ({key}) = (%s, %s, %s, %s)",
            (encoded(np.array([first_user])), encoded(np.array([events])), *where),
        )
