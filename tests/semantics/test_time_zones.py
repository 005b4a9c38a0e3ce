"""Buckets, cohorts and date literals on the days clocks change and across a year's end, against plain arithmetic of
`zoneinfo`: the first instant of a local date is found by looking at every quarter of an hour."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.histories import insert
from tests.oracle import Event

_QUARTER, _DAY, _INSTANT = timedelta(minutes=15), timedelta(days=1), timedelta(microseconds=1)
_NOTHING = {"path": None, "target_text": None, "hierarchy": None, "country": None}
_NOW = "2027-02-01 12:00"

# A zone, and a day around which something happens to its clock or its calendar.
_TURNS = [
    ("Asia/Kolkata", date(2025, 12, 31)),  # half an hour off
    ("Asia/Kathmandu", date(1986, 1, 1)),  # from a half to three quarters at a year's first midnight
    ("Asia/Kathmandu", date(2026, 1, 1)),
    ("Australia/Lord_Howe", date(2025, 4, 6)),  # summer time is half an hour
    ("Australia/Lord_Howe", date(2025, 10, 5)),
    ("Australia/Lord_Howe", date(2025, 12, 31)),
    ("Europe/Berlin", date(2025, 3, 30)),
    ("Europe/Berlin", date(2025, 10, 26)),
    ("Europe/Berlin", date(2024, 12, 30)),  # a Monday: the year ends within a week
    ("Africa/Cairo", date(2025, 4, 25)),  # midnight is left out
    ("Africa/Cairo", date(2025, 10, 31)),  # the hour before midnight comes twice
    ("America/Havana", date(2025, 11, 2)),  # the hour after midnight comes twice
    ("Pacific/Apia", date(2011, 12, 30)),  # a day is left out
]  # fmt: skip


@cache
def _first_instant(day: date, zone: ZoneInfo) -> datetime:
    """The first instant of a local date, or of the first one after it."""
    instant = datetime(day.year, day.month, day.day, tzinfo=UTC) - 15 * timedelta(hours=1)
    while instant.astimezone(zone).date() < day:
        instant += _QUARTER
    return instant


def _unit_start(day: date, unit: str) -> date:
    return {"day": day, "week": day - day.weekday() * _DAY, "month": day.replace(day=1)}[unit]


def _buckets(first: date, last: date, unit: str, zone: ZoneInfo) -> list[datetime]:
    """The first instants of the units that the days from `first` to `last` lie in; days that never were have none."""
    days = [first + count * _DAY for count in range((last - first).days + 1)]
    existing = [day for day in days if _first_instant(day, zone) < _first_instant(day + _DAY, zone)]
    return sorted({_first_instant(_unit_start(day, unit), zone) for day in existing})


def _place(time: datetime, buckets: Sequence[datetime]) -> int:
    return sum(start <= time for start in buckets) - 1


def _ensure_app(dsn: str, zone: str) -> str:
    app = "in_" + zone.lower().replace("/", "_")
    with psycopg.connect(dsn, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM heap.app WHERE name = %s", (app,)).fetchone():
            connection.execute("SELECT heap.create_app(%s, %s)", (app, zone))
    return app


@pytest.fixture(params=_TURNS, ids=lambda turn: f"{turn[0]}-{turn[1]}")
def turn(request: pytest.FixtureRequest, dsn: str) -> tuple[str, ZoneInfo, date]:
    """An app in the zone, the zone, and the day."""
    name, day = request.param
    return _ensure_app(dsn, name), ZoneInfo(name), day


@st.composite
def _times(draw: st.DrawFn, day: date, zone: ZoneInfo) -> datetime:
    """An instant near the turn: often at a local day's very beginning or end, else at some quarter of an hour."""
    of_day = _first_instant(day + draw(st.sampled_from([-9, -2, -1, 0, 0, 1, 2, 6, 8])) * _DAY, zone)
    return (
        of_day
        + draw(st.sampled_from([0, 0, 0, 1, 4, 6, 8, 10, 40, 92, 95])) * _QUARTER
        - draw(st.sampled_from([timedelta(), timedelta(), _INSTANT]))
    )


def _ask(connection: psycopg.Connection[Any], app: str, events: Sequence[Event], *statements: str) -> list[list[Any]]:
    try:
        connection.execute("SELECT set_config('heap.app', %s, true), set_config('heap.now', %s, true)", (app, _NOW))
        insert(connection, app, events)
        return [
            connection.execute(f"SELECT * FROM heap.{statement.split()[0]}(%s)", (statement,)).fetchall()  # type: ignore[arg-type]
            for statement in statements
        ]
    finally:
        connection.rollback()


@settings(max_examples=25)
@given(data=st.data())
def test_the_calendar_is_the_zones(
    connection: psycopg.Connection[Any], turn: tuple[str, ZoneInfo, date], data: st.DataObject
) -> None:
    app, zone, day = turn
    moments = data.draw(st.lists(st.tuples(st.integers(1, 3), _times(day, zone)), max_size=8))
    events = [Event(user, time, number, "click", None, _NOTHING) for number, (user, time) in enumerate(moments)]
    unit = data.draw(st.sampled_from(["day", "week", "month"]))
    first, last = (day + data.draw(st.integers(*bounds)) * _DAY for bounds in ((-8, 0), (0, 8)))
    assume(_first_instant(first, zone) < _first_instant(last + _DAY, zone))  # not the day that never was alone
    over = f"from '{first}' to '{last}'"
    trend, retention, lifecycle = _ask(
        connection, app, events, f"trend count of any by {unit} {over}",
        f"retention from any to any by {unit} for 3 {unit}s {over}", f"lifecycle of any by {unit} {over}",
    )  # fmt: skip

    start, end = _first_instant(first, zone), _first_instant(last + _DAY, zone)
    shown = _buckets(first, last, unit, zone)
    inside = [event for event in events if start <= event.time < end]
    counts = [sum(_place(event.time, shown) == index for event in inside) for index in range(len(shown))]
    assert [(row[0], row[3]) for row in trend] == list(zip(shown, counts, strict=True))

    # Retention and lifecycle look beyond the range: buckets before and after it.
    every = _buckets(day - 40 * _DAY, day + 200 * _DAY, unit, zone)
    users = {event.user_id for event in events}
    active = {user: {_place(event.time, every) for event in events if event.user_id == user} for user in users}
    cohorts: dict[datetime, set[int]] = {bucket: set() for bucket in shown}
    for user in users:
        starts = [event.time for event in inside if event.user_id == user]
        if starts:
            cohorts[every[_place(min(starts), every)]].add(user)
    for cohort, _, size, period, back, _ in retention:
        assert size == len(cohorts[cohort])
        place = every.index(cohort) + period
        assert back == sum(period == 0 or place in active[user] for user in cohorts[cohort])
    assert [(row[0], row[3]) for row in retention] == [(cohort, period) for cohort in shown for period in range(4)]

    seen = {user: {_place(e.time, every) for e in events if e.user_id == user and e.time < end} for user in users}
    expected = {(bucket, status): 0 for bucket in shown for status in ("new", "returning", "resurrecting", "dormant")}
    for bucket in shown:
        place = every.index(bucket)
        for mine in seen.values():
            if place in mine:
                status = "new" if place == min(mine) else "returning" if place - 1 in mine else "resurrecting"
                expected[bucket, status] += 1
            elif place - 1 in mine:
                expected[bucket, "dormant"] -= 1
    assert {(bucket, status): users for bucket, status, users, _ in lifecycle} == expected


def test_hours_begin_with_the_clocks(connection: psycopg.Connection[Any], turn: tuple[str, ZoneInfo, date]) -> None:
    """Every hour begins when the clock shows a whole one, or where it jumps over that; and none is missed."""
    app, zone, day = turn
    (rows,) = _ask(connection, app, [], f"trend count of any by hour from '{day - _DAY}' to '{day + _DAY}'")
    starts = [row[0] for row in rows]
    assert starts[0] == _first_instant(day - _DAY, zone)
    for one, two in pairwise(starts):
        local = two.astimezone(zone)
        jumped = local.utcoffset() != (two - _INSTANT).astimezone(zone).utcoffset()
        assert local.minute == 0 or jumped, local
        assert timedelta() < two - one <= timedelta(minutes=90)


@pytest.mark.parametrize(
    ("zone", "literal", "instant"),
    [
        ("Asia/Kolkata", "2026-01-01", "2025-12-31 18:30"),
        ("Asia/Kathmandu", "2026-01-01 00:00", "2025-12-31 18:15"),
        ("Australia/Lord_Howe", "2025-04-06 01:45", "2025-04-05 14:45"),  # comes twice: the first time
        ("Australia/Lord_Howe", "2025-10-06", "2025-10-05 13:00"),
        ("Europe/Berlin", "2025-10-26 02:30", "2025-10-26 00:30"),  # comes twice: the first time
        ("Africa/Cairo", "2025-04-25", "2025-04-24 22:00"),  # never comes: where the clock jumps
        ("Europe/Berlin", "2025-01-01 00:00+05:45", "2024-12-31 18:15"),
    ],
)
def test_literals_are_read_in_the_zone(
    connection: psycopg.Connection[Any], dsn: str, zone: str, literal: str, instant: str
) -> None:
    app = _ensure_app(dsn, zone)
    at = datetime.fromisoformat(instant).replace(tzinfo=UTC)
    events = [Event(1, at - _INSTANT, 1, "click", None, _NOTHING), Event(1, at, 2, "click", None, _NOTHING)]
    since, before = _ask(
        connection, app, events,
        f"trend count of any since '{literal}'", f"trend count of any where time < '{literal}' since '1900-01-01'",
    )  # fmt: skip
    assert [row[3] for row in since] == [row[3] for row in before] == [1]


@pytest.mark.parametrize(
    ("zone", "over", "before"),
    [
        ("Africa/Cairo", "from '2025-04-25' to '2025-04-25'", ["2025-04-23 22:00", "2025-04-24 21:59"]),
        ("Africa/Cairo", "from '2025-04-20' to '2025-04-24'", ["2025-04-14 22:00", "2025-04-19 21:59"]),
        ("Australia/Lord_Howe", "from '2025-04-06' to '2025-04-06'", ["2025-04-04 13:00", "2025-04-05 12:59"]),
    ],
)
def test_the_previous_period_has_as_many_days(
    connection: psycopg.Connection[Any], dsn: str, zone: str, over: str, before: list[str]
) -> None:
    app = _ensure_app(dsn, zone)
    first, last = (datetime.fromisoformat(time).replace(tzinfo=UTC) for time in before)
    times = [first - _INSTANT, first, last, last + timedelta(minutes=1)]
    events = [Event(1, time, number, "click", None, _NOTHING) for number, time in enumerate(times)]
    (rows,) = _ask(connection, app, events, f"trend count of any {over} compared to previous period")
    assert rows[1][3] == 2
