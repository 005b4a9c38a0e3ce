"""`funnel A -> B -> C within 7 days`: how many users take the steps in order inside the conversion window.

A user's chain is the one that reaches furthest; among those, the one whose last event comes first, with the latest
entry it can have. Groups, and times between steps, are read off that chain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import cast as typing_cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import bucket_of, of_users
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
from heap_compiler.groups import OTHER, TOTAL, group_columns, group_key, group_values
from heap_compiler.passes import SEQUENCE_PASSES
from heap_compiler.predicates import property_text
from heap_compiler.ranges import TimeRange, bucket_starts, window
from heap_compiler.sequence import Exclusion, Sequence, SequenceStep, counted
from heap_compiler.sql import (
    all_of,
    cast,
    column,
    elapsed,
    is_set,
    join,
    named,
    number,
    numbered_times,
    select,
    share,
    subquery,
    table_alias,
    text,
    timestamp,
    union_all,
    with_ctes,
)
from heap_compiler.strategies import kernel_totals
from heap_compiler.strategies.any_order import MAX_ENTANGLED, entangled_steps
from heap_compiler.strategies.kernels import kernel_column

__all__ = ["ANALYSIS", "FUNNEL_RULES", "FunnelPlan", "bind_sequence"]

FUNNEL_RULES: tuple[type[syntax.Clause], ...] = (
    syntax.InAnyOrder,
    syntax.StrictlyInOrder,
    syntax.Without,
    syntax.Holding,
    syntax.FirstTime,
    syntax.Counting,
)
"""The clauses that say what a chain is."""

_LAST = 2**31 - 1
"""The rank of the total."""

_DEFAULT_WINDOW = timedelta(days=30)
_MAX_STEPS = 20

_ROW = (
    ResultColumn("group_key", "text"),
    ResultColumn("step", "int"),
    ResultColumn("event", "text"),
    ResultColumn("users", "bigint"),
    ResultColumn("conversion", "numeric"),
    ResultColumn("step_conversion", "numeric"),
    ResultColumn("median_time", "interval"),
    ResultColumn("average_time", "interval"),
    ResultColumn("bucket", "timestamptz"),
    ResultColumn("immature", "bigint"),
)


@dataclass(frozen=True, slots=True)
class FunnelPlan:
    """A bound funnel.

    Attributes:
        group_step: number of the step whose event the groups are read off.
        buckets: first instants of the buckets of the entries; empty without `by`, the range's own when it is compared.
        now: chains that began less than a window before may still go on.
        previous: the same funnel over the period before, when they are compared.
    """

    sequence: Sequence
    users: exp.Query | None
    group_keys: tuple[GroupKey, ...]
    group_step: int
    top: int | None
    with_total: bool
    buckets: tuple[datetime, ...]
    now: datetime
    previous: FunnelPlan | None = None

    @property
    def has_folds(self) -> bool:
        """Whether shown groups are made of several."""
        return self.top is not None or self.with_total


def bind_funnel(statement: syntax.AnalysisStatement, binder: Binder) -> FunnelPlan:
    """Raises HeapError: fewer than two steps or more than twenty, rules that exclude each other, or a part that cannot
    be bound."""
    sequence = bind_sequence(statement, binder)
    grouped, by = binder.clause(syntax.GroupBy), binder.clause(syntax.By)
    group_step = 1 if grouped is None or grouped.step is None else grouped.step
    if grouped is not None and group_step > len(sequence.steps):
        raise HeapError(f"there is no step {group_step}", grouped.span, f"the last is step {len(sequence.steps)}")
    zone, before = binder.catalog.time_zone, binder.compared_range

    def buckets(over: TimeRange) -> tuple[datetime, ...]:
        if by is not None:
            return tuple(bucket_starts(over, by.unit, zone, by.span))
        return () if before is None else (over.start,)

    plan = FunnelPlan(
        sequence=sequence,
        users=binder.users,
        group_keys=binder.group_keys,
        group_step=group_step,
        top=binder.top,
        with_total=binder.with_total,
        buckets=buckets(sequence.entry),
        now=binder.catalog.now,
    )
    if before is None:
        return plan
    earlier = bind_sequence(statement, binder, before)
    return replace(plan, previous=replace(plan, sequence=earlier, buckets=buckets(before)))


def bind_sequence(statement: syntax.AnalysisStatement, binder: Binder, over: TimeRange | None = None) -> Sequence:
    """The steps of a head `A -> B -> C` and the rules of their chain, after `SEQUENCE_PASSES`.

    Args:
        over: when users may enter; None for the statement's range.

    Raises:
        HeapError: fewer than two steps or more than twenty, rules that exclude each other, or a part that cannot be
            bound.
    """
    steps = typing_cast("tuple[syntax.Step, ...]", statement.head)
    if not 2 <= len(steps) <= _MAX_STEPS:
        raise HeapError(
            f"a {statement.keyword} has 2 to {_MAX_STEPS} steps, this one {len(steps)}",
            steps[-1].span,
            f"{statement.keyword} A -> B -> C",
        )
    within, counting, holding = (
        binder.clause(syntax.Within), binder.clause(syntax.Counting), binder.clause(syntax.Holding)
    )  # fmt: skip
    any_order = binder.clause(syntax.InAnyOrder)
    if any_order is not None:
        _refuse_rules_of_order(steps, binder)
    # All are bound before any is counted: the catalog then asks for the sizes at once.
    events = [binder.event(step.event, step.label) for step in steps]
    exclusions = _exclusions(len(steps), binder)
    sequence = Sequence(
        schema=binder.catalog.schema,
        steps=tuple(
            SequenceStep(
                counted(event, binder.catalog),
                within=None if step.within is None else window(step.within),
                optional=step.optional,
            )
            for step, event in zip(steps, events, strict=True)
        ),
        window=_DEFAULT_WINDOW if within is None else window(within.duration),
        entry=binder.time_range if over is None else over,
        alias="step" if over is None else "previous_step",
        any_order=any_order is not None,
        exclusions=tuple(
            replace(one, event=replace(one.event, event=counted(one.event.event, binder.catalog))) for one in exclusions
        ),
        held=() if holding is None else tuple(_held(of) for of in holding.properties),
        unit="users" if counting is None else counting.unit,
        first_time=binder.clause(syntax.FirstTime) is not None,
        shards=binder.catalog.shards,
        asked=binder.catalog.strategy,
    )
    for sequence_pass in SEQUENCE_PASSES:
        sequence = sequence_pass(sequence)
    if any_order is not None and max(map(len, entangled_steps(sequence.steps))) > MAX_ENTANGLED:
        raise HeapError(
            f"more than {MAX_ENTANGLED} steps in any order can match the same events",
            any_order.span,
            "use events of different types",
        )
    return sequence


def _refuse_rules_of_order(steps: tuple[syntax.Step, ...], binder: Binder) -> None:
    for kind in (syntax.StrictlyInOrder, syntax.Without, syntax.FirstTime):
        clause = binder.clause(kind)
        if clause is not None:
            raise HeapError("steps in any order cannot have this rule", clause.span, "leave out: in any order")
    counting = binder.clause(syntax.Counting)
    if counting is not None and counting.unit == "conversions":
        raise HeapError("conversions have steps in order", counting.span, "leave out: in any order")
    for step in steps:
        if step.optional or step.within is not None:
            raise HeapError("this needs steps in order", step.span, "leave out: in any order")


def _exclusions(steps: int, binder: Binder) -> tuple[Exclusion, ...]:
    found = []
    for without in binder.all_clauses(syntax.Without):
        first, last = without.first or 1, without.last or steps
        if not first < last <= steps:
            raise HeapError(
                f"there is nothing between step {first} and {last}", without.span, f"steps are 1 to {steps}, in order"
            )
        found.append(Exclusion(SequenceStep(binder.event(without.event)), first, last))
    strictly = binder.clause(syntax.StrictlyInOrder)
    if strictly is not None:
        found.append(Exclusion(SequenceStep(EVERY_EVENT), 1, steps))
    return tuple(found)


def _held(of: syntax.Property) -> exp.Expr:
    if of.of_user:
        raise HeapError("a user's property is the same along every chain", of.span, "hold a property of the events")
    return property_text(of, of_user=False)


def lower_funnel(plan: FunnelPlan) -> exp.Query:
    """One row per bucket, group and step; those of the previous period first."""
    if plan.previous is None:
        return _lower(plan)
    periods = [_lower(period, placed=True) for period in (plan.previous, plan)]
    return select(
        [column(name) for name, _ in _ROW],
        subquery(union_all([select([exp.Star()], subquery(period, "period")) for period in periods]), "periods"),
        order_by=[column("bucket"), column("rank"), column("step")],
    )


def _lower(plan: FunnelPlan, *, placed: bool = False) -> exp.Select:
    """The rows of one period, in order or, to be put in order, with what they are ordered by."""
    if plan.sequence.vector:
        ctes = _kernel_totals(plan)
    else:
        ctes, joins = grouped_chains(plan.sequence, plan.group_keys, step=plan.group_step)
        ctes.append(("totals", _totals(plan, joins)))
    shown = "totals"
    if plan.group_keys:
        ctes.append(("shown_groups", _shown_groups(plan)))
    if plan.has_folds:
        ctes.append(("folded", _folded(plan)))
        shown = "folded"
    return with_ctes(_rows(plan, shown, placed=placed), ctes)


def _rows(plan: FunnelPlan, shown: str, *, placed: bool) -> exp.Select:
    """The totals, one row per step; with `by`, also of the buckets in which nobody entered."""
    values, joins = column("group_values", shown), []
    source: exp.Expr = exp.table_(shown)
    bucket: exp.Expr = cast(exp.Null(), "timestamptz")
    if plan.buckets:
        bucket = column("bucket", "buckets")
        source = numbered_times(plan.buckets, "buckets", time="bucket", number="bucket_number")
        same = [exp.EQ(this=column("bucket_number", shown), expression=column("bucket_number", "buckets"))]
        if plan.group_keys:
            each = select([column("shown"), named(exp.Min(this=column("rank")), "rank")], "shown_groups",
                          group_by=[column("shown")])  # fmt: skip
            joins.append(join(subquery(each, "groups"), kind="CROSS"))
            values = column("shown", "groups")
            same.append(exp.EQ(this=column("group_values", shown), expression=values.copy()))
        joins.append(join(exp.table_(shown), same, kind="LEFT"))
    elif plan.group_keys:
        each = select([column("shown"), named(exp.Min(this=column("rank")), "rank")], "shown_groups",
                      group_by=[column("shown")])  # fmt: skip
        same_group = exp.EQ(this=column("shown", "groups"), expression=values.copy())
        joins.append(join(subquery(each, "groups"), [same_group]))
    lateral = exp.Lateral(
        this=exp.Subquery(this=exp.Values(expressions=_steps(plan, shown))),
        alias=table_alias(
            "steps", "step", "event", "users", "users_before", "median_seconds", "average_seconds", "immature"
        ),
    )
    joins.append(join(lateral, kind="CROSS"))
    key = group_key(plan.group_keys, values, has_other=plan.top is not None, has_total=plan.with_total)
    rank: exp.Expr = column("rank", "groups") if plan.group_keys else number(1)
    order = [*([column("bucket", "buckets")] if plan.buckets else []), *([rank.copy()] if plan.group_keys else [])]
    users = exp.Coalesce(this=column("users", "steps"), expressions=[number(0)])
    immature = exp.Coalesce(this=column("immature", "steps"), expressions=[number(0)])
    return select(
        [
            named(key, "group_key"),
            column("step", "steps"),
            column("event", "steps"),
            named(cast(users, "bigint"), "users"),
            named(share(column("users", "steps"), column("users_1", shown)), "conversion"),
            named(share(column("users", "steps"), column("users_before", "steps")), "step_conversion"),
            named(interval(column("median_seconds", "steps")), "median_time"),
            named(interval(column("average_seconds", "steps")), "average_time"),
            named(bucket, "bucket"),
            named(cast(exp.Null() if plan.sequence.unit == "conversions" else immature, "bigint"), "immature"),
            *([named(rank, "rank")] if placed else []),
        ],
        source,
        joins=joins,
        order_by=[] if placed else [*order, column("step", "steps")],
    )


def _steps(plan: FunnelPlan, shown: str) -> list[exp.Expr]:
    """A row of values per step, out of one row of totals."""
    steps = plan.sequence.steps
    rows: list[exp.Expr] = []
    for index in range(1, len(steps) + 1):
        before = next((number_ for number_ in range(index - 1, 0, -1) if not steps[number_ - 1].optional), 1)
        parts = [
            number(index),
            text(plan.sequence.step_name(index)),
            column(f"users_{index}", shown),
            column(f"users_{before}", shown),
            _median(plan, shown, index),
            _average(plan, shown, index),
            column(f"immature_{index}", shown),
        ]
        rows.append(exp.Tuple(expressions=parts))
    return rows


def _totals(plan: FunnelPlan, joins: list[exp.Join]) -> exp.Query:
    """Per bucket and group: how many users completed each step, the seconds each took since the step before, and how
    many went no further whose window is still open."""
    steps = plan.sequence.steps
    columns: list[exp.Expr] = []
    for index in range(1, len(steps) + 1):
        columns.append(named(_count(_reached(plan, index)), f"users_{index}"))
        columns.append(named(_count(_may_go_on(plan, index)), f"immature_{index}"))
        if index > 1:
            columns.append(named(collected(_gap(plan, index), _reached(plan, index)), f"seconds_{index}"))
    group_by = group_columns(plan.group_keys)
    bucket = []
    if plan.buckets:
        bucket = [named(bucket_of(plan.buckets, "time_1"), "bucket_number")]
    keyed = select(
        [*bucket, *(column(name) for name in group_by), *_chain_columns(plan)],
        "chains",
        joins=joins,
        where=of_users(plan.users, "chains"),
    )
    keys = [*(["bucket_number"] if bucket else []), *group_by]
    shown = [*([column("bucket_number")] if bucket else []), named(group_values(plan.group_keys), "group_values")]
    return select([*columns, *shown], subquery(keyed, "grouped"), group_by=[column(name) for name in keys])


def _kernel_totals(plan: FunnelPlan) -> list[tuple[str, exp.Query]]:
    """What `_totals` gives, from kernels, with microseconds as bytes instead of arrays of seconds."""
    ctes = kernel_totals(
        plan.sequence,
        now=plan.now,
        keys=plan.group_keys,
        group_step=plan.group_step,
        users=plan.users,
        buckets=plan.buckets,
    )
    columns: list[exp.Expr] = []
    for index in range(1, len(plan.sequence.steps) + 1):
        for name in ("users", "immature"):
            columns.append(named(cast(exp.Sum(this=kernel_column(name, index)), "bigint"), f"{name}_{index}"))
        if index > 1:
            columns.append(named(joined_durations(kernel_column("durations", index)), f"seconds_{index}"))
    keys = [named(kernel_column("group_values"), "group_values")]
    if plan.buckets:
        keys.append(named(kernel_column("bucket"), "bucket_number"))
    group_by = [column(key.alias_or_name) for key in keys] if plan.buckets or plan.group_keys else []
    if not plan.group_keys:
        keys[0] = named(cast(exp.Null(), "text[]"), "group_values")
    return [*ctes, ("totals", select([*columns, *keys], "kernel", group_by=group_by))]


def _chain_columns(plan: FunnelPlan) -> list[exp.Expr]:
    reached = [column("reached")] if plan.sequence.unit == "conversions" else []
    return [*(column(f"time_{index}", "chains") for index in range(1, len(plan.sequence.steps) + 1)), *reached]


def _reached(plan: FunnelPlan, index: int) -> exp.Expr:
    """The chain counts at that step."""
    if plan.sequence.unit == "conversions":
        return exp.EQ(this=column("reached"), expression=number(index))
    return is_set(column(f"time_{index}"))


def _may_go_on(plan: FunnelPlan, index: int) -> exp.Expr:
    """The chain ends with that step, which is not the last, and its window has not passed."""
    later = [
        exp.Is(this=column(f"time_{step}"), expression=exp.Null())
        for step in range(index + 1, len(plan.sequence.steps) + 1)
    ]
    if not later:
        return exp.false()
    until = exp.Add(this=column("time_1"), expression=elapsed(plan.sequence.window))
    return all_of([_reached(plan, index), *later, exp.GTE(this=until, expression=timestamp(plan.now))])


def _count(condition: exp.Expr) -> exp.Expr:
    return exp.Filter(this=exp.Count(this=exp.Star()), expression=exp.Where(this=condition))


def _gap(plan: FunnelPlan, index: int) -> exp.Expr:
    """Seconds on the chain since the step before, or since the one before that where it was skipped."""
    before = [column(f"time_{step}") for step in plan.sequence.before(index)]
    earlier = before[0] if len(before) == 1 else exp.Coalesce(this=before[0], expressions=before[1:])
    return seconds(earlier, column(f"time_{index}"))


def _shown_groups(plan: FunnelPlan) -> exp.Query:
    """The groups by size, each with the one it is shown as: those beyond the top as `other`, all of them as the total
    too. A chain is in one group, so that the total is their sum."""
    size = exp.Ordered(this=exp.Sum(this=column("users_1")), desc=True, nulls_first=False)
    rank = exp.Window(this=exp.RowNumber(), order=exp.Order(expressions=[size, column("group_values")]))
    ranked = select([column("group_values"), named(rank, "rank")], "totals", group_by=[column("group_values")])
    shown: exp.Expr = column("group_values")
    if plan.top is not None:
        is_top = exp.LTE(this=column("rank"), expression=number(plan.top))
        shown = exp.Case(ifs=[exp.If(this=is_top, true=shown)], default=OTHER.copy())
    groups = select([column("group_values"), column("rank"), named(shown, "shown")], subquery(ranked, "sized"))
    if not plan.with_total:
        return groups
    every = select([column("group_values"), number(_LAST), TOTAL.copy()], "totals", group_by=[column("group_values")])
    return union_all([groups, every])


def _same_group() -> exp.Expr:
    return exp.EQ(this=column("group_values", "totals"), expression=column("group_values", "shown_groups"))


def _folded(plan: FunnelPlan) -> exp.Select:
    """The totals of the shown groups; the seconds stay with the groups they were read for."""
    added = [
        named(exp.Sum(this=column(f"{name}_{index}", "totals")), f"{name}_{index}")
        for index in range(1, len(plan.sequence.steps) + 1)
        for name in ("users", "immature")
    ]
    keys = [*([column("bucket_number", "totals")] if plan.buckets else []), column("shown", "shown_groups")]
    return select(
        [*keys[:-1], named(keys[-1].copy(), "group_values"), *added],
        "totals",
        joins=[join(exp.table_("shown_groups"), [_same_group()])],
        group_by=[key.copy() for key in keys],
    )


def _median(plan: FunnelPlan, shown: str, index: int) -> exp.Expr:
    if plan.sequence.vector and index > 1:
        return duration_quantiles(_durations(plan, shown, index), "0.5")
    return _over_seconds(plan, shown, index, quantile("0.5", column("seconds")))


def _average(plan: FunnelPlan, shown: str, index: int) -> exp.Expr:
    if plan.sequence.vector and index > 1:
        return average_duration(_durations(plan, shown, index))
    return _over_seconds(plan, shown, index, exp.Avg(this=column("seconds")))


def _durations(plan: FunnelPlan, shown: str, index: int) -> exp.Expr:
    """The durations to one step that kernels found; of a folded group, those of all its groups."""
    if not plan.has_folds:
        return column(f"seconds_{index}", shown)
    joins = [join(exp.table_("shown_groups"), [_same_group()])]
    joined = joined_durations(column(f"seconds_{index}", "totals"))
    return exp.Subquery(this=select([joined], "totals", joins=joins, where=_is_shown(plan, shown)))


def _over_seconds(plan: FunnelPlan, shown: str, index: int, aggregate: exp.Expr) -> exp.Expr:
    """An aggregate over the seconds to one step; of a folded group, over those of all its groups."""
    if index == 1:
        return cast(exp.Null(), "double precision")
    unnested = each_of(column(f"seconds_{index}", "totals"), "seconds")
    if not plan.has_folds:
        return exp.Subquery(this=select([aggregate], unnested))
    joins = [join(exp.table_("shown_groups"), [_same_group()]), join(unnested, kind="CROSS")]
    return exp.Subquery(this=select([aggregate], "totals", joins=joins, where=_is_shown(plan, shown)))


def _is_shown(plan: FunnelPlan, shown: str) -> list[exp.Expr]:
    """A row of the totals belongs to the row that is shown."""
    same: list[exp.Expr] = [exp.EQ(this=column("shown", "shown_groups"), expression=column("group_values", shown))]
    if plan.buckets:
        same.append(exp.EQ(this=column("bucket_number", "totals"), expression=column("bucket_number", shown)))
    return same


def funnel_sources(plan: FunnelPlan) -> dict[str, str]:
    """The names that the steps' scans have in the query."""
    return {**plan.sequence.sources, **(plan.previous.sequence.sources if plan.previous is not None else {})}


ANALYSIS = Analysis(
    keyword="funnel",
    clauses=(
        syntax.Within, *FUNNEL_RULES, syntax.By, syntax.GroupBy, syntax.Top, syntax.WithTotal, syntax.Compared,
    ),
    row=_ROW,
    bind=bind_funnel,
    lower=lower_funnel,
    sources=funnel_sources,
    strategy=lambda plan: plan.sequence.strategy,
)  # fmt: skip
