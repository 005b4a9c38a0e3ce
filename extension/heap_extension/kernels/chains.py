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

from heap_extension.kernels.events import BLOCK, Events, Int64, changes

__all__ = ["MAX_LINE", "Chains", "Reached", "Runs", "blocks", "continued", "entered", "furthest", "together"]

Runs = Sequence[Events]
"""The events of a step, each of the runs in order: of partitions, which are merged block by block."""

MAX_LINE = 2**61
"""Longest line of integers; blocks of users are made so that theirs is no longer. One bit is left to tell steps."""

_RARE = 16
"""What is so much fewer than what it is looked for in is searched; else the two are merged."""

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
        if int(self.users[-1]) - int(self.users[0]) < MAX_LINE:
            ranks = _smaller(self.users - self.users[0], distinct - self.users[0])
        else:
            ranks = np.searchsorted(self.users, distinct)
        ranks[self.users[ranks] != distinct] = -1
        return np.repeat(ranks, np.diff(firsts, append=len(users)))


class Placed:
    """The events of a step in a block, on its line.

    Attributes:
        places: int64[e], rising: where each event is on the line.
    """

    def __init__(self, runs: Runs, pieces: Sequence[Int64], positions: Sequence[Int64 | slice]) -> None:
        """Args:
        runs: those that the events are of.
        pieces: for each run the places of its events in the block, in its order.
        positions: which of the run's events these are.
        """
        self._runs = runs
        self._pieces = pieces
        self._positions = positions
        self._source: Int64 | None = None
        self.places: Int64 = pieces[0]
        if len(pieces) > 1:
            self.places = np.concatenate(pieces)
            self.places.sort()

    @property
    def source(self) -> Int64:
        """int64[e]: the position of each among the events of the runs, one after the other. Found when it is asked for:
        sorting the places alone takes a third of the time."""
        if self._source is None:
            begin, of_runs = 0, []
            for run, positions in zip(self._runs, self._positions, strict=True):
                of_runs.append(np.arange(begin, begin + len(run.users))[positions])
                begin += len(run.users)
            # Runs have no instant in common, and of one instant each has its events by their ids: as they are sorted.
            order = np.argsort(np.concatenate(self._pieces), kind="stable")
            self._source = np.concatenate(of_runs)[order]
        return self._source

    @property
    def has_values(self) -> bool:
        """Whether values were read with the events."""
        return any(run.values for run in self._runs)

    def ids(self, at: Int64) -> Int64:
        """The event ids at positions in `places`."""
        ids: Int64 = np.concatenate([run.ids for run in self._runs])[self.source[at]]
        return ids


@dataclass(frozen=True, slots=True)
class Reached:
    """The events of a step that a chain reaches inside the window.

    Attributes:
        line: what the places are on.
        places: int64[e], rising: where each event is on the line.
        starts: int64[e]: where its chain began, as late as it can have.
        before: int64[e]: position of the chain's event among those reached of the step before.
        at: int64[e]: position among the step's events in the block.
        placed: these.
    """

    line: Line
    places: Int64
    starts: Int64
    before: Int64
    at: Int64
    placed: Placed

    def stays(self, window: int) -> tuple[Int64, Int64, Int64]:
        """Whose events they are, each user once, and of each the first and the last instant at which an event can
        continue one of the chains."""
        ranks = self.places // self.line.stretch
        firsts = changes(ranks)
        lasts = np.append(firsts[1:], len(ranks))[: len(firsts)] - 1
        ranks = ranks[firsts]
        times = self.line.base - ranks * self.line.stretch
        return self.line.users[ranks], times + self.places[firsts], times + self.starts[lasts] + window


@dataclass(frozen=True, slots=True)
class Chains:
    """Each user's chain: of those that reach furthest the one that ends first, begun as late as it can have.

    Attributes:
        users: int64[m], rising.
        levels: int64[m]: the last step reached, from 1.
        times: for each step int64[m], microseconds; meaningless beyond the level.
        sources: for each step int64[m]: position among the events of the step's runs, one after the other; -1 beyond
            the level, and 0 where the events have no values that anybody would look for.
    """

    users: Int64
    levels: Int64
    times: list[Int64]
    sources: list[Int64]


def blocks(runs: Runs, window: int) -> Iterator[Line]:
    """The users of step 1 in blocks, each with a line that 64 bits are enough for.

    Args:
        runs: its events; none give no block.
        window: microseconds, at most ten years.
    """
    runs = [run for run in runs if len(run.users)]
    if not runs:
        return
    users = np.sort(np.concatenate([run.users[changes(run.users)] for run in runs]))
    users = users[changes(users)]
    base = min(int(run.times.min()) for run in runs) - 1
    stretch = max(int(run.times.max()) for run in runs) - base + window + 2
    count = -(-sum(len(run.users) for run in runs) // BLOCK)
    size = max(1, min(-(-len(users) // count), MAX_LINE // stretch))
    for begin in range(0, len(users), size):
        block = users[begin : begin + size]
        yield Line(block, base, stretch, _table(block))


def _table(users: Int64) -> Int64 | None:
    extent = int(users[-1]) - int(users[0]) + 1
    if extent > _SPARSE * len(users):
        return None
    table = np.full(extent, -1, np.int64)
    table[users - users[0]] = np.arange(len(users))
    return table


def entered(runs: Runs, line: Line) -> Reached:
    """The events of step 1 in a block: each begins a chain.

    Args:
        runs: no two have an instant in common.
    """
    placed = _placed(runs, line, 0, len(line.users) - 1)
    every = np.arange(len(placed.places))
    return Reached(line, placed.places, placed.places, np.full(len(every), -1, np.int64), every, placed)


def continued(reached: Reached, runs: Runs, window: int, within: int | None = None) -> Reached:
    """The events of the next step that continue a chain.

    Args:
        reached: those of the step before.
        runs: those of the next step, of the same users or more; no two have an instant in common.
        window: microseconds from the chain's first event, inclusive.
        within: microseconds from the event before, inclusive; None for as long as the window lasts.
    """
    line = reached.line
    if len(reached.places) == 0:
        nobody = np.zeros(0, np.int64)
        return Reached(line, nobody, nobody, nobody, nobody, Placed([], [nobody], []))
    placed = _placed(runs, line, int(reached.places[0]) // line.stretch, int(reached.places[-1]) // line.stretch)
    before = _last_before(reached, placed)
    late = int(before.searchsorted(0))  # what is before all that was reached
    places, before = placed.places[late:], before[late:]
    starts = reached.starts[before]
    fits = places - starts <= window
    if within is not None:
        fits &= places - reached.places[before] <= within
    kept = np.flatnonzero(fits)
    return Reached(line, places[kept], starts[kept], before[kept], kept + late, placed)


def _placed(runs: Runs, line: Line, first: int, last: int) -> Placed:
    """The events of the users from one rank to another, without those of users who did not enter."""
    pieces: list[Int64] = []
    positions: list[Int64 | slice] = []
    first_user, last_user = line.users[first], line.users[last]
    for run in runs:
        begin, end = int(run.users.searchsorted(first_user)), int(run.users.searchsorted(last_user, side="right"))
        ranks, times = line.ranks(run.users[begin:end]), run.times[begin:end]
        known = ranks >= 0
        kept: Int64 | slice = slice(begin, end)
        if not known.all():
            there = np.flatnonzero(known)
            ranks, times, kept = ranks[there], times[there], there + begin
        if len(times) and (times.min() < line.base or times.max() >= line.base + line.stretch):
            times = np.clip(times, line.base, line.base + line.stretch - 1)  # where no chain gets
        ranks *= line.stretch
        ranks += times
        ranks -= line.base
        pieces.append(ranks)
        positions.append(kept)
    return Placed(runs, pieces or [np.zeros(0, np.int64)], positions)


def _last_before(reached: Reached, placed: Placed) -> Int64:
    """For each event the position of the last event reached that is earlier by (time, event id), or -1."""
    places = placed.places
    low = _smaller(reached.places, places)
    tied = np.flatnonzero(np.take(reached.places, low, mode="clip") == places)
    if len(tied):
        ids, other_ids = reached.placed.ids(reached.at), placed.ids(tied)
        begin, end = low[tied], np.searchsorted(reached.places, places[tied], side="right")
        while (searched := begin < end).any():  # binary search for the id among those of the same user and instant
            middle = (begin + end) // 2
            earlier = searched & (ids[np.minimum(middle, len(ids) - 1)] < other_ids)
            begin = np.where(earlier, middle + 1, begin)
            end = np.where(searched & ~earlier, middle, end)
        low[tied] = begin
    low -= 1
    return low


def _smaller(places: Int64, others: Int64) -> Int64:
    """For each of the others the number of places that are smaller: both rise, and are no further apart than MAX_LINE.
    What a stable sort finds in order it merges, which takes half the time of binary searches."""
    if len(others) * _RARE < len(places):
        return np.searchsorted(places, others, side="left")
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
        source[there] = step.placed.source[step.at[position]] if step.placed.has_values else 0
        time = np.zeros(size, np.int64)
        time[there] = step.places[position] - there * line.stretch + line.base
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
