"""Attribution over arrays: touches and conversions in, the touches that each conversion is credited to out.

A touch is a run of a user's events, so the touches of a conversion are those from one number to another, found by two
searches. Runs are made of spans, which are what a user's events of one session with the same values come to: spans that
follow each other in time are as good as their events. Where they overlap, or where it takes the order of events of one
instant, or those between a span's ends, a user is unclear, and to be read event by event.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from heap_extension.kernels.events import Bool, Int64, differs

__all__ = ["Conversions", "Found", "Spans", "Touches", "touches_found", "touches_of_events", "touches_of_spans"]


class Spans(NamedTuple):
    """Events of one user, session and values each, in any order.

    Attributes:
        users: int64[n].
        sessions: int64[n]; any number for events outside any session.
        values: int64[n]: the number of their values.
        firsts, lasts: int64[n]: when the first and the last of them were, microseconds.
        outside: int64[n]: how many of them are outside any session; none or all.
    """

    users: Int64
    sessions: Int64
    values: Int64
    firsts: Int64
    lasts: Int64
    outside: Int64


class Touches(NamedTuple):
    """Pieces of touches in the order (user, time); of events, each event is one.

    Attributes:
        users: int64[n], rising.
        firsts, lasts: int64[n]: from when to when, microseconds; rising along a user that is not unclear.
        numbers: int64[n], rising: of which touch it is.
        values: int64[n].
        sessions: int64[n].
        outside: bool[n]: outside any session.
        unclear: int64[u]: users whose touches cannot be told.
        ids: int64[n]: where the pieces are events, theirs.
    """

    users: Int64
    firsts: Int64
    lasts: Int64
    numbers: Int64
    values: Int64
    sessions: Int64
    outside: Bool
    unclear: Int64
    ids: Int64 | None = None


class Conversions(NamedTuple):
    """Conversions.

    Attributes:
        users: int64[m].
        times: int64[m], microseconds.
        sessions: int64[m]; any number outside any session.
        values: int64[m]: the number of their values; -1 for one that is no touch, or is outside any session.
        ids: int64[m]: needed where touches are of events.
    """

    users: Int64
    times: Int64
    sessions: Int64
    values: Int64
    ids: Int64 | None = None


class Found(NamedTuple):
    """The touches of each conversion.

    Attributes:
        lows, highs: int64[m]: the pieces that the first and the last of them end with and begin with.
        counts: int64[m]: how many there are.
        unclear: int64[u]: users of whom it cannot be told.
    """

    lows: Int64
    highs: Int64
    counts: Int64
    unclear: Int64


def touches_of_spans(spans: Spans) -> Touches:
    """The touches that the spans come to, one piece each."""
    order = np.lexsort((spans.firsts, spans.users))
    users, sessions, values, firsts, lasts, outside = (column[order] for column in spans)
    begins = differs(users) | differs(sessions) | differs(values) | (outside > 0)
    begins[1:] |= outside[:-1] > 0
    at = np.flatnonzero(begins)
    if 0 < len(at) < len(users):
        lasts, outside = np.maximum.reduceat(lasts, at), np.add.reduceat(outside, at)
    users, sessions, values, firsts = users[at], sessions[at], values[at], firsts[at]
    overlaps = (users[1:] == users[:-1]) & (lasts[:-1] >= firsts[1:])
    unclear = np.unique(np.concatenate([users[1:][overlaps], users[outside > 1]]))
    return Touches(users, firsts, lasts, np.arange(len(at), dtype=np.int64), values, sessions, outside > 0, unclear)


def touches_of_events(users: Int64, times: Int64, ids: Int64, sessions: Int64, values: Int64, outside: Bool) -> Touches:
    """The touches of events, which are in their order."""
    begins = differs(users) | differs(sessions) | differs(values) | outside
    begins[1:] |= outside[:-1]
    nobody = np.zeros(0, np.int64)
    return Touches(users, times, times, np.cumsum(begins) - 1, values, sessions, outside, nobody, ids)


def touches_found(touches: Touches, conversions: Conversions, window: int) -> Found:
    """The touches with an event at most `window` microseconds before each conversion, and not behind it."""
    begin, end = (np.searchsorted(touches.users, conversions.users, side=side) for side in ("left", "right"))
    since = conversions.times - window
    lows = _searched(touches.lasts, begin, end, since, right=False)
    highs = _searched(touches.firsts, begin, end, conversions.times, right=True)
    unclear: list[Int64] = [touches.unclear]
    if touches.ids is not None:
        assert conversions.ids is not None
        instant = _searched(touches.firsts, begin, end, conversions.times, right=False)
        highs = _searched(touches.ids, instant, highs, conversions.ids, right=True)
    highs = highs - 1
    some = np.flatnonzero(highs >= lows)
    if touches.ids is None:
        high, low, times = highs[some], lows[some], conversions.times[some]
        is_in = (touches.sessions[high] == conversions.sessions[some]) & (
            touches.values[high] == conversions.values[some]
        )
        is_in &= ~touches.outside[high]
        spread = (low == high) & (touches.firsts[low] < since[some]) & (touches.lasts[low] >= times)
        unclear.append(conversions.users[some[~is_in & (spread | (touches.firsts[high] == times))]])
    counts = np.zeros(len(lows), np.int64)
    counts[some] = touches.numbers[highs[some]] - touches.numbers[lows[some]] + 1
    return Found(lows, highs, counts, np.unique(np.concatenate(unclear)))


def _searched(values: Int64, begin: Int64, end: Int64, wanted: Int64, *, right: bool) -> Int64:
    """As numpy.searchsorted, each of the wanted in a stretch of the values of its own, which rises."""
    low, high = begin.copy(), end.copy()
    going = np.flatnonzero(low < high)
    while len(going):
        middle = (low[going] + high[going]) // 2
        found, asked = values[middle], wanted[going]
        beyond = found <= asked if right else found < asked
        low[going[beyond]] = middle[beyond] + 1
        high[going[~beyond]] = middle[~beyond]
        going = going[low[going] < high[going]]
    return low
