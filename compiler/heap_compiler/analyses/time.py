"""`time from "Signed up" to "Purchase" within 30 days`: how long users take from one event to another.

The users' chains are those of a funnel of two steps. Quantiles need every duration, one array per shard and group; the
histogram is counted from the same arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import cast as typing_cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import of_users
from heap_compiler.analyses.funnel import bind_sequence
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.bins import MAX_BINS, edges
from heap_compiler.bound import GroupKey
from heap_compiler.chains import grouped_chains
from heap_compiler.durations import (
    average_duration,
    collected,
    duration_quantiles,
    each_of,
    interval,
    joined_durations,
    quantiles,
    seconds,
)
from heap_compiler.errors import HeapError
from heap_compiler.groups import OTHER, fold_totals, group_columns, group_key, group_values
from heap_compiler.ranges import window
from heap_compiler.sequence import Sequence
from heap_compiler.sql import (
    cast,
    column,
    function,
    is_set,
    join,
    named,
    number,
    select,
    share,
    table_alias,
    with_ctes,
)
from heap_compiler.strategies import kernel_totals
from heap_compiler.strategies.kernels import kernel_column

__all__ = ["ANALYSIS", "TimePlan"]

_QUANTILES = {"median_time": "0.5", "p75_time": "0.75", "p90_time": "0.9", "p95_time": "0.95", "p99_time": "0.99"}

_ROW = (
    ResultColumn("group_key", "text"),
    ResultColumn("low", "interval"),
    ResultColumn("high", "interval"),
    ResultColumn("users", "bigint"),
    ResultColumn("share", "numeric"),
    ResultColumn("converted", "bigint"),
    ResultColumn("average_time", "interval"),
    *(ResultColumn(name, "interval") for name in _QUANTILES),
)

_MINUTES = [timedelta(minutes=minutes) for minutes in (1, 5, 15, 60, 240, 720)]
_DAYS = [timedelta(days=days) for days in (1, 2, 3, 7, 14, 30, 90, 365)]
_DEFAULT_EDGES = (*_MINUTES, *_DAYS)


@dataclass(frozen=True, slots=True)
class TimePlan:
    """A bound time analysis. `bounds` are where its bins begin and end, 0 and the window among them."""

    sequence: Sequence
    bounds: tuple[timedelta, ...]
    users: exp.Query | None
    group_keys: tuple[GroupKey, ...]
    top: int | None


def bind_time(statement: syntax.AnalysisStatement, binder: Binder) -> TimePlan:
    """Raises HeapError: bins that are no durations or reach beyond the window, too many of them, `top` without groups,
    or a part that cannot be bound."""
    events = typing_cast("tuple[syntax.Event, syntax.Event]", statement.head)
    steps = tuple(syntax.Step(span=event.span, event=event, label=None) for event in events)
    sequence = bind_sequence(statement.replace(head=steps), binder)
    return TimePlan(
        sequence=sequence,
        bounds=(timedelta(), *_edges(binder.clause(syntax.Bins), sequence.window), sequence.window),
        users=binder.users,
        group_keys=binder.group_keys,
        top=binder.top,
    )


def _edges(bins: syntax.Bins | None, whole: timedelta) -> list[timedelta]:
    """The edges between the bins, all inside the window."""
    if bins is None:
        return [edge for edge in _DEFAULT_EDGES if edge < whole]
    if bins.width is None:
        return [edge for edge in edges(bins, lambda written: _edge(written, whole)) if edge < whole]
    width = _duration(bins.width)
    inner = -(-whole // width) - 1
    if inner >= MAX_BINS:
        raise HeapError(f"more than {MAX_BINS:,} bins", bins.span, "make them longer, or the window shorter")
    return [width * index for index in range(1, inner + 1)]


def _edge(written: syntax.Value | syntax.Duration, whole: timedelta) -> timedelta:
    edge = _duration(written)
    if edge > whole:
        raise HeapError(
            "nobody takes longer than the window", written.span, "add a longer one, such as: within 90 days"
        )
    return edge


def _duration(written: syntax.Value | syntax.Duration) -> timedelta:
    if isinstance(written, syntax.Value):
        raise HeapError("bins of a time are durations", written.span, "such as: in bins of 1 day")
    return window(written)


def lower_time(plan: TimePlan) -> exp.Query:
    """One row per group and bin."""
    if plan.sequence.vector:
        ctes = _kernel_totals(plan)
    else:
        ctes, joins = grouped_chains(plan.sequence, plan.group_keys)
        ctes.append(("totals", _totals(plan, joins)))
    source, groups = "totals", column("group_values", "totals")
    if plan.top is not None:
        ctes.append(("ranked", fold_totals("converted", plan.top)))
        source, groups = "ranked", column("shown", "ranked")
    if plan.sequence.vector:
        ctes += [("measured", _measured_durations(plan, source, groups)), ("counted", _counted_bins())]
    else:
        ctes += [("measured", _measured(source, groups)), ("counted", _counted(plan, source, groups))]
    same = [exp.EQ(this=column("bin", "counted"), expression=column("bin", "bins"))]
    values = column("group_values", "measured")
    order: list[exp.Expr] = []
    if plan.group_keys:
        same.append(exp.EQ(this=column("group_values", "counted"), expression=values.copy()))
        is_other = exp.EQ(this=values.copy(), expression=OTHER.copy())
        largest = exp.Ordered(this=column("converted", "measured"), desc=True, nulls_first=False)
        order = [*([is_other] if plan.top is not None else []), largest, values.copy()]
    users = exp.Coalesce(this=column("users", "counted"), expressions=[number(0)])
    converted = column("converted", "measured")
    quantile_of = [
        exp.Bracket(this=column("quantiles", "measured"), expressions=[number(index)], offset=1)
        for index in range(1, len(_QUANTILES) + 1)
    ]
    query = select(
        [
            named(group_key(plan.group_keys, values, has_other=plan.top is not None), "group_key"),
            named(interval(column("low", "bins")), "low"),
            named(interval(column("high", "bins")), "high"),
            named(cast(users, "bigint"), "users"),
            named(share(users.copy(), converted), "share"),
            converted.copy(),
            named(interval(column("average_seconds", "measured")), "average_time"),
            *(named(interval(value), name) for name, value in zip(_QUANTILES, quantile_of, strict=True)),
        ],
        "measured",
        joins=[join(_bins(plan.bounds), kind="CROSS"), join(exp.table_("counted"), same, kind="LEFT")],
        order_by=[*order, column("bin", "bins")],
    )
    return with_ctes(query, ctes, materialized={"measured"} if plan.sequence.vector else ())


def _totals(plan: TimePlan, joins: list[exp.Join]) -> exp.Select:
    """Per group: how many users converted, and the seconds each took."""
    converts = is_set(column("time_2"))
    taken = collected(seconds(column("time_1"), column("time_2")), converts)
    keys = plan.group_keys
    return select(
        [
            named(exp.Count(this=column("time_2")), "converted"),
            named(taken, "seconds"),
            named(group_values(keys), "group_values"),
        ],
        "chains",
        joins=joins,
        where=of_users(plan.users, "chains"),
        group_by=[column(name) for name in group_columns(keys)],
    )


def _kernel_totals(plan: TimePlan) -> list[tuple[str, exp.Query]]:
    """What `_totals` gives, from kernels, with microseconds as bytes instead of an array of seconds."""
    ctes = kernel_totals(plan.sequence, now=plan.sequence.entry.end, keys=plan.group_keys, users=plan.users)
    keys = plan.group_keys
    group = kernel_column("group_values") if keys else cast(exp.Null(), "text[]")
    totals = select(
        [
            named(cast(exp.Sum(this=kernel_column("users", 2)), "bigint"), "converted"),
            named(joined_durations(kernel_column("durations", 2)), "seconds"),
            named(group, "group_values"),
        ],
        "kernel",
        group_by=[column("group_values")] if keys else [],
    )
    return [*ctes, ("totals", totals)]


def _measured_durations(plan: TimePlan, source: str, groups: exp.Column) -> exp.Select:
    """What `_measured` gives, and the users per bin."""
    durations = joined_durations(column("seconds", source))
    lows = exp.Array(expressions=[number(_seconds(low)) for low in plan.bounds[:-1]])
    return select(
        [
            named(groups.copy(), "group_values"),
            named(exp.Coalesce(this=cast(exp.Sum(this=column("converted", source)), "bigint"),
                               expressions=[number(0)]), "converted"),
            named(average_duration(durations), "average_seconds"),
            named(duration_quantiles(durations.copy(), *_QUANTILES.values()), "quantiles"),
            named(function("heap._duration_counts", durations.copy(), cast(lows, "bigint[]")), "users"),
        ],
        source,
        group_by=[groups.copy()],
    )  # fmt: skip


def _measured(source: str, groups: exp.Column) -> exp.Select:
    """Per group the users who converted, and what all their durations come to."""
    second = column("second")
    return select(
        [
            named(groups.copy(), "group_values"),
            named(exp.Count(this=second), "converted"),
            named(exp.Avg(this=second.copy()), "average_seconds"),
            named(quantiles(list(_QUANTILES.values()), second.copy()), "quantiles"),
        ],
        source,
        joins=[join(each_of(column("seconds", source), "second"), [exp.true()], kind="LEFT")],
        group_by=[groups.copy()],
    )


def _counted(plan: TimePlan, source: str, groups: exp.Column) -> exp.Select:
    """Users per group and bin."""
    lows = exp.Array(expressions=[number(_seconds(low)) for low in plan.bounds[:-1]])
    bucket = named(function("width_bucket", column("second"), cast(lows, "double precision[]")), "bin")
    return select(
        [named(groups.copy(), "group_values"), bucket, named(exp.Count(this=exp.Star()), "users")],
        source,
        joins=[join(each_of(column("seconds", source), "second"), kind="CROSS")],
        group_by=[groups.copy(), column("bin")],
    )


def _counted_bins() -> exp.Select:
    """What `_counted` gives, from the counts per bin."""
    bins = exp.Unnest(
        expressions=[column("users", "measured")], alias=table_alias("bins", "users"), offset=exp.to_identifier("bin")
    )
    return select(
        [column("group_values", "measured"), column("bin", "bins"), column("users", "bins")],
        "measured",
        joins=[join(bins, kind="CROSS")],
    )


def _bins(bounds: tuple[timedelta, ...]) -> exp.Values:
    rows = [
        exp.Tuple(expressions=[number(index), number(_seconds(low)), number(_seconds(high))])
        for index, (low, high) in enumerate(pairwise(bounds), start=1)
    ]
    return exp.Values(expressions=rows, alias=table_alias("bins", "bin", "low", "high"))


def _seconds(duration: timedelta) -> int:
    return duration // timedelta(seconds=1)


def time_sources(plan: TimePlan) -> dict[str, str]:
    """The names that the two scans have in the query."""
    return {f"step_{index}": step.event.name for index, step in enumerate(plan.sequence.steps, start=1)}


ANALYSIS = Analysis(
    keyword="time",
    clauses=(syntax.Within, syntax.Bins, syntax.GroupBy, syntax.Top),
    row=_ROW,
    bind=bind_time,
    lower=lower_time,
    sources=time_sources,
    strategy=lambda plan: plan.sequence.strategy,
)
