"""Reads a shard for the kernels: the rows of a query come as byte strings, one per column, and become arrays.

No row ever is a Python object. Queries name the app's tables; on a worker of Citus these are the shards of the same
users as the row of `<app>.shards` that the kernel was called for.

Events are read partition by partition, each in the order of an index, and merged here. A query of one partition with
its times and users as parameters is planned once in a session: planning looks at every index of the table, thousands
where there are as many definitions. PostgreSQL plans anew what a change of tables, indexes or statistics makes invalid.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain, pairwise
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from heap_extension.kernels.events import ByUser, Events, Int64, changes, joined, nothing, replaced, united
from heap_extension.kernels.kept_events import MAX_BYTES, Key, ReadDifferentlyError, kept_events
from heap_extension.kernels.packs import Packs

__all__ = ["NULL", "Between", "Database", "Periods", "Query", "Scan", "Selection", "Shard", "Users"]

NULL = b"\xff"
"""Stands for null among texts: no UTF-8 has this byte. A zero byte, which no text has, parts them."""


class Database(Protocol):
    """The part of `plpy` that is used."""

    def prepare(self, query: str, argument_types: list[str]) -> Any: ...

    def execute(self, plan: Any, arguments: list[Any]) -> Iterable[Mapping[str, Any]]: ...

    def quote_ident(self, text: str) -> str: ...


Query = Sequence[str]
"""SQL in parts: at odd positions there is the name of a table of the app, unquoted."""


class Scan(TypedDict):
    """One way an event can match, which one index may serve.

    Attributes:
        alias: the name of the table of events in `where`.
        where: a condition on its rows.
        definition: the defined event whose whole condition this is, and nothing beyond it, or "any"; None for all else.
    """

    alias: str
    where: Query
    definition: str | None


class Selection(TypedDict):
    """Which events are read. Instants are microseconds since 2000.

    Attributes:
        scans: an event of any of them, each once.
        start: the first instant.
        end: the instant behind the last.
        first_since: where it is set, of each user only the first event, and that only if it is not before this instant.
        values: SQL over the table of events, of type text: what is read with each event.
        size: about how many there are in the shard, over all time; None when nobody knows.
    """

    scans: list[Scan]
    start: int
    end: int
    first_since: int | None
    values: list[str]
    size: int | None


class Between(NamedTuple):
    """The users from `first` to `last`, both included."""

    first: int
    last: int


class Periods(NamedTuple):
    """Of each user the instants from one to another, both included: microseconds. Those of a user have none in common.

    Attributes:
        users, since, until: int64[n].
    """

    users: Int64
    since: Int64
    until: Int64

    def inside(self, part: _Part, selection: Selection) -> Periods:
        """What of them is in a part and in the range of a selection."""
        since = np.maximum(self.since, max(part.start, selection["start"]))
        until = np.minimum(self.until, min(part.end, selection["end"]) - 1)
        kept = np.flatnonzero(since <= until)
        return Periods(self.users[kept], since[kept], until[kept])


Users = Between | Int64
"""Whose events are read: those of a range, or of a list of few."""


_LEAST, _GREATEST = -(2**63), 2**63 - 1
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

_SHARE_OF_UNKNOWN = 8
"""A selection of which nobody knows the size is taken for this part of all events, unless it has no condition."""

_SAMPLE = 20_000
"""Events whose users are looked at to cut all users into slices."""

_USER, _TIME, _ID = (
    "pg_catalog.int8send(user_id)", "pg_catalog.timestamptz_send(time)", "pg_catalog.int8send(event_id)"
)  # fmt: skip


class _Part(NamedTuple):
    """A partition, or all of the events: its quoted name, and from which instant to before which its events are."""

    table: str
    start: int = _LEAST
    end: int = _GREATEST

    def is_inside(self, selection: Selection) -> bool:
        return self.start >= selection["start"] and self.end <= selection["end"]


class _Partitions(NamedTuple):
    """The partitions of a table.

    Attributes:
        state: another one after any change of them.
        by_time: those of a range of time, in its order.
        rest: the default partition, which has the events of all other times.
    """

    state: bytes | None
    by_time: list[_Part]
    rest: _Part | None

    def touched(self, start: int, end: int) -> list[_Part]:
        """Those with events from an instant to before another."""
        touched = [part for part in self.by_time if part.start < end and part.end > start]
        covered = start
        for part in touched:
            if part.start > covered:
                break
            covered = part.end
        return touched if covered >= end or self.rest is None else [*touched, self.rest]


class _Look(NamedTuple):
    """What is looked up once in each call.

    Attributes:
        partitions: as the snapshot has them.
        readable: whether the caller may read each, and sees all rows.
        packs_readable: whether they may read packs, too.
        serializable: PostgreSQL must see what such a transaction reads.
    """

    partitions: _Partitions
    readable: bool
    packs_readable: bool
    serializable: bool


class _Names(NamedTuple):
    """What the tables of a shard are called, by the app's names for them.

    Attributes:
        own: the name of the shard of `<app>.shards`: while it is the same, so are the others.
        tables: their quoted names.
    """

    own: str
    tables: dict[str, str]


class _Settled(NamedTuple):
    """A partition that goes on, of which packs are read, and the rows of the pages that changed since.

    Attributes:
        part: the partition.
        stamp: that of its packs.
        ranges: int64[n, 2], rising: the pages that changed, from one to before another.
        sizes: how many events the packs have, by condition.
        matching: the rows of the pages that changed that match each condition.
    """

    part: _Part
    stamp: bytes
    ranges: Int64
    sizes: dict[str, int]
    matching: dict[str, Events]

    def updated(self, events: Events, rows: Events, users: Int64 | None = None) -> Events:
        """Events as packs have them, without those on pages that changed, and with the rows of these.

        Args:
            users: of whom, rising; None for everybody.
        """
        gone = np.zeros(0, np.int64) if events.pages is None else events.pages.inside(self.ranges)
        if users is not None:
            places = events.places_of(users)
            there = places.searchsorted(gone)
            gone = there[np.take(places, there, mode="clip") == gone] if len(places) else places
            events = replace(events, pages=None).at(places)
        return replaced(events, gone, rows)


class _Parameter(NamedTuple):
    """A parameter of a query: its type, and the condition that it stands in; or, of rows that the events are joined to,
    what stands before their table."""

    type: str
    value: Any
    condition: str = ""
    joined: str = ""


_OF_ASKED = [
    _Parameter("", None, condition)
    for condition in ("user_id = asked.asked_user", "time >= asked.since", "time <= asked.until")
]
"""The bounds of what is looked up for a user, as conditions."""

_MAX_KEPT = 1_000_000
"""Characters of the queries whose plans a session keeps: about 2,000 plans of 50 kB."""

_PACKED_PER_LOOKUP = 500
"""Events read from a pack in the time that a user is looked up in one partition: 7 ns each against 3.5 us of processor
time."""

_FEW_EVENTS = 5_000
"""A partition that goes on with no more expected in it is read from its indexes: to ask what changed would cost as
much."""

_READ_PER_ROW = 4
"""Events read from an index in the time that a row of a page that changed is tried: 110 ns each against 450."""

_plans: OrderedDict[tuple[str, ...], Any] = OrderedDict()
"""By query and types of its parameters, the one used longest ago first."""

_partitions: dict[tuple[str, int], _Partitions] = {}
"""By name and oid of the table of events."""

_names: dict[tuple[int, str], _Names] = {}
"""By the oid of the shard of `<app>.shards` and the app's schema."""

_ranges: dict[tuple[str, int, int], list[Between]] = {}
"""By the name of the table of events, the oid of the shard of `<app>.shards`, and how many were wanted."""

_NO_SUCH_TABLE = "42P01"
_NO_PAGES = b""
"""The stamp of a table without pages, and so without rows."""

# A lateral subquery runs once for each row before it: in the order of the users, and in the index's for each.
_LOOKED_UP = """
SELECT found.*
FROM (
    SELECT asked_user, {since} AS since, {until} AS until
    FROM unnest($1::pg_catalog.int8[], $2::pg_catalog.int8[], $3::pg_catalog.int8[])
        AS asked (asked_user, asked_since, asked_until)
) AS asked
CROSS JOIN LATERAL ({events}) AS found
"""

_EVENTS_OF_SPANS = """
SELECT inside.user_id, inside.time, inside.event_id
FROM (
    SELECT
        span.user_id,
        timestamptz '2000-01-01 00:00+00' + span.first * interval '1 microsecond' AS first,
        timestamptz '2000-01-01 00:00+00' + span.last * interval '1 microsecond' AS last
    FROM unnest($1::pg_catalog.int8[], $2::pg_catalog.int8[], $3::pg_catalog.int8[]) AS span (user_id, first, last)
) AS span
CROSS JOIN LATERAL (
    SELECT e.user_id, e.time, e.event_id FROM {events} AS e
    WHERE e.user_id = span.user_id AND e.time >= span.first AND e.time <= span.last
    ORDER BY e.user_id, e.time, e.event_id
) AS inside
"""

# A range of rows by their places is read for each row before it.
_ROWS_OF_PAGES = """
SELECT on_pages.user_id, on_pages.time, on_pages.event_id, {matches} AS matches
FROM unnest($1::pg_catalog.tid[], $2::pg_catalog.tid[]) AS pages (first_place, place_behind)
CROSS JOIN LATERAL (
    SELECT * FROM {table} AS e WHERE e.ctid >= pages.first_place AND e.ctid < pages.place_behind OFFSET 0
) AS on_pages
WHERE {matching}
ORDER BY on_pages.user_id, on_pages.time, on_pages.event_id
"""

_SHARD_BESIDE = """
SELECT theirs.shardid AS shard
FROM pg_catalog.pg_dist_shard AS own
JOIN pg_catalog.pg_dist_shard AS theirs ON theirs.shardminvalue = own.shardminvalue
WHERE own.shardid = $1 AND theirs.logicalrelid = pg_catalog.to_regclass($2)
"""

# A change of partitions makes other rows of pg_inherits. Read with the snapshot of the query, they are the partitions
# that had the events it sees, also while rows move from one to another. Naming the table is as if they were read
# through it: that right is needed, and no partition is dropped until the end of the transaction.
_LOOK = """
SELECT
    $1::pg_catalog.regclass::text AS own,
    pg_catalog.to_regclass($2)::pg_catalog.oid AS events,
    pg_catalog.string_agg(
        pg_catalog.oidsend(inhrelid) || pg_catalog.xidsend(xmin) || pg_catalog.tidsend(ctid)
        || pg_catalog.boolsend(inhdetachpending) || pg_catalog.textsend(inhrelid::pg_catalog.regclass::text), ''
    ) AS state,
    pg_catalog.bool_and(
        pg_catalog.has_table_privilege(inhrelid, 'SELECT') AND NOT pg_catalog.row_security_active(inhrelid)
    ) AND NOT pg_catalog.row_security_active(pg_catalog.to_regclass($2)::pg_catalog.oid) AS readable,
    pg_catalog.has_table_privilege(pg_catalog.to_regclass($3)::pg_catalog.oid, 'SELECT') AS packs_readable,
    pg_catalog.current_setting('transaction_isolation') = 'serializable' AS serializable,
    pg_catalog.pg_size_bytes(nullif(pg_catalog.current_setting('heap.session_cache', true), '')) AS session_cache,
    EXISTS (SELECT FROM {events} WHERE false) AS named
FROM pg_catalog.pg_inherits WHERE inhparent = pg_catalog.to_regclass($2)
"""

# By functions, since Citus hides the rows of shards in pg_class from most sessions.
_PARTITIONS = """
SELECT
    p.inhrelid::pg_catalog.regclass::text AS name,
    pg_catalog.timestamptz_send(pg_catalog.substring(p.bounds, '"time" >= ''([^'']+)''')::timestamptz) AS first,
    pg_catalog.timestamptz_send(pg_catalog.substring(p.bounds, '"time" < ''([^'']+)''')::timestamptz) AS behind,
    p.inhrelid = t.partdefid AS is_default
FROM (
    SELECT inhrelid, inhparent, pg_catalog.pg_get_partition_constraintdef(inhrelid) AS bounds
    FROM pg_catalog.pg_inherits WHERE inhparent = pg_catalog.to_regclass($1) AND NOT inhdetachpending
) AS p
JOIN pg_catalog.pg_partitioned_table AS t ON t.partrelid = p.inhparent
"""


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
        self._names: _Names | None = None
        self._looked: _Look | None = None
        self._touched: dict[tuple[int, int], list[_Part]] = {}
        self._stamps: dict[str, bytes | None] = {}
        self._packs: Packs | None = None
        self._settled_parts: list[_Settled] | None = None
        self._known_events: int | None = None
        self._expected: Sequence[Selection] = ()

    def expect(self, selections: Sequence[Selection]) -> None:
        """Says which events will be wanted, so that what is there of them is asked for at once."""
        self._expected = selections

    def events(self, selection: Selection, users: Users | Periods | None = None) -> Events:
        """The events of a selection.

        Args:
            users: whose; None for everybody's.
        """
        if isinstance(users, np.ndarray) and len(users) == 0:
            return nothing(len(selection["values"]))
        found = united([self._events_of(scan, selection, users) for scan in selection["scans"]])
        if selection["first_since"] is not None:
            positions = changes(found.users)
            found = found.at(positions[found.times[positions] >= selection["first_since"]])
        return found

    def runs(self, selection: Selection, users: Users | Periods | None = None) -> list[Events]:
        """The events of a selection as they were read, in one run or more that have no instant in common: merging them
        is left to the caller, who may have to sort them anyway.

        Args:
            users: whose; None for everybody's.
        """
        if len(selection["scans"]) > 1 or selection["first_since"] is not None:
            return [self.events(selection, users)]
        runs: list[Events] = []
        if users is None or isinstance(users, Between) or len(_listed(users)):
            runs = self._runs_of(selection["scans"][0], selection, users)
        return runs or [nothing(len(selection["values"]))]

    def by_user(self, selection: Selection, users: Users | Periods | None = None) -> Iterator[Iterable[ByUser]]:
        """As `runs`, of which the users are not wanted one by one: each in blocks, which fit into a processor's cache.
        Two runs may have instants in common, but no event; two blocks of a run the user who is the last of one.

        Args:
            users: whose; None for everybody's.
        """
        if len(selection["scans"]) > 1 or selection["first_since"] is not None or not isinstance(users, Between):
            for run in self.runs(selection, users):
                yield ByUser.of(run).blocks()
            return
        (scan,) = selection["scans"]
        condition = self._text(scan["where"])
        parts, _ = self._filled(scan, selection)
        packed = self._usable_packs(parts, scan, selection)

        def inside(block: ByUser) -> ByUser:
            there = (block.times >= selection["start"]) & (block.times < selection["end"])
            return block.at(np.flatnonzero(there))

        for part in parts:
            settled = self._settled_of([part], scan, selection)
            if part.table in packed:
                blocks = self._packs_beside().by_user(condition, part.table, *users)
            elif settled is not None:
                yield ByUser.of(_within(settled.matching[condition].of_range(*users), part, selection, None)).blocks()
                blocks = self._packs_beside().by_user(condition, part.table, *users, without=settled.ranges)
            else:
                blocks = ByUser.of(self._run(part, scan, selection, users)).blocks()
            yield blocks if part.is_inside(selection) else map(inside, blocks)

    def grouped(
        self, selection: Selection, by: Sequence[str], aggregates: Sequence[str], users: Users | Periods | None = None
    ) -> tuple[list[Int64], list[list[bytes]]]:
        """The events of a selection in groups, in no order. A group comes once per partition, scan and period.

        Args:
            by: columns of type bigint, which with the selection's values make a group; nulls come as 0.
            aggregates: what is read of each group, SQL of type bigint or timestamptz that gives no nulls.
            users: whose, or of which periods; None for everybody's.

        Returns:
            The columns and the aggregates, and the values.
        """
        numbers = [f"pg_catalog.int8send(coalesce({name}, 0))" for name in by]
        numbers += [
            f"pg_catalog.{'timestamptz_send' if '(time)' in aggregate else 'int8send'}(aggregate_{at})"
            for at, aggregate in enumerate(aggregates)
        ]
        names = [f"value_{at}" for at in range(len(selection["values"]))]
        columns = [*by, *(f"{value} AS {name}" for value, name in zip(selection["values"], names, strict=True))]
        shown = [*columns, *(f"{aggregate} AS aggregate_{at}" for at, aggregate in enumerate(aggregates))]
        group_by = ", ".join(str(at) for at in range(1, len(columns) + 1))
        nothing_found: list[Int64] = [np.zeros(0, np.int64) for _ in numbers]
        found: list[tuple[list[Int64], list[list[bytes]]]] = [(nothing_found, [[] for _ in names])]
        for scan in selection["scans"]:
            for part in self._parts(scan, selection):
                bounds = [*([] if part.is_inside(selection) else _times(selection)), *_of_any_order(users, part)]
                query = f"SELECT {', '.join(shown)} FROM {self._matching(part, scan, bounds)} GROUP BY {group_by}"
                found.append(self._columns(query, numbers, bounds, names))
        return (
            [np.concatenate(arrays) for arrays in zip(*(arrays for arrays, _ in found), strict=True)],
            [list(chain.from_iterable(texts)) for texts in zip(*(texts for _, texts in found), strict=True)],
        )

    def known_events(self) -> int:
        """About how many events the shard has, as its statistics say."""
        if self._known_events is None:
            (row,) = self._rows(
                "SELECT coalesce(sum(pg_catalog.pg_stat_get_live_tuples(inhrelid)), 0)::pg_catalog.int8 AS events"
                " FROM pg_catalog.pg_inherits WHERE inhparent = pg_catalog.to_regclass($1)",
                [_Parameter("text", self._table("events"))],
            )
            self._known_events = int(row["events"])
        return self._known_events

    def size_of(self, selection: Selection) -> int:
        """About how many events a selection has."""
        return _known_size(selection, self.known_events() if selection["size"] is None else 0)

    def measured(self, selection: Selection) -> Selection:
        """The selection with a size: where nobody knows it, that of all events."""
        return selection if selection["size"] is not None else {**selection, "size": self.known_events()}

    def slices_of(self, selections: Sequence[Selection], size: int) -> list[Users | None]:
        """Users, such that there are about `size` events of each selection of theirs; None for everybody."""
        every = self.known_events() if any(selection["size"] is None for selection in selections) else 0
        count = -(-max(_known_size(selection, every) for selection in selections) // size)
        return [None] if count < 2 else list(self._ranges(count))

    def _ranges(self, count: int) -> list[Between]:
        """At most so many ranges that all users are in, with about as many events in each: of a sample, as many. A
        session keeps them; they are right whoever came since."""
        key = self._table("events"), self._relation, count
        if key not in _ranges:
            share = min(100.0, 100 * _SAMPLE / max(self.known_events(), 1))
            sampled = f"SELECT user_id FROM {self._table('events')} TABLESAMPLE SYSTEM ($1)"
            (users,), _ = self._columns(sampled, [_USER], [_Parameter("float4", share)])
            users.sort()
            begins = np.unique(users[np.arange(1, count) * len(users) // count]) if len(users) else users
            bounds = [_LEAST, *begins[begins > _LEAST].tolist(), _GREATEST + 1]
            _ranges[key] = [Between(first, behind - 1) for first, behind in pairwise(bounds)]
        return _ranges[key]

    def read(self, query: Query, texts: Sequence[str] = ()) -> tuple[Int64, list[list[bytes]]]:
        """The users of a query's rows, in their order, and other columns of theirs.

        Args:
            query: it has a column user_id.
            texts: its columns of type text; they come as UTF-8, null as `NULL`.
        """
        (users,), values = self._columns(self._text(query), [_USER], [], texts)
        return users, values

    def events_of_spans(self, users: Int64, firsts: Int64, lasts: Int64) -> Events:
        """All events of the users, rising, each from an instant to another, both included; where a user has several
        spans, those of the first, then those of the next."""
        spans = [_Parameter("text", f"{{{','.join(map(str, array.tolist()))}}}") for array in (users, firsts, lasts)]
        query = _EVENTS_OF_SPANS.format(events=self._table("events"))
        (of, times, ids), _ = self._columns(query, [_USER, _TIME, _ID], spans)
        return Events(of, times, lambda: ids)

    def _events_of(self, scan: Scan, selection: Selection, users: Users | Periods | None) -> Events:
        runs = self._runs_of(scan, selection, users)
        return joined(runs) if runs else nothing(len(selection["values"]))

    def _runs_of(self, scan: Scan, selection: Selection, users: Users | Periods | None) -> list[Events]:
        parts, stamps = self._filled(scan, selection)
        if isinstance(users, Between):
            return self._read(parts, scan, selection, users)
        settled = self._settled_of(parts, scan, selection)
        if settled is not None:
            stamps[settled.part.table] = settled.stamp
        if not stamps:
            return self._read(parts, scan, selection, users)
        still = [part for part in parts if part.table in stamps]
        key, kept_stamps = self._key(still, scan, selection), tuple(stamps[part.table] for part in still)

        def read() -> Events:
            over = [part for part in still if settled is None or part != settled.part]
            runs = self._read(over, scan, selection, None)
            if settled is not None:
                runs.append(_within(self._settled_events(settled, scan), settled.part, selection, None))
            return joined(runs)

        events = kept_events.find(key, kept_stamps, read)
        if events is None:
            if users is not None and not self._sooner_whole(key, kept_stamps, still, scan, selection, users):
                return self._read(parts, scan, selection, users)
            events = read()
            kept_events.keep(key, kept_stamps, events)
        if settled is None:
            events = events if users is None else events.of_few(_listed(users))
        else:
            events = self._now(events, read, settled, scan, selection, users)
        changing = [part for part in parts if part.table not in stamps]
        return [events, *self._read(changing, scan, selection, users)]

    def _filled(self, scan: Scan, selection: Selection) -> tuple[list[_Part], dict[str, bytes]]:
        """What to read for a scan, without what has no pages, and the stamps of those that have one."""
        parts = self._parts(scan, selection)
        stamps = self._stamps_of(parts, scan, selection)
        parts = [part for part in parts if stamps.get(part.table) != _NO_PAGES]
        return parts, {table: stamp for table, stamp in stamps.items() if stamp != _NO_PAGES}

    def _now(
        self,
        kept: Events,
        read: Callable[[], Events],
        settled: _Settled,
        scan: Scan,
        selection: Selection,
        users: Int64 | Periods | None,
    ) -> Events:
        """Events that packs and sessions keep, as they are now, those of some users.

        Args:
            read: reads them anew, should their ids be needed and be others.
        """
        rows = _within(settled.matching[self._text(scan["where"])], settled.part, selection, users)

        def now(events: Events) -> Events:
            return settled.updated(events, rows, None if users is None else _listed(users))

        def read_ids() -> Int64:
            try:
                return found.ids
            except ReadDifferentlyError:
                return now(read()).ids

        try:
            found = now(kept)
        except ReadDifferentlyError:
            found = now(read())
        return Events(found.users, found.times, read_ids)

    def _sooner_whole(
        self,
        key: Key,
        stamps: tuple[bytes, ...],
        parts: Sequence[_Part],
        scan: Scan,
        selection: Selection,
        users: Int64 | Periods,
    ) -> bool:
        """Whether to read all events of these partitions from packs, and keep them, takes no longer than the look-ups
        of users that were wanted up to now."""
        packed = self._usable_packs(parts, scan, selection)
        settled = self._settled_of(parts, scan, selection)
        if settled is not None:
            packed[settled.part.table] = settled.sizes[self._text(scan["where"])]
        size = sum(packed.values())
        if len(packed) < len(parts):
            return False
        lookups = sum(len(_inside(users, part, selection)) for part in parts)
        if kept_events.holds(size):
            lookups = kept_events.looked_up(key, stamps, lookups)
        return size <= lookups * _PACKED_PER_LOOKUP

    def _key(self, parts: Sequence[_Part], scan: Scan, selection: Selection) -> Key:
        """What these partitions have of a scan: the same for all selections that ask for the whole of them."""
        start = max(selection["start"], min(part.start for part in parts))
        end = min(selection["end"], max(part.end for part in parts))
        return Key(self._text(scan["where"]), tuple(part.table for part in parts), start, end)

    def _stamps_of(self, parts: Sequence[_Part], scan: Scan, selection: Selection) -> dict[str, bytes]:
        """The stamps of those partitions that have one, if nothing but their rows says what is read of them."""
        if not self._is_of_index(scan, selection):
            return {}
        missing = {part.table for part in parts} - self._stamps.keys()
        if missing:
            for scan, selection in self._expected_scans():
                missing.update(part.table for part in self._parts(scan, selection))
            asked = sorted(missing - self._stamps.keys())
            (row,) = self._rows("SELECT heap._page_stamps($1) AS stamps", [_Parameter("text[]", asked)])
            self._stamps.update(zip(asked, row["stamps"], strict=True))
        stamps = {part.table: self._stamps[part.table] for part in parts}
        return {table: stamp for table, stamp in stamps.items() if stamp is not None}

    def _read(
        self, parts: Sequence[_Part], scan: Scan, selection: Selection, users: Users | Periods | None
    ) -> list[Events]:
        """The events of each of the partitions, from packs and indexes."""
        packed = self._packed(parts, scan, selection, users)
        return [
            packed.get(part.table)
            or self._partly_packed(part, scan, selection, users)
            or self._run(part, scan, selection, users)
            for part in parts
        ]

    def _is_of_index(self, scan: Scan, selection: Selection) -> bool:
        """Whether what is read is what the index of a definition has, and the caller may know all of it."""
        found = self._look()
        return (
            scan["definition"] is not None
            and len(scan["where"]) == 1
            and not selection["values"]
            and found.readable
            and not found.serializable
        )

    def _expected_scans(self) -> list[tuple[Scan, Selection]]:
        scans = [(scan, selection) for selection in self._expected for scan in selection["scans"]]
        return [(scan, selection) for scan, selection in scans if self._is_of_index(scan, selection)]

    def _packed(
        self, parts: Sequence[_Part], scan: Scan, selection: Selection, users: Users | Periods | None
    ) -> dict[str, Events]:
        """The events of those partitions that have a pack of the scan's condition, by table; without those in which few
        users are sooner looked up."""
        usable = self._usable_packs(parts, scan, selection)
        if self._packs is None or not usable:
            return {}
        condition = self._text(scan["where"])
        few = None if users is None or isinstance(users, Between) else users
        first, last = users if isinstance(users, Between) else (_LEAST, _GREATEST)
        if few is not None:
            first, last = int(_listed(few)[0]), int(_listed(few)[-1])
        found: dict[str, Events] = {}
        for part in parts:
            if part.table not in usable:
                continue
            if few is not None and _are_few(few, part, selection, usable[part.table]):
                continue
            events = self._packs.events(condition, part.table, first, last)
            found[part.table] = _within(events, part, selection, users)
        return found

    def _usable_packs(self, parts: Sequence[_Part], scan: Scan, selection: Selection) -> dict[str, int]:
        """How many events the packs of the scan's condition have, of those partitions that have one, by table."""
        stamps = self._stamps_of(parts, scan, selection)
        if not stamps or not self._look().packs_readable:
            return {}
        return self._packs_beside().usable(self._text(scan["where"]), stamps)

    def _packs_beside(self) -> Packs:
        """The packs beside the shard, where those of what is expected in partitions with a stamp were looked for."""
        if self._packs is None:
            self._packs = Packs(self._run_kept, self._table("packs"))
            conditions = {self._text(expected["where"]) for expected, _ in self._expected_scans()}
            stamps = {table: stamp for table, stamp in self._stamps.items() if stamp}
            if stamps:
                self._packs.find(conditions, stamps)
        return self._packs

    def _partly_packed(
        self, part: _Part, scan: Scan, selection: Selection, users: Users | Periods | None
    ) -> Events | None:
        """The events of a partition that goes on, those on pages that did not change from a pack; None where an index
        gives them sooner."""
        settled = self._settled_of([part], scan, selection)
        if settled is None:
            return None
        first, last = users if isinstance(users, Between) else (_LEAST, _GREATEST)
        rows = settled.matching[self._text(scan["where"])]
        if isinstance(users, Between):
            rows = rows.of_range(*users)
        elif users is not None and _are_few(users, part, selection, settled.sizes[self._text(scan["where"])]):
            return None
        events = settled.updated(self._settled_events(settled, scan, first, last), rows)
        return _within(events, part, selection, users)

    def _settled_events(self, settled: _Settled, scan: Scan, first: int = _LEAST, last: int = _GREATEST) -> Events:
        """What the pack has of the users from one to another, those on pages that changed among them."""
        condition, table = self._text(scan["where"]), settled.part.table
        return self._packs_beside().events(condition, table, first, last, with_pages=True)

    def _settled_of(self, parts: Sequence[_Part], scan: Scan, selection: Selection) -> _Settled | None:
        """The one of these partitions that goes on and is read from a pack; of several the largest."""
        if not self._is_of_index(scan, selection):
            return None
        if self._settled_parts is None:
            self._settled_parts = self._find_settled()
        condition = self._text(scan["where"])
        found = [settled for settled in self._settled_parts if settled.part in parts and condition in settled.sizes]
        return max(found, key=lambda settled: settled.sizes[condition], default=None)

    def _find_settled(self) -> list[_Settled]:
        """Of the partitions that go on and that this call is about, those of which packs and the pages that changed are
        sooner read than indexes."""
        expected, found = self._expected_scans(), self._look()
        few = _FEW_EVENTS * max(len(found.partitions.by_time), 1)
        if not found.packs_readable or sum(self.size_of(selection) for _, selection in expected) <= few:
            return []
        conditions: dict[_Part, set[str]] = {}
        for scan, selection in expected:
            for part in self._parts(scan, selection):
                if self._stamps.get(part.table) is None:
                    conditions.setdefault(part, set()).add(self._text(scan["where"]))
        if not conditions:
            return []
        parts = {part.table: part for part in conditions}
        settled = []
        for row in self._rows("SELECT * FROM heap._changing_pages($1)", [_Parameter("text[]", sorted(parts))]):
            part, stamp = parts[row["name"]], row["stamp"]
            sizes = self._sizes_of(part.table, stamp, conditions[part])
            if sum(sizes.values()) > row["live_rows"] * _READ_PER_ROW:
                ranges = np.frombuffer(row["ranges"], np.int64).reshape(-1, 2)
                rows = self._rows_of_pages(part.table, ranges, sorted(sizes))
                settled.append(_Settled(part, stamp, ranges, sizes, rows))
        return settled

    def _sizes_of(self, table: str, stamp: bytes, conditions: set[str]) -> dict[str, int]:
        """How many events those packs of these conditions have that say on which page each is."""
        packs = self._packs_beside()
        packs.find(conditions, {table: stamp})
        sizes = {condition: packs.usable(condition, {table: stamp}).get(table, 0) for condition in conditions}
        return {condition: size for condition, size in sizes.items() if size and packs.has_pages(condition, table)}

    def _rows_of_pages(self, table: str, ranges: Int64, conditions: Sequence[str]) -> dict[str, Events]:
        """The rows on these pages that match each condition, all tried in one go."""
        query = _ROWS_OF_PAGES.format(
            table=table,
            matches=" + ".join(f"CASE WHEN {one} THEN {1 << at} ELSE 0 END" for at, one in enumerate(conditions)),
            matching=" OR ".join(f"({one})" for one in conditions),
        )
        places = [
            _Parameter("text", "{" + ",".join(f'"({page},0)"' for page in pages) + "}") for pages in ranges.T.tolist()
        ]
        (users, times, ids, matches), _ = self._columns(query, [_USER, _TIME, _ID, "int8send(matches)"], places)
        every = Events(users, times, lambda: ids)
        return {one: every.at(np.flatnonzero(matches >> at & 1)) for at, one in enumerate(conditions)}

    def _run(self, part: _Part, scan: Scan, selection: Selection, users: Users | Periods | None) -> Events:
        """The events of one partition."""
        if isinstance(users, Periods):
            return self._looked_up(part, scan, selection, users)
        bounds = [*([] if part.is_inside(selection) else _times(selection)), *_of_users(users)]
        query = self._select(part, scan, selection["values"], bounds)
        names = [f"value_{at}" for at in range(len(selection["values"]))]
        (of, times), values = self._columns(query, [_USER, _TIME], bounds, names)
        return Events(of, times, lambda: self._columns(query, [_ID], bounds)[0][0], values)

    def _looked_up(self, part: _Part, scan: Scan, selection: Selection, stays: Periods) -> Events:
        """The events of users in one partition, each looked up from one instant to another."""
        stays = stays.inside(part, selection)
        names = [f"value_{at}" for at in range(len(selection["values"]))]
        if len(stays.users) == 0:
            return nothing(len(names))
        bounds = [_Parameter("text", f"{{{','.join(map(str, numbers.tolist()))}}}") for numbers in stays]
        query = _LOOKED_UP.format(
            since=_instant_of("asked_since"),
            until=_instant_of("asked_until"),
            events=self._select(part, scan, selection["values"], _OF_ASKED),
        )
        (of, times), values = self._columns(query, [_USER, _TIME], bounds, names)
        return Events(of, times, lambda: self._columns(query, [_ID], bounds)[0][0], values)

    def _select(self, part: _Part, scan: Scan, values: Sequence[str], bounds: Sequence[_Parameter]) -> str:
        """The events of a part that fulfil the condition and the bounds, in the order of the index."""
        columns = ["user_id", "time", "event_id", *(f"{value} AS value_{at}" for at, value in enumerate(values))]
        return f"SELECT {', '.join(columns)} FROM {self._matching(part, scan, bounds)} ORDER BY user_id, time, event_id"

    def _matching(self, part: _Part, scan: Scan, bounds: Sequence[_Parameter]) -> str:
        """What stands behind FROM: the events of a part that fulfil the condition and the bounds."""
        where = [f"({self._text(scan['where'])})"]
        where += [bound.condition.format(f"${at}") for at, bound in enumerate(bounds, start=1) if bound.condition]
        joined_to = "".join(bound.joined.format(f"${at}") for at, bound in enumerate(bounds, start=1))
        return f"{joined_to}{part.table} AS {self._database.quote_ident(scan['alias'])} WHERE {' AND '.join(where)}"

    def _columns(
        self, query: str, numbers: Sequence[str], bounds: Sequence[_Parameter], texts: Sequence[str] = ()
    ) -> tuple[list[Int64], list[list[bytes]]]:
        """The columns of a query's rows, in their order."""
        columns = [f"pg_catalog.string_agg({number}, NULL) AS n{at}" for at, number in enumerate(numbers)]
        columns += [
            f"pg_catalog.string_agg(coalesce(pg_catalog.convert_to({text}, 'UTF8'), '\\xff'), '\\x00') AS t{at}"
            for at, text in enumerate(texts)
        ]
        (row,) = self._rows(f"SELECT {', '.join(columns)} FROM ({query}) AS rows", bounds)
        return (
            [np.frombuffer(row[f"n{at}"] or b"", ">i8").astype(np.int64) for at in range(len(numbers))],
            [[] if row[f"t{at}"] is None else row[f"t{at}"].split(b"\0") for at in range(len(texts))],
        )

    def _run_kept(self, query: str, types: Sequence[str], values: Sequence[Any]) -> Iterable[Mapping[str, Any]]:
        return self._rows(query, [_Parameter(name, value) for name, value in zip(types, values, strict=True)])

    def _rows(self, query: str, parameters: Sequence[_Parameter] = ()) -> Iterable[Mapping[str, Any]]:
        """Runs a query by the plan that the session keeps of it."""
        key = (query, *(parameter.type for parameter in parameters))
        if key not in _plans:
            _plans[key] = self._database.prepare(query, list(key[1:]))
            kept = sum(len(query) for query, *_ in _plans)
            while kept > _MAX_KEPT and len(_plans) > 1:
                (dropped, *_), _ = _plans.popitem(last=False)
                kept -= len(dropped)
        _plans.move_to_end(key)
        return self._database.execute(_plans[key], [parameter.value for parameter in parameters])

    def _parts(self, scan: Scan, selection: Selection) -> list[_Part]:
        """What to read for a scan: the partitions that the selection touches. All events in one where a condition reads
        other tables, which would be read again for each partition, or where the caller may read the events but not each
        partition."""
        partitions, readable, *_ = self._look()
        if not readable or len(scan["where"]) > 1:
            return [self._everything()]
        between = selection["start"], selection["end"]
        if between not in self._touched:
            self._touched[between] = partitions.touched(*between)
        return self._touched[between]

    def _look(self) -> _Look:
        """What is looked up once: with it, that the names kept in the session are still those of the tables."""
        if self._looked is None:
            row = self._look_by_kept_names() or self._look_by(self._find_names())
            key = self._table("events"), int(row["events"])
            if key not in _partitions or _partitions[key].state != row["state"]:
                _partitions[key] = self._find_partitions(row["state"])
            kept_events.limit(MAX_BYTES if row["session_cache"] is None else int(row["session_cache"]))
            readable, packs_readable = bool(row["readable"]), bool(row["packs_readable"])
            self._looked = _Look(_partitions[key], readable, packs_readable, bool(row["serializable"]))
        return self._looked

    def _look_by(self, names: _Names) -> Mapping[str, Any]:
        self._names = names
        events, packs = names.tables["events"], names.tables.get("packs")
        parameters = [_Parameter("oid", self._relation), _Parameter("text", events), _Parameter("text", packs)]
        (row,) = self._rows(_LOOK.format(events=events), parameters)
        return row

    def _look_by_kept_names(self) -> Mapping[str, Any] | None:
        own, tables = _names.get((self._relation, self._schema), (None, {}))
        if own is None:
            return None
        try:
            row = self._look_by(_Names(own, dict(tables)))
        except Exception as error:  # plpy.SPIError exists inside PostgreSQL only
            if getattr(error, "sqlstate", None) != _NO_SUCH_TABLE:
                raise
            return None
        return row if row["own"] == own else None

    def _find_names(self) -> _Names:
        # Citus hides the rows of shards in pg_class from most sessions.
        (own,) = self._rows("SELECT $1::pg_catalog.regclass::text AS name", [_Parameter("oid", self._relation)])
        names = _Names(str(own["name"]), {})
        self._name(names, "events")
        with suppress(LookupError):  # none before an app of an earlier version is brought to this one
            self._name(names, "packs")
            _names[self._relation, self._schema] = _Names(names.own, dict(names.tables))
        return names

    def _find_partitions(self, state: bytes | None) -> _Partitions:
        by_time, rest = [], None
        for row in self._rows(_PARTITIONS, [_Parameter("text", self._table("events"))]):
            if row["name"].isdigit():  # dropped since the snapshot was taken: its events are gone for everybody
                continue
            part = _Part(row["name"], _instant(row["first"], _LEAST), _instant(row["behind"], _GREATEST))
            if row["is_default"]:
                rest = _Part(row["name"])
            else:
                by_time.append(part)
        by_time.sort(key=attrgetter("start"))
        return _Partitions(state, by_time, rest)

    def _everything(self) -> _Part:
        return _Part(self._table("events"))

    def _text(self, query: Query) -> str:
        return "".join(part if at % 2 == 0 else self._table(part) for at, part in enumerate(query))

    def _table(self, name: str) -> str:
        """The quoted name of the table's shard."""
        if self._names is None:
            self._look()
        assert self._names is not None
        if name not in self._names.tables:
            self._name(self._names, name)
        return self._names.tables[name]

    def _name(self, names: _Names, name: str) -> None:
        """Finds what a table's shard is called."""
        schema, quote = self._database.quote_ident(self._schema), self._database.quote_ident
        shard = self._shard_beside(names.own, f"{schema}.{quote(name)}")
        names.tables[name] = f"{schema}.{quote(name if shard is None else f'{name}_{shard}')}"

    def _shard_beside(self, own: str, table: str) -> int | None:
        """The number of a table's shard beside the kernel's; None without Citus."""
        own_shard = re.fullmatch(r".*\bshards_(\d+)", own)
        if own_shard is None:
            return None
        found = list(self._rows(_SHARD_BESIDE, [_Parameter("int8", int(own_shard[1])), _Parameter("text", table)]))
        if len(found) != 1:
            raise LookupError(f"no shard of {table} beside {own}")
        return int(found[0]["shard"])


def _known_size(selection: Selection, every: int) -> int:
    """About how many events a selection has, of `every` there is."""
    if selection["size"] is not None:
        return selection["size"]
    return every if any(scan["definition"] == "any" for scan in selection["scans"]) else every // _SHARE_OF_UNKNOWN


def _within(events: Events, part: _Part, selection: Selection, users: Users | Periods | None) -> Events:
    """Those of a part's events that are in the selection's range, and these users' where they are a list."""
    if not part.is_inside(selection):
        events = events.at(np.flatnonzero((events.times >= selection["start"]) & (events.times < selection["end"])))
    return events if users is None or isinstance(users, Between) else events.of_few(_listed(users))


def _times(selection: Selection) -> list[_Parameter]:
    """The instants of a selection, as bounds."""
    start, end = (str(_EPOCH + timedelta(microseconds=selection[name])) for name in ("start", "end"))
    return [_Parameter("timestamptz", start, "time >= {}"), _Parameter("timestamptz", end, "time < {}")]


def _listed(users: Int64 | Periods) -> Int64:
    return users.users if isinstance(users, Periods) else users


def _inside(users: Int64 | Periods, part: _Part, selection: Selection) -> Int64:
    """Those who are looked up in a part."""
    return users.inside(part, selection).users if isinstance(users, Periods) else users


def _are_few(users: Int64 | Periods, part: _Part, selection: Selection, packed: int) -> bool:
    """Whether to look users up in a part takes less than to read a pack of so many events."""
    return len(_inside(users, part, selection)) * _PACKED_PER_LOOKUP < packed


def _of_users(users: Between | Int64 | None) -> list[_Parameter]:
    match users:
        case None:
            return []
        case Between(first=first, last=last):
            return [_Parameter("int8", first, "user_id >= {}"), _Parameter("int8", last, "user_id <= {}")]
    ids = ",".join(map(str, users.tolist()))
    return [_Parameter("text", f"{{{ids}}}", "user_id = ANY ({}::pg_catalog.int8[])")]


def _of_any_order(users: Users | Periods | None, part: _Part) -> list[_Parameter]:
    """As `_of_users`, for reads in no order: no index is worth going through the table by for a range of users."""
    if isinstance(users, Periods):
        return _of_periods(users, part)
    bounds = _of_users(users)
    if isinstance(users, Between):
        return [bound._replace(condition=bound.condition.replace("user_id", "user_id + 0")) for bound in bounds]
    return bounds


def _of_periods(periods: Periods, part: _Part) -> list[_Parameter]:
    """Those that the part touches."""
    kept = np.flatnonzero((periods.until >= part.start) & (periods.since < part.end))
    user, since, until = (f"{{{','.join(map(str, column[kept].tolist()))}}}" for column in periods)
    return [
        _Parameter("text", user, "user_id = asked_user", "unnest({}::pg_catalog.int8[], "),
        _Parameter("text", since, f"time >= {_instant_of('asked_since')}", "{}::pg_catalog.int8[], "),
        _Parameter(
            "text",
            until,
            f"time <= {_instant_of('asked_until')}",
            "{}::pg_catalog.int8[]) AS asked (asked_user, asked_since, asked_until) CROSS JOIN ",
        ),
    ]


def _instant_of(microseconds: str) -> str:
    """SQL for the timestamptz of microseconds since 2000; days apart, so that it is exact."""
    return (
        f"('2000-01-01 00:00+00'::timestamptz + {microseconds} / 86400000000 * interval '24:00:00'"
        f" + {microseconds} % 86400000000 * interval '1 microsecond')"
    )


def _instant(sent: bytes | None, without: int) -> int:
    """The microseconds that timestamptz_send gives."""
    return without if sent is None else int.from_bytes(sent, "big", signed=True)
