"""Bound the time each step is read over, so that PostgreSQL excludes partitions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from heap_compiler.ranges import TimeRange
from heap_compiler.sequence import Sequence

__all__ = ["prune_time"]

_LAST = datetime(9999, 12, 31, tzinfo=UTC)


def prune_time(sequence: Sequence) -> Sequence:
    """The first step is read over the entry range; later ones up to one window after it, that instant included."""
    entry = sequence.entry
    room = _LAST - entry.end
    later = TimeRange(entry.start, entry.end + min(sequence.window + timedelta(microseconds=1), room))
    first, *rest = sequence.steps
    return replace(sequence, steps=(replace(first, read=entry), *(replace(step, read=later) for step in rest)))
