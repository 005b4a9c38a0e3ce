"""Commands that create and drop apps and their partitions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from heap_compiler import HeapError
from heap_compiler.errors import nearest
from heap_compiler.schema import EVENT_COLUMNS, KEYED_COLUMNS, USER_COLUMNS, key_column
from heap_extension.server.catalog import Database, has_citus, known_apps, rows, unknown_app
from heap_extension.server.indexes import WAKE_MAINTAIN, create_index, left_to_maintain
from heap_extension.server.quote import identifier, literal, qualified
from heap_extension.server.roles import grant_roles
from heap_extension.server.users import merging_tables

__all__ = ["create_app", "drop_app", "make_partitions"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_RESERVED = {"heap", "public", "citus", "information_schema"}
_MONTHS_AHEAD = 3
_MAX_SHARDS = 64_000
_MAX_PARTITIONS = 1_200
_MERGE_ID = "The merge of users that copied the event here; negative: it was copied, and waits to be deleted"


def create_app(
    database: Database, name: str | None, time_zone: str | None, shard_count: str | None = None
) -> list[str]:
    """Schema, events with a default partition and the months ahead, users; with Citus, both distributed by user.

    Raises:
        HeapError: the name is no plain lower-case name or taken, the zone is unknown, or shards are asked for that
            Citus does not make or in a database without it.
    """
    if name is None or not _NAME.fullmatch(name) or name in _RESERVED or name.startswith("pg_"):
        raise HeapError(
            f"'{name}' cannot name an app",
            hint="an app's name is that of its schema: lower-case letters, digits and _, at most 31",
        )
    if name in known_apps(database):
        raise HeapError(f"the app '{name}' exists already", sqlstate="42710")
    zone = _zone(time_zone or "UTC")
    distributed = has_citus(database)
    if shard_count is not None and not distributed:
        raise HeapError(
            "this database has no shards: it is without Citus",
            hint="leave shard_count out, or create the extension citus before the app",
            sqlstate="0A000",
        )
    if shard_count is not None and not 1 <= int(shard_count) <= _MAX_SHARDS:
        raise HeapError(f"{int(shard_count):,} shards cannot be made", hint=f"from 1 to {_MAX_SHARDS:,}")
    events, users = qualified(name, "events"), qualified(name, "users")
    columns = [
        f"{identifier(column.name)} {column.type}{' NOT NULL' if column.name in _REQUIRED else ''}"
        for column in EVENT_COLUMNS.values()
    ]
    keys = [
        f"{identifier(key_column(column))} int GENERATED ALWAYS AS (hashtext({identifier(column)})) STORED"
        for column in KEYED_COLUMNS
    ]
    user_columns = ", ".join(f"{identifier(column.name)} {column.type}" for column in USER_COLUMNS.values())
    commands = [
        f"CREATE SCHEMA {identifier(name)}",
        f"CREATE TABLE {events} ({', '.join(columns)}, properties jsonb DEFAULT '{{}}', {', '.join(keys)},"
        " merge_id bigint, PRIMARY KEY (user_id, time, event_id)) PARTITION BY RANGE (time)",
        f"CREATE TABLE {users} ({user_columns}, properties jsonb DEFAULT '{{}}', property_times jsonb,"
        " PRIMARY KEY (user_id))",
        f"INSERT INTO heap.app (name, time_zone) VALUES ({literal(name)}, {literal(str(zone))})",
        f"COMMENT ON SCHEMA {identifier(name)} IS {literal(f'Events and users of the app {name}')}",
        f"COMMENT ON TABLE {events} IS 'One row per captured event; partitioned by month'",
        f"COMMENT ON COLUMN {events}.merge_id IS {literal(_MERGE_ID)}",
        f"COMMENT ON TABLE {users} IS 'One row per known user: the identity the app knows, and properties'",
        f"COMMENT ON COLUMN {users}.property_times IS 'When properties were set that came by the log, in microseconds"
        " since 1970: whichever was set last stays'",
        *(
            f"COMMENT ON COLUMN {events}.{identifier(column.name)} IS {literal(column.comment)}"
            for column in EVENT_COLUMNS.values()
        ),
        *(
            f"COMMENT ON COLUMN {users}.{identifier(column.name)} IS {literal(column.comment)}"
            for column in USER_COLUMNS.values()
        ),
    ]
    if distributed:
        count = "" if shard_count is None else f", shard_count => {int(shard_count)}"
        commands += [
            f"SELECT create_distributed_table({literal(users)}, 'user_id', colocate_with => 'none'{count})",
            f"SELECT create_distributed_table({literal(events)}, 'user_id', colocate_with => {literal(users)})",
        ]
    commands += merging_tables(name, distributed=distributed)
    commands.append(f"CREATE TABLE {qualified(name, 'events_default')} PARTITION OF {events} DEFAULT")
    commands += _statistics(name, "events_default")
    commands.append(f"SELECT heap.make_shards({literal(name)})")
    today = datetime.now(UTC)
    first = today.year * 12 + today.month - 1
    for month in range(first, first + _MONTHS_AHEAD + 1):
        commands += _partition(name, month, [], moving=[])
    return [*commands, grant_roles(name)]


_REQUIRED = {"user_id", "time", "event_id", "type"}


def _zone(name: str) -> ZoneInfo:
    from zoneinfo import available_timezones

    known = available_timezones()
    if name not in known:
        close = nearest(name, known)
        raise HeapError(f"unknown time zone '{name}'", hint=f"did you mean '{close}'?" if close else None)
    return ZoneInfo(name)


def drop_app(database: Database, name: str | None) -> list[str]:
    """Raises HeapError: there is no such app."""
    known = known_apps(database)
    if name is None or name not in known:
        raise unknown_app(str(name), known)
    return [
        f"DROP SCHEMA {identifier(name)} CASCADE",
        f"DELETE FROM heap.app WHERE name = {literal(name)}",
        f"SELECT heap._drop_roles({literal(name)})",
    ]


def make_partitions(database: Database, name: str, first: str | None, last: str | None) -> list[str]:
    """The monthly partitions from `first` to `last`, both as YYYY-MM, that are not there yet.

    Raises:
        HeapError: a time is missing, or these are more months than a table should have partitions.
    """
    if first is None or last is None:
        raise HeapError("partitions need a first and a last time")
    begin, end = _month(first), _month(last)
    if end - begin >= _MAX_PARTITIONS:
        raise HeapError(f"{end - begin + 1:,} months are too many partitions", hint=f"at most {_MAX_PARTITIONS:,}")
    there = {
        row["partition"]
        for row in rows(
            database,
            "SELECT relname AS partition FROM pg_catalog.pg_class WHERE relnamespace ="
            " pg_catalog.to_regnamespace(pg_catalog.quote_ident($1)) AND relname LIKE 'events\\_%'",
            app=name,
        )
    }
    missing = [month for month in range(begin, end + 1) if _partition_name(month) not in there]
    if not missing:
        return []
    waiting = {row["month"] for row in rows(database, _WAITING.format(table=qualified(name, "events_default")))}
    maintained = left_to_maintain(database)
    definitions = [
        (row["index_suffix"], row["predicate"], tuple(row["covering"]))
        for row in rows(
            database,
            "SELECT index_suffix, predicate, covering FROM heap.event_definition"
            " WHERE app = $1 AND predicate IS NOT NULL AND NOT dormant",
            app=name,
        )
        if not maintained
    ]
    commands = [f"LOCK TABLE {qualified(name, 'events')} IN SHARE ROW EXCLUSIVE MODE"] if waiting else []
    stored = _stored_columns(database, name) if waiting else []
    for month in missing:
        commands += _partition(name, month, definitions, moving=stored if _month_text(month) in waiting else [])
    return [*commands, grant_roles(name), *([WAKE_MAINTAIN] if maintained else [])]


_WAITING = "SELECT DISTINCT pg_catalog.to_char(time AT TIME ZONE 'UTC', 'YYYY-MM') AS month FROM {table}"


def _month(text: str) -> int:
    year, month = text.split("-")
    return int(year) * 12 + int(month) - 1


def _month_text(month: int) -> str:
    """YYYY-MM of a month counted from year 0."""
    return f"{month // 12:04d}-{month % 12 + 1:02d}"


def _partition_name(month: int) -> str:
    return f"events_{_month_text(month).replace('-', '_')}"


def _stored_columns(database: Database, app: str) -> list[str]:
    """The columns of events that are not generated."""
    found = rows(
        database,
        "SELECT attname AS name FROM pg_catalog.pg_attribute WHERE attnum > 0 AND NOT attisdropped"
        " AND attgenerated = '' AND attrelid = pg_catalog.to_regclass(pg_catalog.quote_ident($1) || '.events')"
        " ORDER BY attnum",
        app=app,
    )
    return [row["name"] for row in found]


def _partition(
    app: str, month: int, definitions: list[tuple[str, str, tuple[str, ...]]], *, moving: list[str]
) -> Iterator[str]:
    """One month's partition. With `moving`, the stored columns, events of that month are in the default partition and
    move over."""
    name = _partition_name(month)
    table, events, default = qualified(app, name), qualified(app, "events"), qualified(app, "events_default")
    bounds = [literal(f"{_month_text(bound)}-01 00:00:00+00") for bound in (month, month + 1)]
    columns = ", ".join(identifier(column) for column in moving)
    if moving:
        of_month = f"time >= {bounds[0]} AND time < {bounds[1]}"
        yield f"CREATE TEMPORARY TABLE events_moving ON COMMIT DROP AS SELECT {columns} FROM {default} WHERE {of_month}"
        yield f"DELETE FROM {default} WHERE {of_month}"
    yield f"CREATE TABLE {table} PARTITION OF {events} FOR VALUES FROM ({bounds[0]}) TO ({bounds[1]})"
    if moving:
        yield f"INSERT INTO {events} ({columns}) SELECT {columns} FROM pg_temp.events_moving"
        yield "DROP TABLE pg_temp.events_moving"
    yield from _statistics(app, name)
    for suffix, predicate, covering in definitions:
        yield create_index(app, name, suffix, predicate, covering)


def _statistics(app: str, partition: str) -> Iterator[str]:
    """A keyed column and its key say the same twice: without this the planner multiplies their selectivities."""
    table = qualified(app, partition)
    for column in KEYED_COLUMNS:
        statistics = qualified(app, f"{partition}_{column}")
        columns = f"{identifier(column)}, {identifier(key_column(column))}"
        yield f"CREATE STATISTICS {statistics} (dependencies) ON {columns} FROM {table}"
