"""Events that a session keeps: only while their tables are the same, and never more of them than it may."""

from __future__ import annotations

import numpy as np
import pytest

from heap_extension.kernels.events import Events
from heap_extension.kernels.kept_events import KeptEvents, Key

_STAMPS = (b"January", b"February")


def _key(name: str) -> Key:
    return Key(name, ("app.events_2026_01", "app.events_2026_02"), 0, 10)


def _events(count: int) -> Events:
    numbers = np.arange(count, dtype=np.int64)
    return Events(numbers.copy(), numbers.copy(), lambda: numbers + 7)


def _unread() -> Events:
    raise AssertionError("what is kept is not read")


def test_events_are_found_while_their_tables_are_the_same() -> None:
    kept = KeptEvents()
    assert kept.find(_key("a"), _STAMPS, _unread) is None
    kept.keep(_key("a"), _STAMPS, _events(3))
    found = kept.find(_key("a"), _STAMPS, _unread)
    assert found is not None
    assert (found.users.tolist(), found.times.tolist()) == ([0, 1, 2], [0, 1, 2])
    assert kept.find(_key("a")._replace(start=1), _STAMPS, _unread) is None
    assert kept.find(_key("b"), _STAMPS, _unread) is None
    assert kept.find(_key("a"), (b"January", b"later"), _unread) is None
    assert kept.find(_key("a"), _STAMPS, _unread) is None, "what changed is gone at once"
    assert kept.size == 0


def test_ids_are_read_once_and_counted() -> None:
    kept = KeptEvents()
    kept.keep(_key("a"), _STAMPS, _events(3))
    before = kept.size
    first = kept.find(_key("a"), _STAMPS, lambda: _events(3))
    assert first is not None
    assert first.ids.tolist() == [7, 8, 9]
    assert kept.size == before + 3 * 8
    again = kept.find(_key("a"), _STAMPS, _unread)
    assert again is not None
    assert again.ids.tolist() == [7, 8, 9]


def test_what_was_asked_for_longest_ago_goes_first() -> None:
    kept = KeptEvents(max_bytes=50_000)
    for name in "abc":
        kept.keep(_key(name), _STAMPS, _events(900))  # 14,400 bytes and a little more
    assert kept.find(_key("a"), _STAMPS, _unread) is not None
    kept.keep(_key("d"), _STAMPS, _events(900))
    assert kept.size <= 50_000
    assert [name for name in "abcd" if kept.find(_key(name), _STAMPS, _unread) is not None] == ["a", "c", "d"]
    kept.keep(_key("e"), _STAMPS, _events(1_600))
    assert kept.find(_key("e"), _STAMPS, _unread) is None, "one that is too large is not kept"
    kept.keep(_key("a"), _STAMPS, _events(10))
    assert kept.size < 2 * 15_000 + 1_000
    kept.limit(16_000)
    assert [name for name in "abcd" if kept.find(_key(name), _STAMPS, _unread) is not None] == ["a", "d"]
    kept.limit(-1)
    kept.keep(_key("a"), _STAMPS, _events(10))
    assert kept.size == 0


def test_nobody_changes_what_is_kept() -> None:
    kept = KeptEvents()
    events = _events(3)
    kept.keep(_key("a"), _STAMPS, events)
    with pytest.raises(ValueError, match="read-only"):
        events.users[0] = 5


def test_lookups_are_counted_as_long_as_nothing_changed() -> None:
    kept = KeptEvents(max_bytes=50_000)
    assert [kept.looked_up(_key("a"), _STAMPS, 5), kept.looked_up(_key("a"), _STAMPS, 2)] == [5, 7]
    assert kept.looked_up(_key("b"), _STAMPS, 1) == 1
    assert kept.looked_up(_key("a"), (b"January", b"later"), 3) == 3
    kept.keep(_key("b"), _STAMPS, _events(3))
    assert kept.looked_up(_key("b"), _STAMPS, 1) == 1, "what was kept is counted anew once it is gone"
    for number in range(1_000):
        kept.looked_up(_key(f"other {number}"), _STAMPS, 1)
    assert kept.looked_up(_key("a"), (b"January", b"later"), 3) == 3, "the oldest are forgotten"
    assert kept.holds(1_000)
    assert not kept.holds(2_000)
