"""Packs: the events of one definition in one partition of a shard as arrays, made once nobody writes there any longer.

An event costs some 250 ns to read from an index, 5 from an array. A pack has the user, time and id of every event that
matches, in the order of the index, in rows of `<app>.packs` beside the events.

It is right as long as no page of its partition changed, and PostgreSQL knows that: the visibility map has a bit for
every page on which all rows are visible to everybody. Whoever inserts, deletes or updates a row there clears the bit
before anybody can see the change. Only VACUUM sets it again, and then the page of the map gets a later LSN (its place
in the log). So while all bits are set and no page of the map has another LSN, no row came and none went, and the rows
are those of every snapshot in use. `page_stamps` gives what must stay the same: `make_pack` keeps it with the arrays,
and who reads them compares it, having a snapshot. Writers do nothing for it, and nobody waits.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Protocol

import numpy as np

from heap_extension.kernels.events import Events, Int64, nothing

__all__ = ["PACK_ROWS", "Packs", "condition_digest", "decoded", "encoded", "hidden_pages", "make_pack", "page_stamps"]

PACK_ROWS = 262_144
"""Events in one part of a pack, a row of `<app>.packs`, at most."""

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_HEADER = struct.Struct("<QQQ")
_BITS_VISIBLE = 0b01010101
"""Of the two bits that a page has in the visibility map, the first; a byte is of four pages."""

_PAGE_HEADER = 24
"""Bytes of a page before its contents: first its LSN, in 8 bytes; 14 and 15 are `pd_upper`, 0 on a page never used."""

_MAX_UNUSED = 1_024
"""Pages that a table was extended by and that were never used are looked at one by one, so many at most."""

Run = Callable[[str, Sequence[str], Sequence[Any]], Iterable[Mapping[str, Any]]]

_system: list[bytes] = []
"""The identifier of this server's data, once it was asked for."""


class Database(Protocol):
    """The part of `plpy` that is used."""

    def execute(self, query: Any, arguments: Any = ..., /) -> Iterable[Mapping[str, Any]]: ...

    def prepare(self, query: str, types: list[str], /) -> Any: ...

    def quote_ident(self, text: str, /) -> str: ...


def encoded(values: Int64) -> bytes:
    """Numbers as bytes: the least of them, a unit that all differences to it are multiples of, and these multiples, in
    as few bytes each as the greatest needs (frame of reference). Times in whole milliseconds so need 4 bytes.

    Args:
        values: at least one.
    """
    base = values.min()
    differences = (values - base).view(np.uint64)  # which wraps around where 64 bits are not enough
    unit = max(int(np.gcd.reduce(differences)), 1)
    if unit > 1:
        differences //= np.uint64(unit)
    width = next(width for width in (1, 2, 4, 8) if int(differences.max()) < 1 << 8 * width)
    return bytes(_HEADER.pack(int(base) % 2**64, unit, width) + differences.astype(f"<u{width}").tobytes())


def decoded(data: bytes) -> Int64:
    """The numbers of `encoded`."""
    base, unit, width = _HEADER.unpack_from(data)
    values = np.frombuffer(data, f"<u{width}", offset=_HEADER.size).astype(np.int64)
    if unit > 1:
        values *= np.uint64(unit).astype(np.int64)
    values += np.uint64(base).astype(np.int64)
    return values


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
            if len(unseen) > _MAX_UNUSED or not any(lsn):  # a map without LSN is not in the log, and has no other later
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
    bits = np.frombuffer(page, np.uint8, -(-count // 4), _PAGE_HEADER)
    if count % 4 == 0 and (bits & _BITS_VISIBLE == _BITS_VISIBLE).all():
        return []
    visible = (bits[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 1
    return [first + int(at) for at in np.flatnonzero(visible.ravel()[:count] == 0)]


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


def condition_digest(predicate: str) -> str:
    """What names the packs of a condition: two of the same text match the same events."""
    return hashlib.sha256(predicate.encode()).hexdigest()


_MATCHING = """
SELECT
    count(*) AS events, string_agg(int8send(user_id), '') AS users, string_agg(timestamptz_send(time), '') AS times,
    string_agg(int8send(event_id), '') AS event_ids
FROM (
    SELECT user_id, time, event_id FROM {table}
    WHERE ({predicate}) AND {after}
    ORDER BY user_id, time, event_id
    LIMIT {limit}
) AS matching
"""
_AFTER = "(user_id, time, event_id) > ($1, $2::timestamptz, $3)"
_PART = """
INSERT INTO {packs} (
    place, relation, condition, part, stamp, first_user, last_user, events, users, counts, times, event_ids
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
"""
_PART_TYPES = ["int8", "text", "text", "int4", "bytea", "int8", "int8", "int4", "bytea", "bytea", "bytea", "bytea"]


def make_pack(database: Database, app: str, relation: str, packs: str, place: int, predicate: str) -> int | None:
    """Makes the pack of a condition in one partition, in the place of one that is there. Its parts may be read with
    different snapshots: while the stamp is the same, so are the rows of them all.

    Args:
        app: the app, whose schema has this name.
        relation: the partition's table on this node.
        packs: the table that the pack goes to.
        place: the number of the shard in `<app>.shards`.
        predicate: the condition, as SQL.

    Returns:
        How many events are in it; None when there is none, since rows may have come or gone meanwhile.
    """
    table, target = (f"{database.quote_ident(app)}.{database.quote_ident(name)}" for name in (relation, packs))
    key = (relation, condition_digest(predicate))
    drop = f"DELETE FROM {target} WHERE relation = $1 AND condition = $2"
    _run(database, drop, ["text", "text"], *key)
    (stamp,) = page_stamps(database, [table])
    if stamp is None:
        return None
    insert = _PART.format(packs=target)
    last: tuple[int, str, int] | None = None
    events = 0
    for part in count():
        after = "true" if last is None else _AFTER
        query = _MATCHING.format(table=table, predicate=predicate, after=after, limit=PACK_ROWS)
        (read,) = _run(database, query, ["int8", "text", "int8"] if last else [], *(last or ()))
        values: list[Any] = [None] * 6
        if read["events"]:
            users, times, ids = (_big_endian(read[name]) for name in ("users", "times", "event_ids"))
            distinct, counts = np.unique(users, return_counts=True)
            values = [int(users[0]), int(users[-1]), *(encoded(array) for array in (distinct, counts, times, ids))]
            last = (int(users[-1]), str(_EPOCH + timedelta(microseconds=int(times[-1]))), int(ids[-1]))
        if read["events"] or part == 0:  # the first is there even when nothing matches
            row = (place, *key, part, stamp, *values[:2], read["events"], *values[2:])
            _run(database, insert, _PART_TYPES, *row)
        events += int(read["events"])
        if read["events"] < PACK_ROWS:
            break
    if page_stamps(database, [table]) == [stamp]:
        return events
    _run(database, drop, ["text", "text"], *key)
    return None


# PostgreSQL must see which events a serializable transaction reads.
_MAY_BE_READ = """
SELECT pg_catalog.to_regclass($1) IS NOT NULL
    AND pg_catalog.current_setting('transaction_isolation') <> 'serializable' AS may_be_read
"""


class Packs:
    """The packs beside a shard, in one call of a kernel, and so with one snapshot.

    Args:
        run: runs a query, of which it keeps the plan, with types and values of its parameters.
        table: the name of the table of packs, as SQL.
    """

    def __init__(self, run: Run, table: str) -> None:
        self._run = run
        self._table = table
        self._stamps: dict[str, bytes | None] = {}
        self._may_be_read: bool | None = None

    def usable(self, condition: str, tables: Iterable[str]) -> dict[str, int]:
        """For each of the tables that did not change since its pack was made, how many events match the condition.

        Args:
            condition: SQL, as it is in the catalog for an index.
            tables: names of partitions, as SQL.
        """
        if self._may_be_read is None:
            (row,) = self._run(_MAY_BE_READ, ["text"], [self._table])
            self._may_be_read = bool(row["may_be_read"])
        if not self._may_be_read:
            return {}
        names = {_relation(table): table for table in tables}
        query = f"SELECT relation, stamp, events FROM {self._table} WHERE condition = $1 AND relation = ANY ($2)"
        parts = list(self._run(query, ["text", "text[]"], [condition_digest(condition), list(names)]))
        self._find_stamps({names[part["relation"]] for part in parts} - self._stamps.keys())
        events: dict[str, int] = {}
        for part in parts:
            table = names[part["relation"]]
            if part["stamp"] == self._stamps[table]:
                events[table] = events.get(table, 0) + part["events"]
        return events

    def _find_stamps(self, tables: Iterable[str]) -> None:
        asked = sorted(tables)
        if asked:
            (row,) = self._run("SELECT heap._page_stamps($1) AS stamps", ["text[]"], [asked])
            self._stamps.update(zip(asked, row["stamps"], strict=True))

    def events(self, condition: str, table: str, first_user: int, last_user: int) -> Events:
        """What a usable pack has of these users."""
        key = [condition_digest(condition), _relation(table), first_user, last_user]

        def read(columns: str) -> list[Mapping[str, Any]]:
            query = (
                f"SELECT {columns} FROM {self._table} WHERE condition = $1 AND relation = $2"
                " AND last_user >= $3 AND first_user <= $4 ORDER BY part"
            )
            return list(self._run(query, ["text", "text", "int8", "int8"], key))

        parts = read("users, counts, times")
        if not parts:
            return nothing()
        users = np.concatenate([np.repeat(decoded(part["users"]), decoded(part["counts"])) for part in parts])
        times = np.concatenate([decoded(part["times"]) for part in parts])
        found = Events(users, times, lambda: np.concatenate([decoded(part["event_ids"]) for part in read("event_ids")]))
        begin, end = users.searchsorted(first_user, side="left"), users.searchsorted(last_user, side="right")
        return found if begin == 0 and end == len(users) else found.between(int(begin), int(end))


def _relation(table: str) -> str:
    """The table's name without its schema; what partitions are called needs no quotes."""
    return table.rsplit(".", 1)[-1]


def _big_endian(data: bytes) -> Int64:
    return np.frombuffer(data, ">i8").astype(np.int64)


_plans: dict[str, Any] = {}


def _rows(database: Database, query: str, types: list[str], *arguments: Any) -> list[Mapping[str, Any]]:
    """Runs a query whose plan is kept for the session."""
    if query not in _plans:
        _plans[query] = database.prepare(query, types)
    return list(database.execute(_plans[query], list(arguments)))


def _run(database: Database, query: str, types: list[str], *arguments: Any) -> list[Mapping[str, Any]]:
    """Runs a query that names tables of an app."""
    return list(database.execute(database.prepare(query, types), list(arguments)))
