"""Distributions equal a naive evaluator on generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.histories import ZONE, events_of_language, histories, insert
from tests.semantics_app import APP

_START, _END = datetime(2025, 10, 24, tzinfo=ZONE), datetime(2025, 11, 3, tzinfo=ZONE)
_OVER = "from '2025-10-24' to '2025-11-02'"
_GROUPS: list[tuple[str, Callable[[oracle.Event], Any]]] = [
    ("", lambda event: None),
    ("group by country", lambda event: event.columns["country"]),
    ("group by user.plan", lambda event: {1: "pro", 2: "7"}.get(event.user_id)),
]
_Bin = tuple[Fraction | None, Fraction | None]


def value_of(name: str, events: Sequence[oracle.Event]) -> Fraction | None:
    """A user's value; None when they have no number."""
    if name in {"count", "sessions"}:
        return Fraction(oracle.measure(name, events))
    numbers = [e.get("amount") for e in events]
    numbers = [Fraction(str(n)) for n in numbers if isinstance(n, (int, float)) and not isinstance(n, bool)]
    if not numbers:
        return None
    match name:
        case "sum":
            return sum(numbers, Fraction())
        case "avg":
            return sum(numbers, Fraction()) / len(numbers)
        case "min":
            return min(numbers)
        case "max":
            return max(numbers)
    return Fraction(oracle.percentile(numbers, {"median": Fraction(1, 2), "p75": Fraction(3, 4)}[name]))  # type: ignore


def even_bin(value: Fraction, width: Fraction) -> _Bin:
    number = value // width
    if number >= 1_000:
        return 1_000 * width, None
    if number < -1_000:
        return None, -1_000 * width
    return number * width, (number + 1) * width


def edge_bin(value: Fraction, edges: Sequence[Fraction]) -> _Bin:
    below = [edge for edge in edges if edge <= value]
    above = [edge for edge in edges if edge > value]
    return (below[-1] if below else None), (above[0] if above else None)


@settings(max_examples=100)
@given(data=st.data())
def test_distribution_equals_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories(max_events=20))
    name = data.draw(st.sampled_from(["count", "count", "sessions", "sum", "avg", "min", "max", "median", "p75"]))
    event, test = data.draw(events_of_language)
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    measure = f"{name} of {event}" if name in {"count", "sessions"} else f"{name}(amount) of {event}"
    edges: list[str] = []
    width = Fraction(1)
    bins = ""
    if data.draw(st.booleans()):
        edges = data.draw(st.sampled_from([["1"], ["-0.5", "2", "10.25"], ["0", "1", "2", "5"]]))
        bins = f"in bins ({', '.join(edges)})"
    elif name not in {"count", "sessions"} or data.draw(st.booleans()):
        written = data.draw(st.sampled_from(["2", "0.01", "0.3", "7", "3e9"]))
        width, bins = Fraction(written), f"in bins of {written}"
    statement = f"distribution of {measure} per user {_OVER} {grouped} {bins}"
    try:
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.distribution(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    expected: Counter[tuple[Any, _Bin]] = Counter()
    matching = [e for e in events if test(e) and _START <= e.time < _END]
    for user, key in {(e.user_id, group(e)) for e in matching}:
        value = value_of(name, [e for e in matching if e.user_id == user and group(e) == key])
        if value is not None:
            bounds = edge_bin(value, [Fraction(edge) for edge in edges]) if edges else even_bin(value, width)
            expected[key, bounds] += 1
    found = {(row[0], (_exact(row[1]), _exact(row[2]))): row[3] for row in rows}
    assert len(found) == len(rows)
    assert {key: users for key, users in found.items() if users} == dict(expected), statement
    groups = {key for key, _ in expected} if grouped else {None}
    bins_of = {key: [bounds for k, bounds in found if k == key] for key in groups}
    for shown in bins_of.values():  # the same bins for every group, each beginning where the one before ends
        assert shown == next(iter(bins_of.values()))
        assert all(one[1] == two[0] for one, two in pairwise(shown)), statement
        assert len(shown) == len(edges) + 1 if edges else shown or not expected


def _exact(value: Decimal | None) -> Fraction | None:
    return None if value is None else Fraction(value)


def test_counts_far_away_share_one_open_bin_and_top_folds(asked: psycopg.Connection[Any]) -> None:
    asked.execute(
        f"INSERT INTO {APP}.events (user_id, time, event_id, type, country)"
        " SELECT 1, timestamptz '2025-11-01', n, 'purchase', CASE WHEN n > 5 THEN 'DE' WHEN n > 2 THEN 'US' END"
        " FROM generate_series(1, 1500) AS n"
        " UNION ALL SELECT 2, timestamptz '2025-11-01', 2000, 'purchase', 'DE'"
    )
    rows = asked.execute("SELECT * FROM heap.distribution('of count of purchase per user')").fetchall()
    assert len(rows) == 1_000
    assert [row for row in rows if row[3]] == [(None, 1, 2, 1), (None, 1_000, None, 1)]
    rows = asked.execute(
        "SELECT * FROM heap.distribution('of count of purchase per user in bins (2, 5) group by country top 1')"
    ).fetchall()
    assert [row for row in rows if row[3]] == [("DE", None, 2, 1), ("DE", 5, None, 1), ("other", 5, None, 1)]


@pytest.mark.parametrize(("text", "bin_shown"), [
    ("1e300", (1_000, None)), ("-1e300", (None, -1_000)), ("999.99999999999999999999999999", (999, 1_000)),
    ("-0.00000000000000000000000000000001", (-1, 0)), ("1000", (1_000, None)), ("-1000", (-1_000, -999)),
])  # fmt: skip
def test_a_value_just_below_an_edge_stays_below_it(
    asked: psycopg.Connection[Any], text: str, bin_shown: tuple[int | None, int | None]
) -> None:
    asked.execute(
        f"INSERT INTO {APP}.events (user_id, time, event_id, type, properties) VALUES (1, '2025-11-01', 1, 'purchase',"
        f" '{{\"amount\": {text}}}')"
    )
    rows = asked.execute("SELECT low, high FROM heap.distribution('of sum(amount) of purchase per user in bins of 1')")
    assert rows.fetchall() == [bin_shown]
