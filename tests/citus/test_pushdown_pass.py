"""The compiler's pass `verify_pushdown` and Citus agree: what it accepts, Citus leaves on the shards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sqlglot import exp, parse_one

import heap_grammar
from heap_compiler import syntax
from heap_compiler.parse import parse
from heap_compiler.passes.verify_pushdown import verify_pushdown
from tests.citus.query_shapes import mutations, statements
from tests.citus.test_pushdown import on_shards, top_of
from tests.extension.shop_app import ensure_shop, settle

pytestmark = pytest.mark.parametrize("dsn", ["citus"], indirect=True)

_EXAMPLES = re.findall(r"```heap\n(.*?)\n```", heap_grammar.reference_text(), re.S)

_STRICTER = {
    "subquery not on user_id": "SELECT count(*) FROM (SELECT user_id, (SELECT count(*) FROM shop.users) AS unread,"
    " (SELECT max(u.identity) FROM shop.users AS u WHERE u.identity = e.path) AS also FROM shop.events AS e) AS e",
    "distinct values, not of user_id": "SELECT type, count(DISTINCT path) FROM shop.events GROUP BY type",
    "DISTINCT without user_id": "SELECT DISTINCT path FROM shop.events",
    "UNION without user_id": "SELECT path, count(*) FROM (SELECT user_id, event_id, path"
    " FROM (SELECT user_id, event_id, path FROM shop.events) AS a UNION SELECT event_id, user_id, path"
    " FROM (SELECT user_id, event_id, path FROM shop.events) AS b) AS e GROUP BY path",
    "outer join that keeps rows of no user": "SELECT count(*) FROM shop.events AS e RIGHT JOIN"
    " (SELECT type, count(*) AS n FROM shop.events GROUP BY type) AS t ON t.type = e.type WHERE e.event_id > 0",
    "join not on user_id": "SELECT count(*) FROM (SELECT a.user_id FROM (SELECT user_id, user_id % 7 AS k"
    " FROM shop.users) AS a JOIN (SELECT user_id, user_id % 7 AS k FROM shop.users) AS b ON a.k = b.k"
    " UNION ALL SELECT user_id FROM shop.users) AS u",
    "window not partitioned by user_id": "SELECT count(*) FROM (SELECT count(*) OVER (PARTITION BY who) AS n"
    " FROM (SELECT user_id AS who FROM shop.events) AS e) AS e",
}
"""What the pass refuses and Citus pushes down: because it is wrong, because only PostgreSQL's simplifications allow it,
because it sends more than totals, or because the user's id has another name. By the beginning of the message."""

_BESIDE_UNION = ("LATERAL not on user_id", "LIMIT over rows of users", "membership not of user_id")
"""What Citus lets pass beside a UNION ALL, as it does the join above."""


@pytest.fixture(scope="module")
def citus(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Of the shop, with the segments of the reference."""
    ensure_shop(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        settle(connection)
        yield connection


def _refusal(query: exp.Query) -> str | None:
    """What the pass says against a query."""
    try:
        verify_pushdown(query)
    except AssertionError as error:
        return str(error)
    return None


def _stays_on_shards(connection: psycopg.Connection[Any], sql: str) -> bool | None:
    """Whether Citus sends the statement to the shards and gets totals back; None for what is no SQL to PostgreSQL."""
    try:
        (plan,) = connection.execute(f"EXPLAIN (FORMAT JSON) {sql}").fetchone() or (None,)  # type: ignore[arg-type]
    except psycopg.Error as error:
        return None if (error.sqlstate or "").startswith(("22", "42")) else False
    for top in (top_of(task) for query in on_shards(plan) for task in query["Tasks"]):
        if top["Node Type"] not in {"Aggregate", "Group"}:
            return False
        keys = [key for key in top.get("Group Key", ()) if "intermediate_result" not in key]
        if any(re.search(r"user_id|event_id|session_id", key) for key in keys):
            return False
    return True


def _assert_agreed(connection: psycopg.Connection[Any], query: exp.Query, sql: str) -> None:
    stays = _stays_on_shards(connection, sql)
    assume(stays is not None)
    refusal = _refusal(query)
    if stays:
        assert refusal is None or refusal.startswith((*_STRICTER, *_BESIDE_UNION)), refusal
    else:
        assert refusal is not None, sql


@given(sql=statements())
@settings(max_examples=150)
def test_what_is_built_from_the_parts_of_lowerings(citus: psycopg.Connection[Any], sql: str) -> None:
    query = parse_one(sql, dialect="postgres")
    assert isinstance(query, exp.Query)
    _assert_agreed(citus, query, sql)


def test_what_is_changed_in_a_compiled_query(citus: psycopg.Connection[Any]) -> None:
    compiled = _compiled(citus)
    assert [sql for query, sql in compiled if _refusal(query) or not _stays_on_shards(citus, sql)] == []

    @given(data=st.data())
    @settings(max_examples=150)
    def changed(data: st.DataObject) -> None:
        query, _ = data.draw(st.sampled_from(compiled))
        mutated = data.draw(mutations(query))
        _assert_agreed(citus, mutated, mutated.sql("postgres"))

    changed()


def _compiled(connection: psycopg.Connection[Any]) -> list[tuple[exp.Query, str]]:
    """The analyses of the reference but for the lists of users."""
    compiled: list[tuple[exp.Query, str]] = []
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL heap.strategy = 'merge'")  # what kernels read is inside them
        for example in _EXAMPLES:
            statement = parse(example)
            if example.startswith("segment "):
                connection.execute("SELECT heap.query(%s)", (example,))
            elif isinstance(statement, syntax.AnalysisStatement) and statement.keyword != "users":
                (sql,) = connection.execute("SELECT heap.sql(%s)", (example,)).fetchone() or ("",)
                query = parse_one(sql, dialect="postgres")
                assert isinstance(query, exp.Query)
                compiled.append((query, sql))
    return compiled


@pytest.mark.parametrize("said", _STRICTER)
def test_where_the_pass_is_stricter_than_citus(citus: psycopg.Connection[Any], said: str) -> None:
    query = parse_one(_STRICTER[said], dialect="postgres")
    assert isinstance(query, exp.Query)
    assert (_refusal(query) or "").startswith(said)
    assert _stays_on_shards(citus, _STRICTER[said])


def test_citus_answers_wrongly_what_the_pass_refuses_beside_a_union(citus: psycopg.Connection[Any]) -> None:
    """Should this fail, Citus has been mended."""
    (pairs,) = citus.execute(_STRICTER["join not on user_id"]).fetchone() or (0,)  # type: ignore[arg-type]
    users = [user for (user,) in citus.execute("SELECT user_id FROM shop.users")]
    remainders = [abs(user) % 7 * (1 if user > 0 else -1) for user in users]
    expected = sum(remainders.count(one) for one in remainders) + len(users)
    assert pairs < expected
