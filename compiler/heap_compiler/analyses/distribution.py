"""`distribution of count of "Purchase" per user`: how many users have how much of something.

Each user's measure is taken whole inside their shard; a shard sends one number per group and bin.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import cast as typing_cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.bins import MAX_BINS, edges
from heap_compiler.bound import GroupKey
from heap_compiler.errors import HeapError
from heap_compiler.groups import fold_groups, group_columns, group_key, group_order, group_values, shown_groups
from heap_compiler.measures import Measure, aggregate, bind_measure, distinct_units, measured_rows
from heap_compiler.ranges import TimeRange
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
    with_ctes,
)

__all__ = ["ANALYSIS", "DistributionPlan"]

_ROW = (
    ResultColumn("group_key", "text"),
    ResultColumn("low", "numeric"),
    ResultColumn("high", "numeric"),
    ResultColumn("users", "bigint"),
)

_LARGEST_WHOLE = 10**15
"""Bins this wide are still found by dividing a bigint."""


@dataclass(frozen=True, slots=True)
class DistributionPlan:
    """A bound distribution. Bins lie between `edges`, or, where there are none, each is one `width` wide."""

    schema: str
    measure: Measure
    width: Decimal
    edges: tuple[Decimal, ...]
    read: TimeRange
    users: exp.Query | None
    group_keys: tuple[GroupKey, ...]
    top: int | None


def bind_distribution(statement: syntax.AnalysisStatement, binder: Binder) -> DistributionPlan:
    """Raises HeapError: a measure that is the same for every user, bins that are needed or make no sense, `top`
    without groups, or a part that cannot be bound."""
    (written,) = typing_cast("tuple[syntax.Measure]", statement.head)
    if written.function == "users":
        raise HeapError("a user is one user", written.span, "count their events, or their sessions: count of ...")
    bins = binder.clause(syntax.Bins)
    if bins is None and written.property is not None:
        raise HeapError(f"a distribution of {written.function}s needs bins", written.span, "add: in bins of 10")
    return DistributionPlan(
        schema=binder.catalog.schema,
        measure=bind_measure(written, "measured", binder),
        width=Decimal(1) if bins is None or bins.width is None else _width(bins.width),
        edges=() if bins is None else edges(bins, _number),
        read=binder.time_range,
        users=binder.users,
        group_keys=binder.group_keys,
        top=binder.top,
    )


def _width(written: syntax.Value | syntax.Duration) -> Decimal:
    width = _number(written)
    if width <= 0:
        raise HeapError("a bin is wider than 0", written.span, "such as: in bins of 10")
    return width


def _number(written: syntax.Value | syntax.Duration) -> Decimal:
    if isinstance(written, syntax.Duration):
        raise HeapError("bins of a distribution are numbers", written.span, "such as: in bins of 10")
    return typing_cast(Decimal, written.value)


def lower_distribution(plan: DistributionPlan) -> exp.Query:
    """One row per group and bin."""
    ctes: list[tuple[str, exp.Query]] = []
    if plan.top is not None:
        ctes.append(("top_groups", _top_groups(plan, plan.top)))
    ctes.append(("counted", _counted(plan)))
    bins = _given_bins(plan.edges) if plan.edges else _even_bins(plan.width)
    same = exp.EQ(this=column("bin", "counted"), expression=column("bin", "bins"))
    groups, has_other = shown_groups(plan.group_keys, "counted"), plan.top is not None
    users = exp.Coalesce(this=column("users", "counted"), expressions=[number(0)])
    query = select(
        [
            named(group_key(plan.group_keys, groups.values, has_other=has_other), "group_key"),
            column("low", "bins"),
            column("high", "bins"),
            named(cast(users, "bigint"), "users"),
        ],
        bins,
        joins=[*groups.joins, join(exp.table_("counted"), [same, *groups.matching("counted")], kind="LEFT")],
        order_by=[*group_order(plan.group_keys, groups.values, has_other=has_other), column("bin", "bins")],
    )
    return with_ctes(query, [*ctes, *groups.ctes])


def _given_bins(edges: tuple[Decimal, ...]) -> exp.Expr:
    """The bins between the edges, and the open ones before the first and after the last."""
    bounds = [exp.Null(), *(number(edge) for edge in edges), exp.Null()]
    rows = [
        exp.Tuple(
            expressions=[number(index), cast(bounds[index].copy(), "numeric"), cast(bounds[index + 1], "numeric")]
        )
        for index in range(len(edges) + 1)
    ]
    return exp.Values(expressions=rows, alias=table_alias("bins", "bin", "low", "high"))


def _even_bins(width: Decimal) -> exp.Expr:
    """The bins from the least to the greatest anybody is in. What lies too far from 0 is in one open bin."""
    least, greatest = exp.Min(this=column("bin")), exp.Max(this=column("bin"))
    between = named(function("generate_series", least, greatest), "bin")
    found = subquery(select([between], "counted"), "found")
    is_lowest = exp.LT(this=column("bin"), expression=number(-MAX_BINS))
    is_highest = exp.EQ(this=column("bin"), expression=number(MAX_BINS))
    wide = cast(number(width), "numeric")
    low = exp.Mul(this=column("bin"), expression=wide)
    high = exp.Mul(this=exp.paren(exp.Add(this=column("bin"), expression=number(1))), expression=wide.copy())
    bounds = [
        named(_unless(is_lowest, low), "low"),
        named(_unless(is_highest, high), "high"),
    ]
    return subquery(select([column("bin"), *bounds], found), "bins")


def _unless(condition: exp.Expr, value: exp.Expr) -> exp.Expr:
    """The value as numeric; null where the condition holds."""
    return cast(exp.Case(ifs=[exp.If(this=condition, true=exp.Null())], default=value), "numeric")


def _bin_of(plan: DistributionPlan, value: exp.Expr) -> exp.Expr:
    """The bin a user's value lies in."""
    is_whole = plan.width < _LARGEST_WHOLE and plan.width == int(plan.width)
    if not plan.edges and plan.measure.value is None and is_whole:  # a count: whole itself, and not negative
        near = function("least", value, number(int(plan.width) * MAX_BINS))
        return cast(exp.paren(exp.Div(this=near, expression=number(int(plan.width)), typed=True)), "int")
    value = cast(value, "numeric")
    if plan.edges:
        lows = exp.Array(expressions=[number(edge) for edge in plan.edges])
        return function("width_bucket", value, cast(lows, "numeric[]"))
    width = cast(number(plan.width), "numeric")
    lowest, highest = (exp.Mul(this=width.copy(), expression=number(last)) for last in (-MAX_BINS - 1, MAX_BINS))
    near = function("greatest", function("least", value, highest), lowest)
    # div and mod are exact; a quotient of numerics is rounded, perhaps up into the next bin.
    below = exp.LT(this=function("mod", near.copy(), width.copy()), expression=number(0))
    whole = cast(function("div", near, width), "int")
    return exp.Sub(this=whole, expression=cast(exp.paren(below), "int"))


def _top_groups(plan: DistributionPlan, top: int) -> exp.Select:
    """The groups with the most users."""
    groups = [column(name) for name in group_columns(plan.group_keys)]
    whole = select(
        [named(group_values(plan.group_keys), "group_values"), named(exp.Count(this=exp.Star()), "users")],
        subquery(_valued(plan, folds=False), "valued"),
        group_by=groups,
    )
    most = exp.Ordered(this=column("users"), desc=True, nulls_first=False)
    return select(
        [column("group_values")],
        subquery(whole, "whole_range"),
        order_by=[most, column("group_values")],
        limit=top,
    )


def _counted(plan: DistributionPlan) -> exp.Query:
    """Users per group and bin."""
    folds = plan.top is not None
    groups = ["group_values"] if folds else group_columns(plan.group_keys)
    shown: list[exp.Expr] = [column("group_values")] if folds else []
    if plan.group_keys and not folds:
        shown = [named(group_values(plan.group_keys), "group_values")]
    binned = select(
        [*(column(name) for name in groups), named(_bin_of(plan, column("value")), "bin")],
        subquery(_valued(plan, folds=folds), "valued"),
    )
    return select(
        [*shown, column("bin"), named(exp.Count(this=exp.Star()), "users")],
        subquery(binned, "binned"),
        group_by=[column(name) for name in (*groups, "bin")],
    )


def _valued(plan: DistributionPlan, *, folds: bool) -> exp.Query:
    """The measure per user and group. Users without any value are not there."""
    more = {"user_id": column("user_id")}
    rows = measured_rows(plan.schema, plan.measure, plan.read, plan.users, plan.group_keys, more)
    groups = group_columns(plan.group_keys)
    if folds:
        rows, groups = fold_groups(plan.group_keys, rows), ["group_values"]
    rows = distinct_units(plan.measure, rows, groups)
    keys = ["user_id", *groups]
    return select(
        [*(column(name) for name in keys), named(aggregate(plan.measure.function), "value")],
        subquery(rows, "measured"),
        where=[is_set(column("value"))] if plan.measure.value is not None else [],
        group_by=[column(name) for name in keys],
    )


def distribution_sources(plan: DistributionPlan) -> dict[str, str]:
    """The name of the one scan."""
    return {"measured_events": plan.measure.event.name}


ANALYSIS = Analysis(
    keyword="distribution",
    clauses=(syntax.Bins, syntax.GroupBy, syntax.Top),
    row=_ROW,
    bind=bind_distribution,
    lower=lower_distribution,
    sources=distribution_sources,
)
