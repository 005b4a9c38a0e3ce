"""Attribution in one shard: reads conversions and touches, and adds up what is credited to the values of touches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from heap_extension.kernels.events import Bool, Events, Int64, differs
from heap_extension.kernels.population import Coded, Population, PopulationAsked, coded, combined
from heap_extension.kernels.shard import NULL, Database, Periods, Selection, Shard, Users
from heap_extension.kernels.spans import EVENTS_PER_SPAN, portions
from heap_extension.kernels.totals import EXACT, Totals, added_up
from heap_extension.kernels.touches import (
    Conversions,
    Found,
    Spans,
    Touches,
    touches_found,
    touches_of_events,
    touches_of_spans,
)

__all__ = ["credited_touches"]

_EVENTS_PER_PERIOD = 30
"""Reading all events takes as long as looking up periods before conversions where there are so many events for each."""

_SESSION = "session_id::text"
_NOTHING = -1
"""Stands for the values of no touch."""

Model = Literal["first", "last", "linear", "position"]
_Numbers = npt.NDArray[Any]
"""int64[n], or Decimals where these are too large."""


class _Specification(PopulationAsked):
    """What `heap_compiler.analyses.attribution` asks for. Durations are microseconds.

    Attributes:
        schema: the app's.
        conversions: what is credited; where their values are shared out, these are the only value that is read.
        touches: events with at least one value that is not null.
        are_touches: every conversion with such a value is a touch, too.
        model: which touches are credited.
        window: how far a touch can lie before a conversion, inclusive.
        slice: how many events are in memory at once, about.
    """

    schema: str
    conversions: Selection
    touches: Selection
    are_touches: bool
    model: Model
    window: int
    slice: int


class _Read(NamedTuple):
    """The conversions of a slice of users, with what is known of them.

    Attributes:
        sessions: int64[m]; 0 outside any.
        outside: bool[m].
        values: of those that may be touches, the values they would have; else nothing.
        amounts: what each is worth; None where that is not asked for.
    """

    events: Events
    sessions: Int64
    outside: Bool
    values: Sequence[list[bytes]]
    amounts: Sequence[bytes] | None

    def of(self, positions: Int64) -> _Read:
        """The conversions at these positions."""
        at = positions.tolist()
        values = [[texts[place] for place in at] for texts in self.values]
        amounts = None if self.amounts is None else [self.amounts[place] for place in at]
        return _Read(self.events.at(positions), self.sessions[positions], self.outside[positions], values, amounts)


def credited_touches(database: Database, relation: int, specification: str) -> list[Totals]:
    """The totals of a shard, by the values of the touches that the model credits. A bucket is how many touches share a
    conversion; negative for those that are neither the first nor the last of them. What counts is how often they are
    credited; the value is the sum of those conversions' amounts. Bucket 0 counts the users.

    Args:
        database: PL/Python's `plpy`.
        relation: oid of the table of the row of `<app>.shards` that stands for the shard.
        specification: JSON of `_Specification`.
    """
    asked: _Specification = json.loads(specification)
    shard = Shard(database, relation, asked["schema"])
    return added_up(_totals(shard, Population(shard, asked), asked))


def _totals(shard: Shard, population: Population, asked: _Specification) -> Iterator[Totals]:
    measured = shard.measured(asked["touches"])
    for users in shard.slices_of([asked["conversions"], measured], EVENTS_PER_SPAN * asked["slice"]):
        conversions = _conversions(shard, population, asked, users)
        converted = np.unique(conversions.events.users)
        if len(converted) == 0:
            continue
        periods = _periods(conversions.events, asked["window"])
        size = shard.size_of(measured if asked["are_touches"] else asked["touches"])
        few = len(periods.users) * _EVENTS_PER_PERIOD < size
        spans, values, events = _spans(shard, asked, converted, periods if few else users, conversions)
        touches = touches_of_spans(spans)
        own = values.codes[len(spans.users) :] if asked["are_touches"] else np.full(len(conversions.outside), _NOTHING)
        own = np.where(conversions.outside, _NOTHING, own)
        of, times = conversions.events.users, conversions.events.times
        found = touches_found(touches, Conversions(of, times, conversions.sessions, own), asked["window"])
        clear = ~np.isin(of, found.unclear)
        yield from _credited(touches, found, conversions, np.flatnonzero(clear), values.labels, asked)
        of_unclear = np.isin(spans.users, found.unclear)
        for portion in portions(spans.users[of_unclear], events[of_unclear], asked["slice"]):
            some = conversions.of(np.flatnonzero(np.isin(of, portion)))
            yield from _from_events(shard, asked, some, portion)


def _from_events(shard: Shard, asked: _Specification, conversions: _Read, users: Int64) -> Iterator[Totals]:
    """The totals of users whose events are read one by one."""
    selection = asked["touches"]
    events = shard.events({**selection, "values": [_SESSION, *selection["values"]]}, users)
    sessions, outside = _numbers(events.values[0])
    values = combined([coded(texts) for texts in events.values[1:]])
    touches = touches_of_events(events.users, events.times, events.ids, sessions, values.codes, outside)
    of = conversions.events
    nothing = np.full(len(of.users), _NOTHING)
    found = touches_found(
        touches, Conversions(of.users, of.times, conversions.sessions, nothing, of.ids), asked["window"]
    )
    yield from _credited(touches, found, conversions, np.arange(len(of.users)), values.labels, asked)


def _conversions(shard: Shard, population: Population, asked: _Specification, users: Users | None) -> _Read:
    selection = asked["conversions"]
    values = list(selection["values"])
    if asked["are_touches"]:
        values += [_SESSION, *asked["touches"]["values"]]
    events = population.members(shard.events({**selection, "values": values}, users))
    amounts, more = (events.values[0], events.values[1:]) if selection["values"] else (None, events.values)
    sessions, outside = _numbers(more[0]) if more else (events.users, np.ones(len(events.users), np.bool_))
    return _Read(events, sessions, outside, more[1:], amounts)


def _periods(conversions: Events, window: int) -> Periods:
    """When touches of the conversions can have been."""
    since = conversions.times - window
    begins = differs(conversions.users)
    begins[1:] |= since[1:] > conversions.times[:-1]
    return Periods(conversions.users[begins], since[begins], conversions.times[np.roll(begins, -1)])


def _spans(
    shard: Shard, asked: _Specification, converted: Int64, users: Users | Periods | None, conversions: _Read
) -> tuple[Spans, Coded, Int64]:
    """What the touches of users who converted come to; their values as numbers, and behind them those of conversions;
    and the number of events in each."""
    aggregates = ("min(time)", "max(time)", "count(session_id)", "count(*)")
    columns, texts = shard.grouped(asked["touches"], ("user_id", "session_id"), aggregates, users)
    kept = np.flatnonzero(np.isin(columns[0], converted))
    if len(kept) < len(columns[0]):
        columns = [column[kept] for column in columns]
        at = kept.tolist()
        texts = [[of_key[place] for place in at] for of_key in texts]
    own = conversions.values or [[] for _ in texts]
    values = combined([coded([*of_key, *of_conversions]) for of_key, of_conversions in zip(texts, own, strict=True)])
    of, sessions, firsts, lasts, inside, events = columns
    return Spans(of, sessions, values.codes[: len(of)], firsts, lasts, events - inside), values, events


def _numbers(texts: Sequence[bytes]) -> tuple[Int64, Bool]:
    """Numbers from text, and which are null."""
    missing = np.array([text == NULL for text in texts], np.bool_)
    return np.array([0 if text == NULL else int(text) for text in texts], np.int64), missing


def _credited(
    touches: Touches,
    found: Found,
    conversions: _Read,
    kept: Int64,
    labels: Sequence[tuple[str | None, ...]],
    asked: _Specification,
) -> Iterator[Totals]:
    """The totals of the conversions at `kept`."""
    amounts, scale = (None, 0) if conversions.amounts is None else _amounts(conversions.amounts)
    values = touches.values[differs(touches.numbers)]
    of = conversions.events.users
    pairs: list[Int64] = []
    for some in portions(kept, _credits(found.counts[kept], asked["model"]), asked["slice"]):
        conversion, touch, bucket = _expanded(touches, found, some, asked["model"])
        touched = np.flatnonzero(found.counts[conversion])
        group = np.full(len(conversion), _NOTHING)
        group[touched] = values[touch[touched]]
        ranks = np.searchsorted(of, of[conversion])  # the place of the user's first
        pairs.append(np.unique((group + 1) * len(of) + ranks))
        width = 2 * int(found.counts.max(initial=0)) + 3
        cells, places = np.unique((group + 1) * width + bucket + width // 2, return_inverse=True)
        counts = np.bincount(places, minlength=len(cells))
        sums = None if amounts is None else _sums(amounts[conversion], places, len(cells))
        for at, (cell, count) in enumerate(zip(cells.tolist(), counts.tolist(), strict=True)):
            worth = None if sums is None else EXACT.scaleb(Decimal(sums[at]), -scale)
            yield Totals(cell % width - width // 2, _label(cell // width - 1, labels), [count], value=worth)
    if pairs:
        of_users = np.bincount(np.unique(np.concatenate(pairs)) // len(of))
        for number, users in enumerate(of_users.tolist(), start=_NOTHING):
            if users:
                yield Totals(0, _label(number, labels), [users])


def _label(number: int, labels: Sequence[tuple[str | None, ...]]) -> list[str | None] | None:
    return None if number == _NOTHING else list(labels[number])


def _credits(counts: Int64, model: Model) -> Int64:
    """How many touches are credited, or nothing in their place."""
    return np.maximum(counts, 1) if model in ("linear", "position") else np.ones(len(counts), np.int64)


def _expanded(touches: Touches, found: Found, some: Int64, model: Model) -> tuple[Int64, Int64, Int64]:
    """A row for everything that is credited: the conversion, the number of the touch, and the bucket."""
    counts = found.counts[some]
    touched = np.flatnonzero(counts)
    low, high = np.zeros_like(counts), np.zeros_like(counts)
    low[touched] = touches.numbers[found.lows[some[touched]]]
    high[touched] = touches.numbers[found.highs[some[touched]]]
    credited = _credits(counts, model)
    if model in ("first", "last"):
        return some, low if model == "first" else high, credited
    nth = np.arange(int(credited.sum()), dtype=np.int64) - np.repeat(np.cumsum(credited) - credited, credited)
    of_each = np.repeat(credited, credited)
    inside = (nth > 0) & (nth < of_each - 1) if model == "position" else np.zeros(len(nth), np.bool_)
    return np.repeat(some, credited), np.repeat(low, credited) + nth, np.where(inside, -of_each, of_each)


def _amounts(texts: Sequence[bytes]) -> tuple[_Numbers, int]:
    """Decimal numbers, 0 where there is none, as whole numbers of a unit, and how many decimals it has."""
    decimals = [b"" if text == NULL else text.partition(b".")[2] for text in texts]
    scale = max(map(len, decimals), default=0)
    if scale + max(map(len, texts), default=0) <= 18:
        whole = (0 if text == NULL else int(text.replace(b".", b"") + b"0" * (scale - len(part)))
                 for text, part in zip(texts, decimals, strict=True))  # fmt: skip
        return np.fromiter(whole, np.int64, len(texts)), scale
    large = np.empty(len(texts), object)
    large[:] = [Decimal(0) if text == NULL else Decimal(text.decode()) for text in texts]
    return large, 0


def _sums(amounts: _Numbers, places: Int64, size: int) -> list[Any]:
    """The sum of the amounts in each place, exact."""
    if amounts.dtype != object and int(np.abs(amounts).max(initial=0)) * len(amounts) < 2**63:
        order = np.argsort(places, kind="stable")
        begins = np.flatnonzero(differs(places[order]))
        return list(np.add.reduceat(amounts[order], begins).tolist()) if size else []
    sums = [Decimal(0)] * size
    for place, amount in zip(places.tolist(), amounts.tolist(), strict=True):
        sums[place] = EXACT.add(sums[place], Decimal(amount))
    return sums
