"""A trend as SQL: every measure once per period, then every series over the full grid of buckets and groups."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import assert_never

from sqlglot import exp

from heap_compiler.analyses.trend.measures import as_changes, measured, whole_range
from heap_compiler.analyses.trend.plan import Formula, Operation, TrendMeasure, TrendPeriod, TrendPlan, TrendSeries
from heap_compiler.groups import TOTAL, group_key, group_order, top_groups
from heap_compiler.sql import (
    cast,
    column,
    divided,
    function,
    join,
    named,
    number,
    numbered_times,
    select,
    subquery,
    text,
    union_all,
    with_ctes,
)
from heap_compiler.strategies.counting import counted_by_kernels, counting_kernel

__all__ = ["lower_trend", "trend_sources"]

_OPERATIONS: dict[str, type[exp.Binary]] = {"+": exp.Add, "-": exp.Sub, "*": exp.Mul}


def lower_trend(plan: TrendPlan) -> exp.Query:
    """One row per bucket, series and group."""
    ctes: list[tuple[str, exp.Query]] = []
    if plan.top is not None:
        first = plan.measures[0]
        size = exp.Max(this=_or_zero(first, column("value")))  # of one row per group
        ctes.append(("top_groups", top_groups(subquery(whole_range(plan, first), "whole_range"), size, plan.top)))
    for period in plan.periods:
        by_kernels = dict(_counted_by_kernels(plan, period, ctes))
        for measure in plan.measures:
            rows = by_kernels.get(measure.cte) or measured(plan, measure, period)
            ctes.append((measure.cte + period.name, rows))
    if plan.group_keys:
        ctes.append(("shown_groups", _shown_groups(plan)))
    lines = [(series, period) for series in plan.series for period in plan.periods]
    rows = union_all([_line(plan, series, period, index) for index, (series, period) in enumerate(lines, start=1)])
    values = column("group_values")
    marks = {"has_other": plan.top is not None, "has_total": plan.with_total}
    query = select(
        [
            column("bucket"),
            column("series"),
            named(group_key(plan.group_keys, values, **marks), "group_key"),
            column("value"),
        ],
        subquery(rows, "shown"),
        order_by=[column("bucket"), column("series_number"), *group_order(plan.group_keys, values, **marks)],
    )
    return with_ctes(query, ctes)


_COUNTS = {"count": 1, "users": 2}
"""Which of a kernel's counts a measure is."""


def _counted_by_kernels(
    plan: TrendPlan, period: TrendPeriod, ctes: list[tuple[str, exp.Query]]
) -> Iterator[tuple[str, exp.Query]]:
    """The names of the measures that kernels count, each with what `measured` gives. Their calls go to `ctes`."""
    for measures in plan.of_kernels:
        name = measures[0].cte + period.name
        call = counting_kernel(
            "trend",
            plan.schema,
            {f"{name}_events": (measures[0].event, period.read)},
            period.buckets or (period.over.start,),
            choice=plan.choice,
            keys=plan.group_keys,
            users=plan.users,
        )
        ctes.append((f"{name}_kernel", call))
        for measure in measures:
            counts = {"value": _COUNTS[measure.function]}
            yield measure.cte, counted_by_kernels("bucket_number", counts, plan.group_keys, kernel=f"{name}_kernel")


def _shown_groups(plan: TrendPlan) -> exp.Query:
    """Every group of any measure, and the total."""
    first, *others = (measure.cte + period.name for period in plan.periods for measure in plan.measures)
    if not others and not plan.with_total:
        return select([column("group_values")], first, distinct=True)
    groups: exp.Query = select([column("group_values")], first)
    for other in others:
        groups = exp.Union(this=groups, expression=select([column("group_values")], other), distinct=True)
    if plan.with_total:
        total = exp.Select(expressions=[named(TOTAL.copy(), "group_values")])
        groups = exp.Union(this=groups, expression=total, distinct=True)
    return groups


def _line(plan: TrendPlan, series: TrendSeries, period: TrendPeriod, index: int) -> exp.Select:
    """The series in one period with its gaps filled: a value for every bucket, and every group that any series has. The
    buckets are the statement's own; those of the period before stand at the same place in the order."""
    current = plan.periods[0]
    starts = numbered_times(current.buckets or (current.over.start,), "buckets", time="bucket", number="bucket_number")
    has_groups = bool(plan.group_keys)
    bucket = column("bucket", "buckets") if current.buckets else cast(exp.Null(), "timestamptz")
    groups = column("group_values", "shown_groups") if has_groups else cast(exp.Null(), "text[]")
    joins = [join(exp.table_("shown_groups"), kind="CROSS")] if has_groups else []
    for cte in dict.fromkeys(measure.cte + period.name for measure in series.measures):
        same = [exp.EQ(this=column("bucket_number", cte), expression=column("bucket_number", "buckets"))]
        if has_groups:
            same.append(exp.EQ(this=column("group_values", cte), expression=groups.copy()))
        joins.append(join(exp.table_(cte), same, kind="LEFT"))
    value = _formula(plan, period, series.formula)
    if isinstance(series.formula, Operation):
        value = function("trim_scale", function("round", value, number(8)))
    if len(period.buckets) < len(current.buckets):
        exists = exp.LTE(this=column("bucket_number", "buckets"), expression=number(len(period.buckets)))
        value = exp.Case(ifs=[exp.If(this=exists, true=value)])
    return select(
        [
            named(bucket, "bucket"),
            named(number(index), "series_number"),
            named(cast(text(series.name + period.label), "text"), "series"),
            named(groups, "group_values"),
            named(cast(value, "numeric"), "value"),
        ],
        starts,
        joins=joins,
    )


def _formula(plan: TrendPlan, period: TrendPeriod, formula: Formula) -> exp.Expr:
    """The value of one bucket and group. A division by 0 is null, and so is what is made of it."""
    match formula:
        case Decimal():
            return cast(number(formula), "numeric")
        case TrendMeasure():
            return _value(plan, period, formula)
        case Operation():
            left, right = (_operand(plan, period, side) for side in (formula.left, formula.right))
            if formula.operator == "/":
                return divided(left, right)
            return _OPERATIONS[formula.operator](this=left, expression=right)
    assert_never(formula)


def _operand(plan: TrendPlan, period: TrendPeriod, formula: Formula) -> exp.Expr:
    value = _formula(plan, period, formula)
    if isinstance(formula, Operation):
        return exp.paren(value, copy=False)
    return cast(value, "numeric") if isinstance(formula, TrendMeasure) else value


def _value(plan: TrendPlan, period: TrendPeriod, measure: TrendMeasure) -> exp.Expr:
    """The measure of one bucket and group: 0 where nothing happened, null where there is nothing to take a mean of."""
    cte = measure.cte + period.name
    value: exp.Expr = column("value", cte)
    if as_changes(plan, measure):
        value = _running(plan, value)
        if measure.function == "avg":
            return divided(value, _running(plan, column("counted", cte)))
        if measure.function == "sum":  # what was added and taken away again leaves zeros behind the point
            value = function("trim_scale", value)
    return _or_zero(measure, value)


def _or_zero(measure: TrendMeasure, value: exp.Expr) -> exp.Expr:
    if (measure.over_users or measure.function) in {"count", "users", "sessions", "sum"}:
        return exp.Coalesce(this=value, expressions=[number(0)])
    return value


def _running(plan: TrendPlan, change: exp.Expr) -> exp.Expr:
    """The sum of the changes up to the bucket."""
    return exp.Window(
        this=exp.Sum(this=change),
        partition_by=[column("group_values", "shown_groups")] if plan.group_keys else [],
        order=exp.Order(expressions=[column("bucket_number", "buckets")]),
    )


def trend_sources(plan: TrendPlan) -> dict[str, str]:
    """The names that the measures' scans have in the query."""
    together = {measure.cte for measures in plan.of_kernels for measure in measures[1:]}
    return {
        f"{measure.cte}{total}{period.name}_events": measure.event.name
        for period in plan.periods
        for measure in plan.measures
        if measure.cte not in together
        for total in ["", *(["_total"] if plan.with_total else [])]
    }
