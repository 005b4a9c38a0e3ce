"""Every analysis is one distributed query of aggregates: what comes back to the coordinator are totals, not users.

What is otherwise, and why, is the table under "Pushdown" in ARCHITECTURE.md, which these tests read. An exception that
is none any more fails, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

import heap_grammar
from heap_compiler import syntax
from heap_compiler.analyses import ANALYSES
from heap_compiler.parse import parse
from heap_extension.load import LoadedEvent, Loader
from heap_extension.server.plans import plan_nodes
from heap_extension.shop import DEFINITIONS, shop_events
from tests.extension.shop_app import NOW

pytestmark = pytest.mark.parametrize("dsn", ["citus"], indirect=True)

_USERS = 200
_COPIES = (1, 2, 3)

_EXAMPLES = re.findall(r"```heap\n(.*?)\n```", heap_grammar.reference_text(), re.S)
_SEGMENTS = [example for example in _EXAMPLES if example.startswith("segment ")]
_ANALYSES = [example for example in _EXAMPLES if isinstance(parse(example), syntax.AnalysisStatement)]
_FURTHER = (
    'retention from "Signed up" to any by week for 4 weeks over last 6 weeks recurring',
    "stickiness of pageview by week over last 6 weeks group by country",
    'users of funnel "Viewed pricing" -> "Signed up" in any order counting sessions limit 5',
    'users of funnel "Viewed product" -> "Purchase" strictly in order holding path first time limit 5',
    'users of funnel "Viewed pricing" -> "Purchase" without "Clicked sign up" limit 5',
    'correlate "Viewed product" -> "Purchase" with country strictly in order holding browser first time',
    'correlate "Viewed pricing" -> "Purchase" with country without "Clicked sign up"',
    'effort "Viewed pricing" -> "Purchase" in any order counting sessions',
    'effort "Viewed product" -> "Purchase" strictly in order holding path first time',
    'effort "Viewed pricing" -> "Purchase" without "Clicked sign up"',
)
"""Statements with the clauses that the reference shows with another analysis."""

_STATEMENTS = (*_ANALYSES, *_FURTHER)


class _Exception(NamedTuple):
    """A row of the table: statements of an analysis, with one of these words if there are any."""

    analysis: str
    words: tuple[str, ...]
    kind: str

    def matches(self, statement: str) -> bool:
        words = "|".join(rf"\b{word}" if word[0].isalpha() else re.escape(word) for word in self.words)
        return statement.startswith(self.analysis) and bool(re.search(words, statement))


def _documented() -> list[_Exception]:
    text = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text()
    table = text.split("\n## Pushdown\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]
    return [
        _Exception(analysis, tuple(re.findall(r"`([^`]+)`", words)), kind.strip())
        for analyses, words, kind, _ in rows
        for analysis in re.findall(r"`(\w+)`", analyses)
    ]


class _Traffic(NamedTuple):
    """What the shards sent for a statement: rows of each task, bytes of all."""

    rows: list[int]
    sent: int


@pytest.fixture(scope="module")
def growing(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """An app with the shop's events of few users."""
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT heap.create_app('growing', 'Europe/Berlin')")
        Loader(connection, "growing").load(shop_events(NOW, users=_USERS))
        connection.execute(
            "SELECT set_config('heap.app', 'growing', false), set_config('heap.now', %s, false)", (str(NOW),)
        )
        for name, definition in DEFINITIONS.items():
            connection.execute("SELECT heap.define_event(%s, %s)", (name, definition))
        for segment in _SEGMENTS:
            connection.execute("SELECT heap.query(%s)", (segment,))
        connection.execute(_GIVE_PLANS)
        connection.commit()
        connection.execute("SET citus.explain_all_tasks = on")
        connection.execute("SET heap.strategy = 'merge'")  # what kernels read is no part of a query's plan
        connection.commit()
        yield connection
        connection.rollback()
        connection.execute("SELECT heap.drop_app('growing')")


_GIVE_PLANS = """
UPDATE growing.users SET properties =
    CASE WHEN hashtext(left(identity, 14)) % 3 = 0 THEN jsonb '{"plan": "pro"}' ELSE jsonb '{"plan": "free"}' END
"""


def _plan(connection: psycopg.Connection[Any], statement: str, *options: str) -> Any:
    (sql,) = connection.execute("SELECT heap.sql(%s)", (statement,)).fetchone() or ("",)
    (plan,) = connection.execute(f"EXPLAIN ({', '.join([*options, 'FORMAT JSON'])}) {sql}").fetchone() or (None,)
    return plan


def on_shards(plan: Any) -> list[dict[str, Any]]:
    """The distributed queries of a plan, those of several tasks."""
    return [node for node in plan_nodes(plan) if node.get("Task Count", 0) > 1]


def top_of(task: dict[str, Any]) -> dict[str, Any]:
    """The node of a task's plan that makes its rows; what orders or cuts them is left out."""
    node: dict[str, Any] = next(plan_nodes(task["Remote Plan"]))["Plan"]
    while node["Node Type"] in {"Limit", "Sort", "Incremental Sort", "Result", "Subquery Scan"} and "Plans" in node:
        node = node["Plans"][0]
    return node


def _shown(plan: Any) -> Iterator[str]:
    """The kinds of exception that a plan shows."""
    queries = on_shards(plan)
    if len(queries) != 1:
        yield "several queries"
    for task in (task for query in queries for task in query["Tasks"]):
        if top_of(task)["Node Type"] not in {"Aggregate", "Group"}:
            yield "no aggregate"
        if any(node.get("Function Name") == "read_intermediate_result" for node in plan_nodes(task)):
            yield "reads totals"
    if any(key.startswith(("Map Task", "Merge Task")) for node in plan_nodes(plan) for key in node):
        yield "repartitions"


def _assert_as_documented(found: Iterable[tuple[str, str]], kinds: set[str]) -> None:
    """`found` are statements and the kinds of exception they show, of these kinds."""
    shown = set(found)
    documented = [exception for exception in _documented() if exception.kind in kinds]
    excused = {
        (exception, statement, kind)
        for exception in documented
        for statement, kind in shown
        if exception.kind == kind and exception.matches(statement)
    }
    problems = [f"{kind}: {statement}" for statement, kind in shown - {(of, kind) for _, of, kind in excused}]
    problems += [f"is none any more: {one}" for one in set(documented) - {exception for exception, _, _ in excused}]
    assert problems == [], "\n".join(sorted(problems))


def test_every_clause_of_every_analysis_is_among_the_statements(dsn: str) -> None:
    for analysis in ANALYSES:
        own = [parsed for parsed in map(parse, _STATEMENTS)
               if isinstance(parsed, syntax.AnalysisStatement) and parsed.keyword == analysis.keyword]  # fmt: skip
        assert own, analysis.keyword
        seen = {type(clause) for statement in own for clause in statement.clauses}
        assert [clause.__name__ for clause in analysis.clauses if clause not in seen] == [], analysis.keyword


def test_every_kind_of_exception_is_one_that_is_looked_for(dsn: str) -> None:
    kinds = {"several queries", "no aggregate", "reads totals", "row per user", "value per user"}
    assert {exception.kind for exception in _documented()} <= kinds


def test_every_analysis_is_one_distributed_query_of_aggregates(growing: psycopg.Connection[Any]) -> None:
    shown = {(statement, kind) for statement in _STATEMENTS for kind in _shown(_plan(growing, statement))}
    growing.rollback()
    _assert_as_documented(shown, {"several queries", "no aggregate", "reads totals", "repartitions"})


def test_what_shards_send_does_not_grow_with_the_users(growing: psycopg.Connection[Any]) -> None:
    """Each user gets three copies on the same shard: same days, same properties, other times and amounts. So rows of
    groups and days must stay exactly as many, and about as long: numbers get digits."""
    few = {statement: _traffic(growing, statement) for statement in _STATEMENTS}
    _copy_users(growing)
    grown = {statement: _traffic(growing, statement) for statement in _STATEMENTS}
    growing.rollback()
    assert all(sum(traffic.rows) for traffic in few.values())
    shown = {(statement, "row per user") for statement in _STATEMENTS if few[statement].rows != grown[statement].rows}
    shown |= {
        (statement, "value per user")
        for statement in _STATEMENTS
        if few[statement].rows == grown[statement].rows and grown[statement].sent > 1.25 * few[statement].sent
    }
    _assert_as_documented(shown, {"row per user", "value per user"})


def _traffic(connection: psycopg.Connection[Any], statement: str) -> _Traffic:
    tasks = [task for query in on_shards(_plan(connection, statement, "ANALYZE")) for task in query["Tasks"]]
    rows = sorted(next(plan_nodes(task["Remote Plan"]))["Plan"]["Actual Rows"] for task in tasks)
    return _Traffic(rows, sum(int(task["Tuple data received from node"].split()[0]) for task in tasks))


def _copy_users(connection: psycopg.Connection[Any]) -> None:
    """The copies' ids are of the same shard, and in a sample of 10 % if the user is."""
    events = list(shop_events(NOW, users=_USERS))
    users = list(dict.fromkeys(event.user_id for event in events))
    places = dict(
        connection.execute(
            "SELECT id, (get_shard_id_for_distribution_column('growing.users', id),"
            " (hashint8extended(id, 20261) & 9223372036854775807) %% 1000000 < 100000)::text FROM unnest(%s::bigint[]) AS id",
            ([*users, *range(1, 100 * _USERS)],),
        ).fetchall()
    )
    free: dict[str, list[int]] = {}
    for user in range(1, 100 * _USERS):
        free.setdefault(places[user], []).append(user)
    copies = {(user, number): free[places[user]].pop() for user in users for number in _COPIES}

    def copy(event: LoadedEvent, number: int) -> LoadedEvent:
        amount = {"amount": event.properties["amount"] + number / 1000} if "amount" in event.properties else {}
        assert event.event_id is not None
        return event._replace(
            user_id=copies[event.user_id, number],
            identity=f"{event.identity}-{number}",
            time=event.time + timedelta(microseconds=(event.event_id * 37 + number * 131) % 1000),
            properties=event.properties | amount,
        )

    Loader(connection, "growing").load(copy(event, number) for number in _COPIES for event in events)
    connection.execute(_GIVE_PLANS)


def problems(connection: psycopg.Connection[Any], statement: str) -> Iterator[str]:
    """The kinds of exception that a statement's plan shows and the table does not know."""
    known = {exception.kind for exception in _documented() if exception.matches(statement)}
    return (kind for kind in _shown(_plan(connection, statement)) if kind not in known)
