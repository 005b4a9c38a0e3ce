"""Choose how a sequence runs: by kernels over vectors, or in SQL; and per step, between reading all its events and
looking up only users who took an earlier, much rarer step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from heap_compiler.bound import BoundEvent, Choice
from heap_compiler.catalog import Catalog, Strategy
from heap_compiler.sequence import Sequence, SequenceStep

__all__ = ["COUNTING_COST", "KERNEL_COST", "NUMBER_COST", "PROBE_COST", "choose_counting", "choose_strategy"]

PROBE_COST = 15
"""Looking up one user costs about as much as reading this many events in index order: 5.5 us against 0.6 us measured
(PostgreSQL 15, one month of partitions), and half again for indexes that are not in memory."""

LOOKUP_COST = 8
"""The same where SQL probes indexes that are in memory, against events that SQL merges: 4 us to 8 us against 0.7 us."""

KERNEL_COST = 1_200
"""Calling the kernel of one shard costs about as much as merging this many events in SQL: 1 ms of processor time, at
0.7 us to 2 us an event."""

RULES_COST = 100
"""The same where chains have other rules: with 300 events SQL takes more than twice as long. And on Citus, whose
workers plan SQL anew for every call, each partition for each step: with 200 events a step that is 4.5 ms of processor
time on each of two workers, and the kernel takes 1.3."""

COUNTING_COST = 100
"""The same for a kernel that counts users by bucket: SQL takes longer there, and plans as long."""

NUMBER_COST = 7_000
"""The same for one that counts events alone, from packs: 2.0 ms and 25 ns an event against 0.8 ms and 190 ns."""


def choose_strategy(sequence: Sequence) -> Sequence:
    """Says whether kernels serve the sequence, and what each step is driven by where SQL does."""
    sizes = [step.matching_events for step in sequence.steps]
    cost = (KERNEL_COST if sequence.is_plain and sequence.shards == 1 else RULES_COST) * sequence.shards
    driven = _with_drivers(sequence)
    work = [
        size if size is None or step.driver is None else min(size, LOOKUP_COST * (sizes[step.driver] or 0))
        for step, size in zip(driven.steps, sizes, strict=True)
    ]
    vector, reason = _for_kernels(sizes, work, sequence.shards, sequence.asked, cost)
    return replace(driven, vector=vector, reason=reason)


def choose_counting(
    events: Iterable[BoundEvent], catalog: Catalog, *, known: bool = True, cost: int = COUNTING_COST
) -> Choice:
    """Says whether kernels count what is not a sequence.

    Args:
        events: what is read, with numbers of matching events.
        known: whether kernels know all that is asked.
        cost: how many events of a shard SQL counts while a kernel starts.
    """
    sizes = [event.matching_events for event in events]
    vector, reason = _for_kernels(sizes, sizes, catalog.shards, catalog.strategy, cost * catalog.shards, known=known)
    return Choice(vector, reason, catalog.shards)


def _for_kernels(
    sizes: list[int | None], work: list[int | None], shards: int, asked: Strategy, cost: int, *, known: bool = True
) -> tuple[bool, str]:
    """Whether kernels are there, know every rule, and spare SQL more than `cost` events, or nobody knows; and why.

    Args:
        sizes: how many events match.
        work: how many events SQL would merge, or what it does instead of merging them all, in such events.
    """
    if not known:
        return False, "kernels know no such rule"
    if not shards:
        return False, "kernels cannot run here"
    if asked != "auto":
        return asked == "vector", "asked for by heap.strategy"
    if None in sizes:
        return True, "events that nobody has counted"
    matching = sum(size for size in sizes if size is not None)
    return sum(size or 0 for size in work) > cost, f"about {matching:,} matching events"


def _with_drivers(sequence: Sequence) -> Sequence:
    """Gives a step a driver when an earlier step, which every chain has, is rarer by more than `PROBE_COST`. Unknown
    sizes never probe. What a chain excludes begins after step 1, the only step that can drive it; when it is every
    event, of which there are more than of any step, it always does."""
    if sequence.any_order:
        return sequence
    sizes = [step.matching_events for step in sequence.steps]
    steps = list(sequence.steps)
    for index in range(1, len(steps)):
        known = [
            (before, at)
            for at, before in enumerate(sizes[:index])
            if before is not None and not sequence.steps[at].optional
        ]
        size = sizes[index]
        if sequence.asked == "probe":
            steps[index] = replace(steps[index], driver=min(known)[1] if known else 0)
        elif sequence.asked != "merge" and size is not None and known:
            rarest, driver = min(known)
            if rarest * PROBE_COST < size:
                steps[index] = replace(steps[index], driver=driver)
    exclusions = list(sequence.exclusions)
    for index, exclusion in enumerate(exclusions):
        size = exclusion.event.matching_events
        frequent = size is not None and sizes[0] is not None and sizes[0] * PROBE_COST < size
        if frequent or _is_every_event(exclusion.event):
            exclusions[index] = replace(exclusion, event=replace(exclusion.event, driver=0))
    return replace(sequence, steps=tuple(steps), exclusions=tuple(exclusions))


def _is_every_event(step: SequenceStep) -> bool:
    return any(not alternative.conditions for alternative in step.event.alternatives)
