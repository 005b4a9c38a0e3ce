"""Rolling, cumulative and compared trends, measures per user, totals and formulas equal a naive evaluation of the
reference on generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.histories import ZONE, events_of_language, histories, insert
from tests.oracle import Event
from tests.semantics_app import APP

_PLAIN = ["count", "users", "sessions", "sum", "avg", "min", "max", "median", "p75", "p90", "p95", "p99"]
_OVER_USERS = ["sum", "avg", "min", "max", "median", "p75", "p90", "p95", "p99"]

# What is written, where it begins and ends on a clock in Berlin, and where the period before begins.
_RANGES = [
    ("from '2025-10-24' to '2025-11-02'", "2025-10-24", "2025-11-03", "2025-10-14"),
    ("from '2025-10-29' to '2025-11-02'", "2025-10-29", "2025-11-03", "2025-10-24"),
    ("over last 2 weeks", "2025-10-27", "2025-11-10", "2025-10-13"),
    ("over last 1 month", "2025-11-01", "2025-12-01", "2025-10-01"),
    ("over previous 1 month", "2025-10-01", "2025-11-01", "2025-09-01"),
    ("over last 3 days", "2025-11-03", "2025-11-06", "2025-10-31"),
    ("since '2025-10-31 13:00'", "2025-10-31 13:00", "2025-11-06", "2025-10-26 02:00"),
    ("", "2025-10-07", "2025-11-06", "2025-09-07"),
]
_ROLLING = {
    "day": ["1 day", "3 days", "2 weeks", "1 month", "48 hours"],
    "week": ["7 days", "28 days", "1 week", "2 months"],
    "month": ["31 days", "1 month", "1 quarter", "1 year"],
}
_GROUPS: list[tuple[str, Callable[[Event], Any]]] = [
    ("", lambda event: None),
    ("group by country", lambda event: event.columns["country"]),
    ("group by user.plan", lambda event: {1: "pro", 2: "7"}.get(event.user_id)),
    (
        "group by path, user.plan",
        lambda e: f"{'null' if e.get('path') is None else e.get('path')}, {({1: 'pro', 2: '7'}.get(e.user_id)) or 'null'}",
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """A measure as text and as Python."""

    text: str
    test: oracle.Test
    value: Callable[[Sequence[Event]], Any]


@st.composite
def measures(draw: st.DrawFn, names: Sequence[str] = _PLAIN) -> Measure:
    event, test = draw(events_of_language)
    name = draw(st.sampled_from(names))
    of = None if name in {"count", "users", "sessions"} else "amount"
    text = f"{name} of {event}" if of is None else f"{name}({of}) of {event}"
    return Measure(text, test, lambda events: oracle.measure(name, events, of))


@st.composite
def measures_per_user(draw: st.DrawFn) -> Measure:
    inner = draw(measures([name for name in _PLAIN if name != "users"]))
    over_users = draw(st.sampled_from(_OVER_USERS))

    def value(events: Sequence[Event]) -> Any:
        own = [inner.value([e for e in events if e.user_id == user]) for user in {e.user_id for e in events}]
        each = [_Number(value) for value in own if value is not None]
        return oracle.measure(over_users, each, "value")  # type: ignore[arg-type]

    return Measure(f"{over_users} of {inner.text} per user", inner.test, value)


@dataclass(frozen=True)
class _Number:
    value: float

    def get(self, _: str) -> float:
        return self.value


def _instant(local: datetime) -> datetime:
    return local.replace(tzinfo=ZONE).astimezone(UTC)


def _before(instant: datetime, length: str) -> datetime:
    """`length` before an instant, on the calendar and the clock of Berlin, hours elapsed."""
    count, unit = length.split()
    unit = unit.removesuffix("s")
    if unit == "hour":
        return instant - timedelta(hours=int(count))
    local = instant.astimezone(ZONE).replace(tzinfo=None)
    if unit in {"day", "week"}:
        return _instant(local - int(count) * timedelta(days=7 if unit == "week" else 1))
    index = local.year * 12 + local.month - 1 - int(count) * {"month": 1, "quarter": 3, "year": 12}[unit]
    for day in (local.day, 30, 29, 28):
        try:
            return _instant(local.replace(year=index // 12, month=index % 12 + 1, day=day))
        except ValueError:
            continue
    raise AssertionError


def _windows(start: datetime, end: datetime, unit: str | None, window: str) -> list[tuple[datetime, datetime]]:
    """The instants that each bucket's value is about."""
    if unit is None:
        return [(start, end)]
    local = start.astimezone(ZONE).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    if unit == "week":
        local -= timedelta(days=local.weekday())
    if unit == "month":
        local = local.replace(day=1)
    windows = []
    while _instant(local) < end:
        following = oracle.shifted(local, unit, 1)
        first, last = max(start, _instant(local)), min(end, _instant(following))
        if window == "cumulative":
            first = start
        elif window:
            first = _before(last, window.removeprefix("rolling "))
        windows.append((first, last))
        local = following
    return windows


def _near(one: Any, two: Any) -> bool:
    if one is None or two is None:
        return one is None and two is None
    return abs(float(one) - float(two)) <= 1e-7 * max(1.0, abs(float(two)))


def _ask(asked: psycopg.Connection[Any], events: Sequence[Event], statement: str) -> list[Any]:
    try:
        insert(asked, APP, events)
        return asked.execute("SELECT bucket, series, group_key, value FROM heap.trend(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()


@settings(max_examples=150)
@given(data=st.data())
def test_windows_periods_and_groups(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    series = data.draw(st.lists(measures() | measures_per_user(), min_size=1, max_size=2, unique_by=lambda m: m.text))
    over, *times = data.draw(st.sampled_from(_RANGES))
    start, end, previous = (_instant(datetime.fromisoformat(time)) for time in times)
    unit = data.draw(st.sampled_from([None, "day", "week", "month"]))
    window = ""
    if unit is not None:
        window = data.draw(
            st.sampled_from(["", "cumulative", *(f"rolling {length}" for length in _ROLLING[unit])]), label="window"
        )
    compared = data.draw(st.booleans())
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    total = bool(grouped) and data.draw(st.booleans())
    statement = (
        f"trend {', '.join(measure.text for measure in series)} {over} {f'by {unit}' * (unit is not None)} {window}"
        f" {grouped} {'with total' * total} {'compared to previous period' * compared}"
    )
    rows = _ask(asked, events, statement)

    periods = [("", start, end), *([(" (previous period)", previous, start)] if compared else [])]
    windows = {name: _windows(first, last, unit, window) for name, first, last in periods}
    read = {name: [e for e in events if windows[name][0][0] <= e.time < windows[name][-1][1]] for name in windows}
    groups: list[Any] = [None]
    if grouped:
        groups = list({group(e) for name in read for measure in series for e in read[name] if measure.test(e)})
    expected = []
    for index in range(len(windows[""])):
        for measure in series:
            for name, spans in windows.items():
                for key in [*groups, *(["total"] if total else [])]:
                    value = None
                    if index < len(spans):
                        first, last = spans[index]
                        inside = [e for e in events if measure.test(e) and first <= e.time < last]
                        value = measure.value([e for e in inside if key in {"total", group(e)}])
                    expected.append((index, " ".join(measure.text.split()) + name, key, value))
    buckets = sorted({row[0] for row in rows}) if unit else [None]
    found = {(buckets.index(bucket), name, key): value for bucket, name, key, value in rows}
    assert len(found) == len(rows) == len(expected), statement
    for index, name, key, value in expected:
        assert _near(found[index, name, key], value), (statement, index, name, key, value)
    if total:
        assert [row[2] for row in rows[len(groups) :: len(groups) + 1]] == ["total"] * (len(rows) // (len(groups) + 1))


@settings(max_examples=80)
@given(data=st.data())
def test_top_and_total(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    """`other` and `total` are measured anew over their events; groups are ranked by the first measure."""
    events = data.draw(histories())
    measure = data.draw(measures(["count", "users", "sum", "max", "median"]))
    top = data.draw(st.integers(1, 3))
    window = data.draw(st.sampled_from(["", "cumulative", "rolling 5 days"]))
    statement = f"trend {measure.text} {_RANGES[0][0]} by day {window} group by path top {top} with total"
    rows = _ask(asked, events, statement)
    start, end = (_instant(datetime.fromisoformat(time)) for time in _RANGES[0][1:3])
    inside = [e for e in events if measure.test(e) and start <= e.time < end]
    sizes = {key: measure.value([e for e in inside if e.get("path") == key]) for key in {e.get("path") for e in inside}}
    ranked = sorted(sizes, key=lambda k: (sizes[k] is None, -(sizes[k] or 0), k is None, k or ""))[:top]
    windows = _windows(start, end, "day", window)
    read = [e for e in events if measure.test(e) and windows[0][0] <= e.time < end]
    shown = {e.get("path") if e.get("path") in ranked else "other" for e in read}
    keys = sorted(shown - {"other"}, key=lambda k: (k is None, k or ""))
    keys += [*(["other"] if "other" in shown else []), "total"]
    assert [row[2] for row in rows] == keys * len(windows), statement
    for index, (_, _, key, value) in enumerate(rows):
        first, last = windows[index // len(keys)]
        own = [
            e
            for e in read
            if first <= e.time < last
            and (key == "total" or (e.get("path") not in ranked if key == "other" else e.get("path") == key))
        ]
        assert _near(value, measure.value(own)), (statement, index, key)


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda one, two: one / two if two else None,
}


@dataclass(frozen=True)
class Formula:
    text: str
    value: Callable[[Sequence[Event]], Any]
    measures: tuple[Measure, ...]


def _combined(left: Formula, sign: str, right: Formula) -> Formula:
    def value(events: Sequence[Event]) -> Any:
        one, two = left.value(events), right.value(events)
        return None if one is None or two is None else _OPERATORS[sign](one, two)

    return Formula(f"({left.text} {sign} {right.text})", value, left.measures + right.measures)


def _leaf(measure: Measure) -> Formula:
    return Formula(measure.text, lambda events: measure.value([e for e in events if measure.test(e)]), (measure,))


def _constant(number: str) -> Formula:
    return Formula(number, lambda events: float(number), ())


_formulas = st.recursive(
    st.builds(_leaf, measures(["count", "users", "sessions", "sum", "max"]))
    | st.builds(_constant, st.sampled_from(["2", "0", "-1.5", "100"])),
    lambda inner: st.builds(_combined, inner, st.sampled_from("+-*/"), inner),
    max_leaves=5,
).filter(lambda formula: bool(formula.measures))


@settings(max_examples=80)
@given(data=st.data())
def test_formulas(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    formula = data.draw(_formulas)
    unit = data.draw(st.sampled_from([None, "day", "week"]))
    window = data.draw(st.sampled_from(["", "cumulative", "rolling 2 weeks"])) if unit else ""
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    over, *times = _RANGES[0]
    start, end, _ = (_instant(datetime.fromisoformat(time)) for time in times)
    rows = _ask(asked, events, f"trend {formula.text} as x {over} {f'by {unit}' if unit else ''} {window} {grouped}")
    windows = _windows(start, end, unit, window)
    read = [e for e in events if windows[0][0] <= e.time < end]
    groups = {group(e) for e in read for measure in formula.measures if measure.test(e)} if grouped else {None}
    assert len(rows) == len(groups) * len(windows)
    buckets = sorted({row[0] for row in rows}) if unit else [None]
    for bucket, _, key, value in rows:
        first, last = windows[buckets.index(bucket)]
        inside = [e for e in events if first <= e.time < last and group(e) == key]
        assert _near(value, formula.value(inside)), (formula.text, bucket, key)


def test_operators_bind_as_in_arithmetic(asked: psycopg.Connection[Any]) -> None:
    """Three events: 10 - 3 - 2 * 3 / 4 = 5.5, from the left and with * and / first; every measure is read once."""
    nothing = {"path": None, "target_text": None, "hierarchy": None, "country": None}
    events = [Event(1, datetime(2025, 11, 1, tzinfo=UTC), number, "purchase", None, nothing) for number in (1, 2, 3)]
    statement = "10 - count of any - 2 * count of any / (1 + count of purchase)"
    assert _ask(asked, events, statement) == [(None, statement, None, 5.5)]
    with asked.transaction():
        asked.execute("SET LOCAL heap.strategy = 'merge'")
        (sql,) = asked.execute("SELECT heap.sql(%s)", (f"trend {statement}",)).fetchone() or ("",)
    assert sql.count("_events\n") == 2


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("users of any rolling 7 days", "this needs buckets"),
        ("users of any cumulative", "this needs buckets"),
        ("users of any by day rolling", "over how long?"),
        ("users of any by week rolling 6 days", "6 days can be shorter than a week"),
        ("users of any by day rolling 24 hours", "24 hours can be shorter than a day"),
        ("users of any by month rolling 30 days", "30 days can be shorter than a month"),
        ("users of any by year rolling 3 quarters", "3 quarters can be shorter than a year"),
        ("users of any by day rolling 7 days cumulative", "a trend is rolling or cumulative, not both"),
        ("users of any by day rolling 900000 days", "this reaches before year 1"),
        ("users of any over last 1200 years compared to previous period", "the previous period reaches before year 1"),
        ("users of any with total", "without groups every row is the total"),
        ("2 * 3 by day", "a series measures events"),
        ("users of any, count of click as 'users of any'", "a second series called users of any"),
        (
            "users of any, count of click as 'users of any (previous period)' compared to previous period",
            "a second series called users of any",
        ),
        ("users of any at least 3 times", "unexpected at"),
        ("median of users of any per user", "unexpected users"),
    ],
)
def test_what_does_not_fit_is_said(asked: psycopg.Connection[Any], statement: str, message: str) -> None:
    with pytest.raises(psycopg.Error, match=message.replace("?", r"\?")) as raised:
        asked.execute("SELECT * FROM heap.trend(%s)", (statement,))
    assert "line 1, column" in str(raised.value)
