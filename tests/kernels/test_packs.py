"""What packs are made of: numbers as bytes and back, and which pages of a table the visibility map leaves out."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from heap_extension.kernels.packs import decoded, encoded
from heap_extension.kernels.page_stamps import hidden_pages

_SPREAD = st.sampled_from([1, 255, 256, 2**16, 2**32 - 1, 2**32, 2**63 - 1])
_UNITS = st.sampled_from([1, 2, 1_000, 1_000_000, 2**40])


@given(base=st.integers(-(2**63), 2**63 - 1), unit=_UNITS, spread=_SPREAD, data=st.data())
def test_numbers_come_back_as_they_were(base: int, unit: int, spread: int, data: st.DataObject) -> None:
    most = min(spread, (2**63 - 1 - base) // unit)
    multiples = data.draw(st.lists(st.integers(0, most), min_size=1, max_size=30))
    values = [base + unit * multiple for multiple in multiples]
    assert decoded(encoded(np.array(values, np.int64))).tolist() == values


def test_numbers_take_as_few_bytes_as_they_need() -> None:
    """The header of three numbers aside: times in whole seconds of a month need 4 bytes, hashes 8, counts 1."""
    header = 3 * 8
    month = [second * 1_000_000 for second in (0, 1, 31 * 86_400 - 1)]
    assert len(encoded(np.array(month, np.int64))) == header + 4 * len(month)
    assert len(encoded(np.array([-(2**63), 0, 2**63 - 1], np.int64))) == header + 8 * 3
    assert len(encoded(np.array([7] * 9, np.int64))) == header + 9


@given(st.lists(st.integers(0, 3), min_size=1, max_size=70), st.integers(0, 10**6))
def test_pages_without_their_bit_are_found(bits: list[int], first: int) -> None:
    """Two bits for each page, of which the lower says that all see all of it; four pages a byte, the first lowest."""
    packed = bytearray(-(-len(bits) // 4))
    for at, bit in enumerate(bits):
        packed[at // 4] |= bit << 2 * (at % 4)
    page = bytes(24) + bytes(packed) + struct.pack("<q", -1)
    expected = [first + at for at, bit in enumerate(bits) if bit not in {1, 3}]
    assert hidden_pages(page, first, len(bits)).tolist() == expected
