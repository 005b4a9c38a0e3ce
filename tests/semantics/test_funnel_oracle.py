"""Funnels equal the oracle on generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.histories import ZONE, events_of_language, histories, insert
from tests.semantics_app import APP

_WINDOWS = [("1 second", timedelta(seconds=1)), ("1 hour", timedelta(hours=1)), ("1 day", timedelta(days=1)),
            ("8 days", timedelta(days=8))]  # fmt: skip
_RANGES = [
    ("over last 30 days", datetime(2025, 10, 7, tzinfo=ZONE), datetime(2025, 11, 6, tzinfo=ZONE)),
    (
        "from '2025-10-26' to '2025-10-26'",
        datetime(2025, 10, 26, tzinfo=ZONE),
        datetime(2025, 10, 27, tzinfo=ZONE),
    ),
    ("since '2025-10-31 13:00'", datetime(2025, 10, 31, 12, tzinfo=UTC), datetime(2025, 11, 6, tzinfo=ZONE)),
]
_NOW = datetime(2025, 11, 5, 12, tzinfo=ZONE)
_PLANS = {1: "pro", 2: "7"}

Key = Callable[[int, oracle.Event | None], Any]


def _country(event: oracle.Event | None) -> str | None:
    return None if event is None else event.columns["country"]


_GROUPS: list[tuple[str, Key]] = [
    ("", lambda user, event: None),
    ("group by country", lambda user, event: _country(event)),
    ("group by user.plan", lambda user, event: _PLANS.get(user)),
    (
        "group by country, user.plan",
        lambda user, event: f"{_country(event) or 'null'}, {_PLANS.get(user) or 'null'}",
    ),
]


@st.composite
def _rules(
    draw: st.DrawFn, steps: int, window: timedelta, start: datetime, end: datetime
) -> tuple[str, list[str], oracle.Rules]:
    """Clauses, an arrow per step after the first, and what they mean."""
    rules = oracle.Rules(window, start, end)
    clauses, arrows = [], ["->"] * (steps - 1)
    rules = replace(rules, unit=draw(st.sampled_from(["users", "users", "sessions", "conversions"])))
    if draw(st.integers(0, 3)) == 0:
        rules = replace(rules, any_order=True, unit="users" if rules.unit == "conversions" else rules.unit)
        clauses.append("in any order")
    if rules.unit != "users" or draw(st.booleans()):
        clauses.append(f"counting {rules.unit}")
    if draw(st.integers(0, 3)) == 0:
        rules = replace(rules, hold=lambda event: event.columns["path"])
        clauses.append("holding path")
    if rules.any_order:
        return " ".join(clauses), arrows, rules
    for step in range(2, steps + 1):
        if draw(st.integers(0, 2)) == 0:
            text, length = draw(st.sampled_from(_WINDOWS))
            rules.within[step] = length
            arrows[step - 2] += f"[within {text}]"
        if draw(st.integers(0, 2)) == 0:
            rules = replace(rules, optional=rules.optional | {step})
            arrows[step - 2] += " optional"
    for _ in range(draw(st.integers(0, 2))):
        event, test = draw(events_of_language)
        first = draw(st.integers(1, steps - 1))
        last = draw(st.integers(first + 1, steps))
        text = f"between step {first} and {last}"
        if draw(st.integers(0, 2)) == 0:
            first, last, text = 1, steps, ""
        rules = replace(rules, exclusions=(*rules.exclusions, (test, first, last)))
        clauses.append(f"without {event} {text}")
    if draw(st.integers(0, 4)) == 0:
        rules = replace(rules, strictly=True)
        clauses.append("strictly in order")
    if draw(st.integers(0, 3)) == 0:
        rules = replace(rules, first_time=True)
        clauses.append("first time")
    return " ".join(clauses), arrows, rules


@settings(max_examples=120)
@given(data=st.data())
def test_funnel_equals_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    _compare(asked, data, plain=True)


@settings(max_examples=250)
@given(data=st.data())
def test_funnels_with_rules_equal_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    _compare(asked, data, plain=False)


def _compare(asked: psycopg.Connection[Any], data: st.DataObject, *, plain: bool) -> None:
    events = data.draw(histories())
    steps = data.draw(st.lists(events_of_language, min_size=2, max_size=4))
    window, length = data.draw(st.sampled_from(_WINDOWS))
    over, start, end = data.draw(st.sampled_from(_RANGES))
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    clauses, arrows, rules = "", ["->"] * (len(steps) - 1), oracle.Rules(length, start, end)
    if not plain:
        clauses, arrows, rules = data.draw(_rules(len(steps), length, start, end))
    group_step = data.draw(st.integers(1, len(steps))) if grouped and not plain else 1
    grouped += f" of step {group_step}" * (group_step > 1)
    has_total = bool(grouped) and data.draw(st.booleans())
    grouped += " with total" * has_total
    unit = data.draw(st.sampled_from([None, None, "day", "week"]))
    head = steps[0][0] + "".join(f" {arrow} {text}" for arrow, (text, _) in zip(arrows, steps[1:], strict=True))
    statement = f"funnel {head} {clauses} within {window} {over} {grouped} {f'by {unit}' if unit else ''}"
    strategy = data.draw(st.sampled_from(["auto", "vector", "merge"]))
    try:
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.funnel(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()

    def key(user: int, chain: oracle.Chain) -> tuple[Any, Any]:
        assert chain[0] is not None
        bucket = oracle.local_bucket(chain[0].time, unit, ZONE) if unit else None
        return bucket, group(user, chain[group_step - 1])

    tests = [test for _, test in steps]
    expected = oracle.funnel(events, tests, rules, _NOW, key)
    if has_total:
        expected |= oracle.funnel(events, tests, rules, _NOW, lambda user, chain: (key(user, chain)[0], "total"))
    found = {
        ((oracle.local_bucket(row[8], unit, ZONE) if unit else None, row[0]), row[1]): oracle.FunnelRow(
            row[3], row[6], row[7], row[9]
        )
        for row in rows
    }
    assert len(found) == len(rows)
    for place, row in found.items():
        wanted = expected.get(place, oracle.FunnelRow(0, None, None, 0))
        assert row.users == wanted.users, (statement, place)
        assert _near(row.median, wanted.median), (statement, place)
        assert _near(row.average, wanted.average), (statement, place)
        assert row.immature == (None if rules.unit == "conversions" else wanted.immature), (statement, place)
    assert not expected.keys() - found.keys(), statement
    groups = {place[0][1] for place in expected} or set()
    assert {row[0] for row in rows} == (groups if grouped else {None}), statement


@settings(max_examples=60)
@given(data=st.data())
def test_compared_funnels_are_those_of_the_two_periods(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    steps = " -> ".join(f"({text})" for text, _ in data.draw(st.lists(events_of_language, min_size=2, max_size=3)))
    rest = data.draw(st.sampled_from(["", "group by country", "by day", "group by user.plan with total by day",
                                      "group by country top 1", "in any order counting sessions"]))  # fmt: skip
    try:
        insert(asked, APP, events)

        def rows(clauses: str) -> list[Any]:
            return asked.execute("SELECT * FROM heap.funnel(%s)", (f"{steps} {rest} {clauses}",)).fetchall()

        both = rows("from '2025-10-28' to '2025-11-02' compared to previous period")
        apart = [rows("from '2025-10-22' to '2025-10-27'"), rows("from '2025-10-28' to '2025-11-02'")]
    finally:
        asked.rollback()
    firsts = (datetime(2025, 10, 22, tzinfo=ZONE), datetime(2025, 10, 28, tzinfo=ZONE))
    expected = [
        row if "by day" in rest else (*row[:8], first, row[9])
        for first, period in zip(firsts, apart, strict=True)
        for row in period
    ]
    assert both == expected, (steps, rest)


def _near(one: timedelta | None, two: timedelta | None) -> bool:
    if one is None or two is None:
        return one is two
    return abs(one - two) <= timedelta(microseconds=2)


def test_top_groups_fold_the_rest(asked: psycopg.Connection[Any]) -> None:
    """Three countries enter with 2, 1 and 1 users; top 1 keeps DE, and `other` adds up the rest."""
    at = datetime(2025, 11, 1, tzinfo=UTC)
    rows = [(1, "DE"), (2, "DE"), (3, "US"), (4, None)]
    events = [
        oracle.Event(user, at + timedelta(minutes=minute * user), user * 10 + minute, kind, None,
                     {"path": "/a", "target_text": None, "hierarchy": None, "country": country})
        for user, country in rows for minute, kind in ((0, "pageview"), (1, "purchase"))
    ]  # fmt: skip
    insert(asked, APP, events)
    found = asked.execute(
        "SELECT group_key, step, users, conversion, median_time FROM heap.funnel(%s)",
        ('"Viewed a" -> "Purchase" group by country top 1',),
    ).fetchall()
    assert found == [
        ("DE", 1, 2, 1, None),
        ("DE", 2, 2, 1, timedelta(seconds=90)),
        ("other", 1, 2, 1, None),
        ("other", 2, 2, 1, timedelta(seconds=210)),
    ]


def test_for_users_where_keeps_other_users_out(asked: psycopg.Connection[Any]) -> None:
    at = datetime(2025, 11, 1, tzinfo=UTC)
    nothing = {"path": None, "target_text": None, "hierarchy": None, "country": None}
    insert(asked, APP, [oracle.Event(user, at, user, "purchase", None, nothing) for user in (1, 2, 3, 9)])
    for condition, users in (
        ("plan = 'pro'", 1), ("user.plan = 'pro'", 1), ("plan is not set", 1), ("plan != 'pro'", 2), ("plan > 5", 1),
        ("not plan > 5", 2),
    ):  # fmt: skip
        found = asked.execute(
            "SELECT users FROM heap.funnel(%s)", (f'"Purchase" -> "Viewed" for users where {condition}',)
        ).fetchone()
        assert found == (users,), condition


def test_groups_of_a_step_that_nobody_is_on_the_way_to(asked: psycopg.Connection[Any]) -> None:
    """Of that step no event is read, and so no value."""
    entry = {"path": "/a", "target_text": None, "hierarchy": None, "country": "DE"}
    insert(asked, APP, [oracle.Event(1, datetime(2025, 11, 1, tzinfo=UTC), 1, "pageview", None, entry)])
    statement = '"Viewed a" -> "Purchase" -> "Viewed a" group by country of step 3'
    for strategy in ("vector", "merge"):
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        found = asked.execute("SELECT group_key, step, users FROM heap.funnel(%s)", (statement,)).fetchall()
        assert found == [(None, 1, 1), (None, 2, 0), (None, 3, 0)], strategy
