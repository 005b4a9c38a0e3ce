"""The chains of a funnel over arrays: the matching events of each step in, every user's chain out.

A user's life becomes a stretch of one line of integers: `rank * stretch + (time - base)`, with users ranked by id and
stretches so long that nobody's window reaches into the next one. "The same user, inside the window" is then one
subtraction, and "the last event before" one binary search.

An event of step k continues the chain that ends with the last event of step k - 1 before it. That one is enough: of two
chains of the same steps, the one that ends later began no earlier. Events that no chain reaches inside the window are
left out at once, with the users who have no others: what follows works on what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heap_extension.kernels.events import Events, Int64, changes

__all__ = ["MAX_LINE", "Chains", "Reached", "blocks", "continued", "entered", "furthest"]

Bool = npt.NDArray[np.bool_]

MAX_LINE = 2**62
"""Longest line of integers; blocks of users are made so that theirs is no longer."""


@dataclass(frozen=True, slots=True)
class Line:
    """The line of integers that users' lives are laid out on.

    Attributes:
        users: int64[m], rising: those who entered, by rank.
        base: the earliest time on it, microseconds.
        stretch: how much of the line each user has.
    """

    users: Int64
    base: int
    stretch: int


@dataclass(frozen=True, slots=True)
class Reached:
    """The events of a step that a chain reaches inside the window.

    Attributes:
        line: what the places are on.
        places: int64[e], rising: where each event is on the line.
        starts: int64[e]: where its chain began, as late as it can have.
        before: int64[e]: position of the chain's event among those reached of the step before.
        source: int64[e]: position among the step's events.
        events: the step's events.
    """

    line: Line
    places: Int64
    starts: Int64
    before: Int64
    source: Int64
    events: Events

    @property
    def ranks(self) -> Int64:
        """int64[e]: whose events they are."""
        return self.places // self.line.stretch


@dataclass(frozen=True, slots=True)
class Chains:
    """Each user's chain: of those that reach furthest the one that ends first, begun as late as it can have.

    Attributes:
        users: int64[m], rising.
        levels: int64[m]: the last step reached, from 1.
        times: for each step int64[m], microseconds; meaningless beyond the level.
        sources: for each step int64[m]: position among the step's events; -1 beyond the level.
    """

    users: Int64
    levels: Int64
    times: list[Int64]
    sources: list[Int64]


def blocks(events: Events, window: int) -> Iterator[tuple[Events, Line]]:
    """The events of step 1 in blocks of whole users, each with a line that 64 bits are enough for.

    Args:
        events: in their order; none give no block.
        window: microseconds, at most ten years.
    """
    firsts = changes(events.users)
    if len(firsts) == 0:
        return
    base = int(events.times.min())
    stretch = int(events.times.max()) - base + window + 1
    size = max(1, MAX_LINE // stretch)
    for begin in range(0, len(firsts), size):
        first = int(firsts[begin])
        last = int(firsts[begin + size]) if begin + size < len(firsts) else len(events.users)
        yield events.between(first, last), Line(events.users[firsts[begin : begin + size]], base, stretch)


def entered(events: Events, line: Line) -> Reached:
    """The events of step 1: each begins a chain."""
    places = _ranks(events.users, line.users) * line.stretch + (events.times - line.base)
    positions = np.arange(len(places), dtype=np.int64)
    return Reached(line, places, places, np.full(len(places), -1, np.int64), positions, events)


def continued(reached: Reached, events: Events, window: int, within: int | None = None) -> Reached:
    """The events of the next step that continue a chain.

    Args:
        reached: those of the step before.
        events: those of the next step, of the same users or more.
        window: microseconds from the chain's first event, inclusive.
        within: microseconds from the event before, inclusive; None for as long as the window lasts.
    """
    line = reached.line
    source, ranks = _of_users(events, reached)
    times = events.times[source] if len(source) < len(events.times) else events.times
    in_line = (times >= line.base) & (times < line.base + line.stretch)
    if not in_line.all():
        source, ranks, times = source[in_line], ranks[in_line], times[in_line]
    places = ranks * line.stretch + (times - line.base)
    before = _last_before(reached, places, events, source)
    at = np.maximum(before, 0)
    fits = (before >= 0) & (places - reached.starts[at] <= window) if len(reached.starts) else np.zeros(0, np.bool_)
    if within is not None:
        fits &= places - reached.places[at] <= within
    kept = np.flatnonzero(fits)
    before = before[kept]
    return Reached(line, places[kept], reached.starts[before], before, source[kept], events)


def furthest(steps: list[Reached]) -> Chains:
    """Every user's chain, from what was reached of each step."""
    line = steps[0].line
    size = len(line.users)
    levels = np.zeros(size, np.int64)
    ends = np.zeros(size, np.int64)
    for level, step in enumerate(steps, start=1):
        ranks = step.ranks
        begins = changes(ranks)
        levels[ranks[begins]] = level
        ends[ranks[begins]] = begins
    times: list[Int64] = []
    sources: list[Int64] = []
    position = ends
    for level in range(len(steps), 0, -1):
        step = steps[level - 1]
        position = np.where(levels == level, ends, position)
        there = np.flatnonzero(levels >= level)
        at = position[there]
        source = np.full(size, -1, np.int64)
        source[there] = step.source[at]
        time = np.zeros(size, np.int64)
        time[there] = step.events.times[step.source[at]]
        position = position.copy()
        position[there] = step.before[at]
        times.insert(0, time)
        sources.insert(0, source)
    return Chains(line.users, levels, times, sources)


def _ranks(values: Int64, users: Int64) -> Int64:
    """The rank of each value among all users; each of them is there."""
    if len(values) == len(users):
        return np.arange(len(values), dtype=np.int64)
    counted = np.zeros(len(values), np.int64)
    counted[changes(values)[1:]] = 1
    return np.cumsum(counted)


def _of_users(events: Events, reached: Reached) -> tuple[Int64, Int64]:
    """The positions of the events whose users are still on their way, and these users' ranks."""
    users = reached.line.users
    alive = np.zeros(len(users), np.bool_)
    alive[reached.ranks] = True
    firsts = changes(events.users)
    counts = np.diff(firsts, append=len(events.users))
    distinct = events.users[firsts]
    ranks = np.searchsorted(users, distinct)
    ranks[ranks == len(users)] = 0
    known = (users[ranks] == distinct) & alive[ranks] if len(users) else np.zeros(len(distinct), np.bool_)
    every = np.repeat(ranks, counts)
    if known.all():
        return np.arange(len(every), dtype=np.int64), every
    source = np.flatnonzero(np.repeat(known, counts))
    return source, every[source]


def _last_before(reached: Reached, places: Int64, events: Events, source: Int64) -> Int64:
    """For each place the position of the last event reached that is earlier by (time, event id), or -1."""
    low = np.searchsorted(reached.places, places, side="left")
    if len(reached.places) == 0:
        return low - 1
    tied = np.flatnonzero(reached.places[np.minimum(low, len(reached.places) - 1)] == places)
    if len(tied):
        ids, other_ids = reached.events.ids[reached.source], events.ids[source[tied]]
        begin, end = low[tied], np.searchsorted(reached.places, places[tied], side="right")
        while (searched := begin < end).any():  # binary search for the id among those of the same user and instant
            middle = (begin + end) // 2
            earlier = searched & (ids[np.minimum(middle, len(ids) - 1)] < other_ids)
            begin = np.where(earlier, middle + 1, begin)
            end = np.where(searched & ~earlier, middle, end)
        low[tied] = begin
    return low - 1
