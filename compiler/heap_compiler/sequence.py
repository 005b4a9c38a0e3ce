"""A sequence of steps a user takes inside a conversion window: the typed plan behind funnels and their kin.

Binding makes a `Sequence`; `SEQUENCE_PASSES` decide how it runs, before there is any SQL; `strategies` lower it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

from sqlglot import exp

from heap_compiler.bound import BoundEvent
from heap_compiler.catalog import Catalog, Strategy
from heap_compiler.ranges import TimeRange

__all__ = ["Exclusion", "Sequence", "SequenceStep", "Unit", "counted"]

Unit = Literal["users", "sessions", "conversions"]


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """One step.

    Attributes:
        event: what the step matches.
        within: how long after the step before it may happen at most; None for as long as the window lasts.
        optional: the next step may follow the one before this one.
        read: the instants its events are read from; None until `prune_time`.
        apart: no event can be both this step and the one before; set by `disjoint_steps`.
        driver: index of an earlier, rarer step whose users alone are looked up, or None to read all matching events;
            set by `choose_strategy`.
    """

    event: BoundEvent
    within: timedelta | None = None
    optional: bool = False
    read: TimeRange | None = None
    apart: bool = False
    driver: int | None = None

    @property
    def matching_events(self) -> int | None:
        """About how many events the step matches, in all of time; None when that is not known."""
        return self.event.matching_events


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What must not happen between the events of a chain.

    Attributes:
        event: read like a step, and itself no part of the chain.
        first, last: numbers of the steps, from 1, between which it must not happen.
    """

    event: SequenceStep
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """Steps, the window they fit in, the instants at which a user may enter, and the rules of the chain.

    Attributes:
        any_order: the steps may come in any order.
        held: values over the events table that stay the same, and are not null, along a chain.
        unit: whose chains they are: a user's, those inside one session, or all that do not overlap.
        first_time: a chain begins with the user's first event of step 1 ever.
        alias: the scans of the steps are called `<alias>_1`, ..., those of the exclusions `<alias>_without_1`, ...
        shards: how many shards kernels can run on; 0 when there are no kernels.
        asked: the strategy that was asked for.
        vector: kernels find the chains, where an analysis has one; set by `choose_strategy`.
        reason: why they do, or do not.
    """

    schema: str
    steps: tuple[SequenceStep, ...]
    window: timedelta
    entry: TimeRange
    any_order: bool = False
    exclusions: tuple[Exclusion, ...] = ()
    held: tuple[exp.Expr, ...] = ()
    unit: Unit = "users"
    first_time: bool = False
    alias: str = "step"
    shards: int = 0
    asked: Strategy = "auto"
    vector: bool = False
    reason: str = ""

    def before(self, step: int) -> list[int]:
        """The steps that a step, by number, may follow in a chain: the one before it, and those before that which are
        reached by skipping."""
        found = [step - 1]
        while not self.any_order and self.steps[found[-1] - 1].optional:
            found.append(found[-1] - 1)
        return found

    def step_name(self, step: int) -> str:
        """What a step, by number, is called in the rows."""
        return f"any {step} of {len(self.steps)}" if self.any_order else self.steps[step - 1].event.name

    @property
    def sources(self) -> dict[str, str]:
        """The names that the scans have in the query, and the event each reads."""
        steps = {f"{self.alias}_{index}": step.event.name for index, step in enumerate(self.steps, start=1)}
        excluded = enumerate(self.exclusions, start=1)
        return steps | {f"{self.alias}_without_{index}": exclusion.event.event.name for index, exclusion in excluded}

    @property
    def strategy(self) -> str:
        """How the chains are found, and why so: for people."""
        if self.vector:
            return f"vector: {self.reason}"
        if self.any_order or not self.is_plain:
            return f"{'any order' if self.any_order else 'timeline'}: {self.reason}"
        probed = [str(index) for index, step in enumerate(self.steps, start=1) if step.driver is not None]
        if not probed:
            return f"merge: {self.reason}"
        return f"probe of step {', '.join(probed)}, an earlier one is much rarer: {self.reason}"

    @property
    def is_plain(self) -> bool:
        """True when nothing is asked but order and window."""
        return self.is_linear and not (self.first_time or any(step.within is not None for step in self.steps))

    @property
    def is_linear(self) -> bool:
        """True when nothing but order and time decides which event follows which."""
        return not (
            self.any_order
            or self.exclusions
            or self.held
            or self.unit != "users"
            or any(step.optional for step in self.steps)
        )


def counted(event: BoundEvent, catalog: Catalog) -> BoundEvent:
    """The event, with about how many events match each definition: what strategies are chosen by."""
    alternatives = (
        replace(one, matching_events=None if one.definition is None else catalog.matching_events(one.definition))
        for one in event.alternatives
    )
    return replace(event, alternatives=tuple(alternatives))
