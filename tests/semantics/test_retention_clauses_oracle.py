"""Brackets, windows, streaks, frequencies and top groups of retention equal a naive evaluation of the reference on
generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.histories import ZONE, events_of_language, histories, insert
from tests.oracle import Event, shifted
from tests.semantics_app import APP

_NOW = datetime(2025, 11, 5, 12, tzinfo=ZONE)
_RANGES = [
    ("from '2025-10-25' to '2025-11-02'", datetime(2025, 10, 25, tzinfo=ZONE), datetime(2025, 11, 3, tzinfo=ZONE)),
    ("from '2025-10-25' to '2025-10-26'", datetime(2025, 10, 25, tzinfo=ZONE), datetime(2025, 10, 27, tzinfo=ZONE)),
    ("over last 2 months", datetime(2025, 10, 1, tzinfo=ZONE), datetime(2025, 12, 1, tzinfo=ZONE)),
    ("since '2025-10-26 12:00'", datetime(2025, 10, 26, 12, tzinfo=ZONE), datetime(2025, 11, 6, tzinfo=ZONE)),
]
_GROUPS: list[tuple[str, Callable[[Event], Any]]] = [
    ("", lambda event: None),
    ("group by path", lambda event: event.columns["path"]),
    ("group by user.plan", lambda event: {1: "pro", 2: "7"}.get(event.user_id)),
]


def _floor(time: datetime, unit: str) -> datetime:
    midnight = time.astimezone(ZONE).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    return midnight - timedelta(days=midnight.weekday()) if unit == "week" else midnight


def _periods_of(
    own: Sequence[Event], start: Event, unit: str, brackets: Sequence[tuple[int, int]], windows: bool, at_least: int
) -> set[int]:
    """The periods, counted from 1, in which a user came back often enough; beyond the last bracket is one more."""
    counts: dict[int, int] = {}
    for event in own:
        if windows:
            units = (event.time - start.time) // timedelta(days=7 if unit == "week" else 1)
        else:
            units = round(
                (_floor(event.time, unit) - _floor(start.time, unit)) / timedelta(days=7 if unit == "week" else 1)
            )
        if units >= 1:
            found = [number for number, (first, last) in enumerate(brackets, start=1) if first <= units <= last]
            beyond = len(brackets) + (1 if any(one < two for one, two in brackets) else units - brackets[-1][1])
            number = found[0] if found else beyond
            counts[number] = counts.get(number, 0) + 1
    return {number for number, count in counts.items() if count >= at_least}


@settings(max_examples=150)
@given(data=st.data())
def test_retention_clauses_equal_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    (start, starts), (back, returns) = data.draw(events_of_language), data.draw(events_of_language)
    unit = data.draw(st.sampled_from(["day", "week"]))
    if data.draw(st.booleans()):
        ends = sorted(data.draw(st.sets(st.integers(1, 9), min_size=1, max_size=4)))
        followed = f"in brackets ({', '.join(map(str, ends))} {unit}s)"
    else:
        ends = list(range(1, data.draw(st.integers(1, 5)) + 1))
        followed = f"by {unit} for {len(ends)} {unit}s"
    brackets = [(before + 1, end) for before, end in zip([0, *ends[:-1]], ends, strict=True)]
    windows, recurring = data.draw(st.booleans()), data.draw(st.booleans())
    at_least = data.draw(st.sampled_from([1, 1, 2, 3]))
    counting = data.draw(st.sampled_from(["", "rolling", "streak"]))
    over, begin, end = data.draw(st.sampled_from(_RANGES))
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    top = data.draw(st.sampled_from([None, 1, 2])) if grouped else None
    statement = (
        f"from {start} to {back} {f'at least {at_least} times' if at_least > 1 else ''} {followed} {counting} {over}"
        f"{' in 24 hour windows' * windows}{' recurring' * recurring} {grouped} {f'top {top}' if top else ''}"
    )
    strategy = data.draw(st.sampled_from(["vector", "merge"]))
    try:
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.retention(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()

    members = []
    for user in {event.user_id for event in events}:
        own = sorted(
            (e for e in events if e.user_id == user and starts(e) and begin <= e.time < end), key=lambda e: e.order
        )
        first = {}
        for event in own if recurring else own[:1]:
            first.setdefault(_floor(event.time, unit), event)
        members += [(bucket, group(event), event) for bucket, event in first.items()]
    sizes: dict[Any, int] = {}
    for _, key, _ in members:
        sizes[key] = sizes.get(key, 0) + 1
    kept = sorted(sizes, key=lambda key: (-sizes[key], key is None, key or ""))[:top]
    last_read = shifted(_floor(_NOW, unit), unit, 1).replace(tzinfo=ZONE)
    expected: dict[Any, list[int]] = {}
    for bucket, key, event in members:
        own = [e for e in events if e.user_id == event.user_id and returns(e) and e.time < last_read]
        came = _periods_of(own, event, unit, brackets, windows, at_least)
        for number in range(len(brackets) + 1):
            label, begins = (ends[number - 1], brackets[number - 1][0]) if number else (0, 0)
            if windows:
                elapsed = begins * timedelta(days=7 if unit == "week" else 1)
                begun = bucket.replace(tzinfo=ZONE).astimezone(UTC) + elapsed <= _NOW
            else:
                begun = shifted(bucket, unit, begins) <= _floor(_NOW, unit)
            if begun:
                row = expected.setdefault((bucket, key if key in kept else "other", label), [0, 0])
                row[0] += 1
                match counting:
                    case "rolling":
                        counts = any(one >= number for one in came)
                    case "streak":
                        counts = came >= set(range(1, number + 1))
                    case _:
                        counts = number in came
                row[1] += number == 0 or counts
    found = {(row[0].astimezone(ZONE).replace(tzinfo=None), row[1], row[3]): [row[2], row[4]] for row in rows}
    assert len(found) == len(rows)
    assert {key: value for key, value in found.items() if value[0]} == expected, statement
    assert all(value == [0, 0] for key, value in found.items() if key not in expected), statement
    if rows:
        in_first_cohort = list(dict.fromkeys(row[1] for row in rows if row[0] == rows[0][0]))
        assert "other" not in in_first_cohort[:-1]


def test_a_window_ends_where_the_next_begins(asked: psycopg.Connection[Any]) -> None:
    """A day after the start is period 1 to the microsecond, also across the night with 25 hours."""
    nothing = {"path": None, "target_text": None, "hierarchy": None, "country": None}
    start = datetime(2025, 10, 25, 20, tzinfo=ZONE).astimezone(UTC)
    moments = [timedelta(), timedelta(hours=24) - timedelta(microseconds=1), timedelta(hours=24), timedelta(hours=48)]
    for count, expected in ((2, [1, 0, 0]), (3, [1, 1, 0]), (4, [1, 1, 1])):
        insert(asked, APP, [
            Event(1, start + moment, number, "purchase", None, nothing)
            for number, moment in enumerate(moments[:count], start=1)
        ])  # fmt: skip
        rows = asked.execute(
            "SELECT users FROM heap.retention(%s)",
            ("from any to any by day for 2 days from '2025-10-25' to '2025-10-25' in 24 hour windows",),
        ).fetchall()
        assert [users for (users,) in rows] == expected
        asked.rollback()


@pytest.mark.parametrize(
    ("clauses", "message"),
    [
        ("by month in 24 hour windows", "a month is no fixed length of time"),
        ("in 12 hour windows", "periods of elapsed time are written as days"),
        ("in brackets (1, 3, 3 days)", "brackets rise"),
        ("in brackets (1, 3 days) by week", "cohorts by week have brackets of weeks"),
        ("in brackets (1, 3 days) for 3 days", "the brackets say how long a cohort is followed"),
        ("in brackets (1, 3000 days)", "a cohort can be followed for 1,000 periods"),
        ("for 3000 days", "a cohort can be followed for 1,000 periods"),
        ("rolling 7 days", "a retention is rolling without a length"),
        ("rolling streak", "a retention is rolling or a streak, not both"),
        ("top 3", "top needs groups to choose from"),
        ("at least 0 times", "0 is out of bounds"),
        ("compared to previous period", "this analysis takes no compared to previous period clause"),
    ],
)
def test_what_does_not_fit_is_said(asked: psycopg.Connection[Any], clauses: str, message: str) -> None:
    with pytest.raises(psycopg.Error, match=message) as raised:
        asked.execute("SELECT * FROM heap.retention(%s)", (f"from any to any {clauses}",))
    assert "line 1, column" in str(raised.value)
