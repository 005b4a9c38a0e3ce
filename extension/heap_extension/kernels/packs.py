"""Packs: the events of one definition in one partition of a shard as arrays.

An event costs some 250 ns to read from an index, 5 from an array. A pack has the user, time and id of every event that
matches, in the order of the index, in rows of `<app>.packs` beside the events.

It is right as long as no row of its partition came or went, which `page_stamps` tells: `make_pack` keeps the stamp with
the arrays, and who reads them compares it, having a snapshot. Writers do nothing for it, and nobody waits. Where a
partition is still written to, the pack says which page of the table each event is on, too: those on pages that did not
change are right as long as the stamp is the same.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import numpy as np

from heap_extension.kernels.events import ByUser, Events, Int64, OnPages, nothing
from heap_extension.kernels.page_stamps import Database, changing_pages, page_stamps

__all__ = ["PACK_ROWS", "Packs", "condition_digest", "decoded", "encoded", "make_pack"]

PACK_ROWS = 65_536
"""Events in one part of a pack, a row of `<app>.packs`, at most."""

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_HEADER = struct.Struct("<QQQ")
_TID = np.dtype([("page", ">u4"), ("row", ">u2")])
"""What `tidsend` gives."""
Run = Callable[[str, Sequence[str], Sequence[Any]], Iterable[Mapping[str, Any]]]


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


def condition_digest(predicate: str) -> str:
    """What names the packs of a condition: two of the same text match the same events."""
    return hashlib.sha256(predicate.encode()).hexdigest()


_MATCHING = """
SELECT
    count(*) AS events, string_agg(int8send(user_id), '') AS users, string_agg(timestamptz_send(time), '') AS times,
    string_agg(int8send(event_id), '') AS event_ids{pages}
FROM (
    SELECT user_id, time, event_id{place} FROM {table}
    WHERE ({predicate}) AND {after}
    ORDER BY user_id, time, event_id
    LIMIT {limit}
) AS matching
"""
_PAGES = ", string_agg(tidsend(place), '') AS places"
_PLACE = ", ctid AS place"
_AFTER = "(user_id, time, event_id) > ($1, $2::timestamptz, $3)"
_PART = """
INSERT INTO {packs} (
    place, relation, condition, part, stamp, first_user, last_user, events, users, counts, times, event_ids, pages
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
"""
_PART_TYPES = ["int8", "text", "text", "int4", "bytea", "int8", "int8", "int4", *["bytea"] * 5]


def make_pack(
    database: Database, app: str, relation: str, packs: str, place: int, predicate: str, goes_on: bool
) -> int | None:
    """Makes the pack of a condition in one partition, in the place of one that is there. Its parts may be read with
    different snapshots: while the stamp is the same, so are the rows of them all, or those of the pages that count.

    Args:
        app: the app, whose schema has this name.
        relation: the partition's table on this node.
        packs: the table that the pack goes to.
        place: the number of the shard in `<app>.shards`.
        predicate: the condition, as SQL.
        goes_on: the partition is still written to: the pack is of its pages, those that change among them.

    Returns:
        How many events are in it; None when there is none, since rows may have come or gone meanwhile.
    """

    def find_stamp() -> bytes | None:
        if not goes_on:
            return page_stamps(database, [table])[0]
        (changing,) = changing_pages(database, [table])
        return None if changing is None else changing.stamp

    table, target = (f"{database.quote_ident(app)}.{database.quote_ident(name)}" for name in (relation, packs))
    key = (relation, condition_digest(predicate))
    drop = f"DELETE FROM {target} WHERE relation = $1 AND condition = $2"
    _run(database, drop, ["text", "text"], *key)
    stamp = find_stamp()
    if not stamp:
        return None
    pages, at = (_PAGES, _PLACE) if goes_on else ("", "")
    insert = _PART.format(packs=target)
    last: tuple[int, str, int] | None = None
    events = 0
    for part in count():
        after = "true" if last is None else _AFTER
        query = _MATCHING.format(table=table, predicate=predicate, after=after, limit=PACK_ROWS, pages=pages, place=at)
        (read,) = _run(database, query, ["int8", "text", "int8"] if last else [], *(last or ()))
        values: list[Any] = [None] * 7
        if read["events"]:
            users, times, ids = (_big_endian(read[name]) for name in ("users", "times", "event_ids"))
            distinct, counts = np.unique(users, return_counts=True)
            values[:6] = [int(users[0]), int(users[-1]), *map(encoded, (distinct, counts, times, ids))]
            if goes_on:
                values[6] = encoded(np.frombuffer(read["places"], _TID)["page"].astype(np.int64))
            last = (int(users[-1]), str(_EPOCH + timedelta(microseconds=int(times[-1]))), int(ids[-1]))
        if read["events"] or part == 0:  # the first is there even when nothing matches
            row = (place, *key, part, stamp, *values[:2], read["events"], *values[2:])
            _run(database, insert, _PART_TYPES, *row)
        events += int(read["events"])
        if read["events"] < PACK_ROWS:
            break
    if find_stamp() == stamp:
        return events
    _run(database, drop, ["text", "text"], *key)
    return None


_INLINE = 8_192
"""Parts of so few events come with the news that they are there; others only when they are wanted."""

_FIND = f"""
SELECT
    condition, relation, stamp, events, first_user, last_user, pages IS NOT NULL OR events = 0 AS has_pages,
    CASE WHEN events <= {_INLINE} THEN users END AS users,
    CASE WHEN events <= {_INLINE} THEN counts END AS counts,
    CASE WHEN events <= {_INLINE} THEN times END AS times
FROM {{table}} WHERE condition = ANY ($1) AND relation = ANY ($2) ORDER BY condition, relation, part
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
        self._found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        """The parts of what was asked for, by condition and table: none where nothing is, or what changed since."""

    def find(self, conditions: Iterable[str], stamps: Mapping[str, bytes]) -> None:
        """Looks for the packs of conditions in tables, all by one query.

        Args:
            conditions: SQL, as it is in the catalog for an index.
            stamps: those of the tables as the snapshot sees them, by the tables' names, as SQL.
        """
        digests = {condition_digest(condition): condition for condition in conditions}
        tables = {_relation(table): table for table in stamps}
        self._found |= {(condition, table): [] for condition in digests.values() for table in stamps}
        query = _FIND.format(table=self._table)
        for part in self._run(query, ["text[]", "text[]"], [list(digests), list(tables)]):
            table = tables[part["relation"]]
            if part["stamp"] == stamps[table]:
                self._found[digests[part["condition"]], table].append(part)

    def usable(self, condition: str, stamps: Mapping[str, bytes]) -> dict[str, int]:
        """For each of the tables that did not change since its pack was made, how many events match the condition.

        Args:
            condition, stamps: as those of `find`.
        """
        missing = {table: stamp for table, stamp in stamps.items() if (condition, table) not in self._found}
        if missing:
            self.find([condition], missing)
        parts = {table: self._found[condition, table] for table in stamps}
        return {table: sum(part["events"] for part in found) for table, found in parts.items() if found}

    def has_pages(self, condition: str, table: str) -> bool:
        """Whether a usable pack says on which page each event is."""
        return all(part["has_pages"] for part in self._found[condition, table])

    def events(
        self, condition: str, table: str, first_user: int, last_user: int, *, with_pages: bool = False
    ) -> Events:
        """What a usable pack has of these users."""
        asked = condition, table, first_user, last_user
        parts = self._parts(*asked, f"users, counts, times{', pages' if with_pages else ''}")
        if not parts:
            return nothing()
        users = _in_place(parts, lambda part: np.repeat(decoded(part["users"]), decoded(part["counts"])))
        times = _in_place(parts, lambda part: decoded(part["times"]))

        def read_ids() -> Int64:
            return _in_place(self._parts(*asked, "event_ids"), lambda part: decoded(part["event_ids"]))

        found = Events(users, times, read_ids)
        if with_pages:
            found.pages = OnPages.of(_in_place(parts, lambda part: decoded(part["pages"])))
        return found.of_range(first_user, last_user)

    def by_user(
        self, condition: str, table: str, first_user: int, last_user: int, without: Int64 | None = None
    ) -> Iterator[ByUser]:
        """As `events`, of which the users are not wanted one by one: part by part. A user whose events do not fit into
        one of them is in the next, too.

        Args:
            without: int64[n, 2]: ranges of pages whose events are left out.
        """
        columns = f"users, counts, times{'' if without is None else ', pages'}"
        for part in self._parts(condition, table, first_user, last_user, columns):
            counts = decoded(part["counts"])
            found = ByUser(decoded(part["users"]), np.cumsum(counts) - counts, decoded(part["times"]))
            if without is not None:
                found = found.without(OnPages.of(decoded(part["pages"])).inside(without))
            yield found.of_range(first_user, last_user)

    def _parts(
        self, condition: str, table: str, first_user: int, last_user: int, columns: str
    ) -> list[Mapping[str, Any]]:
        """The parts of a usable pack that have events of these users, with these columns."""
        parts = [
            part
            for part in self._found[condition, table]
            if part["events"] and part["last_user"] >= first_user and part["first_user"] <= last_user
        ]
        if columns == "users, counts, times" and all(part["events"] <= _INLINE for part in parts):
            return parts
        query = (
            f"SELECT events, {columns} FROM {self._table} WHERE condition = $1 AND relation = $2"
            " AND last_user >= $3 AND first_user <= $4 ORDER BY part"
        )
        key = [condition_digest(condition), _relation(table), first_user, last_user]
        return list(self._run(query, ["text", "text", "int8", "int8"], key)) if parts else []


def _in_place(parts: Sequence[Mapping[str, Any]], of_part: Callable[[Mapping[str, Any]], Int64]) -> Int64:
    """A number for each event of the parts, which goes to its place part by part: one fits into a processor's cache."""
    values = np.empty(sum(part["events"] for part in parts), np.int64)
    end = 0
    for part in parts:
        begin, end = end, end + part["events"]
        values[begin:end] = of_part(part)
    return values


def _relation(table: str) -> str:
    """The table's name without its schema; what partitions are called needs no quotes."""
    return table.rsplit(".", 1)[-1]


def _big_endian(data: bytes) -> Int64:
    return np.frombuffer(data, ">i8").astype(np.int64)


def _run(database: Database, query: str, types: list[str], *arguments: Any) -> list[Mapping[str, Any]]:
    """Runs a query that names tables of an app."""
    return list(database.execute(database.prepare(query, types), list(arguments)))
