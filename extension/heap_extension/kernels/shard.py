"""Reads a shard for the kernels: the rows of a query come as byte strings, one per column, and become arrays.

No row ever is a Python object. Queries name the app's tables; on a worker of Citus these are the shards of the same
users as the row of `<app>.shards` that the kernel was called for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["NULL", "Database", "Query", "Shard"]

Int64 = npt.NDArray[np.int64]

NULL = b"\xff"
"""Stands for null among texts: no UTF-8 has this byte. A zero byte, which no text has, parts them."""

_SHARD_BESIDE = """
SELECT theirs.shardid AS shard
FROM pg_catalog.pg_dist_shard AS own
JOIN pg_catalog.pg_dist_shard AS theirs ON theirs.shardminvalue = own.shardminvalue
WHERE own.shardid = {shard} AND theirs.logicalrelid = pg_catalog.to_regclass({table})
"""


class Database(Protocol):
    """The part of `plpy` that is used."""

    def execute(self, query: str) -> Iterable[Mapping[str, Any]]: ...

    def quote_literal(self, text: str) -> str: ...

    def quote_ident(self, text: str) -> str: ...


Query = Sequence[str]
"""SQL in parts: at odd positions there is the name of a table of the app, unquoted."""


class Shard:
    """The tables of one shard; on plain PostgreSQL, those of the app.

    Args:
        database: PL/Python's `plpy`, in a function that is STABLE: it then runs nothing but reading statements, with
            the snapshot of the query that called it.
        relation: oid of the table, or shard, of the row the kernel was called for.
        schema: the app's.
    """

    def __init__(self, database: Database, relation: int, schema: str) -> None:
        self._database = database
        self._schema = schema
        self._relation = int(relation)
        self._suffixes: dict[str, str] = {}

    def _table(self, name: str) -> str:
        """The quoted name of the table's shard."""
        if name not in self._suffixes:
            self._suffixes[name] = self._suffix(name)
        quote = self._database.quote_ident
        return f"{quote(self._schema)}.{quote(name + self._suffixes[name])}"

    def _suffix(self, name: str) -> str:
        # Citus hides the rows of shards in pg_class from most sessions.
        (own,) = self._database.execute(f"SELECT {self._relation}::pg_catalog.regclass::text AS name")
        shard = re.fullmatch(r".*\bshards_(\d+)", own["name"])
        if shard is None:
            return ""
        table = f"{self._database.quote_ident(self._schema)}.{self._database.quote_ident(name)}"
        query = _SHARD_BESIDE.format(shard=shard[1], table=self._database.quote_literal(table))
        found = list(self._database.execute(query))
        if len(found) != 1:
            raise LookupError(f"no shard of {table} beside {own['name']}")
        return f"_{found[0]['shard']}"

    def events(self) -> int:
        """About how many events the shard has, as its statistics say."""
        table = self._database.quote_literal(self._table("events"))
        (row,) = self._database.execute(
            "SELECT coalesce(sum(pg_catalog.pg_stat_get_live_tuples(inhrelid)), 0)::pg_catalog.int8 AS events"
            f" FROM pg_catalog.pg_inherits WHERE inhparent = pg_catalog.to_regclass({table})"
        )
        return int(row["events"])

    def read(
        self, query: Query, numbers: Sequence[str], texts: Sequence[str] = (), where: str = "true"
    ) -> tuple[list[Int64], list[list[bytes]]]:
        """The columns of a query's rows, in their order.

        Args:
            query: its rows have an order.
            numbers: SQL over its columns, of type bigint or timestamptz.
            texts: its columns of type text; they come as UTF-8, null as `NULL`.
            where: a condition on its columns.
        """
        columns = [f"pg_catalog.string_agg({number}, '') AS n{at}" for at, number in enumerate(numbers)]
        columns += [
            f"pg_catalog.string_agg(coalesce(pg_catalog.convert_to({text}, 'UTF8'), '\\xff'), '\\x00') AS t{at}"
            for at, text in enumerate(texts)
        ]
        rows = "".join(part if at % 2 == 0 else self._table(part) for at, part in enumerate(query))
        (row,) = self._database.execute(f"SELECT {', '.join(columns)} FROM ({rows}) AS rows WHERE {where}")
        return (
            [np.frombuffer(row[f"n{at}"] or b"", ">i8").astype(np.int64) for at in range(len(numbers))],
            [[] if row[f"t{at}"] is None else row[f"t{at}"].split(b"\0") for at in range(len(texts))],
        )
