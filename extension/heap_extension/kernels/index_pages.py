"""Reads the events of a definition from the pages of its index: an index-only scan without the executor.

PostgreSQL's own index-only scans rest on the same: where the visibility map says of a page of the table that all see
all of it, an entry of the index is a row that everybody sees. Here the map is read before the index and after it, under
the snapshot of the query. A row that went earlier has no entry any more once its page's bit is set; one that comes
later clears the bit, and nobody sets it while there are snapshots that do not see the row. So what is set both times is
right. Rows of all other pages, few where VACUUM was lately, are asked for by their places, and the users of those that
are not found there by the index, as without this module.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heap_extension.index_names import index_suffix
from heap_extension.kernels.btree import Entries, UnreadableError, entries
from heap_extension.kernels.events import Events, Int64, joined, united

__all__ = ["IndexPages"]

Run = Callable[[str, Sequence[str], Sequence[Any]], Iterable[Mapping[str, Any]]]

_MAP_HEADER = 24
"""Bytes of a page of the visibility map before its bits: two for each page of the table, the lower one for all rows."""

_PAGE = 8_192
"""Bytes of a page; a server that was built with others is read by its executor."""

_SMALL = 32 * _PAGE
"""Bytes of an index that the executor reads as quickly."""

_MAX_LOST = 1_000
"""Users of whom entries without a row were found, and who are read by the index instead, at most."""

_MOST_DOUBTFUL = 8
"""Of so many entries one may be of a page that not all see all of; where there are more, the executor is as quick."""

_ENTRIES_KEPT_PER_PAGE = 100
"""Entries read from an index in the time in which the rows of a page of the table are tried."""

_ENTRIES_PER_PAGE = 3
"""Places looked up in the time in which a page of the table is read."""

_GONE = frozenset({"22023", "42P01", "58P01"})
"""Errors that PostgreSQL raises when a page, a table or index, or its file is not there any more."""

Bytes = npt.NDArray[np.uint8]

_PLACE = np.dtype([("page", ">u4"), ("at", ">u2")])

_NOBODY = np.array([-(2**63)])
_NONE = np.zeros(0, np.int64)

_MAX_KEPT = 10_000
"""Indexes that a session remembers."""

_EVERYBODY = (-(2**63), 2**63 - 1)

_MAX_KEPT_BYTES = 32 << 20
"""Of entries, in a session: a million."""

_Key = tuple[str, str, str]
"""A partition, an event and its condition."""

_kept: OrderedDict[_Key, _Kept] = OrderedDict()
"""What was used longest ago first."""

_indexes: dict[_Key, int] = {}
"""The oid of an index whose entries, in their order, are what the definition matches."""

# A superuser's session reads pages itself: what it may be made to call, by whom it trusts too much, gives none away.
_RIGHTS = """
SELECT
    pg_catalog.current_setting('block_size') = '8192' AS are_as_expected,
    (SELECT r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user) AS is_superuser
"""
_PAGES = {
    False: "heap._pages({relation}, '{fork}', {pages}) AS page",
    True: "pg_catalog.unnest({pages}) AS p, heap._raw_page({relation}, '{fork}', p) AS page",
}
_CANDIDATES = """
SELECT
    i.indexrelid AS index, i.indexrelid::pg_catalog.regclass::text AS name, i.indpred IS NULL AS has_every_row,
    ARRAY(
        SELECT a.attname::text FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = i.indexrelid ORDER BY a.attnum
    ) AS columns
FROM pg_catalog.pg_index AS i
WHERE i.indrelid = pg_catalog.to_regclass($1) AND i.indisvalid AND i.indexprs IS NULL
    AND i.indoption[0] = 0 AND i.indoption[1] = 0 AND i.indoption[2] = 0
"""
# With the snapshot of the query: an index that is not kept any longer misses no row that this sees.
_INDEX = """
SELECT
    i.indexrelid::pg_catalog.regclass::text AS name, pg_catalog.pg_relation_filenode(i.indexrelid)::bigint AS file,
    pg_catalog.pg_relation_size(i.indexrelid) AS bytes, (SELECT pg_catalog.string_agg(page, '') FROM {map}) AS map,
    pg_catalog.pg_relation_size(i.indrelid) / 8192 AS pages, pg_catalog.pg_relation_filenode(i.indrelid)::bigint AS of
FROM pg_catalog.pg_index AS i
WHERE i.indexrelid = $1 AND i.indrelid = pg_catalog.to_regclass($2) AND i.indisvalid
"""
_ROWS_AT = """
SELECT pg_catalog.string_agg(pg_catalog.tidsend(ctid), '') AS rows FROM {table} WHERE ctid = ANY ($1)
"""
_ROWS_BETWEEN = """
SELECT pg_catalog.string_agg(pg_catalog.tidsend(found.ctid), '') AS rows
FROM unnest($1, $2) AS r (first, behind)
CROSS JOIN LATERAL (SELECT ctid FROM {table} WHERE ctid >= r.first AND ctid < r.behind OFFSET 0) AS found
"""
_MATCHING_BETWEEN = """
SELECT
    pg_catalog.string_agg(pg_catalog.int8send(user_id), NULL) AS u,
    pg_catalog.string_agg(pg_catalog.timestamptz_send(time), NULL) AS t,
    pg_catalog.string_agg(pg_catalog.int8send(event_id), NULL) AS i
FROM (
    SELECT found.*
    FROM unnest($1, $2) AS r (first, behind)
    CROSS JOIN LATERAL (
        SELECT user_id, time, event_id FROM {table}
        WHERE ({condition}) AND ctid >= r.first AND ctid < r.behind OFFSET 0
    ) AS found
    WHERE user_id BETWEEN $3 AND $4
    ORDER BY user_id, time, event_id
) AS rows
"""
_WHOLE_MAP = """ARRAY(
    SELECT pg_catalog.generate_series(
        0, pg_catalog.pg_relation_size($2, 'vm') / pg_catalog.current_setting('block_size')::bigint - 1
    )
)"""


class _Index(NamedTuple):
    """An index as it is.

    Attributes:
        files: of the index and of its table.
        size: in bytes.
        pages: how many the table has.
        map: two bits for each of them, the lower one set where all see all of it.
        versions: the LSN of each page of the visibility map, which a bit that is set makes another.
    """

    name: str
    files: tuple[int, int]
    size: int
    pages: int
    map: Bytes
    versions: tuple[bytes, ...]


class _Kept(NamedTuple):
    """What a session keeps of an index.

    Attributes:
        state: of the index, as it was.
        visible: its map, as it was before and after the entries were read.
    """

    state: _Index
    visible: Bytes
    entries: Entries


class _Rows(NamedTuple):
    """The places of all rows in some pages of a table that the snapshot sees; both rising."""

    pages: Int64
    places: Int64


class IndexPages:
    """The indexes of a shard's partitions, in one call of a kernel, and so with one snapshot.

    Args:
        run: runs a query, of which it keeps the plan, with types and values of its parameters.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._rights: Mapping[str, Any] | None = None
        self._rows: dict[str, _Rows] = {}

    def events(
        self,
        table: str,
        definition: str,
        condition: str,
        first_user: int,
        last_user: int,
        read_users: Callable[[Int64], Events],
    ) -> Events | None:
        """The events of one partition that a definition matches, of these users; None where it has no index to read, or
        that changed meanwhile.

        Args:
            table: the partition, as SQL.
            definition: the event, or "any".
            condition: its predicate, as SQL.
            read_users: reads the events of these users only.
        """
        if self._rights is None:
            (self._rights,) = self._run(_RIGHTS, [], [])
        if not self._rights["are_as_expected"]:
            return None
        key = table, definition, condition
        index = self._index(*key)
        if index is None or index.size < _SMALL:
            return None
        read_users(_NOBODY)  # counts as a use of the index, and keeps it and the table until the transaction ends
        events = self._as_kept(key, index, first_user, last_user)
        if events is not None:
            return events
        try:
            found = entries(lambda pages: self._pages(index.name, pages), first_user, last_user)
            after = self._index(*key)
        except UnreadableError:
            return None
        except Exception as error:  # plpy.SPIError exists inside PostgreSQL only
            if getattr(error, "sqlstate", None) in _GONE:
                return None
            raise
        if after is None or (after.name, after.files) != (
            index.name,
            index.files,
        ):  # its pages may have been of two files
            return None
        visible = _both(index.map, after.map)
        if (first_user, last_user) == _EVERYBODY and index.versions == after.versions and all(map(any, index.versions)):
            _keep(key, _Kept(index, visible, found))
        return self._seen(found, visible, table, read_users)

    def _as_kept(self, key: _Key, index: _Index, first_user: int, last_user: int) -> Events | None:
        """The events as the session keeps them, and as they are in the pages that changed since; None where nothing is
        kept that is still right, or reading the pages takes longer.

        While a page of the map has the same LSN, no bit in it was set: one that was set and is, was all the time, and
        nothing changed in that page of the table.
        """
        kept = _kept.get(key)
        if kept is None:
            return None
        known = kept.state.versions
        if (index.name, index.files, index.versions[: len(known)]) != (kept.state.name, kept.state.files, known):
            del _kept[key]
            return None
        bits = _page_bits(_both(kept.visible, index.map), index.pages)
        changed = np.flatnonzero(~bits)
        if len(changed) * _ENTRIES_KEPT_PER_PAGE > len(kept.entries.users):
            return None
        _kept.move_to_end(key)
        found = kept.entries.between(first_user, last_user)
        events = Events(found.users, found.times, lambda: found.ids)
        if len(changed) == 0:
            return events
        events = events.at(np.flatnonzero(bits.take(found.pages, mode="clip")))
        table, _, condition = key
        query = _MATCHING_BETWEEN.format(table=table, condition=condition)
        bounds: list[Any] = [*_ranges(changed), first_user, last_user]
        (row,) = self._run(query, ["tid[]", "tid[]", "int8", "int8"], bounds)
        users, times, ids = (np.frombuffer(row[name] or b"", ">i8").astype(np.int64) for name in ("u", "t", "i"))
        return united([events, Events(users, times, lambda: ids)])

    def _index(self, table: str, definition: str, condition: str) -> _Index | None:
        """The index to read, as it is now; None where there is none."""
        key = table, definition, condition
        known = _indexes.get(key)
        if known is not None:
            for row in self._run(self._reading(_INDEX), ["oid", "text"], [known, table]):
                maps = row["map"] or b""
                versions = tuple(maps[at : at + 8] for at in range(0, len(maps), _PAGE))
                files = row["file"], row["of"]
                return _Index(row["name"], files, row["bytes"], row["pages"], _bits(maps, row["pages"]), versions)
        for index in self._run(_CANDIDATES, ["text"], [table]):
            if index["index"] != known and _is_of(index, *key):
                if len(_indexes) >= _MAX_KEPT:
                    _indexes.clear()
                _indexes[key] = int(index["index"])
                return self._index(*key)
        return None

    def _pages(self, index: str, pages: Sequence[int]) -> bytes:
        """Pages of an index, one behind the other.

        Raises:
            UnreadableError: the session may not read them.
        """
        query = self._reading("SELECT page FROM {pages}")
        found = [row["page"] for row in self._run(query, ["text", "int8[]"], [index, list(pages)])]
        if len(found) != len(pages):
            raise UnreadableError
        return b"".join(found)

    def _reading(self, query: str) -> str:
        """The query with what reads pages."""
        assert self._rights is not None
        how = _PAGES[self._rights["is_superuser"]]
        return query.format(
            pages=how.format(relation="$1", fork="main", pages="$2"),
            map=how.format(relation="$2", fork="vm", pages=_WHOLE_MAP),
        )

    def _seen(self, found: Entries, visible: Bytes, table: str, read_users: Callable[[Int64], Events]) -> Events | None:
        """The events of those entries whose rows the snapshot sees."""
        events = Events(found.users, found.times, lambda: found.ids)
        seen = _page_bits(visible, len(visible) * 4 + 1).take(found.pages, mode="clip")
        if seen.all():
            return events
        doubtful = np.flatnonzero(~seen)
        if len(doubtful) > _MAX_LOST and len(doubtful) * _MOST_DOUBTFUL > len(seen):
            return None
        places = Entries(*(array[doubtful] for array in found)).places
        seen[doubtful] = self._are_rows(table, places)
        lost = np.unique(events.users[~seen])
        if len(lost) == 0:
            return events
        if len(lost) > _MAX_LOST:
            return None
        return joined([events.at(np.flatnonzero(~np.isin(events.users, lost))), read_users(lost)])

    def _are_rows(self, table: str, places: Int64) -> npt.NDArray[np.bool_]:
        """Whether at each of the places there is a row that the snapshot sees. Where they are many of a page, all its
        rows are found, and remembered: other indexes of the table have entries there, too."""
        known = self._rows.get(table, _Rows(_NONE, _NONE))
        unknown = places[~_among(places >> 16, known.pages)]
        pages = np.unique(unknown >> 16)
        if len(unknown) < len(pages) * _ENTRIES_PER_PAGE:
            rows = self._found(_ROWS_AT.format(table=table), [_text(unknown)])
            return _among(places, np.sort(np.append(known.places, rows)))
        if len(pages):
            rows = self._found(_ROWS_BETWEEN.format(table=table), _ranges(pages))
            known = _Rows(np.sort(np.append(known.pages, pages)), np.sort(np.append(known.places, rows)))
            self._rows[table] = known
        return _among(places, known.places)

    def _found(self, query: str, places: list[list[str]]) -> Int64:
        (row,) = self._run(query, ["tid[]"] * len(places), places)
        rows = np.frombuffer(row["rows"] or b"", _PLACE)
        found: Int64 = rows["page"].astype(np.int64) << 16 | rows["at"]
        return found


def _keep(key: _Key, kept: _Kept) -> None:
    """Keeps it, instead of what was used longest ago."""
    _kept[key] = kept
    sizes = [sum(array.nbytes for array in each.entries) for each in _kept.values()]
    while sum(sizes) > _MAX_KEPT_BYTES:
        _kept.popitem(last=False)
        del sizes[0]


def _both(some: Bytes, others: Bytes) -> Bytes:
    """What is set in both."""
    both = min(len(some), len(others))
    return some[:both] & others[:both]


def _page_bits(bits: Bytes, pages: int) -> npt.NDArray[np.bool_]:
    """Of each of so many pages of a table whether all see all of it; not of those behind the map."""
    of_map = np.unpackbits(bits, bitorder="little")[::2][:pages]
    return np.append(of_map, np.zeros(pages - len(of_map), np.uint8)).view(np.bool_)


def _ranges(pages: Int64) -> list[list[str]]:
    """Where ranges of pages begin, and what is behind each."""
    is_first = np.diff(pages, prepend=-2) != 1
    return [_text(pages[is_first] << 16), _text(pages[np.append(is_first[1:], True)] + 1 << 16)]


def _among(values: Int64, rising: Int64) -> npt.NDArray[np.bool_]:
    """Which of the values are among rising ones."""
    if len(rising) == 0:
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(rising, values), len(rising) - 1)
    found: npt.NDArray[np.bool_] = rising[at] == values
    return found


def _text(places: Int64) -> list[str]:
    return [f"({place >> 16},{place & 0xFFFF})" for place in places.tolist()]


def _is_of(index: Mapping[str, Any], table: str, definition: str, condition: str) -> bool:
    """Whether an index has what a definition matches: its name says of which predicate it was made.

    EXPLAIN would say it, too. But inside a query that Citus runs in this very session it makes Citus run what follows
    over a connection to itself, which fails (13.2).
    """
    keys, included = index["columns"][:3], index["columns"][3:]
    if keys != ["user_id", "time", "event_id"]:
        return False
    if definition == "any":
        return bool(index["has_every_row"])
    partition, name = (quoted.rsplit(".", 1)[-1] for quoted in (table, index["name"]))
    suffix = index_suffix(definition, condition, included)
    shard = re.fullmatch(r"(.+)(_\d+)", partition)
    return name == f"{partition}_{suffix}" or (shard is not None and name == f"{shard[1]}_{suffix}{shard[2]}")


def _bits(pages: bytes, of: int) -> Bytes:
    """The bits of so many pages of a table, of the pages of its visibility map."""
    parts = [pages[at + _MAP_HEADER : at + _PAGE] for at in range(0, len(pages), _PAGE)]
    return np.frombuffer(b"".join(parts)[: -(-of // 4)], np.uint8)
