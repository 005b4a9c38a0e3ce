"""How many events lie between the steps of chains: the user's, from a chain's first event to its last, are read."""

from __future__ import annotations

import numpy as np

from heap_extension.kernels.events import Events, Int64
from heap_extension.kernels.places import placed
from heap_extension.kernels.sequences import Found
from heap_extension.kernels.shard import Shard

__all__ = ["events_between"]


def events_between(shard: Shard, found: Found) -> list[Int64]:
    """For each step int64[n]: how many of the user's events lie between it and the step before it in the chain; zeros
    for step 1, and for chains that do not have the step."""
    chains = found.chains
    several = np.flatnonzero(chains.levels > 1)
    own = [_of_step(events, sources[several]) for events, sources in zip(found.events, chains.sources, strict=True)]
    last = chains.times[0]
    for sources, times in zip(chains.sources[1:], chains.times[1:], strict=True):
        last = np.where(sources >= 0, times, last)
    every = shard.events_of_spans(chains.users[several], chains.times[0][several], last[several])
    places = placed([every, *own])[1:]
    counts = [np.zeros(len(chains.users), np.int64) for _ in own]
    before = places[0]
    for step in range(1, len(own)):
        there = chains.sources[step][several] >= 0
        at = before.copy()
        at[there] = places[step]
        counts[step][several] = np.where(there, at - before - 1, 0)
        before = at
    return counts


def _of_step(events: Events, at: Int64) -> Events:
    """The events at these positions, without -1."""
    at = at[at >= 0]
    return Events(events.users[at], events.times[at], lambda: events.ids[at])
