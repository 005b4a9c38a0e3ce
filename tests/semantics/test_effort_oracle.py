"""Effort equals the oracle on generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from statistics import mean, median
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.histories import ZONE, events_of_language, histories, insert
from tests.semantics_app import APP


@settings(max_examples=100)
@given(data=st.data())
def test_effort_equals_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    steps = data.draw(st.lists(events_of_language, min_size=2, max_size=4))
    rules = oracle.Rules(
        timedelta(days=8), datetime(2025, 10, 7, tzinfo=ZONE), datetime(2025, 11, 6, tzinfo=ZONE),
        any_order=data.draw(st.booleans()),
    )  # fmt: skip
    head, optional = steps[0][0], set()
    for step, (text, _) in enumerate(steps[1:], start=2):
        if not rules.any_order and data.draw(st.booleans()):
            optional.add(step)
        head += f" -> {'optional ' * (step in optional)}{text}"
    unit = data.draw(st.sampled_from(["users", "users", "sessions"]))
    rules = replace(rules, optional=frozenset(optional), unit=unit)
    grouped = data.draw(st.sampled_from(["", "group by country", "group by user.plan"]))
    statement = f"{head} within 8 days {'in any order' * rules.any_order} counting {unit} {grouped}"
    strategy = data.draw(st.sampled_from(["auto", "vector", "merge"]))
    try:
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.effort(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    chains: dict[Any, list[tuple[list[oracle.Event], oracle.Chain]]] = {}
    for user in {event.user_id for event in events}:
        own = [event for event in events if event.user_id == user]
        for _, chain in oracle.counted_chains(own, [test for _, test in steps], rules):
            assert chain[0] is not None
            key = {"": None, "group by country": chain[0].columns["country"]}.get(grouped, {1: "pro", 2: "7"}.get(user))
            chains.setdefault(key, []).append((own, chain))
    expected = {}
    for key, members in chains.items():
        for step in range(1, len(steps) + 1):
            reached = [(own, chain) for own, chain in members if chain[step - 1] is not None]
            counts, gaps = [], []
            for own, chain in reached if step > 1 else []:
                before = [event for event in chain[: step - 1] if event is not None][-1]
                counts.append(len([e for e in own if before.order < e.order < chain[step - 1].order]))
                gaps.append((chain[step - 1].time - before.time).total_seconds())
            expected[key, step] = len(reached), counts, gaps
    if not grouped and not chains:
        expected = {(None, step): (0, [], []) for step in range(1, len(steps) + 1)}
    assert {(row[0], row[1]) for row in rows} == expected.keys(), statement
    for row in rows:
        users, counts, gaps = expected[row[0], row[1]]
        assert row[3] == users, (statement, row)
        for value, wanted in ((row[4], counts and median(counts)), (row[5], counts and mean(counts))):
            assert (value is None) == (not counts), (statement, row)
            assert value is None or abs(float(value) - wanted) < 1e-7, (statement, row)
        for value, wanted in ((row[6], gaps and median(gaps)), (row[7], gaps and mean(gaps))):
            assert value is None or abs(value.total_seconds() - wanted) < 1e-5, (statement, row)
