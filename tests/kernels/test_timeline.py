"""Chains with rules over arrays, without a database: they are those of the oracle, which tries every one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any, cast
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_extension.kernels import places, sequences
from heap_extension.kernels.events import Events
from heap_extension.kernels.sequences import Found, SequenceAsked, found_chains
from heap_extension.kernels.shard import NULL, Between, Selection, Shard
from tests import oracle

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_USERS = [-(2**63), 0, 1, 2**63 - 1]
_IDS = [-(2**63), 0, 1, 2, 3, 2**63 - 1]
_STEPS = ["a", "b", "ab", "bc", "abcd", "d"]
_DECADE = 86_400_000_000 * 3_650


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


@st.composite
def _histories(draw: st.DrawFn) -> list[oracle.Event]:
    """Few users, sessions and instants, so that events share them; each a microsecond or decades apart from the next."""
    moments = [_EPOCH - timedelta(days=9_000), _EPOCH, _EPOCH, _EPOCH + timedelta(days=9_000)]
    drawn = st.tuples(st.sampled_from(_USERS), st.sampled_from(moments), st.integers(0, 4), st.sampled_from(_IDS))
    keys = draw(st.lists(drawn, max_size=12, unique=True))
    return [
        oracle.Event(
            user, moment + timedelta(microseconds=offset), event_id, draw(st.sampled_from("abcd")),
            draw(st.sampled_from([1, 1, 2, None])), {"path": draw(st.sampled_from(["/", "/", "/é", "", None]))},
        )
        for user, moment, offset, event_id in keys
    ]  # fmt: skip


class _Memory:
    """A shard whose events are in a list: a selection's alias are their types."""

    def __init__(self, events: list[oracle.Event]) -> None:
        self._events = sorted(events, key=lambda event: (event.user_id, *event.order))
        self.lookups = 0

    def slices_of(self, selections: Sequence[Selection], size: int) -> list[Between | None]:
        return [None] if size > 1 else [Between(-(2**63), 0), Between(1, 2**63 - 1)]

    def expect(self, selections: Sequence[Selection]) -> None:
        """Nothing is asked for at once."""

    def known_events(self) -> int:
        return len(self._events)

    def events(self, selection: Selection, users: Any = None) -> Events:
        own = [event for event in self._events if event.type in selection["scans"][0]["alias"]]
        if isinstance(users, Between):
            own = [event for event in own if users.first <= event.user_id <= users.last]
        elif users is not None:
            self.lookups += 1
            own = [event for event in own if event.user_id in users.tolist()]
        values = [[_text(value(event)) for event in own] for value in map(_value, selection["values"])]
        ids = np.array([event.event_id for event in own], np.int64)
        times = np.array([_microseconds(event.time) for event in own], np.int64)
        return Events(np.array([event.user_id for event in own], np.int64), times, lambda: ids, values)


def _value(name: str) -> Callable[[oracle.Event], Any]:
    return lambda event: event.get(name)


def _text(value: Any) -> bytes:
    return NULL if value is None else str(value).encode()


def _selection(types: str, values: Iterable[str], size: int | None = None) -> Selection:
    scan = {"alias": types, "where": [], "definition": "any" if types == "abcd" else None}
    return cast(Selection, {"scans": [scan], "values": list(values), "size": size})


def _entangled(steps: Sequence[str]) -> list[list[int]]:
    groups = [{index} for index in range(len(steps))]
    for one, other in combinations(range(len(steps)), 2):
        if set(steps[one]) & set(steps[other]):
            mine, theirs = (next(group for group in groups if index in group) for index in (one, other))
            if mine is not theirs:
                groups.remove(theirs)
                mine |= theirs
    return [sorted(group) for group in groups]


def _chains(found: Iterable[Found]) -> list[tuple[int, int, list[tuple[int, int] | None]]]:
    """User, level and per step (time, event id) of each chain, sorted."""
    rows = []
    for one in found:
        chains = one.chains
        for at, (user, level) in enumerate(zip(chains.users.tolist(), chains.levels.tolist(), strict=True)):
            chain: list[tuple[int, int] | None] = []
            for times, sources, step in zip(chains.times, chains.sources, one.events, strict=True):
                if sources[at] < 0:
                    chain.append(None)
                    continue
                assert (step.users[sources[at]], step.times[sources[at]]) == (user, times[at])
                chain.append((int(times[at]), int(step.ids[sources[at]])))
            rows.append((user, level, chain))
    return sorted(rows, key=json.dumps)


@settings(max_examples=600)
@given(data=st.data(), events=_histories())
def test_chains_with_rules_are_those_of_the_oracle(data: st.DataObject, events: list[oracle.Event]) -> None:
    steps = data.draw(st.lists(st.sampled_from(_STEPS), min_size=2, max_size=4))
    window = data.draw(st.sampled_from([1, 2, 3, _DECADE]))
    always = (datetime(1900, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
    unit = data.draw(st.sampled_from(["users", "users", "sessions", "conversions"]))
    any_order = unit != "conversions" and data.draw(st.integers(0, 2)) == 0
    held = data.draw(st.booleans())
    optional, within, exclusions = set(), {}, []
    if not any_order:
        optional = data.draw(st.sets(st.integers(2, len(steps))))
        within = data.draw(st.dictionaries(st.integers(2, len(steps)), st.sampled_from([1, 2])))
        for _ in range(data.draw(st.integers(0, 2))):
            first = data.draw(st.integers(1, len(steps) - 1))
            last = data.draw(st.integers(first + 1, len(steps)))
            exclusions.append((data.draw(st.sampled_from(_STEPS)), first, last))
    entry_end = data.draw(st.sampled_from([always[1], _EPOCH + timedelta(microseconds=2)])) if any_order else always[1]
    rules = oracle.Rules(
        timedelta(microseconds=window), always[0], entry_end, unit=unit, any_order=any_order,
        within={step: timedelta(microseconds=length) for step, length in within.items()}, optional=frozenset(optional),
        exclusions=tuple((lambda event, types=types: event.type in types, first, last)
                         for types, first, last in exclusions),
        hold=_value("path") if held else None,
    )  # fmt: skip
    tests = [lambda event, types=types: event.type in types for types in steps]
    expected = []
    for user in {event.user_id for event in events}:
        own = [event for event in events if event.user_id == user]
        for level, chain in oracle.counted_chains(own, tests, rules):
            places_of = [None if event is None else (_microseconds(event.time), event.event_id) for event in chain]
            expected.append((user, level, places_of))
    shared = ["session_id"] * (unit == "sessions") + ["path"] * held
    size = data.draw(st.sampled_from([None, 100]))

    def before(step: int) -> list[int]:
        found = [step - 1]
        while found[-1] in optional:
            found.append(found[-1] - 1)
        return [index - 1 for index in found] if step > 1 and not any_order else []

    asked = {
        "steps": [{"events": _selection(types, shared, size), "within": within.get(step), "before": before(step)}
                  for step, types in enumerate(steps, start=1)],
        "window": window,
        "rules": {
            "unit": unit, "shared": len(shared), "entry_end": _microseconds(entry_end),
            "exclusions": [{"events": _selection(types, [], size), "first": first - 1, "last": last - 1}
                           for types, first, last in exclusions],
            "any_order": _entangled(steps) if any_order else None,
        },
        "group_step": 0, "slice": data.draw(st.sampled_from([1, 2])), "probe_cost": 15,
        "group_keys": [], "group_of_user": None, "user_keys": [], "users": None,
    }  # fmt: skip
    longest = data.draw(st.sampled_from([2**62, 2**40]))
    with (
        patch.object(places, "MAX_KEY", longest),
        patch.object(sequences, "MAX_KEY", data.draw(st.sampled_from([2**62, 1]))),
    ):
        found = found_chains(cast(Shard, _Memory(events)), cast(SequenceAsked, asked))
        assert _chains(found) == sorted(expected, key=json.dumps)


@given(data=st.data(), events=_histories())
def test_events_have_the_places_of_their_order(data: st.DataObject, events: list[oracle.Event]) -> None:
    memory = _Memory(events)
    types = data.draw(st.lists(st.sampled_from(_STEPS), min_size=1, max_size=4))
    runs = [memory.events(_selection(of_run, [])) for of_run in types]
    keys = [list(zip(run.users.tolist(), run.times.tolist(), run.ids.tolist(), strict=True)) for run in runs]
    expected = {key: place for place, key in enumerate(sorted({key for of_run in keys for key in of_run}))}
    with patch.object(places, "MAX_KEY", data.draw(st.sampled_from([2**62, 2**40, 2**3]))):
        found = places.placed(runs)
    assert [places_of.tolist() for places_of in found] == [[expected[key] for key in of_run] for of_run in keys]
