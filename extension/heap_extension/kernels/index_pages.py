"""Reads the events of a definition from the pages of its index: an index-only scan without the executor.

PostgreSQL's own index-only scans rest on the same: where the visibility map says of a page of the table that all see
all of it, an entry of the index is a row that everybody sees. Here the map is read before the index and after it, under
the snapshot of the query. A row that went earlier has no entry any more once its page's bit is set; one that comes
later clears the bit, and nobody sets it while there are snapshots that do not see the row. So what is set both times is
right. Rows of all other pages, few where VACUUM was lately, are asked for by their places, and the users of those that
are not found there by the index, as without this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heap_extension.kernels.btree import Entries, UnreadableError, entries
from heap_extension.kernels.events import Events, Int64, joined

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

_indexes: dict[tuple[str, str], int] = {}
"""By table and query the oid of an index whose entries, in their order, are what the query asks for."""

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
# With the snapshot of the query: an index that is not kept any longer misses no row that this sees.
_INDEX = """
SELECT
    i.indexrelid::pg_catalog.regclass::text AS name, pg_catalog.pg_relation_filenode(i.indexrelid)::bigint AS file,
    pg_catalog.pg_relation_size(i.indexrelid) AS bytes, (SELECT pg_catalog.string_agg(page, '') FROM {map}) AS map,
    pg_catalog.pg_relation_size(i.indrelid) / 8192 AS pages
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
_WHOLE_MAP = """ARRAY(
    SELECT pg_catalog.generate_series(
        0, pg_catalog.pg_relation_size($2, 'vm') / pg_catalog.current_setting('block_size')::bigint - 1
    )
)"""


class _Index(NamedTuple):
    """An index as it is.

    Attributes:
        bytes: its size.
        map: two bits for each page of the table, the lower one set where all see all of it.
    """

    name: str
    file: int
    bytes: int
    map: Bytes


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
        self, table: str, query: str, first_user: int, last_user: int, read_users: Callable[[Int64], Events]
    ) -> Events | None:
        """The events that a query of one partition finds, of these users; None where it has no index to read, or that
        changed meanwhile.

        Args:
            table: the partition, as SQL.
            query: asks for user_id, time and event_id in this order.
            read_users: asks it for the events of these users only.
        """
        if self._rights is None:
            (self._rights,) = self._run(_RIGHTS, [], [])
        if not self._rights["are_as_expected"]:
            return None
        index = self._index(table, query)
        if index is None or index.bytes < _SMALL:
            return None
        read_users(_NOBODY)  # counts as a use of the index, and keeps it and the table until the transaction ends
        try:
            found = entries(lambda pages: self._pages(index.name, pages), first_user, last_user)
            after = self._index(table, query)
        except UnreadableError:
            return None
        except Exception as error:  # plpy.SPIError exists inside PostgreSQL only
            if getattr(error, "sqlstate", None) in _GONE:
                return None
            raise
        if after is None or after[:2] != index[:2]:  # its pages may have been of two files
            return None
        both = min(len(index.map), len(after.map))
        return self._seen(found, index.map[:both] & after.map[:both], table, read_users)

    def _index(self, table: str, query: str) -> _Index | None:
        """The index to read, as it is now; None where there is none."""
        key = table, query
        known = _indexes.get(key)
        if known is not None:
            for row in self._run(self._reading(_INDEX), ["oid", "text"], [known, table]):
                return _Index(row["name"], row["file"], row["bytes"], _bits(row["map"] or b"", row["pages"]))
        (found,) = self._run("SELECT heap._index_of($1, $2) AS index", ["text", "text"], [table, query])
        if found["index"] is None or found["index"] == known:
            return None
        if len(_indexes) >= _MAX_KEPT:
            _indexes.clear()
        _indexes[key] = int(found["index"])
        return self._index(table, query)

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
        bits = np.append(np.unpackbits(visible, bitorder="little"), np.zeros(2, np.uint8)).view(np.bool_)
        seen = bits.take(found.pages.astype(np.int64) * 2, mode="clip")  # pages behind the map have none
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
            is_first = np.diff(pages, prepend=-2) != 1
            firsts, behind = pages[is_first], pages[np.append(is_first[1:], True)] + 1
            rows = self._found(_ROWS_BETWEEN.format(table=table), [_text(firsts << 16), _text(behind << 16)])
            known = _Rows(np.sort(np.append(known.pages, pages)), np.sort(np.append(known.places, rows)))
            self._rows[table] = known
        return _among(places, known.places)

    def _found(self, query: str, places: list[list[str]]) -> Int64:
        (row,) = self._run(query, ["tid[]"] * len(places), places)
        rows = np.frombuffer(row["rows"] or b"", _PLACE)
        found: Int64 = rows["page"].astype(np.int64) << 16 | rows["at"]
        return found


def _among(values: Int64, rising: Int64) -> npt.NDArray[np.bool_]:
    """Which of the values are among rising ones."""
    if len(rising) == 0:
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(rising, values), len(rising) - 1)
    found: npt.NDArray[np.bool_] = rising[at] == values
    return found


def _text(places: Int64) -> list[str]:
    return [f"({place >> 16},{place & 0xFFFF})" for place in places.tolist()]


def _bits(pages: bytes, of: int) -> Bytes:
    """The bits of so many pages of a table, of the pages of its visibility map."""
    parts = [pages[at + _MAP_HEADER : at + _PAGE] for at in range(0, len(pages), _PAGE)]
    return np.frombuffer(b"".join(parts)[: -(-of // 4)], np.uint8)
