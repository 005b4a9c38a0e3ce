"""What a shard counts for trends, retention, lifecycle and stickiness: users and events by bucket and group."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal, TypedDict

import numpy as np

from heap_extension.kernels import activity
from heap_extension.kernels.activity import Counts, Follow
from heap_extension.kernels.events import Events, Int64
from heap_extension.kernels.population import Coded, Population, PopulationAsked
from heap_extension.kernels.shard import Database, Selection, Shard, Users
from heap_extension.kernels.totals import Totals, added_up

__all__ = ["counting"]


class _FollowAsked(TypedDict):
    """As `Follow`; `recurring`: users start again in every bucket."""

    firsts: list[int]
    last: int
    window: int | None
    at_least: int
    counting: Literal["on", "rolling", "streak"]
    recurring: bool


class _Specification(PopulationAsked):
    """What `heap_compiler.strategies.counting` asks for. Durations are microseconds, instants microseconds since 2000.

    Attributes:
        schema: the app's.
        analysis: what is counted.
        events: what is read; of a retention the start events, which have the groups, and the return events.
        bounds: where the buckets begin.
        follow: how a retention follows its cohorts.
        slice: how many events are in memory at once, about.
    """

    schema: str
    analysis: Literal["trend", "lifecycle", "stickiness", "retention"]
    events: list[Selection]
    bounds: list[int]
    follow: _FollowAsked | None
    slice: int


def counting(database: Database, relation: int, specification: str) -> list[Totals]:
    """The totals of a shard.

    Args:
        database: PL/Python's `plpy`.
        relation: oid of the table of the row of `<app>.shards` that stands for the shard.
        specification: JSON of `_Specification`.
    """
    asked: _Specification = json.loads(specification)
    slices = _Counting(Shard(database, relation, asked["schema"]), asked).counts()
    return added_up(
        Totals(bucket, None if groups is None else list(groups.labels[group]), values)
        for counts, groups in slices
        for bucket, group, values in zip(
            counts.buckets.tolist(), counts.groups.tolist(), counts.values.tolist(), strict=True
        )
    )


class _Counting:
    """The reads of a shard, and what is counted of them."""

    def __init__(self, shard: Shard, asked: _Specification) -> None:
        self._shard = shard
        self._asked = asked
        self._population = Population(shard, asked)
        self._buckets = activity.Buckets(np.array(asked["bounds"], np.int64))
        shard.expect(asked["events"])

    def counts(self) -> Iterator[tuple[Counts, Coded | None]]:
        """What is counted, and the groups it is counted by, in slices of users that fit into memory."""
        asked = self._asked
        for users in self._shard.slices_of(asked["events"], asked["slice"]):
            if asked["analysis"] == "trend" and not self._population.has_groups:
                runs = self._shard.by_user(asked["events"][0], users)
                members = (map(self._population.members_by_user, run) for run in runs)
                yield activity.trend_of_runs(members, self._buckets), None
                continue
            events = self._population.members(self._shard.events(asked["events"][0], users))
            buckets = self._buckets.of(events.times)
            if asked["follow"] is not None:
                yield self._retention(events, buckets, asked["follow"], users)
                continue
            groups = self._population.groups(events.users, events.values)
            codes = None if groups is None else groups.codes
            active = activity.active(events.users, buckets, codes, of_events=self._population.has_event_keys)
            match asked["analysis"]:
                case "trend":
                    yield activity.trend(buckets, codes, active), groups
                case "lifecycle":
                    yield activity.lifecycle(active), groups
                case "stickiness":
                    yield activity.stickiness(active), groups

    def _retention(
        self, events: Events, buckets: Int64, asked: _FollowAsked, users: Users | None
    ) -> tuple[Counts, Coded | None]:
        starts = activity.cohorts(events.users, events.times, buckets, recurring=asked["recurring"])
        groups = self._population.groups(starts.users, events.values, starts.positions)
        back = self._shard.events(self._asked["events"][1], users)
        follow = Follow(asked["firsts"], asked["last"], asked["window"], asked["at_least"], asked["counting"])
        codes = None if groups is None else groups.codes
        return_buckets = self._buckets.of(back.times)
        return activity.retention(starts, codes, back.users, back.times, return_buckets, follow), groups
