"""Sessions over arrays, without a database: they are those of the naive evaluator, of spans as of single events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_extension.kernels.spans import NEVER, Page, Sessions, Spans, counted, portions, sessions
from tests.oracle import Event
from tests.semantics.test_sessions_oracle import naive_sessions

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_events = st.lists(
    st.builds(
        lambda user, moment, event_id, kind, session, value: Event(
            user, _EPOCH + moment * _MICROSECOND, event_id, kind, session, {"path": value}
        ),
        st.sampled_from([-(2**63), 1, 2**63 - 1]),
        st.integers(-2, 9),
        st.sampled_from([-(2**63), 0, 1, 2**63 - 1]),
        st.sampled_from(["pageview", "click"]),
        st.sampled_from([-(2**63), 1, 2]),
        st.sampled_from([None, "/a", "/b"]),
    ),
    max_size=14,
    unique_by=lambda event: (event.user_id, event.time, event.event_id),
)
_PAGES: list[Page] = [None, "entry", "exit"]


def _moment(event: Event) -> int:
    return (event.time - _EPOCH) // _MICROSECOND


def _spans(parts: list[list[Event]]) -> Spans:
    """The spans of these events, each of them not empty."""
    rows = []
    for part in parts:
        views = [_moment(event) for event in part if event.type == "pageview"]
        times = [_moment(event) for event in part]
        rows.append((
            part[0].user_id, part[0].session_id, min(times), max(times), len(part), len(views),
            min(views, default=NEVER), max(views, default=-NEVER - 1),
        ))  # fmt: skip
    return Spans(*(np.array([row[at] for row in rows], np.int64) for at in range(8)))


def _described(found: Sessions, at: int, values: list[str | None]) -> tuple[object, ...]:
    shown = [None if source[at] < 0 else values[source[at]] for source in found.sources]
    numbers = (found.users, found.firsts, found.lasts, found.events, found.pageviews)
    return *(int(column[at]) for column in numbers), *shown


def _expected(session: list[Event]) -> tuple[object, ...]:
    views = [event for event in session if event.type == "pageview"]
    paths = [session[0].get("path"), *(views[place].get("path") if views else None for place in (0, -1))]
    first, last = _moment(session[0]), _moment(session[-1])
    return session[0].user_id, first, last, len(session), len(views), *paths


@settings(max_examples=500)
@given(events=_events, border=st.integers(-2, 9))
def test_sessions_are_those_of_the_oracle(events: list[Event], border: int) -> None:
    """Of single events whatever they are; of spans but for the values of sessions that are told to be tied."""
    in_order = sorted(events, key=lambda event: event.order)
    expected = [_expected(session) for session in naive_sessions(events)]
    single = sessions(_spans([[event] for event in in_order]), _PAGES, single=True)
    paths = [event.get("path") for event in in_order]
    assert sorted(map(repr, expected)) == sorted(repr(_described(single, at, paths)) for at in range(len(single.users)))
    assert not single.tied.any()
    parts: dict[object, list[Event]] = {}
    for event in events:
        key = _moment(event) < border, event.user_id, event.session_id, event.get("path")
        parts.setdefault(key, []).append(event)
    found = sessions(_spans(list(parts.values())), _PAGES)
    paths = [part[0].get("path") for part in parts.values()]
    assert len(found.users) == len(expected)
    for at in range(len(found.users)):
        described = _described(found, at, paths)
        same = [one for one in expected if one[:5] == described[:5]]
        assert same
        assert found.tied[at] or described in same


def test_only_values_that_share_an_instant_are_tied() -> None:
    def of(*moments: int) -> Sessions:
        events = [
            Event(1, _EPOCH + moment * _MICROSECOND, number, "click", 1, {"path": path})
            for number, (moment, path) in enumerate(zip(moments, "abab", strict=False))
        ]
        return sessions(_spans([[event] for event in events]), [None])

    assert of(1, 2, 2).tied.tolist() == [False]
    assert of(1, 1, 2).tied.tolist() == [True]


def test_users_of_a_cell_are_counted_once() -> None:
    for users in ([1, 1, 2, 2], [-(2**63), -(2**63), 2**63 - 1, 2**63 - 1]):
        ones = np.ones(4, np.int64)
        found = Sessions(np.array(users), ones, 3 * ones, np.array([1, 2, 3, 4]), ones, ones > 1, [])
        counts, lasting = counted(found, np.array([1, 1, 1, 2]), None)
        assert counts.buckets.tolist() == [1, 2]
        assert counts.values.tolist() == [[3, 2, 6, 3], [1, 1, 4, 1]]
        assert [durations.tolist() for durations in lasting] == [[2, 2, 2], [2]]


@given(sizes=st.lists(st.integers(0, 9), max_size=12), size=st.integers(1, 20))
def test_portions_are_all_there_is_in_order(sizes: list[int], size: int) -> None:
    items = np.arange(len(sizes)) // 2
    found = list(portions(items, np.array(sizes, np.int64), size))
    assert [item for portion in found for item in portion.tolist()] == sorted(set(items.tolist()))
    of = {item: sum(sizes[at] for at in range(len(sizes)) if items[at] == item) for item in items.tolist()}
    for portion in found:
        assert sum(of[item] for item in portion.tolist()[1:]) <= size
