"""Lower a sequence whose steps may come in any order: the most distinct steps that fit in one window.

An event fills one step, also where it could fill several, so the steps done inside a span are a maximum matching of its
events and the steps. Its size comes from counts alone (Hall's theorem, P. Hall 1935): with N(S) the events that match
any of the steps S, it is the least of |steps| - |S| + N(S) over all S. Only steps that can match the same event
need this; the others are counted one by one.

The user's span is the one with most steps; among those the one that ends first, then the one that begins last. Its
events are found backwards from its end, each as late as it can be.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import combinations

from sqlglot import exp

from heap_compiler.passes.disjoint_steps import disjoint
from heap_compiler.scan import EVENT_ORDER
from heap_compiler.sequence import Sequence, SequenceStep
from heap_compiler.sql import (
    all_of,
    cast,
    column,
    function,
    instant_of,
    microseconds,
    named,
    number,
    select,
    subquery,
    timestamp,
    union_all,
)
from heap_compiler.strategies.reading import step_events, unit_values

__all__ = ["MAX_ENTANGLED", "any_order_chains", "entangled_steps"]

MAX_ENTANGLED = 6
"""Steps that can match each other's events: each subset of them is counted."""


def any_order_chains(sequence: Sequence) -> list[tuple[str, exp.Query]]:
    """The named queries that end in `chains`; see `strategies.user_chains`. Step k is the k-th one done, whichever.

    Args:
        sequence: at most `MAX_ENTANGLED` of its steps can match the same events.
    """
    groups = entangled_steps(sequence.steps)
    unit = ["user_id", *unit_values(sequence)]
    return [
        ("events", _events(sequence)),
        ("matched", _numbered(unit)),
        ("spans", _spans(sequence, groups, unit)),
        ("furthest", _furthest(unit)),
        ("inside", _inside(sequence, groups, unit)),
        ("beginnings", _beginnings(sequence, unit)),
        ("taken", _taken(groups, unit)),
        ("chains", _chains(sequence, unit)),
    ]


def entangled_steps(steps: tuple[SequenceStep, ...]) -> list[tuple[int, ...]]:
    """The steps, by index, in groups: those of different groups match no common event."""
    groups: list[set[int]] = [{index} for index in range(len(steps))]
    for one, other in combinations(range(len(steps)), 2):
        pairs = ((a, b) for a in steps[one].event.alternatives for b in steps[other].event.alternatives)
        if not all(disjoint(a, b) for a, b in pairs):
            mine, theirs = (next(group for group in groups if index in group) for index in (one, other))
            if mine is not theirs:
                groups.remove(theirs)
                mine |= theirs
    return [tuple(sorted(group)) for group in groups]


def _events(sequence: Sequence) -> exp.Query:
    """Every event once, with the steps it matches as bits."""
    shared = list(unit_values(sequence))
    parts: list[exp.Select] = []
    for index, step in enumerate(sequence.steps, start=1):
        columns = {**unit_values(sequence), "step": number(1 << (index - 1))}
        parts += step_events(sequence, step, columns, alias=f"{sequence.alias}_{index}", present=shared)
    keys = [*EVENT_ORDER, *shared]
    bits = function("bit_or", column("step"))
    return select(
        [*(column(key) for key in keys), named(bits, "steps"), named(microseconds(column("time")), "instant")],
        subquery(union_all(parts), "labelled"),
        group_by=[column(key) for key in keys],
    )


def _numbered(unit: list[str]) -> exp.Select:
    place = exp.Window(this=exp.RowNumber(), partition_by=[column("user_id")], order=_in_time())
    names = [*EVENT_ORDER, *unit[1:], "steps", "instant"]
    return select([*(column(name) for name in names), named(place, "position")], "events")


def _most_steps(groups: list[tuple[int, ...]], events_of: Callable[[int], exp.Expr]) -> exp.Expr:
    """How many steps are done; `events_of(bits)` counts the events that match any of the steps with these bits."""
    parts: list[exp.Expr] = []
    for group in groups:
        bounds: list[exp.Expr] = [number(len(group))]
        for size in range(1, len(group) + 1):
            for steps in combinations(group, size):
                count = events_of(sum(1 << step for step in steps))
                rest = len(group) - size
                bounds.append(exp.Add(this=number(rest), expression=count) if rest else count)
        parts.append(function("least", *bounds))
    total = parts[0]
    for part in parts[1:]:
        total = exp.Add(this=total, expression=part)
    return total


def _matches(bits: int) -> exp.Expr:
    return exp.NEQ(this=exp.paren(exp.BitwiseAnd(this=column("steps"), expression=number(bits))), expression=number(0))


def _count(condition: exp.Expr, window: str) -> exp.Expr:
    counted = exp.Filter(this=exp.Count(this=exp.Star()), expression=exp.Where(this=condition))
    return exp.Window(this=counted, alias=exp.to_identifier(window), over="OVER")


def _in_time() -> exp.Order:
    return exp.Order(expressions=[column("time"), column("event_id")])


def _spans(sequence: Sequence, groups: list[tuple[int, ...]], unit: list[str]) -> exp.Select:
    """At every event, the most steps done in the window that ends with it and has an event inside the range. What is in
    the window is all up to the event but for what is too old: events of the same instant that come later are not."""
    up_to_now = exp.Window(
        this=exp.to_identifier("up_to_now"),
        partition_by=[column(name) for name in unit],
        order=_in_time(),
        spec=exp.WindowSpec(kind="ROWS", start="UNBOUNDED", start_side="PRECEDING", end="CURRENT ROW"),
    )
    too_old = exp.Window(
        this=exp.to_identifier("too_old"),
        partition_by=[column(name) for name in unit],
        order=exp.Order(expressions=[column("instant")]),
        spec=exp.WindowSpec(
            kind="RANGE",
            start="UNBOUNDED",
            start_side="PRECEDING",
            end=number(_microseconds(sequence) + 1),
            end_side="PRECEDING",
        ),
    )

    def inside(condition: exp.Expr) -> exp.Expr:
        return exp.Sub(this=_count(condition, "up_to_now"), expression=_count(condition.copy(), "too_old"))

    entered = exp.GT(this=inside(_is_in_range(sequence)), expression=number(0))
    most = _most_steps(groups, lambda bits: inside(_matches(bits)))
    level = exp.Case(ifs=[exp.If(this=entered, true=most)], default=number(0))
    return select([exp.Star(), named(level, "level")], "matched", windows=[up_to_now, too_old])


def _whole(aggregate: exp.Expr, condition: exp.Expr, unit: list[str]) -> exp.Expr:
    """The aggregate over all rows of the unit that fulfil the condition."""
    filtered = exp.Filter(this=aggregate, expression=exp.Where(this=condition))
    return exp.Window(this=filtered, partition_by=[column(name) for name in unit])


def _furthest(unit: list[str]) -> exp.Select:
    """With every event, the first one with which the unit has done most steps: `span` is (-level, position,
    instant)."""
    place = [exp.Neg(this=column("level")), column("position"), column("instant")]
    done_any = exp.GT(this=column("level"), expression=number(0))
    span = _whole(exp.Min(this=exp.Array(expressions=place)), done_any, unit)
    return select([exp.Star(), named(span, "span")], "spans")


def _backwards(unit: list[str]) -> exp.Window:
    latest = exp.Ordered(this=column("position"), desc=True, nulls_first=True)
    return exp.Window(
        this=exp.to_identifier("later"),
        partition_by=[column(name) for name in unit],
        order=exp.Order(expressions=[latest]),
        spec=exp.WindowSpec(kind="ROWS", start="UNBOUNDED", start_side="PRECEDING", end="CURRENT ROW"),
    )


def _inside(sequence: Sequence, groups: list[tuple[int, ...]], unit: list[str]) -> exp.Select:
    """The events inside the span, each with the steps done from it to the end."""
    done = _most_steps(groups, lambda bits: _count(_matches(bits), "later"))
    reach = exp.Sub(this=_at("span", 3), expression=number(_microseconds(sequence)))
    inside = [
        exp.LTE(this=column("position"), expression=_at("span", 2)),
        exp.GTE(this=column("instant"), expression=reach),
    ]
    return select([exp.Star(), named(done, "done")], "furthest", where=inside, windows=[_backwards(unit)])


def _beginnings(sequence: Sequence, unit: list[str]) -> exp.Select:
    """With every event, the last one inside the range with which the span still has all its steps: `first` is
    (position, instant, event_id, steps)."""
    event = [column("position"), column("instant"), column("event_id"), cast(column("steps"), "bigint")]
    is_whole = exp.GTE(this=column("done"), expression=exp.Neg(this=_at("span", 1)))
    first = _whole(exp.Max(this=exp.Array(expressions=event)), all_of([is_whole, _is_in_range(sequence)]), unit)
    names = [*unit, "position", "instant", "event_id", "time", "steps", "span"]
    return select([*(column(name) for name in names), named(first, "first")], "inside")


def _taken(groups: list[tuple[int, ...]], unit: list[str]) -> exp.Select:
    """The events from the first one on, each with the steps done by the first and from this one to the end."""
    is_later = exp.GT(this=column("position"), expression=_at("first", 1))

    def events_of(bits: int) -> exp.Expr:
        first = exp.paren(exp.BitwiseAnd(this=_at("first", 4), expression=number(bits)))
        is_of_first = exp.If(this=exp.NEQ(this=first, expression=number(0)), true=number(1))
        later = _count(all_of([is_later.copy(), _matches(bits)]), "later")
        return exp.Add(this=later, expression=exp.Case(ifs=[is_of_first], default=number(0)))

    names = [*unit, "position", "instant", "event_id", "span", "first"]
    return select(
        [*(column(name) for name in names), named(_most_steps(groups, events_of), "done")],
        "beginnings",
        where=[exp.GTE(this=column("position"), expression=_at("first", 1))],
        windows=[_backwards(unit)],
    )


def _chains(sequence: Sequence, unit: list[str]) -> exp.Query:
    """The chain's k-th event is the last one that leaves all steps from the k-th on to be done after the first."""
    steps = len(sequence.steps)
    later = []
    for index in range(2, steps + 1):
        wanted = exp.Sub(this=number(2 - index), expression=_at("span", 1))  # level - index + 2
        takes = [
            exp.GT(this=column("position"), expression=_at("first", 1)),
            exp.LTE(this=_at("span", 1), expression=number(-index)),
            exp.GTE(this=column("done"), expression=wanted),
        ]
        event = exp.Array(expressions=[column(name) for name in ("position", "instant", "event_id")])
        picked = exp.Filter(this=exp.Max(this=event), expression=exp.Where(this=all_of(takes)))
        later.append(named(picked, f"event_{index}"))
    keys = [column(name) for name in (*unit, "span", "first")]
    spans = select([*keys, *later], "taken", group_by=[key.copy() for key in keys])
    columns: list[exp.Expr] = [column("user_id")]
    for index in range(1, steps + 1):
        event_name = "first" if index == 1 else f"event_{index}"
        columns.append(named(instant_of(_at(event_name, 2)), f"time_{index}"))
        columns.append(named(_at(event_name, 3), f"event_id_{index}"))
    columns.append(named(exp.Neg(this=_at("span", 1)), "reached"))
    if not sequence.held:
        return select(columns, subquery(spans, "spans"))
    # One chain per user and session, whichever values it holds: the one with most steps, then the one that ends first.
    whole = [column(name) for name in unit if not name.startswith("held_")]
    return select(
        columns, subquery(spans, "spans"), distinct_on=whole, order_by=[*(key.copy() for key in whole), column("span")]
    )


def _is_in_range(sequence: Sequence) -> exp.Expr:
    return exp.LT(this=column("time"), expression=timestamp(sequence.entry.end))


def _microseconds(sequence: Sequence) -> int:
    return sequence.window // timedelta(microseconds=1)


def _at(array: str, place: int) -> exp.Expr:
    return exp.Bracket(this=column(array), expressions=[number(place)], offset=1)
