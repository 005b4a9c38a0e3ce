"""Paths equal a naive evaluator on generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.histories import ZONE, events_of_language, histories, insert
from tests.oracle import Event
from tests.semantics_app import APP

_GAPS = [("", timedelta(minutes=30)), ("within 1 second", timedelta(seconds=1)), ("within 1 hour", timedelta(hours=1)),
         ("within 3 days", timedelta(days=3)), ("within 1 month", timedelta(days=30))]  # fmt: skip
_RANGES = [
    ("", datetime(2025, 10, 7, tzinfo=ZONE), datetime(2025, 11, 6, tzinfo=ZONE)),
    (
        "over from '2025-10-26' to '2025-10-31'",
        datetime(2025, 10, 26, tzinfo=ZONE),
        datetime(2025, 11, 1, tzinfo=ZONE),
    ),
]
_PROPERTIES = ["path", "country", "session_id", "amount"]

Node = Callable[[Event], str | None]
Rows = dict[tuple[int, str | None, str | None], tuple[int, int, timedelta | None]]


def _text(value: Any) -> str | None:
    """What `->>` shows of the plain values the histories have."""
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _collapsed(visits: Sequence[tuple[Event, str]], gap: timedelta) -> list[list[tuple[datetime, str]]]:
    """The paths of one user: each its nodes with their times."""
    found: list[list[tuple[datetime, str]]] = []
    before: datetime | None = None
    for event, node in visits:
        if before is None or event.time - before > gap:
            found.append([(event.time, node)])
        elif found[-1][-1][1] != node:
            found[-1].append((event.time, node))
        before = event.time
    return found


def _part(path: list[tuple[datetime, str]], start: str | None, end: str | None) -> list[tuple[datetime, str]]:
    """From the first `start` to the first `end` after it; nothing where one of them is missing."""
    if start is not None:
        places = [place for place, (_, node) in enumerate(path) if node == start]
        path = path[places[0] :] if places else []
    if end is not None:
        places = [place for place, (_, node) in enumerate(path) if node == end and (place > 0 or start is None)]
        path = path[: places[0] + 1] if places else []
    return path


def naive_paths(
    events: Sequence[Event], node: Node, gap: timedelta, start: str | None, end: str | None, steps: int,
    top: int | None,
) -> Rows:  # fmt: skip
    parts: list[tuple[int, dict[int, tuple[datetime, str]], int]] = []
    back = end is not None and start is None
    for user in {event.user_id for event in events}:
        own = sorted((event for event in events if event.user_id == user), key=lambda event: event.order)
        visits = [(event, name) for event in own if (name := node(event)) is not None]
        for path in _collapsed(visits, gap):
            part = _part(path, start, end)
            if part:
                numbers = range(-len(part), 0) if back else range(1, len(part) + 1)
                parts.append((user, dict(zip(numbers, part, strict=True)), len(part)))
    shown = _folding([places for _, places, _ in parts], top, steps, back=back)
    found: dict[tuple[int, str | None, str | None], list[tuple[int, float | None]]] = {}
    for user, places, _ in parts:
        for step in [-number - 1 for number in range(steps)] if back else [number + 1 for number in range(steps)]:
            source, target = (step - 1, step) if back else (step, step + 1)
            here, other = (target, source) if back else (source, target)
            if here not in places or (start is not None and end is not None and target not in places):
                continue
            seconds = None
            if other in places:
                seconds = (places[target][0] - places[source][0]).total_seconds()
            key = (step, shown(source, places), shown(target, places))
            found.setdefault(key, []).append((user, seconds))
    return {
        key: (
            len({user for user, _ in moves}),
            len(moves),
            timedelta(seconds=median(times)) if (times := [s for _, s in moves if s is not None]) else None,
        )
        for key, moves in found.items()
    }


def _folding(
    parts: Sequence[dict[int, tuple[datetime, str]]], top: int | None, steps: int, *, back: bool
) -> Callable[[int, dict[int, tuple[datetime, str]]], str | None]:
    kept: dict[int, set[str]] = {}
    for place in {place for part in parts for place in part}:
        counts = Counter(part[place][1] for part in parts if place in part)
        ranked = sorted(counts, key=lambda name: (-counts[name], name))
        kept[place] = set(ranked[:top] if top is not None else ranked)

    def shown(place: int, part: dict[int, tuple[datetime, str]]) -> str | None:
        if place not in part:
            return None
        name = part[place][1]
        return name if name in kept[place] else "<other>"

    return shown


def _found(rows: list[tuple[Any, ...]]) -> Rows:
    found = {(step, source, target): (users, paths, time) for step, source, target, users, time, paths in rows}
    assert len(found) == len(rows)
    return found


def _check(rows: list[tuple[Any, ...]], expected: Rows, statement: str) -> None:
    found = _found(rows)
    assert found.keys() == expected.keys(), statement
    for key, (users, paths, time) in expected.items():
        assert found[key][:2] == (users, paths), (statement, key)
        shown = found[key][2]
        assert (shown is None) == (time is None), (statement, key)
        assert shown is None or time is None or abs(shown - time) <= timedelta(microseconds=2), (statement, key)


@settings(max_examples=100)
@given(data=st.data())
def test_paths_of_a_property_equal_the_naive_ones(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    event, test = data.draw(events_of_language)
    name = data.draw(st.sampled_from(_PROPERTIES))
    over, begin, end_of_range = data.draw(st.sampled_from(_RANGES))
    within, gap = data.draw(st.sampled_from(_GAPS))
    values = st.none() | st.sampled_from(["/a", "/b", "DE", "other", "1", "2", "'"])
    start, end = data.draw(values), data.draw(values)
    steps, top = data.draw(st.integers(1, 4)), data.draw(st.none() | st.integers(1, 3))
    clauses = [
        f"for {steps} step{'s' * (steps > 1)}", within, over,
        *([f"from '{start.replace(chr(39), chr(39) * 2)}'"] if start is not None else []),
        *([f"to '{end.replace(chr(39), chr(39) * 2)}'"] if end is not None else []),
        *([f"top {top}"] if top is not None else []),
    ]  # fmt: skip
    statement = f"paths of {event} by {name} {' '.join(data.draw(st.permutations(clauses)))}"
    kept = [e for e in events if test(e) and begin <= e.time < end_of_range]
    if any(isinstance(e.get(name), (dict, list, float)) for e in kept):
        kept, events = [], []  # JSON's own text is PostgreSQL's matter
    strategy = data.draw(st.sampled_from(["vector", "merge"]))
    try:
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.paths(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    expected = naive_paths(kept, lambda e: _text(e.get(name)), gap, start, end, steps, top)
    if top is not None:  # a node of its own may be called other, too
        assert Counter((row[0], row[1], row[2], row[3], row[5]) for row in rows) == Counter(
            (step, "other" if source == "<other>" else source, "other" if target == "<other>" else target, users, paths)
            for (step, source, target), (users, paths, _) in expected.items()
        ), statement
        return
    _check(rows, expected, statement)


@settings(max_examples=100)
@given(data=st.data())
def test_paths_across_events_equal_the_naive_ones(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    nodes = data.draw(st.lists(events_of_language, min_size=2, max_size=4))
    over, begin, end_of_range = data.draw(st.sampled_from(_RANGES))
    within, gap = data.draw(st.sampled_from(_GAPS))
    names = [f"node {index}" for index in range(len(nodes))]
    ends = st.none() | st.sampled_from(names)
    start, end = data.draw(ends), data.draw(ends)
    steps = data.draw(st.integers(1, 4))
    statement = (
        f"paths across {', '.join(f'{text} as {chr(39)}{name}{chr(39)}' for (text, _), name in zip(nodes, names, strict=True))}"
        + (f" from '{start}'" if start is not None else "")
        + (f" to '{end}'" if end is not None else "")
        + f" {within} {over} for {steps} steps"
    )
    strategy = data.draw(st.sampled_from(["vector", "merge"]))
    try:
        asked.execute("SELECT set_config('heap.strategy', %s, true)", (strategy,))
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.paths(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()

    def node(event: Event) -> str | None:
        return next((name for name, (_, test) in zip(names, nodes, strict=True) if test(event)), None)

    kept = [event for event in events if begin <= event.time < end_of_range]
    _check(rows, naive_paths(kept, node, gap, start, end, steps, None), statement)


def test_what_comes_in_goes_out_and_repeats_keep_a_path_going(asked: psycopg.Connection[Any]) -> None:
    """Two paths of one user and one of another: / (again 20 minutes later) -> /a -> end, and / -> end."""
    at = datetime(2025, 11, 1, tzinfo=UTC)
    visits = [
        (1, 0, "/"),
        (1, 20, "/"),
        (1, 40, "/a"),
        (1, 80, "/"),
        (2, 0, "/"),
        (2, 1, "/a"),
        (2, 2, "/"),
        (3, 0, "/b"),
    ]
    insert(asked, APP, [
        Event(user, at + timedelta(minutes=minute), number, "pageview", None,
              {"path": path, "target_text": None, "hierarchy": None, "country": None})
        for number, (user, minute, path) in enumerate(visits)
    ])  # fmt: skip
    rows = asked.execute("SELECT * FROM heap.paths(%s)", ("of pageview by path from '/' for 2 steps",)).fetchall()
    minutes = timedelta(minutes=1)
    assert rows == [
        (1, "/", "/a", 2, 20.5 * minutes, 2),
        (1, "/", None, 1, None, 1),
        (2, "/a", "/", 1, minutes, 1),
        (2, "/a", None, 1, None, 1),
    ]
    rows = asked.execute("SELECT * FROM heap.paths(%s)", ("of pageview by path to '/a' for 2 steps",)).fetchall()
    assert rows == [(-1, "/", "/a", 2, 20.5 * minutes, 2), (-2, None, "/", 2, None, 2)]
