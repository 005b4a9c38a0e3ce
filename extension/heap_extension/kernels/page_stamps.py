"""Tell whether rows came to a table or went, and on which pages, from pages that PostgreSQL keeps anyway.

The visibility map has a bit for every page on which all rows are visible to everybody. Whoever inserts, deletes or
updates a row there clears the bit before anybody can see the change. Only VACUUM sets it again, and then the page of
the map gets a later LSN (its place in the log). So while all bits are set and no page of the map has another LSN, no
row came and none went, and the rows are those of every snapshot in use, as index-only scans know. Who looks must have a
snapshot: whatever it sees was written before it was taken.

The same holds page by page. While the pages of the map have the LSNs they had, no bit was set: a page whose bit is set
has had it since, and has the rows it had. Rows can have come and gone on all others only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["ChangingPages", "Database", "changing_pages", "hidden_pages", "page_stamps"]

Int64 = npt.NDArray[np.int64]

_VISIBLE = 0x55
_ALL_VISIBLE = bytes(byte for byte in range(256) if byte & _VISIBLE == _VISIBLE)
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
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


_TABLES = f"""
SELECT
    t.name, pg_relation_filenode(t.oid) AS file, t.pages, 4 * (t.block - {_PAGE_HEADER}) AS of_map_page,
    pg_relation_size(t.oid, 'vm') / t.block AS map_pages, pg_stat_get_live_tuples(t.oid) AS rows,
    (SELECT a.attnum FROM pg_attribute AS a WHERE a.attrelid = t.oid ORDER BY a.attnum DESC LIMIT 1) AS columns
FROM (
    SELECT named.name, named.oid, named.block, pg_relation_size(named.oid, 'main') / named.block AS pages
    FROM (
        SELECT name, to_regclass(name)::oid AS oid, current_setting('block_size')::int AS block
        FROM unnest($1) AS asked (name)
        OFFSET 0
    ) AS named
    OFFSET 0
) AS t
WHERE has_table_privilege(session_user, t.oid, 'SELECT')
"""

_PAGES = """
SELECT heap._raw_page(asked.name, $1, asked.number) AS page
FROM unnest($2, $3) WITH ORDINALITY AS asked (name, number, at) ORDER BY asked.at
"""


def page_stamps(database: Database, tables: Sequence[str]) -> list[bytes | None]:
    """For each table what is the same only as long as no row came or went and every row is visible to everybody; None
    while some may not be, and for one that the session's user may not read; nothing, b"", for one without pages.

    A stamp is made of what tells the table's pages from any other (identifier of the server's data, file, number of
    columns there ever were) and the LSN of each page of its visibility map. Locking a row does not change it.

    Args:
        tables: names, as SQL.
    """
    stamps: dict[str, bytes | None] = {}
    mapped = []
    for row in _rows(database, _TABLES, ["text[]"], [*tables]):
        if row["pages"] == 0:
            stamps[row["name"]] = b""
        elif row["map_pages"] >= (needed := -(-row["pages"] // row["of_map_page"])):
            contents = struct.pack("<QQ", row["file"], row["columns"])
            mapped.append(_Table(row["name"], contents, row["pages"], needed, row["of_map_page"]))
    stamps |= _stamps(database, mapped)
    return [stamps.get(name) for name in tables]


class ChangingPages(NamedTuple):
    """Where rows may have come to a table, or gone, since it had this stamp.

    Attributes:
        stamp: as of `page_stamps`, of the pages of the map that there are.
        ranges: int64[n, 2], rising: from which page to before which; none where every row is visible to everybody.
        rows: about how many rows these have.
    """

    stamp: bytes
    ranges: Int64
    rows: int


def changing_pages(database: Database, tables: Sequence[str]) -> list[ChangingPages | None]:
    """For each table its stamp and the pages that it says nothing of; None for one without pages or a map, and for one
    that the session's user may not read.

    As long as the stamp is the same, the rows of all other pages are.

    Args:
        tables: names, as SQL.
    """
    found: dict[str, ChangingPages | None] = {}
    for row in _rows(database, _TABLES, ["text[]"], [*tables]):
        pages, of_map_page = row["pages"], row["of_map_page"]
        map_pages = min(row["map_pages"], -(-pages // of_map_page))
        if map_pages == 0:
            continue
        read = _raw_pages(database, "vm", [(row["name"], number) for number in range(map_pages)])
        lsns = [page[:8] for page in read]
        if not all(map(any, lsns)):
            continue
        firsts = [number * of_map_page for number in range(map_pages)]
        hidden = [
            hidden_pages(page, first, min(of_map_page, pages - first)) for page, first in zip(read, firsts, strict=True)
        ]
        changing = np.concatenate([*hidden, np.arange(min(map_pages * of_map_page, pages), pages)])
        begins = np.flatnonzero(np.diff(changing, prepend=-2) != 1)
        ends = np.flatnonzero(np.diff(changing, append=-2) != 1)
        ranges = np.stack([changing[begins], changing[ends] + 1], axis=1)
        contents = struct.pack("<QQ", row["file"], row["columns"])
        stamp = b"".join([_system_identifier(database), contents, *lsns])
        found[row["name"]] = ChangingPages(stamp, ranges, -(-len(changing) * row["rows"] // pages))
    return [found.get(name) for name in tables]


class _Table(NamedTuple):
    """A table whose map is as long as the table needs.

    Attributes:
        contents: its file and the number of its columns.
        pages: how many it has.
        map_pages: how many pages of the map they need.
        of_map_page: how many pages a page of the map is of.
    """

    name: str
    contents: bytes
    pages: int
    map_pages: int
    of_map_page: int


def _stamps(database: Database, tables: Sequence[_Table]) -> dict[str, bytes | None]:
    """The stamps of tables, the pages of all their maps read by one query."""
    wanted = [(table.name, number) for table in tables for number in range(table.map_pages)]
    if not wanted:
        return {}
    try:
        pages = iter(_raw_pages(database, "vm", wanted))
        return {table.name: _stamp(database, table, [next(pages) for _ in range(table.map_pages)]) for table in tables}
    except Exception as error:  # plpy.SPIError exists inside PostgreSQL only
        if getattr(error, "sqlstate", None) != "22023":
            raise
    # VACUUM gave pages of one of them back meanwhile.
    if len(tables) == 1:
        return {}
    return {name: stamp for table in tables for name, stamp in _stamps(database, [table]).items()}


def _stamp(database: Database, table: _Table, map_pages: Sequence[bytes]) -> bytes | None:
    stamp = [_system_identifier(database), table.contents]
    unseen: list[int] = []
    for number, page in enumerate(map_pages):
        lsn, first = page[:8], number * table.of_map_page
        unseen += hidden_pages(page, first, min(table.of_map_page, table.pages - first)).tolist()
        if len(unseen) > _MAX_UNUSED or not any(lsn):  # what is not logged has no other later
            return None
        stamp.append(lsn)
    for number in unseen:  # mostly the first of them is in use
        (page,) = _raw_pages(database, "main", [(table.name, number)])
        if any(page[14:16]):
            return None
    return b"".join(stamp)


def hidden_pages(page: bytes, first: int, count: int) -> Int64:
    """The pages of a table whose bit is not set in a page of its map, which begins with page `first`; rising."""
    whole, rest = divmod(count, 4)
    shown = page[_PAGE_HEADER : _PAGE_HEADER + whole + (rest > 0)]
    if not shown[:whole].translate(None, _ALL_VISIBLE) and (
        rest == 0 or not ~shown[whole] & _VISIBLE & (1 << 2 * rest) - 1
    ):
        return np.zeros(0, np.int64)
    bits = np.frombuffer(shown, np.uint8)
    open_bytes = np.flatnonzero(bits & _VISIBLE != _VISIBLE)
    hidden = ((bits[open_bytes, None] >> _SHIFTS) & 1) == 0
    pages = (4 * open_bytes[:, None] + np.arange(4))[hidden]
    found: Int64 = first + pages[pages < count]
    return found


def _raw_pages(database: Database, fork: str, pages: Sequence[tuple[str, int]]) -> list[bytes]:
    names, numbers = zip(*pages, strict=True)
    return [row["page"] for row in _rows(database, _PAGES, ["text", "text[]", "int8[]"], fork, [*names], [*numbers])]


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
