"""One number for the place of every event in the order (user, time, event id), over the events of several steps.

What comes before what is then a comparison of two integers, wherever the events were read from; an event that several
steps match has one place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from heap_extension.kernels.events import Events, Int64, changes

__all__ = ["MAX_KEY", "distinct_users", "placed", "ranked"]

MAX_KEY = 2**62
"""Keys of users and times are smaller: where times are longer, their last bits are left out and compared later."""


def distinct_users(events: Events) -> Int64:
    """The users who have some of the events, rising."""
    return events.users[changes(events.users)]


def ranked(events: Events, users: Int64) -> Int64:
    """The rank of each event's user among `users`, rising, which all are."""
    firsts = changes(events.users)
    return np.repeat(np.searchsorted(users, events.users[firsts]), np.diff(firsts, append=len(events.users)))


def placed(runs: Sequence[Events]) -> list[Int64]:
    """For each run the places of its events among those of all runs, from 0 and without gaps."""
    keys = _keys(runs)
    order = np.argsort(keys, kind="stable")  # runs are in order: they are only merged
    ordered = keys[order]
    new = np.append(True, ordered[1:] != ordered[:-1])[: len(order)]
    if not new.all():  # only there do event ids matter
        tied = np.flatnonzero(~new | np.append(~new[1:], False))
        at, ordered = order[tied], ordered[tied]
        times = np.concatenate([run.times for run in runs])[at]
        ids = np.concatenate([run.ids for run in runs])[at]
        inside = np.lexsort((ids, times, ordered))
        at, ordered, times, ids = at[inside], ordered[inside], times[inside], ids[inside]
        order[tied] = at
        same = (ordered[1:] == ordered[:-1]) & (times[1:] == times[:-1]) & (ids[1:] == ids[:-1])
        new[tied] = np.append(True, ~same)
    places = np.empty(len(order), np.int64)
    places[order] = np.cumsum(new) - 1
    return np.split(places, np.cumsum([len(run.users) for run in runs])[:-1])


def _keys(runs: Sequence[Events]) -> Int64:
    """Numbers of all events, run after run, that rise with users and times."""
    users = np.unique(np.concatenate([distinct_users(run) for run in runs]))
    times = np.concatenate([run.times for run in runs])
    if len(times) == 0:
        return times
    base = int(times.min())
    stretch = int(times.max()) - base + 1
    shift = max(0, (stretch * len(users) // MAX_KEY).bit_length())
    ranks = np.concatenate([ranked(run, users) for run in runs])
    keys: Int64 = ranks * ((stretch >> shift) + 1) + ((times - base) >> shift)
    return keys
