"""Bound the time each step is read over, so that PostgreSQL excludes partitions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from heap_compiler.ranges import BEGINNING, TimeRange
from heap_compiler.sequence import Sequence

__all__ = ["prune_time"]

_LAST = datetime(9999, 12, 31, tzinfo=UTC)


def prune_time(sequence: Sequence) -> Sequence:
    """The first step is read over the entry range, or from the beginning to know whose first time it is; later ones up
    to one window after it, that instant included. In any order each may be the later one."""
    entry = sequence.entry
    room = _LAST - entry.end
    later = TimeRange(entry.start, entry.end + min(sequence.window + timedelta(microseconds=1), room))
    first, *rest = (replace(step, read=later) for step in sequence.steps)
    if not sequence.any_order:
        first = replace(first, read=TimeRange(BEGINNING, entry.end) if sequence.first_time else entry)
    exclusions = tuple(replace(one, event=replace(one.event, read=later)) for one in sequence.exclusions)
    return replace(sequence, steps=(first, *rest), exclusions=exclusions)
