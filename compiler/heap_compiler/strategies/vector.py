"""Lower a sequence to a call of the kernel per shard: there numpy finds the chains in arrays read from the indexes.

`<app>.shards` has one row in every shard, so that a query over it runs once beside the data of each. The kernel gets
what to read as SQL and what to count as numbers, and gives one row per bucket and group, which the query adds up. What
comes back are totals, as from the other strategies: everything above them is the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence as Items
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlglot import exp

from heap_compiler.bound import GroupKey
from heap_compiler.groups import group_columns, user_values
from heap_compiler.passes.choose_strategy import PROBE_COST
from heap_compiler.scan import EVENT_ORDER, Scan, matching, scans, scans_in
from heap_compiler.sequence import Sequence, SequenceStep
from heap_compiler.sql import (
    all_of,
    cast,
    column,
    function,
    named,
    number,
    select,
    shards_table,
    subquery,
    text,
    union_all,
    walk,
)

__all__ = ["KernelCall", "kernel_calls", "kernel_column", "kernel_totals"]

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_SLICE = 4_000_000
"""Rows of one step that a shard has in memory at once: about 200 MB with their copies on the way from PostgreSQL."""

_MARK = "\0"
"""Marks the names of the app's tables in a read: no text of PostgreSQL has this character."""


@dataclass(frozen=True, slots=True)
class KernelCall:
    """What a kernel reads: its scans, and its queries over the app's tables."""

    scans: tuple[Scan, ...]
    queries: tuple[str, ...]


def kernel_calls(query: exp.Query) -> list[KernelCall]:
    """Every call of a kernel in the query."""
    return [part.meta["kernel"] for part in walk(query) if type(part) is exp.Select and "kernel" in part.meta]


def kernel_totals(
    sequence: Sequence,
    *,
    now: datetime,
    keys: Items[GroupKey] = (),
    group_step: int = 1,
    users: exp.Query | None = None,
    buckets: Items[datetime] = (),
) -> list[tuple[str, exp.Query]]:
    """The named queries that end in `kernel`: per shard, bucket and group a row `totals` of type heap._funnel_totals.

    Args:
        sequence: one for which `choose_strategy` chose vectors.
        now: chains that began less than a window before may still go on.
        keys: what the chains are grouped by.
        group_step: number of the step whose event has the groups.
        users: the users that count; None for all.
        buckets: the first instants of the buckets of the entries; none without buckets.
    """
    reads = _Reads(sequence.schema)
    names = group_columns(keys)
    of_event = {name: key.value for name, key in zip(names, keys, strict=True) if not key.of_user}
    of_user = [name for name, key in zip(names, keys, strict=True) if key.of_user]
    steps = [
        {
            "events": _selection(sequence, index, of_event if index == group_step else {}, reads),
            "within": None if step.within is None else _microseconds(step.within),
        }
        for index, step in enumerate(sequence.steps, start=1)
    ]
    specification = {
        "schema": sequence.schema,
        "steps": steps,
        "window": _microseconds(sequence.window),
        "now": _microseconds(now - _EPOCH),
        "buckets": [_microseconds(bucket - _EPOCH) for bucket in buckets],
        "group_keys": names,
        "group_step": group_step - 1,
        "group_of_user": reads.add(_users_in_order(user_values(sequence.schema, keys), of_user)) if of_user else None,
        "user_keys": of_user,
        "users": None if users is None else reads.add(users.copy()),
        "slice": _SLICE,
        "probe_cost": PROBE_COST,
    }
    written = cast(text(json.dumps(specification, ensure_ascii=False, separators=(",", ":"))), "json")
    call = function("heap._funnel_kernel", column("tableoid", "shards"), written)
    kernel = select([named(call, "totals")], shards_table(sequence.schema))
    kernel.meta["kernel"] = KernelCall(tuple(reads.scans), tuple(reads.queries))
    return [("kernel", kernel)]


def kernel_column(name: str, step: int | None = None) -> exp.Expr:
    """A column of the rows of `kernel`; of one that has an element per step, that of the step."""
    value = exp.Dot(this=exp.paren(column("totals", "kernel")), expression=exp.to_identifier(name))
    return value if step is None else exp.Bracket(this=value, expressions=[number(step)], offset=1)


def _selection(sequence: Sequence, index: int, values: dict[str, exp.Expr], reads: _Reads) -> dict[str, object]:
    """The events of a step, with the values: a `Selection` of `heap_extension.kernels.shard`."""
    step, alias = sequence.steps[index - 1], f"{sequence.alias}_{index}"
    assert step.read is not None
    columns = {**{name: column(name) for name in EVENT_ORDER}, **values}
    reads.show(union_all(scans(sequence.schema, step.event, step.read, columns, alias=alias, ordered=True)))
    return {
        "scans": [
            {
                "alias": alias,
                "where": reads.parts(all_of(matching(sequence.schema, alternative, step.read, alias=alias))),
                "definition": alternative.definition if alternative.exact else None,
            }
            for alternative in step.event.alternatives
        ],
        "start": _microseconds(step.read.start - _EPOCH),
        "end": _microseconds(step.read.end - _EPOCH),
        "first_since": _microseconds(sequence.entry.start - _EPOCH) if sequence.first_time and index == 1 else None,
        "values": [reads.parts(value)[0] for value in values.values()],
        "size": _events_of_shard(step, sequence.shards),
    }


def _users_in_order(users: exp.Select, values: Items[str]) -> exp.Select:
    names = [column(name) for name in ("user_id", *values)]
    return select(names, subquery(users, "grouped_users"), order_by=[column("user_id")])


def _events_of_shard(step: SequenceStep, shards: int) -> int | None:
    matching = step.matching_events
    return None if matching is None else -(-matching // shards)


def _microseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)


class _Reads:
    """What a kernel reads, on its way into a specification: SQL in parts, with the names of the app's tables between
    them."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self.scans: list[Scan] = []
        self.queries: list[str] = []

    def add(self, query: exp.Query) -> list[str]:
        """The parts of a query that is run as it is."""
        self.show(query)
        return self.parts(query)

    def show(self, query: exp.Query) -> None:
        """Notes a query that says what is read, for people."""
        self.scans += scans_in(query)
        self.queries.append(_written(query))

    def parts(self, expression: exp.Expr) -> list[str]:
        """The expression's SQL in parts; those at odd positions are names of tables."""
        for table in walk(expression):
            if isinstance(table, exp.Table) and table.db == self._schema:
                if not table.alias:
                    table.set("alias", exp.TableAlias(this=exp.to_identifier(table.name)))
                table.set("this", exp.to_identifier(f"{_MARK}{table.name}{_MARK}", quoted=True))
                table.set("db", None)
        return re.split(f'"{_MARK}([^{_MARK}]*){_MARK}"', _written(expression))


def _written(expression: exp.Expr) -> str:
    """The expression's SQL, on one line."""
    return expression.sql(dialect="postgres", normalize_functions=False, comments=False, copy=False)
