"""The kernels over arrays, without a database: their chains are those of the oracle, which tries every one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import ceil, floor
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_extension.kernels import chains, durations
from tests import oracle

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_USERS = [-(2**63), -7, 0, 1, 2, 3, 2**53 + 1, 2**63 - 1]
_IDS = [-(2**63), -1, 0, 1, 2, 2**63 - 1]
_TYPES = "abcd"


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


@st.composite
def _histories(draw: st.DrawFn) -> list[oracle.Event]:
    """Few users and instants, so that events share them; each a microsecond or decades apart from the next."""
    moments = [_EPOCH - timedelta(days=9_000), _EPOCH, _EPOCH + timedelta(days=9_000)]
    places = st.tuples(st.sampled_from(_USERS), st.sampled_from(moments), st.integers(0, 4), st.sampled_from(_IDS))
    keys = draw(st.lists(places, max_size=14, unique=True))
    return [
        oracle.Event(user, moment + timedelta(microseconds=offset), event_id, draw(st.sampled_from(_TYPES)))
        for user, moment, offset, event_id in keys
    ]


def _runs(events: list[oracle.Event], types: str, cuts: list[datetime]) -> list[chains.Events]:
    """The events of a step in their order, those between two of the cuts in a run of their own."""
    found = sorted((e.user_id, e.time, e.event_id) for e in events if e.type in types)
    return [
        _arrays([key for key in found if sum(key[1] >= cut for cut in cuts) == run]) for run in range(len(cuts) + 1)
    ]


def _arrays(keys: list[tuple[int, datetime, int]]) -> chains.Events:
    """Events; the one value of each says what it is."""
    ids = np.array([event_id for _, _, event_id in keys], np.int64)
    users = np.array([user for user, _, _ in keys], np.int64)
    times = [_microseconds(time) for _, time, _ in keys]
    values = [f"{user} {time}".encode() for user, time in zip(users.tolist(), times, strict=True)]
    return chains.Events(users, np.array(times, np.int64), lambda: ids, [values])


def _found(
    events: list[oracle.Event], steps: list[str], window: int, within: list[int | None], cuts: list[datetime]
) -> dict[int, tuple[int, list[int]]]:
    """Level and times of each user's chain, as the kernels find them."""
    first, *others = (_runs(events, step, cuts) for step in steps)
    parts = []
    for line in chains.blocks(first, window):
        reached = [chains.entered(first, line)]
        for more, limit in zip(others, within, strict=True):
            reached.append(chains.continued(reached[-1], more, window, limit))
        parts.append(chains.furthest(reached))
    found: dict[int, tuple[int, list[int]]] = {}
    if parts:
        result = chains.together(parts)
        for at, user in enumerate(result.users.tolist()):
            level = int(result.levels[at])
            times = [int(times[at]) for times in result.times[:level]]
            found[user] = level, times
            assert [sources[at] >= 0 for sources in result.sources] == [step < level for step in range(len(steps))]
            for runs, time, sources in zip((first, *others), times, result.sources, strict=False):
                (read,) = ([text for run in runs for text in run.values[0]],)
                assert read[sources[at]].split()[:2] == [str(user).encode(), str(time).encode()]
    return found


@settings(max_examples=300)
@given(data=st.data(), events=_histories())
def test_chains_are_those_of_the_oracle(data: st.DataObject, events: list[oracle.Event]) -> None:
    steps = data.draw(st.lists(st.sampled_from(["a", "b", "ab", "bc", "abcd", "d"]), min_size=2, max_size=4))
    window = data.draw(st.sampled_from([1, 2, 3, 86_400_000_000 * 3_650]))
    within = [data.draw(st.sampled_from([None, None, 1, 2])) for _ in steps[1:]]
    cuts = data.draw(st.lists(st.sampled_from(sorted({event.time for event in events}) or [_EPOCH]), max_size=2))
    limits = {at: timedelta(microseconds=limit) for at, limit in enumerate(within, start=2) if limit is not None}
    always = (datetime(1900, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
    rules = oracle.Rules(timedelta(microseconds=window), *always, within=limits)
    tests = [lambda event, types=types: event.type in types for types in steps]
    expected = {}
    for user in {event.user_id for event in events}:
        own = [event for event in events if event.user_id == user]
        for level, chain in oracle.counted_chains(own, tests, rules):
            expected[user] = level, [_microseconds(event.time) for event in chain if event is not None]
    assert _found(events, steps, window, within, cuts) == expected
    for name in ("MAX_LINE", "BLOCK"):
        with patch.object(chains, name, 1):  # every user in a block of their own
            assert _found(events, steps, window, within, cuts) == expected
    with patch.object(chains, "_RARE", data.draw(st.sampled_from([0, 1_000]))):  # all steps are merged, or searched
        assert _found(events, steps, window, within, cuts) == expected


def test_a_line_of_many_users_and_decades_is_cut_before_it_overflows() -> None:
    """Two users' lives of 200 years, and more users than 64 bits have room for at that length."""
    century = 100 * 365 * 86_400_000_000
    users = np.repeat(np.arange(3_000, dtype=np.int64), 2)
    times = np.tile(np.array([-century, century], np.int64), 3_000)
    events = chains.Events(users, times, lambda: users)
    window = 3_650 * 86_400_000_000
    cut = list(chains.blocks([events], window))
    assert len(cut) > 1
    assert [user for line in cut for user in line.users.tolist()] == list(range(3_000))
    for line in cut:
        places = chains.entered([events], line).places
        assert len(places) == 2 * len(line.users)
        assert (np.diff(places) > 0).all()
        assert len(line.users) * line.stretch <= chains.MAX_LINE


def test_event_ids_are_read_only_where_events_share_an_instant() -> None:
    asked = []

    def step(times: list[int]) -> chains.Events:
        array = np.array(times, np.int64)
        return chains.Events(np.ones(len(times), np.int64), array, lambda: (asked.append(times), array)[1])

    for second, read in (([3, 5], 0), ([1, 5], 2)):
        asked.clear()
        first = [step([1, 2])]
        (line,) = chains.blocks(first, 10)
        chains.continued(chains.entered(first, line), [step(second)], 10)
        assert len(asked) == read


@given(
    values=st.lists(st.integers(0, 10**15), max_size=12),
    fractions=st.lists(st.sampled_from([0, 0.25, 0.5, 0.9, 1]), min_size=1),
)
def test_statistics_of_durations(values: list[int], fractions: list[float]) -> None:
    packed = b"".join(value.to_bytes(8, "little") for value in values)
    if not values:
        assert durations.average(packed) is None
        assert durations.quantiles(packed, fractions) is None
    else:
        assert durations.average(packed) == pytest.approx(sum(values) / len(values) / 1e6)
        ordered = sorted(values)
        for fraction, found in zip(fractions, durations.quantiles(packed, fractions) or [], strict=True):
            place = fraction * (len(values) - 1)
            low, high = ordered[floor(place)], ordered[ceil(place)]
            assert found == pytest.approx((low + (high - low) * (place - floor(place))) / 1e6)
    lows = [0, 1, 1_000]
    edges = [low * 1_000_000 for low in lows] + [float("inf")]
    expected = [sum(edges[at] <= value < edges[at + 1] for value in values) for at in range(len(lows))]
    assert durations.counts(packed, lows) == expected
