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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from heap_extension.kernels.events import Events, Int64, changes, joined, nothing, united
from heap_extension.kernels.packs import Packs

__all__ = ["NULL", "Between", "Database", "Query", "Scan", "Selection", "Shard", "Users"]

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

    def touches(self, selection: Selection) -> bool:
        return self.start < selection["end"] and self.end > selection["start"]

    def is_inside(self, selection: Selection) -> bool:
        return self.start >= selection["start"] and self.end <= selection["end"]


class _Partitions(NamedTuple):
    """The partitions of a table.

    Attributes:
        state: another one after any change of them.
        by_time: those of a range of time, in its order.
        rest: the default partition, which has the events of all other times.
        readable: whether the caller may read each, and sees all rows.
    """

    state: bytes | None
    by_time: list[_Part]
    rest: _Part | None
    readable: bool = False


class _Parameter(NamedTuple):
    """A parameter of a query: its type, and the condition that it stands in."""

    type: str
    value: Any
    condition: str = ""


_MAX_KEPT = 1_000_000
"""Characters of the queries whose plans a session keeps: about 2,000 plans of 50 kB."""

_PACKED_PER_LOOKUP = 400
"""Events read from a pack in the time that a user is looked up in one partition."""

_plans: OrderedDict[tuple[str, ...], Any] = OrderedDict()
"""By query and types of its parameters, the one used longest ago first."""

_partitions: dict[tuple[str, int], _Partitions] = {}
"""By name and oid of the table of events."""

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

_SHARD_BESIDE = """
SELECT theirs.shardid AS shard
FROM pg_catalog.pg_dist_shard AS own
JOIN pg_catalog.pg_dist_shard AS theirs ON theirs.shardminvalue = own.shardminvalue
WHERE own.shardid = $1 AND theirs.logicalrelid = pg_catalog.to_regclass($2)
"""

# A change of partitions makes other rows of pg_inherits. Read with the snapshot of the query, they are the partitions
# that had the events it sees, also while rows move from one to another.
_STATE_OF_PARTITIONS = """
SELECT
    pg_catalog.to_regclass($1)::pg_catalog.oid AS events,
    pg_catalog.string_agg(
        pg_catalog.oidsend(inhrelid) || pg_catalog.xidsend(xmin) || pg_catalog.tidsend(ctid)
        || pg_catalog.boolsend(inhdetachpending) || pg_catalog.textsend(inhrelid::pg_catalog.regclass::text), ''
    ) AS state,
    pg_catalog.bool_and(
        pg_catalog.has_table_privilege(inhrelid, 'SELECT') AND NOT pg_catalog.row_security_active(inhrelid)
    ) AND NOT pg_catalog.row_security_active(pg_catalog.to_regclass($1)::pg_catalog.oid) AS readable
FROM pg_catalog.pg_inherits WHERE inhparent = pg_catalog.to_regclass($1)
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
        self._own_name: str | None = None
        self._tables: dict[str, str] = {}
        self._partitions: _Partitions | None = None
        self._packs: Packs | None = None

    def events(self, selection: Selection, users: Users | None = None) -> Events:
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

    def known_events(self) -> int:
        """About how many events the shard has, as its statistics say."""
        (row,) = self._rows(
            "SELECT coalesce(sum(pg_catalog.pg_stat_get_live_tuples(inhrelid)), 0)::pg_catalog.int8 AS events"
            " FROM pg_catalog.pg_inherits WHERE inhparent = pg_catalog.to_regclass($1)",
            [_Parameter("text", self._table("events"))],
        )
        return int(row["events"])

    def slices_of(self, selections: Sequence[Selection], size: int) -> list[Users | None]:
        """Users, such that there are about `size` events of each selection of theirs; None for everybody."""
        every = self.known_events() if any(selection["size"] is None for selection in selections) else 0
        count = -(-max(_known_size(selection, every) for selection in selections) // size)
        return [None] if count < 2 else list(self._ranges(count))

    def _ranges(self, count: int) -> list[Between]:
        """At most so many ranges that all users are in, with about as many events in each: of a sample, as many."""
        share = min(100.0, 100 * _SAMPLE / max(self.known_events(), 1))
        sampled = f"SELECT user_id FROM {self._table('events')} TABLESAMPLE SYSTEM ($1)"
        (users,), _ = self._columns(sampled, [_USER], [_Parameter("float4", share)])
        users.sort()
        begins = np.unique(users[np.arange(1, count) * len(users) // count]) if len(users) else users
        bounds = [_LEAST, *begins[begins > _LEAST].tolist(), _GREATEST + 1]
        return [Between(first, behind - 1) for first, behind in pairwise(bounds)]

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

    def _events_of(self, scan: Scan, selection: Selection, users: Users | None) -> Events:
        parts = self._parts(scan, selection)
        packed = self._packed(parts, scan, selection, users)
        runs = [packed.get(part.table) or self._run(part, scan, selection, users) for part in parts]
        return joined(runs) if runs else nothing(len(selection["values"]))

    def _packed(
        self, parts: Sequence[_Part], scan: Scan, selection: Selection, users: Users | None
    ) -> dict[str, Events]:
        """The events of those partitions that have a pack of the scan's condition, by table; without those in which few
        users are sooner looked up."""
        if scan["definition"] is None or selection["values"]:
            return {}
        if self._packs is None:
            table = None
            with suppress(LookupError):  # none before an app of an earlier version is brought to this one
                table = self._table("packs")
            self._packs = Packs(self._run_kept, table)
        condition = self._text(scan["where"])
        usable = self._packs.usable(condition, [part.table for part in parts])
        first, last = (_LEAST, _GREATEST) if users is None else (int(users[0]), int(users[-1]))
        found: dict[str, Events] = {}
        for part in parts:
            if part.table not in usable:
                continue
            if isinstance(users, np.ndarray) and len(users) * _PACKED_PER_LOOKUP < usable[part.table]:
                continue
            events = self._packs.events(condition, part.table, first, last)
            if not part.is_inside(selection):
                events = events.at(
                    np.flatnonzero((events.times >= selection["start"]) & (events.times < selection["end"]))
                )
            found[part.table] = events.of(users) if isinstance(users, np.ndarray) else events
        return found

    def _run(self, part: _Part, scan: Scan, selection: Selection, users: Users | None) -> Events:
        """The events of one partition."""
        bounds = [*([] if part.is_inside(selection) else _times(selection)), *_of_users(users)]
        query = self._select(part, scan, selection["values"], bounds)
        names = [f"value_{at}" for at in range(len(selection["values"]))]
        (of, times), values = self._columns(query, [_USER, _TIME], bounds, names)
        return Events(of, times, lambda: self._columns(query, [_ID], bounds)[0][0], values)

    def _select(self, part: _Part, scan: Scan, values: Sequence[str], bounds: Sequence[_Parameter]) -> str:
        """The events of a part that fulfil the condition and the bounds, in the order of the index."""
        columns = ["user_id", "time", "event_id", *(f"{value} AS value_{at}" for at, value in enumerate(values))]
        where = [f"({self._text(scan['where'])})"]
        where += [bound.condition.format(f"${at}") for at, bound in enumerate(bounds, start=1)]
        return (
            f"SELECT {', '.join(columns)} FROM {part.table} AS {self._database.quote_ident(scan['alias'])}"
            f" WHERE {' AND '.join(where)} ORDER BY user_id, time, event_id"
        )

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
        if self._partitions is None:
            self._partitions = self._find_partitions()
        if not self._partitions.readable or len(scan["where"]) > 1:
            return [self._everything()]
        touched = [part for part in self._partitions.by_time if part.touches(selection)]
        covered = selection["start"]
        for part in touched:
            if part.start > covered:
                break
            covered = part.end
        rest = self._partitions.rest
        return touched if covered >= selection["end"] or rest is None else [*touched, rest]

    def _find_partitions(self) -> _Partitions:
        """The partitions, as they were found before or, after any change of them, anew."""
        table = self._table("events")
        # As if they were read through their table: that right is needed, and no partition is dropped until the end.
        self._rows(f"SELECT 1 FROM {table} WHERE false")
        name = _Parameter("text", table)
        (state,) = self._rows(_STATE_OF_PARTITIONS, [name])
        key = table, int(state["events"])
        if key not in _partitions or _partitions[key].state != state["state"]:
            by_time, rest = [], None
            for row in self._rows(_PARTITIONS, [name]):
                if row["name"].isdigit():  # dropped since the snapshot was taken: its events are gone for everybody
                    continue
                part = _Part(row["name"], _instant(row["first"], _LEAST), _instant(row["behind"], _GREATEST))
                if row["is_default"]:
                    rest = _Part(row["name"])
                else:
                    by_time.append(part)
            by_time.sort(key=attrgetter("start"))
            _partitions[key] = _Partitions(state["state"], by_time, rest)
        return _partitions[key]._replace(readable=bool(state["readable"]))

    def _everything(self) -> _Part:
        return _Part(self._table("events"))

    def _text(self, query: Query) -> str:
        return "".join(part if at % 2 == 0 else self._table(part) for at, part in enumerate(query))

    def _table(self, name: str) -> str:
        """The quoted name of the table's shard."""
        if name not in self._tables:
            table = f"{self._database.quote_ident(self._schema)}.{self._database.quote_ident(name)}"
            shard = self._shard_of(table)
            quoted = self._database.quote_ident(name if shard is None else f"{name}_{shard}")
            self._tables[name] = f"{self._database.quote_ident(self._schema)}.{quoted}"
        return self._tables[name]

    def _shard_of(self, table: str) -> int | None:
        """The number of a table's shard beside the kernel's; None without Citus."""
        # Citus hides the rows of shards in pg_class from most sessions.
        if self._own_name is None:
            (own,) = self._rows("SELECT $1::pg_catalog.regclass::text AS name", [_Parameter("oid", self._relation)])
            self._own_name = str(own["name"])
        own_shard = re.fullmatch(r".*\bshards_(\d+)", self._own_name)
        if own_shard is None:
            return None
        found = list(self._rows(_SHARD_BESIDE, [_Parameter("int8", int(own_shard[1])), _Parameter("text", table)]))
        if len(found) != 1:
            raise LookupError(f"no shard of {table} beside {self._own_name}")
        return int(found[0]["shard"])


def _known_size(selection: Selection, every: int) -> int:
    """About how many events a selection has, of `every` there is."""
    if selection["size"] is not None:
        return selection["size"]
    return every if any(scan["where"] == ["TRUE"] for scan in selection["scans"]) else every // _SHARE_OF_UNKNOWN


def _times(selection: Selection) -> list[_Parameter]:
    """The instants of a selection, as bounds."""
    start, end = (str(_EPOCH + timedelta(microseconds=selection[name])) for name in ("start", "end"))
    return [_Parameter("timestamptz", start, "time >= {}"), _Parameter("timestamptz", end, "time < {}")]


def _of_users(users: Users | None) -> list[_Parameter]:
    match users:
        case None:
            return []
        case Between(first=first, last=last):
            return [_Parameter("int8", first, "user_id >= {}"), _Parameter("int8", last, "user_id <= {}")]
    ids = ",".join(map(str, users.tolist()))
    return [_Parameter("text", f"{{{ids}}}", "user_id = ANY ({}::pg_catalog.int8[])")]


def _instant(sent: bytes | None, without: int) -> int:
    """The microseconds that timestamptz_send gives."""
    return without if sent is None else int.from_bytes(sent, "big", signed=True)
