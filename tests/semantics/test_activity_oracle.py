"""Retention, lifecycle and stickiness equal the oracle on generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.histories import ZONE, events_of_language, histories, insert
from tests.semantics_app import APP

_NOW = datetime(2025, 11, 5, 12, tzinfo=ZONE)
_RANGES = [
    ("from '2025-10-25' to '2025-11-02'", datetime(2025, 10, 25, tzinfo=ZONE), datetime(2025, 11, 3, tzinfo=ZONE)),
    ("from '2025-10-27' to '2025-10-27'", datetime(2025, 10, 27, tzinfo=ZONE), datetime(2025, 10, 28, tzinfo=ZONE)),
    ("over last 2 months", datetime(2025, 10, 1, tzinfo=ZONE), datetime(2025, 12, 1, tzinfo=ZONE)),
]
_UNITS = st.sampled_from(["day", "week", "month"])
_GROUPS = [
    ("", lambda event: None),
    ("group by country", lambda event: event.columns["country"]),
    ("group by user.plan", lambda event: {1: "pro", 2: "7"}.get(event.user_id)),
]


def _local(instant: datetime) -> datetime:
    return instant.astimezone(ZONE).replace(tzinfo=None)


@settings(max_examples=100)
@given(data=st.data())
def test_retention_equals_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    (start, starts), (back, returns) = data.draw(events_of_language), data.draw(events_of_language)
    unit, periods = data.draw(_UNITS), data.draw(st.integers(1, 5))
    rolling, recurring = data.draw(st.booleans()), data.draw(st.booleans())
    over, begin, end = data.draw(st.sampled_from(_RANGES))
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    statement = (
        f"retention from {start} to {back} by {unit} for {periods} {unit}s {over} {grouped}"
        f"{' rolling' * rolling}{' recurring' * recurring}"
    )
    strategy = data.draw(st.sampled_from(["vector", "merge"]))
    try:
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.retention(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    expected = oracle.retention(
        events,
        starts,
        returns,
        unit,
        periods,
        begin,
        end,
        _NOW,
        ZONE,
        rolling=rolling,
        recurring=recurring,
        group=group,
    )
    found = {(_local(row[0]), row[1], row[3]): (row[2], row[4]) for row in rows}
    assert len(found) == len(rows)
    assert {key: value for key, value in found.items() if value[0]} == expected, statement
    assert all(value == (0, 0) for key, value in found.items() if key not in expected), statement


@settings(max_examples=100)
@given(data=st.data())
def test_lifecycle_equals_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    event, test = data.draw(events_of_language)
    unit = data.draw(_UNITS)
    over, _, end = data.draw(st.sampled_from(_RANGES))
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    statement = f"lifecycle of {event} by {unit} {over} {grouped}"
    strategy = data.draw(st.sampled_from(["vector", "merge"]))
    try:
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.lifecycle(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    buckets = sorted({_local(row[0]) for row in rows})
    assert all(oracle.shifted(one, unit, 1) == two for one, two in pairwise(buckets))
    groups = {group(e) for e in events if test(e) and e.time < end} if grouped else {None}
    expected = {
        (*place, key): users
        for key in groups
        for place, users in oracle.lifecycle(
            events, lambda e, key=key: test(e) and group(e) == key, unit, buckets, end, ZONE
        ).items()
    }
    assert {(_local(bucket), status, key): users for bucket, status, users, key in rows} == expected, statement


@settings(max_examples=60)
@given(data=st.data())
def test_stickiness_equals_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    event, test = data.draw(events_of_language)
    unit = data.draw(_UNITS)
    over, begin, end = data.draw(st.sampled_from(_RANGES))
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    statement = f"stickiness of {event} by {unit} {over} {grouped}"
    strategy = data.draw(st.sampled_from(["vector", "merge"]))
    try:
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.stickiness(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    groups = {group(e) for e in events if test(e) and begin <= e.time < end} if grouped else {None}
    assert {row[2] for row in rows} == groups, statement
    for key in groups:
        found = {intervals: users for intervals, users, of in rows if of == key}
        assert list(found) == list(range(1, len(found) + 1))
        expected = oracle.stickiness(events, lambda e, key=key: test(e) and group(e) == key, unit, begin, end, ZONE)
        assert {intervals: users for intervals, users in found.items() if users} == expected, statement


def test_users_keep_their_cohorts_and_nobody_elses(asked: psycopg.Connection[Any]) -> None:
    """`for users where` limits the cohorts; a cohort without users has size 0 and no rate."""
    nothing = {"path": None, "target_text": None, "hierarchy": None, "country": None}
    events = [
        oracle.Event(user, datetime(2025, 10, day, 12, tzinfo=ZONE), user * 100 + day, "purchase", None, nothing)
        for user, day in ((1, 20), (1, 21), (2, 20), (2, 22))
    ]
    insert(asked, APP, events)
    statement = (
        "from \"Purchase\" to any by day for 1 day from '2025-10-20' to '2025-10-21' for users where plan = 'pro'"
    )
    rows = asked.execute("SELECT size, period, users, rate FROM heap.retention(%s)", (statement,)).fetchall()
    assert rows == [(1, 0, 1, 1), (1, 1, 1, 1), (0, 0, 0, None), (0, 1, 0, None)]
