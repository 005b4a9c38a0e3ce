"""The chains of one shard where other rules than order and time decide what a chain is: reads the events of the steps
and of what must not happen in between, lays them out, and has `timeline` or `any_order` find the chains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from heap_extension.kernels.any_order import Matched, furthest_in_any_order
from heap_extension.kernels.chains import Chains
from heap_extension.kernels.events import Events, Int64, changes
from heap_extension.kernels.places import MAX_KEY, distinct_users, placed, ranked
from heap_extension.kernels.population import Coded, Population, PopulationAsked, coded
from heap_extension.kernels.shard import Selection, Shard, Users
from heap_extension.kernels.timeline import (
    Barrier,
    Candidates,
    Step,
    conversions,
    first_of_owners,
    furthest,
    reached,
)

__all__ = ["MAX_PROBED", "Found", "Rules", "SequenceAsked", "StepAsked", "events_of", "found_chains"]

MAX_PROBED = 20_000
"""More users than this are not looked up one by one: their ids would make too long a condition."""

_PROBES_OF_ANY = 6
"""Looking up all of a user's events costs so many times as much as looking up those of one definition."""


class StepAsked(TypedDict):
    """A step.

    Attributes:
        events: with the values that chains share, then those of the groups.
        within: how many microseconds after the step before it they may happen.
        before: indexes of the steps that it may follow, the last first; none for the first step.
    """

    events: Selection
    within: int | None
    before: list[int]


class _Excluded(TypedDict):
    """Events that must not happen between those of two steps, by index."""

    events: Selection
    first: int
    last: int


class Rules(TypedDict):
    """The rules of a chain besides order and time.

    Attributes:
        unit: whose chains they are.
        shared: how many values chains share; with sessions the first is the session.
        exclusions: what must not happen in between.
        any_order: the steps, by index, in groups that match no common event, where they may come in any order.
        entry_end: the instant before which chains begin.
    """

    unit: Literal["users", "sessions", "conversions"]
    shared: int
    exclusions: list[_Excluded]
    any_order: list[list[int]] | None
    entry_end: int


class SequenceAsked(PopulationAsked):
    """What chains are asked for. Durations are microseconds, instants microseconds since 2000.

    Attributes:
        schema: the app's.
        steps: at least two.
        window: from a chain's first event to its last.
        rules: those besides; None where there are no others.
        group_step: index of the step whose events have the groups.
        slice: how many rows of a step are in memory at once, about.
        probe_cost: looking up one user costs about as much as reading this many events.
    """

    schema: str
    steps: list[StepAsked]
    window: int
    rules: Rules | None
    group_step: int
    slice: int
    probe_cost: int


class Found(NamedTuple):
    """Chains of a slice of users, their groups, and for each step the events that `chains.sources` are positions in."""

    users: Users | None
    chains: Chains
    groups: Coded | None
    events: list[Events]


_NO_RULES: Rules = {"unit": "users", "shared": 0, "exclusions": [], "any_order": None, "entry_end": 0}


def found_chains(shard: Shard, asked: SequenceAsked) -> Iterator[Found]:
    """The chains that count, by slices of users that fit into memory."""
    reads = _Reads(shard, asked)
    selections = [part["events"] for part in (*asked["steps"], *reads.rules["exclusions"])]
    shard.expect(selections)
    for users in shard.slices_of(selections, asked["slice"]):
        yield reads.in_any_order(users) if reads.rules["any_order"] is not None else reads.in_order(users)


def events_of(shard: Shard, selection: Selection, wanted: Int64, users: Users | None, probe_cost: int) -> Events:
    """The events of the wanted users, all in the slice `users`; looked up where they are few."""
    size = selection["size"]
    if size is None and any(scan["definition"] == "any" for scan in selection["scans"]):
        size, probe_cost = shard.known_events(), probe_cost * _PROBES_OF_ANY
    most = 0 if size is None else min(size // probe_cost, MAX_PROBED)
    return shard.events(selection, wanted if len(wanted) <= most else users).of(wanted)


class _Reads:
    """The reads of a shard's chains."""

    def __init__(self, shard: Shard, asked: SequenceAsked) -> None:
        self._shard = shard
        self._asked = asked
        self._population = Population(shard, asked)
        self.rules = asked["rules"] or _NO_RULES

    def in_order(self, users: Users | None) -> Found:
        steps, excluded = self._read_in_order(users)
        places = placed([*steps, *excluded])
        units, owners = self._units(steps)
        laid = []
        for step, events, of_units, at in zip(self._asked["steps"], steps, units, places, strict=False):
            laid.append(Step(_candidates(events, of_units, at), step["within"], step["before"]))
        barriers = [
            Barrier(at, one["first"], one["last"])
            for one, at in zip(self.rules["exclusions"], places[len(steps) :], strict=True)
        ]
        ends = reached(laid, barriers, self._asked["window"])
        if self.rules["unit"] == "conversions":
            chains = conversions(ends)
        else:
            chains, last = furthest(ends)
            if owners is not None:
                chains = first_of_owners(chains, last, owners[0][chains.sources[0]])
        of_group = self._asked["group_step"]
        values = steps[of_group].values[self.rules["shared"] :]
        groups = self._population.groups(chains.users, values, chains.sources[of_group])
        return Found(users, chains, groups, steps)

    def in_any_order(self, users: Users | None) -> Found:
        runs = [self._population.members(self._shard.events(step["events"], users)) for step in self._asked["steps"]]
        units, owners = self._units(runs)
        matched, origins = _matched(runs, units)
        assert self.rules["any_order"] is not None
        chains, last = furthest_in_any_order(
            matched, self.rules["any_order"], self._asked["window"], self.rules["entry_end"]
        )
        sources = [np.where(source >= 0, origins[source], -1) for source in chains.sources]
        chains = Chains(chains.users, chains.levels, chains.times, sources)
        if owners is not None:
            chains = first_of_owners(chains, last, np.concatenate(owners)[sources[0]])
        every = _one_after_the_other(runs)
        values = every.values[self.rules["shared"] :]
        groups = self._population.groups(chains.users, values, chains.sources[self._asked["group_step"]])
        return Found(users, chains, groups, [every] * len(runs))

    def _read_in_order(self, users: Users | None) -> tuple[list[Events], list[Events]]:
        """The events of the steps, of users who have all steps before that may not be skipped; and those excluded, of
        users who have two events to have something between."""
        asked = self._asked["steps"]
        first = self._population.members(self._shard.events(asked[0]["events"], users))
        steps, excluded = [first], []
        ways = [distinct_users(first)]  # for each step who has it, and those before it
        optional = _optional(asked)
        for index, step in enumerate(asked[1:], start=1):
            events = self._events_of(step["events"], ways[-1], users)
            ways.append(ways[-1] if index in optional else distinct_users(events))
            steps.append(events)
        for one in self.rules["exclusions"]:
            excluded.append(self._events_of(one["events"], ways[one["first"] + 1], users))
        return steps, excluded

    def _events_of(self, selection: Selection, wanted: Int64, users: Users | None) -> Events:
        return events_of(self._shard, selection, wanted, users, self._asked["probe_cost"])

    def _units(self, runs: Sequence[Events]) -> tuple[list[Int64], list[Int64] | None]:
        """For each run whose chain its events can be in, -1 for nobody's; and who has one chain of all these, None
        where each is one of its own."""
        users = np.unique(np.concatenate([distinct_users(run) for run in runs]))
        units, count = np.concatenate([ranked(run, users) for run in runs]), len(users)
        present = np.ones(len(units), np.bool_)
        owners = units
        for number in range(self.rules["shared"]):
            codes, labels = coded(list(chain.from_iterable(run.values[number] for run in runs)))
            if (None,) in labels:
                present &= codes != labels.index((None,))
            units, count = units * len(labels) + codes, count * len(labels)
            if count * (len(units) + 1) >= MAX_KEY:
                numbers, units = np.unique(units, return_inverse=True)
                count = len(numbers)
            if number == 0 and self.rules["unit"] == "sessions":
                owners = units
        cuts = np.cumsum([len(run.users) for run in runs])[:-1]
        have_one = self.rules["shared"] == (1 if self.rules["unit"] == "sessions" else 0)
        return np.split(np.where(present, units, -1), cuts), None if have_one else np.split(owners, cuts)


def _optional(steps: Sequence[StepAsked]) -> set[int]:
    """The steps that may be skipped, by index."""
    return {index for step in steps[1:] for index in range(step["before"][-1] + 1, step["before"][0] + 1)}


def _candidates(events: Events, units: Int64, places: Int64) -> Candidates:
    """The events that can be in a chain, in the order (unit, place)."""
    source = np.arange(len(units), dtype=np.int64)
    if len(units) and ((units[1:] < units[:-1]).any() or units.min() < 0):
        source = np.argsort(units, kind="stable")
        source = source[np.searchsorted(units[source], 0) :]
    return Candidates(events.users[source], units[source], places[source], events.times[source], source)


def _matched(runs: Sequence[Events], units: Sequence[Int64]) -> tuple[Matched, Int64]:
    """The events of all steps, each once, in the order (unit, place); and where each is in the runs, one after the
    other."""
    places = np.concatenate(placed(runs))
    of_units = np.concatenate(units)
    bits = np.repeat(1 << np.arange(len(runs), dtype=np.int64), [len(run.users) for run in runs])
    order = np.argsort(places, kind="stable")
    firsts = changes(places[order])
    steps = np.bitwise_or.reduceat(bits[order], firsts) if len(firsts) else firsts
    origins = order[firsts]
    by_unit = np.argsort(of_units[origins], kind="stable")
    by_unit = by_unit[np.searchsorted(of_units[origins[by_unit]], 0) :]
    origins = origins[by_unit]
    users, times = np.concatenate([run.users for run in runs]), np.concatenate([run.times for run in runs])
    return Matched(users[origins], of_units[origins], places[origins], times[origins], steps[by_unit]), origins


def _one_after_the_other(runs: Sequence[Events]) -> Events:
    """The events of all runs, in the runs' order."""
    return Events(
        np.concatenate([run.users for run in runs]),
        np.concatenate([run.times for run in runs]),
        lambda: np.concatenate([run.ids for run in runs]),
        [list(chain.from_iterable(texts)) for texts in zip(*(run.values for run in runs), strict=True)],
    )
