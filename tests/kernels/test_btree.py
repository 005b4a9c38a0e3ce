"""Entries of a b-tree are read in order and all of them, whatever happens to its pages between two looks."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_extension.kernels.btree import UnreadableError, entries

_SIZE = 512
"""Bytes of a page, so that a few entries fill one."""

_LEAST, _GREATEST = -(2**63), 2**63 - 1
Row = tuple[int, int, int, int, int, bool]
"""User, time, event id; page and place of the row; whether a covered column is null."""


def _tuple(page: int, place: int, flags: int, body: bytes) -> bytes:
    size = 8 + len(body)
    return struct.pack("<HHHH", page >> 16, page & 0xFFFF, place, flags | size) + body


def _entry(row: Row) -> bytes:
    *key, page, place, has_null = row
    return _tuple(page, place, 0x8000 if has_null else 0, (bytes(8) if has_null else b"") + struct.pack("<qqq", *key))


def _page(items: Sequence[bytes], right: int, level: int, flags: int = 0) -> bytes:
    """As PostgreSQL lays it out: pointers in order from the front, what they point to from the back, in any order."""
    body, upper = bytearray(_SIZE), _SIZE - 16
    pointers = [0] * len(items)
    for at in sorted(range(len(items)), key=lambda at: items[at][16:18]):
        upper -= len(items[at])
        body[upper : upper + len(items[at])] = items[at]
        pointers[at] = upper | 1 << 15 | len(items[at]) << 17
    struct.pack_into("<HHH", body, 12, 24 + 4 * len(items), upper, _SIZE - 16)
    struct.pack_into(f"<{len(items)}I", body, 24, *pointers)
    struct.pack_into("<IIIHH", body, _SIZE - 16, 0, right, level, flags, 0)
    return bytes(body)


def _bound(user: int, page: int = 0) -> bytes:
    """A pivot: the key from which on entries are in a page, shortened to its user."""
    return _tuple(page, 1, 0x2000, struct.pack("<q", user))


@dataclass
class Tree:
    """An index of three levels; leaves hold up to 3 rows, inner pages up to 3 children."""

    pages: dict[int, bytes] = field(default_factory=dict)
    reads: int = 0

    def read(self, numbers: Sequence[int]) -> bytes:
        self.reads += 1
        return b"".join(self.pages[number] for number in numbers)

    def level(self, nodes: Sequence[tuple[int, int, list[bytes]]], level: int) -> None:
        """Pages side by side, each of a number, the first user in it and its items."""
        for (number, _, items), following in zip(nodes, [*nodes[1:], None], strict=True):
            high = [] if following is None else [_bound(following[1])]
            self.pages[number] = _page(high + items, following[0] if following else 0, level)


def _tree(rows: Sequence[Row], numbers: Sequence[int], unknown: set[int]) -> Tree:
    """Of rows in order, no user in two leaves; the pages have these numbers; those whose place in their level is in
    `unknown` were split off from the one before, and the level above does not know them yet."""
    tree, number = Tree(), iter(numbers)
    users = sorted({row[0] for row in rows})
    leaves = [(next(number), user, [_entry(row) for row in rows if row[0] == user]) for user in users]
    tree.level(leaves, 0)
    below, depth = [leaf for at, leaf in enumerate(leaves) if at == 0 or at not in unknown], 0
    while len(below) > 1 or depth == 0:
        depth += 1
        groups = [below[at : at + 3] for at in range(0, len(below), 3)]
        nodes = [
            (
                next(number),
                group[0][1],
                [_tuple(group[0][0], 0, 0x2000, b""), *(_bound(user, page) for page, user, _ in group[1:])],
            )
            for group in groups
        ]
        tree.level(nodes, depth)
        below = [node for at, node in enumerate(nodes) if at == 0 or at not in unknown]
    tree.pages[0] = bytes(24) + struct.pack("<6I", 0x053162, 4, below[0][0], depth, 0, 0) + bytes(_SIZE - 48)
    return tree


_rows = st.lists(
    st.tuples(
        st.integers(-5, 20),
        st.integers(_LEAST, _GREATEST),
        st.integers(_LEAST, _GREATEST),
        st.integers(0, 2**32 - 2),
        st.integers(1, 300),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda row: row[:3],
)


def _few_of_each(rows: list[Row]) -> list[Row]:
    """At most as many of a user as fit into a page."""
    kept: list[Row] = []
    for row in sorted(rows):
        if sum(row[0] == other[0] for other in kept) < 8:
            kept.append(row)
    return kept


@settings(max_examples=60)
@given(_rows.map(_few_of_each), st.permutations(range(1, 70)), st.sets(st.integers(0, 25)), st.data())
def test_entries_are_read_in_order(rows: list[Row], numbers: list[int], unknown: set[int], data: st.DataObject) -> None:
    """Of all users or some, whichever leaves the level above knows of, and although some pages were deleted."""
    tree = _tree(rows, numbers, unknown)
    if data.draw(st.booleans()):
        first, last = sorted(data.draw(st.tuples(st.integers(-7, 22), st.integers(-7, 22))))
    else:
        first, last = _LEAST, _GREATEST
    users = sorted({row[0] for row in rows})
    for user in data.draw(st.sets(st.sampled_from(users[:-1]))) if len(users) > 1 else ():
        number = numbers[users.index(user)]  # emptied, and its right neighbour has its place now
        (right,) = struct.unpack_from("<I", tree.pages[number], _SIZE - 12)
        tree.pages[number] = _page([], right, 0, flags=data.draw(st.sampled_from([0x04, 0x10])))
        rows = [row for row in rows if row[0] != user]
    found = entries(tree.read, first, last)
    expected = [row for row in rows if first <= row[0] <= last]
    assert list(zip(found.users.tolist(), found.times.tolist(), found.ids.tolist(), strict=True)) == [
        row[:3] for row in expected
    ]
    assert found.pages.tolist() == [row[3] for row in expected]
    assert found.places.tolist() == [row[3] << 16 | row[4] for row in expected]


def test_few_users_take_few_reads() -> None:
    rows = [(user, 0, 0, 1, 1, False) for user in range(1_000)]
    tree = _tree(rows, range(1, 2_000), set())
    assert entries(tree.read, 500, 501).users.tolist() == [500, 501]
    assert tree.reads == 1 + 7 + 1, "what the root is, seven levels of three pages each at most, the leaves"


def test_an_index_without_entries() -> None:
    tree = Tree({0: bytes(24) + struct.pack("<6I", 0x053162, 4, 0, 0, 0, 0) + bytes(_SIZE - 48)})
    assert entries(tree.read, _LEAST, _GREATEST).users.tolist() == []


@pytest.mark.parametrize("meta", [(0x053162, 3, 1, 0), (0, 4, 1, 0)])
def test_other_versions_are_not_read(meta: tuple[int, ...]) -> None:
    tree = Tree({0: bytes(24) + struct.pack("<4I", *meta) + bytes(_SIZE - 40), 1: _page([], 0, 0)})
    with pytest.raises(UnreadableError):
        entries(tree.read, _LEAST, _GREATEST)


def test_entries_of_several_rows_are_not_read() -> None:
    """As b-trees have where a key came again and again."""
    several = _tuple(24, 0x2002, 0x2000, struct.pack("<qqq", 1, 2, 3) + bytes(16))
    meta = bytes(24) + struct.pack("<4I", 0x053162, 4, 1, 0) + bytes(_SIZE - 40)
    with pytest.raises(UnreadableError):
        entries(Tree({0: meta, 1: _page([several], 0, 0)}).read, _LEAST, _GREATEST)
