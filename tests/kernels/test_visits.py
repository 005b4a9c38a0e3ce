"""Paths over arrays, without a database: they are those of the naive evaluator that the language is tested with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_extension.kernels import events as kernel_events
from heap_extension.kernels import visits
from tests.oracle import Event
from tests.semantics.test_paths_oracle import naive_paths

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_NODES = "abc"
_MICROSECOND = timedelta(microseconds=1)


def _node(event: Event) -> str | None:
    """The first of the nodes that the event is."""
    return next((node for node in _NODES if node in event.type), None)


def _arrays(events: list[Event], node: str, asked: list[str]) -> kernel_events.Events:
    found = sorted((e.user_id, (e.time - _EPOCH) // _MICROSECOND, e.event_id) for e in events if node in e.type)
    users, times, ids = (np.array([row[at] for row in found], np.int64) for at in range(3))
    return kernel_events.Events(users, times, lambda: (asked.append(node), ids)[1])


_events = st.lists(
    st.builds(
        lambda user, moment, event_id, kind: Event(user, _EPOCH + moment * _MICROSECOND, event_id, kind),
        st.sampled_from([-(2**63), 1, 2**63 - 1]),
        st.integers(-3, 9),
        st.sampled_from([-(2**63), 0, 1, 2**63 - 1]),
        st.sampled_from(["a", "b", "c", "ab", "bc", "none"]),
    ),
    max_size=16,
    unique_by=lambda event: (event.user_id, event.time, event.event_id),
)


@settings(max_examples=400)
@given(
    events=_events,
    gap=st.integers(1, 4),
    start=st.none() | st.integers(0, 2),
    end=st.none() | st.integers(0, 2),
    steps=st.integers(1, 4),
)
def test_moves_are_those_of_the_oracle(
    events: list[Event], gap: int, start: int | None, end: int | None, steps: int
) -> None:
    visited = visits.visits([_arrays(events, node, []) for node in _NODES])
    found = visits.transitions(visited, visits.Rule(gap, start, end, steps))
    names = [*_NODES, None]  # END is the last
    rows = zip(*(column.tolist() for column in found[:5]), found.durations, strict=True)
    shown = {
        (step, names[source], names[target]): (
            users, count, np.median(times) if len(times) else None
        )
        for step, source, target, users, count, times in rows
    }  # fmt: skip
    ends = [None if place is None else _NODES[place] for place in (start, end)]
    expected = naive_paths(events, _node, gap * _MICROSECOND, *ends, steps, None)
    assert shown.keys() == expected.keys()
    for key, (users, count, median) in expected.items():
        assert shown[key][:2] == (users, count)
        # The naive median is rounded to microseconds from seconds as floats.
        assert (median is None) == (shown[key][2] is None)
        assert median is None or abs(median / _MICROSECOND - shown[key][2]) <= 1


def test_event_ids_are_read_only_where_events_share_an_instant() -> None:
    first = [Event(1, _EPOCH, 1, "a"), Event(1, _EPOCH + _MICROSECOND, 2, "b"), Event(2, _EPOCH, 3, "b")]
    for more, read in (([], []), ([Event(1, _EPOCH, 9, "b")], ["a", "b"])):
        asked: list[str] = []
        visits.visits([_arrays([*first, *more], node, asked) for node in "ab"])
        assert asked == read
