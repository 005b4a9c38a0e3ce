"""Attribution over arrays, without a database: its touches are those of the naive evaluator that the language is tested
with, whether they are made of spans or of events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_extension.kernels.touches import (
    Conversions,
    Found,
    Spans,
    Touches,
    touches_found,
    touches_of_events,
    touches_of_spans,
)
from tests.oracle import Event
from tests.semantics.test_attribution_oracle import naive_touches

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_VALUES = ["/a", "/b", "/c"]

_events = st.lists(
    st.builds(
        lambda user, moment, event_id, session, value: Event(
            user, _EPOCH + moment * _MICROSECOND, event_id, "pageview", session, {"path": value}
        ),
        st.sampled_from([-(2**63), 1, 2**63 - 1]),
        st.integers(-2, 9),
        st.sampled_from([-(2**63), 0, 1, 2**63 - 1]),
        st.sampled_from([None, 1, 1, 2]),
        st.sampled_from([None, *_VALUES]),
    ),
    max_size=14,
    unique_by=lambda event: (event.user_id, event.time, event.event_id),
)


def _moment(event: Event) -> int:
    return (event.time - _EPOCH) // _MICROSECOND


def _order(event: Event) -> tuple[int, datetime, int]:
    return event.user_id, event.time, event.event_id


def _number(event: Event) -> int:
    return _VALUES.index(str(event.get("path"))) if event.get("path") is not None else -1


def _array(numbers: list[int]) -> np.typing.NDArray[np.int64]:
    return np.array(numbers, np.int64)


def _of_spans(events: list[Event], border: int) -> Touches:
    """As a shard gives them, of two partitions."""
    spans: dict[tuple[bool, int, int | None, int], list[Event]] = {}
    for event in events:
        spans.setdefault((_moment(event) < border, event.user_id, event.session_id, _number(event)), []).append(event)
    rows = [
        (user, session or 0, value, min(map(_moment, of)), max(map(_moment, of)), len(of) * (session is None))
        for (_, user, session, value), of in spans.items()
    ]
    return touches_of_spans(Spans(*(_array([row[at] for row in rows]) for at in range(6))))


def _of_events(events: list[Event]) -> Touches:
    in_order = sorted(events, key=_order)
    users, times, ids, sessions, values = (
        _array([number(event) for event in in_order])
        for number in (
            lambda event: event.user_id, _moment, lambda event: event.event_id, lambda event: event.session_id or 0,
            _number,
        )
    )  # fmt: skip
    outside = np.array([event.session_id is None for event in in_order], np.bool_)
    return touches_of_events(users, times, ids, sessions, values, outside)


def _ends(touches: Touches, found: Found, at: int) -> tuple[int, list[int]]:
    """How many touches a conversion has, and the values of the first and the last."""
    count = int(found.counts[at])
    return count, [int(touches.values[place[at]]) for place in (found.lows, found.highs)] if count else []


@settings(max_examples=500)
@given(events=_events, window=st.integers(1, 6), border=st.integers(-2, 9), are_touches=st.booleans(), data=st.data())
def test_touches_are_those_of_the_oracle(
    events: list[Event], window: int, border: int, are_touches: bool, data: st.DataObject
) -> None:
    """Of spans for all users who are not told to be unclear; of events for everybody."""
    converting = [event for event in sorted(events, key=_order) if data.draw(st.booleans())]
    touching = [event for event in events if event.get("path") is not None and (are_touches or event not in converting)]
    values = _array([
        _number(event) if are_touches and event.session_id is not None else -1 for event in converting
    ])  # fmt: skip
    users, times, sessions, ids = (
        _array(numbers)
        for numbers in (
            [event.user_id for event in converting], [_moment(event) for event in converting],
            [event.session_id or 0 for event in converting], [event.event_id for event in converting],
        )
    )  # fmt: skip
    spans, single = _of_spans(touching, border), _of_events(touching)
    by_spans = touches_found(spans, Conversions(users, times, sessions, values), window)
    by_events = touches_found(single, Conversions(users, times, sessions, values, ids), window)
    assert len(by_events.unclear) == 0
    for at, conversion in enumerate(converting):
        touched = [
            _VALUES.index(str(of)) for (of,) in naive_touches(touching, conversion, window * _MICROSECOND, ["path"])
        ]
        expected = len(touched), [touched[0], touched[-1]] if touched else []
        assert _ends(single, by_events, at) == expected
        if conversion.user_id not in by_spans.unclear:
            assert _ends(spans, by_spans, at) == expected


def test_sessions_one_after_the_other_are_clear() -> None:
    """Also with the conversion as the first event of its session, where the order of its instant would matter."""
    events = [
        Event(1, _EPOCH + moment * _MICROSECOND, moment, "pageview", session, {"path": path})
        for moment, session, path in ((0, 1, "/a"), (1, 1, "/a"), (3, 2, "/b"), (4, 2, "/a"))
    ]
    last = _array([1]), _array([3]), _array([2]), _array([1])
    touches = _of_spans(events, 2)
    found = touches_found(touches, Conversions(*last), 100)
    assert (found.unclear.tolist(), *_ends(touches, found, 0)) == ([], 2, [0, 1])
    found = touches_found(touches, Conversions(*last), 2)
    assert (found.unclear.tolist(), *_ends(touches, found, 0)) == ([], 2, [0, 1])
    found = touches_found(touches, Conversions(*last), 1)
    assert (found.unclear.tolist(), *_ends(touches, found, 0)) == ([], 1, [1, 1])


def test_what_the_order_in_an_instant_decides_is_unclear() -> None:
    for moments in ((0, 0), (0, 2)):  # two sessions that begin at once; one around the other
        events = [
            Event(1, _EPOCH + moment * _MICROSECOND, number, "pageview", session, {"path": "/a"})
            for number, (moment, session) in enumerate(((moments[0], 1), (1, 2), (moments[1], 1), (0, 2)))
        ]
        found = touches_found(
            _of_spans(events, 9), Conversions(*(_array([1, 3][at : at + 1] or [3]) for at in range(4))), 9
        )
        assert found.unclear.tolist() == [1]
