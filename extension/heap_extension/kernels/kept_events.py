"""Events that a session read before, for as long as no row of the partitions they are from came or went.

Reading is most of what a call costs that finds little. Whoever asks again, or asks something else of the same events,
needs no more than the proof that they are still the same: the stamps of their partitions (`page_stamps`), taken with
the snapshot of the query. Events are kept, never answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from heap_extension.kernels.events import Events, Int64, OnPages

__all__ = ["MAX_BYTES", "KeptEvents", "Key", "ReadDifferentlyError", "kept_events"]

MAX_BYTES = 64 << 20
"""How much a session keeps where nobody says: 4 million events without their ids."""

_ENTRY = 500
"""Bytes of an entry beside its arrays and the text of its condition, about."""

_EVENT = 16
"""Bytes of an event: user and time."""

_MAX_LOOKUPS = 1_000
"""Keys whose look-ups are counted, at most."""


class ReadDifferentlyError(Exception):
    """The ids of events that are kept cannot be read any more: what would be read has other events beside those that
    count, as a pack does that was made anew while pages of its table had changed."""


class Key(NamedTuple):
    """What was read: the events of these tables that fulfil a condition, from an instant to before another.

    Attributes:
        condition: SQL, immutable as that of an index.
        tables: the partitions' names, as SQL.
        start, end: microseconds since 2000.
    """

    condition: str
    tables: tuple[str, ...]
    start: int
    end: int


class _Entry(NamedTuple):
    stamps: tuple[bytes, ...]
    users: Int64
    times: Int64
    ids: Int64 | None
    pages: OnPages | None
    size: int


class KeptEvents:
    """The events that are kept, what was asked for longest ago first to go.

    Args:
        max_bytes: how much is kept at most; of one key half of it, since more would push out all else.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._lookups: OrderedDict[Key, tuple[tuple[bytes, ...], int]] = OrderedDict()
        self.size = 0
        """Bytes, about."""

    def limit(self, max_bytes: int) -> None:
        """Sets how much is kept at most, nothing if that is less than 0; what is more goes."""
        self._max_bytes = max(max_bytes, 0)
        self._make_room()

    def holds(self, events: int) -> bool:
        """Whether so many events of one key are kept."""
        return events * _EVENT <= self._max_bytes // 2

    def looked_up(self, key: Key, stamps: tuple[bytes, ...], users: int) -> int:
        """Counts users that are to be looked up, since the events of the key are not kept.

        Returns:
            How many there were since the tables have these stamps, these among them. To read all events once that would
            have taken as long costs twice the best of both at most, whatever is asked next (the ski rental problem).
        """
        counted, before = self._lookups.pop(key, (stamps, 0))
        users += before if counted == stamps else 0
        self._lookups[key] = stamps, users
        if len(self._lookups) > _MAX_LOOKUPS:
            self._lookups.popitem(last=False)
        return users

    def find(self, key: Key, stamps: tuple[bytes, ...], read: Callable[[], Events]) -> Events | None:
        """The events of the key, if they are kept and the tables have the stamps they had; else they go.

        Args:
            read: reads them anew: their ids, if those are needed and are not kept. To ask for them raises
                ReadDifferentlyError where other events are read.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.stamps != stamps:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return Events(entry.users, entry.times, lambda: self._ids(key, entry, read), pages=entry.pages, _ids=entry.ids)

    def keep(self, key: Key, stamps: tuple[bytes, ...], events: Events) -> None:
        """Keeps events that were read with the snapshot that the stamps were taken with. Nobody may change them."""
        self._drop(key)
        self._lookups.pop(key, None)
        pages = sum(array.nbytes for array in events.pages or ())
        size = events.users.nbytes + events.times.nbytes + pages + len(key.condition) + _ENTRY
        self._add(key, _Entry(stamps, events.users, events.times, None, events.pages, size))

    def _ids(self, key: Key, entry: _Entry, read: Callable[[], Events]) -> Int64:
        found = read()
        if not _are_same(entry, found):
            raise ReadDifferentlyError
        ids = found.ids
        if self._entries.get(key) is entry:
            self._drop(key)
            self._add(key, entry._replace(ids=ids, size=entry.size + ids.nbytes))
        return ids

    def _add(self, key: Key, entry: _Entry) -> None:
        if entry.size > self._max_bytes // 2:
            return
        for array in (entry.users, entry.times, entry.ids, *(entry.pages or ())):
            if array is not None:
                array.setflags(write=False)
        self._entries[key] = entry
        self.size += entry.size
        self._make_room()

    def _make_room(self) -> None:
        while self.size > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size -= entry.size


def _are_same(entry: _Entry, events: Events) -> bool:
    kept, read = [entry.users, entry.times, *(entry.pages or ())], [events.users, events.times, *(events.pages or ())]
    return len(kept) == len(read) and all(map(np.array_equal, kept, read))


kept_events = KeptEvents()
"""Those of the session."""
