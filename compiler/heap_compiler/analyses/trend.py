"""`trend count of "Purchase" by day group by country`: measures of events over time.

Buckets are instants computed at compile time, so that SQL only places each event among constants. Users and sessions
are exact distinct counts. Every bucket of every group has a row, also where nothing happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import cast as typing_cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import bucket_of
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.bound import GroupKey
from heap_compiler.errors import HeapError
from heap_compiler.groups import OTHER, fold_groups, group_key, group_values
from heap_compiler.measures import Measure, aggregate, bind_measure, distinct_units, measured_rows
from heap_compiler.ranges import TimeRange, bucket_starts
from heap_compiler.sql import (
    cast,
    column,
    join,
    named,
    number,
    numbered_times,
    select,
    share,
    subquery,
    text,
    union_all,
    with_ctes,
)

__all__ = ["ANALYSIS", "TrendPlan", "TrendSeries"]

_ROW = (
    ResultColumn("bucket", "timestamptz"),
    ResultColumn("series", "text"),
    ResultColumn("group_key", "text"),
    ResultColumn("value", "numeric"),
)


@dataclass(frozen=True, slots=True)
class TrendSeries:
    """One line of the trend: a measure, or its ratio to another."""

    name: str
    measure: Measure
    divisor: Measure | None

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measure, and the divisor if there is one."""
        return (self.measure,) if self.divisor is None else (self.measure, self.divisor)


@dataclass(frozen=True, slots=True)
class TrendPlan:
    """A bound trend. `buckets` is empty without `by`."""

    schema: str
    series: tuple[TrendSeries, ...]
    read: TimeRange
    buckets: tuple[datetime, ...]
    users: exp.Query | None
    group_keys: tuple[GroupKey, ...]
    top: int | None


def bind_trend(statement: syntax.AnalysisStatement, binder: Binder) -> TrendPlan:
    """Raises HeapError: a part that cannot be bound, two series of one name, `top` without groups."""
    head = typing_cast("tuple[syntax.Series, ...]", statement.head)
    series = tuple(_series(written, f"series_{index}", binder) for index, written in enumerate(head, start=1))
    names: set[str] = set()
    for written, bound in zip(statement.head, series, strict=True):
        if bound.name in names:
            raise HeapError(f"a second series called {bound.name}", written.span, "name it: ... as other_name")
        names.add(bound.name)
    by = binder.clause(syntax.By)
    zone = binder.catalog.time_zone
    buckets = [] if by is None else bucket_starts(binder.time_range, by.unit, zone, by.span)
    return TrendPlan(
        schema=binder.catalog.schema,
        series=series,
        read=binder.time_range,
        buckets=tuple(buckets),
        users=binder.users,
        group_keys=binder.group_keys,
        top=binder.top,
    )


def _series(written: syntax.Series, cte: str, binder: Binder) -> TrendSeries:
    divisor = None if written.divisor is None else bind_measure(written.divisor, f"{cte}_divisor", binder)
    name = written.label or binder.name_of(written)
    return TrendSeries(name, bind_measure(written.measure, cte, binder), divisor)


def lower_trend(plan: TrendPlan) -> exp.Query:
    """One row per bucket, series and group."""
    ctes: list[tuple[str, exp.Query]] = []
    if plan.top is not None:
        ctes.append(("top_groups", _top_groups(plan, plan.top)))
    for measure in _measures(plan):
        ctes.append((measure.cte, _measured(plan, measure, by_bucket=True)))
    if plan.group_keys:
        ctes.append(("shown_groups", _shown_groups(plan)))
    rows = union_all([_series_rows(plan, series, index) for index, series in enumerate(plan.series, start=1)])
    values = column("group_values")
    key = group_key(plan.group_keys, values, has_other=plan.top is not None)
    is_other = exp.EQ(this=values.copy(), expression=OTHER.copy())
    order: list[exp.Expr] = [column("bucket"), column("series_number"), *([is_other] if plan.top is not None else [])]
    query = select(
        [column("bucket"), column("series"), named(key, "group_key"), column("value")],
        subquery(rows, "shown"),
        order_by=[*order, *([values.copy()] if plan.group_keys else [])],
    )
    return with_ctes(query, ctes)


def _series_rows(plan: TrendPlan, series: TrendSeries, index: int) -> exp.Select:
    """The series with its gaps filled: every bucket, and every group that any series has."""
    starts = numbered_times(plan.buckets or (plan.read.start,), "buckets", time="bucket", number="bucket_number")
    value = _value(series.measure)
    if series.divisor is not None:
        value = share(value, _value(series.divisor))
    has_groups = bool(plan.group_keys)
    bucket = column("bucket", "buckets") if plan.buckets else cast(exp.Null(), "timestamptz")
    groups = column("group_values", "shown_groups") if has_groups else cast(exp.Null(), "text[]")
    joins = [join(exp.table_("shown_groups"), kind="CROSS")] if has_groups else []
    for measure in series.measures:
        same = [exp.EQ(this=column("bucket_number", measure.cte), expression=column("bucket_number", "buckets"))]
        if has_groups:
            same.append(exp.EQ(this=column("group_values", measure.cte), expression=groups.copy()))
        joins.append(join(exp.table_(measure.cte), same, kind="LEFT"))
    return select(
        [
            named(bucket, "bucket"),
            named(number(index), "series_number"),
            named(cast(text(series.name), "text"), "series"),
            named(groups, "group_values"),
            named(cast(value, "numeric"), "value"),
        ],
        starts,
        joins=joins,
    )


def _value(measure: Measure) -> exp.Expr:
    """The measure of one bucket and group: 0 where nothing happened, null where there is nothing to take a mean of."""
    value = column("value", measure.cte)
    if measure.function in {"count", "users", "sessions", "sum"}:
        return exp.Coalesce(this=value, expressions=[number(0)])
    return value


def _measures(plan: TrendPlan) -> list[Measure]:
    return [measure for series in plan.series for measure in series.measures]


def _shown_groups(plan: TrendPlan) -> exp.Query:
    """Every group of any series."""
    first, *others = _measures(plan)
    if not others:
        return select([column("group_values")], first.cte, distinct=True)
    groups: exp.Query = select([column("group_values")], first.cte)
    for other in others:
        more = select([column("group_values")], other.cte)
        groups = exp.Union(this=groups, expression=more, distinct=True)
    return groups


def _top_groups(plan: TrendPlan, top: int) -> exp.Select:
    """The groups with the greatest value of the first series over the whole range."""
    whole = _measured(plan, plan.series[0].measure, by_bucket=False)
    greatest = exp.Ordered(this=column("value"), desc=True, nulls_first=False)
    return select(
        [column("group_values")],
        subquery(whole, "whole_range"),
        order_by=[greatest, column("group_values")],
        limit=top,
    )


def _measured(plan: TrendPlan, measure: Measure, *, by_bucket: bool) -> exp.Query:
    """The measure per bucket and group. `by_bucket` false: per group over the whole range, groups not yet folded."""
    folds = by_bucket and plan.top is not None
    bucket = ["bucket_number"] if by_bucket else []
    groups = [f"group_{position}" for position in range(1, len(plan.group_keys) + 1)]
    more = {"bucket_number": bucket_of(plan.buckets) if plan.buckets else number(1)} if by_bucket else {}
    rows = measured_rows(plan.schema, measure, plan.read, plan.users, plan.group_keys, more)
    if folds:
        rows = fold_groups(plan.group_keys, rows)
        groups = ["group_values"]
    rows = distinct_units(measure, rows, [*bucket, *groups])
    shown: list[exp.Expr] = [column("group_values")] if folds else []
    if plan.group_keys and not folds:
        shown = [named(group_values(plan.group_keys), "group_values")]
    value = named(aggregate(measure), "value")
    return select(
        [*(column(name) for name in bucket), *shown, value],
        subquery(rows, "measured"),
        group_by=[column(name) for name in (*bucket, *groups)],
    )


def trend_sources(plan: TrendPlan) -> dict[str, str]:
    """The names that the series' scans have in the query."""
    return {f"{measure.cte}_events": measure.event.name for measure in _measures(plan)}


ANALYSIS = Analysis(
    keyword="trend",
    clauses=(syntax.By, syntax.GroupBy, syntax.Top),
    row=_ROW,
    bind=bind_trend,
    lower=lower_trend,
    sources=trend_sources,
)
