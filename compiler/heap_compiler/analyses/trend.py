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
from heap_compiler.activity import bucket_of, of_users
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.bound import BoundEvent, GroupKey
from heap_compiler.errors import HeapError
from heap_compiler.groups import OTHER, group_key, group_values, user_values
from heap_compiler.predicates import number_of
from heap_compiler.ranges import TimeRange, bucket_starts
from heap_compiler.scan import distinct_events
from heap_compiler.sql import (
    cast,
    column,
    function,
    is_set,
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

__all__ = ["ANALYSIS", "TrendMeasure", "TrendPlan", "TrendSeries"]

_ROW = (
    ResultColumn("bucket", "timestamptz"),
    ResultColumn("series", "text"),
    ResultColumn("group_key", "text"),
    ResultColumn("value", "numeric"),
)

_PERCENTILES = {"median": "0.5", "p75": "0.75", "p90": "0.9", "p95": "0.95", "p99": "0.99"}


@dataclass(frozen=True, slots=True)
class TrendMeasure:
    """`function` over `event`, of `value` where it is a measure of a property. `cte` names its rows in the query."""

    cte: str
    function: str
    event: BoundEvent
    value: exp.Expr | None


@dataclass(frozen=True, slots=True)
class TrendSeries:
    """One line of the trend: a measure, or its ratio to another."""

    name: str
    measure: TrendMeasure
    divisor: TrendMeasure | None

    @property
    def measures(self) -> tuple[TrendMeasure, ...]:
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
    divisor = None if written.divisor is None else _measure(written.divisor, f"{cte}_divisor", binder)
    name = written.label or binder.name_of(written)
    return TrendSeries(name, _measure(written.measure, cte, binder), divisor)


def _measure(written: syntax.Measure, cte: str, binder: Binder) -> TrendMeasure:
    value = None if written.property is None else number_of(written.property)
    return TrendMeasure(cte, written.function, binder.event(written.event), value)


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


def _value(measure: TrendMeasure) -> exp.Expr:
    """The measure of one bucket and group: 0 where nothing happened, null where there is nothing to take a mean of."""
    value = column("value", measure.cte)
    if measure.function in {"count", "users", "sessions", "sum"}:
        return exp.Coalesce(this=value, expressions=[number(0)])
    return value


def _measures(plan: TrendPlan) -> list[TrendMeasure]:
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


def _measured(plan: TrendPlan, measure: TrendMeasure, *, by_bucket: bool) -> exp.Query:
    """The measure per bucket and group. `by_bucket` false: per group over the whole range, groups not yet folded."""
    folds = by_bucket and plan.top is not None
    bucket = ["bucket_number"] if by_bucket else []
    groups = [f"group_{position}" for position in range(1, len(plan.group_keys) + 1)]
    rows = _rows(plan, measure, by_bucket=by_bucket)
    if folds:
        rows = _fold_groups(plan, rows)
        groups = ["group_values"]
    units = {"users": ["user_id"], "sessions": ["user_id", "session_id"]}.get(measure.function)
    if units:
        each = [column(name) for name in (*units, *bucket, *groups)]
        rows = select(each, subquery(rows, "counted"), distinct=True)
    shown: list[exp.Expr] = [column("group_values")] if folds else []
    if plan.group_keys and not folds:
        shown = [named(group_values(plan.group_keys), "group_values")]
    value = named(_aggregate(measure.function), "value")
    return select(
        [*(column(name) for name in bucket), *shown, value],
        subquery(rows, "measured"),
        group_by=[column(name) for name in (*bucket, *groups)],
    )


def _fold_groups(plan: TrendPlan, rows: exp.Query) -> exp.Query:
    """The rows with one column `group_values`: their group if it is a top one, else `other`."""
    known = column("group_values", "top_groups")
    grouped = select([exp.Star(), named(group_values(plan.group_keys), "row_groups")], subquery(rows, "measured"))
    same_group = exp.EQ(this=known.copy(), expression=column("row_groups", "grouped"))
    folded = named(exp.Coalesce(this=known, expressions=[OTHER.copy()]), "group_values")
    return select(
        [exp.Column(this=exp.Star(), table=exp.to_identifier("grouped")), folded],
        subquery(grouped, "grouped"),
        joins=[join(exp.table_("top_groups"), [same_group], kind="LEFT")],
    )


def _aggregate(name: str) -> exp.Expr:
    value = column("value")
    match name:
        case "count" | "users":
            return exp.Count(this=exp.Star())
        case "sessions":
            return exp.Count(this=column("session_id"))  # events outside any session count for none
        case "sum":
            return exp.Sum(this=value)
        case "avg":
            return exp.Avg(this=value)
        case "min":
            return exp.Min(this=value)
        case "max":
            return exp.Max(this=value)
    fraction = exp.PercentileCont(this=exp.Literal.number(_PERCENTILES[name]))
    ordered = exp.Order(expressions=[_double(value)])
    return cast(exp.WithinGroup(this=fraction, expression=ordered), "numeric")


def _double(value: exp.Expr) -> exp.Expr:
    """The numeric value as a float, which percentiles interpolate in. JSON can hold numbers a float cannot: too large
    ones count as the largest, too small ones as zero."""
    bounded = function(
        "greatest",
        function("least", value.copy(), exp.Literal.number("1e300")),
        exp.Neg(this=exp.Literal.number("1e300")),
    )
    rounded = cast(function("round", bounded, number(30)), "double precision")
    return exp.Case(ifs=[exp.If(this=is_set(value), true=rounded)])  # least and greatest overlook nulls


def _rows(plan: TrendPlan, measure: TrendMeasure, *, by_bucket: bool) -> exp.Query:
    """The series' events with what is measured and grouped by, each event once."""
    distinct_anyway = measure.function in {"users", "sessions"}
    columns: dict[str, exp.Expr] = {}
    if distinct_anyway or plan.users is not None or any(key.of_user for key in plan.group_keys):
        columns["user_id"] = column("user_id")
    if measure.function == "sessions":
        columns["session_id"] = column("session_id")
    if by_bucket:
        columns["bucket_number"] = bucket_of(plan.buckets) if plan.buckets else number(1)
    for position, key in enumerate(plan.group_keys, start=1):
        if not key.of_user:
            columns[f"group_{position}"] = key.value
    if measure.value is not None:
        columns["value"] = measure.value
    if not columns:
        columns["event_id"] = column("event_id")
    extra = of_users(plan.users)
    alias = f"{measure.cte}_events"
    rows = distinct_events(plan.schema, measure.event, plan.read, columns, alias=alias, extra=extra)
    if not any(key.of_user for key in plan.group_keys):
        return rows
    users = user_values(plan.schema, plan.group_keys)
    same_user = exp.EQ(this=column("user_id", "users"), expression=column("user_id", "events"))
    user_groups = [
        column(f"group_{position}", "users") for position, key in enumerate(plan.group_keys, start=1) if key.of_user
    ]
    return select(
        [*(column(name, "events") for name in columns), *user_groups],
        subquery(rows, "events"),
        joins=[join(subquery(users, "users"), [same_user], kind="LEFT")],
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
