"""Trends equal the oracle on generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.histories import ZONE, events_of_language, histories, insert, predicates
from tests.semantics_app import APP

_START, _END = datetime(2025, 10, 24, tzinfo=ZONE), datetime(2025, 11, 3, tzinfo=ZONE)
_OVER = "from '2025-10-24' to '2025-11-02'"
_MEASURES = ["count", "users", "sessions", "sum", "avg", "min", "max", "median", "p75", "p90", "p95", "p99"]
_BUCKETS = {"hour": 24 * 10 + 1, "day": 10, "week": 2, "month": 2}
_GROUPS = [
    ("", lambda event: None),
    ("group by country", lambda event: event.columns["country"]),
    ("group by user.plan", lambda event: {1: "pro", 2: "7"}.get(event.user_id)),
]


@settings(max_examples=120)
@given(data=st.data())
def test_trend_equals_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    name = data.draw(st.sampled_from(_MEASURES))
    event, test = data.draw(events_of_language)
    where, keeps = data.draw(st.just(("", lambda event: True)) | predicates.map(lambda p: (f"where {p[0]}", p[1])))
    unit = data.draw(st.sampled_from([None, "hour", "day", "week", "month"]))
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    of = None if name in {"count", "users", "sessions"} else "amount"
    measure = f"{name} of {event}" if of is None else f"{name}({of}) of {event}"
    by = f"by {unit}" if unit else ""
    statement = f"trend {measure} {_OVER} {by} {grouped} {where}"
    strategy = data.draw(st.sampled_from(["vector", "merge"]))
    try:
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        insert(asked, APP, events)
        rows = asked.execute("SELECT bucket, group_key, value FROM heap.trend(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    matching = [e for e in events if test(e) and keeps(e) and _START <= e.time < _END]
    groups = {group(e) for e in matching} if grouped else {None}
    buckets = {_bucket(row[0], unit) for row in rows}
    if groups:
        assert len(buckets) == (_BUCKETS[unit] if unit else 1), statement
    assert len(rows) == len(buckets) * len(groups), statement
    for bucket, key, value in rows:
        inside = [e for e in matching if group(e) == key and _bucket(e.time, unit) == _bucket(bucket, unit)]
        if unit is None:
            inside = [e for e in matching if group(e) == key]
        assert _near(value, oracle.measure(name, inside, of)), (statement, bucket, key)


def _bucket(time: datetime | None, unit: str | None) -> str | None:
    return None if unit is None or time is None else oracle.local_bucket(time, unit, ZONE)


def _near(one: Decimal | None, two: Any) -> bool:
    if one is None or two is None:
        return one is None and two is None
    return abs(float(one) - float(two)) < 1e-9


def test_several_series_share_their_groups_and_top_folds_the_rest(asked: psycopg.Connection[Any]) -> None:
    at = datetime(2025, 11, 1, 12, tzinfo=ZONE)
    nothing = {"path": "/a", "target_text": None, "hierarchy": None}
    kinds = [(1, "pageview", "DE"), (1, "pageview", "DE"), (2, "pageview", "US"), (1, "pageview", "FR"),
             (2, "purchase", None)]  # fmt: skip
    events = [
        oracle.Event(user, at, number, kind, None, {**nothing, "country": country}, {"amount": number})
        for number, (user, kind, country) in enumerate(kinds, start=1)
    ]
    insert(asked, APP, events)
    rows = asked.execute(
        "SELECT series, group_key, value FROM heap.trend(%s)",
        ('count of "Viewed" as views, users of any, sum(amount) of purchase as revenue group by country top 1',),
    ).fetchall()
    assert rows == [
        ("views", "DE", 2),
        ("views", "other", 2),
        ("users of any", "DE", 1),
        ("users of any", "other", 2),  # users 1 and 2: distinct across the folded groups, not added up
        ("revenue", "DE", 0),
        ("revenue", "other", 5),
    ]


def test_numbers_that_no_float_holds_do_not_fail(asked: psycopg.Connection[Any]) -> None:
    asked.execute(
        f"INSERT INTO {APP}.events (user_id, time, event_id, type, properties) VALUES"
        " (1, '2025-11-01', 1, 'purchase', '{\"amount\": 1e400}'), (1, '2025-11-01', 2, 'purchase',"
        " '{\"amount\": 1e-400}'), (1, '2025-11-01', 3, 'purchase', '{\"amount\": -1e400}')"
    )
    for name in ("sum", "avg", "min", "max", "median", "p99"):
        (value,) = asked.execute("SELECT value FROM heap.trend(%s)", (f"{name}(amount) of purchase",)).fetchone() or ()
        assert value is not None


@settings(max_examples=60)
@given(data=st.data())
def test_ratios_equal_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    (above, over), (below, under) = data.draw(events_of_language), data.draw(events_of_language)
    unit = data.draw(st.sampled_from([None, "day", "week"]))
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    by = f"by {unit}" if unit else ""
    statement = f"trend users of {above} / count of {below} as 'rate' {_OVER} {by} {grouped}"
    strategy = data.draw(st.sampled_from(["vector", "merge"]))
    try:
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        insert(asked, APP, events)
        rows = asked.execute("SELECT bucket, group_key, value FROM heap.trend(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    inside = [e for e in events if _START <= e.time < _END]
    for bucket, key, value in rows:
        here = [
            e for e in inside if group(e) == key and (unit is None or _bucket(e.time, unit) == _bucket(bucket, unit))
        ]
        users, count = len({e.user_id for e in here if over(e)}), len([e for e in here if under(e)])
        expected = users / count if count else None
        assert (value is None) == (expected is None), (statement, bucket, key)
        assert value is None or abs(float(value) - (expected or 0)) < 1e-7, (statement, bucket, key)
    groups = {group(e) for e in inside if over(e) or under(e)} if grouped else {None}
    assert {row[1] for row in rows} == groups


def test_a_value_of_another_type_is_simply_false(asked: psycopg.Connection[Any]) -> None:
    """Also beside an outer join, where Citus refuses the constant FALSE."""
    asked.execute(f"INSERT INTO {APP}.events (user_id, time, event_id, type) VALUES (1, '2025-11-01', 1, 'pageview')")
    for statement, value in (
        ("count of any where path = 5", 0),
        ("count of any where path in (5, 6)", 0),
        ("count of any where not path = 5", 1),
        ("count of any where path != 5", 1),
        ("count of ((any where path = 5) or (any where session_id = 'x') or any) group by user.plan", 1),
    ):
        assert asked.execute("SELECT value FROM heap.trend(%s)", (statement,)).fetchall() == [(value,)], statement
    for statement in (
        "lifecycle of any where path = 5 group by user.plan",
        "funnel any -> any where path = 5 group by user.plan",
    ):
        asked.execute("SELECT heap.query(%s)", (statement,)).fetchall()
