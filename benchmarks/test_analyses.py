"""Every analysis on millions of events, against what nothing can undercut: `count(*)` over the indexes it reads.

The two are timed in turns, one process each. What EXPLAIN (ANALYZE, BUFFERS) counts goes into pytest-benchmark's
extra_info and, with the times, into ANALYSES.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from os import cpu_count, getloadavg
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import psycopg
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import EVENTS, Bench
from benchmarks.peers.heap import app_of
from benchmarks.work import RANGE
from heap_compiler.analyses import ANALYSES
from heap_extension.server.plans import plan_nodes

_ROUNDS = 7
_SLOW = 2.0
"""Of an analysis that takes more seconds than this, a third of the rounds is enough."""
_LIMIT = 4
"""More times `count(*)` than this needs a reason."""
_TABLE = Path(__file__).with_name("ANALYSES.md")
_EVERYTHING = ""


@dataclass(frozen=True)
class Measured:
    """A representative statement of an analysis.

    Attributes:
        statement: what is measured.
        reads: the definitions whose indexes it reads; `_EVERYTHING` for all events.
        why: what makes it cost more than `_LIMIT` times the plain count, as its plan says.
    """

    statement: str
    reads: tuple[str, ...]
    why: str = ""


_MEASURED = {
    "trend": Measured(f'trend count of "1 % 2", users of "1 % 1" by day {RANGE}', ("1 % 2", "1 % 1")),
    "funnel": Measured(
        f'funnel "1 % 1" -> "1 % 2" -> "0.1 % 3" within 14 days {RANGE}',
        ("1 % 1", "1 % 2", "0.1 % 3"),
        why="a kernel: every event read becomes a place in an array, and those of later steps are searched",
    ),
    "retention": Measured(
        f'retention from "1 % 1" to "1 % 2" by week for 8 weeks {RANGE}',
        ("1 % 1", "1 % 2"),
        why="a kernel: every event read becomes a place in an array, and returns are sorted by cohort and week",
    ),
    "lifecycle": Measured(
        f'lifecycle of "1 % 2" by week {RANGE}',
        ("1 % 2",),
        why="a kernel: every event read becomes a place in an array",
    ),
    "stickiness": Measured(
        f'stickiness of "1 % 2" by day {RANGE}',
        ("1 % 2",),
        why="a kernel: every event read becomes a place in an array",
    ),
    "users": Measured(
        f'users who did "1 % 2" at least 2 times {RANGE} limit 100',
        ("1 % 2",),
        why="nearly as many users as events are hashed, and those that remain looked up in the table of users",
    ),
    "sessions": Measured(
        f"sessions by day {RANGE}",
        (_EVERYTHING,),
        why="a kernel: no index has session_id, so the tables are read, and each partition's events hashed by session",
    ),
    "distribution": Measured(
        f'distribution of count of "1 % 1" per user {RANGE}',
        ("1 % 1",),
        why="the events of nearly as many users are hashed by user",
    ),
    "time": Measured(
        f'time from "1 % 1" to "1 % 2" within 14 days {RANGE}',
        ("1 % 1", "1 % 2"),
        why="a kernel: as a funnel of two steps",
    ),
    "paths": Measured(
        f'paths across "1 % 1", "1 % 2", "0.1 % 3" from "1 % 1" within 1 day over {RANGE}',
        ("1 % 1", "1 % 2", "0.1 % 3"),
        why="a kernel: the events of all nodes are merged into one array, and moves sorted by step, source and target",
    ),
    "attribution": Measured(
        f'attribution of "1 % 2" to landing_page by first touch within 14 days {RANGE}',
        (_EVERYTHING, "1 % 2"),
        why="a kernel: any event can be a touch, so those before each conversion are looked up in the table",
    ),
    "correlate": Measured(
        f'correlate "1 % 1" -> "1 % 2" within 14 days with user.plan, "0.1 % 3" {RANGE}',
        ("1 % 1", "1 % 2", "0.1 % 3"),
        why="a funnel, another pass over its chains and the factors' events, and every user's row looked up",
    ),
    "effort": Measured(
        f'effort "1 % 1" -> "1 % 2" within 14 days {RANGE}',
        ("1 % 1", "1 % 2"),
        why="chains carried as arrays, and per chain one lookup of the events in between",
    ),
}


@dataclass
class _Result:
    keyword: str
    statement: str
    milliseconds: float
    count_milliseconds: float
    rows: int
    buffers: int
    costly: str
    ratio: float = field(init=False)

    def __post_init__(self) -> None:
        self.ratio = self.milliseconds / self.count_milliseconds


@pytest.fixture(scope="module")
def connection(bench: Bench) -> Iterator[psycopg.Connection[Any]]:
    with bench.heap.connect(app_of(bench.dataset)) as connection:
        connection.execute("SELECT set_config('max_parallel_workers_per_gather', '0', false)")
        yield connection


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Iterator[list[_Result]]:
    """Collects what was measured. Written down once every analysis was, on as many events as the table is about."""
    results: list[_Result] = []
    load = getloadavg()[0]
    yield results
    table = _table(results, request.config.getoption("--events"), load)
    print(table)
    if len(results) == len(ANALYSES) and request.config.getoption("--events") == EVENTS:
        _TABLE.write_text(table, encoding="utf-8")


@pytest.mark.parametrize("keyword", [analysis.keyword for analysis in ANALYSES])
def test_analysis(
    keyword: str, bench: Bench, connection: psycopg.Connection[Any], benchmark: BenchmarkFixture, found: list[_Result]
) -> None:
    assert keyword in _MEASURED, f"{keyword} has no benchmark: give it a representative statement in {Path(__file__)}"
    measured = _MEASURED[keyword]
    (sql,) = connection.execute("SELECT heap.sql(%s)", (measured.statement,)).fetchone() or ("",)
    counts = [_count(connection, app_of(bench.dataset), name) for name in measured.reads]
    took: list[float] = []

    def count() -> None:
        began = perf_counter()
        for one in counts:
            connection.execute(one).fetchall()
        took.append(perf_counter() - began)

    run = connection.execute
    began = perf_counter()
    assert run(sql).fetchall(), "no rows"
    rounds = _ROUNDS if perf_counter() - began < _SLOW else -(-_ROUNDS // 3)
    count()
    benchmark.pedantic(lambda: run(sql).fetchall(), setup=count, rounds=rounds)
    (plan,) = connection.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql).fetchone() or ([],)
    assert benchmark.stats is not None
    result = _Result(
        keyword,
        measured.statement,
        benchmark.stats.stats.median * 1000,
        median(took[1:]) * 1000,
        _rows_read(plan),
        plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"],
        _costly(plan),
    )
    benchmark.extra_info.update(
        ratio=round(result.ratio, 2), rows_read=result.rows, buffers=result.buffers, costly=result.costly
    )
    found.append(result)


def _count(connection: psycopg.Connection[Any], app: str, name: str) -> str:
    """The SQL that counts the events of a definition over its index."""
    found = connection.execute(
        "SELECT predicate FROM heap.event_definition WHERE app = %s AND name = %s", (app, name)
    ).fetchone()
    where = f" WHERE {found[0]}" if found is not None else ""
    assert found is not None or name == _EVERYTHING, name
    return f"SELECT count(*) FROM {app}.events{where}"


def _rows_read(plan: Any) -> int:
    """The rows that scans of tables and indexes went through, kept or not."""
    counted = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    return int(
        sum(
            node["Actual Loops"] * sum(node.get(key, 0) for key in counted)
            for node in plan_nodes(plan)
            if "Relation Name" in node
        )
    )


def _costly(plan: Any) -> str:
    """The kinds of plan nodes that take most of the time themselves, the largest first."""
    spent: dict[str, float] = {}
    for node in plan_nodes(plan):
        if "Node Type" not in node or node["Node Type"] == "CTE Scan":
            continue
        children = [child for child in node.get("Plans", []) if not child.get("Subplan Name", "").startswith("CTE")]
        own = _milliseconds(node) - sum(map(_milliseconds, children))
        kind = node["Node Type"] if "Scan" not in node["Node Type"] else "scans"
        spent[kind] = spent.get(kind, 0) + max(own, 0)
    whole = sum(spent.values()) or 1
    largest = sorted(spent.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{kind} {100 * own / whole:.0f} %" for kind, own in largest if own / whole >= 0.05)


def _milliseconds(node: dict[str, Any]) -> float:
    return float(node.get("Actual Total Time", 0) * node.get("Actual Loops", 1))


def _table(results: list[_Result], events: int, load: float) -> str:
    """ANALYSES.md."""
    lines = [
        f"# Analyses on {events:,} events",
        "",
        "Written by `make bench`. Medians in milliseconds, warm, one process per statement, timed in turns with",
        "`count(*)` over the same partial indexes (of all events where the analysis reads all). Rows read, buffers of",
        "8 kB hit or read, and where the time goes are those of EXPLAIN (ANALYZE, BUFFERS).",
        "",
        f"Load average of the machine at the start: {load:.1f} on {cpu_count()} cores.",
        "",
        "| analysis | ms | `count(*)` ms | ratio | rows read | buffers | where the time goes |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| `{one.statement}` | {one.milliseconds:.1f} | {one.count_milliseconds:.1f} | {one.ratio:.1f} | {one.rows:,}"
        f" | {one.buffers:,} | {one.costly} |"
        for one in results
    ]
    slow = [one for one in results if one.ratio > _LIMIT]
    if slow:
        lines += ["", f"Above {_LIMIT} times `count(*)`:", ""]
        lines += [f"- {one.keyword}: {_MEASURED[one.keyword].why or 'not looked into yet'}" for one in slow]
    return "\n".join(lines) + "\n"
