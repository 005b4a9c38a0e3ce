"""Steps done in any order inside one window, over arrays: an event fills one step, also where it could fill several.

Like the SQL of the same name: the most steps that events can fill come from counts alone (Hall's theorem), and counts
of any stretch of a unit's events are differences of running sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heap_extension.kernels.chains import Chains
from heap_extension.kernels.events import Int64, changes

__all__ = ["Matched", "furthest_in_any_order"]

Bool = npt.NDArray[np.bool_]


class Matched(NamedTuple):
    """The events that match any of the steps, each once, in the order (unit, place).

    Attributes:
        users: int64[n].
        units: int64[n], rising: what the events of a chain share.
        places: int64[n]: see `kernels.places`.
        times: int64[n], microseconds.
        steps: int64[n]: the steps each matches, as bits.
    """

    users: Int64
    units: Int64
    places: Int64
    times: Int64
    steps: Int64


def furthest_in_any_order(
    matched: Matched, groups: Sequence[Sequence[int]], window: int, entry_end: int
) -> tuple[Chains, Int64]:
    """The chain of each unit that has one; with the places of the chains' ends.

    Of all spans no longer than the window whose first event is before `entry_end`: the one with most steps; among these
    the one that ends first, then the one that begins last. Its k-th event is the last one that leaves all steps from
    the k-th on to be done. Sources are positions among `matched`.

    Args:
        groups: the steps, by index; those of different groups match no common event.
    """
    units, times = matched.units, matched.times
    begins = changes(units)
    lengths = np.diff(begins, append=len(units))
    sums = _running_sums(matched.steps, groups)
    here = np.arange(len(units), dtype=np.int64)
    reach = _first_since(times, np.repeat(begins, lengths), here, times - window)
    most = _most_steps(groups, lambda bits: sums[bits][here + 1] - sums[bits][reach])
    most[times[reach] >= entry_end] = 0
    levels = np.maximum.reduceat(most, begins) if len(begins) else begins
    at_most = np.flatnonzero((most == np.repeat(levels, lengths)) & (most > 0))
    ends = at_most[changes(units[at_most])]
    levels = most[ends]
    spans = _Spans(reach[ends], ends)
    done = _most_steps(groups, lambda bits: sums[bits][spans.ends + 1] - sums[bits][spans.at])
    firsts = spans.last((done >= spans.of_each(levels)) & (times[spans.at] < entry_end))
    rest = _Spans(firsts + 1, ends)
    with_first = rest.of_each(matched.steps[firsts])
    done = _most_steps(
        groups, lambda bits: sums[bits][rest.ends + 1] - sums[bits][rest.at] + ((with_first & bits) != 0)
    )
    sources = [firsts]
    for step in range(2, sum(map(len, groups)) + 1):
        last = rest.last(done >= rest.of_each(levels - step + 2))
        sources.append(np.where(levels >= step, last, -1))
    chain_times = [np.where(source >= 0, times[source], 0) for source in sources]
    return Chains(matched.users[ends], levels, chain_times, sources), matched.places[ends]


class _Spans:
    """Stretches of an array, laid one after the other.

    Attributes:
        at: the positions in all of them.
        ends: for each of these the last position of its stretch.
    """

    def __init__(self, begins: Int64, ends: Int64) -> None:
        self._begins = begins
        self._lengths = ends - begins + 1
        offsets = np.cumsum(self._lengths) - self._lengths
        self._offsets = offsets
        self.at = np.arange(int(self._lengths.sum()), dtype=np.int64) + np.repeat(begins - offsets, self._lengths)
        self.ends = np.repeat(ends, self._lengths)

    def of_each(self, values: Int64) -> Int64:
        """The values of stretches for the positions in them."""
        return np.repeat(values, self._lengths)

    def last(self, holds: Bool) -> Int64:
        """The last position of each stretch at which something holds that, where it holds, holds at all before."""
        counts = np.append(0, np.cumsum(holds))
        found: Int64 = self._begins + counts[self._offsets + self._lengths] - counts[self._offsets] - 1
        return found


def _subsets(group: Sequence[int]) -> list[tuple[int, int]]:
    """The subsets of a group of steps, as bits, with the number of the other steps."""
    return [
        (sum(1 << step for step in steps), len(group) - size)
        for size in range(1, len(group) + 1)
        for steps in combinations(group, size)
    ]


def _running_sums(steps: Int64, groups: Sequence[Sequence[int]]) -> dict[int, Int64]:
    """For each subset of a group, as bits, how many of the events before each match any of its steps."""
    return {bits: np.append(0, np.cumsum((steps & bits) != 0)) for group in groups for bits, _ in _subsets(group)}


def _most_steps(groups: Sequence[Sequence[int]], events_of: Callable[[int], Int64]) -> Int64:
    """How many steps can be done; `events_of(bits)` counts the events that match any of the steps with these bits."""
    total: Int64 | int = 0
    for group in groups:
        done: Int64 | int = len(group)
        for bits, others in _subsets(group):
            done = np.minimum(done, events_of(bits) + others)
        total = total + done
    assert not isinstance(total, int)
    return total


def _first_since(times: Int64, low: Int64, high: Int64, wanted: Int64) -> Int64:
    """Of the stretches of rising times from `low` to `high` the first position with at least the time wanted, which the
    last one has: a binary search in all of them at once."""
    found, searched = low.copy(), np.flatnonzero(times[low] < wanted)
    low, high, wanted = low[searched], high[searched], wanted[searched]
    while len(searched):
        middle = (low + high) // 2
        earlier = times[middle] < wanted
        low, high = np.where(earlier, middle + 1, low), np.where(earlier, high, middle)
        found[searched] = low
        more = low < high
        searched, low, high, wanted = searched[more], low[more], high[more], wanted[more]
    return found
