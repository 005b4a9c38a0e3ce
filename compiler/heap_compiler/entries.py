"""The events with which users enter a sequence, and what is read off them."""

from __future__ import annotations

from collections.abc import Mapping

from sqlglot import exp

from heap_compiler.scan import EVENT_ORDER, scans
from heap_compiler.sequence import Sequence
from heap_compiler.sql import column, named, select, subquery, union_all

__all__ = ["entry_values"]


def entry_values(sequence: Sequence, values: Mapping[str, exp.Expr]) -> exp.Select:
    """Rows of `user_id, entry` and the values: the events of step 1, numbered per user. A chain of `user_chains` knows
    its entry by that number, so that the steps' own scans need not carry the values along."""
    first = sequence.steps[0]
    assert first.read is not None
    columns = {**{name: column(name) for name in EVENT_ORDER}, **values}
    read = union_all(scans(sequence.schema, first.event, first.read, columns, alias="entry"))
    ordinal = exp.Window(
        this=exp.RowNumber(),
        partition_by=[column("user_id")],
        order=exp.Order(expressions=[column("time"), column("event_id")]),
    )
    return select(
        [column("user_id"), named(ordinal, "entry"), *(column(name) for name in values)],
        subquery(read, "entered"),
    )
