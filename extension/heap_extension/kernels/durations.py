"""Statistics of the durations that kernels send: microseconds as int64, little-endian, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import numpy as np

__all__ = ["average", "counts", "quantiles"]

_DAY = 86_400_000_000


def average(durations: bytes) -> float | None:
    """The average in seconds, exact before the division; None of nothing."""
    values = np.frombuffer(durations, "<i8")
    if len(values) == 0:
        return None
    days, rest = np.divmod(values, _DAY)  # whose sums fit into 64 bits
    return (int(days.sum()) * _DAY + int(rest.sum())) / (len(values) * 1_000_000)


def quantiles(durations: bytes, fractions: Sequence[float]) -> list[float] | None:
    """The quantiles in seconds, interpolated linearly between neighbours as percentile_cont does; None of nothing."""
    values = np.frombuffer(durations, "<i8")
    if len(values) == 0:
        return None
    last = len(values) - 1
    places = [(floor(fraction * last), ceil(fraction * last), fraction * last) for fraction in fractions]
    needed = sorted({place for low, high, _ in places for place in (low, high)})
    ordered = np.partition(values, needed)
    found = []
    for low, high, exact in places:
        lower, higher = _seconds(int(ordered[low])), _seconds(int(ordered[high]))
        found.append(lower + (exact - low) * (higher - lower))
    return found


def counts(durations: bytes, lows: Sequence[int]) -> list[int]:
    """How many durations are in each bin.

    Args:
        lows: where the bins begin, in rising seconds; each goes on to where the next begins, the last to the end.
    """
    values = np.sort(np.frombuffer(durations, "<i8"))
    begins = np.searchsorted(values, np.array(lows, np.int64) * 1_000_000, side="left")
    return [int(count) for count in np.diff(begins, append=len(values))]


def _seconds(microseconds: int) -> float:
    """Rounded as date_part('epoch', interval) is: days apart from what is left of one."""
    days, rest = divmod(microseconds, _DAY)
    return rest / 1_000_000 + days * 86_400.0
