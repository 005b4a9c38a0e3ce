"""Tell whether rows came to a table or went, from pages that PostgreSQL keeps anyway.

The visibility map has a bit for every page on which all rows are visible to everybody. Whoever inserts, deletes or
updates a row there clears the bit before anybody can see the change. Only VACUUM sets it again, and then the page of
the map gets a later LSN (its place in the log). So while all bits are set and no page of the map has another LSN, no
row came and none went, and the rows are those of every snapshot in use, as index-only scans know. Who looks must have a
snapshot: whatever it sees was written before it was taken.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

__all__ = ["Database", "hidden_pages", "page_stamps"]

_VISIBLE = b"\x55"
"""Of the two bits that a page has in the visibility map, the lower; a byte is of four pages."""

_PAGE_HEADER = 24
"""Bytes of a page before its contents: first its LSN, in 8 bytes; 14 and 15 are `pd_upper`, 0 on a page never used."""

_MAX_UNUSED = 1_024
"""Pages that a table was extended by and that were never used are looked at one by one, so many at most."""

_system: list[bytes] = []
"""The identifier of this server's data, once it was asked for."""


class Database(Protocol):
    """The part of `plpy` that is used."""

    def execute(self, query: Any, arguments: Any = ..., /) -> Iterable[Mapping[str, Any]]: ...

    def prepare(self, query: str, types: list[str], /) -> Any: ...

    def quote_ident(self, text: str, /) -> str: ...


_TABLES = """
SELECT
    t.name, pg_relation_filenode(t.oid) AS file, current_setting('block_size')::int AS block,
    pg_relation_size(t.oid, 'main') AS bytes, pg_relation_size(t.oid, 'vm') AS map_bytes,
    (SELECT max(a.attnum) FROM pg_attribute AS a WHERE a.attrelid = t.oid) AS columns
FROM unnest($1) WITH ORDINALITY AS asked (name, at)
CROSS JOIN LATERAL (SELECT asked.name, to_regclass(asked.name)::oid AS oid) AS t
WHERE has_table_privilege(session_user, t.oid, 'SELECT')
"""


def page_stamps(database: Database, tables: Sequence[str]) -> list[bytes | None]:
    """For each table what is the same only as long as no row came or went and every row is visible to everybody; None
    while some may not be, and for one without rows or that the session's user may not read.

    A stamp is made of what tells the table's pages from any other (identifier of the server's data, file, number of
    columns there ever were) and the LSN of each page of its visibility map. Locking a row does not change it.

    Args:
        tables: names, as SQL.
    """
    stamps = {table["name"]: _page_stamp(database, table) for table in _rows(database, _TABLES, ["text[]"], [*tables])}
    return [stamps.get(name) for name in tables]


def _page_stamp(database: Database, table: Mapping[str, Any]) -> bytes | None:
    pages = -(-table["bytes"] // table["block"])
    of_map_page = 4 * (table["block"] - _PAGE_HEADER)
    map_pages = -(-pages // of_map_page)
    if not pages or table["map_bytes"] < map_pages * table["block"]:
        return None
    stamp = [_system_identifier(database), struct.pack("<QQ", table["file"], table["columns"])]
    unseen: list[int] = []
    try:
        for number, page in enumerate(_raw_pages(database, table["name"], "vm", range(map_pages))):
            lsn, first = page[:8], number * of_map_page
            unseen += hidden_pages(page, first, min(of_map_page, pages - first))
            if len(unseen) > _MAX_UNUSED or not any(lsn):  # what is not logged has no other later
                return None
            stamp.append(lsn)
        if any(any(page[14:16]) for page in _raw_pages(database, table["name"], "main", unseen)):
            return None
    except Exception as error:  # plpy.SPIError exists inside PostgreSQL only
        if getattr(error, "sqlstate", None) == "22023":  # VACUUM gave pages back meanwhile
            return None
        raise
    return b"".join(stamp)


def hidden_pages(page: bytes, first: int, count: int) -> list[int]:
    """The pages of a table whose bit is not set in a page of its map, which begins with page `first`."""
    bits = page[_PAGE_HEADER : _PAGE_HEADER + -(-count // 4)]
    mask = int.from_bytes(_VISIBLE * len(bits), "little") & (1 << 2 * count) - 1
    if int.from_bytes(bits, "little") & mask == mask:
        return []
    return [first + at for at in range(count) if not bits[at // 4] >> 2 * (at % 4) & 1]


def _raw_pages(database: Database, table: str, fork: str, pages: Iterable[int]) -> Iterator[bytes]:
    for number in pages:
        query = "SELECT heap._raw_page($1, $2, $3) AS page"
        (row,) = _rows(database, query, ["text", "text", "int8"], table, fork, number)
        yield row["page"]


def _system_identifier(database: Database) -> bytes:
    if not _system:
        (row,) = _rows(database, "SELECT system_identifier FROM pg_control_system()", [])
        _system.append(struct.pack("<q", row["system_identifier"]))
    return _system[0]


_plans: dict[str, Any] = {}


def _rows(database: Database, query: str, types: list[str], *arguments: Any) -> list[Mapping[str, Any]]:
    """Runs a query whose plan is kept for the session."""
    if query not in _plans:
        _plans[query] = database.prepare(query, types)
    return list(database.execute(_plans[query], list(arguments)))
