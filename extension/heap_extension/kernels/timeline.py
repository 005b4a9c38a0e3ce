"""Chains with any of the rules that steps in order can have, over arrays: windows between steps, optional steps, events
that must not happen in between, what the events of a chain share, conversions.

Like the SQL of the same name: an event of a step continues the latest chain of the step before, or of one before that
where steps may be skipped. The latest is enough: of two chains of the same steps, the one that ends later began no
earlier, whatever windows, skips and exclusions there are. What chains share makes their unit: a user, or one of a
user's sessions, or what happened to one product; events are in the order of units, and then of their places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from heap_extension.kernels.chains import Chains
from heap_extension.kernels.events import Int64, changes

__all__ = ["Barrier", "Candidates", "Reached", "Step", "conversions", "first_of_owners", "furthest", "reached"]


class Candidates(NamedTuple):
    """Events that can be one step, in the order (unit, place).

    Attributes:
        users: int64[n].
        units: int64[n], rising: what the events of a chain share. A unit times the number of places is below `MAX_KEY`.
        places: int64[n]: see `kernels.places`.
        times: int64[n], microseconds.
        source: int64[n]: position among the step's events.
    """

    users: Int64
    units: Int64
    places: Int64
    times: Int64
    source: Int64


class Step(NamedTuple):
    """A step.

    Attributes:
        candidates: its events.
        within: microseconds since the event before, inclusive; None for as long as the window lasts.
        before: indexes of the steps that it may follow, the last first; none for the first step.
    """

    candidates: Candidates
    within: int | None
    before: Sequence[int]


class Barrier(NamedTuple):
    """Events that must not happen between those of a chain.

    Attributes:
        places: int64[x], rising.
        first, last: indexes of the steps between which they must not happen.
    """

    places: Int64
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Reached:
    """The events of a step that a chain ends with, in the order (unit, place), and the best chain that ends with each.

    Attributes:
        events: they.
        keys: int64[e], rising: unit and place as one number.
        entries: int64[e]: position of the chain's first event among the events of step 1.
        steps: int64[e]: index of the step before in the chain; -1 for the first step.
        before: int64[e]: position of the chain's event among those reached of that step.
    """

    events: Candidates
    keys: Int64
    entries: Int64
    steps: Int64
    before: Int64


def reached(steps: Sequence[Step], barriers: Sequence[Barrier], window: int) -> list[Reached]:
    """For each step the events that a chain ends with.

    Args:
        barriers: what must not happen between steps.
        window: microseconds from the chain's first event, inclusive.
    """
    size = 1 + max(int(step.candidates.places.max(initial=0)) for step in steps)
    first = steps[0].candidates
    positions = np.arange(len(first.units), dtype=np.int64)
    nothing = np.full(len(first.units), -1, np.int64)
    found = [Reached(first, first.units * size + first.places, positions, nothing, nothing)]
    for step in steps[1:]:
        crossing = [_last_before(barrier.places, step.candidates.places) for barrier in barriers]
        found.append(_continued(step, found, barriers, crossing, window, size))
    return found


def _continued(
    step: Step,
    found: Sequence[Reached],
    barriers: Sequence[Barrier],
    crossing: Sequence[Int64],
    window: int,
    size: int,
) -> Reached:
    """The events of a step that continue a chain: of several they can continue the one that began latest, then the one
    that skips least.

    Args:
        crossing: for each barrier the place of its last event before each of the step's.
        size: places are smaller.
    """
    events = step.candidates
    keys = events.units * size + events.places
    entries, steps, before = (np.full(len(keys), -1, np.int64) for _ in range(3))
    begun = found[0].events.times
    for earlier in step.before:
        chains = found[earlier]
        if len(chains.keys) == 0:
            continue
        at = np.searchsorted(chains.keys, keys) - 1
        fits = at >= 0
        at = np.maximum(at, 0)
        fits &= chains.events.units[at] == events.units
        fits &= events.times - begun[chains.entries[at]] <= window
        if step.within is not None:
            fits &= events.times - chains.events.times[at] <= step.within
        for barrier, last in zip(barriers, crossing, strict=True):
            if barrier.first <= earlier < barrier.last:
                fits &= last <= chains.events.places[at]
        fits &= chains.entries[at] > entries
        entries = np.where(fits, chains.entries[at], entries)
        before = np.where(fits, at, before)
        steps[fits] = earlier
    kept = np.flatnonzero(before >= 0)
    return Reached(Candidates(*(array[kept] for array in events)), keys[kept], entries[kept], steps[kept], before[kept])


def _last_before(barrier: Int64, places: Int64) -> Int64:
    """The greatest of the rising places that is less than each, or -1. Of another user, it is less than all of this
    one's."""
    at = np.searchsorted(barrier, places) - 1
    return np.where(at >= 0, np.append(barrier, -1)[at], -1)


def furthest(found: Sequence[Reached]) -> tuple[Chains, Int64]:
    """The chain of each unit that has one: of those that reach furthest the one that ends first; with the places of the
    chains' ends."""
    units = found[0].events.units[changes(found[0].events.units)]
    levels, ends, places = (np.zeros(len(units), np.int64) for _ in range(3))
    for level, step in enumerate(found, start=1):
        begins = changes(step.events.units)
        at = np.searchsorted(units, step.events.units[begins])
        levels[at], ends[at], places[at] = level, begins, step.events.places[begins]
    return _traced(found, levels, ends), places


def first_of_owners(chains: Chains, places: Int64, owners: Int64) -> Chains:
    """Of the chains of each owner the one that reaches furthest; among those the one that ends first."""
    order = np.lexsort((places, -chains.levels, owners))
    kept = order[changes(owners[order])]
    return Chains(
        chains.users[kept],
        chains.levels[kept],
        [times[kept] for times in chains.times],
        [sources[kept] for sources in chains.sources],
    )


def conversions(found: Sequence[Reached]) -> Chains:
    """For each step the chains that end with it and do not overlap, taken greedily: the one that ends first, then the
    next that begins after it."""
    levels, ends = [], []
    for level, step in enumerate(found, start=1):
        order = np.argsort(step.events.places)
        taken = order[_apart(found[0].events.places[step.entries[order]], step.events.places[order])]
        levels.append(np.full(len(taken), level, np.int64))
        ends.append(taken)
    return _traced(found, np.concatenate(levels), np.concatenate(ends))


def _apart(begins: Int64, ends: Int64) -> list[int]:
    """The positions of the spans, by rising end, that begin after the last taken. All of a user's come after those of
    the user before."""
    taken, last = [], -1
    for at, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        if begin > last:
            taken.append(at)
            last = end
    return taken


def _traced(found: Sequence[Reached], levels: Int64, ends: Int64) -> Chains:
    """The chains that end with these events, from 0, of these steps, from 1."""
    users = np.zeros(len(levels), np.int64)
    times = [np.zeros(len(levels), np.int64) for _ in found]
    sources = [np.full(len(levels), -1, np.int64) for _ in found]
    step_at, at = levels - 1, ends.copy()
    for index in range(len(found) - 1, -1, -1):
        step = found[index]
        here = np.flatnonzero(step_at == index)
        position = at[here]
        users[here] = step.events.users[position]
        times[index][here] = step.events.times[position]
        sources[index][here] = step.events.source[position]
        step_at[here] = step.steps[position]
        at[here] = step.before[position]
    return Chains(users, levels, times, sources)
