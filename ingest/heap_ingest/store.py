"""Batches of the log into the tables: one transaction for the rows and for how far the log is stored.

A batch that is stored again, here or by another, changes nothing: rows have their keys from the log.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from heap_extension.load import LOADED_COLUMNS
from heap_extension.user_ids import hash_bigint
from heap_ingest.dead_letters import Rejected
from heap_ingest.enrich import Enrichment
from heap_ingest.lines import (
    EVENT_COLUMNS,
    USER_COLUMNS,
    captured_lines,
    decode_for_lines,
    event_line,
    is_plain,
    of_user,
    user_line,
)
from heap_ingest.log import Record
from heap_ingest.messages import CapturedMessage, EventMessage, EventsMessage, IdentifyMessage, Message, UserMessage

__all__ = ["Batch", "FencedError", "Row", "Store", "Stored", "is_data_error", "read_batch"]

Row = tuple[Record, int | None, int, datetime, str]
"""What goes into a table: its record, its position in a message of several events, user, time, and line for COPY."""

_USER = itemgetter(2)

_CAREFUL_BATCHES = 20
"""Batches of an app that are staged after one that held known events: where some are sent twice, more are."""

_LONGEST_COURTESY = 5.0
"""Seconds that a batch waits for those who want to change its apps, at most."""

_PART = 1_000
"""Rows given to COPY at once: the database begins while the rest is being put together."""


class FencedError(Exception):
    """Another sink stored what this batch begins with: it owns the partition now."""


@dataclass(slots=True)
class Batch:
    """What a stretch of the log holds, ready to be stored.

    Attributes:
        offsets: by partition, the first offset and the one after the last.
        events, users: by app, rows in the order of the log.
        identifies: in the order of the log.
        rejected: what cannot be stored, as far as that is known without the database.
        oldest: when the server took the first message of it; None when nothing is in it.
    """

    offsets: dict[int, tuple[int, int]] = field(default_factory=dict)
    events: defaultdict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    users: defaultdict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    identifies: list[tuple[Record, IdentifyMessage]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    oldest: datetime | None = None

    @property
    def size(self) -> int:
        """Events, properties of users and identities in it, and what is rejected."""
        rows = sum(len(rows) for rows_of in (self.events, self.users) for rows in rows_of.values())
        return rows + len(self.identifies) + len(self.rejected)

    @property
    def apps(self) -> set[str]:
        """Whose messages are in it."""
        return {*self.events, *self.users, *(message.app for _, message in self.identifies)}


@dataclass(slots=True)
class Stored:
    """What storing a batch did: rows given to the tables by app, and what went to the dead letters."""

    events: dict[str, int] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)


def read_batch(
    records: Iterable[Record],
    enrichment: Enrichment,
    wanted: Callable[[Message], bool] | None = None,
    batch: Batch | None = None,
) -> Batch:
    """The batch of these records, or the one given with these added. Those that are no messages are rejected; those not
    `wanted` are left out."""
    batch = batch or Batch()
    for record in records:
        first, _ = batch.offsets.get(record.partition, (record.offset, 0))
        batch.offsets[record.partition] = first, record.offset + 1
        try:
            message = decode_for_lines(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            batch.rejected.append(Rejected(record, f"not a message: {error}"))
            continue
        if wanted is not None and not wanted(message):
            continue
        if batch.oldest is None or message.received_at < batch.oldest:
            batch.oldest = message.received_at
        match message:
            case CapturedMessage():
                lines = captured_lines(message, enrichment.columns(message))
                batch.events[message.app] += (
                    (record, position, user_id, time, line) for position, (user_id, time, line) in enumerate(lines)
                )
            case EventsMessage():
                added, plain, rows = enrichment.columns(message), is_plain(record.value), batch.events[message.app]
                for position, event in enumerate(message.events):
                    rows.append((record, position, event.user_id, event.time, event_line(event, added, plain=plain)))
            case EventMessage():
                line = event_line(message, enrichment.columns(message), plain=is_plain(record.value))
                batch.events[message.app].append((record, None, message.user_id, message.time, line))
            case UserMessage():
                batch.users[message.app].append((record, None, message.user_id, message.time, user_line(message)))
            case IdentifyMessage():
                batch.identifies.append((record, message))
    return batch


def is_data_error(error: psycopg.Error) -> bool:
    """True when the rows are at fault and not the database: what no waiting mends.

    Bad values, broken constraints, values beyond PostgreSQL's limits, exceptions raised by functions. psycopg refuses
    some values itself, without a code.
    """
    if error.sqlstate is None:
        return isinstance(error, psycopg.DataError)
    return error.sqlstate[:2] in {"21", "22", "23", "38", "54", "P0"}


class Store:
    """Stores batches through one connection, which keeps its tables' indexes open from batch to batch.

    Args:
        connection: in autocommit mode, of an owner of the tables.
        log: the id of the Kafka cluster and the topic; None stores rows and no offsets, which is what a replay does.
        bury: called with what is rejected, within the transaction: returns when that is safe.
        schemas: where an app's rows go when it is not the schema of its name.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        log: tuple[str, str] | None,
        bury: Callable[[list[Rejected]], None],
        schemas: Mapping[str, str] | None = None,
    ) -> None:
        self._connection = connection
        self._log = log
        self._bury = bury
        self._schemas = schemas or {}
        self._part = 0
        self._careful: Counter[str] = Counter()
        """Batches of an app that are staged before the table is tried again."""
        connection.execute(_STAGING)
        connection.execute(_USER_STAGING)

    def positions(
        self, partitions: Sequence[int], first: Callable[[Sequence[int]], Mapping[int, int]]
    ) -> dict[int, int]:
        """The next message of each partition to be stored; of those that are new, `first` says which that is."""
        assert self._log is not None
        query = (
            "SELECT partition, next_offset FROM heap.ingest_offset"
            " WHERE (cluster, topic) = (%s, %s) AND partition = ANY(%s)"
        )
        known = dict(self._connection.execute(query, (*self._log, list(partitions))).fetchall())
        new = sorted(set(partitions) - set(known))
        if new:
            begins = first(new)
            self._connection.execute(
                "INSERT INTO heap.ingest_offset (cluster, topic, partition, next_offset)"
                " SELECT %s, %s, * FROM unnest(%s::int[], %s::bigint[]) ON CONFLICT DO NOTHING",
                (*self._log, new, [begins[partition] for partition in new]),
            )
            known = dict(self._connection.execute(query, (*self._log, list(partitions))).fetchall())
        return known

    def store(self, batch: Batch) -> Stored:
        """Stores all that can be stored, exactly once; the rest is buried.

        Raises:
            FencedError: another sink stored some of it already. Nothing of it is stored here.
            psycopg.Error: the database failed, perhaps after it stored everything: `positions` tells.
            KafkaException: what was rejected could not be buried. Nothing is stored.
        """
        self._let_changes_pass(batch.apps)
        identified = self._identify(batch)
        try:
            return self._store(batch, identified, self._insert)
        except psycopg.Error as error:
            if not is_data_error(error):
                raise
        return self._store(batch, identified, self._bisect)

    def _store(self, batch: Batch, identified: list[Rejected], insert: _Insert) -> Stored:
        stored = Stored(rejected=[*batch.rejected, *identified])
        with self._connection.transaction():
            if self._log is not None:
                self._advance(batch)
            known = self._lock_apps(batch.apps)
            for kind, rows_of, counts in (
                ("events", batch.events, stored.events),
                ("users", batch.users, stored.users),
            ):
                for app, rows in sorted(rows_of.items()):
                    if app in known:
                        counts[app] = insert(kind, app, rows, stored.rejected)
                    else:
                        stored.rejected += [_rejected(row, f"unknown app {app!r}") for row in rows]
            if stored.rejected:
                self._bury(stored.rejected)
                self._count_dead(stored.rejected)
        return stored

    def _advance(self, batch: Batch) -> None:
        """Moves the offsets from where the batch begins to where it ends: first, so that of two sinks one waits."""
        assert self._log is not None
        partitions = sorted(batch.offsets)
        ranges = [batch.offsets[partition] for partition in partitions]
        moved = self._connection.execute(
            "UPDATE heap.ingest_offset AS o"
            " SET next_offset = b.next, stored = o.stored + b.next - b.first, stored_at = now()"
            " FROM unnest(%s::int[], %s::bigint[], %s::bigint[]) AS b (partition, first, next)"
            " WHERE (o.cluster, o.topic) = (%s, %s) AND o.partition = b.partition AND o.next_offset = b.first",
            (partitions, [first for first, _ in ranges], [after for _, after in ranges], *self._log),
        ).rowcount
        if moved != len(partitions):
            raise FencedError(f"{len(partitions) - moved} of {len(partitions)} partitions were stored by another sink")

    def _count_dead(self, rejected: list[Rejected]) -> None:
        if self._log is None:
            return
        for partition in sorted({record.partition for record, _ in rejected}):
            count = sum(record.partition == partition for record, _ in rejected)
            self._connection.execute(
                "UPDATE heap.ingest_offset SET dead = dead + %s WHERE (cluster, topic, partition) = (%s, %s, %s)",
                (count, *self._log, partition),
            )

    def _let_changes_pass(self, apps: set[str]) -> None:
        """Waits while somebody waits for the row of one of the apps to change it: PostgreSQL gives it to share at once
        to whoever asks, so that several sinks with always one batch under way would keep a change out for ever."""
        names = [self._schemas.get(app, app) for app in apps]
        deadline = time.monotonic() + _LONGEST_COURTESY
        while self._connection.execute(_CHANGES_WAITING, (names,)).fetchone() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _lock_apps(self, apps: set[str]) -> set[str]:
        """Those of the apps that exist. Until the transaction ends no user of theirs is merged, which would have moved
        rows of this batch that nobody sees yet."""
        names = {self._schemas.get(app, app): app for app in apps}
        found = self._connection.execute(
            "SELECT name FROM heap.app WHERE name = ANY(%s) ORDER BY name FOR SHARE", (list(names),)
        )
        return {names[name] for (name,) in found}

    def _resolve(self, schema: str, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows with the users as they are known now; without what happened before a user was erased.

        The log keeps them as they were known then. Both tables are small, and mostly empty.
        """
        users = list({row[2] for row in rows})
        found = self._connection.execute(_RESOLVE, {"app": schema, "users": users}).fetchall()
        if not found:
            return rows
        now = {user: merged_into for user, merged_into, _ in found if merged_into is not None}
        erased = {user: erased_at for user, _, erased_at in found if erased_at is not None}
        return [
            (record, position, user, at, of_user(line, now[user]) if user in now else line)
            for record, position, user, at, line in rows
            if user not in erased or at > erased[user]
        ]

    def _insert(self, kind: str, app: str, rows: Sequence[Row], _rejected: list[Rejected]) -> int:
        """All rows at once. Events go straight into their table, as long as none of them is known there already."""
        schema = self._schemas.get(app, app)
        rows = self._resolve(schema, rows)
        if kind == "users":
            return self._stage("users", schema, rows)
        rows = sorted(rows, key=_USER)  # neighbours in the primary key, which saves 1 us a row and sorting costs 0.2
        if self._careful[app]:
            self._careful[app] -= 1
        else:
            try:
                with self._connection.transaction():
                    return self._copy(sql.Identifier(schema, "events"), EVENT_COLUMNS, rows)
            except psycopg.errors.UniqueViolation:
                self._careful[app] = _CAREFUL_BATCHES
        return self._stage("events", schema, rows)

    def _stage(self, kind: str, schema: str, rows: Sequence[Row]) -> int:
        """Through a temporary table, whose rows are told from those of earlier calls by the number of the call."""
        self._part += 1
        staging, columns, insert = _KINDS[kind]
        self._copy(sql.Identifier("pg_temp", staging), f"part, {columns}", rows, f"{self._part}\t")
        statement = sql.SQL(insert).format(schema=sql.Identifier(schema))
        return self._connection.execute(statement, (self._part,)).rowcount

    def _copy(self, table: sql.Identifier, columns: str, rows: Sequence[Row], prefix: str = "") -> int:
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(table, sql.SQL(columns))
        end = f"\n{prefix}"
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            for first in range(0, len(rows), _PART):
                lines = [row[4] for row in rows[first : first + _PART]]
                copy.write(f"{prefix}{end.join(lines)}\n".encode())
        return len(rows)

    def _bisect(self, kind: str, app: str, rows: Sequence[Row], rejected: list[Rejected]) -> int:
        """All rows but those the database refuses: halves are tried until single rows are left."""
        try:
            with self._connection.transaction():
                return self._insert(kind, app, rows, rejected)
        except psycopg.Error as error:
            if not is_data_error(error):
                raise
            if len(rows) == 1:
                rejected.append(_rejected(rows[0], _reason(error)))
                return 0
        half = len(rows) // 2
        return self._bisect(kind, app, rows[:half], rejected) + self._bisect(kind, app, rows[half:], rejected)

    def _identify(self, batch: Batch) -> list[Rejected]:
        """Joins users with the persons they are, each in a transaction of its own; those that cannot be."""
        rejected: list[Rejected] = []
        if not batch.identifies:
            return rejected
        known = self._lock_apps({message.app for _, message in batch.identifies})
        for record, message in batch.identifies:
            if message.app not in known:
                rejected.append(Rejected(record, f"unknown app {message.app!r}"))
                continue
            app = self._schemas.get(message.app, message.app)
            try:
                with self._connection.transaction():
                    self._connection.execute("SELECT set_config('heap.app', %s, true)", (app,))
                    self._connection.execute(
                        _IDENTIFY,
                        {
                            "app": app,
                            "user_id": message.user_id,
                            "identity": message.identity,
                            "known": hash_bigint(message.identity),
                            "time": message.time,
                        },
                    )
            except psycopg.Error as error:
                if not is_data_error(error):
                    raise
                rejected.append(Rejected(record, _reason(error)))
        return rejected


_Insert = Callable[[str, str, Sequence[Row], list[Rejected]], int]


def _rejected(row: Row, reason: str) -> Rejected:
    record, position = row[:2]
    return Rejected(record if position is None else record._replace(position=position), reason)


def _reason(error: psycopg.Error) -> str:
    return f"{error.sqlstate or 'refused'}: {(error.diag.message_primary or str(error)).splitlines()[0]}"


_STAGING = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS heap_events_batch (part int, user_id bigint, time timestamptz,"
    " event_id bigint, session_id bigint, type text, "
    + ", ".join(f"{name} text" for name in LOADED_COLUMNS)
    + ", properties jsonb) ON COMMIT DELETE ROWS"
)
_USER_STAGING = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS heap_users_batch (part int, user_id bigint, time timestamptz,"
    " properties jsonb) ON COMMIT DELETE ROWS"
)

# Of those who wait for a row, one holds the lock of its place.
_CHANGES_WAITING = """
SELECT 1 FROM heap.app AS a
INNER JOIN pg_locks AS l
    ON l.locktype = 'tuple' AND l.relation = 'heap.app'::regclass AND (l.page, l.tuple) = (
        split_part(trim('()' FROM a.ctid::text), ',', 1)::int, split_part(trim('()' FROM a.ctid::text), ',', 2)::int
    )
WHERE a.name = ANY(%s) AND l.mode IN ('ExclusiveLock', 'AccessExclusiveLock')
AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
LIMIT 1
"""

_RESOLVE = """
SELECT u.user_id, a.merged_into, (
    SELECT max(e.erased_at) FROM heap.erased_user AS e
    WHERE e.app = %(app)s AND e.user_id IN (u.user_id, a.merged_into)
)
FROM unnest(%(users)s::bigint[]) AS u (user_id)
LEFT JOIN heap.user_alias AS a ON a.app = %(app)s AND a.user_id = u.user_id
WHERE a.user_id IS NOT NULL
OR EXISTS (SELECT FROM heap.erased_user AS e WHERE e.app = %(app)s AND e.user_id = u.user_id)
"""

# In the order of the key, so that two sinks wait for each other and never in a circle.
_INSERT_EVENTS = f"""
INSERT INTO {{schema}}.events ({EVENT_COLUMNS})
SELECT {EVENT_COLUMNS} FROM pg_temp.heap_events_batch WHERE part = %s ORDER BY user_id, time, event_id
ON CONFLICT DO NOTHING
"""

_INSERT_USERS = """
INSERT INTO {schema}.users AS u (user_id, properties, property_times)
SELECT user_id, jsonb_object_agg(key, value), jsonb_object_agg(key, set_at)
FROM (
    SELECT DISTINCT ON (user_id, key) user_id, key, value, (extract(epoch FROM time) * 1000000)::bigint AS set_at
    FROM pg_temp.heap_users_batch, jsonb_each(properties)
    WHERE part = %s
    ORDER BY user_id, key, time DESC, value DESC
) AS latest
GROUP BY user_id
ORDER BY user_id
ON CONFLICT (user_id) DO UPDATE SET
    properties = heap._latest_properties(u.properties, u.property_times, excluded.properties, excluded.property_times),
    property_times = heap._latest_times(u.property_times, excluded.property_times)
"""

_IDENTIFY = """
SELECT heap.identify(%(user_id)s, %(identity)s)
WHERE NOT EXISTS (
    SELECT FROM heap.erased_user AS e
    WHERE e.app = %(app)s AND e.user_id IN (%(user_id)s, %(known)s) AND %(time)s <= e.erased_at
)
"""

_KINDS = {
    "events": ("heap_events_batch", EVENT_COLUMNS, _INSERT_EVENTS),
    "users": ("heap_users_batch", USER_COLUMNS, _INSERT_USERS),
}
