"""Groups of a shard's events: whose events count, and texts as numbers, so that arrays can count by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from heap_extension.kernels.activity import ranks
from heap_extension.kernels.shard import NULL, Query, Shard

__all__ = ["USER", "Coded", "GroupsAsked", "Population"]

Int64 = npt.NDArray[np.int64]

USER = "pg_catalog.int8send(user_id)"
"""A user's id as a kernel reads it."""


class GroupsAsked(TypedDict):
    """The part of a specification that is about users and groups.

    Attributes:
        group_keys: the columns of the groups, `group_1`, ...
        group_of_user: a read of user_id and those that are values of a user; None when there are none.
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
    labels: list[list[str | None]]


class Population:
    """The users of a shard that count, and their groups.

    Attributes:
        event_keys: the group keys that are values of an event.
    """

    def __init__(self, shard: Shard, asked: GroupsAsked) -> None:
        self._keys = asked["group_keys"]
        self._user_keys = asked["user_keys"]
        self.event_keys = [key for key in self._keys if key not in self._user_keys]
        self._users: Int64 | None = None
        if asked["users"] is not None:
            (users,), _ = shard.read(asked["users"], [USER])
            self._users = np.unique(users)
        self._grouped_users: Int64 = np.zeros(0, np.int64)
        self._user_values: list[list[bytes]] = []
        if asked["group_of_user"] is not None:
            (self._grouped_users,), self._user_values = shard.read(asked["group_of_user"], [USER], self._user_keys)

    def members(self, users: Int64) -> Int64 | None:
        """The positions of those who count; None for all."""
        return None if self._users is None else np.flatnonzero(np.isin(users, self._users))

    def groups(self, users: Int64, texts: Sequence[Sequence[bytes]]) -> Coded | None:
        """The groups of events; None without groups.

        Args:
            users: int64[n], rising: whose events they are.
            texts: the values of each of `event_keys`.
        """
        if not self._keys:
            return None
        of_event = dict(zip(self.event_keys, map(_coded, texts), strict=True))
        of_user = {}
        if self._user_keys:
            at = self._places(users)
            of_user = {key: _coded(values, at) for key, values in zip(self._user_keys, self._user_values, strict=True)}
        first, *others = (of_event[key] if key in of_event else of_user[key] for key in self._keys)
        codes, labels = first
        for more in others:
            pairs, codes = np.unique(codes * len(more.labels) + more.codes, return_inverse=True)
            both = (divmod(pair, len(more.labels)) for pair in pairs.tolist())
            labels = [[*labels[one], *more.labels[other]] for one, other in both]
        return Coded(codes, labels)

    def _places(self, users: Int64) -> Int64:
        """Where each user's values are, or -1."""
        distinct = np.unique(users)
        at = np.searchsorted(self._grouped_users, distinct)
        at[at == len(self._grouped_users)] = -1
        if len(self._grouped_users):
            at[self._grouped_users[at] != distinct] = -1
        return at[ranks(users)]


def _coded(texts: Sequence[bytes], positions: Int64 | None = None) -> Coded:
    """The texts, or those at the positions, null at -1."""
    numbers: dict[bytes, int] = {}
    codes = np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), np.int64, len(texts))
    if positions is not None:
        codes = np.append(codes, numbers.setdefault(NULL, len(numbers)))[positions]
    return Coded(codes, [[None if text == NULL else text.decode()] for text in numbers])
