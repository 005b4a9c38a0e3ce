"""When users are active, over arrays: what trends, retention, lifecycle and stickiness count, by bucket and group.

Events come in the order (user, time). So a user's buckets are in order, too, and an event is the first of its user and
bucket when either differs from the event before: no hash and no sort. Only where the groups are of events are users'
events sorted by group first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from heap_extension.kernels.events import ByUser, Int64, differs

__all__ = [
    "Activity", "Buckets", "Cells", "Cohorts", "Counts", "Follow", "active", "cohorts", "lifecycle",
    "numbered_cells", "retention", "stickiness", "trend", "trend_of_runs",
]  # fmt: skip

_MAX_TABLE = 1 << 20
"""Longest table that buckets are looked up in: more than a century of hours."""


class Counts(NamedTuple):
    """What was counted, per bucket and group.

    Attributes:
        buckets: int64[c].
        groups: int64[c]; zeros without groups.
        values: int64[c, k].
    """

    buckets: Int64
    groups: Int64
    values: Int64


@dataclass(frozen=True, slots=True)
class Activity:
    """The distinct buckets of units. A unit is a user, or where groups are of events a user in a group.

    Attributes:
        units: int64[n], rising.
        buckets: int64[n], rising along a unit.
        groups: int64[n], the same along a unit; None without groups.
    """

    units: Int64
    buckets: Int64
    groups: Int64 | None


class Buckets:
    """Finds the bucket of times: 1 for the first of the bounds, 0 for anything earlier.

    The bounds of calendar units are whole hours, or at least quarters, apart. Their common measure divides the time
    into cells, each inside one bucket: a division and a look into a table instead of a search.

    Args:
        bounds: int64[b], rising.
    """

    def __init__(self, bounds: Int64) -> None:
        self._bounds = bounds
        self._first, last = (int(bounds[0]), int(bounds[-1])) if len(bounds) else (0, 0)
        self._cell = gcd(*(bounds - self._first).tolist()) or 1
        self._count = (last - self._first) // self._cell + 1
        self._table: Int64 | None = None
        if len(bounds) < self._count <= _MAX_TABLE:
            self._table = np.zeros(self._count + 1, np.int64)  # cell 0 lies before the first bound
            self._table[(bounds - self._first) // self._cell + 1] = 1
            np.cumsum(self._table, out=self._table)

    def of(self, times: Int64) -> Int64:
        """The bucket of each time: int64[n].

        Args:
            times: int64[n], microseconds.
        """
        if len(self._bounds) == 0 or self._count > _MAX_TABLE:
            return np.searchsorted(self._bounds, times, side="right")
        cells = times - (self._first - self._cell)
        cells //= self._cell
        np.minimum(cells, self._count, out=cells)
        np.maximum(cells, 0, out=cells)
        return cells if self._table is None else self._table[cells]


def active(users: Int64, buckets: Int64, groups: Int64 | None = None, *, of_events: bool = False) -> Activity:
    """The distinct buckets of each user, or of each user in each group.

    Args:
        users: int64[n], rising.
        buckets: int64[n], rising within a user, or not falling.
        groups: int64[n], from 0.
        of_events: a user's events can be in several groups; otherwise they are all in one.
    """
    units = users
    if groups is not None and of_events:
        units = _ranks(users) * (int(groups.max(initial=0)) + 1) + groups
        order = np.argsort(units, kind="stable")  # leaves the buckets of a unit in their order
        units, buckets, groups = units[order], buckets[order], groups[order]
    kept = np.flatnonzero(differs(units) | differs(buckets))
    return Activity(units[kept], buckets[kept], None if groups is None else groups[kept])


def trend(buckets: Int64, groups: Int64 | None, activity: Activity) -> Counts:
    """Per bucket and group: its events, and its users."""
    cells, places = numbered_cells(buckets, groups)
    users = _cells_of(cells, activity.buckets, activity.groups)
    return _counts(cells, [np.bincount(places, minlength=len(cells.buckets)), users])


def trend_of_runs(runs: Iterable[Iterable[ByUser]], buckets_of: Buckets) -> Counts:
    """As `trend` without groups, of events that were read in runs: these need no common order.

    Args:
        runs: each in blocks; the last user of one may be the first of the next, where they are in no earlier bucket.
    """
    events = users = in_runs = np.zeros(1, np.int64)
    firsts: list[tuple[Int64, Int64, Int64, Int64]] = []
    for run in runs:
        here, last = np.zeros(1, np.int64), None
        for block in run:
            if len(block.times) == 0:
                continue
            buckets = buckets_of.of(block.times)
            new = differs(buckets)
            new[block.begins] = True
            new[0] = last != (block.users[0], buckets[0])
            last = block.users[-1], buckets[-1]
            at = np.flatnonzero(new)
            firsts.append((block.users, block.begins, at, buckets[at]))
            here = _added(here, np.bincount(buckets))
            users = _added(users, np.bincount(firsts[-1][-1]))
        events, in_runs = _added(events, here), _added(in_runs, here > 0)
    users = _added(users, np.zeros(len(events), np.int64))
    shared = in_runs > 1
    if shared.any():  # a user counts once
        found: list[tuple[Int64, Int64]] = []
        for of_run, begins, at, buckets in firsts:
            in_shared = shared[buckets]
            found.append((of_run[begins.searchsorted(at[in_shared], side="right") - 1], buckets[in_shared]))
        of_runs, buckets = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        order = np.lexsort((of_runs, buckets))
        once = buckets[order][differs(of_runs[order]) | differs(buckets[order])]
        users = np.where(shared, np.bincount(once, minlength=len(users)), users)
    kept = np.flatnonzero(events)
    return Counts(kept, np.zeros(len(kept), np.int64), np.stack([events[kept], users[kept]], axis=1))


def _added(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Int64:
    """The sum of arrays, of which one may be shorter."""
    total = np.zeros(max(len(one), len(other)), np.int64)
    total[: len(one)] += one
    total[: len(other)] += other
    return total


def lifecycle(activity: Activity) -> Counts:
    """Per bucket and group the users who are new, returning and resurrecting, and those not there in the next one."""
    is_new = differs(activity.units)
    goes_on = np.diff(activity.buckets, prepend=-1) == 1
    returning = goes_on & ~is_new
    leaving = np.ones(len(is_new), np.bool_)
    leaving[:-1] = ~returning[1:]
    cells, places = numbered_cells(activity.buckets, activity.groups)
    size = len(cells.buckets)
    kinds = (is_new, returning, ~is_new & ~goes_on, leaving)
    return _counts(cells, [np.bincount(places[kind], minlength=size) for kind in kinds])


def stickiness(activity: Activity) -> Counts:
    """Per number of buckets and group: the users active in so many. The number stands in `buckets`."""
    firsts = np.flatnonzero(differs(activity.units))
    intervals = np.diff(firsts, append=len(activity.units))
    cells, places = numbered_cells(intervals, None if activity.groups is None else activity.groups[firsts])
    return _counts(cells, [np.bincount(places, minlength=len(cells.buckets))])


class Cohorts(NamedTuple):
    """Who starts: one row per user, or per user and bucket where users start again.

    Attributes:
        users: int64[m], rising.
        buckets: int64[m]: the cohort.
        times: int64[m], microseconds.
        positions: int64[m]: of the start among the events it was taken from.
    """

    users: Int64
    buckets: Int64
    times: Int64
    positions: Int64


class Follow(NamedTuple):
    """How cohorts are followed.

    Attributes:
        firsts: the first unit of each period, from 1.
        last: the last unit of the last one.
        window: microseconds that a unit has, counted from the user's own start; None where units are buckets.
        at_least: how many return events a period needs.
        counting: whether a period counts for itself, for those before it too, or only after all of those before it.
    """

    firsts: Sequence[int]
    last: int
    window: int | None = None
    at_least: int = 1
    counting: Literal["on", "rolling", "streak"] = "on"


def cohorts(users: Int64, times: Int64, buckets: Int64, *, recurring: bool) -> Cohorts:
    """Every user's first start, or with `recurring` the first of every bucket.

    Args:
        users, times, buckets: of the start events, in the order (user, time).
    """
    begins = differs(users) | differs(buckets) if recurring else differs(users)
    kept = np.flatnonzero(begins)
    return Cohorts(users[kept], buckets[kept], times[kept], kept)


def retention(
    starts: Cohorts, groups: Int64 | None, users: Int64, times: Int64, buckets: Int64, follow: Follow
) -> Counts:
    """Per cohort and group: all who start, then those who come back in each period.

    Args:
        starts: those who start.
        groups: the group of each start.
        users, times, buckets: of the return events, in the order (user, time), each once if `at_least` is more than 1.
        follow: what is counted.
    """
    if follow.window is None and follow.at_least == 1:
        kept = np.flatnonzero(differs(users) | differs(buckets))
        users, times, buckets = users[kept], times[kept], buckets[kept]
    start, units = _later(starts, users, times, buckets, follow)
    start, periods = _periods(start, units, follow)
    count = len(follow.firsts)
    cells, places = numbered_cells(starts.buckets, groups)
    size = len(cells.buckets)
    values = np.zeros((size, count + 1), np.int64)
    if follow.counting == "on":
        values[:, 0] = np.bincount(places, minlength=size)
        here = places[start] * (count + 1) + periods
        values += np.bincount(here, minlength=values.size).reshape(values.shape)
        return Counts(cells.buckets, cells.groups, values)
    lasts = np.zeros(len(starts.users), np.int64)
    if follow.counting == "rolling":
        lasts[start] = np.minimum(periods, count)  # of several, the last, which is the greatest, stays
    else:
        at = np.arange(len(start), dtype=np.int64)
        nth = at - np.maximum.accumulate(np.where(differs(start), at, 0)) + 1
        lasts = np.bincount(start[periods == nth], minlength=len(lasts)).astype(np.int64)
    values += np.bincount(places * (count + 1) + lasts, minlength=values.size).reshape(values.shape)
    values = np.flip(np.cumsum(np.flip(values, axis=1), axis=1), axis=1)
    return Counts(cells.buckets, cells.groups, values)


def _later(starts: Cohorts, users: Int64, times: Int64, buckets: Int64, follow: Follow) -> tuple[Int64, Int64]:
    """Every return after a start of the same user: the start's position, and how many units later it is."""
    firsts = np.flatnonzero(differs(users))
    counts = np.diff(firsts, append=len(users))
    low, high = (np.searchsorted(starts.users, users[firsts], side=side) for side in ("left", "right"))
    pairs = np.repeat(high - low, counts)
    returns = np.repeat(np.arange(len(users), dtype=np.int64), pairs)
    ends = np.cumsum(pairs)
    start = np.arange(len(returns), dtype=np.int64) - np.repeat(ends - pairs, pairs) + np.repeat(low, counts)[returns]
    if follow.window is None:
        units = buckets[returns] - starts.buckets[start]
    else:
        units = (times[returns] - starts.times[start]) // follow.window
    fits = units > 0
    if follow.counting != "rolling":
        fits &= units <= follow.last
    kept = np.flatnonzero(fits)
    return start[kept], units[kept]


def _periods(start: Int64, units: Int64, follow: Follow) -> tuple[Int64, Int64]:
    """The distinct periods, from 1, in which enough returns lie, in the order of start and period. What lies beyond the
    last unit has higher numbers."""
    bounds = np.array([*follow.firsts, follow.last + 1], np.int64)
    if follow.last == len(follow.firsts):
        periods = units
    else:
        periods = np.searchsorted(bounds, units, side="right").astype(np.int64)
    width = int(periods.max(initial=0)) + 1
    found, counts = np.unique(start * width + periods, return_counts=True)
    if follow.at_least > 1:
        found = found[counts >= follow.at_least]
    return found // width, found % width


def _ranks(values: Int64) -> Int64:
    """The rank of each of the rising values among the distinct ones, from 0."""
    return np.cumsum(differs(values)) - 1


class Cells(NamedTuple):
    """The pairs of a bucket and a group that there are, by number; `numbers` and `width` find a pair's."""

    buckets: Int64
    groups: Int64
    numbers: Int64
    width: int


def numbered_cells(buckets: Int64, groups: Int64 | None) -> tuple[Cells, Int64]:
    """The pairs, and the number of each row's."""
    width = 1 if groups is None else int(groups.max(initial=0)) + 1
    pairs = buckets if groups is None else buckets * width + groups
    size = int(pairs.max(initial=0)) + 1
    if size <= 2 * len(pairs) + 1_000:  # few enough to be counted in a table
        there = np.flatnonzero(np.bincount(pairs, minlength=size))
        number = np.zeros(size, np.int64)
        number[there] = np.arange(len(there))
        places = number[pairs]
    else:
        there, places = np.unique(pairs, return_inverse=True)
    return Cells(there // width, there % width, there, width), places


def _cells_of(cells: Cells, buckets: Int64, groups: Int64 | None) -> Int64:
    """How many rows each pair has. All of theirs are there."""
    pairs = buckets if groups is None else buckets * cells.width + groups
    return np.bincount(np.searchsorted(cells.numbers, pairs), minlength=len(cells.numbers))


def _counts(cells: Cells, columns: Sequence[Int64]) -> Counts:
    return Counts(cells.buckets, cells.groups, np.stack(columns, axis=1))
