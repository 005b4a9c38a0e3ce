"""A row that a kernel gives: what it counted in one bucket and group of its shard."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Totals"]


class Totals(NamedTuple):
    """A row of heap._kernel_totals.

    Attributes:
        bucket: its number; where there are no buckets of time, whatever else comes in numbers.
        group_values: None without groups.
        counts: what is counted there.
        durations: microseconds, int64 in little-endian order, where there are some.
    """

    bucket: int
    group_values: list[str | None] | None
    counts: list[int]
    durations: bytes | None = None

    def plus(self, other: Totals) -> Totals:
        """The totals of this bucket and group with those of another slice."""
        durations = None if self.durations is None else self.durations + (other.durations or b"")
        counts = [one + two for one, two in zip(self.counts, other.counts, strict=True)]
        return Totals(self.bucket, self.group_values, counts, durations)
