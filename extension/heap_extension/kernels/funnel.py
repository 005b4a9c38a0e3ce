"""The funnel of one shard: reads each step's events, finds every user's chain, and counts them by bucket and group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from heap_extension.kernels.chains import Chains, Reached, blocks, continued, entered, furthest
from heap_extension.kernels.events import Events, Int64, changes
from heap_extension.kernels.shard import NULL, Between, Database, Query, Selection, Shard, Users

__all__ = ["Totals", "funnel"]

_MAX_PROBED = 20_000
"""More users than this are not looked up one by one: their ids would make too long a condition."""

_SHARE_OF_UNKNOWN = 8
"""A step of which nobody knows the size is taken for this part of all events."""


class _Step(TypedDict):
    """A step: its events, and how many microseconds after the step before it they may happen."""

    events: Selection
    within: int | None


class _Specification(TypedDict):
    """What `heap_compiler.strategies.vector` asks for. Durations are microseconds, instants microseconds since 2000.

    Attributes:
        schema: the app's.
        steps: at least two.
        window: from a chain's first event to its last.
        now: chains that began less than a window before may still go on.
        buckets: the first instants of the buckets of the entries; none without buckets.
        group_keys: the columns of the groups, `group_1`, ...
        group_step: index of the step whose events have as their values those that are not of a user.
        group_of_user: a read of user_id and those that are values of a user; None when there are none.
        user_keys: which these are.
        users: a read of the user_id of those that count; None for all.
        slice: how many rows of a step are in memory at once, about.
        probe_cost: looking up one user costs about as much as reading this many events.
    """

    schema: str
    steps: list[_Step]
    window: int
    now: int
    buckets: list[int]
    group_keys: list[str]
    group_step: int
    group_of_user: Query | None
    user_keys: list[str]
    users: Query | None
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


class _Coded(NamedTuple):
    """Texts as numbers: `labels[codes[i]]` is the text at i."""

    codes: Int64
    labels: list[bytes]


def funnel(database: Database, relation: int, specification: str) -> list[Totals]:
    """The totals of a shard.

    Args:
        database: PL/Python's `plpy`.
        relation: oid of the table of the row of `<app>.shards` that stands for the shard.
        specification: JSON of `_Specification`.
    """
    asked: _Specification = json.loads(specification)
    found: dict[tuple[int | None, tuple[bytes, ...]], Totals] = {}
    for chains, groups in _Funnel(Shard(database, relation, asked["schema"]), asked).chains():
        for key, totals in _counted(asked, chains, groups):
            found[key] = totals if key not in found else _added(found[key], totals)
    return list(found.values())


class _Funnel:
    """The reads of a shard's funnel."""

    def __init__(self, shard: Shard, asked: _Specification) -> None:
        self._shard = shard
        self._asked = asked
        self._event_keys = [key for key in asked["group_keys"] if key not in asked["user_keys"]]
        self._users: Int64 | None = None
        if asked["users"] is not None:
            users, _ = shard.read(asked["users"])
            self._users = np.unique(users)
        self._grouped_users: Int64 = np.zeros(0, np.int64)
        self._user_values: dict[str, list[bytes]] = {}
        if asked["group_of_user"] is not None:
            self._grouped_users, values = shard.read(asked["group_of_user"], asked["user_keys"])
            self._user_values = dict(zip(asked["user_keys"], values, strict=True))

    def chains(self) -> Iterator[tuple[Chains, list[_Coded]]]:
        """Every user's chain with its group, by slices of users that fit into memory."""
        for users in self._slices():
            first = self._shard.events(self._asked["steps"][0]["events"], users)
            if self._users is not None:
                first = first.at(np.flatnonzero(np.isin(first.users, self._users)))
            for events, line in blocks(first, self._asked["window"]):
                whole = len(events.users) == len(first.users)
                near = users if whole else Between(int(line.users[0]), int(line.users[-1]))
                steps = [entered(events, line)]
                for step in self._asked["steps"][1:]:
                    more = self._shard.events(step["events"], self._of_few(step["events"], steps[-1], near))
                    steps.append(continued(steps[-1], more, self._asked["window"], step["within"]))
                chains = furthest(steps)
                yield chains, self._groups(chains, steps[self._asked["group_step"]].events)

    def _slices(self) -> list[Users | None]:
        """Users, such that there are about `slice` events of each step of theirs."""
        steps = [step["events"] for step in self._asked["steps"]]
        sizes = [step["size"] for step in steps]
        unknown = self._shard.known_events() // _SHARE_OF_UNKNOWN if None in sizes else 0
        known = [unknown if size is None else size for size in sizes]
        count = -(-max(known) // self._asked["slice"])
        return [None] if count < 2 else list(self._shard.slices(steps[known.index(max(known))], count))

    def _of_few(self, events: Selection, reached: Reached, users: Users | None) -> Users | None:
        """The users still on their way when they are few enough to be looked up; else `users`."""
        ranks = reached.ranks
        on_their_way = reached.line.users[ranks[changes(ranks)]]
        most = 0 if events["size"] is None else min(events["size"] // self._asked["probe_cost"], _MAX_PROBED)
        return on_their_way if len(on_their_way) <= most else users

    def _groups(self, chains: Chains, events: Events) -> list[_Coded]:
        """The value of each group key per chain: of its event, one of these, or of its user."""
        of_events = dict(zip(self._event_keys, events.values, strict=True))
        at_event = chains.sources[self._asked["group_step"]]
        at_user = np.searchsorted(self._grouped_users, chains.users)
        at_user[at_user == len(self._grouped_users)] = -1
        if len(self._grouped_users):
            at_user[self._grouped_users[at_user] != chains.users] = -1
        return [
            _coded(of_events[key], at_event) if key in of_events else _coded(self._user_values[key], at_user)
            for key in self._asked["group_keys"]
        ]


def _coded(texts: Sequence[bytes], positions: Int64) -> _Coded:
    """The texts at the positions; null at -1."""
    index: dict[bytes, int] = {}
    codes = (index.setdefault(NULL if at < 0 else texts[at], len(index)) for at in positions.tolist())
    return _Coded(np.fromiter(codes, np.int64, len(positions)), list(index))


def _counted(
    asked: _Specification, chains: Chains, groups: list[_Coded]
) -> Iterator[tuple[tuple[int | None, tuple[bytes, ...]], Totals]]:
    """The totals per bucket and group."""
    buckets = np.searchsorted(np.array(asked["buckets"], np.int64), chains.times[0], side="right")
    combined = buckets
    for group in groups:
        combined = combined * len(group.labels) + group.codes
    _, firsts, places = np.unique(combined, return_index=True, return_inverse=True)
    size, steps = len(firsts), len(asked["steps"])
    users = [np.bincount(places[chains.levels > step], minlength=size).tolist() for step in range(steps)]
    still_open = chains.times[0] + asked["window"] >= asked["now"]
    immature = [
        np.bincount(places[still_open & (chains.levels == step)], minlength=size).tolist() for step in range(1, steps)
    ]
    durations = [_durations(chains, step, places, size) for step in range(1, steps)]
    for place, first in enumerate(firsts.tolist()):
        bucket = int(buckets[first]) if asked["buckets"] else None
        key = tuple(group.labels[group.codes[first]] for group in groups)
        shown = [None if value == NULL else value.decode() for value in key] if groups else None
        yield (
            (bucket, key),
            Totals(
                bucket,
                shown,
                [counts[place] for counts in users],
                [*(counts[place] for counts in immature), 0],
                [b"", *(pieces[place] for pieces in durations)],
            ),
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


def _added(one: Totals, other: Totals) -> Totals:
    """The totals of a bucket and group in two slices."""
    return Totals(
        one.bucket,
        one.group_values,
        [a + b for a, b in zip(one.users, other.users, strict=True)],
        [a + b for a, b in zip(one.immature, other.immature, strict=True)],
        [a + b for a, b in zip(one.durations, other.durations, strict=True)],
    )
