"""A call of a kernel per shard: `<app>.shards` has one row in every shard, so that a query over it runs once beside the
data of each. The kernel gets what to read as SQL and what to count as numbers; its rows are totals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Items
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlglot import exp

from heap_compiler.bound import BoundEvent, GroupKey
from heap_compiler.groups import group_columns, user_values
from heap_compiler.ranges import TimeRange
from heap_compiler.scan import EVENT_ORDER, matching, scans
from heap_compiler.sql import (
    all_of,
    cast,
    column,
    copied,
    function,
    named,
    number,
    select,
    shards_table,
    subquery,
    table_alias,
    text,
    union_all,
    walk,
    written,
)

__all__ = [
    "SLICE",
    "Packable",
    "Reads",
    "instants",
    "kernel_calls",
    "kernel_column",
    "kernel_query",
    "microseconds",
]

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
SLICE = 4_000_000
"""Events of one read that a shard has in memory at once: about 200 MB with their copies on the way from PostgreSQL."""

_MARK = "\0"
"""Marks the names of the app's tables in a read: no text of PostgreSQL has this character."""


class Packable(NamedTuple):
    """A read of events that packs serve where there are any: the scan's alias, and the condition that names them."""

    alias: str
    condition: str


def kernel_calls(query: exp.Query) -> list[Reads]:
    """What each kernel reads that the query calls."""
    return [part.meta["kernel"] for part in walk(query) if type(part) is exp.Select and "kernel" in part.meta]


def kernel_query(
    kernel: str, specification: Mapping[str, object], reads: Reads, computed: Mapping[str, exp.Expr] | None = None
) -> exp.Select:
    """The totals of that kernel of every shard, which `with_ctes` has computed beforehand.

    Several shards are asked by another function, with an `s` behind its name: so that the query around has no
    distributed table, and Citus no part in it.

    Args:
        kernel: the SQL function's name.
        specification: what it is asked for.
        reads: through which the specification was made.
        computed: what else is in it, of type jsonb, that the query computes.
    """
    asked: exp.Expr = text(json.dumps(specification, ensure_ascii=False, separators=(",", ":")))
    if computed:
        asked = cast(asked, "jsonb")
        for name, value in computed.items():
            asked = function("jsonb_set", asked, cast(text(f"{{{name}}}"), "text[]"), value)
    asked = cast(asked, "json")
    if reads.shards == 1:
        calls = select(
            [named(function(kernel, column("tableoid", "shards"), asked), "totals")], shards_table(reads.schema)
        )
        row = exp.Dot(this=exp.paren(column("totals", "calls")), expression=exp.Star())
        query = select([row], subquery(calls, "calls"))
    else:
        call = function(f"{kernel}s", text(reads.schema), asked)
        query = select([exp.Star()], exp.Table(this=call, alias=table_alias("totals")))
    query.meta["kernel"] = reads
    return query


def kernel_column(name: str, index: int | None = None, kernel: str = "kernel") -> exp.Expr:
    """A column of the totals in the query `kernel`; of one that is an array, the element of that index, from 1."""
    value = column(name, kernel)
    return value if index is None else exp.Bracket(this=value, expressions=[number(index)], offset=1)


def instants(times: Iterable[datetime]) -> list[int]:
    """The times as kernels count them: in microseconds since 2000."""
    return [microseconds(time - _EPOCH) for time in times]


def microseconds(duration: timedelta) -> int:
    """The duration as kernels count it."""
    return duration // timedelta(microseconds=1)


class Reads:
    """What a kernel reads, on its way into a specification: SQL in parts, with the names of the app's tables between
    them."""

    def __init__(self, schema: str, shards: int) -> None:
        """Args:
        schema: the app's.
        shards: how many the events are spread over; one without Citus.
        """
        self.schema = schema
        self.shards = shards
        self.shown: list[Callable[[], exp.Query]] = []
        """What is read, for people, made when somebody asks."""
        self.packable: list[Packable] = []

    def selection(
        self,
        event: BoundEvent,
        read: TimeRange,
        alias: str,
        *,
        values: Mapping[str, exp.Expr] | None = None,
        extra: Items[exp.Expr] = (),
        first_since: datetime | None = None,
        ordered: bool = True,
    ) -> dict[str, object]:
        """The events of a range: a `Selection` of `heap_extension.kernels.shard`.

        Args:
            values: what is read with each event.
            extra: further conditions.
            first_since: of each user only the first event, and that only since this instant.
            ordered: the kernel reads them in their order; else grouped, in none.
        """
        values = values or {}
        columns = {**{name: column(name) for name in EVENT_ORDER}, **values}
        self.shown.append(
            lambda: union_all(scans(self.schema, event, read, columns, alias=alias, extra=extra, ordered=ordered))
        )
        known = event.matching_events
        start, end = instants(read)
        scanned: list[dict[str, object]] = []
        for alternative in event.alternatives:
            where = self.parts(all_of(matching(self.schema, alternative, read, alias=alias, extra=extra)))
            definition = None if extra else alternative.whole
            scanned.append({"alias": alias, "where": where, "definition": definition})
            if definition is not None and not values:
                self.packable.append(Packable(alias, "".join(where)))
        return {
            "scans": scanned,
            "start": start,
            "end": end,
            "first_since": None if first_since is None else instants([first_since])[0],
            "values": [self.parts(value)[0] for value in values.values()],
            "size": None if known is None else -(-known // self.shards),
        }

    def population(self, keys: Items[GroupKey], users: exp.Query | None) -> dict[str, object]:
        """Who counts, all if `users` is None, and by what they are grouped: a `PopulationAsked` of
        `heap_extension.kernels.population`."""
        names = group_columns(keys)
        of_user = [name for name, key in zip(names, keys, strict=True) if key.of_user]
        return {
            "group_keys": names,
            "group_of_user": self.add(_users_in_order(user_values(self.schema, keys), of_user)) if of_user else None,
            "user_keys": of_user,
            "users": None if users is None else self.add(users),
        }

    def add(self, query: exp.Query) -> list[str]:
        """The parts of a query that is run as it is."""
        self.shown.append(lambda: query)
        return self.parts(copied(query))

    def parts(self, expression: exp.Expr) -> list[str]:
        """The expression's SQL in parts; those at odd positions are names of tables."""
        for table in walk(expression):
            if isinstance(table, exp.Table) and table.db == self.schema:
                if not table.alias:
                    table.set("alias", exp.TableAlias(this=exp.to_identifier(table.name)))
                table.set("this", exp.to_identifier(f"{_MARK}{table.name}{_MARK}", quoted=True))
                table.set("db", None)
        return re.split(f'"{_MARK}([^{_MARK}]*){_MARK}"', written(expression))


def _users_in_order(users: exp.Select, values: Items[str]) -> exp.Select:
    names = [column(name) for name in ("user_id", *values)]
    return select(names, subquery(users, "grouped_users"), order_by=[column("user_id")])
