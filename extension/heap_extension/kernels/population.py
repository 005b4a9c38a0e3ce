"""The users of a shard that count, and the groups of their events as numbers, so that arrays can count by them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from heap_extension.kernels.events import ByUser, Events, Int64
from heap_extension.kernels.shard import NULL, Query, Shard

__all__ = ["Coded", "Population", "PopulationAsked", "coded", "combined"]


class PopulationAsked(TypedDict):
    """The part of a specification that is about users and groups.

    Attributes:
        group_keys: the columns of the groups, `group_1`, ... Those that are not of a user are the events' values.
        group_of_user: a read of user_id and the keys that are values of a user; None when there are none.
        user_keys: which these are.
        users: a read of the user_id of those that count; None for all.
    """

    group_keys: list[str]
    group_of_user: Query | None
    user_keys: list[str]
    users: Query | None


class Coded(NamedTuple):
    """Groups as numbers: `labels[codes[i]]` are the values of the group at i, one per key."""

    codes: Int64
    labels: list[tuple[str | None, ...]]


class Population:
    """The users of a shard that count, and what they are grouped by."""

    def __init__(self, shard: Shard, asked: PopulationAsked) -> None:
        self._keys = asked["group_keys"]
        self._user_keys = asked["user_keys"]
        self._users: Int64 | None = None
        if asked["users"] is not None:
            users, _ = shard.read(asked["users"])
            self._users = np.unique(users)
        self._grouped_users: Int64 = np.zeros(0, np.int64)
        self._user_values: list[list[bytes]] = []
        if asked["group_of_user"] is not None:
            self._grouped_users, self._user_values = shard.read(asked["group_of_user"], self._user_keys)

    @property
    def has_event_keys(self) -> bool:
        """Whether a user's events can be in several groups."""
        return len(self._keys) > len(self._user_keys)

    @property
    def has_groups(self) -> bool:
        """Whether what is counted is counted by group."""
        return bool(self._keys)

    def members(self, events: Events) -> Events:
        """The events of users that count."""
        return events if self._users is None else events.at(np.flatnonzero(self.counts(events.users)))

    def members_by_user(self, events: ByUser) -> ByUser:
        """As `members`."""
        if self._users is None:
            return events
        lengths = np.diff(events.begins, append=len(events.times))
        return events.at(np.flatnonzero(np.repeat(self.counts(events.users), lengths)))

    def counts(self, users: Int64) -> npt.NDArray[np.bool_]:
        """Which of the users count."""
        return np.ones(len(users), np.bool_) if self._users is None else np.isin(users, self._users)

    def groups(self, users: Int64, values: Sequence[Sequence[bytes]], at: Int64 | None = None) -> Coded | None:
        """The groups of rows; None without groups.

        Args:
            users: int64[n]: whose rows they are.
            values: the values of events, for each key that is one of an event.
            at: int64[n]: which event's values a row has; -1 for none; None where there is a row per event.
        """
        if not self._keys:
            return None
        of_event, of_user = iter(values), iter(self._user_values)
        places = self._places(users) if self._user_keys else None
        return combined([
            coded(next(of_user), places) if key in self._user_keys else coded(next(of_event), at) for key in self._keys
        ])  # fmt: skip

    def _places(self, users: Int64) -> Int64:
        """Where each user's values are, or -1."""
        distinct, inverse = np.unique(users, return_inverse=True)
        at = np.searchsorted(self._grouped_users, distinct)
        at[at == len(self._grouped_users)] = -1
        if len(self._grouped_users):
            at[self._grouped_users[at] != distinct] = -1
        return at[inverse]


def coded(texts: Sequence[bytes], at: Int64 | None = None) -> Coded:
    """The texts, or those at the positions, null at -1."""
    if at is not None and len(at) < len(texts):
        texts, at = [NULL if place < 0 else texts[place] for place in at.tolist()], None
    numbers: defaultdict[bytes, int] = defaultdict(count().__next__)
    codes = np.fromiter(map(numbers.__getitem__, texts), np.int64, len(texts))
    if at is not None:
        codes = np.append(codes, numbers[NULL])[at]
    return Coded(codes, [(None if text == NULL else text.decode(),) for text in numbers])


def combined(keys: Sequence[Coded]) -> Coded:
    """The groups by one key or more, each of which has a number for every row."""
    (codes, labels), *others = keys
    for more in others:
        pairs, codes = np.unique(codes * len(more.labels) + more.codes, return_inverse=True)
        both = (divmod(pair, len(more.labels)) for pair in pairs.tolist())
        labels = [(*labels[one], *more.labels[other]) for one, other in both]
    return Coded(codes, labels)
