"""Rows that kernels give: what they counted in each bucket and group of their shard."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import NamedTuple, Protocol, Self, TypeVar

__all__ = ["EXACT", "Totals", "added_up"]

EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
"""Adds numbers as PostgreSQL's numeric does: nothing is rounded."""


class Totals(NamedTuple):
    """A row of heap._kernel_totals.

    Attributes:
        bucket: its number; where there are no buckets of time, whatever else comes in numbers.
        group_values: None without groups.
        counts: what is counted there.
        durations: microseconds, int64 in little-endian order, where there are some.
        value: a sum of numbers, where one is asked for.
    """

    bucket: int
    group_values: list[str | None] | None
    counts: list[int]
    durations: bytes | None = None
    value: Decimal | None = None

    def plus(self, other: Totals) -> Totals:
        """The totals of this bucket and group with those of another slice."""
        durations = None if self.durations is None else self.durations + (other.durations or b"")
        counts = [one + two for one, two in zip(self.counts, other.counts, strict=True)]
        value = None if self.value is None else EXACT.add(self.value, other.value or Decimal(0))
        return Totals(self.bucket, self.group_values, counts, durations, value)


class _Row(Protocol):
    """A row that is told from others by its bucket and group."""

    @property
    def bucket(self) -> int | None: ...

    @property
    def group_values(self) -> list[str | None] | None: ...

    def plus(self, other: Self) -> Self:
        """With what was counted of the same bucket and group in another slice."""
        ...


_AnyRow = TypeVar("_AnyRow", bound=_Row)


def added_up(rows: Iterable[_AnyRow]) -> list[_AnyRow]:
    """One row for each bucket and group, of those of all slices of users."""
    found: dict[tuple[int | None, tuple[str | None, ...] | None], _AnyRow] = {}
    for row in rows:
        key = row.bucket, None if row.group_values is None else tuple(row.group_values)
        found[key] = row if key not in found else found[key].plus(row)
    return list(found.values())
