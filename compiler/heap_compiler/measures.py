"""Measures of events: what `count of`, `users of`, `sum(amount) of` read of each event, and how they add it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import of_users
from heap_compiler.bind import Binder
from heap_compiler.bound import BoundEvent, GroupKey
from heap_compiler.durations import collected, each_of, quantile
from heap_compiler.groups import event_values, join_user_values
from heap_compiler.predicates import number_of
from heap_compiler.ranges import TimeRange
from heap_compiler.scan import distinct_events
from heap_compiler.sql import cast, column, function, is_set, number, select, subquery

__all__ = [
    "PERCENTILES",
    "UNITS",
    "Measure",
    "aggregate",
    "bind_measure",
    "distinct_units",
    "measured_rows",
    "percentile_of",
    "percentile_values",
]

PERCENTILES = {"median": "0.5", "p75": "0.75", "p90": "0.9", "p95": "0.95", "p99": "0.99"}
"""Their measures' names, and which part of the values is below each."""

UNITS = {"users": ("user_id",), "sessions": ("user_id", "session_id")}
"""What the measures count that count something else than events."""


@dataclass(frozen=True, slots=True)
class Measure:
    """`function` over `event`, of `value` where it is a measure of a property. `cte` names its rows in the query."""

    cte: str
    function: str
    event: BoundEvent
    value: exp.Expr | None


def bind_measure(written: syntax.Measure, cte: str, binder: Binder) -> Measure:
    """Raises HeapError: the event cannot be bound, or the property is never a number."""
    value = None if written.property is None else number_of(written.property)
    return Measure(cte, written.function, binder.event(written.event), value)


def measured_rows(
    schema: str,
    measure: Measure,
    read: TimeRange,
    users: exp.Query | None,
    keys: Sequence[GroupKey],
    more: Mapping[str, exp.Expr],
) -> exp.Query:
    """The measure's events with what is measured and grouped by, each event once; `more` are columns to read too."""
    columns: dict[str, exp.Expr] = {}
    if measure.function in {"users", "sessions"} or users is not None or any(key.of_user for key in keys):
        columns["user_id"] = column("user_id")
    if measure.function == "sessions":
        columns["session_id"] = column("session_id")
    columns |= {**more, **event_values(keys)}
    if measure.value is not None:
        columns["value"] = measure.value
    if not columns:
        columns["event_id"] = column("event_id")
    alias = f"{measure.cte}_events"
    rows = distinct_events(schema, measure.event, read, columns, alias=alias, extra=of_users(users))
    return join_user_values(schema, keys, rows, list(columns))


def distinct_units(measure: Measure, rows: exp.Query, keys: Sequence[str]) -> exp.Query:
    """The rows; for a measure that counts users or sessions, each of those once per `keys`."""
    units = UNITS.get(measure.function)
    if units is None:
        return rows
    each = [column(name) for name in dict.fromkeys((*units, *keys))]
    return select(each, subquery(rows, "counted"), distinct=True)


def aggregate(name: str) -> exp.Expr:
    """The measure of that name of a group of rows."""
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
    return cast(quantile(PERCENTILES[name], _double(value)), "numeric")


def percentile_values() -> exp.Expr:
    """The numbers that a percentile of a group of rows is taken of, as an array: shards can give their parts of it."""
    value = column("value")
    return collected(_double(value), is_set(value.copy()))


def percentile_of(name: str, numbers: exp.Expr) -> exp.Expr:
    """The percentile of that name of an array of numbers."""
    percentile = cast(quantile(PERCENTILES[name], column("value")), "numeric")
    return exp.Subquery(this=select([percentile], each_of(numbers, "value")))


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
