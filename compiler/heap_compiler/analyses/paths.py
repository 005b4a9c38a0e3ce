"""`paths of pageview by path from '/' for 5 steps`: what users do next, or did before.

A user's nodes follow each other in one path until a gap; of a path the part from `from`, up to `to`, is counted step by
step. Where a path ends, or begins, is a row of its own, so that what goes into a node also comes out of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from typing import cast as typing_cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import of_users
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.bound import BoundEvent, Choice
from heap_compiler.durations import (
    collected,
    duration_quantiles,
    each_of,
    interval,
    joined_durations,
    quantile,
    seconds,
)
from heap_compiler.errors import HeapError, nearest
from heap_compiler.passes.choose_strategy import choose_counting
from heap_compiler.passes.disjoint_steps import disjoint
from heap_compiler.predicates import property_text
from heap_compiler.ranges import TimeRange, window
from heap_compiler.scan import EVENT_ORDER, distinct_events, scans
from heap_compiler.sequence import counted
from heap_compiler.sql import (
    FALSE,
    any_of,
    cast,
    column,
    elapsed,
    function,
    is_set,
    named,
    number,
    select,
    subquery,
    text,
    union_all,
    with_ctes,
)
from heap_compiler.strategies.kernels import SLICE, Reads, kernel_column, kernel_query, microseconds

__all__ = ["ANALYSIS", "PathsPlan"]

_DEFAULT_STEPS = 5
_MAX_STEPS = 50
_DEFAULT_GAP = timedelta(minutes=30)

_ROW = (
    ResultColumn("step", "int"),
    ResultColumn("source", "text"),
    ResultColumn("target", "text"),
    ResultColumn("users", "bigint"),
    ResultColumn("median_time", "interval"),
    ResultColumn("paths", "bigint"),
)


@dataclass(frozen=True, slots=True)
class PathsPlan:
    """Bound paths. Nodes are the values of `node` over the events, or without it the events' own names; `top` keeps
    so many nodes at each place of a path."""

    schema: str
    events: tuple[BoundEvent, ...]
    node: exp.Expr | None
    read: TimeRange
    gap: timedelta
    start: str | None
    end: str | None
    steps: int
    top: int | None
    users: exp.Query | None
    choice: Choice

    @property
    def backward(self) -> bool:
        """Whether steps are counted back from the end."""
        return self.end is not None and self.start is None


def bind_paths(statement: syntax.AnalysisStatement, binder: Binder) -> PathsPlan:
    """Raises HeapError: an end that is no node, fewer than two events, one name twice, or more than fifty steps."""
    nodes: frozenset[str] | None = None
    value: exp.Expr | None = None
    if isinstance(statement.head[0], syntax.Step):
        events = _named_events(typing_cast("tuple[syntax.Step, ...]", statement.head), binder)
        nodes = frozenset(event.name for event in events)
    else:
        event, of = typing_cast("tuple[syntax.Event, syntax.Property]", statement.head)
        if of.of_user:
            raise HeapError("a property of the user leads nowhere", of.span, "paths go by a property of the event")
        events, value = (binder.event(event),), property_text(of, of_user=False)
    events = tuple(counted(event, binder.catalog) for event in events)
    steps, within, top = binder.clause(syntax.Steps), binder.clause(syntax.Within), binder.clause(syntax.Top)
    if steps is not None and steps.count > _MAX_STEPS:
        raise HeapError(f"paths are followed for {_MAX_STEPS} steps at most", steps.span)
    return PathsPlan(
        schema=binder.catalog.schema,
        events=events,
        node=value,
        read=binder.time_range,
        gap=_DEFAULT_GAP if within is None else window(within.duration),
        start=_node(binder.clause(syntax.StartsFrom), nodes),
        end=_node(binder.clause(syntax.EndsAt), nodes),
        steps=_DEFAULT_STEPS if steps is None else steps.count,
        top=None if top is None else top.count,
        users=binder.users,
        choice=choose_counting(events, binder.catalog, known=top is None),
    )


def _named_events(written: tuple[syntax.Step, ...], binder: Binder) -> tuple[BoundEvent, ...]:
    if len(written) < 2:
        raise HeapError("paths lead across two events or more", written[0].span, 'paths across "A", "B"')
    events: list[BoundEvent] = []
    for part in written:
        event = binder.event(part.event, part.label)
        if event.name in {other.name for other in events}:
            raise HeapError(f"a second event called {event.name}", part.span, "name it: ... as other_name")
        events.append(event)
    return tuple(events)


def _node(clause: syntax.NodeName | None, nodes: frozenset[str] | None) -> str | None:
    """The node that a path is to start from or end at: one of the named events, or any value."""
    if clause is None:
        return None
    if nodes is None and not clause.is_value:
        raise HeapError(f"{clause.name} is a name, not a value", clause.span, f"write it as '{clause.name}'")
    if nodes is not None and clause.name not in nodes:
        close = nearest(clause.name, nodes)
        hint = f"did you mean {close}?" if close is not None else f"one of {', '.join(sorted(nodes))}"
        raise HeapError(f"the paths do not lead across {clause.name}", clause.span, hint)
    return clause.name


def lower_paths(plan: PathsPlan) -> exp.Query:
    """One row per step, source and target."""
    ctes: list[tuple[str, exp.Query]] = []
    if plan.top is not None:
        ctes += [("places", _places(plan)), ("top_nodes", _top_nodes(plan.top))]
    if plan.choice.vector:
        ctes.append(("kernel", _kernel(plan)))
    ctes.append(("transitions", _transitions_by_kernels() if plan.choice.vector else _transitions(plan)))
    source, target = _shown(plan, column("source"), column("target"))
    half = quantile("0.5", column("seconds"))
    median: exp.Expr = exp.Subquery(this=select([half], each_of(column("seconds", "transitions"), "seconds")))
    if plan.choice.vector:
        median = duration_quantiles(column("seconds", "transitions"), "0.5")
    step = exp.Ordered(this=column("step"), desc=plan.backward)
    most = [exp.Ordered(this=column(name), desc=True, nulls_first=False) for name in ("users", "paths")]
    query = select(
        [
            column("step"),
            named(source, "source"),
            named(target, "target"),
            column("users"),
            named(interval(median), "median_time"),
            column("paths"),
        ],
        "transitions",
        order_by=[step, *most, column("source"), column("target")],
    )
    return with_ctes(query, ctes)


def _kernel(plan: PathsPlan) -> exp.Select:
    """Per shard, step, source and target the columns of heap._kernel_totals."""
    reads = Reads(plan.schema, plan.choice.shards)
    values, extra = ({}, []) if plan.node is None else ({"node": plan.node}, [is_set(plan.node.copy())])
    specification = {
        "schema": plan.schema,
        "events": [
            reads.selection(event, plan.read, alias, values=values, extra=extra)
            for alias, event in zip(paths_sources(plan), plan.events, strict=True)
        ],
        "nodes": [event.name for event in plan.events] if plan.node is None else None,
        "path": {"gap": microseconds(plan.gap), "start": plan.start, "end": plan.end, "steps": plan.steps},
        **reads.population((), plan.users),
        "slice": SLICE,
    }
    return kernel_query("heap._paths_kernel", specification, reads)


def _transitions_by_kernels() -> exp.Select:
    """What `_transitions` gives, from kernels, with microseconds as bytes instead of an array of seconds."""
    keys = [
        named(kernel_column("bucket"), "step"),
        named(kernel_column("group_values", 1), "source"),
        named(kernel_column("group_values", 2), "target"),
    ]
    counts = [
        named(cast(exp.Sum(this=kernel_column("counts", index)), "bigint"), name)
        for index, name in enumerate(("users", "paths"), start=1)
    ]
    durations = named(joined_durations(kernel_column("durations")), "seconds")
    return select([*keys, *counts, durations], "kernel", group_by=[column(key.alias_or_name) for key in keys])


def _shown(plan: PathsPlan, source: exp.Expr, target: exp.Expr) -> tuple[exp.Expr, exp.Expr]:
    """The nodes as they are shown: after `top`, a null that is no end is one of the others."""
    if plan.top is None:
        return source, target
    near, far = (target, source) if plan.backward else (source, target)
    known = exp.Coalesce(this=near, expressions=[text("other")])
    further = exp.Coalesce(this=far, expressions=[text("other")])
    beyond = exp.Case(ifs=[exp.If(this=exp.Not(this=column("is_end")), true=further)])
    return (beyond, known) if plan.backward else (known, beyond)


def _transitions(plan: PathsPlan) -> exp.Select:
    """Per step, source and target: distinct users, paths, and the seconds in between."""
    keys = ["step", "source", "target", *(["is_end"] if plan.top is not None else [])]
    each_user = exp.Window(this=exp.RowNumber(), partition_by=[column(name) for name in ("user_id", *keys)])
    moves = _moves(plan) if plan.top is None else _folded(_moves(plan), plan)
    of_users_once = select(
        [*(column(name) for name in keys), column("seconds"), named(each_user, "nth_of_user")],
        subquery(moves, "moves"),
    )
    is_first = exp.Where(this=exp.EQ(this=column("nth_of_user"), expression=number(1)))
    return select(
        [
            *(column(name) for name in keys),
            named(exp.Filter(this=exp.Count(this=exp.Star()), expression=is_first), "users"),
            named(exp.Count(this=exp.Star()), "paths"),
            named(collected(column("seconds"), is_set(column("seconds"))), "seconds"),
        ],
        subquery(of_users_once, "moves"),
        group_by=[column(name) for name in keys],
    )


def _folded(moves: exp.Query, plan: PathsPlan) -> exp.Select:
    """The steps with the nodes beyond the top as null. A step has the number of its source's place, or of its target's
    when steps are counted back."""
    shown: list[exp.Expr] = [column("user_id"), column("step"), column("seconds")]
    for name, further in (("source", -1 if plan.backward else 0), ("target", 0 if plan.backward else 1)):
        place = exp.Add(this=column("step"), expression=number(further)) if further else column("step")
        known = exp.In(
            this=exp.Tuple(expressions=[place, column(name)]),
            query=exp.Subquery(this=select([column("place"), column("node")], "top_nodes")),
        )
        shown.append(named(exp.Case(ifs=[exp.If(this=known, true=column(name))]), name))
    is_end = exp.Is(this=column("source" if plan.backward else "target"), expression=exp.Null())
    return select([*shown, named(is_end, "is_end")], subquery(moves, "moves"))


def _places(plan: PathsPlan) -> exp.Select:
    """How many paths have each node at each place."""
    rows = select(
        [named(_number(plan), "place"), named(_at("nodes", column("at")), "node")],
        subquery(_each_place(plan, plan.steps, column("last")), "cut"),
    )
    keys = ["place", "node"]
    return select(
        [*(column(key) for key in keys), named(exp.Count(this=exp.Star()), "paths")],
        subquery(rows, "places"),
        group_by=[column(key) for key in keys],
    )


def _top_nodes(top: int) -> exp.Select:
    """The nodes that most paths have, at each place."""
    most_paths = exp.Ordered(this=column("paths"), desc=True, nulls_first=False)
    nodes = exp.paren(exp.ArrayAgg(this=exp.Order(this=column("node"), expressions=[most_paths, column("node")])))
    kept = exp.Bracket(this=nodes, expressions=[exp.Slice(this=number(1), expression=number(top))], offset=1)
    return select([column("place"), named(function("unnest", kept), "node")], "places", group_by=[column("place")])


def _moves(plan: PathsPlan) -> exp.Select:
    """The steps of every path. Beyond the ends of an array is null: the path ends, or begins, there."""
    shift = -1 if plan.backward else 0
    source, target = (
        exp.Add(this=column("at"), expression=number(by)) if by else column("at") for by in (shift, shift + 1)
    )
    last: exp.Expr = column("last")
    if plan.start is not None and plan.end is not None:  # nothing leaves the end
        last = exp.Sub(this=last, expression=number(1))
    return select(
        [
            column("user_id"),
            named(_number(plan), "step"),
            named(_at("nodes", source), "source"),
            named(_at("nodes", target), "target"),
            named(seconds(_at("times", source), _at("times", target)), "seconds"),
        ],
        subquery(_each_place(plan, plan.steps - 1, last), "cut"),
    )


def _each_place(plan: PathsPlan, further: int, last: exp.Expr) -> exp.Select:
    """The paths, once for every place of them that is counted: the one where counting begins, and so many further."""
    first: exp.Expr = column("first")
    if plan.backward:
        first = function("greatest", first, exp.Sub(this=last, expression=number(further)))
    else:
        last = function("least", last, exp.Add(this=first, expression=number(further)))
    places = named(function("generate_series", first, last), "at")
    return select([exp.Star(), places], subquery(_cut(plan), "cut"))


def _number(plan: PathsPlan) -> exp.Expr:
    """Places count from 1 onwards, or from -1 back."""
    if plan.backward:
        return exp.Sub(this=exp.Sub(this=column("at"), expression=column("last")), expression=number(1))
    return exp.Add(this=exp.Sub(this=column("at"), expression=column("first")), expression=number(1))


def _at(array: str, place: exp.Expr) -> exp.Expr:
    return exp.Bracket(this=column(array), expressions=[place.copy()], offset=1)


def _cut(plan: PathsPlan) -> exp.Select:
    """The paths that have both ends, where a place is given for each: the first `from`, the first `to` after it."""
    kept = [column(name) for name in ("user_id", "nodes", "times")]
    first: exp.Expr = number(1)
    if plan.start is not None:
        first = function("array_position", column("nodes"), text(plan.start))
    started = select([*kept, named(first, "first")], subquery(_collected(plan), "collected"))
    length = function("cardinality", column("nodes"))
    last = length
    if plan.end is not None:
        after = []
        if plan.start is not None:
            after.append(exp.Add(this=exp.Coalesce(this=column("first"), expressions=[length]), expression=number(1)))
        last = function("array_position", column("nodes"), text(plan.end), *after)
    ended = select(
        [*(part.copy() for part in kept), column("first"), named(last, "last")], subquery(started, "started")
    )
    return select([exp.Star()], subquery(ended, "ended"), where=[is_set(column("first")), is_set(column("last"))])


def _collected(plan: PathsPlan) -> exp.Select:
    """Each path with its nodes and their times as arrays. Of a node that repeats itself the first event stands."""
    gap = exp.Add(this=_before("time"), expression=elapsed(plan.gap))
    begins = exp.Not(
        this=exp.paren(exp.Is(this=exp.paren(exp.GT(this=column("time"), expression=gap)), expression=FALSE))
    )
    repeats = exp.EQ(this=column("node"), expression=_before("node"))
    visits = select(
        [*(column(name) for name in (*EVENT_ORDER, "node")), named(begins, "begins"), named(repeats, "repeats")],
        subquery(_visits(plan), "visits"),
        windows=[_user_order()],
    )
    begun = exp.Filter(this=exp.Count(this=exp.Star()), expression=exp.Where(this=column("begins")))
    numbered = select(
        [*(column(name) for name in (*EVENT_ORDER, "node")), named(_over(begun), "path")],
        subquery(visits, "visits"),
        where=[any_of([column("begins"), exp.Not(this=column("repeats"))])],
        windows=[_user_order()],
    )
    return select(
        [column("user_id"), named(_array("node"), "nodes"), named(_array("time"), "times")],
        subquery(numbered, "numbered"),
        group_by=[column("user_id"), column("path")],
    )


def _array(name: str) -> exp.Expr:
    return exp.ArrayAgg(this=exp.Order(this=column(name), expressions=[column("time"), column("event_id")]))


def _before(name: str) -> exp.Expr:
    return _over(function("lag", column(name)))


def _over(value: exp.Expr) -> exp.Expr:
    return exp.Window(this=value, alias=exp.to_identifier("in_order"), over="OVER")


def _user_order() -> exp.Window:
    return exp.Window(
        this=exp.to_identifier("in_order"),
        partition_by=[column("user_id")],
        order=exp.Order(expressions=[column("time"), column("event_id")]),
    )


def _visits(plan: PathsPlan) -> exp.Query:
    """The events that are nodes, each once: of several names it has the one that is listed first."""
    columns: dict[str, exp.Expr] = {name: column(name) for name in EVENT_ORDER}
    extra = of_users(plan.users)
    if plan.node is not None:
        columns["node"] = plan.node
        extra.append(is_set(plan.node.copy()))
        return distinct_events(plan.schema, plan.events[0], plan.read, columns, alias="path_events", extra=extra)
    alternatives = [alternative for event in plan.events for alternative in event.alternatives]
    apart = all(disjoint(one, other) for one, other in combinations(alternatives, 2))
    parts: list[exp.Select] = []
    for index, event in enumerate(plan.events, start=1):
        columns["node"] = cast(text(event.name), "text")
        if not apart:
            columns["listed"] = number(index)
        alias = f"node_{index}"
        parts += scans(plan.schema, event, plan.read, columns, alias=alias, extra=extra, ordered=True)
    every = union_all(parts)
    if apart:
        return every
    return select(
        [column(name) for name in (*EVENT_ORDER, "node")],
        subquery(every, "named_events"),
        distinct_on=[column(name) for name in EVENT_ORDER],
        order_by=[column(name) for name in (*EVENT_ORDER, "listed")],
    )


def paths_sources(plan: PathsPlan) -> dict[str, str]:
    """The names of the scans: one of all events, or one for each."""
    if plan.node is not None:
        return {"path_events": plan.events[0].name}
    return {f"node_{index}": event.name for index, event in enumerate(plan.events, start=1)}


ANALYSIS = Analysis(
    keyword="paths",
    clauses=(syntax.StartsFrom, syntax.EndsAt, syntax.Steps, syntax.Within, syntax.Top),
    row=_ROW,
    bind=bind_paths,
    lower=lower_paths,
    sources=paths_sources,
    strategy=lambda plan: plan.choice.strategy,
)
