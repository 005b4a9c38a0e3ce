"""The chains of a funnel over arrays: the matching events of each step in, every user's chain out.

A user's life becomes a stretch of one line of integers: `rank * stretch + (time - base)`, with users ranked by id and
stretches so long that nobody's window reaches into the next one. "The same user, inside the window" is then one
subtraction, and "the last event before" a merge of two sorted arrays, or one binary search where a step is rare.

An event of step k continues the chain that ends with the last event of step k - 1 before it. That one is enough: of two
chains of the same steps, the one that ends later began no earlier. Events that no chain reaches inside the window are
left out at once, with the users who have no others: what follows works on what is left.

Users come in blocks whose arrays fit into a processor's cache: the same passes over arrays of millions of events wait
for memory, and for pages that the operating system clears, half of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heap_extension.kernels.events import Events, Int64, changes

__all__ = ["MAX_LINE", "Chains", "Reached", "blocks", "continued", "entered", "furthest", "together"]

Bool = npt.NDArray[np.bool_]

MAX_LINE = 2**61
"""Longest line of integers; blocks of users are made so that theirs is no longer. One bit is left to tell steps."""

BLOCK = 32_768
"""Events of step 1 in a block, about: an array of them takes 256 kB, and some eight are in use at once."""

_RARE = 16
"""A step with so much fewer events than the one before is searched in it; else the two are merged."""

_SPARSE = 8
"""User ids that are spread thinner than one in so many numbers have no table of ranks."""


@dataclass(frozen=True, slots=True)
class Line:
    """The line of integers that users' lives are laid out on.

    Attributes:
        users: int64[m], rising: those who entered, by rank.
        base: the time at the beginning of a stretch, microseconds; nobody entered before it or at it.
        stretch: how much of the line each user has. Nobody entered within a window of its last place.
        table: int64: the ranks of the ids from that of the first user on, -1 for those who did not enter; None where
            ids are far apart.
    """

    users: Int64
    base: int
    stretch: int
    table: Int64 | None

    def ranks(self, users: Int64) -> Int64:
        """The rank of each user, -1 of those who did not enter; all are between the first user and the last.

        Args:
            users: rising.
        """
        if self.table is not None:
            found: Int64 = self.table[users - self.users[0]]
            return found
        firsts = changes(users)
        distinct = users[firsts]
        ranks = np.searchsorted(self.users, distinct)
        ranks[self.users[ranks] != distinct] = -1
        return np.repeat(ranks, np.diff(firsts, append=len(users)))


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
    def users(self) -> Int64:
        """Whose events they are, each once."""
        return self.events.users[self.source[changes(self.places // self.line.stretch)]]


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


def blocks(events: Events, window: int) -> Iterator[tuple[slice, Line]]:
    """The events of step 1 in blocks of whole users, each with a line that 64 bits are enough for.

    Args:
        events: in their order; none give no block.
        window: microseconds, at most ten years.
    """
    firsts = changes(events.users)
    if len(firsts) == 0:
        return
    base = int(events.times.min()) - 1
    stretch = int(events.times.max()) - base + window + 2
    most = max(1, MAX_LINE // stretch)
    users = events.users[firsts]
    begin = 0
    while begin < len(firsts):
        behind = int(np.searchsorted(firsts, firsts[begin] + BLOCK, side="right"))
        end = min(max(behind - 1, begin + 1), begin + most) if behind < len(firsts) else min(behind, begin + most)
        last = int(firsts[end]) if end < len(firsts) else len(events.users)
        yield slice(int(firsts[begin]), last), Line(users[begin:end], base, stretch, _table(users[begin:end]))
        begin = end


def _table(users: Int64) -> Int64 | None:
    extent = int(users[-1]) - int(users[0]) + 1
    if extent > _SPARSE * len(users):
        return None
    table = np.full(extent, -1, np.int64)
    table[users - users[0]] = np.arange(len(users))
    return table


def entered(events: Events, block: slice, line: Line) -> Reached:
    """The events of step 1 in a block: each begins a chain."""
    places = line.ranks(events.users[block])
    places *= line.stretch
    places += events.times[block]
    places -= line.base
    none = np.full(len(places), -1, np.int64)
    return Reached(line, places, places, none, np.arange(block.start, block.stop), events)


def continued(reached: Reached, events: Events, window: int, within: int | None = None) -> Reached:
    """The events of the next step that continue a chain.

    Args:
        reached: those of the step before.
        events: those of the next step, of the same users or more.
        window: microseconds from the chain's first event, inclusive.
        within: microseconds from the event before, inclusive; None for as long as the window lasts.
    """
    places, source = _laid_out(events, reached)
    before = _last_before(reached, places, events, source)
    late = int(np.searchsorted(before, 0)) if len(before) else 0  # what is before all that was reached
    places, before = places[late:], before[late:]
    starts = reached.starts[before]
    fits = places - starts <= window
    if within is not None:
        fits &= places - reached.places[before] <= within
    kept = np.flatnonzero(fits)
    source = kept + (source + late) if isinstance(source, int) else source[late:][kept]
    return Reached(reached.line, places[kept], starts[kept], before[kept], source, events)


def _laid_out(events: Events, reached: Reached) -> tuple[Int64, Int64 | int]:
    """The places of the events whose users are still on their way, or may be; and their positions, or the first of
    them where they follow each other."""
    line = reached.line
    if len(reached.places) == 0:
        return np.zeros(0, np.int64), 0
    first, last = reached.places[0] // line.stretch, reached.places[-1] // line.stretch
    begin = int(events.users.searchsorted(line.users[first]))
    end = int(events.users.searchsorted(line.users[last], side="right"))
    ranks, times = line.ranks(events.users[begin:end]), events.times[begin:end]
    source: Int64 | int = begin
    known = ranks >= 0
    if not known.all():
        kept = np.flatnonzero(known)
        ranks, times, source = ranks[kept], times[kept], kept + begin
    offsets = times - line.base
    if len(times) and (times.min() < line.base or times.max() >= line.base + line.stretch):
        offsets = np.clip(offsets, 0, line.stretch - 1)  # where nothing fits
    ranks *= line.stretch
    ranks += offsets
    return ranks, source


def _last_before(reached: Reached, places: Int64, events: Events, source: Int64 | int) -> Int64:
    """For each place the position of the last event reached that is earlier by (time, event id), or -1."""
    if len(reached.places) == 0:
        return np.full(len(places), -1, np.int64)
    if len(places) * _RARE < len(reached.places):
        low = np.searchsorted(reached.places, places, side="left")
    else:
        low = _merged_before(reached.places, places)
    tied = np.flatnonzero(np.take(reached.places, low, mode="clip") == places)
    if len(tied):
        positions = tied + source if isinstance(source, int) else source[tied]
        ids, other_ids = reached.events.ids[reached.source], events.ids[positions]
        begin, end = low[tied], np.searchsorted(reached.places, places[tied], side="right")
        while (searched := begin < end).any():  # binary search for the id among those of the same user and instant
            middle = (begin + end) // 2
            earlier = searched & (ids[np.minimum(middle, len(ids) - 1)] < other_ids)
            begin = np.where(earlier, middle + 1, begin)
            end = np.where(searched & ~earlier, middle, end)
        low[tied] = begin
    low -= 1
    return low


def _merged_before(places: Int64, others: Int64) -> Int64:
    """For each of the others the number of places that are smaller; both rise. What a stable sort finds in order it
    merges, which takes half the time of binary searches."""
    both = np.empty(len(places) + len(others), np.int64)
    np.left_shift(others, 1, out=both[: len(others)])
    np.left_shift(places, 1, out=both[len(others) :])
    both[len(others) :] |= 1
    both.sort(kind="stable")
    low = np.flatnonzero((both & 1) == 0)
    low -= np.arange(len(low))
    return low


def furthest(steps: Sequence[Reached]) -> Chains:
    """Every user's chain, from what was reached of each step."""
    line = steps[0].line
    size = len(line.users)
    levels = np.zeros(size, np.int64)
    ends = np.zeros(size, np.int64)
    for level, step in enumerate(steps, start=1):
        ranks = step.places // line.stretch
        begins = changes(ranks)
        ranks = ranks[begins]
        levels[ranks] = level
        ends[ranks] = begins
    times: list[Int64] = []
    sources: list[Int64] = []
    there = np.zeros(0, np.int64)
    position = there
    for level in range(len(steps), 0, -1):
        step = steps[level - 1]
        new = np.flatnonzero(levels == level)
        there, position = np.concatenate([there, new]), np.concatenate([position, ends[new]])
        source = np.full(size, -1, np.int64)
        source[there] = step.source[position]
        time = np.zeros(size, np.int64)
        time[there] = step.events.times[step.source[position]]
        position = step.before[position]
        times.insert(0, time)
        sources.insert(0, source)
    return Chains(line.users, levels, times, sources)


def together(parts: Sequence[Chains]) -> Chains:
    """The chains of all blocks, at least one."""
    if len(parts) == 1:
        return parts[0]
    users, levels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("users", "levels"))
    times, sources = (
        [np.concatenate(step) for step in zip(*(getattr(part, name) for part in parts), strict=True)]
        for name in ("times", "sources")
    )
    return Chains(users, levels, times, sources)
