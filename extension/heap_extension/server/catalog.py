"""The catalog tables, read through PL/Python's `plpy`: the compiler's `Catalog` for one app."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from heap_compiler import HeapError
from heap_compiler.catalog import MergingUsers, Segment
from heap_compiler.errors import Span, nearest
from heap_compiler.ranges import parse_time

__all__ = [
    "App",
    "Database",
    "DatabaseCatalog",
    "Definition",
    "has_citus",
    "is_distributed",
    "known_apps",
    "with_definition",
]


class Database(Protocol):
    """The part of `plpy` that is used: queries with parameters, rows as mappings."""

    def prepare(self, query: str, argument_types: list[str]) -> Any: ...

    def execute(self, plan: Any, arguments: list[Any]) -> Iterable[Mapping[str, Any]]: ...


_plans: dict[str, Any] = {}


def rows(database: Database, query: str, **arguments: Any) -> list[Mapping[str, Any]]:
    """Runs a query of this module with text parameters $1, $2, ...; its plan is kept for the session."""
    if query not in _plans:
        _plans[query] = database.prepare(query, ["text"] * len(arguments))
    return list(database.execute(_plans[query], list(arguments.values())))


@dataclass(frozen=True, slots=True)
class Definition:
    """A row of heap.event_definition."""

    name: str
    definition: str
    index_suffix: str | None
    uses: tuple[str, ...]
    dormant: bool = False


@dataclass(frozen=True, slots=True)
class SegmentDefinition:
    """A row of heap.segment_definition."""

    name: str
    definition: str
    events: tuple[str, ...]
    segments: tuple[str, ...]
    list_table: str | None


@dataclass(frozen=True, slots=True)
class App:
    """A row of heap.app, and the instant that `over last ...` counts back from."""

    name: str
    time_zone: ZoneInfo
    version: int
    now: datetime

    @classmethod
    def current(cls, database: Database) -> App:
        """The app of the setting heap.app; without one, the only app there is.

        Raises:
            HeapError: there is no app, none of that name, or several and nothing chosen.
        """
        found = rows(
            database,
            "SELECT name, time_zone, version, pg_catalog.current_setting('heap.app', true) AS chosen,"
            " pg_catalog.current_setting('heap.now', true) AS set_now,"
            " (extract(epoch FROM pg_catalog.now()) * 1000000)::bigint AS now FROM heap.app",
        )
        if not found:
            raise HeapError("there is no app yet", hint="SELECT heap.create_app('shop');", sqlstate="42704")
        names = [row["name"] for row in found]
        chosen = found[0]["chosen"] or (names[0] if len(names) == 1 else None)
        if chosen is None:
            raise HeapError(
                f"there are several apps: {', '.join(sorted(names))}",
                hint=f"choose one: SET heap.app = '{min(names)}';",
            )
        if chosen not in names:
            raise unknown_app(chosen, names)
        row = found[names.index(chosen)]
        zone = ZoneInfo(row["time_zone"])
        now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=row["now"])
        if row["set_now"]:
            try:
                now = parse_time(row["set_now"], Span(0, 0), zone).instant
            except HeapError as error:
                raise HeapError(
                    f"the setting heap.now: {error.message}", hint="write it as '2025-06-01 12:30'"
                ) from None
        return cls(row["name"], zone, int(row["version"]), now)


def has_citus(database: Database) -> bool:
    """Whether this database is distributed."""
    (row,) = rows(database, "SELECT heap._has_citus() AS found")
    return bool(row["found"])


def is_distributed(database: Database, app: str) -> bool:
    """Whether the app's tables are spread over shards: not if it is older than Citus in this database."""
    return has_citus(database) and bool(
        rows(
            database,
            "SELECT FROM pg_catalog.pg_dist_partition WHERE logicalrelid ="
            " pg_catalog.to_regclass(pg_catalog.quote_ident($1) || '.events')",
            app=app,
        )
    )


def known_apps(database: Database) -> list[str]:
    """The names of the apps the role may use."""
    return [row["name"] for row in rows(database, "SELECT name FROM heap.app")]


def unknown_app(name: str, known: Iterable[str]) -> HeapError:
    """The error for an app that is not there."""
    close = nearest(name, known)
    return HeapError(
        f"unknown app '{name}'",
        hint=f"did you mean '{close}'?" if close else f"SELECT heap.create_app('{name}');",
        sqlstate="42704",
    )


class DatabaseCatalog:
    """`heap_compiler.Catalog` for one app, from the tables."""

    def __init__(self, database: Database, app: App) -> None:
        self.database = database
        self.app = app
        self.schema = app.name
        self.time_zone = app.time_zone
        self.now = app.now
        self.named: set[str] = set()
        """The events that were looked up."""

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        """All definitions of the app by name."""
        found = rows(
            self.database,
            "SELECT name, definition, index_suffix, uses, dormant FROM heap.event_definition WHERE app = $1",
            app=self.app.name,
        )
        return {
            row["name"]: Definition(
                row["name"], row["definition"], row["index_suffix"], tuple(row["uses"]), row["dormant"]
            )
            for row in found
        }

    def definition(self, name: str) -> str | None:
        found = self.definitions.get(name)
        if found is None:
            return None
        self.named.add(name)
        return found.definition

    def event_names(self) -> Iterable[str]:
        return self.definitions

    @cached_property
    def segments(self) -> dict[str, SegmentDefinition]:
        """All segments of the app by name."""
        found = rows(
            self.database,
            "SELECT name, definition, events, segments, list_table FROM heap.segment_definition WHERE app = $1",
            app=self.app.name,
        )
        return {
            row["name"]: SegmentDefinition(
                row["name"], row["definition"], tuple(row["events"]), tuple(row["segments"]), row["list_table"]
            )
            for row in found
        }

    @cached_property
    def merging(self) -> MergingUsers | None:
        """The batch of users that `heap maintain` is merging, if there is one."""
        found = rows(
            self.database,
            "SELECT user_id, merged_into, batch, is_moved FROM heap.user_merge WHERE app = $1 AND batch IS NOT NULL",
            app=self.app.name,
        )
        if not found:
            return None
        merged = tuple(int(row["user_id"]) for row in found)
        into = {int(row["merged_into"]) for row in found}
        return MergingUsers(int(found[0]["batch"]), merged, tuple(sorted(into)), bool(found[0]["is_moved"]))

    def segment(self, name: str) -> Segment | None:
        found = self.segments.get(name)
        return None if found is None else Segment(found.definition, found.list_table)

    def segment_names(self) -> Iterable[str]:
        return self.segments

    def matching_events(self, name: str) -> int | None:
        """Entries of the definition's indexes as PostgreSQL last counted them; unknown where it never did, and on the
        coordinator of a cluster, whose own partitions are empty."""
        (row,) = rows(
            self.database,
            "SELECT sum(greatest(c.reltuples, 0))::bigint AS entries,"
            " bool_and(t.reltuples >= 0 OR pg_catalog.pg_relation_size(t.oid) = 0) AS counted,"
            " (SELECT count(*) FROM pg_catalog.pg_extension WHERE extname = 'citus') AS citus"
            " FROM pg_catalog.pg_inherits AS h"
            " JOIN pg_catalog.pg_class AS t ON t.oid = h.inhrelid"
            " JOIN pg_catalog.pg_index AS i ON i.indrelid = t.oid"
            " JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid AND c.relname = t.relname || '_' || $2"
            " WHERE h.inhparent = pg_catalog.to_regclass(pg_catalog.quote_ident($1) || '.events')",
            app=self.app.name,
            suffix=self.definitions[name].index_suffix,
        )
        if row["citus"] or row["entries"] is None or not row["counted"]:
            return None
        return int(row["entries"])

    def regex_error(self, pattern: str) -> str | None:
        try:
            rows(self.database, "SELECT '' ~ $1 AS matches", pattern=pattern)
        except Exception as error:  # plpy.SPIError exists inside PostgreSQL only
            return str(error).removeprefix("invalid regular expression: ")
        return None


def with_definition(catalog: DatabaseCatalog, name: str, definition: str) -> DatabaseCatalog:
    """The catalog as it will be once `name` is defined so."""
    changed = DatabaseCatalog(catalog.database, catalog.app)
    changed.definitions = {**catalog.definitions, name: Definition(name, definition, "", ())}
    return changed
