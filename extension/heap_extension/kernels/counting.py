"""What a shard counts for trends, retention, lifecycle and stickiness: reads its events, counts by bucket and group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from heap_extension.kernels import activity
from heap_extension.kernels.activity import Counts, Follow
from heap_extension.kernels.groups import USER, Coded, GroupsAsked, Population
from heap_extension.kernels.shard import Database, Query, Shard

__all__ = ["Totals", "counting"]

Int64 = npt.NDArray[np.int64]

_TIME = "pg_catalog.timestamptz_send(time)"


class _Read(TypedDict):
    """Events: their `read` of user_id, time, event_id, in this order; about how many a shard has, if that is known."""

    read: Query
    size: int | None


class _FollowAsked(TypedDict):
    """As `Follow`; `recurring`: users start again in every bucket."""

    firsts: list[int]
    last: int
    window: int | None
    at_least: int
    counting: str
    recurring: bool


class _Specification(GroupsAsked):
    """What `heap_compiler.strategies.counting` asks for. Durations are microseconds, instants microseconds since 2000.

    Attributes:
        schema: the app's.
        analysis: what is counted.
        events: one read; of a retention that of the start events, which have the groups, and of the return events.
        bounds: where the buckets begin.
        follow: how a retention follows its cohorts.
        slice: how many rows of a read are in memory at once, about.
    """

    schema: str
    analysis: str
    events: list[_Read]
    bounds: list[int]
    follow: _FollowAsked | None
    slice: int


class Totals(NamedTuple):
    """A row of heap._kernel_totals: one bucket and group of one shard.

    Attributes:
        bucket: its number; of a stickiness the number of buckets.
        group_values: None without groups.
        counts: what is counted there.
        durations: microseconds, int64 in little-endian order, where some are collected.
    """

    bucket: int
    group_values: list[str | None] | None
    counts: list[int]
    durations: bytes | None = None


class _Events(NamedTuple):
    """Events in the order (user, time), with their bucket, and the texts of each group key that is of events."""

    users: Int64
    times: Int64
    buckets: Int64
    texts: list[list[bytes]]

    def at(self, positions: Int64) -> _Events:
        """The events at these positions, rising."""
        texts = [[values[at] for at in positions.tolist()] for values in self.texts]
        return _Events(self.users[positions], self.times[positions], self.buckets[positions], texts)


def counting(database: Database, relation: int, specification: str) -> list[Totals]:
    """The totals of a shard.

    Args:
        database: PL/Python's `plpy`.
        relation: oid of the table of the row of `<app>.shards` that stands for the shard.
        specification: JSON of `_Specification`.
    """
    asked: _Specification = json.loads(specification)
    found: dict[tuple[int, tuple[str | None, ...]], Int64] = {}
    for counts, groups in _Counting(Shard(database, relation, asked["schema"]), asked).counts():
        rows = zip(counts.buckets.tolist(), counts.groups.tolist(), counts.values, strict=True)
        for bucket, group, values in rows:
            key = bucket, () if groups is None else tuple(groups.labels[group])
            found[key] = found[key] + values if key in found else values
    has_groups = bool(asked["group_keys"])
    return [
        Totals(bucket, list(group) if has_groups else None, values.tolist())
        for (bucket, group), values in found.items()
    ]


class _Counting:
    """The reads of a shard, and what is counted of them."""

    def __init__(self, shard: Shard, asked: _Specification) -> None:
        self._shard = shard
        self._asked = asked
        self._population = Population(shard, asked)
        self._bounds = np.array(asked["bounds"], np.int64)

    def counts(self) -> Iterator[tuple[Counts, Coded | None]]:
        """What is counted, and the groups it is counted by, in slices of users that fit into memory."""
        follow = self._asked["follow"]
        for where in self._slices():
            events = self._read(self._asked["events"][0], where, self._population.event_keys)
            kept = self._population.members(events.users)
            if kept is not None:
                events = events.at(kept)
            if follow is not None:
                yield self._retention(events, follow, where)
                continue
            groups = self._population.groups(events.users, events.texts)
            codes = None if groups is None else groups.codes
            of_events = bool(self._population.event_keys)
            active = activity.active(events.users, events.buckets, codes, of_events=of_events)
            match self._asked["analysis"]:
                case "trend":
                    yield activity.trend(events.buckets, codes, active), groups
                case "lifecycle":
                    yield activity.lifecycle(active), groups
                case "stickiness":
                    yield activity.stickiness(active), groups

    def _retention(self, events: _Events, asked: _FollowAsked, where: str) -> tuple[Counts, Coded | None]:
        starts = activity.cohorts(events.users, events.times, events.buckets, recurring=asked["recurring"])
        begun = events.at(starts.positions)
        groups = self._population.groups(begun.users, begun.texts)
        back = self._read(self._asked["events"][1], where)
        follow = Follow(asked["firsts"], asked["last"], asked["window"], asked["at_least"], asked["counting"])
        codes = None if groups is None else groups.codes
        return activity.retention(starts, codes, back.users, back.times, back.buckets, follow), groups

    def _read(self, asked: _Read, where: str, texts: Sequence[str] = ()) -> _Events:
        (users, times), values = self._shard.read(asked["read"], [USER, _TIME], texts, where)
        return _Events(users, times, activity.bucket_numbers(times, self._bounds), values)

    def _slices(self) -> list[str]:
        """Conditions on user_id, such that about `slice` rows of each read fulfil each of them."""
        return slices(self._shard, self._asked["events"], self._asked["slice"])
