"""Sessions over arrays: put together from spans, which are what a session's events with the same values come to.

A value that stays the same along a session, as most do, makes one span of it. Where it does not, the session's value is
that of the span with the first event, or with the first or last pageview. Only when two spans share that instant does
it take the order of events, which spans do not have: such users' events are read one by one, each a span.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from heap_extension.kernels.activity import Counts, numbered_cells
from heap_extension.kernels.events import Bool, Int64, differs

__all__ = ["EVENTS_PER_SPAN", "NEVER", "Page", "Sessions", "Spans", "counted", "portions", "sessions"]

EVENTS_PER_SPAN = 4
"""A span takes little more memory than an event, and most have more events than this."""

NEVER = 2**63 - 1
"""The instant of the first pageview where there is none; of the last, it is `-NEVER - 1`. PostgreSQL's infinity."""

Page = Literal["entry", "exit"] | None
"""Which event of a session a value is of: the first or last pageview, or the first event."""


class Spans(NamedTuple):
    """Events of one user, session, and values each.

    Attributes:
        users, sessions: int64[n].
        firsts, lasts: int64[n]: when the first and the last of them were, microseconds.
        events, pageviews: int64[n]: how many there are.
        first_views, last_views: int64[n]: as `firsts` and `lasts` of the pageviews among them.
    """

    users: Int64
    sessions: Int64
    firsts: Int64
    lasts: Int64
    events: Int64
    pageviews: Int64
    first_views: Int64
    last_views: Int64

    def at(self, positions: Int64) -> Spans:
        """The spans at these positions."""
        return Spans(*(column[positions] for column in self))


class Sessions(NamedTuple):
    """Sessions, in no order.

    Attributes:
        users: int64[m].
        firsts, lasts: int64[m]: when their first and last event were, microseconds.
        events, pageviews: int64[m].
        tied: bool[m]: whether a value could be that of several spans.
        sources: for each value int64[m]: the span that has it; -1 for none.
    """

    users: Int64
    firsts: Int64
    lasts: Int64
    events: Int64
    pageviews: Int64
    tied: Bool
    sources: list[Int64]

    def at(self, positions: Int64) -> Sessions:
        """The sessions at these positions."""
        return Sessions(
            self.users[positions],
            self.firsts[positions],
            self.lasts[positions],
            self.events[positions],
            self.pageviews[positions],
            self.tied[positions],
            [source[positions] for source in self.sources],
        )


def sessions(spans: Spans, pages: Sequence[Page], *, single: bool = False) -> Sessions:
    """The sessions that the spans are of.

    Args:
        pages: for each value, which event of the session it is of.
        single: the spans are of one event each, and in their order.
    """
    order = _by_session(spans.users, spans.sessions, stable=single)
    ordered = spans.at(order)
    begins = np.flatnonzero(differs(ordered.sessions) | differs(ordered.users))
    firsts = _reduced(np.minimum, ordered.firsts, begins)
    places = np.repeat(np.arange(len(begins), dtype=np.int64), np.diff(begins, append=len(order)))
    tied = np.zeros(len(begins), np.bool_)
    sources = []
    for page in pages:
        match page:
            case None:
                times, wanted = ordered.firsts, firsts
            case "entry":
                times, wanted = ordered.first_views, _reduced(np.minimum, ordered.first_views, begins)
            case "exit":
                times, wanted = ordered.last_views, _reduced(np.maximum, ordered.last_views, begins)
        fitting = np.flatnonzero(times == wanted[places])
        of = places[fitting]
        is_it = np.roll(differs(of), -1) if page == "exit" else differs(of)  # the last of each, or the first
        there = (wanted != NEVER) & (wanted != -NEVER - 1)
        sources.append(np.where(there, order[fitting[is_it]], -1))
        if not single:
            tied |= there & (np.bincount(of, minlength=len(begins)) > 1)
    return Sessions(
        ordered.users[begins],
        firsts,
        _reduced(np.maximum, ordered.lasts, begins),
        _reduced(np.add, ordered.events, begins),
        _reduced(np.add, ordered.pageviews, begins),
        tied,
        sources,
    )


def _by_session(users: Int64, sessions: Int64, *, stable: bool) -> Int64:
    """The positions in an order in which what is of a session stands together. Hardly ever do users share one's id."""
    order = np.argsort(sessions, kind="stable" if stable else None)
    ordered, of = sessions[order], users[order]
    if ((ordered[1:] == ordered[:-1]) & (of[1:] != of[:-1])).any():
        order = np.lexsort((users, sessions))
    return order


def _reduced(function: np.ufunc, values: Int64, begins: Int64) -> Int64:
    """What the function makes of each stretch of the values."""
    if len(begins) in (0, len(values)):
        return values
    reduced: Int64 = function.reduceat(values, begins)
    return reduced


def counted(found: Sessions, buckets: Int64, groups: Int64 | None) -> tuple[Counts, list[Int64]]:
    """Per bucket and group: sessions, users, events and bounces; and how long each session lasted.

    Args:
        buckets: int64[m], of the sessions.
        groups: int64[m], from 0.
    """
    cells, places = numbered_cells(buckets, groups)
    size = len(cells.buckets)
    per_cell = np.bincount(places, minlength=size)
    bounces = places[(found.pageviews == 1) | (found.events == 1)]
    columns = [
        per_cell,
        _users_per_cell(places, found.users, size),
        np.bincount(places, weights=found.events, minlength=size).astype(np.int64),
        np.bincount(bounces, minlength=size),
    ]
    order = np.argsort(
        places.astype(np.uint16) if size <= 2**16 else places, kind="stable"
    )  # which has 16 bits sorts fast
    lasting = np.split((found.lasts - found.firsts)[order], np.cumsum(per_cell)[:-1]) if size else []
    return Counts(cells.buckets, cells.groups, np.stack(columns, axis=1)), lasting


def _users_per_cell(places: Int64, users: Int64, size: int) -> Int64:
    """How many distinct users there are in each cell."""
    if size == 0:
        return np.zeros(0, np.int64)
    base, width = int(users.min()), int(users.max()) - int(users.min()) + 1
    if width * size >= NEVER:
        distinct, users = np.unique(users, return_inverse=True)
        base, width = 0, len(distinct)
    pairs = np.sort(places * width + (users - base))
    return np.bincount(pairs[differs(pairs)] // width, minlength=size)


def portions(items: Int64, sizes: Int64, size: int) -> Iterator[Int64]:
    """The distinct items in their order, in portions of about so much.

    Args:
        items: int64[n], such as users, several times each.
        sizes: int64[n]: what each time adds, such as events.
        size: of a portion, beyond its first item.
    """
    distinct, places = np.unique(items, return_inverse=True)
    before = np.cumsum(np.bincount(places, weights=sizes, minlength=len(distinct))) // size
    if len(distinct):
        yield from np.split(distinct, np.flatnonzero(np.diff(before)) + 1)
