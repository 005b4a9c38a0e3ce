"""The sessions of one shard: reads what they consist of, and counts them by bucket and group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set

import numpy as np

from heap_extension.kernels.activity import Buckets
from heap_extension.kernels.events import Int64
from heap_extension.kernels.population import Coded, Population, PopulationAsked
from heap_extension.kernels.shard import NULL, Database, Selection, Shard, Users
from heap_extension.kernels.spans import EVENTS_PER_SPAN, NEVER, Page, Sessions, Spans, counted, portions, sessions
from heap_extension.kernels.totals import Totals, added_up

__all__ = ["count_sessions"]

_IS_PAGEVIEW = "type = 'pageview'"
_VIEWS = f"FILTER (WHERE {_IS_PAGEVIEW})"
_AGGREGATES = (
    "min(time)", "max(time)", "count(*)", f"count(*) {_VIEWS}",
    f"coalesce(min(time) {_VIEWS}, 'infinity')", f"coalesce(max(time) {_VIEWS}, '-infinity')",
)  # fmt: skip


class _Specification(PopulationAsked):
    """What `heap_compiler.analyses.sessions` asks for. Instants are microseconds since 2000.

    Attributes:
        schema: the app's.
        events: what is read; all of them are in a session.
        pages: for each key that is a value of an event, of which event of a session.
        bounds: where the buckets begin.
        top: the groups that are kept, the others being one without any values; None for all.
        slice: how many events are in memory at once, about.
    """

    schema: str
    events: Selection
    pages: list[Page]
    bounds: list[int]
    top: list[list[str | None]] | None
    slice: int


def count_sessions(database: Database, relation: int, specification: str) -> list[Totals]:
    """The totals of a shard: sessions, users, events and bounces are the counts.

    Args:
        database: PL/Python's `plpy`.
        relation: oid of the table of the row of `<app>.shards` that stands for the shard.
        specification: JSON of `_Specification`.
    """
    asked: _Specification = json.loads(specification)
    shard = Shard(database, relation, asked["schema"])
    return added_up(_totals(shard, Population(shard, asked), asked))


def _totals(shard: Shard, population: Population, asked: _Specification) -> Iterator[Totals]:
    for users in shard.slices_of([shard.measured(asked["events"])], EVENTS_PER_SPAN * asked["slice"]):
        spans, values = _spans(shard, asked, users)
        found = sessions(spans, asked["pages"])
        kept = population.counts(found.users)
        if found.tied.any():
            of_tied = kept & np.isin(found.users, found.users[found.tied])
            kept &= ~of_tied
            for portion in portions(found.users[of_tied], found.events[of_tied], asked["slice"]):
                events, their_values = _single_events(shard, asked, portion)
                alone = sessions(events, asked["pages"], single=True)
                yield from _counted(alone, their_values, population, asked)
        yield from _counted(found.at(np.flatnonzero(kept)), values, population, asked)


def _counted(
    found: Sessions, values: Sequence[list[bytes]], population: Population, asked: _Specification
) -> Iterator[Totals]:
    """The totals of these sessions, whose values are those of their spans."""
    own = [
        [NULL if at < 0 else texts[at] for at in source.tolist()]
        for texts, source in zip(values, found.sources, strict=True)
    ]
    groups = population.groups(found.users, own)
    if groups is not None and asked["top"] is not None:
        groups = _folded(groups, {tuple(group) for group in asked["top"]})
    buckets = Buckets(np.array(asked["bounds"], np.int64)).of(found.firsts)
    counts, lasting = counted(found, buckets, None if groups is None else groups.codes)
    for bucket, group, numbers, durations in zip(
        counts.buckets.tolist(), counts.groups.tolist(), counts.values.tolist(), lasting, strict=True
    ):
        labels = None if groups is None else list(groups.labels[group])
        yield Totals(bucket, labels, numbers, durations.astype("<i8").tobytes())


def _folded(groups: Coded, top: Set[tuple[str | None, ...]]) -> Coded:
    """The groups, those that are not among the top as one."""
    kept = [number for number, label in enumerate(groups.labels) if label in top]
    numbers = np.full(len(groups.labels), len(kept), np.int64)
    numbers[kept] = np.arange(len(kept))
    return Coded(numbers[groups.codes], [*(groups.labels[number] for number in kept), ()])


def _spans(shard: Shard, asked: _Specification, users: Users | None) -> tuple[Spans, list[list[bytes]]]:
    views = any(page is not None for page in asked["pages"])
    read = _AGGREGATES if views else _AGGREGATES[:4]
    columns, values = shard.grouped(asked["events"], ("user_id", "session_id"), read, users)
    if not views:
        columns += [columns[2], columns[3]]  # nobody looks
    return Spans(*columns), values


def _single_events(shard: Shard, asked: _Specification, users: Int64) -> tuple[Spans, list[list[bytes]]]:
    """The events of these users, each a span, in their order."""
    selection = asked["events"]
    more = ["session_id::text", f"({_IS_PAGEVIEW})::text"]
    events = shard.events({**selection, "values": [*more, *selection["values"]]}, users)
    session_ids, is_view, *values = events.values
    views = np.array([text == b"true" for text in is_view], np.bool_)
    ones = np.ones(len(events.users), np.int64)
    spans = Spans(
        events.users,
        np.array([int(text) for text in session_ids], np.int64),
        events.times,
        events.times,
        ones,
        views.astype(np.int64),
        np.where(views, events.times, NEVER),
        np.where(views, events.times, -NEVER - 1),
    )
    return spans, list(values)
