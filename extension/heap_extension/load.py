"""Events into an app's tables: one transaction through a staging table, so that loading twice changes nothing.

Rows come as `LoadedEvent`s from a file (`importer`) or a generator (`demo`). They are staged on disk in the order they
came; then SQL gives event ids and sessions to those that have none, makes the partitions, and inserts.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from heap_compiler.schema import EVENT_COLUMNS

__all__ = ["LOADED_COLUMNS", "LoadResult", "LoadedEvent", "Loader"]

LOADED_COLUMNS = tuple(
    name for name in EVENT_COLUMNS if name not in {"user_id", "time", "event_id", "session_id", "type"}
)
"""Text columns of an event, in the order of `LoadedEvent.columns`."""

_SESSION_GAP = "30 minutes"


class LoadedEvent(NamedTuple):
    """One event on its way in. `event_id` and `session_id` are made when they are None; `row_hash` then tells rows of
    one user and instant apart."""

    user_id: int
    identity: str | None
    time: datetime
    event_id: int | None
    session_id: int | None
    type: str
    columns: tuple[str | None, ...]
    properties: dict[str, Any]
    row_hash: int


class LoadResult(NamedTuple):
    """What a load did: rows staged, events that are new, events that were there already, users that are new."""

    staged: int
    inserted: int
    known: int
    users: int


class Loader:
    """Loads events into one app within a transaction of `connection`.

    Raises:
        psycopg.Error: the database refused; nothing of the load is kept.
    """

    def __init__(self, connection: psycopg.Connection[Any], app: str) -> None:
        self.connection = connection
        self.app = app
        self._loaded: tuple[datetime, datetime] | None = None

    def load(self, events: Iterable[LoadedEvent]) -> LoadResult:
        """Stages and inserts all events. `events` may be larger than memory."""
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.execute(_STAGING)
            staged = self._stage(cursor, events)
            cursor.execute("ANALYZE heap_staging")
            cursor.execute("SELECT min(time), max(time) FROM heap_staging")
            first, last = cursor.fetchone() or (None, None)
            if first is None or last is None:
                return LoadResult(0, 0, 0, 0)
            self._loaded = first, last
            cursor.execute("SELECT heap.make_partitions(%s, %s, %s)", (self.app, first, last))
            users = self._insert(cursor, "users", _INSERT_USERS)
            inserted = self._insert(cursor, "events", _INSERT_EVENTS)
            cursor.execute("DROP TABLE heap_staging")
        return LoadResult(staged, inserted, staged - inserted, users)

    def tidy(self) -> None:
        """VACUUM and ANALYZE what was loaded, outside a transaction.

        Index-only scans need the visibility map, and plans the statistics. Empty partitions are left alone: once
        PostgreSQL knows one is empty, it reads it without its index, and sorts what it would otherwise merge.
        """
        if self._loaded is None:
            return
        self.connection.autocommit = True
        first, last = (f"events_{time.astimezone(UTC):%Y_%m}" for time in self._loaded)
        partitions = self.connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%s)) AND relkind = 'r'"
            " AND (relname BETWEEN %s AND %s OR relname = 'users') AND relname ~ '^(events_[0-9]{4}_[0-9]{2}|users)$'",
            (self.app, first, last),
        ).fetchall()
        for (partition,) in partitions:
            self.connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(self.app, partition)))

    def _insert(self, cursor: psycopg.Cursor[Any], table: str, insert: str) -> int:
        """Runs an INSERT ... SELECT; the number of rows that are new. Citus reports how many it was given, conflicts
        among them: there the rows are counted."""
        count = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(self.app, table))
        distributed = cursor.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone() is not None
        (before,) = (cursor.execute(count).fetchone() if distributed else None) or (0,)
        inserted = cursor.execute(self._sql(insert)).rowcount
        (after,) = (cursor.execute(count).fetchone() if distributed else None) or (inserted,)
        return int(after - before)

    def _stage(self, cursor: psycopg.Cursor[Any], events: Iterable[LoadedEvent]) -> int:
        staged = 0
        with cursor.copy(f"COPY heap_staging ({_STAGED}) FROM STDIN") as copy:
            for event in events:
                properties = Jsonb(event.properties) if event.properties else None
                copy.write_row((*event[:6], *event.columns, properties, event.row_hash))
                staged += 1
        return staged

    def _sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(schema=sql.Identifier(self.app))


_STAGED = ", ".join(
    [
        "user_id",
        "identity",
        "time",
        "event_id",
        "session_id",
        "type",
        *LOADED_COLUMNS,
        "properties",
        "row_hash",
    ]
)

_STAGING = (
    "CREATE TEMPORARY TABLE heap_staging (line bigint GENERATED ALWAYS AS IDENTITY, user_id bigint, identity text,"
    " time timestamptz, event_id bigint, session_id bigint, type text, "
    + ", ".join(f"{name} text" for name in LOADED_COLUMNS)
    + ", properties jsonb, row_hash bigint) ON COMMIT DROP"
)

_INSERT_USERS = """
INSERT INTO {schema}.users (user_id, identity)
SELECT DISTINCT ON (user_id) user_id, identity FROM heap_staging WHERE identity IS NOT NULL ORDER BY user_id, line
ON CONFLICT (user_id) DO NOTHING
"""

# An event without an id gets its rank among the user's rows of that instant, in the order of the file, above 43 bits
# of its row's hash. One without a session gets the first event time of its visit.
_INSERT_EVENTS = f"""
INSERT INTO {{schema}}.events (user_id, time, event_id, session_id, type, {", ".join(LOADED_COLUMNS)}, properties)
SELECT user_id, time, id, coalesce(session_id, (extract(epoch FROM
    max(time) FILTER (WHERE starts_visit) OVER (PARTITION BY user_id ORDER BY time, line)) * 1000000)::bigint),
    type, {", ".join(LOADED_COLUMNS)}, coalesce(properties, '{{{{}}}}')
FROM (
    SELECT *,
        coalesce(event_id, ((row_number() OVER (PARTITION BY user_id, time ORDER BY line) - 1) << 43)
            | (row_hash & ((1::bigint << 43) - 1))) AS id,
        coalesce(time - lag(time) OVER (PARTITION BY user_id ORDER BY time, line) > interval '{_SESSION_GAP}', true)
            AS starts_visit
    FROM heap_staging
) AS staged
ORDER BY user_id, time, id
ON CONFLICT DO NOTHING
"""
