"""Reading events: one SELECT per alternative of an event, so that each uses its own partial index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from sqlglot import exp

from heap_compiler.bound import Alternative, BoundEvent
from heap_compiler.passes.disjoint_steps import disjoint
from heap_compiler.ranges import TimeRange
from heap_compiler.sql import column, events_table, named, select, subquery, timestamp, union_all

__all__ = ["EVENT_ORDER", "distinct_events", "scans"]

EVENT_ORDER = ("user_id", "time", "event_id")
"""The order of a user's events, and the columns of every partial index."""


def scans(
    schema: str,
    event: BoundEvent,
    read: TimeRange,
    columns: Mapping[str, exp.Expr],
    *,
    alias: str,
    extra: Sequence[exp.Expr] = (),
    ordered: bool = False,
) -> list[exp.Select]:
    """One SELECT per alternative.

    Args:
        columns: output name -> value over the events table.
        alias: name of the events table in the query; EXPLAIN shows it, so it says which step reads.
        extra: further conditions.
        ordered: in the order of the index. PostgreSQL then merges index scans instead of sorting.
    """
    order = [column(name) for name in EVENT_ORDER] if ordered else []
    return [
        select(
            [named(value.copy(), name) for name, value in columns.items()],
            events_table(schema, alias),
            where=[*(part.copy() for part in (*alternative.conditions, *extra)), *_within(read)],
            order_by=[part.copy() for part in order],
        )
        for alternative in event.alternatives
    ]


def distinct_events(
    schema: str,
    event: BoundEvent,
    read: TimeRange,
    columns: Mapping[str, exp.Expr],
    *,
    alias: str,
    extra: Sequence[exp.Expr] = (),
) -> exp.Query:
    """The matching events, each once even when it matches several alternatives."""
    if _pairwise_disjoint(event.alternatives):
        return union_all(scans(schema, event, read, columns, alias=alias, extra=extra))
    keyed = {**{name: column(name) for name in EVENT_ORDER}, **columns}
    every = union_all(scans(schema, event, read, keyed, alias=alias, extra=extra, ordered=True))
    return select(
        [column(name) for name in keyed],
        subquery(every, "matching"),
        distinct_on=[column(name) for name in EVENT_ORDER],
        order_by=[column(name) for name in EVENT_ORDER],
    )


def _pairwise_disjoint(alternatives: tuple[Alternative, ...]) -> bool:
    return all(disjoint(one, other) for one, other in combinations(alternatives, 2))


def _within(read: TimeRange) -> list[exp.Expr]:
    return [
        exp.GTE(this=column("time"), expression=timestamp(read.start)),
        exp.LT(this=column("time"), expression=timestamp(read.end)),
    ]
