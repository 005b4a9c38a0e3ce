"""Correlations equal a naive evaluator on generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle, significance
from tests.histories import ZONE, events_of_language, histories, insert
from tests.oracle import Event, Test
from tests.semantics_app import APP

_WINDOWS = [("", timedelta(days=30)), ("within 1 hour", timedelta(hours=1)), ("within 8 days", timedelta(days=8))]
_RANGES = [
    ("", datetime(2025, 10, 7, tzinfo=ZONE), datetime(2025, 11, 6, tzinfo=ZONE)),
    ("from '2025-10-26' to '2025-10-31'", datetime(2025, 10, 26, tzinfo=ZONE), datetime(2025, 11, 1, tzinfo=ZONE)),
]
_PROPERTIES: list[tuple[str, Callable[[Event], Any]]] = [
    ("country", lambda event: event.columns["country"]),
    ("path", lambda event: event.columns["path"]),
    ("user.plan", lambda event: {1: "pro", 2: "7"}.get(event.user_id)),
]


def naive_correlation(
    events: Sequence[Event], steps: Sequence[Test], rules: oracle.Rules,
    properties: Sequence[tuple[str, Callable[[Event], Any]]], done: Sequence[tuple[str, Test]], least: int,
) -> list[tuple[Any, ...]]:  # fmt: skip
    """Rows of factor, value, converted, not converted and p-value; or factor, None and how many values are left out."""
    entered: list[tuple[bool, dict[str, Any]]] = []
    for user in {event.user_id for event in events}:
        own = [event for event in events if event.user_id == user]
        counted = list(oracle.counted_chains(own, steps, rules))
        if not counted:
            continue
        ((_, chain),) = counted
        entry, last = chain[0], chain[-1]
        assert entry is not None
        answers = {name: value(entry) for name, value in properties}
        for name, test in done:
            answers[name] = any(
                test(event)
                and event.time > entry.time
                and (event.time < last.time if last is not None else event.time - entry.time <= rules.window)
                for event in own
            )
        entered.append((last is not None, answers))
    rows: list[tuple[Any, ...]] = []
    for name in [name for name, _ in (*properties, *done)]:
        left_out = 0
        values = {answers[name] for _, answers in entered}
        for value in {True} if values <= {True, False} and entered else values:
            yes = sum(answers[name] == value for converted, answers in entered if converted)
            no = sum(answers[name] == value for converted, answers in entered if not converted)
            all_yes = sum(converted for converted, _ in entered)
            table = (yes, no, all_yes - yes, len(entered) - all_yes - no)
            if yes + no < least:
                left_out += 1
            else:
                rows.append((name, "done" if value is True else value, table))
        if left_out:
            rows.append((name, None, left_out))
    return rows


@settings(max_examples=100)
@given(data=st.data())
def test_correlations_equal_the_naive_ones(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    steps = data.draw(st.lists(events_of_language, min_size=2, max_size=3))
    within, window = data.draw(st.sampled_from(_WINDOWS))
    over, begin, end = data.draw(st.sampled_from(_RANGES))
    properties = data.draw(st.lists(st.sampled_from(_PROPERTIES), max_size=3, unique_by=lambda part: part[0]))
    factors = data.draw(st.lists(events_of_language, min_size=0 if properties else 1, max_size=2))
    done = [(f"event {index}", test) for index, (_, test) in enumerate(factors)]
    least = data.draw(st.integers(1, 3))
    named = [name for name, _ in properties] + [
        f"({text}) as '{name}'" for (text, _), (name, _) in zip(factors, done, strict=True)
    ]
    rules, clause, arrow = oracle.Rules(window, begin, end), "", "->"
    match data.draw(st.integers(0, 8)):
        case 0:
            rules, clause = replace(rules, strictly=True), "strictly in order"
        case 1:
            rules, clause = replace(rules, first_time=True), "first time"
        case 2:
            rules, clause = replace(rules, hold=lambda event: event.columns["path"]), "holding path"
        case 3:
            rules, arrow = replace(rules, optional=frozenset(range(2, len(steps) + 1))), "-> optional"
        case 4:
            forbidden, test = data.draw(events_of_language)
            rules, clause = replace(rules, exclusions=((test, 1, len(steps)),)), f"without {forbidden}"
    statement = (
        f"correlate {f' {arrow} '.join(text for text, _ in steps)} {within} {over} {clause} with {', '.join(named)}"
        f" at least {least} user{'s' * (least > 1)}"
    )
    strategy = data.draw(st.sampled_from(["auto", "vector", "merge"]))
    try:
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.correlate(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    expected = naive_correlation(events, [test for _, test in steps], rules, properties, done, least)
    found = {(row[0], row[1], row[8] is None): row for row in rows}
    assert len(found) == len(rows) == len(expected), statement
    for name, value, table in expected:
        if isinstance(table, int):
            values = "1 value" if table == 1 else f"{table} values"
            users = "1 user" if least == 1 else f"{least} users"
            assert found[name, None, False][8] == f"{values} with fewer than {users} left out", statement
            continue
        yes, no, others_yes, others_no = table
        row = found[name, value, True]
        assert row[2:4] == (yes, no), statement
        assert row[4] == pytest.approx(Decimal(yes) / (yes + no), abs=Decimal("1e-8"))
        if others_yes:
            lift = Decimal(yes * (others_yes + others_no)) / (others_yes * (yes + no))
            assert row[5] == pytest.approx(lift, abs=Decimal("1e-8")), statement
        else:
            assert row[5] is None, statement
        odds = significance.odds_ratio(*table)
        assert (row[6] is None) == (odds is None), statement
        assert odds is None or float(row[6]) == pytest.approx(odds, abs=1e-8), statement
        assert float(row[7]) == pytest.approx(significance.p_value(*table), abs=1e-6), statement


def test_what_explains_best_comes_first(asked: psycopg.Connection[Any]) -> None:
    """Of 40 users 20 buy: mostly those who clicked first; the country says nothing, and one was alone in his."""
    at = datetime(2025, 11, 1, tzinfo=UTC)
    events = []
    for user in range(1, 41):
        country = "FR" if user == 40 else "DE" if user % 2 else "US"
        kinds = ["pageview", *(["click"] if user <= 18 or user > 38 else []), *(["purchase"] if user <= 20 else [])]
        events += [
            Event(user, at + timedelta(minutes=minute), user * 10 + minute, kind, None,
                  {"path": "/a", "target_text": None, "hierarchy": None, "country": country})
            for minute, kind in enumerate(kinds)
        ]  # fmt: skip
    insert(asked, APP, events)
    statement = '"Viewed" -> "Purchase" with country, (click) as clicked at least 10 users'
    rows = asked.execute("SELECT * FROM heap.correlate(%s)", (statement,)).fetchall()
    assert [(*row[:4], row[8]) for row in rows] == [
        ("clicked", "done", 18, 2, None),
        ("country", "US", 10, 9, None),
        ("country", "DE", 10, 10, None),
        ("country", None, None, None, "1 value with fewer than 10 users left out"),
    ]
    assert rows[0][4:8] == (Decimal("0.9"), Decimal(9), Decimal(81), Decimal("0.000002"))
