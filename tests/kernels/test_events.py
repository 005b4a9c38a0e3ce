"""Runs of events are merged into the order that Python's own sorting gives them, each event once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from heap_extension.kernels import events

Key = tuple[int, int, int]

_keys = st.tuples(
    st.sampled_from([-(2**63), -1, 0, 2**53 + 1, 2**63 - 1]),
    st.sampled_from([-(2**62), -1, 0, 1, 2**62]),
    st.sampled_from([-(2**63), 0, 1, 2**63 - 1]),
)
_runs = st.lists(st.sets(_keys, max_size=8), min_size=1, max_size=5)


def _events(keys: set[Key], run: int) -> events.Events:
    """The events with these keys in order; their one value says what they are and the run they are of."""
    found = sorted(keys)
    users, times, ids = (np.array([key[at] for key in found], np.int64) for at in range(3))
    values = [[f"{run}:{key}".encode() for key in found]]
    return events.Events(users, times, lambda: ids, values)


def _keys_of(found: events.Events) -> list[Key]:
    keys = list(zip(found.users.tolist(), found.times.tolist(), found.ids.tolist(), strict=True))
    (values,) = found.values
    assert [value.split(b":", 1)[1] for value in values] == [str(key).encode() for key in keys]
    return keys


@given(_runs)
def test_runs_are_united(runs: list[set[Key]]) -> None:
    found = events.united([_events(keys, run) for run, keys in enumerate(runs)])
    assert _keys_of(found) == sorted(set().union(*runs))


@given(_runs, st.data())
def test_partitions_are_joined(runs: list[set[Key]], data: st.DataObject) -> None:
    """Each has instants of its own; in which order they come does not matter."""
    every = sorted(set().union(*runs))
    cuts = sorted(data.draw(st.lists(st.sampled_from([-(2**62), -1, 0, 1, 2**62]), max_size=4)))
    parts = [{key for key in every if sum(key[1] >= cut for cut in cuts) == part} for part in range(len(cuts) + 1)]
    shuffled = data.draw(st.permutations(parts))
    found = events.joined([_events(keys, run) for run, keys in enumerate(shuffled)])
    assert _keys_of(found) == every


@given(st.sets(_keys, max_size=12), st.sets(_keys, max_size=4), st.data())
def test_few_are_replaced(keys: set[Key], few: set[Key], data: st.DataObject) -> None:
    """Rows come back under the keys of those that went, and share instants with others."""
    ordered = sorted(keys)
    pages = data.draw(st.lists(st.integers(0, 5), min_size=len(keys), max_size=len(keys)))
    changed = sorted(data.draw(st.sets(st.integers(0, 6))))
    ranges = np.array([(page, page + 1) for page in changed], np.int64).reshape(-1, 2)
    gone = {key for key, page in zip(ordered, pages, strict=True) if page in changed}
    base, rows = _plain(keys), _plain(few - (keys - gone))
    base.pages = events.OnPages.of(np.array(pages, np.int64))
    positions = base.pages.inside(ranges)
    assert positions.tolist() == [at for at, key in enumerate(ordered) if key in gone]
    found = events.replaced(base, positions, rows)
    assert _plain_keys(found) == sorted((keys - gone) | few)


@given(st.sets(_keys, max_size=12), st.sets(_keys, max_size=12), st.data())
def test_pages_follow_their_events(keys: set[Key], others: set[Key], data: st.DataObject) -> None:
    pages = {key: data.draw(st.integers(0, 5)) for key in keys}
    base = _plain(keys)
    base.pages = events.OnPages.of(np.array([pages[key] for key in sorted(keys)], np.int64))
    whole = events.united([base, _plain(others - keys), _plain(set())])
    users = np.array(sorted(data.draw(st.sets(st.sampled_from([-1, 0, 2**63 - 1])))), np.int64)
    for found in (whole, whole.of(users), whole.of_few(users)):
        assert found.pages is not None
        there = dict(zip(found.pages.positions.tolist(), found.pages.pages.tolist(), strict=True))
        assert there == {at: pages[key] for at, key in enumerate(_plain_keys(found)) if key in keys}


def _plain(keys: set[Key]) -> events.Events:
    found = _events(keys, 0)
    found.values = ()
    return found


def _plain_keys(found: events.Events) -> list[Key]:
    return list(zip(found.users.tolist(), found.times.tolist(), found.ids.tolist(), strict=True))


@given(st.sets(_keys, max_size=12), st.sets(st.sampled_from([-(2**63), -1, 0, 7, 2**53 + 1, 2**63 - 1])))
def test_events_of_some_users(keys: set[Key], users: set[int]) -> None:
    asked = np.array(sorted(users), np.int64)
    expected = sorted(key for key in keys if key[0] in users)
    assert _keys_of(_events(keys, 0).of(asked)) == _keys_of(_events(keys, 0).of_few(asked)) == expected


def test_ids_are_read_only_where_runs_share_an_instant() -> None:
    asked: list[str] = []

    def run(name: str, times: list[int]) -> events.Events:
        array = np.array(times, np.int64)
        return events.Events(np.ones(len(times), np.int64), array, lambda: (asked.append(name), array)[1])

    events.united([run("a", [1, 3]), run("b", [2])])
    events.joined([run("a", [1, 2]), run("b", [2, 3])])
    assert not asked
    events.united([run("a", [1, 2]), run("b", [2, 3])])
    assert sorted(asked) == ["a", "b"]


def test_nothing_has_as_many_values_as_asked_for() -> None:
    none = events.nothing(2)
    assert len(none.users) == len(none.times) == len(none.ids) == 0
    assert none.values == [[], []]


@given(st.sets(_keys, max_size=20), st.data())
def test_times_by_user_follow_their_users(keys: set[Key], data: st.DataObject) -> None:
    found = sorted(key[:2] for key in keys)
    by_user = events.ByUser.of(_events(keys, 0))
    assert _rows_of(by_user) == found
    left = [data.draw(st.booleans()) for _ in found]
    kept = [row for row, is_left in zip(found, left, strict=True) if not is_left]
    positions = np.array(left, np.bool_)
    assert _rows_of(by_user.at(np.flatnonzero(~positions))) == kept
    assert _rows_of(by_user.without(np.flatnonzero(positions))) == kept
    first, last = sorted(data.draw(st.tuples(*[st.sampled_from([-(2**63), -2, -1, 0, 7, 2**63 - 1])] * 2)))
    assert _rows_of(by_user.of_range(first, last)) == [row for row in found if first <= row[0] <= last]


def _rows_of(found: events.ByUser) -> list[tuple[int, int]]:
    assert (np.diff(found.begins, append=len(found.times)) > 0).all()
    users = np.repeat(found.users, np.diff(found.begins, append=len(found.times)))
    return list(zip(users.tolist(), found.times.tolist(), strict=True))
