"""What those who convert in one shard have in common: counts them, and all others, by the values of each factor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from heap_extension.kernels.events import Events, Int64, changes
from heap_extension.kernels.population import Coded
from heap_extension.kernels.sequences import Found, SequenceAsked, events_of, found_chains
from heap_extension.kernels.shard import Database, Selection, Shard
from heap_extension.kernels.totals import Totals, added_up

__all__ = ["correlate"]

_DONE = "done"


class _Factor(TypedDict):
    """A property, by its index among the groups' keys, or events that are done on the way, or not."""

    property: int | None
    events: Selection | None


class _Specification(SequenceAsked):
    """What `heap_compiler.analyses.correlate` asks for: the groups are the values of properties.

    Attributes:
        factors: what may have to do with converting.
    """

    factors: list[_Factor]


def correlate(database: Database, relation: int, specification: str) -> list[Totals]:
    """Rows of a shard with the number of the factor, from 1, its value, and how many with it converted and did not; of
    everybody as factor 0.

    Args:
        database: PL/Python's `plpy`.
        relation: oid of the table of the row of `<app>.shards` that stands for the shard.
        specification: JSON of `_Specification`.
    """
    asked: _Specification = json.loads(specification)
    shard = Shard(database, relation, asked["schema"])
    return added_up(totals for found in found_chains(shard, asked) for totals in _counted(shard, asked, found))


def _counted(shard: Shard, asked: _Specification, found: Found) -> Iterator[Totals]:
    chains = found.chains
    if len(chains.users) == 0:
        return
    converted = chains.sources[-1] >= 0
    yield _totals(0, None, np.ones(len(converted), np.bool_), converted)
    until = np.where(converted, chains.times[-1], chains.times[0] + asked["window"] + 1)
    for number, factor in enumerate(asked["factors"], start=1):
        if factor["events"] is not None:
            events = events_of(shard, factor["events"], chains.users, found.users, asked["probe_cost"])
            yield _totals(number, _DONE, _done(events, chains.users, chains.times[0], until), converted)
        elif factor["property"] is not None and found.groups is not None:
            yield from _by_value(number, factor["property"], found.groups, converted)


def _totals(number: int, value: str | None, who: npt.NDArray[np.bool_], converted: npt.NDArray[np.bool_]) -> Totals:
    counts = [int(np.count_nonzero(who & some)) for some in (converted, ~converted)]
    return Totals(number, [value], counts)


def _done(events: Events, users: Int64, since: Int64, until: Int64) -> npt.NDArray[np.bool_]:
    """Which of the users, rising, have an event after the one instant and before the other; all events are of these."""
    firsts = changes(events.users)
    at = np.repeat(np.searchsorted(users, events.users[firsts]), np.diff(firsts, append=len(events.users)))
    done = np.zeros(len(users), np.bool_)
    done[at[(events.times > since[at]) & (events.times < until[at])]] = True
    return done


def _by_value(number: int, key: int, groups: Coded, converted: npt.NDArray[np.bool_]) -> Iterator[Totals]:
    """The counts of each value of one property, of groups of all."""
    values = list(dict.fromkeys(label[key] for label in groups.labels))
    places: Mapping[str | None, int] = {value: place for place, value in enumerate(values)}
    of_labels = np.array([places[label[key]] for label in groups.labels], np.int64)
    at = of_labels[groups.codes]
    counts = [np.bincount(at[who], minlength=len(values)).tolist() for who in (converted, ~converted)]
    for value, *both in zip(values, *counts, strict=True):
        if any(both):  # a value that no chain has can be known from other events
            yield Totals(number, [value], both)
