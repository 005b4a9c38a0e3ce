"""Times between two events equal a naive evaluator on generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.histories import ZONE, events_of_language, histories, insert
from tests.semantics_app import APP

_SECOND, _MINUTE, _HOUR, _DAY = (timedelta(seconds=seconds) for seconds in (1, 60, 3600, 86400))
_DEFAULTS = [timedelta(), _MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 4 * _HOUR, 12 * _HOUR, _DAY, 2 * _DAY, 3 * _DAY,
             7 * _DAY, 14 * _DAY, 30 * _DAY, 90 * _DAY, 365 * _DAY]  # fmt: skip
_WINDOWS = [("", 30 * _DAY), ("within 1 second", _SECOND), ("within 90 minutes", 90 * _MINUTE), ("within 1 day", _DAY),
            ("within 8 days", 8 * _DAY), ("within 2 years", 730 * _DAY)]  # fmt: skip
_RANGES = [
    ("over last 30 days", datetime(2025, 10, 7, tzinfo=ZONE), datetime(2025, 11, 6, tzinfo=ZONE)),
    ("from '2025-10-26' to '2025-10-26'", datetime(2025, 10, 26, tzinfo=ZONE), datetime(2025, 10, 27, tzinfo=ZONE)),
]
_GROUPS: list[tuple[str, Callable[[oracle.Event], Any]]] = [
    ("", lambda event: None),
    ("group by country", lambda event: event.columns["country"]),
    (
        "group by country, user.plan",
        lambda e: f"{e.columns['country'] or 'null'}, {({1: 'pro', 2: '7'}.get(e.user_id)) or 'null'}",
    ),
]


def _bins(data: st.DataObject, window: timedelta) -> tuple[str, list[timedelta]]:
    """A clause, and where its bins begin and end."""
    kind = data.draw(st.sampled_from(["default", "even", "edges"]))
    if kind == "even":
        text, width = data.draw(
            st.sampled_from([("12 hours", 12 * _HOUR), ("5 days", 5 * _DAY), ("1 year", 365 * _DAY)])
        )
        if window < 365 * _DAY or width > _DAY:
            bounds = [timedelta()]
            while bounds[-1] + width < window:
                bounds.append(bounds[-1] + width)
            return f"in bins of {text}", [*bounds, window]
    if kind == "edges":
        edges = [("1 second", _SECOND), ("1 hour", _HOUR), ("1 day", _DAY), ("2 days", 2 * _DAY)]
        inside = [(text, edge) for text, edge in edges if edge <= window]
        bounds = [timedelta(), *(edge for _, edge in inside if edge < window), window]
        return f"in bins ({', '.join(text for text, _ in inside)})", bounds
    return "", [*(edge for edge in _DEFAULTS if edge < window), window]


def time_taken(
    entries: list[oracle.Event], ends: list[oracle.Event], window: timedelta
) -> tuple[oracle.Event, timedelta | None]:
    """The first end that follows an entry inside the window, from the latest entry before it; both lists in order."""
    for end in ends:
        before = [entry for entry in entries if entry.order < end.order and end.time - entry.time <= window]
        if before:
            return before[-1], end.time - before[-1].time
    return entries[0], None


@settings(max_examples=100)
@given(data=st.data())
def test_times_equal_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories(max_events=18))
    (first, starts), (second, ends) = data.draw(events_of_language), data.draw(events_of_language)
    within, window = data.draw(st.sampled_from(_WINDOWS))
    over, start, end = data.draw(st.sampled_from(_RANGES))
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    written, bounds = _bins(data, window)
    statement = f"time from {first} to {second} {over} {within} {grouped} {written}"
    strategy = data.draw(st.sampled_from(["auto", "vector", "merge"]))
    try:
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.time(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    taken: dict[Any, list[timedelta]] = {} if grouped else {None: []}
    for user in {event.user_id for event in events}:
        own = sorted((e for e in events if e.user_id == user), key=lambda e: e.order)
        entries = [e for e in own if starts(e) and start <= e.time < end]
        if entries:
            entry, time = time_taken(entries, [e for e in own if ends(e)], window)
            taken.setdefault(group(entry), []).extend([] if time is None else [time])
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (key, low, high) for key in dict.fromkeys(row[0] for row in rows) for low, high in pairwise(bounds)
    ], statement
    assert {row[0] for row in rows} == taken.keys(), statement
    for key, low, high, users, share, converted, average, *quantiles in rows:
        all_taken = taken[key]
        inside = [time for time in all_taken if low <= time < high or time == high == window]
        assert (users, converted) == (len(inside), len(all_taken)), (statement, key, low)
        if not all_taken:
            assert [share, average, *quantiles] == [None] * 7
            continue
        assert abs(float(share) - len(inside) / len(all_taken)) < 1e-7
        seconds = [time.total_seconds() for time in all_taken]
        expected = [sum(seconds) / len(seconds)]
        expected += [oracle.percentile(seconds, fraction) for fraction in (0.5, 0.75, 0.9, 0.95, 0.99)]
        for one, two in zip([average, *quantiles], expected, strict=True):
            assert abs(one.total_seconds() - two) < 1e-5, (statement, key)


def test_top_folds_the_groups_with_fewest_converted(asked: psycopg.Connection[Any]) -> None:
    at = datetime(2025, 11, 1, tzinfo=UTC)
    users = [(1, "DE"), (2, "DE"), (3, "US"), (4, None)]
    events = [
        oracle.Event(user, at + timedelta(minutes=minute * user), user * 10 + minute, kind, None,
                     {"path": "/a", "target_text": None, "hierarchy": None, "country": country})
        for user, country in users for minute, kind in ((0, "pageview"), (1, "purchase"))
    ]  # fmt: skip
    insert(asked, APP, events)
    rows = asked.execute(
        "SELECT group_key, low, users, share, converted, median_time FROM heap.time(%s)",
        ("from pageview to purchase in bins (2 minutes, 4 minutes) within 1 day group by country top 1",),
    ).fetchall()
    two, four, nothing = timedelta(minutes=2), timedelta(minutes=4), timedelta()
    assert [(row[0], row[1], row[2], float(row[3]), row[4], row[5]) for row in rows] == [
        ("DE", nothing, 1, 0.5, 2, timedelta(seconds=90)),
        ("DE", two, 1, 0.5, 2, timedelta(seconds=90)),
        ("DE", four, 0, 0, 2, timedelta(seconds=90)),
        ("other", nothing, 0, 0, 2, timedelta(seconds=210)),
        ("other", two, 1, 0.5, 2, timedelta(seconds=210)),
        ("other", four, 1, 0.5, 2, timedelta(seconds=210)),
    ]


@pytest.mark.parametrize(("condition", "converted"), [("plan = 'pro'", 1), ("plan is not set", 0)])
def test_for_users_where(asked: psycopg.Connection[Any], condition: str, converted: int) -> None:
    asked.execute(
        f"INSERT INTO {APP}.events (user_id, time, event_id, type) VALUES (1, '2025-11-01', 1, 'click'),"
        " (1, '2025-11-01', 2, 'purchase'), (2, '2025-11-01', 3, 'click')"
    )
    statement = f"from click to purchase within 1 minute for users where {condition}"
    rows = asked.execute("SELECT users, converted FROM heap.time(%s)", (statement,)).fetchall()
    assert rows == [(converted, converted)]
