"""The funnel of one shard: reads each step's events, finds every user's chain, and counts them by bucket and group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from heap_extension.kernels.chains import Chains, Reached, Runs, blocks, continued, entered, furthest, together
from heap_extension.kernels.effort import events_between
from heap_extension.kernels.events import Int64
from heap_extension.kernels.population import Coded, Population
from heap_extension.kernels.sequences import MAX_PROBED, SequenceAsked, found_chains
from heap_extension.kernels.shard import Database, Periods, Selection, Shard, Users
from heap_extension.kernels.totals import added_up

__all__ = ["Totals", "funnel"]

_EVENTS_OF_FEW = 4
"""Users with more events than this on average are not counted to see whether they are few."""

_MILLION = 1_000_000
"""Statistics of durations take microseconds and give seconds: of millionths they give numbers."""


class _Specification(SequenceAsked):
    """What `heap_compiler.strategies.vector` asks for. Instants are microseconds since 2000.

    Attributes:
        now: chains that began less than a window before may still go on.
        buckets: the first instants of the buckets of the entries; none without buckets.
        effort: whether the events between steps are counted, too.
    """

    effort: bool
    now: int
    buckets: list[int]


class Totals(NamedTuple):
    """A row of heap._funnel_totals: one bucket and group of one shard, with one element per step.

    Attributes:
        bucket: number of the bucket, from 1; None without buckets.
        group_values: the group; None without keys.
        users: how many chains reach the step.
        immature: how many end with the step and may still go on.
        durations: microseconds since the step before, int64 in little-endian order; none for step 1. Where effort is
            asked for, behind those of all steps the numbers of events since the step before, in millionths.
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
    shard = Shard(database, relation, asked["schema"])
    if asked["effort"]:
        efforts = ((found, events_between(shard, found)) for found in found_chains(shard, asked))
        return added_up(
            totals for found, effort in efforts for totals in _counted(asked, found.chains, found.groups, effort)
        )
    if asked["rules"] is None:
        slices = _Funnel(shard, asked).chains()
    else:
        slices = ((found.chains, found.groups) for found in found_chains(shard, asked))
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

    def _of_few(self, events: Selection, reached: Sequence[Reached], users: Users | None) -> Users | Periods | None:
        """The users still on their way, and for how long, when they are few enough to be looked up; else `users`."""
        most = 0 if events["size"] is None else min(events["size"] // self._asked["probe_cost"], MAX_PROBED)
        if sum(len(block.places) for block in reached) > _EVENTS_OF_FEW * most:
            return users
        stays = [block.stays(self._asked["window"]) for block in reached]
        on_their_way = Periods(*(np.concatenate(numbers) for numbers in zip(*stays, strict=True)))
        return on_their_way if len(on_their_way.users) <= most else users


def _values(runs: Runs) -> list[list[bytes]]:
    """What was read with the events of the runs, one after the other."""
    return [list(chain.from_iterable(texts)) for texts in zip(*(run.values for run in runs), strict=True)]


def _counted(
    asked: _Specification, chains: Chains, groups: Coded | None, effort: Sequence[Int64] = ()
) -> Iterator[Totals]:
    """The totals per bucket and group.

    Args:
        effort: for each step of how many events it took the chains.
    """
    cells = _cells(asked, chains, groups)
    size, steps = len(cells.firsts), len(asked["steps"])
    of_steps = [_reached(asked, chains, step) for step in range(steps)]
    users = [_counts(cells.places, there, size) for there in of_steps]
    still_open = np.flatnonzero(chains.times[0] + asked["window"] >= asked["now"])
    open_places = None if cells.places is None else cells.places[still_open]
    immature = _by_level(chains.levels[still_open], open_places, size, steps).tolist()
    durations, before = [[b""] * size], chains.times[0]
    for step in range(1, steps):
        durations.append(_by_place(chains.times[step] - before, of_steps[step], cells.places, size))
        before = np.where(chains.sources[step] >= 0, chains.times[step], before)
    if effort:
        durations.append([b""] * size)
    for there, events in zip(of_steps[1:], effort[1:], strict=bool(effort)):
        durations.append(_by_place(events * _MILLION, there, cells.places, size))
    for place, first in enumerate(cells.firsts):
        yield Totals(
            None if cells.buckets is None else int(cells.buckets[first]),
            None if groups is None else list(groups.labels[groups.codes[first]]),
            [counts[place] for counts in users],
            [*immature[place][:-1], 0],
            [pieces[place] for pieces in durations],
        )


def _reached(asked: _Specification, chains: Chains, step: int) -> Int64:
    """Positions of the chains that count at a step, by index: those that have it, or of conversions those it ends."""
    if asked["rules"] is not None and asked["rules"]["unit"] == "conversions":
        return np.flatnonzero(chains.levels == step + 1)
    return np.flatnonzero(chains.sources[step] >= 0)


class _Cells(NamedTuple):
    """The buckets and groups that there are.

    Attributes:
        buckets: int64[m]: of each chain; None without buckets.
        firsts: a chain of each cell.
        places: int64[m]: the cell of each chain; None where there is one only.
    """

    buckets: Int64 | None
    firsts: list[int]
    places: Int64 | None


def _cells(asked: _Specification, chains: Chains, groups: Coded | None) -> _Cells:
    buckets = None
    if asked["buckets"]:
        buckets = np.searchsorted(np.array(asked["buckets"], np.int64), chains.times[0], side="right")
    if groups is None:
        combined = buckets
    else:
        combined = groups.codes if buckets is None else buckets * len(groups.labels) + groups.codes
    if combined is None:
        return _Cells(None, [0], None)
    _, firsts, places = np.unique(combined, return_index=True, return_inverse=True)
    return _Cells(buckets, firsts.tolist(), None if len(firsts) == 1 else places)


def _by_level(levels: Int64, places: Int64 | None, size: int, steps: int) -> Int64:
    """int64[size, steps]: how many chains in each cell end with each step."""
    combined = levels if places is None else places * (steps + 1) + levels
    return np.bincount(combined, minlength=size * (steps + 1)).reshape(size, steps + 1)[:, 1:]


def _counts(places: Int64 | None, there: Int64, size: int) -> list[int]:
    """How many of the chains at these positions each cell has."""
    return [len(there)] if places is None else np.bincount(places[there], minlength=size).tolist()


def _by_place(durations: Int64, there: Int64, places: Int64 | None, size: int) -> list[bytes]:
    """The durations of the chains at these positions, per cell."""
    durations = durations[there].astype("<i8")
    if places is None:
        return [durations.tobytes()]
    order = np.argsort(places[there], kind="stable")
    ends = np.cumsum(np.bincount(places[there], minlength=size))[:-1]
    return [piece.tobytes() for piece in np.split(durations[order], ends)]
