"""`effort "Viewed pricing" -> "Purchase" within 7 days`: how many events, and how much time, users spend between steps.

The chains are those of the funnel. What lies between two events of a chain is counted by one index lookup per chain.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import of_users
from heap_compiler.analyses.funnel import FUNNEL_RULES, bind_sequence
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.bound import EVERY_EVENT, GroupKey
from heap_compiler.chains import grouped_chains
from heap_compiler.durations import (
    average_duration,
    collected,
    duration_quantiles,
    each_of,
    interval,
    joined_durations,
    quantile,
    seconds,
)
from heap_compiler.errors import HeapError
from heap_compiler.groups import group_columns, group_key, group_order, group_values
from heap_compiler.scan import scans
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
    subquery,
    table_alias,
    text,
    with_ctes,
)
from heap_compiler.strategies import kernel_totals
from heap_compiler.strategies.kernels import kernel_column

__all__ = ["ANALYSIS", "EffortPlan"]

_ROW = (
    ResultColumn("group_key", "text"),
    ResultColumn("step", "int"),
    ResultColumn("event", "text"),
    ResultColumn("users", "bigint"),
    ResultColumn("median_events", "numeric"),
    ResultColumn("average_events", "numeric"),
    ResultColumn("median_time", "interval"),
    ResultColumn("average_time", "interval"),
)


@dataclass(frozen=True, slots=True)
class EffortPlan:
    """A bound effort."""

    sequence: Sequence
    users: exp.Query | None
    group_keys: tuple[GroupKey, ...]

    @property
    def later_steps(self) -> range:
        """Numbers of the steps that have one before them."""
        return range(2, len(self.sequence.steps) + 1)


def bind_effort(statement: syntax.AnalysisStatement, binder: Binder) -> EffortPlan:
    """Raises HeapError: as a funnel; and conversions, of which a user has several."""
    counting = binder.clause(syntax.Counting)
    if counting is not None and counting.unit == "conversions":
        raise HeapError("an effort is one of users or sessions", counting.span, "leave out: counting conversions")
    return EffortPlan(bind_sequence(statement, binder), binder.users, binder.group_keys)


def lower_effort(plan: EffortPlan) -> exp.Query:
    """One row per group and step."""
    if plan.sequence.vector:
        ctes = _kernel_totals(plan)
    else:
        ctes, joins = grouped_chains(plan.sequence, plan.group_keys, event_ids=True)
        ctes += [("measured", _measured(plan, joins)), ("totals", _totals(plan))]
    steps = exp.Lateral(
        this=exp.Subquery(this=exp.Values(expressions=[_step(plan, index) for index in range(1, _count(plan) + 1)])),
        alias=table_alias(
            "steps", "step", "event", "users", "median_events", "average_events", "median_seconds", "average_seconds"
        ),
    )
    values = column("group_values", "totals")
    query = select(
        [
            named(group_key(plan.group_keys, values, has_other=False), "group_key"),
            column("step", "steps"),
            column("event", "steps"),
            named(cast(column("users", "steps"), "bigint"), "users"),
            *(_rounded(column(name, "steps")) for name in ("median_events", "average_events")),
            named(interval(column("median_seconds", "steps")), "median_time"),
            named(interval(column("average_seconds", "steps")), "average_time"),
        ],
        "totals",
        joins=[join(steps, kind="CROSS")],
        order_by=[*group_order(plan.group_keys, values, has_other=False), column("step", "steps")],
    )
    return with_ctes(query, ctes)


def _count(plan: EffortPlan) -> int:
    return len(plan.sequence.steps)


def _rounded(value: exp.Column) -> exp.Expr:
    return named(function("trim_scale", function("round", cast(value, "numeric"), number(8))), value.name)


def _measured(plan: EffortPlan, joins: list[exp.Join]) -> exp.Select:
    """Every chain with its groups, and per step the seconds and the events since the one before."""
    steps = range(1, _count(plan) + 1)
    groups = [column(name) for name in group_columns(plan.group_keys)]
    own = [column(f"{name}_{step}", "chains") for step in steps for name in ("time", "event_id")]
    chains = select(
        [column("user_id", "chains"), *own, *groups], "chains", joins=joins, where=of_users(plan.users, "chains")
    )
    between = exp.Lateral(this=exp.Subquery(this=_between(plan)), alias=table_alias("between_steps"))
    times = [
        named(seconds(_before(plan, step, "time"), _at(step, "time")), f"seconds_{step}") for step in plan.later_steps
    ]
    counts = [column(f"events_{step}", "between_steps") for step in plan.later_steps]
    reached = [named(is_set(_at(step, "time")), f"reached_{step}") for step in steps]
    return select(
        [*reached, *times, *counts, *(column(group.name, "taken") for group in groups)],
        subquery(chains, "taken"),
        joins=[join(between, kind="CROSS")],
    )


def _between(plan: EffortPlan) -> exp.Select:
    """Per step, how many of the user's events lie between it and the one before: one scan from first to last."""
    place = exp.Tuple(expressions=[column("time", "every"), column("event_id", "every")])
    counts: dict[str, exp.Expr] = {}
    for step in plan.later_steps:
        before = exp.Tuple(expressions=[_before(plan, step, "time"), _before(plan, step, "event_id")])
        after = exp.Tuple(expressions=[_at(step, "time"), _at(step, "event_id")])
        inside = exp.And(
            this=exp.GT(this=place.copy(), expression=before), expression=exp.LT(this=place.copy(), expression=after)
        )
        counted = exp.Filter(this=exp.Count(this=exp.Star()), expression=exp.Where(this=inside))
        counts[f"events_{step}"] = counted
    last = exp.Coalesce(this=_at(_count(plan), "time"), expressions=[
        _at(step, "time") for step in range(_count(plan) - 1, 0, -1)])  # fmt: skip
    same_user = exp.EQ(this=column("user_id", "every"), expression=column("user_id", "taken"))
    from_first = exp.GTE(this=column("time", "every"), expression=_at(1, "time"))
    to_last = exp.LTE(this=column("time", "every"), expression=last)
    read = plan.sequence.steps[-1].read
    assert read is not None
    near = [same_user, from_first, to_last]
    (between,) = scans(plan.sequence.schema, EVERY_EVENT, read, counts, alias="every", extra=near)
    # One group, since the first step's event is there: Citus wants some by the user beside chains in any order.
    return between.group_by(column("user_id", "every"))


def _at(step: int, name: str) -> exp.Column:
    return column(f"{name}_{step}", "taken")


def _before(plan: EffortPlan, step: int, name: str) -> exp.Expr:
    """The chain's event before that step: of the step before, or of the one before that where it was skipped."""
    before = [_at(number_, name) for number_ in plan.sequence.before(step)]
    return before[0] if len(before) == 1 else exp.Coalesce(this=before[0], expressions=before[1:])


def _totals(plan: EffortPlan) -> exp.Select:
    """Per group: how many users reached each step, and arrays of what it took them."""
    columns: list[exp.Expr] = []
    for step in range(1, _count(plan) + 1):
        reached = column(f"reached_{step}")
        users = exp.Filter(this=exp.Count(this=exp.Star()), expression=exp.Where(this=reached))
        columns.append(named(users, f"users_{step}"))
        if step > 1:
            columns += [
                named(collected(column(f"{name}_{step}"), reached.copy()), f"{name}_{step}")
                for name in ("seconds", "events")
            ]
    return select(
        [*columns, named(group_values(plan.group_keys), "group_values")],
        "measured",
        group_by=[column(name) for name in group_columns(plan.group_keys)],
    )


def _kernel_totals(plan: EffortPlan) -> list[tuple[str, exp.Query]]:
    """What `_totals` gives, from kernels, with microseconds and millionths of events as bytes instead of arrays."""
    ctes = kernel_totals(
        plan.sequence, now=plan.sequence.entry.end, keys=plan.group_keys, users=plan.users, effort=True
    )
    columns: list[exp.Expr] = []
    for step in range(1, _count(plan) + 1):
        users = exp.Coalesce(this=exp.Sum(this=kernel_column("users", step)), expressions=[number(0)])
        columns.append(named(users, f"users_{step}"))
        if step > 1:
            for name, place in (("seconds", step), ("events", _count(plan) + step)):
                columns.append(named(joined_durations(kernel_column("durations", place)), f"{name}_{step}"))
    group = kernel_column("group_values") if plan.group_keys else cast(exp.Null(), "text[]")
    group_by = [column("group_values")] if plan.group_keys else []
    return [*ctes, ("totals", select([*columns, named(group, "group_values")], "kernel", group_by=group_by))]


def _step(plan: EffortPlan, step: int) -> exp.Expr:
    """A row of values of one step, out of one row of totals."""
    name = plan.sequence.step_name(step)
    row = [number(step), text(name), column(f"users_{step}", "totals")]
    for kind in ("events", "seconds"):
        if plan.sequence.vector and step > 1:
            collected_by_kernels = column(f"{kind}_{step}", "totals")
            row += [duration_quantiles(collected_by_kernels, "0.5"), average_duration(collected_by_kernels.copy())]
            continue
        value = column("value")
        for aggregate in (quantile("0.5", value), exp.Avg(this=value.copy())):
            if step == 1:
                row.append(cast(exp.Null(), "double precision"))
                continue
            each = each_of(column(f"{kind}_{step}", "totals"), "value")
            row.append(exp.Subquery(this=select([cast(aggregate, "double precision")], each)))
    return exp.Tuple(expressions=row)


def effort_sources(plan: EffortPlan) -> dict[str, str]:
    """The names of the steps' scans, and of the one that counts."""
    return {**plan.sequence.sources, "every": "any"}


ANALYSIS = Analysis(
    keyword="effort",
    clauses=(syntax.Within, *FUNNEL_RULES, syntax.GroupBy),
    row=_ROW,
    bind=bind_effort,
    lower=lower_effort,
    sources=effort_sources,
    strategy=lambda plan: plan.sequence.strategy,
)
