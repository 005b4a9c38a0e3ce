"""The rows of one measure: a value per bucket and group.

With `rolling` or `cumulative` an event counts in several buckets, from `first_bucket` to `last_bucket`. Counts and sums
then come as changes, up where something begins to count and down where it no longer does: one row per bucket and group
from each shard, however long the window; their running sum is the value. A user counts once however often they come: a
stretch of buckets ends where their next one begins. Other functions are taken of every bucket anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlglot import exp

from heap_compiler.activity import bucket_of, of_users
from heap_compiler.analyses.trend.plan import TrendMeasure, TrendPeriod, TrendPlan
from heap_compiler.bound import GroupKey
from heap_compiler.groups import TOTAL, event_values, fold_groups, group_columns, group_values, join_user_values
from heap_compiler.measures import PERCENTILES, UNITS, aggregate, percentile_of, percentile_values
from heap_compiler.scan import distinct_events
from heap_compiler.sql import (
    column,
    function,
    is_set,
    named,
    number,
    select,
    subquery,
    union_all,
)

__all__ = ["as_changes", "measured", "whole_range"]

_COMBINED = {"count": "sum", "sum": "sum", "min": "min", "max": "max"}
"""Measures that are taken of parts, and how the parts' values make that of the whole."""


@dataclass(frozen=True, slots=True)
class _Groups:
    """The columns that tell groups apart among a measure's rows, and the column that shows the group."""

    columns: tuple[str, ...] = ()
    shown: exp.Expr | None = None

    def of_rows(self) -> list[exp.Expr]:
        return [column(name) for name in self.columns]

    def once(self) -> list[exp.Expr]:
        """As shown, while the rows still have their own columns."""
        return [] if self.shown is None else [named(self.shown.copy(), "group_values")]

    def after(self) -> list[exp.Expr]:
        """As shown, when they have been shown before."""
        return [] if self.shown is None else [column("group_values")]


def as_changes(plan: TrendPlan, measure: TrendMeasure) -> bool:
    """Whether the measure's values are the running sums of its rows."""
    summed = measure.function in {"count", "users", "sessions", "sum", "avg"} and measure.over_users is None
    return plan.window is not None and summed


def measured(plan: TrendPlan, measure: TrendMeasure, period: TrendPeriod) -> exp.Query:
    """Rows `bucket_number, group_values, value`; an average as changes has sums in `value`, and `counted` beside it."""
    if not plan.group_keys:
        return _measured(plan, measure, period, (), _Groups())
    groups = _Groups(("group_values",), column("group_values"))
    if plan.top is None:
        groups = _own_groups(plan.group_keys)
    rows = _measured(plan, measure, period, plan.group_keys, groups)
    if not plan.with_total:
        return rows
    return union_all([rows, _measured(plan, measure, period, (), _Groups((), TOTAL), "_total")])


def whole_range(plan: TrendPlan, measure: TrendMeasure) -> exp.Query:
    """The measure per group over the whole range."""
    unfolded = replace(plan, window=None, top=None)
    period = TrendPeriod("", "", plan.periods[0].over)
    return _measured(unfolded, measure, period, plan.group_keys, _own_groups(plan.group_keys))


def _own_groups(keys: Sequence[GroupKey]) -> _Groups:
    return _Groups(tuple(group_columns(keys)), group_values(keys))


def _measured(
    plan: TrendPlan,
    measure: TrendMeasure,
    period: TrendPeriod,
    keys: Sequence[GroupKey],
    groups: _Groups,
    name: str = "",
) -> exp.Query:
    place = _place(plan, measure, period)
    alias = f"{measure.cte}{name}{period.name}_events"
    rows = _rows(plan, measure, period, keys, place, alias)
    if keys and plan.top is not None:
        rows = fold_groups(keys, rows)
    units = UNITS.get(measure.function, ())
    if "last_bucket" not in place:
        if units and as_changes(plan, measure):
            return _first_times(measure, rows, units, groups)
        return _aggregated(measure, rows, ["bucket_number"], groups, changes=as_changes(plan, measure))
    if as_changes(plan, measure):
        return _stretches(rows, units, groups) if units else _summed_changes(measure, rows, groups)
    if measure.function in {"min", "max"} and measure.over_users is None:
        return _extremes(measure, rows, groups)
    if measure.over_users is not None and measure.function in _COMBINED:
        return _of_stretches_per_user(measure, rows, groups)
    return _aggregated(measure, _in_every_bucket(rows), ["bucket_number"], groups)


def _place(plan: TrendPlan, measure: TrendMeasure, period: TrendPeriod) -> dict[str, exp.Expr]:
    """The buckets that an event counts in: one, or all from a first to a last."""
    if not period.buckets:
        return {"bucket_number": number(1)}
    if plan.window is None or (plan.window == "cumulative" and as_changes(plan, measure)):
        return {"bucket_number": bucket_of(period.buckets)}
    if plan.window == "cumulative":
        return {"first_bucket": bucket_of(period.buckets), "last_bucket": number(len(period.buckets))}
    # Events before the range count from the first bucket on; bucket n ends where bucket n + 1 begins.
    ended = bucket_of(period.buckets[1:]) if period.buckets[1:] else number(0)
    first = exp.Add(this=ended, expression=number(1))
    return {"first_bucket": first, "last_bucket": bucket_of(period.trailing)}


def _rows(
    plan: TrendPlan,
    measure: TrendMeasure,
    period: TrendPeriod,
    keys: Sequence[GroupKey],
    place: dict[str, exp.Expr],
    alias: str,
) -> exp.Query:
    """The events with what is measured and grouped by, each event once."""
    columns: dict[str, exp.Expr] = {}
    by_user = measure.function in UNITS or measure.over_users is not None
    if by_user or plan.users is not None or any(key.of_user for key in keys):
        columns["user_id"] = column("user_id")
    if measure.function == "sessions":
        columns["session_id"] = column("session_id")
    columns |= {**place, **event_values(keys)}
    if measure.value is not None:
        columns["value"] = measure.value
    rows = distinct_events(plan.schema, measure.event, period.read, columns, alias=alias, extra=of_users(plan.users))
    return join_user_values(plan.schema, keys, rows, list(columns))


def _aggregated(
    measure: TrendMeasure, rows: exp.Query, place: Sequence[str], groups: _Groups, *, changes: bool = False
) -> exp.Select:
    """The measure of all rows of the same place and group; two-level measures first of each user."""
    units = UNITS.get(measure.function)
    where_and_who = [*(column(name) for name in place), *groups.of_rows()]
    outer = measure.function
    if measure.over_users is not None:
        of_user = named(_of_user(measure.function), "value")
        keys: list[exp.Expr] = [column("user_id"), *where_and_who]
        rows = select([*keys, of_user], subquery(rows, "counted"), group_by=[key.copy() for key in keys])
        outer = measure.over_users
    elif units is not None:
        each = [*(column(name) for name in units), *(part.copy() for part in where_and_who)]
        rows = select(each, subquery(rows, "counted"), distinct=True)
    if outer in PERCENTILES:
        return _percentiles(outer, rows, place, groups)
    values = [named(aggregate(outer), "value")]
    if changes and outer == "avg":
        values = [named(exp.Sum(this=column("value")), "value"), named(exp.Count(this=column("value")), "counted")]
    return select(
        [*(column(name) for name in place), *groups.once(), *values],
        subquery(rows, "measured"),
        group_by=where_and_who,
    )


def _percentiles(name: str, rows: exp.Query, place: Sequence[str], groups: _Groups) -> exp.Select:
    """Of all rows of the same place and group: each shard sends an array of their values."""
    collected = select(
        [*(column(part) for part in place), *groups.once(), named(percentile_values(), "numbers")],
        subquery(rows, "measured"),
        group_by=[*(column(part) for part in place), *groups.of_rows()],
    )
    value = named(percentile_of(name, column("numbers")), "value")
    return select(
        [*(column(part) for part in place), *groups.after(), value], subquery(collected, "collected")
    )  # fmt: skip


def _first_times(measure: TrendMeasure, rows: exp.Query, units: Sequence[str], groups: _Groups) -> exp.Select:
    """Cumulative: everybody counts from their first bucket on."""
    keys: list[exp.Expr] = [*(column(name) for name in units), *groups.of_rows()]
    first = named(exp.Min(this=column("bucket_number")), "bucket_number")
    begun = select([*keys, first], subquery(rows, "counted"), group_by=[key.copy() for key in keys])
    return select(
        [column("bucket_number"), *groups.once(), named(aggregate(measure.function), "value")],
        subquery(begun, "measured"),
        group_by=[column("bucket_number"), *groups.of_rows()],
    )


def _stretches(rows: exp.Query, units: Sequence[str], groups: _Groups) -> exp.Select:
    """Rolling users or sessions: each counts from one of their buckets until the next one takes over."""
    keys: list[exp.Expr] = [*(column(name) for name in units), *groups.of_rows(), column("first_bucket")]
    last = named(exp.Max(this=column("last_bucket")), "last_bucket")
    active = select([*keys, last], subquery(rows, "counted"), group_by=[key.copy() for key in keys])
    *partition, first = (key.copy() for key in keys)
    following = exp.Window(
        this=function("lead", column("first_bucket")), partition_by=partition, order=exp.Order(expressions=[first])
    )
    before = exp.Sub(this=following, expression=number(1))
    counts: exp.Expr = number(1)
    if "session_id" in units:  # events outside any session count for none
        counts = exp.Case(ifs=[exp.If(this=is_set(column("session_id")), true=number(1))], default=number(0))
    stretches = select(
        [
            *groups.once(),
            column("first_bucket"),
            named(function("least", column("last_bucket"), before), "last_bucket"),
            named(counts, "value"),
        ],
        subquery(active, "active"),
    )
    return _changes(stretches, ["value"], groups)


def _summed_changes(measure: TrendMeasure, rows: exp.Query, groups: _Groups) -> exp.Select:
    """Rolling counts and sums: from each shard one row per stretch of buckets, of which there are few."""
    summed = _aggregated(measure, rows, ["first_bucket", "last_bucket"], groups, changes=True)
    return _changes(summed, ["value", *(["counted"] if measure.function == "avg" else [])], groups)


def _changes(stretches: exp.Query, values: Sequence[str], groups: _Groups) -> exp.Select:
    """What begins to count in each bucket, less what ended with the one before."""
    after = exp.Add(this=column("last_bucket"), expression=number(1))
    up_and_down = {"bucket_number": [column("first_bucket"), after]}
    up_and_down |= {name: [column(name), exp.Neg(this=column(name))] for name in values}
    # Sets in the select list advance together; Citus pushes them down, unlike a lateral join.
    columns = [named(function("unnest", exp.Array(expressions=ends)), name) for name, ends in up_and_down.items()]
    changes = select([*groups.after(), *columns], subquery(stretches, "stretches"))
    return select(
        [
            column("bucket_number"),
            *groups.after(),
            *(named(exp.Sum(this=column(name)), name) for name in values),
        ],
        subquery(changes, "changes"),
        group_by=[column("bucket_number"), *groups.after()],
    )


def _extremes(measure: TrendMeasure, rows: exp.Query, groups: _Groups) -> exp.Select:
    """The least or greatest of every stretch of buckets, then of every bucket."""
    of_stretches = _aggregated(measure, rows, ["first_bucket", "last_bucket"], groups)
    return select(
        [column("bucket_number"), *groups.after(), named(aggregate(measure.function), "value")],
        subquery(_in_every_bucket(of_stretches), "measured"),
        group_by=[column("bucket_number"), *groups.after()],
    )


def _of_stretches_per_user(measure: TrendMeasure, rows: exp.Query, groups: _Groups) -> exp.Select:
    """The measure of a user's events in every stretch of buckets, then of the stretches in every bucket."""
    keys: list[exp.Expr] = [
        column("user_id"), *groups.of_rows(), column("first_bucket"), column("last_bucket")
    ]  # fmt: skip
    value = named(aggregate(measure.function), "value")
    parts = select([*keys, value], subquery(rows, "counted"), group_by=[key.copy() for key in keys])
    combined = replace(measure, function=_COMBINED[measure.function])
    return _aggregated(combined, _in_every_bucket(parts), ["bucket_number"], groups)


def _in_every_bucket(rows: exp.Query) -> exp.Select:
    every = function("generate_series", column("first_bucket"), column("last_bucket"))
    return select([exp.Star(), named(every, "bucket_number")], subquery(rows, "stretches"))


def _of_user(name: str) -> exp.Expr:
    """The measure of one user's events; a sum is 0 where they have no number, as it is of a bucket."""
    if name == "sessions":
        return exp.Count(this=exp.Distinct(expressions=[column("session_id")]))
    value = aggregate(name)
    return exp.Coalesce(this=value, expressions=[number(0)]) if name == "sum" else value
