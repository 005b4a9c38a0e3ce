"""The funnel of one shard: reads each step's events, finds every user's chain, and counts them by bucket and group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypedDict

import numpy as np

from heap_extension.kernels.chains import Chains, Reached, Runs, blocks, continued, entered, furthest, together
from heap_extension.kernels.events import Int64
from heap_extension.kernels.population import Coded, Population, PopulationAsked
from heap_extension.kernels.shard import Database, Selection, Shard, Stays, Users
from heap_extension.kernels.totals import added_up

__all__ = ["Totals", "funnel"]

_MAX_PROBED = 20_000
"""More users than this are not looked up one by one: their ids would make too long a condition."""

_EVENTS_OF_FEW = 4
"""Users with more events than this on average are not counted to see whether they are few."""


class _Step(TypedDict):
    """A step: its events, and how many microseconds after the step before it they may happen."""

    events: Selection
    within: int | None


class _Specification(PopulationAsked):
    """What `heap_compiler.strategies.vector` asks for. Durations are microseconds, instants microseconds since 2000.

    Attributes:
        schema: the app's.
        steps: at least two.
        window: from a chain's first event to its last.
        now: chains that began less than a window before may still go on.
        buckets: the first instants of the buckets of the entries; none without buckets.
        group_step: index of the step whose events have the groups.
        slice: how many rows of a step are in memory at once, about.
        probe_cost: looking up one user costs about as much as reading this many events.
    """

    schema: str
    steps: list[_Step]
    window: int
    now: int
    buckets: list[int]
    group_step: int
    slice: int
    probe_cost: int


class Totals(NamedTuple):
    """A row of heap._funnel_totals: one bucket and group of one shard, with one element per step.

    Attributes:
        bucket: number of the bucket, from 1; None without buckets.
        group_values: the group; None without keys.
        users: how many chains reach the step.
        immature: how many end with the step and may still go on.
        durations: microseconds since the step before, int64 in little-endian order; none for step 1.
    """

    bucket: int | None
    group_values: list[str | None] | None
    users: list[int]
    immature: list[int]
    durations: list[bytes]

    def plus(self, other: Totals) -> Totals:
        """The totals of this bucket and group with those of another slice."""
        return Totals(
            self.bucket,
            self.group_values,
            [a + b for a, b in zip(self.users, other.users, strict=True)],
            [a + b for a, b in zip(self.immature, other.immature, strict=True)],
            [a + b for a, b in zip(self.durations, other.durations, strict=True)],
        )


def funnel(database: Database, relation: int, specification: str) -> list[Totals]:
    """The totals of a shard.

    Args:
        database: PL/Python's `plpy`.
        relation: oid of the table of the row of `<app>.shards` that stands for the shard.
        specification: JSON of `_Specification`.
    """
    asked: _Specification = json.loads(specification)
    slices = _Funnel(Shard(database, relation, asked["schema"]), asked).chains()
    return added_up(totals for chains, groups in slices for totals in _counted(asked, chains, groups))


class _Funnel:
    """The reads of a shard's funnel."""

    def __init__(self, shard: Shard, asked: _Specification) -> None:
        self._shard = shard
        self._asked = asked
        self._population = Population(shard, asked)
        shard.expect([step["events"] for step in asked["steps"]])

    def chains(self) -> Iterator[tuple[Chains, Coded | None]]:
        """Every user's chain with its group, by slices of users that fit into memory."""
        steps = [step["events"] for step in self._asked["steps"]]
        for users in self._shard.slices_of(steps, self._asked["slice"]):
            found: list[Runs] = [[self._population.members(run) for run in self._shard.runs(steps[0], users)]]
            reached = [[entered(found[0], line)] for line in blocks(found[0], self._asked["window"])]
            if not reached:
                continue
            for step in self._asked["steps"][1:]:
                on_their_way = self._of_few(step["events"], [block[-1] for block in reached], users)
                found.append(self._shard.runs(step["events"], on_their_way))
                for block in reached:
                    block.append(continued(block[-1], found[-1], self._asked["window"], step["within"]))
            chains = together([furthest(block) for block in reached])
            at = self._asked["group_step"]
            yield chains, self._population.groups(chains.users, _values(found[at]), chains.sources[at])

    def _of_few(self, events: Selection, reached: Sequence[Reached], users: Users | None) -> Users | None:
        """The users still on their way, and for how long, when they are few enough to be looked up; else `users`."""
        most = 0 if events["size"] is None else min(events["size"] // self._asked["probe_cost"], _MAX_PROBED)
        if sum(len(block.places) for block in reached) > _EVENTS_OF_FEW * most:
            return users
        stays = [block.stays(self._asked["window"]) for block in reached]
        on_their_way = Stays(*(np.concatenate(numbers) for numbers in zip(*stays, strict=True)))
        return on_their_way if len(on_their_way.users) <= most else users


def _values(runs: Runs) -> list[list[bytes]]:
    """What was read with the events of the runs, one after the other."""
    return [list(chain.from_iterable(texts)) for texts in zip(*(run.values for run in runs), strict=True)]


def _counted(asked: _Specification, chains: Chains, groups: Coded | None) -> Iterator[Totals]:
    """The totals per bucket and group."""
    buckets = np.searchsorted(np.array(asked["buckets"], np.int64), chains.times[0], side="right")
    combined = buckets if groups is None else buckets * len(groups.labels) + groups.codes
    _, firsts, places = np.unique(combined, return_index=True, return_inverse=True)
    size, steps = len(firsts), len(asked["steps"])
    users = [np.bincount(places[chains.levels > step], minlength=size).tolist() for step in range(steps)]
    still_open = chains.times[0] + asked["window"] >= asked["now"]
    immature = [
        np.bincount(places[still_open & (chains.levels == step)], minlength=size).tolist() for step in range(1, steps)
    ]
    durations = [_durations(chains, step, places, size) for step in range(1, steps)]
    for place, first in enumerate(firsts.tolist()):
        yield Totals(
            int(buckets[first]) if asked["buckets"] else None,
            None if groups is None else list(groups.labels[groups.codes[first]]),
            [counts[place] for counts in users],
            [*(counts[place] for counts in immature), 0],
            [b"", *(pieces[place] for pieces in durations)],
        )


def _durations(chains: Chains, step: int, places: Int64, size: int) -> list[bytes]:
    """The times from the step before to this one, of those who reach it, per place."""
    there = np.flatnonzero(chains.levels > step)
    durations = (chains.times[step] - chains.times[step - 1])[there].astype("<i8")
    if size == 1:
        return [durations.tobytes()]
    order = np.argsort(places[there], kind="stable")
    ends = np.cumsum(np.bincount(places[there], minlength=size))[:-1]
    return [piece.tobytes() for piece in np.split(durations[order], ends)]
