"""Lower a sequence with any of the rules a chain can have: windows between steps, optional steps, events that must not
happen in between, values held, sessions, conversions.

Like `merge` it makes one pass per step over the merged timeline, but carries whole chains: arrays of three numbers per
step, (position, microseconds, event_id), last step first, zeros for a skipped one. Positions number a user's events, so
the greatest array among the rows before is the chain that ends latest. That one is enough: of two chains of the same
steps, the one that ends later began no earlier, whatever the windows, skips and exclusions between the steps are.
"""

from __future__ import annotations

from datetime import timedelta

from sqlglot import exp

from heap_compiler.sequence import Sequence
from heap_compiler.sql import (
    all_of,
    cast,
    column,
    function,
    greatest,
    instant_of,
    is_set,
    microseconds,
    named,
    number,
    select,
    subquery,
    union_all,
)
from heap_compiler.strategies.reading import step_events, unit_values

__all__ = ["timeline_chains"]

_PER_STEP = 3
_POSITION, _INSTANT, _EVENT_ID = 1, 2, 3


def timeline_chains(sequence: Sequence) -> list[tuple[str, exp.Query]]:
    """The named queries that end in `chains`; see `strategies.user_chains`."""
    ctes = [("matched", _matched(sequence)), ("numbered", _numbered()), ("guarded", _guarded(sequence))]
    for index in range(2, len(sequence.steps) + 1):
        ctes.append((f"reached_{index}", _reached(sequence, index, ctes[-1][0])))
    ctes.append(("picked", _picked(sequence, ctes[-1][0])))
    ctes.append(("chains", _chains(sequence)))
    return ctes


def _matched(sequence: Sequence) -> exp.Query:
    """The events of all steps, labelled with their numbers, and those of the exclusions with -1, -2, ..."""
    shared = list(unit_values(sequence))
    parts: list[exp.Select] = []
    for index, step in enumerate(sequence.steps, start=1):
        columns = {"step": number(index), **unit_values(sequence)}
        parts += step_events(sequence, step, columns, alias=f"{sequence.alias}_{index}", present=shared)
    nulls = {name: cast(exp.Null(), "bigint" if name == "session_id" else "text") for name in shared}
    for index, exclusion in enumerate(sequence.exclusions, start=1):
        columns = {"step": number(-index), **nulls}
        parts += step_events(sequence, exclusion.event, columns, alias=f"{sequence.alias}_without_{index}")
    return union_all(parts)


def _numbered() -> exp.Select:
    """An event's place among the user's; an event that stands there twice has one place."""
    place = exp.Window(this=function("rank"), partition_by=[column("user_id")], order=_in_time())
    instant = microseconds(column("time"))
    return select([exp.Star(), named(place, "position"), named(instant, "instant")], "matched")


def _guarded(sequence: Sequence) -> exp.Select:
    """With every event, the place of the last excluded one before it; and the chains that are a first step."""
    barriers = [
        named(
            exp.Coalesce(this=_earlier(exp.Max(this=column("position")), ["user_id"], -index), expressions=[number(0)]),
            f"barrier_{index}",
        )
        for index in range(1, len(sequence.exclusions) + 1)
    ]
    begins = exp.If(this=_is_step(1), true=_event())
    return select([exp.Star(), *barriers, named(exp.Case(ifs=[begins]), "chain_1")], "numbered")


def _reached(sequence: Sequence, index: int, source: str) -> exp.Select:
    """The chain that ends at each event of step `index`: of those that the latest chains of the steps before can be
    continued to, the one that began latest, and among equals the one that skips least."""
    before, unit = sequence.before(index), ["user_id", *unit_values(sequence)]
    latest = [named(_earlier(exp.Max(this=column(f"chain_{step}")), unit), f"latest_{index}_{step}") for step in before]
    with_latest = select([exp.Star(), *latest], source)
    candidates: list[exp.Expr] = []
    for step in before:
        chain = column(f"latest_{index}_{step}")
        extended = _concatenated(_event(), _zeros(index - 1 - step), chain)
        if len(before) > 1:
            rank = exp.Array(expressions=[_element(chain, step, 1, _POSITION), number(step)])
            extended = _concatenated(rank, extended)
        valid = all_of(_continues(sequence, step, index))
        candidates.append(exp.Case(ifs=[exp.If(this=valid, true=extended)]))
    best = candidates[0]
    if len(before) > 1:
        best = exp.Bracket(
            this=exp.paren(greatest(*candidates)), expressions=[exp.Slice(this=number(3))], offset=0, safe=False
        )
    return select([exp.Star(), named(best, f"chain_{index}")], subquery(with_latest, "following"))


def _continues(sequence: Sequence, before: int, index: int) -> list[exp.Expr]:
    """The latest chain of step `before` may go on with this event of step `index`."""
    chain = column(f"latest_{index}_{before}")
    conditions = [
        _is_step(index),
        is_set(chain),
        _at_most(sequence.window, _element(chain, before, 1, _INSTANT)),
    ]
    within = sequence.steps[index - 1].within
    if within is not None:
        conditions.append(_at_most(within, _element(chain, before, before, _INSTANT)))
    for number_, exclusion in enumerate(sequence.exclusions, start=1):
        if exclusion.first <= before < exclusion.last:
            barrier = column(f"barrier_{number_}")
            conditions.append(exp.LTE(this=barrier, expression=_element(chain, before, before, _POSITION)))
    return conditions


def _picked(sequence: Sequence, source: str) -> exp.Query:
    """`picked` arrays whose least is the chain that counts: minus the step it ends with, then the chain, padded to all
    steps. In conversions every chain that does not overlap one before it, step by step."""
    steps = len(sequence.steps)
    padded = {
        index: _concatenated(exp.Array(expressions=[number(-index)]), _zeros(steps - index), column(f"chain_{index}"))
        for index in range(1, steps + 1)
    }
    ends = exp.Case(
        ifs=[
            exp.If(this=all_of([_is_step(index), is_set(column(f"chain_{index}"))]), true=chain)
            for index, chain in padded.items()
        ],
    )
    unit = ["user_id", *(["session_id"] if sequence.unit == "sessions" else [])]
    ended = select([*(column(name) for name in unit), named(ends, "picked"), column("step")], source)
    if sequence.unit != "conversions":
        return select(
            [*(column(name) for name in unit), named(exp.Min(this=column("picked")), "picked")],
            subquery(ended, "ended"),
            group_by=[column(name) for name in unit],
            having=is_set(exp.Min(this=column("picked"))),
        )
    return _apart(steps, ended)


def _apart(steps: int, ended: exp.Select) -> exp.Select:
    """Per user and step, the chains taken greedily: the one that ends first, then the next that begins after it. A
    chain's array begins with minus its step, then come `steps` triples, the last step's first."""
    picked = column("picked")
    end = exp.Coalesce(
        this=exp.Nullif(this=_at(picked, 2), expression=number(0)),
        expressions=[
            exp.Nullif(this=_at(picked, 2 + _PER_STEP * skipped), expression=number(0)) for skipped in range(1, steps)
        ],
    )
    spans = select(
        [
            column("user_id"),
            picked.copy(),
            column("step"),
            named(_at(picked, 2 + _PER_STEP * (steps - 1)), "began"),
            named(end, "ended"),
        ],
        subquery(ended, "ended"),
        where=[is_set(picked.copy())],
        distinct=True,  # an event that matches several alternatives of a step stands there several times
    )
    last = exp.Window(
        this=exp.Anonymous(this="heap._last_taken", expressions=[column("began"), column("ended")]),
        partition_by=[column("user_id"), column("step")],
        order=exp.Order(expressions=[column("ended")]),
    )
    considered = select([column("user_id"), picked.copy(), column("ended"), named(last, "last_taken")],
                        subquery(spans, "spans"))  # fmt: skip
    is_taken = exp.EQ(this=column("last_taken"), expression=column("ended"))
    return select([column("user_id"), picked.copy()], subquery(considered, "considered"), where=[is_taken])


def _chains(sequence: Sequence) -> exp.Select:
    steps = len(sequence.steps)
    columns: list[exp.Expr] = [column("user_id")]
    for index in range(1, steps + 1):
        place = 1 + _PER_STEP * (steps - index)
        taken = exp.GT(this=_at(column("picked"), place + _POSITION), expression=number(0))
        for name, part in (("time", _INSTANT), ("event_id", _EVENT_ID)):
            value = _at(column("picked"), place + part)
            shown = instant_of(value) if name == "time" else value
            columns.append(named(exp.Case(ifs=[exp.If(this=taken.copy(), true=shown)]), f"{name}_{index}"))
    columns.append(named(exp.Neg(this=_at(column("picked"), 1)), "reached"))
    return select(columns, "picked")


def _event() -> exp.Expr:
    """The chain that is this event alone."""
    parts = [column("position"), column("instant"), column("event_id")]
    return exp.Array(expressions=parts)


def _zeros(steps: int) -> exp.Expr | None:
    if not steps:
        return None
    return cast(exp.Literal.string("{" + ",".join(["0"] * _PER_STEP * steps) + "}"), "bigint[]")


def _concatenated(*arrays: exp.Expr | None) -> exp.Expr:
    first, *others = [array for array in arrays if array is not None]
    joined = first
    for other in others:
        joined = function("array_cat", joined, other)
    return joined


def _element(chain: exp.Expr, steps: int, step: int, part: int) -> exp.Expr:
    """A number of one step of a chain of so many steps."""
    return _at(chain, _PER_STEP * (steps - step) + part)


def _at(array: exp.Expr, place: int) -> exp.Expr:
    return exp.Bracket(this=array.copy(), expressions=[number(place)], offset=1)


def _at_most(length: timedelta, since: exp.Expr) -> exp.Expr:
    elapsed = exp.Sub(this=column("instant"), expression=since)
    return exp.LTE(this=elapsed, expression=number(length // timedelta(microseconds=1)))


def _is_step(index: int) -> exp.Expr:
    return exp.EQ(this=column("step"), expression=number(index))


def _in_time() -> exp.Order:
    return exp.Order(expressions=[column("time"), column("event_id")])


def _earlier(aggregate: exp.Expr, unit: list[str], step: int | None = None) -> exp.Expr:
    """The aggregate over the rows of the same unit that are earlier events, of one step if it is given."""
    if step is not None:
        aggregate = exp.Filter(this=aggregate, expression=exp.Where(this=_is_step(step)))
    return exp.Window(
        this=aggregate,
        partition_by=[column(name) for name in unit],
        order=_in_time(),
        spec=exp.WindowSpec(
            kind="GROUPS", start="UNBOUNDED", start_side="PRECEDING", end=number(1), end_side="PRECEDING"
        ),
    )
