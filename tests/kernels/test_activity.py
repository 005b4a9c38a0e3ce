"""What is counted of users' activity, without a database: it is what sets of users and buckets give."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_extension.kernels import activity
from heap_extension.kernels.events import ByUser, Events, Int64

_USERS = [-(2**63), -7, 0, 1, 2**53 + 1, 2**63 - 1]
_BOUNDS = [-(10**15), 0, 3, 5, 6, 9]

Row = tuple[int, int, int]
"""User, time and group of an event."""


def _array(values: list[int]) -> Int64:
    return np.array(values, np.int64)


def _bucket(time: int) -> int:
    return bisect_right(_BOUNDS, time)


@st.composite
def _rows(draw: st.DrawFn) -> list[Row]:
    row = st.tuples(st.sampled_from(_USERS), st.integers(-2, 12), st.integers(0, 2))
    return sorted(draw(st.lists(row, max_size=25)), key=lambda row: row[:2])


def _counted(counts: activity.Counts) -> dict[tuple[int, int], list[int]]:
    """What is not zero, by bucket and group."""
    rows = zip(counts.buckets.tolist(), counts.groups.tolist(), counts.values.tolist(), strict=True)
    found = [((bucket, group), values) for bucket, group, values in rows]
    assert len(dict(found)) == len(found)
    return {key: values for key, values in found if any(values)}


def _active(rows: list[Row], grouped: str) -> activity.Activity:
    users, times, groups = (_array([row[at] for row in rows]) for at in range(3))
    buckets = activity.Buckets(_array(_BOUNDS)).of(times)
    if grouped == "of users":
        groups = users % 2
    return activity.active(users, buckets, groups if grouped else None, of_events=grouped == "of events")


def _units(rows: list[Row], grouped: str) -> dict[tuple[int, int], list[int]]:
    """The distinct buckets of each user, by user and group."""
    units: dict[tuple[int, int], set[int]] = {}
    for user, time, group in rows:
        of = {"": 0, "of users": user % 2, "of events": group}[grouped]
        units.setdefault((user, of), set()).add(_bucket(time))
    return {unit: sorted(buckets) for unit, buckets in units.items()}


@given(
    times=st.lists(st.integers(-(10**15), 10**15), max_size=300),
    bounds=st.lists(st.integers(-(10**15), 10**15), unique=True, max_size=5).map(sorted)
    | st.lists(st.integers(-50, 50).map(lambda hour: hour * 3_600_000_000), unique=True, max_size=5).map(sorted),
)
def test_a_bucket_begins_with_its_bound(times: list[int], bounds: list[int]) -> None:
    times = [*times, *bounds, *(bound - 1 for bound in bounds)]
    found = activity.Buckets(_array(bounds)).of(_array(times))
    assert found.tolist() == [bisect_right(bounds, time) for time in times]


@settings(max_examples=200)
@given(rows=_rows(), data=st.data())
def test_runs_are_counted_as_what_they_are_of(rows: list[Row], data: st.DataObject) -> None:
    users, times = _array([row[0] for row in rows]), _array([row[1] for row in rows])
    of_run = _array([data.draw(st.integers(0, 2)) for _ in rows])
    runs = [ByUser.of(Events(users[of_run == run], times[of_run == run], lambda: users)) for run in range(3)]
    buckets = activity.Buckets(_array(_BOUNDS))
    whole = activity.trend(buckets.of(times), None, activity.active(users, buckets.of(times)))
    in_blocks = [list(run.blocks(data.draw(st.integers(1, 5)))) for run in runs]
    for blocks in in_blocks:
        for at in range(len(blocks) - 1, -1, -1):  # some end amid a user's events, as parts of packs do
            cut = data.draw(st.integers(0, len(blocks[at].times)))
            blocks[at : at + 1] = [blocks[at].at(np.arange(cut)), blocks[at].at(np.arange(cut, len(blocks[at].times)))]
    assert _counted(activity.trend_of_runs(in_blocks, buckets)) == _counted(whole)


@given(rows=_rows(), grouped=st.sampled_from(["", "of users", "of events"]))
def test_activity_is_counted_as_sets_are(rows: list[Row], grouped: str) -> None:
    units, found = _units(rows, grouped), _active(rows, grouped)
    events = Counter(
        (_bucket(time), {"": 0, "of users": user % 2, "of events": group}[grouped]) for user, time, group in rows
    )
    users = Counter((bucket, group) for (_, group), buckets in units.items() for bucket in buckets)
    groups = {"": None, "of users": _array([row[0] % 2 for row in rows]), "of events": _array([row[2] for row in rows])}
    buckets = activity.Buckets(_array(_BOUNDS)).of(_array([row[1] for row in rows]))
    assert _counted(activity.trend(buckets, groups[grouped], found)) == {
        key: [count, users[key]] for key, count in events.items()
    }
    kinds: dict[tuple[int, int], list[int]] = {}
    for (_, group), own in units.items():
        for bucket in own:
            before = [other for other in own if other < bucket]
            kind = 0 if not before else 1 if bucket - 1 in before else 2
            counts = kinds.setdefault((bucket, group), [0, 0, 0, 0])
            counts[kind] += 1
            counts[3] += bucket + 1 not in own
    assert _counted(activity.lifecycle(found)) == kinds
    sizes = Counter((len(own), group) for (_, group), own in units.items())
    assert _counted(activity.stickiness(found)) == {key: [count] for key, count in sizes.items()}


def _naive_retention(
    starts: list[tuple[int, int, int, int]], returns: list[Row], follow: activity.Follow
) -> dict[tuple[int, int], list[int]]:
    """From starts as (user, time, bucket, group)."""
    found: dict[tuple[int, int], list[int]] = {}
    ends = [*(first - 1 for first in follow.firsts[1:]), follow.last]
    beyond = 10_000
    for user, time, bucket, group in starts:
        units = [
            (at - time) // follow.window if follow.window is not None else _bucket(at) - bucket
            for other, at, _ in returns
            if other == user
        ]
        periods: Counter[int] = Counter()
        for unit in units:
            brackets = zip(follow.firsts, ends, strict=True)
            inside = [at for at, (first, last) in enumerate(brackets, start=1) if first <= unit <= last]
            if inside:
                periods[inside[0]] += 1
            elif unit > follow.last:
                periods[beyond if follow.last > len(follow.firsts) else beyond + unit] += 1
        enough = {period for period, count in periods.items() if count >= follow.at_least}
        counts = found.setdefault((bucket, group), [0] * (len(ends) + 1))
        counts[0] += 1
        for period in range(1, len(ends) + 1):
            counts[period] += {
                "on": period in enough,
                "rolling": any(other >= period for other in enough),
                "streak": all(before in enough for before in range(1, period + 1)),
            }[follow.counting]
    return found


@settings(max_examples=400)
@given(
    starting=_rows(),
    returns=_rows(),
    ends=st.sampled_from([[1], [1, 2], [1, 2, 3, 4, 5], [2, 3], [1, 4]]),
    window=st.sampled_from([None, None, 1, 2, 3]),
    at_least=st.integers(1, 3),
    counting=st.sampled_from(["on", "rolling", "streak"]),
    recurring=st.booleans(),
)
def test_retention_is_that_of_every_user_by_themselves(
    starting: list[Row],
    returns: list[Row],
    ends: list[int],
    window: int | None,
    at_least: int,
    counting: str,
    recurring: bool,
) -> None:
    firsts = [1, *(end + 1 for end in ends[:-1])]
    follow = activity.Follow(firsts, ends[-1], window, at_least, counting)  # type: ignore[arg-type]
    users, times, groups = (_array([row[at] for row in starting]) for at in range(3))
    bounds = _array(_BOUNDS)
    begun = activity.cohorts(users, times, activity.Buckets(bounds).of(times), recurring=recurring)
    back_users, back_times, _ = (_array([row[at] for row in returns]) for at in range(3))
    found = activity.retention(
        begun, groups[begun.positions], back_users, back_times, activity.Buckets(bounds).of(back_times), follow
    )
    starts = []
    for _, own in groupby(starting, key=lambda row: (row[0], _bucket(row[1]) if recurring else 0)):
        user, time, group = next(own)
        starts.append((user, time, _bucket(time), group))
    assert _counted(found) == _naive_retention(starts, returns, follow)


def test_nothing_counts_for_nothing() -> None:
    nothing = _array([])
    empty = activity.active(nothing, nothing, nothing, of_events=True)
    for counts in (activity.trend(nothing, None, empty), activity.lifecycle(empty), activity.stickiness(empty)):
        assert counts.values.shape[0] == len(counts.buckets) == 0


@pytest.mark.parametrize("of_events", [False, True])
def test_a_bucket_that_a_user_leaves_and_enters_again_in_another_group_counts_once(of_events: bool) -> None:
    users, buckets, groups = _array([1, 1, 1]), _array([1, 1, 1]), _array([0, 1, 0])
    found = activity.active(users, buckets, groups if of_events else None, of_events=of_events)
    assert found.buckets.tolist() == [1] * (1 + of_events)
