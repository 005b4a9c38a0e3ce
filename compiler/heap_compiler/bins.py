"""The bins of a histogram as they are written: `in bins of 10`, `in bins (5 minutes, 1 hour, 1 day)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from heap_compiler import syntax
from heap_compiler.errors import HeapError

__all__ = ["MAX_BINS", "edges"]

MAX_BINS = 1_000
"""Nobody reads more, and every group has a row for each."""

_Bound = TypeVar("_Bound", bound=Any)


def edges(clause: syntax.Bins, read: Callable[[syntax.Value | syntax.Duration], _Bound]) -> tuple[_Bound, ...]:
    """The edges between the bins, each as `read` takes it.

    Raises:
        HeapError: they do not go up, or are more than `MAX_BINS`.
    """
    if len(clause.edges) >= MAX_BINS:
        raise HeapError(f"more than {MAX_BINS:,} bins", clause.span)
    bounds: list[_Bound] = []
    for written in clause.edges:
        bound = read(written)
        if bounds and bound <= bounds[-1]:
            raise HeapError("each edge of the bins is greater than the one before", written.span)
        bounds.append(bound)
    return tuple(bounds)
