"""Events as arrays, in the order (user, time, event id): the runs that are read, and what they are merged into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "BLOCK",
    "Bool",
    "ByUser",
    "Events",
    "Int64",
    "OnPages",
    "changes",
    "differs",
    "in_order",
    "joined",
    "nothing",
    "replaced",
    "united",
]

BLOCK = 65_536
"""Events whose arrays fit into a processor's cache: each takes 512 kB."""

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


class OnPages(NamedTuple):
    """Which events are on which pages of one table, the only one of theirs for which that matters.

    Attributes:
        pages: int32[m].
        positions: int32[m], rising: of the event, among all.
    """

    pages: Int32
    positions: Int32

    @staticmethod
    def of(pages: Int64) -> OnPages:
        """Of events that all are on pages of this table."""
        return OnPages(pages.astype(np.int32), np.arange(len(pages), dtype=np.int32))

    def inside(self, ranges: Int64) -> Int64:
        """The positions, rising, of the events on pages from one to before another.

        Args:
            ranges: int64[n, 2].
        """
        behind = int(self.pages.max(initial=-1)) + 1
        inside = np.zeros(behind, np.bool_)
        for first, end in ranges[ranges[:, 0] < behind].tolist():
            inside[first:end] = True
        return self.positions[inside[self.pages]].astype(np.int64)

    def at(self, positions: Int64) -> OnPages:
        """Of the events at these positions, rising."""
        if len(self.positions) == 0:
            return self
        there = self.positions.searchsorted(positions.astype(np.int32))
        kept = np.flatnonzero(np.take(self.positions, there, mode="clip") == positions)
        return OnPages(self.pages[there[kept]], kept.astype(np.int32))

    def between(self, first: int, last: int) -> OnPages:
        """Of the events at these positions, first included and last not."""
        kept = (self.positions >= first) & (self.positions < last)
        return OnPages(self.pages[kept], self.positions[kept] - np.int32(first))


@dataclass(slots=True)
class Events:
    """Events in the order (user, time, event id).

    Attributes:
        users: int64[n], rising.
        times: int64[n], microseconds; rising within a user.
        read_ids: reads the event ids, int64[n]: needed only where events share an instant.
        values: for each value that was asked for, n texts in UTF-8, or `NULL`.
        pages: the pages that some of them are on.
    """

    users: Int64
    times: Int64
    read_ids: Callable[[], Int64]
    values: Sequence[list[bytes]] = ()
    pages: OnPages | None = None
    _ids: Int64 | None = None

    @property
    def ids(self) -> Int64:
        """The event ids, read once."""
        if self._ids is None:
            self._ids = self.read_ids()
        return self._ids

    def at(self, positions: Int64) -> Events:
        """The events at these positions, rising."""
        values = [[texts[at] for at in positions.tolist()] for texts in self.values]
        pages = None if self.pages is None else self.pages.at(positions)
        return Events(self.users[positions], self.times[positions], lambda: self.ids[positions], values, pages)

    def between(self, first: int, last: int) -> Events:
        """The events at these positions, first included and last not."""
        values = [texts[first:last] for texts in self.values]
        pages = None if self.pages is None else self.pages.between(first, last)
        return Events(self.users[first:last], self.times[first:last], lambda: self.ids[first:last], values, pages)

    def of_range(self, first_user: int, last_user: int) -> Events:
        """The events of the users from one to another, both included."""
        begin = int(self.users.searchsorted(first_user, side="left"))
        end = int(self.users.searchsorted(last_user, side="right"))
        return self if begin == 0 and end == len(self.users) else self.between(begin, end)

    def of(self, users: Int64) -> Events:
        """The events of these users."""
        begins = changes(self.users)
        lengths = np.diff(begins, append=len(self.users))
        return self.at(np.flatnonzero(np.repeat(np.isin(self.users[begins], users), lengths)))

    def of_few(self, users: Int64) -> Events:
        """The events of these users, rising, each of whom is looked for."""
        return self.at(self.places_of(users))

    def places_of(self, users: Int64) -> Int64:
        """The positions of the events of these users, rising, each of whom is looked for."""
        begins = self.users.searchsorted(users)
        lengths = self.users.searchsorted(users, side="right") - begins
        ends = np.cumsum(lengths)
        places: Int64 = np.arange(lengths.sum(), dtype=np.int64) + np.repeat(begins - ends + lengths, lengths)
        return places


class ByUser(NamedTuple):
    """The times of events by their users, each of whom is there once: what packs are made of.

    Attributes:
        users: int64[m], rising.
        begins: int64[m]: the position of the first event of each.
        times: int64[n], microseconds; rising within a user.
    """

    users: Int64
    begins: Int64
    times: Int64

    @staticmethod
    def of(events: Events) -> ByUser:
        """The times of these events."""
        begins = changes(events.users)
        return ByUser(events.users[begins], begins, events.times)

    def at(self, positions: Int64) -> ByUser:
        """The events at these positions, rising."""
        return self._with(positions.searchsorted(self.begins), self.times[positions])

    def without(self, positions: Int64) -> ByUser:
        """All events but few, at these positions, rising."""
        if len(positions) == 0:
            return self
        return self._with(self.begins - positions.searchsorted(self.begins), np.delete(self.times, positions))

    def of_range(self, first_user: int, last_user: int) -> ByUser:
        """The events of the users from one to another, both included."""
        begin = int(self.users.searchsorted(first_user, side="left"))
        end = int(self.users.searchsorted(last_user, side="right"))
        if begin == 0 and end == len(self.users):
            return self
        first, behind = np.append(self.begins, len(self.times))[[begin, end]].tolist()
        return ByUser(self.users[begin:end], self.begins[begin:end] - first, self.times[first:behind])

    def blocks(self, size: int = BLOCK) -> Iterator[ByUser]:
        """The events in blocks of about so many, each with all of its users'."""
        cuts = self.begins.searchsorted(np.arange(size, len(self.times), size))
        for first, behind in pairwise(np.unique([0, *cuts.tolist(), len(self.users)]).tolist()):
            begin = int(self.begins[first])
            end = int(self.begins[behind]) if behind < len(self.users) else len(self.times)
            yield ByUser(self.users[first:behind], self.begins[first:behind] - begin, self.times[begin:end])

    def _with(self, begins: Int64, times: Int64) -> ByUser:
        """Of the same users, whose events now begin there: without those who have none."""
        kept = np.flatnonzero(np.diff(begins, append=len(times)))
        return ByUser(self.users[kept], begins[kept], times)


def differs(values: Int64) -> Bool:
    """Which values differ from the one before; the first does."""
    changes = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes


def changes(values: Int64) -> Int64:
    """The positions at which a rising array has a new value."""
    return differs(values).nonzero()[0]


def nothing(values: int = 0) -> Events:
    """No events, with so many values each."""
    none = np.zeros(0, np.int64)
    return Events(none, none, lambda: none, [[] for _ in range(values)])


def joined(runs: Sequence[Events]) -> Events:
    """The events of runs that have no instant in common, such as partitions by time."""
    return _merged(runs, *in_order(runs)) if len(runs) > 1 else runs[0]


def united(runs: Sequence[Events]) -> Events:
    """The events of any runs, each once also where it is in several."""
    if len(runs) == 1:
        return runs[0]
    order, users, times = in_order(runs)
    same = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    if same.any():  # neighbours of one instant: their ids order them, and tell which are one event
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        ids = _concatenated([run.ids for run in runs])[order]
        ranked = tied[np.lexsort((ids[tied], times[tied], users[tied]))]
        order[tied], ids[tied] = order[ranked], ids[ranked]
        once = np.append(True, ~(same & (ids[1:] == ids[:-1])))
        order, users, times = order[once], users[once], times[once]
    return _merged(runs, order, users, times)


def replaced(events: Events, gone: Int64, few: Events) -> Events:
    """Events, without some and with others, few of either. Without values.

    Args:
        gone: positions in `events` of those that are not wanted, rising.
        few: what comes to the others; none of it is among these.
    """
    if len(gone) == 0 and len(few.users) == 0:
        return events
    firsts = events.users.searchsorted(few.users)
    behind = events.users.searchsorted(few.users, side="right")
    low = _searched(events.times, firsts, behind, few.times)
    high = _searched(events.times, low, behind, few.times, right=True)
    if (high - low > gone.searchsorted(high) - gone.searchsorted(low)).any():  # their ids order them
        rest = np.delete(np.arange(len(events.users)), gone)
        return united([events.at(rest), few])
    cuts = np.concatenate([high, gone])
    order = np.argsort(cuts, kind="stable")
    is_gone = order >= len(high)
    ends = [*cuts[order].tolist(), len(events.users)]
    begins = [0, *(cuts[order] + is_gone).tolist()]
    sources = order.tolist()

    def spliced(array: Int64, new: Int64) -> Int64:
        pieces: list[Int64] = []
        for begin, end, source in zip(begins, ends, [*sources, len(new)], strict=True):
            pieces += [array[begin:end], new[source : source + 1]]
        return _concatenated(pieces)

    users, times = spliced(events.users, few.users), spliced(events.times, few.times)
    return Events(users, times, lambda: spliced(events.ids, few.ids))


def _searched(values: Int64, begin: Int64, end: Int64, wanted: Int64, *, right: bool = False) -> Int64:
    """As `np.searchsorted`, for each wanted value in a stretch of its own, in which values rise."""
    begin, end = begin.copy(), end.copy()
    while (searched := begin < end).any():
        middle = (begin + end) // 2
        found = np.take(values, middle, mode="clip")
        smaller = searched & ((found <= wanted) if right else (found < wanted))
        begin = np.where(smaller, middle + 1, begin)
        end = np.where(searched & ~smaller, middle, end)
    return begin


def _merged(runs: Sequence[Events], order: Int64, users: Int64, times: Int64) -> Events:
    values = []
    for parts in zip(*(run.values for run in runs), strict=True):
        texts = list(chain.from_iterable(parts))
        values.append([texts[at] for at in order.tolist()])
    pages, begin = None, 0
    for run in runs:
        if run.pages is not None:
            places = np.full(sum(len(run.users) for run in runs), -1, np.int32)
            places[order] = np.arange(len(order), dtype=np.int32)
            places = places[begin + run.pages.positions]
            pages = OnPages(run.pages.pages[places >= 0], places[places >= 0])
        begin += len(run.users)
    return Events(users, times, lambda: _concatenated([run.ids for run in runs])[order], values, pages)


def in_order(runs: Sequence[Events]) -> tuple[Int64, Int64, Int64]:
    """The positions of the events, run after run, in the order of users and times; and these. Of one instant they stay
    in the order of the runs.

    Runs mostly follow each other in time, and each is in order: a stable sort by user alone, which merges what is
    sorted already, is enough unless runs overlap.
    """
    users, times = _concatenated([run.users for run in runs]), _concatenated([run.times for run in runs])
    order = np.argsort(users, kind="stable")
    users, times = users[order], times[order]
    if ((times[1:] < times[:-1]) & (users[1:] == users[:-1])).any():
        again = _by_time(users, times)
        order, users, times = order[again], users[again], times[again]
    return order, users, times


def _by_time(users: Int64, times: Int64) -> Int64:
    """The positions in the order of users, who rise already, and times: sorted as one number, if 64 bits are enough."""
    base = int(times.min())
    stretch = int(times.max()) - base + 1
    new = differs(users)
    if int(np.count_nonzero(new)) * stretch >= 2**63:
        return np.lexsort((times, users))
    places: Int64 = np.cumsum(new, dtype=np.int64)
    places -= 1
    places *= stretch
    places += times - base
    return np.argsort(places, kind="stable")


def _concatenated(arrays: Sequence[Int64]) -> Int64:
    whole: Int64 = np.concatenate(arrays)
    return whole
