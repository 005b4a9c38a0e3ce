"""How long things took: seconds on the workers, intervals in the rows.

A median needs every duration: a shard sends one array per group, the coordinator takes the quantiles of their elements.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from heap_compiler.sql import cast, function, is_set, table_alias, text

__all__ = ["collected", "each_of", "interval", "quantile", "quantiles", "seconds"]


def seconds(start: exp.Expr, end: exp.Expr) -> exp.Expr:
    """The seconds from one time to another, a double."""
    return function("date_part", text("epoch"), exp.Sub(this=end, expression=start))


def interval(value: exp.Expr) -> exp.Expr:
    """Seconds as an interval of days and hours."""
    second = cast(text("1 second"), "interval")
    return function("justify_hours", exp.Mul(this=value, expression=second))


def collected(value: exp.Expr, given: exp.Expr) -> exp.Expr:
    """An array of the values in rows where `given` is set; null when there is none."""
    return exp.Filter(this=exp.ArrayAgg(this=value), expression=exp.Where(this=is_set(given)))


def each_of(array: exp.Expr, name: str) -> exp.Table:
    """The elements of an array as rows of one column, both called `name`."""
    return exp.Table(this=function("unnest", array), alias=table_alias(name))


def quantile(fraction: str, value: exp.Expr) -> exp.Expr:
    """The quantile of a group's values, interpolated linearly."""
    return _quantile(exp.Literal.number(fraction), value)


def quantiles(fractions: Sequence[str], value: exp.Expr) -> exp.Expr:
    """Several quantiles at once, as an array: the values are sorted once."""
    return _quantile(exp.Array(expressions=[exp.Literal.number(fraction) for fraction in fractions]), value)


def _quantile(fraction: exp.Expr, value: exp.Expr) -> exp.Expr:
    ordered = exp.Order(expressions=[value])
    return exp.WithinGroup(this=exp.PercentileCont(this=fraction), expression=ordered)
