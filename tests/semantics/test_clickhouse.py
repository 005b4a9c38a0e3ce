"""Funnels and retention equal ClickHouse's `windowFunnel` and `retention` where both mean the same.

| | heap | ClickHouse |
|---|---|---|
| a window ends | inclusively, at `within` after step 1 | the same |
| which step 1 starts | any; the chain that reaches furthest counts | the same |
| an event that matches two steps | fills one of them | fills both; one with `strict_once` |
| events of one instant | ordered by event id | ordered by the number of the step; with `strict_increase` none follows another |
| `strictly in order` | no other event of the user between the steps | `strict_order`: the same, but one after the first start ends the search, also for later starts |
| the range | bounds step 1, later steps may lie after it | every row that passes WHERE |
| `retention(c1, c2, ...)` | `recurring`: the buckets after the one of the start | conditions in any order of time |
| who is in a cohort | those whose first start is in it; with `recurring` all who have one in it | the rows asked about |

So the histories here have no two events of one instant and lie in the range, steps overlap only under `strict_once`,
`strict_order` is asked of what follows each event of the user, and retention one calendar day per condition. Its `strict_deduplication` (a repeated event ends the
chain) has no counterpart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.histories import ZONE, insert
from tests.oracle import Event
from tests.semantics_app import APP

chdb = pytest.importorskip("chdb", reason="ClickHouse is not installed: pip install --editable '.[clickhouse]'")

_DAYS = ["2025-10-25", "2025-10-26", "2025-10-27", "2025-10-28", "2025-10-29"]  # the second has 25 hours
_BOUNDS = [datetime.fromisoformat(day).replace(tzinfo=ZONE).astimezone(UTC) for day in [*_DAYS, "2025-10-30"]]
_RANGE = f"from '{_DAYS[0]}' to '{_DAYS[-1]}'"
_SECONDS = int((_BOUNDS[-1] - _BOUNDS[0]).total_seconds())
_NOTHING = {"path": None, "target_text": None, "hierarchy": None, "country": None}

_CONDITIONS = {"pageview": "type = 'pageview'", "click": "type = 'click'", "purchase": "type = 'purchase'", "any": "1"}


@st.composite
def _histories(draw: st.DrawFn) -> list[Event]:
    """Events of a few users, no two of one instant; some a whole number of hours apart, to meet the window's end."""
    hours = st.integers(0, _SECONDS // 3600 - 1).map(lambda hour: hour * 3600)
    seconds = draw(st.lists(st.integers(0, _SECONDS - 1) | hours, max_size=40, unique=True))
    return [
        Event(
            user_id=draw(st.integers(1, 4)),
            time=_BOUNDS[0] + timedelta(seconds=second),
            event_id=draw(st.integers(0, 3)) * 1_000 + index,
            type=draw(st.sampled_from(["pageview", "click", "purchase"])),
            columns=_NOTHING,
        )
        for index, second in enumerate(seconds)
    ]


@cache
def _clickhouse() -> Any:
    """One server in this process: connecting takes longer than all else here."""
    return chdb.connect(":memory:")


def _asked_of_clickhouse(events: Sequence[Event], query: str) -> list[list[Any]]:
    rows = [f"({event.user_id}, {int(event.time.timestamp())}, '{event.type}')" for event in events]
    source = f"values('user_id Int64, time UInt64, type String', {', '.join(rows)})" if rows else (
        "(SELECT 1::Int64 AS user_id, 0::UInt64 AS time, '' AS type WHERE 0)")  # fmt: skip
    answer = json.loads(str(_clickhouse().query(query.format(source=source), "JSONCompact")))
    return [[int(value) for value in row] for row in answer["data"]]


def _users_of_steps(events: Sequence[Event], steps: Sequence[str], window: int, modes: str) -> list[int]:
    conditions = ", ".join(_CONDITIONS[step] for step in steps)
    counts = ", ".join(f"countIf(level >= {step})" for step in range(1, len(steps) + 1))
    levels = f"SELECT windowFunnel({window}{modes})(time, {conditions}) AS level FROM {{source}} GROUP BY user_id"
    (row,) = _asked_of_clickhouse(events, f"SELECT {counts} FROM ({levels})")
    return row


def _users_of_funnel(
    connection: psycopg.Connection[Any], events: Sequence[Event], steps: Sequence[str], hours: int, rules: str = ""
) -> list[int]:
    try:
        insert(connection, APP, events)
        statement = f"funnel {' -> '.join(steps)} within {hours} hours {rules} {_RANGE}"
        return [users for (users,) in connection.execute("SELECT users FROM heap.funnel(%s)", (statement,))]
    finally:
        connection.rollback()


_hours = st.sampled_from([1, 3, 12, 24, 72])


@pytest.mark.parametrize("mode", ["", ", 'strict_increase'"])
@settings(max_examples=100)
@given(
    events=_histories(), steps=st.permutations(["pageview", "click", "purchase"]), hours=_hours, count=st.integers(2, 3)
)
def test_funnel_equals_window_funnel(
    asked: psycopg.Connection[Any], mode: str, events: list[Event], steps: list[str], hours: int, count: int
) -> None:
    expected = _users_of_steps(events, steps[:count], hours * 3600, mode)
    assert _users_of_funnel(asked, events, steps[:count], hours) == expected


@settings(max_examples=100)
@given(events=_histories(), steps=st.lists(st.sampled_from(sorted(_CONDITIONS)), min_size=2, max_size=4), hours=_hours)
def test_funnel_of_overlapping_steps_equals_strict_once(
    asked: psycopg.Connection[Any], events: list[Event], steps: list[str], hours: int
) -> None:
    expected = _users_of_steps(events, steps, hours * 3600, ", 'strict_once'")
    assert _users_of_funnel(asked, events, steps, hours) == expected


@settings(max_examples=100)
@given(
    events=_histories(), steps=st.permutations(["pageview", "click", "purchase"]), hours=_hours, count=st.integers(2, 3)
)
def test_strict_funnel_equals_strict_order_from_any_start(
    asked: psycopg.Connection[Any], events: list[Event], steps: list[str], hours: int, count: int
) -> None:
    conditions = ", ".join(_CONDITIONS[step] for step in steps[:count])
    from_each = (
        f"SELECT user_id, windowFunnel({hours * 3600}, 'strict_order')(time, {conditions}) AS level FROM"
        " (SELECT user_id, time AS start FROM {source}) AS starts INNER JOIN {source} AS events USING (user_id)"
        " WHERE time >= start GROUP BY user_id, start"
    )
    counts = ", ".join(f"countIf(level >= {step})" for step in range(1, count + 1))
    best = f"SELECT max(level) AS level FROM ({from_each}) GROUP BY user_id"
    (expected,) = _asked_of_clickhouse(events, f"SELECT {counts} FROM ({best})")
    assert _users_of_funnel(asked, events, steps[:count], hours, "strictly in order") == expected


@settings(max_examples=100)
@given(events=_histories(), start=st.sampled_from(sorted(_CONDITIONS)), back=st.sampled_from(sorted(_CONDITIONS)))
def test_recurring_retention_equals_retention(
    asked: psycopg.Connection[Any], events: list[Event], start: str, back: str
) -> None:
    statement = f"retention from {start} to {back} by day for {len(_DAYS) - 1} days {_RANGE} recurring"
    try:
        insert(asked, APP, events)
        rows = asked.execute("SELECT cohort, period, users FROM heap.retention(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    within = [f"time >= {int(one.timestamp())} AND time < {int(two.timestamp())}" for one, two in pairwise(_BOUNDS)]
    for first, bound in enumerate(_BOUNDS[:-2]):
        conditions = [f"{_CONDITIONS[start]} AND {within[first]}"]
        conditions += [f"{_CONDITIONS[back]} AND {day}" for day in within[first + 1 :]]
        sums = ", ".join(f"sum(kept[{index}])" for index in range(1, len(conditions) + 1))
        kept = f"SELECT retention({', '.join(conditions)}) AS kept FROM {{source}} GROUP BY user_id"
        (expected,) = _asked_of_clickhouse(events, f"SELECT {sums} FROM ({kept})")
        found = [users for cohort, period, users in rows if cohort == bound and first + period < len(_DAYS)]
        assert found == expected, (statement, bound)
