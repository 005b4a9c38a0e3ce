"""Reads the entries of an index of events from the pages of its b-tree, many pages at a time, as arrays.

The pages are as PostgreSQL 13 and later keep them (b-tree version 4); whoever calls has them as bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heap_extension.kernels.events import Int64

__all__ = ["Entries", "Read", "UnreadableError", "entries"]

Read = Callable[[Sequence[int]], bytes]
"""Reads pages of the index, by their numbers: one behind the other. They are all of one size."""

_LEAST = -(2**63)

_HEADER = 24
"""Bytes of a page before its contents. At 12 is where the pointers to its entries end, 4 bytes each."""

_MAGIC, _VERSION = 0x053162, 4
_IGNORED = 0x04 | 0x10
"""Flags of a page that was deleted, or is about to be: it has no entries, but still its right neighbour."""

_HAS_NULLS, _HAS_NO_PLACE = 0x8000, 0x2000
"""Flags of an entry: a covered column is null; where the row is stands elsewhere, since there are several."""

_BATCH = 64
"""Leaf pages read at once: what is made of them stays in the processor's cache."""


class UnreadableError(Exception):
    """The index is not one that is read here."""


class Entries(NamedTuple):
    """Entries of an index in its order.

    Attributes:
        users: int64[n].
        times: int64[n], microseconds.
        ids: int64[n].
        heads: int64[n], the 8 bytes that each begins with: of where the row is.
    """

    users: Int64
    times: Int64
    ids: Int64
    heads: Int64

    def between(self, first_user: int, last_user: int) -> Entries:
        """Those of these users."""
        begin = self.users.searchsorted(first_user, side="left")
        end = self.users.searchsorted(last_user, side="right")
        return Entries(*(array[begin:end] for array in self))

    @property
    def pages(self) -> npt.NDArray[np.uint32]:
        """The numbers of the table's pages that the rows are in."""
        return _pages(self.heads)

    @property
    def places(self) -> Int64:
        """Where the rows are in the table: 16 bits for the place in the page, above them the page."""
        return self.pages.astype(np.int64) << 16 | self.heads >> 32 & 0xFFFF


def entries(read: Read, first_user: int, last_user: int) -> Entries:
    """The entries of these users.

    From the root downwards the pages of a level are read that the level above led to, and taken in order along their
    right neighbours, as every scan goes: a page that was split meanwhile has there what it had before. One that was
    deleted after the query took its snapshot is not used anew before that is given back.

    Raises:
        UnreadableError: the index is of another version, or has entries for several rows.
    """
    meta = np.frombuffer(read([0]), "<u4")[_HEADER // 4 :].tolist()
    if sys.byteorder != "little" or meta[:2] != [_MAGIC, _VERSION]:
        raise UnreadableError
    root, level = meta[2:4]
    found = [Entries(*np.zeros((4, 0), np.int64))]
    numbers = [root] if root else []
    for _ in range(level):
        below, lowest = [], _LEAST
        for pages in _along(read, numbers, len(numbers), last_user):
            if len(pages.order):
                below += pages.children(first_user, last_user, lowest)
                lowest = int(pages.highest_users()[-1])
        numbers = below
    found += [pages.entries() for pages in _along(read, numbers, _BATCH, last_user)]
    return Entries(*(np.concatenate(arrays) for arrays in zip(*found, strict=True))).between(first_user, last_user)


def _along(read: Read, numbers: Sequence[int], batch: int, last_user: int) -> Iterator[_Pages]:
    """The pages of a level from the first of these on to the last that may have entries of users up to this one; read
    in batches, and one by one where they are not among the numbers."""
    known = {number: position for position, number in enumerate(numbers)}
    number = numbers[0] if numbers else 0
    while number:
        expected = numbers[known[number] : known[number] + batch] if number in known else [number]
        pages = _Pages(read(expected), len(expected))
        number = pages.put_in_order(expected)
        yield pages
        if number not in known and len(pages.order) and pages.highest_users()[-1] > last_user:
            return


class _Pages:
    """Pages of one level.

    Attributes:
        order: the positions of those with entries, in the order of the level.
    """

    def __init__(self, data: bytes, count: int) -> None:
        self._words = np.frombuffer(data, "<i8").reshape(count, -1)
        self._quarters = self._words.view("<u4")
        self._right = self._quarters[:, -3].astype(np.int64)
        self._is_ignored = (self._quarters[:, -1] & _IGNORED) != 0
        self.order = np.flatnonzero(~self._is_ignored)

    def put_in_order(self, numbers: Sequence[int]) -> int:
        """Along their right neighbours, from the first of these pages on; the first neighbour that is none of them."""
        if not self._is_ignored.any() and self._right[:-1].tolist() == numbers[1:]:
            return int(self._right[-1])
        position = {number: at for at, number in enumerate(numbers)}
        order, number = [], numbers[0]
        while number in position:
            order.append(position[number])
            number = int(self._right[order[-1]])
        self.order = np.array([at for at in order if not self._is_ignored[at]], np.int64)
        return number

    def highest_users(self) -> Int64:
        """In order, the user of each page's high key, which no entry of it is above; any of the level's last page."""
        pointers = self._quarters[self.order, _HEADER // 4].astype(np.int64)
        users: Int64 = self._words[self.order, np.minimum(((pointers & 0x7FFF) >> 3) + 1, self._words.shape[1] - 1)]
        return users

    def children(self, first_user: int, last_user: int, lowest_user: int) -> list[int]:
        """The pages of the level below that have entries of these users, in order; at least one.

        Args:
            lowest_user: none of these pages has entries of users below.
        """
        words = self._words.reshape(-1)
        at, firsts = self._begins()
        lowest = words[np.minimum(at + 1, len(words) - 1)]
        lowest[firsts] = [lowest_user, *self.highest_users()[:-1].tolist()]  # the first of a page has no key
        begin = max(int(np.searchsorted(lowest, first_user, side="left")) - 1, 0)
        end = max(int(np.searchsorted(lowest, last_user, side="right")), begin + 1)
        return [int(number) for number in _pages(words[at[begin:end]])]

    def entries(self) -> Entries:
        """Those of leaves.

        Raises:
            UnreadableError: some are of several rows.
        """
        words = self._words.reshape(-1)
        keys, _ = self._begins()
        heads = words[keys]
        flags = int(np.bitwise_or.reduce(heads)) >> 48
        if flags & _HAS_NO_PLACE:
            raise UnreadableError
        keys += 1
        if flags & _HAS_NULLS:
            keys += heads >> 48 & _HAS_NULLS != 0
        return Entries(words[keys], words[keys + 1], words[keys + 2], heads)

    def _begins(self) -> tuple[Int64, Int64]:
        """Where each entry begins, in words of 8 bytes, and which are the first of their pages."""
        counts = (self._words.view("<u2")[self.order, 6].astype(np.int64) - _HEADER) // 4
        slots = np.arange(max(int(counts.max(initial=0)), 1))
        is_entry = slots < counts[:, None]
        is_entry[:, 0] &= self._right[self.order] == 0  # the others' first is their high key
        pointers = self._quarters[self.order, _HEADER // 4 : _HEADER // 4 + len(slots)]
        at = ((pointers & 0x7FFF) >> 3) + (self.order * self._words.shape[1])[:, None]
        ends = np.cumsum(is_entry.sum(axis=1))
        return at[is_entry], np.append(0, ends[:-1])


def _pages(heads: Int64) -> npt.NDArray[np.uint32]:
    """The pages that the first 4 bytes of entries name: the upper half of the number comes first."""
    halves = np.ascontiguousarray(heads).view("<u4")[::2]
    number: npt.NDArray[np.uint32] = halves << np.uint32(16) | halves >> np.uint32(16)
    return number
