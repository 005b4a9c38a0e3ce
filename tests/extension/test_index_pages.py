"""Indexes read by their pages give what a scan gives, whatever others do before the query and while it reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from heap_extension.cluster import Cluster
from heap_extension.index_names import index_suffix
from heap_extension.kernels import btree, index_pages
from heap_extension.kernels.events import Events, Int64
from heap_extension.kernels.index_pages import IndexPages
from heap_extension.nodes import create_extension

_TABLE = "paged.events"
_CONDITION = "path = '/a'"
_INDEX = f"events_{index_suffix('A', _CONDITION)}"
_EVERYBODY = (-(2**63), 2**63 - 1)
Row = tuple[int, int, int]


class _Reader:
    """A transaction that reads as a kernel does, and calls `meanwhile` before each of its queries."""

    def __init__(self, connection: psycopg.Connection[Any], meanwhile: Callable[[], None] = lambda: None) -> None:
        self._connection = connection
        self._meanwhile = meanwhile
        self.reads_pages = False
        """Of an index, and not only of a visibility map."""
        self.looked_up: list[int] = []
        """Users who were read by a scan of the index."""

    def run(self, query: str, types: Sequence[str], values: Sequence[Any]) -> Iterable[Mapping[str, Any]]:
        self._meanwhile()
        self.reads_pages |= query.startswith("SELECT page FROM")
        typed = re.sub(r"\$(\d)\b", lambda found: f"${found[1]}::{types[int(found[1]) - 1]}", query)
        with psycopg.RawCursor(self._connection, row_factory=dict_row) as cursor:
            return cursor.execute(typed.encode(), list(values), binary=True).fetchall()

    def _users(self, users: Int64) -> Events:
        self.looked_up += users.tolist()
        return _as_events([row for row in self.scanned() if row[0] in set(users.tolist())])

    def read(self, first_user: int = _EVERYBODY[0], last_user: int = _EVERYBODY[1]) -> list[Row] | None:
        found = IndexPages(self.run).events(_TABLE, "A", _CONDITION, first_user, last_user, self._users)
        if found is None:
            return None
        return list(zip(found.users.tolist(), found.times.tolist(), found.ids.tolist(), strict=True))

    def scanned(self) -> list[Row]:
        """What PostgreSQL finds itself, from the table."""
        query = f"""SELECT user_id, extract(epoch FROM time - timestamptz '2000-01-01 00:00+00') * 1000000, event_id
            FROM {_TABLE} WHERE path || '' = '/a' ORDER BY 1, 2, 3"""
        return [(user, int(time), event) for user, time, event in self._connection.execute(query.encode())]


def _as_events(rows: list[Row]) -> Events:
    users, times, ids = np.array(rows, np.int64).reshape(-1, 3).T
    return Events(users, times, lambda: ids)


@pytest.fixture(scope="module")
def server(postgres_cluster: Cluster) -> Iterator[str]:
    """A table like a partition of events, with the index of one definition, on a server of its own."""
    create_extension(postgres_cluster.dsn)
    with psycopg.connect(postgres_cluster.dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA paged")
        connection.execute(
            f"""CREATE TABLE {_TABLE} (user_id bigint, event_id bigint, time timestamptz, path text,
            title text, PRIMARY KEY (user_id, time, event_id)) WITH (autovacuum_enabled = off)""".encode()
        )
        connection.execute(f"CREATE INDEX {_INDEX} ON {_TABLE} (user_id, time, event_id) WHERE {_CONDITION}".encode())
        yield postgres_cluster.dsn
        connection.execute("DROP SCHEMA paged CASCADE")


@pytest.fixture(params=[0, 1_000], ids=["pages", "places"])
def writer(
    request: pytest.FixtureRequest, server: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection[Any]]:
    """Of the table, which has some events and was vacuumed; indexes of any size are read by their pages, few at a time."""
    monkeypatch.setattr(index_pages, "_SMALL", 0)
    monkeypatch.setattr(index_pages, "_MOST_DOUBTFUL", 0)
    monkeypatch.setattr(index_pages, "_ENTRIES_PER_PAGE", 3)
    monkeypatch.setattr(index_pages, "_ENTRIES_KEPT_PER_PAGE", 0)
    monkeypatch.setattr(btree, "_BATCH", 2)
    with psycopg.connect(server, autocommit=True) as connection:
        _fill(connection)
        yield connection


def _fill(connection: psycopg.Connection[Any]) -> None:
    connection.execute(f"TRUNCATE {_TABLE}".encode())
    _change(connection, "insert", 0, count=3_000)
    connection.execute(f"VACUUM (ANALYZE) {_TABLE}".encode())


# Of a user so many that they fill pages of the index; the others share a quarter of the events.
_INSERT = f"""
INSERT INTO {_TABLE}
SELECT
    CASE mod(n, 4) WHEN 0 THEN 7 ELSE mod(n * 7919 + %(seed)s, 60) END, n + %(seed)s * 100000,
    timestamptz '2026-01-01 00:00+00' + interval '1 second' * mod(n * 104729 + %(seed)s, 2000000),
    CASE mod(n, 5) WHEN 0 THEN '/b' ELSE '/a' END, repeat('t', mod(n, 50))
FROM generate_series(1, %(count)s) AS n ON CONFLICT DO NOTHING
"""
_CHANGES = {
    "insert": _INSERT,
    "delete": f"DELETE FROM {_TABLE} WHERE mod(user_id + event_id, 13) = mod(%(seed)s, 13)",
    "erase": f"DELETE FROM {_TABLE} WHERE user_id = mod(%(seed)s, 10)",
    "another path": f"""UPDATE {_TABLE} SET path = CASE path WHEN '/a' THEN '/b' ELSE '/a' END
        WHERE mod(event_id, 17) = mod(%(seed)s, 17)""",
    "another title": f"UPDATE {_TABLE} SET title = 'other' WHERE mod(event_id, 11) = mod(%(seed)s, 11)",
    "merge": f"UPDATE {_TABLE} SET user_id = 100 + %(seed)s WHERE user_id = mod(%(seed)s, 10)",
    "vacuum": f"VACUUM {_TABLE}",
    "freeze": f"VACUUM (FREEZE, INDEX_CLEANUP ON) {_TABLE}",
}
_users = st.one_of(
    st.just(_EVERYBODY), st.tuples(st.integers(-1, 70), st.integers(-1, 110)).map(lambda pair: (min(pair), max(pair)))
)
_steps = st.lists(st.sampled_from([*_CHANGES, "insert", "vacuum"]), max_size=6)


def _change(connection: psycopg.Connection[Any], what: str, seed: int, count: int = 300) -> None:
    change = _CHANGES[what]
    connection.execute(change.encode(), {"seed": seed, "count": count} if "%(" in change else None)


@contextmanager
def _snapshot(server: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(server) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SET statement_timeout = '10s'")
        yield connection
        connection.rollback()


@settings(max_examples=12)
@given(
    before=_steps,
    own=st.sampled_from([None, *(what for what in _CHANGES if what not in {"vacuum", "freeze"})]),
    between=_steps,
    during=_steps,
    users=_users,
    entries_per_page=st.sampled_from([0, 1_000]),
)
@example(
    before=[],
    own=None,
    between=[],
    during=["delete", "vacuum", "insert", "merge", "vacuum"],
    users=_EVERYBODY,
    entries_per_page=0,
)
@example(
    before=["delete"], own=None, between=["vacuum"], during=["insert", "vacuum"], users=(7, 7), entries_per_page=1_000
)
@example(
    before=["another title", "vacuum"], own="delete", between=["insert"], during=[], users=(3, 20), entries_per_page=0
)
def test_what_is_read_is_what_the_snapshot_sees(
    server: str,
    writer: psycopg.Connection[Any],
    before: list[str],
    own: str | None,
    between: list[str],
    during: list[str],
    users: tuple[int, int],
    entries_per_page: int,
) -> None:
    """Changes before the snapshot, its own, after it, and between any two looks at pages; vacuumed and not. Rows that
    some may not see are looked for page by page, or one by one."""
    index_pages._ENTRIES_PER_PAGE = entries_per_page
    _fill(writer)
    seeds = iter(range(1, 100))
    for what in before:
        _change(writer, what, next(seeds))
    left = iter(during)

    def meanwhile() -> None:
        if own is None and (what := next(left, None)) is not None:  # own changes would hold up those of others
            _change(writer, what, next(seeds))

    with _snapshot(server) as connection:
        connection.execute("SELECT")
        for what in between:
            _change(writer, what, next(seeds))
        if own is not None:
            try:
                _change(connection, own, next(seeds))
            except psycopg.errors.SerializationFailure:
                return
        reader = _Reader(connection, meanwhile)
        found = reader.read(*users)
        if found is not None:
            assert found == [row for row in reader.scanned() if users[0] <= row[0] <= users[1]]
        else:  # a key that came again and again
            assert {"another title", "another path"} & {*before, *between, *during, own}


@settings(max_examples=5)
@given(steps=st.lists(st.sampled_from([*_CHANGES, "insert", "insert"]), min_size=2, max_size=7), users=_users)
def test_what_is_kept_is_what_the_snapshot_sees(
    server: str, writer: psycopg.Connection[Any], steps: list[str], users: tuple[int, int]
) -> None:
    """By one session, transaction by transaction; and in the end by one that was open all the time."""
    _fill(writer)
    with _snapshot(server) as earliest:
        earliest.execute("SELECT")
        for seed, what in enumerate(["vacuum", *steps], start=1):
            _change(writer, what, seed)
            with _snapshot(server) as connection:
                reader = _Reader(connection)
                assert reader.read() in (reader.scanned(), None)
                found = reader.read(*users)
                assert found is None or found == [row for row in reader.scanned() if users[0] <= row[0] <= users[1]]
        reader = _Reader(earliest)
        assert reader.read() in (reader.scanned(), None)


def test_entries_are_kept_until_vacuum(server: str, writer: psycopg.Connection[Any]) -> None:
    """The rows of pages that changed are read from the table, others not at all."""

    def reads_pages() -> bool:
        with _snapshot(server) as connection:
            reader = _Reader(connection)
            assert reader.read() == reader.scanned()
            return reader.reads_pages

    assert reads_pages()
    assert not reads_pages()
    _change(writer, "insert", 1)
    _change(writer, "delete", 2)
    assert not reads_pages()
    _change(writer, "vacuum", 0)
    assert reads_pages()
    assert not reads_pages()


def test_rows_of_unvacuumed_pages_are_found_by_their_places(server: str, writer: psycopg.Connection[Any]) -> None:
    _change(writer, "insert", 1)
    with _snapshot(server) as connection:
        reader = _Reader(connection)
        assert reader.read() == reader.scanned()
        assert reader.looked_up[1:] == [], "only nobody, which counts as a use of the index"
    index_pages._kept.clear()
    writer.execute(f"UPDATE {_TABLE} SET title = 'moved within its page' WHERE user_id = 9".encode())
    with _snapshot(server) as connection:
        reader = _Reader(connection)
        assert reader.read() == reader.scanned()
        assert reader.looked_up[1:] == [9], "whose rows are no more where the index says"


def test_an_index_that_is_replaced_is_found_again(server: str, writer: psycopg.Connection[Any]) -> None:
    for change in (
        f"REINDEX INDEX CONCURRENTLY paged.{_INDEX}",
        f"REINDEX INDEX paged.{_INDEX}",
        f"VACUUM FULL {_TABLE}",
    ):
        writer.execute(change.encode())
        writer.execute(f"VACUUM {_TABLE}".encode())
        with _snapshot(server) as connection:
            reader = _Reader(connection)
            assert reader.read() == reader.scanned(), change
    writer.execute(f"DROP INDEX paged.{_INDEX}".encode())
    try:
        with _snapshot(server) as connection:
            assert _Reader(connection).read() is None
    finally:
        writer.execute(f"CREATE INDEX {_INDEX} ON {_TABLE} (user_id, time, event_id) WHERE {_CONDITION}".encode())
    with _snapshot(server) as connection:
        reader = _Reader(connection)
        assert reader.read() == reader.scanned()


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        (_INDEX, "(user_id, time, event_id DESC) WHERE path = '/a'"),
        (_INDEX, "(user_id, event_id, time) WHERE path = '/a'"),
        (_INDEX, "(path, user_id, time, event_id)"),
        ("other", "(user_id, time, event_id) WHERE path IN ('/a', '/b')"),
        ("other", "(user_id, time, event_id)"),
        (
            f"events_{index_suffix('A', _CONDITION + ' AND true')}",
            "(user_id, time, event_id) WHERE path = '/a' AND title = ''",
        ),
    ],
)
def test_other_indexes_are_not_read(server: str, writer: psycopg.Connection[Any], name: str, definition: str) -> None:
    writer.execute(f"DROP INDEX paged.{_INDEX}".encode())
    writer.execute(f"CREATE INDEX {name} ON {_TABLE} {definition}".encode())
    try:
        with _snapshot(server) as connection:
            assert _Reader(connection).read() is None
    finally:
        writer.execute(f"DROP INDEX paged.{name}".encode())
        writer.execute(f"CREATE INDEX {_INDEX} ON {_TABLE} (user_id, time, event_id) WHERE {_CONDITION}".encode())


def test_an_index_that_covers_columns(server: str, writer: psycopg.Connection[Any]) -> None:
    """Of which some are null."""
    writer.execute(f"UPDATE {_TABLE} SET title = NULL WHERE event_id % 3 = 0".encode())
    writer.execute(f"DROP INDEX paged.{_INDEX}".encode())
    covering = f"events_{index_suffix('A', _CONDITION, ['title'])}"
    writer.execute(
        f"CREATE INDEX {covering} ON {_TABLE} (user_id, time, event_id) INCLUDE (title) WHERE {_CONDITION}".encode()
    )
    writer.execute(f"VACUUM {_TABLE}".encode())
    try:
        with _snapshot(server) as connection:
            reader = _Reader(connection)
            assert reader.read() == reader.scanned()
    finally:
        writer.execute(f"DROP INDEX paged.{covering}".encode())
        writer.execute(f"CREATE INDEX {_INDEX} ON {_TABLE} (user_id, time, event_id) WHERE {_CONDITION}".encode())


@pytest.fixture
def analyst(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A session of a role that may read an app, of whose one event there are as many as pages are read for."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        on_citus = connection.execute("SELECT heap._has_citus()").fetchone() == (True,)
        connection.execute("SELECT heap.create_app('paging', shard_count => %s)", (1 if on_citus else None,))
        connection.execute("SELECT heap.make_partitions('paging', '2026-01-01', '2026-01-31')")
        connection.execute("SELECT set_config('heap.app', 'paging', false)")
        _insert(connection, 1, 20_000)
        connection.execute("SELECT heap.define_event('A', %s)", ("pageview where path = '/a'",))
        connection.execute("VACUUM (ANALYZE) paging.events")
        connection.execute("DROP ROLE IF EXISTS pager")
        connection.execute("CREATE ROLE pager LOGIN PASSWORD 'of the test'")
        try:
            connection.execute("GRANT heap_paging_read TO pager")
            with psycopg.connect(make_conninfo(dsn, user="pager", password="of the test"), autocommit=True) as analyst:
                analyst.execute("SELECT set_config('heap.app', 'paging', false)")
                yield analyst
        finally:
            connection.execute("DROP OWNED BY pager")
            connection.execute("SELECT heap.drop_app('paging')")
            connection.execute("DROP ROLE pager")


def _insert(connection: psycopg.Connection[Any], first: int, last: int) -> None:
    connection.execute(
        "INSERT INTO paging.events (user_id, time, event_id, type, path) SELECT mod(n * 7919, 300),"
        " timestamptz '2026-01-01 00:00+00' + interval '2 minutes' * mod(n, 20000), n, 'pageview', '/a'"
        " FROM generate_series(%s::bigint, %s::bigint) AS n",
        (first, last),
    )


_TREND = "trend users of \"A\", count of \"A\" by day from '2026-01-01' to '2026-01-31'"


def test_kernels_read_pages_for_whoever_may_read_the_events(dsn: str, analyst: psycopg.Connection[Any]) -> None:
    def answer(strategy: str) -> list[str]:
        with analyst.transaction():
            analyst.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
            return sorted(str(row) for row in analyst.execute("SELECT heap.query(%s)", (_TREND,)))

    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("SELECT set_config('heap.app', 'paging', false)")
        delete = "DELETE FROM paging.events WHERE event_id = 77"
        for at, change in enumerate(["SELECT", delete, "SELECT heap.delete_user(5)"]):
            owner.execute(change.encode())
            _insert(owner, 30_000 + at, 30_000 + at)
            assert answer("vector") == answer("merge")
        owner.execute("REVOKE EXECUTE ON FUNCTION heap._pages FROM heap_paging_read")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="_pages"):
            answer("vector")


def test_pages_are_of_what_the_session_may_read(analyst: psycopg.Connection[Any], dsn: str) -> None:
    """Of indexes of tables, and maps of tables, but of no table itself; and superusers' sessions get none by this."""
    count = "SELECT count(*) FROM heap._pages(%s, %s, '{0}')"
    asked = [
        ("pg_catalog.pg_class_oid_index", "main", 1),
        ("pg_catalog.pg_class", "vm", 1),
        ("pg_catalog.pg_class", "main", 0),
        ("pg_catalog.pg_class_oid_index", "fsm", 0),
        ("pg_catalog.pg_authid", "vm", 0),
        ("pg_catalog.pg_authid_oid_index", "main", 0),
        ("no.such_table", "vm", 0),
    ]
    for relation, fork, expected in asked:
        assert analyst.execute(count, (relation, fork)).fetchone() == (expected,), relation
    with psycopg.connect(dsn, autocommit=True) as owner:
        assert owner.execute(count, ("pg_catalog.pg_class_oid_index", "main")).fetchone() == (0,)
        try:
            owner.execute("CREATE TABLE public.hidden (number int PRIMARY KEY)")
            owner.execute("GRANT SELECT ON public.hidden TO pager")
            owner.execute("INSERT INTO public.hidden VALUES (1)")
            assert analyst.execute(count, ("public.hidden_pkey", "main")).fetchone() == (1,)
            owner.execute("ALTER TABLE public.hidden ENABLE ROW LEVEL SECURITY")
            assert analyst.execute(count, ("public.hidden_pkey", "main")).fetchone() == (0,)
        finally:
            owner.execute("DROP TABLE public.hidden")
