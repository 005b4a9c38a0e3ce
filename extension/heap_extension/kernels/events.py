"""Events as arrays, in the order (user, time, event id): the runs that are read, and what they are merged into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

__all__ = ["Events", "Int64", "changes", "inserted", "joined", "nothing", "united"]

Int64 = npt.NDArray[np.int64]


@dataclass(slots=True)
class Events:
    """Events in the order (user, time, event id).

    Attributes:
        users: int64[n], rising.
        times: int64[n], microseconds; rising within a user.
        read_ids: reads the event ids, int64[n]: needed only where events share an instant.
        values: for each value that was asked for, n texts in UTF-8, or `NULL`.
    """

    users: Int64
    times: Int64
    read_ids: Callable[[], Int64]
    values: Sequence[list[bytes]] = ()
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
        return Events(self.users[positions], self.times[positions], lambda: self.ids[positions], values)

    def between(self, first: int, last: int) -> Events:
        """The events at these positions, first included and last not."""
        values = [texts[first:last] for texts in self.values]
        return Events(self.users[first:last], self.times[first:last], lambda: self.ids[first:last], values)

    def of(self, users: Int64) -> Events:
        """The events of these users."""
        begins = changes(self.users)
        lengths = np.diff(begins, append=len(self.users))
        return self.at(np.flatnonzero(np.repeat(np.isin(self.users[begins], users), lengths)))

    def of_few(self, users: Int64) -> Events:
        """The events of these users, rising, each of whom is looked for."""
        begins = self.users.searchsorted(users)
        lengths = self.users.searchsorted(users, side="right") - begins
        ends = np.cumsum(lengths)
        return self.at(np.arange(lengths.sum(), dtype=np.int64) + np.repeat(begins - ends + lengths, lengths))


def changes(values: Int64) -> Int64:
    """The positions at which a rising array has a new value."""
    new = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return new.nonzero()[0]


def nothing(values: int = 0) -> Events:
    """No events, with so many values each."""
    none = np.zeros(0, np.int64)
    return Events(none, none, lambda: none, [[] for _ in range(values)])


def joined(runs: Sequence[Events]) -> Events:
    """The events of runs that have no instant in common, such as partitions by time."""
    return _merged(runs, *_in_order(runs)) if len(runs) > 1 else runs[0]


def united(runs: Sequence[Events]) -> Events:
    """The events of any runs, each once also where it is in several."""
    if len(runs) == 1:
        return runs[0]
    order, users, times = _in_order(runs)
    same = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    if same.any():  # neighbours of one instant: their ids order them, and tell which are one event
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        ids = _concatenated([run.ids for run in runs])[order]
        ranked = tied[np.lexsort((ids[tied], times[tied], users[tied]))]
        order[tied], ids[tied] = order[ranked], ids[ranked]
        once = np.append(True, ~(same & (ids[1:] == ids[:-1])))
        order, users, times = order[once], users[once], times[once]
    return _merged(runs, order, users, times)


def inserted(events: Events, few: Events) -> Events:
    """Events, and few others of them, none of which is among the former."""
    if len(few.users) == 0 or len(events.users) == 0:
        return events if len(few.users) == 0 else few
    begins = events.users.searchsorted(few.users)
    low, high = begins, events.users.searchsorted(few.users, side="right")
    while (searched := low < high).any():  # each after the last of its user's that is not later
        middle = (low + high) // 2
        later = searched & (events.times[np.minimum(middle, len(events.times) - 1)] > few.times)
        low = np.where(searched & ~later, middle + 1, low)
        high = np.where(later, middle, high)
    if ((low > begins) & (events.times[low - 1] == few.times)).any():  # their ids order them
        return united([events, few])
    users, times = np.insert(events.users, low, few.users), np.insert(events.times, low, few.times)
    return Events(users, times, lambda: np.insert(events.ids, low, few.ids))


def _merged(runs: Sequence[Events], order: Int64, users: Int64, times: Int64) -> Events:
    values = []
    for parts in zip(*(run.values for run in runs), strict=True):
        texts = list(chain.from_iterable(parts))
        values.append([texts[at] for at in order.tolist()])
    return Events(users, times, lambda: _concatenated([run.ids for run in runs])[order], values)


def _in_order(runs: Sequence[Events]) -> tuple[Int64, Int64, Int64]:
    """The positions of the events, run after run, in the order of users and times; and these.

    Runs mostly follow each other in time, and each is in order: a stable sort by user alone, which merges what is
    sorted already, is enough unless runs overlap.
    """
    users, times = _concatenated([run.users for run in runs]), _concatenated([run.times for run in runs])
    order = np.argsort(users, kind="stable")
    users, times = users[order], times[order]
    if ((times[1:] < times[:-1]) & (users[1:] == users[:-1])).any():
        again = np.lexsort((times, users))
        order, users, times = order[again], users[again], times[again]
    return order, users, times


def _concatenated(arrays: Sequence[Int64]) -> Int64:
    whole: Int64 = np.concatenate(arrays)
    return whole
