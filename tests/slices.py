"""Queries of kernels that read users in slices, as they do where events are too many for memory at once."""

from __future__ import annotations

import re

from heap_compiler.strategies.kernels import SLICE

__all__ = ["in_slices"]


def in_slices(query: str, size: int = 10_000) -> str:
    """The SQL of a statement with slices of about so many events. It must have some."""
    sliced, count = re.subn(rf'"slice": ?{SLICE}\b', f'"slice": {size}', query)
    assert count
    return sliced
