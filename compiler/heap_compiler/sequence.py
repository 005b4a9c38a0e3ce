"""A sequence of steps a user takes inside a conversion window: the typed plan behind funnels and their kin.

Binding makes a `Sequence`; `SEQUENCE_PASSES` decide how it runs, before there is any SQL; `strategies` lower it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from heap_compiler.bound import BoundEvent
from heap_compiler.ranges import TimeRange

__all__ = ["Sequence", "SequenceStep"]


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """One step.

    Attributes:
        event: what the step matches.
        read: the instants its events are read from; None until `prune_time`.
        apart: no event can be both this step and the one before; set by `disjoint_steps`.
        driver: index of an earlier, rarer step whose users alone are looked up, or None to read all matching events;
            set by `choose_strategy`.
    """

    event: BoundEvent
    read: TimeRange | None = None
    apart: bool = False
    driver: int | None = None


@dataclass(frozen=True, slots=True)
class Sequence:
    """Steps in order, the window they fit in, and the instants at which a user may enter."""

    schema: str
    steps: tuple[SequenceStep, ...]
    window: timedelta
    entry: TimeRange
