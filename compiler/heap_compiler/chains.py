"""What is read off the chains of a sequence: the groups they count in, at their first event or at another step."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items

from sqlglot import exp

from heap_compiler.bound import BoundEvent, GroupKey
from heap_compiler.groups import event_values, user_values
from heap_compiler.scan import EVENT_ORDER, distinct_events, scans
from heap_compiler.sequence import Sequence
from heap_compiler.sql import column, join, named, select, subquery, union_all
from heap_compiler.strategies import user_chains

__all__ = ["entry_values", "grouped_chains"]


def grouped_chains(
    sequence: Sequence, keys: Items[GroupKey], *, step: int = 1, event_ids: bool = False
) -> tuple[list[tuple[str, exp.Query]], list[exp.Join]]:
    """The named queries that end in `chains`, and the joins that give each chain its `group_1`, `group_2`, ...

    Args:
        sequence: after `SEQUENCE_PASSES`.
        keys: what the chains are grouped by.
        step: number of the step whose event has the values; null for chains that do not reach it.
        event_ids: as for `user_chains`.
    """
    values = event_values(keys)
    # The first event of a plain chain is known by its number, the cheapest to carry along; any other by its id.
    by_entry = bool(values) and sequence.is_plain and step == 1 and not event_ids
    ctes = user_chains(sequence, entries=by_entry, event_ids=event_ids or (bool(values) and not by_entry))
    joins: list[exp.Join] = []
    if by_entry:
        ctes.append(("entries", entry_values(sequence, values)))
        same_entry = exp.EQ(this=column("entry", "entries"), expression=column("entry", "chains"))
        joins.append(join(exp.table_("entries"), [_same_user("entries"), same_entry]))
    elif values:
        ctes.append(("entries", _event_values(sequence, step, values)))
        same_event = [
            exp.EQ(this=column("time", "entries"), expression=column(f"time_{step}", "chains")),
            exp.EQ(this=column("event_id", "entries"), expression=column(f"event_id_{step}", "chains")),
        ]
        joins.append(join(exp.table_("entries"), [_same_user("entries"), *same_event], kind="LEFT"))
    if any(key.of_user for key in keys):
        users = subquery(user_values(sequence.schema, keys), "grouped_users")
        joins.append(join(users, [_same_user("grouped_users")], kind="LEFT"))
    return ctes, joins


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


def _event_values(sequence: Sequence, step: int, values: Mapping[str, exp.Expr]) -> exp.Query:
    """The events that can be that step of a chain, with the values; in any order each step's can."""
    steps = sequence.steps if sequence.any_order else (sequence.steps[step - 1],)
    read = steps[0].read
    assert read is not None
    event = BoundEvent("grouped", tuple(one for step in steps for one in step.event.alternatives))
    columns = {**{name: column(name) for name in EVENT_ORDER}, **values}
    return distinct_events(sequence.schema, event, read, columns, alias="grouped")


def _same_user(table: str) -> exp.Expr:
    return exp.EQ(this=column("user_id", table), expression=column("user_id", "chains"))
