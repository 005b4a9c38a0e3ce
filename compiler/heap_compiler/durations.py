"""How long things took: seconds on the workers, intervals in the rows.

A median needs every duration: a shard sends one array per group, the coordinator takes the quantiles of their elements.
Kernels send the durations as bytes, which only functions made for them read.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from heap_compiler.sql import cast, function, number, table_alias, text

__all__ = [
    "average_duration",
    "collected",
    "duration_quantiles",
    "each_of",
    "interval",
    "joined_durations",
    "quantile",
    "quantiles",
    "seconds",
]


def seconds(start: exp.Expr, end: exp.Expr) -> exp.Expr:
    """The seconds from one time to another, a double."""
    return function("date_part", text("epoch"), exp.Sub(this=end, expression=start))


def interval(value: exp.Expr) -> exp.Expr:
    """Seconds as an interval of days and hours."""
    second = cast(text("1 second"), "interval")
    return function("justify_hours", exp.Mul(this=value, expression=second))


def collected(value: exp.Expr, condition: exp.Expr) -> exp.Expr:
    """An array of the values in rows for which the condition holds; null when there is none."""
    return exp.Filter(this=exp.ArrayAgg(this=value), expression=exp.Where(this=condition))


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


def joined_durations(value: exp.Expr) -> exp.Expr:
    """The durations of several rows, those of a kernel, as one value."""
    return function("string_agg", value, cast(text(""), "bytea"))


def average_duration(durations: exp.Expr) -> exp.Expr:
    """The average of a kernel's durations in seconds; null when there is none."""
    return function("heap._average_duration", durations)


def duration_quantiles(durations: exp.Expr, *fractions: str) -> exp.Expr:
    """The quantiles of a kernel's durations in seconds, an array; of a single fraction, its element."""
    wanted = cast(exp.Array(expressions=[exp.Literal.number(fraction) for fraction in fractions]), "double precision[]")
    found = function("heap._duration_quantiles", durations, wanted)
    return found if len(fractions) > 1 else exp.Bracket(this=exp.paren(found), expressions=[number(1)], offset=1)
