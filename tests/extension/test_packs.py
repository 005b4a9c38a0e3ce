"""Packs of cold partitions: whatever is written, whenever and by whom, answers are those of the events there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from psycopg.rows import class_row

from heap_extension.kernels.packs import decoded, encoded
from heap_extension.maintain import Maintainer
from heap_extension.maintain.execute import execute
from heap_extension.maintain.nodes import connect_node
from heap_extension.maintain.work import PackRow, Wanted, pack_work
from tests import oracle
from tests.slices import in_slices

_APP = "packed"
_WINDOW = timedelta(days=25)
_START, _END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
_FUNNEL = 'funnel "A" -> "B" -> "C" within 25 days from \'2026-01-01\' to \'2026-02-28\''
_STEPS = {"A": "/a", "B": "/b", "C": "/c"}
_TIMES = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 10, 30)] + [
    datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(2026, 2, 1, tzinfo=UTC),
    datetime(2026, 2, 9, tzinfo=UTC),
]

Row = tuple[int, datetime, int, str]
"""User, time, event id and path."""


@pytest.fixture(scope="module")
def packed(dsn: str) -> Iterator[str]:
    """A database with an app whose events lie back some months; anything is worth a pack."""
    with _connect(dsn) as connection:
        connection.execute(
            "SELECT heap.create_app('packed', shard_count => %s)", (2 if _on_citus(connection) else None,)
        )
        connection.execute("SELECT heap.make_partitions('packed', '2026-01-01', '2026-02-28')")
        connection.execute("UPDATE heap.settings SET pack_above = 1")
        try:
            yield dsn
        finally:
            connection.execute("UPDATE heap.settings SET pack_above = DEFAULT")
            connection.execute("SELECT heap.drop_app('packed')")


@pytest.fixture
def asked(packed: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the app, which has 40 users who do A, B and C, a month apart from one another; packed."""
    with _connect(packed) as connection:
        _begin(connection)
        _insert(connection, [row for user in range(1, 41) for row in _life(user)])
        _pack(packed)
        assert _states(connection) == {"valid"}
        yield connection


def _connect(dsn: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute("SELECT set_config('heap.app', 'packed', false), set_config('heap.strategy', 'vector', false)")
    return connection


def _on_citus(connection: psycopg.Connection[Any]) -> bool:
    return connection.execute("SELECT heap._has_citus()").fetchone() == (True,)


def _define(connection: psycopg.Connection[Any], name: str, path: str) -> None:
    connection.execute("SELECT heap.define_event(%s, %s)", (name, f"pageview where path = '{path}'"))


def _begin(connection: psycopg.Connection[Any]) -> None:
    connection.execute("TRUNCATE packed.events")
    for name, path in _STEPS.items():
        _define(connection, name, path)


def _life(user: int) -> list[Row]:
    """A and B in January, C in February, at times that other users share."""
    return [
        (user, _TIMES[1] + timedelta(hours=user % 5), 3 * user, "/a"),
        (user, _TIMES[2], 3 * user + 1, "/b"),
        (user, _TIMES[4], 3 * user + 2, "/c"),
    ]


def _insert(connection: psycopg.Connection[Any], rows: list[Row]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO packed.events (user_id, time, event_id, type, path) VALUES (%s, %s, %s, 'pageview', %s)"
            " ON CONFLICT DO NOTHING",
            rows,
        )


def _users(connection: psycopg.Connection[Any]) -> list[int]:
    """How many users reach each step."""
    rows = connection.execute("SELECT users FROM heap.funnel(%s) ORDER BY step", (_FUNNEL,)).fetchall()
    return [users for (users,) in rows] or [0, 0, 0]


def _states(connection: psycopg.Connection[Any]) -> set[str]:
    return {state for (state,) in connection.execute("SELECT DISTINCT state FROM heap.pack_health('packed')")}


def _pack(dsn: str) -> None:
    """All the work about packs, as `heap maintain` would find it pass by pass, over one connection."""
    with _connect(dsn) as connection:
        connection.execute("VACUUM (ANALYZE) packed.events")
    with connect_node(dsn, None) as node, node.cursor(row_factory=class_row(PackRow)) as cursor:
        events = {
            name: Wanted(predicate, ())
            for name, predicate in node.execute(
                "SELECT name, predicate FROM heap.event_definition WHERE app = 'packed'"
            )
        }
        for _ in range(3):  # packs go, packs are made, nothing is left
            columns = ", ".join(PackRow.__slots__)
            rows = cursor.execute(f"SELECT {columns} FROM heap.pack_health('packed')").fetchall()
            work = pack_work(rows, {row.placement for row in rows})
            for piece in work:
                execute(node, piece, events.get(piece.event or ""), timedelta(seconds=1), timedelta(seconds=1))
        assert work == []


def _empty_packs(connection: psycopg.Connection[Any]) -> None:
    """Makes every pack wrong, so that whoever reads one finds nothing. Sessions that read them before have kept the
    events."""
    nothing = "users = NULL, counts = NULL, times = NULL, event_ids = NULL, first_user = NULL, last_user = NULL"
    connection.execute(f"UPDATE packed.packs SET events = 0, {nothing}")


def _expected(rows: set[Row], steps: dict[str, str]) -> list[int]:
    """What the oracle counts, which tries every chain."""
    events = [
        oracle.Event(user, time, event_id, "pageview", columns={"path": path}) for user, time, event_id, path in rows
    ]
    tests = [lambda event, path=path: event.get("path") == path for path in steps.values()]
    rules = oracle.Rules(_WINDOW, _START, _END)
    levels = [
        level
        for user in {event.user_id for event in events}
        for level, _ in oracle.counted_chains([event for event in events if event.user_id == user], tests, rules)
    ]
    return [sum(level >= step for level in levels) for step in (1, 2, 3)]


def test_packs_are_read_and_not_once_anything_changed(packed: str, asked: psycopg.Connection[Any]) -> None:
    with _connect(packed) as before:
        assert _users(before) == [40, 40, 40]
        _empty_packs(asked)
        assert _users(before) == [40, 40, 40], "events that are kept need no packs"
    assert _users(asked) == [0, 0, 0], "it is the packs that are read"
    with asked.transaction(force_rollback=True):
        for user in range(1, 41):
            asked.execute("SELECT FROM packed.events WHERE user_id = %s FOR UPDATE", (user,))
        assert _users(asked) == [0, 0, 0], "a lock changes no row"
    for user in range(1, 41):  # on every shard and in both months, whether it is committed or not
        with asked.transaction(force_rollback=True):
            _insert(asked, [(user, time, 1_000, "/z") for time in _TIMES])
    assert _users(asked) == [40, 40, 40]
    assert _states(asked) == {"stale"}


def test_explain_says_in_how_many_partitions_packs_are_read(asked: psycopg.Connection[Any]) -> None:
    def packs() -> list[list[str]]:
        explained = asked.execute("SELECT heap.explain(%s)", (_FUNNEL,)).fetchall()
        return [re.findall(r"; packs instead in ([^;]*)", line) for (line,) in explained[:3]]

    assert packs() == [["1 partition"], ["1 partition"], ["1 partition"]], "the month that has some"
    for user in range(1, 41):  # January of every shard changes
        _insert(asked, [(user, _TIMES[0], 1_000, "/z")])
    assert packs() == [[], [], ["1 partition"]], "those of C are of February"
    asked.execute("SET heap.strategy = 'merge'")
    assert packs() == [[], [], []]


@pytest.mark.parametrize(
    "statement",
    [
        "trend users of any, count of any by day from '2026-01-05' to '2026-02-05'",
        "trend count of any by week from '2026-01-05' to '2026-02-05'",
        'trend count of "A", count of ("A" or "B") from \'2026-01-05\' to \'2026-02-28\' group by user.plan',
        'trend users of "A", count of ("B" or "C") by day from \'2026-01-05\' to \'2026-02-05\'',
        "retention from \"A\" to \"C\" by week from '2026-01-05' to '2026-02-20'",
        "time from \"A\" to \"B\" within 30 days from '2026-01-01' to '2026-02-28'",
    ],
)
def test_what_kernels_count_of_packs_is_what_sql_counts(asked: psycopg.Connection[Any], statement: str) -> None:
    """Ranges within months, definitions joined, and instants shared by users."""
    with asked.transaction():
        by_packs = sorted(str(row) for row in asked.execute("SELECT heap.query(%s)", (statement,)))
        asked.execute("SET LOCAL heap.strategy = 'merge'")
        assert by_packs == sorted(str(row) for row in asked.execute("SELECT heap.query(%s)", (statement,)))


def test_no_change_is_overlooked_after_a_vacuum(packed: str, asked: psycopg.Connection[Any]) -> None:
    """VACUUM sets the bits of changed pages again. What is left of the events, SQL says, which reads no pack."""
    try:
        for change in (
            "UPDATE packed.events SET path = path",
            "ALTER TABLE packed.events ADD COLUMN more text DEFAULT 'new'",
            "TRUNCATE packed.events",
        ):
            asked.execute(change.encode())
            asked.execute("VACUUM (FREEZE) packed.events")
            _empty_packs(asked)
            with asked.transaction():
                asked.execute("SET LOCAL heap.strategy = 'merge'")
                expected = _users(asked)
            assert _users(asked) == expected, change
            _pack(packed)
            assert _users(asked) == expected, change
    finally:
        asked.execute("ALTER TABLE packed.events DROP COLUMN IF EXISTS more")


_paths = st.sampled_from(["/a", "/b", "/c", "/d"])
_keys = st.tuples(st.integers(1, 4), st.sampled_from(_TIMES), st.integers(1, 3))
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.lists(st.tuples(_keys, _paths), min_size=1, max_size=6)),
        st.tuples(st.just("insert"), st.lists(st.tuples(_keys, _paths), min_size=1, max_size=6)),
        st.tuples(st.just("delete"), _keys),
        st.tuples(st.just("update"), st.tuples(_keys, _paths)),
        st.tuples(st.just("erase"), st.integers(1, 4)),
        st.tuples(st.just("define"), st.tuples(st.sampled_from(list(_STEPS)), _paths)),
        st.tuples(st.just("vacuum"), st.none()),
        st.tuples(st.just("pack"), st.none()),
        st.tuples(st.just("pack"), st.none()),
    ),
    min_size=3,
    max_size=8,
)


@settings(max_examples=4)
@given(steps=_steps)
def test_answers_are_those_of_the_events_there_are(packed: str, steps: list[tuple[str, Any]]) -> None:
    rows: dict[tuple[int, datetime, int], str] = {}
    defined = dict(_STEPS)
    with _connect(packed) as connection:
        _begin(connection)
        for what, value in [*steps, ("pack", None)]:
            match what:
                case "insert":
                    new = {key: path for key, path in value if key not in rows}
                    _insert(connection, [(*key, path) for key, path in new.items()])
                    rows |= new
                case "delete":
                    connection.execute(
                        "DELETE FROM packed.events WHERE user_id = %s AND time = %s AND event_id = %s", value
                    )
                    rows.pop(value, None)
                case "update":
                    key, path = value
                    connection.execute(
                        "UPDATE packed.events SET path = %s WHERE user_id = %s AND time = %s AND event_id = %s",
                        (path, *key),
                    )
                    rows |= {key: path} if key in rows else {}
                case "erase":
                    connection.execute("SELECT heap.delete_user(%s)", (value,))
                    rows = {key: path for key, path in rows.items() if key[0] != value}
                case "define":
                    name, path = value
                    _define(connection, name, path)
                    defined[name] = path
                case "vacuum":
                    connection.execute("VACUUM packed.events")
                case "pack":
                    _pack(packed)
            assert _users(connection) == _expected({(*key, path) for key, path in rows.items()}, defined), what


def test_a_late_event_of_an_open_transaction(packed: str, asked: psycopg.Connection[Any]) -> None:
    """While it is open nothing is packed where it wrote; once it is committed it counts."""
    with _connect(packed) as writer:
        with writer.transaction():
            _insert(writer, [(99, _TIMES[1], 1, "/a"), (99, _TIMES[2], 2, "/b"), (99, _TIMES[4], 3, "/c")])
            assert _users(writer) == [41, 41, 41]
            assert _users(asked) == [40, 40, 40]
            assert Maintainer(packed).run_once()
            assert "waiting" in _states(asked)
            assert _users(asked) == [40, 40, 40]
            assert _users(writer) == [41, 41, 41]
        assert _users(asked) == [41, 41, 41]
        assert Maintainer(packed).run_once()
        assert _states(asked) == {"valid"}
        assert _users(asked) == [41, 41, 41]


def test_a_snapshot_older_than_a_pack(packed: str, asked: psycopg.Connection[Any]) -> None:
    """What was deleted since is still there for it, so no pack without it is made; and its own packs go on being read."""
    with _connect(packed) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with reader.transaction():
            assert _users(reader) == [40, 40, 40]
            asked.execute("DELETE FROM packed.events WHERE path = '/c'")
            Maintainer(packed).run_once(patience=0.5)  # no VACUUM can do all there is to do
            assert _users(asked) == [40, 40, 0]
            assert _users(reader) == [40, 40, 40]
        assert Maintainer(packed).run_once()
        assert _states(asked) == {"valid"}
        assert _users(asked) == [40, 40, 0]


def test_pages_that_were_never_used_change_nothing(asked: psycopg.Connection[Any]) -> None:
    """A crash while a table is extended leaves some, and no VACUUM makes them visible to all."""
    stamp = "SELECT (heap._page_stamps('{public.extended}'))[1]"
    asked.execute("CREATE TABLE public.extended (number int)")
    try:
        asked.execute("INSERT INTO public.extended SELECT generate_series(1, 1000)")
        assert asked.execute(stamp).fetchone() == (None,)
        asked.execute("VACUUM public.extended")
        before = asked.execute(stamp).fetchone()
        assert before is not None
        assert before != (None,)
        (file,) = asked.execute(
            "SELECT current_setting('data_directory') || '/' || pg_relation_filepath('public.extended')"
        ).fetchone() or ("",)
        with Path(file).open("ab") as table:
            table.write(bytes(3 * 8192))
        asked.execute("VACUUM (TRUNCATE false) public.extended")
        assert asked.execute(stamp).fetchone() == before
        asked.execute("INSERT INTO public.extended SELECT generate_series(1, 1000)")
        assert asked.execute(stamp).fetchone() == (None,)
    finally:
        asked.execute("DROP TABLE public.extended")


def test_serializable_transactions_read_events(asked: psycopg.Connection[Any]) -> None:
    _empty_packs(asked)
    asked.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    with asked.transaction():
        assert _users(asked) == [40, 40, 40]


def test_packs_have_events_in_many_parts(packed: str, asked: psycopg.Connection[Any]) -> None:
    """The first ends amid the events of a user."""
    asked.execute("INSERT INTO packed.events (user_id, time, event_id, type, path) SELECT 7, '2026-01-10'::timestamptz"
                  " + make_interval(secs => n), n, 'pageview', '/a' FROM generate_series(1, 70000) AS n")  # fmt: skip
    asked.execute(
        "INSERT INTO packed.events (user_id, time, event_id, type, path) VALUES (7, '2026-01-31', 1, 'pageview', '/b')"
    )
    _pack(packed)
    parts = asked.execute("SELECT max(part) FROM packed.packs").fetchone()
    assert parts == (1,)
    assert _users(asked) == [40, 40, 40]
    for days in ("'2026-01-01' to '2026-02-28'", "'2026-01-05' to '2026-02-05'"):
        for counted in ("users of any, count of any", 'users of "A", count of "A"'):
            with asked.transaction():
                statement = f"trend {counted} by week from {days}"
                (query,) = asked.execute("SELECT heap.sql(%s)", (statement,)).fetchone() or ("",)
                by_slices = asked.execute(in_slices(query)).fetchall()
                asked.execute("SET LOCAL heap.strategy = 'merge'")
                (query,) = asked.execute("SELECT heap.sql(%s)", (statement,)).fetchone() or ("",)
                assert sorted(by_slices, key=str) == sorted(asked.execute(query).fetchall(), key=str), statement


def test_who_looks_up_again_and_again_reads_the_pack(packed: str, asked: psycopg.Connection[Any]) -> None:
    asked.execute("INSERT INTO packed.events (user_id, time, event_id, type, path) SELECT 1000000, '2026-01-30'::timestamptz"
                  " + make_interval(secs => n), n, 'pageview', '/b' FROM generate_series(1, 60000) AS n")  # fmt: skip
    _insert(
        asked, [(user, _TIMES[4], 1_000, "/b") for user in range(1_000_000, 1_000_040)]
    )  # the other month has a pack
    _pack(packed)
    for place, condition, events in asked.execute(
        "SELECT place, condition, events FROM packed.packs WHERE events > 1000"
    ):
        asked.execute(
            "UPDATE packed.packs SET users = %s, counts = %s WHERE (place, condition) = (%s, %s) AND events > 1000",
            (encoded(np.array([1_000_000])), encoded(np.array([events])), place, condition),
        )
    with _connect(packed) as session:
        found = [_users(session) for _ in range(8)]
        assert found[0] == [40, 40, 40], "few are looked up in the index"
        assert found[-1][1] < 40, "all is read from the pack, which the test made wrong"
        assert sorted(found, reverse=True) == found, "and is kept"
        _insert(asked, [(5, _TIMES[2], 1_000, "/z")])
        assert _users(session) == [40, 40, 40]


def test_a_month_of_which_little_went_is_packed_again(packed: str, asked: psycopg.Connection[Any]) -> None:
    """Of fewer than one page in fifty VACUUM by itself leaves the places of rows, and then the pages are not settled."""
    asked.execute("INSERT INTO packed.events (user_id, time, event_id, type, path) SELECT n, '2026-01-10'::timestamptz"
                  " + make_interval(secs => n), n, 'pageview', '/z' FROM generate_series(1, 30000) AS n")  # fmt: skip
    _pack(packed)
    asked.execute("DELETE FROM packed.events WHERE user_id = 7 AND path = '/c'")
    asked.execute("DELETE FROM packed.events WHERE user_id = 7 AND path = '/z'")
    assert Maintainer(packed).run_once()
    assert _states(asked) == {"valid"}
    assert _users(asked) == [40, 40, 39]


def test_erasing_a_person_leaves_no_pack_with_them(asked: psycopg.Connection[Any]) -> None:
    users = "SELECT users FROM packed.packs WHERE first_user <= 7 AND last_user >= 7"
    one = _packed_users(asked, users)
    assert 7 in one
    asked.execute("SELECT heap.delete_user(7)")
    assert 7 not in _packed_users(asked, users)
    assert _users(asked) == [39, 39, 39]


def _packed_users(connection: psycopg.Connection[Any], query: str) -> set[int]:
    return {int(user) for (users,) in connection.execute(query.encode()).fetchall() for user in decoded(users)}


def test_readers_of_the_app_read_packs_and_write_none(packed: str, asked: psycopg.Connection[Any]) -> None:
    asked.execute("DROP ROLE IF EXISTS packer")
    asked.execute("CREATE ROLE packer LOGIN PASSWORD 'of the test'")
    try:
        asked.execute("GRANT heap_packed_write TO packer")
        _empty_packs(asked)
        with _connect(make_conninfo(packed, user="packer", password="of the test")) as reader:
            assert _users(reader) == [0, 0, 0]
            for change in ("DELETE FROM packed.packs", "UPDATE packed.packs SET events = 1"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    reader.execute(change.encode())
            asked.execute("REVOKE SELECT ON packed.packs FROM heap_packed_read")
            with _connect(make_conninfo(packed, user="packer", password="of the test")) as amid_upgrade:
                assert _users(amid_upgrade) == [40, 40, 40]
            asked.execute("SELECT heap.grant_roles('packed')")
            with _connect(make_conninfo(packed, user="packer", password="of the test")) as later:
                assert _users(later) == [0, 0, 0]
            (stamps,) = reader.execute("SELECT heap._page_stamps('{pg_statistic,pg_authid}')").fetchone() or ((),)
            assert stamps == [None, None]
    finally:
        asked.execute("DROP OWNED BY packer")
        asked.execute("DROP ROLE packer")


def test_packs_of_what_is_gone_go(packed: str, asked: psycopg.Connection[Any]) -> None:
    asked.execute("UPDATE heap.settings SET pack_after = NULL")
    try:
        assert _states(asked) == {"orphan"}
        assert Maintainer(packed).run_once()
        assert asked.execute("SELECT count(*) FROM packed.packs").fetchone() == (0,)
    finally:
        asked.execute("UPDATE heap.settings SET pack_after = DEFAULT")
    assert Maintainer(packed).run_once()
    asked.execute("SELECT heap.drop_event('C')")
    assert _states(asked) == {"valid", "orphan"}
    _define(asked, "C", "/c")
    assert _states(asked) == {"valid"}, "the same condition is the same pack"
