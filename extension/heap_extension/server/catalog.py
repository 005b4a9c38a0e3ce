"""The catalog tables, read through PL/Python's `plpy`: the compiler's `Catalog` for one app."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from sqlglot import exp

from heap_compiler import HeapError
from heap_compiler.catalog import STRATEGIES, MergingUsers, Segment, Strategy
from heap_compiler.errors import Span, nearest
from heap_compiler.ranges import parse_time

__all__ = [
    "App",
    "Database",
    "DatabaseCatalog",
    "Definition",
    "has_citus",
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
    gates_patterns: bool = True
    covering: tuple[str, ...] = ()


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
    """A row of heap.app, and what settings say.

    Attributes:
        now: the instant that `over last ...` counts back from.
        strategy: which one was asked for.
        shards: how many of them kernels can run on; 0 when they cannot.
        in_citus: this database is distributed.
    """

    name: str
    time_zone: ZoneInfo
    version: int
    now: datetime
    strategy: Strategy = "auto"
    shards: int = 0
    in_citus: bool = False

    @classmethod
    def current(cls, database: Database) -> App:
        """The app of the setting heap.app; without one, the only app there is.

        Raises:
            HeapError: there is no app, none of that name, or several and nothing chosen.
        """
        found = rows(
            database,
            "SELECT name, time_zone, version, shards, pg_catalog.current_setting('heap.app', true) AS chosen,"
            " pg_catalog.current_setting('heap.strategy', true) AS strategy,"
            " pg_catalog.current_setting('heap.now', true) AS set_now,"
            " (extract(epoch FROM pg_catalog.now()) * 1000000)::bigint AS now,"
            " EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus') AS in_citus FROM heap.app",
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
        strategy: Strategy | None = next((known for known in STRATEGIES if known == (row["strategy"] or "auto")), None)
        if strategy is None:
            raise HeapError(
                f"the setting heap.strategy: there is no strategy '{row['strategy']}'",
                hint=f"one of {', '.join(STRATEGIES)}",
            )
        shards = _kernel_shards(database, row["name"], row["shards"], in_citus=row["in_citus"])
        return cls(row["name"], zone, int(row["version"]), now, strategy, shards, row["in_citus"])


@cache
def _has_numpy() -> bool:
    return find_spec("numpy") is not None


def _kernel_shards(database: Database, app: str, made: int | None, *, in_citus: bool) -> int:
    """How many shards kernels can run on: all have their row in `<app>.shards`, and numpy is installed; else 0. As
    `heap._shard_count`, which would take a third of the time that a statement compiled before takes."""
    if made is None or not _has_numpy():
        return 0
    found = 0
    if in_citus:
        (row,) = rows(
            database,
            "SELECT count(*) AS shards FROM pg_catalog.pg_dist_shard WHERE logicalrelid ="
            " pg_catalog.to_regclass(pg_catalog.quote_ident($1) || '.shards')",
            app=app,
        )
        found = row["shards"]
    return made if made == (found or 1) else 0


def has_citus(database: Database) -> bool:
    """Whether this database is distributed."""
    (row,) = rows(database, "SELECT heap._has_citus() AS found")
    return bool(row["found"])


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


class _Entries(NamedTuple):
    """How many entries an event's indexes had, and until when, in seconds of the monotonic clock, that is news."""

    until: float
    number: int | None


_ASKED_AGAIN = 300.0
_UNKNOWN_KEPT = 1.0
"""Seconds. Asking looks at every index of an app, too long for each step of each statement."""
_NEVER = _Entries(0.0, None)
_matching_events: dict[tuple[str, str | None], _Entries] = {}
"""Per app and index suffix; what is not counted is asked again after `_UNKNOWN_KEPT`."""


class _Read(NamedTuple):
    """The definitions of an app's version, and the conditions of those that were bound since."""

    version: int
    definitions: dict[str, Definition]
    conditions: dict[str, tuple[exp.Expr, ...]]


_read: dict[str, _Read] = {}
"""Of each app what was read last."""


class DatabaseCatalog:
    """`heap_compiler.Catalog` for one app, from the tables."""

    def __init__(self, database: Database, app: App) -> None:
        self.database = database
        self.app = app
        self.schema = app.name
        self.time_zone = app.time_zone
        self.now = app.now
        self.strategy = app.strategy
        self.named: set[str] = set()
        """The events that were looked up."""

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        """All definitions of the app by name, kept for the session until one of them changes."""
        return self._read.definitions

    @cached_property
    def conditions(self) -> dict[str, tuple[exp.Expr, ...]]:
        """Conditions of definitions, kept as long."""
        return self._read.conditions

    @property
    def _read(self) -> _Read:
        kept = _read.get(self.app.name)
        if kept is None or kept.version != self.app.version:
            kept = _read[self.app.name] = _Read(self.app.version, self._read_definitions(), {})
        return kept

    def _read_definitions(self) -> dict[str, Definition]:
        found = rows(
            self.database,
            "SELECT name, definition, index_suffix, uses, dormant, gates_patterns, covering FROM heap.event_definition"
            " WHERE app = $1",
            app=self.app.name,
        )
        return {
            row["name"]: Definition(**{**row, "uses": tuple(row["uses"]), "covering": tuple(row["covering"])})
            for row in found
        }

    def definition(self, name: str) -> str | None:
        found = self.definitions.get(name)
        if found is None:
            return None
        self.named.add(name)
        return found.definition

    def gates_patterns(self, name: str) -> bool:
        return self.definitions[name].gates_patterns

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

    @cached_property
    def is_distributed(self) -> bool:
        """Whether the app's tables are spread over shards: not if it is older than Citus in this database."""
        return self.app.in_citus and bool(
            rows(
                self.database,
                "SELECT FROM pg_catalog.pg_dist_partition WHERE logicalrelid ="
                " pg_catalog.to_regclass(pg_catalog.quote_ident($1) || '.events')",
                app=self.app.name,
            )
        )

    @property
    def shards(self) -> int:
        """On how many shards kernels can run. They read what is stored, so on none while users are being merged."""
        return self.app.shards if self.merging is None else 0

    @cached_property
    def has_packs(self) -> bool:
        """Whether kernels may find events in packs. On Citus they are beside the shards, where it would take long to
        look: SQL counts no faster there without them, on all shards at once."""
        if self.app.in_citus:
            return True
        (row,) = rows(
            self.database,
            "SELECT pg_catalog.pg_relation_size(pg_catalog.to_regclass(pg_catalog.quote_ident($1) || '.packs')) > 0"
            " AS has_packs",
            app=self.app.name,
        )
        return bool(row["has_packs"])

    def segment(self, name: str) -> Segment | None:
        found = self.segments.get(name)
        return None if found is None else Segment(found.definition, found.list_table)

    def segment_names(self) -> Iterable[str]:
        return self.segments

    def matching_events(self, name: str) -> int | None:
        """Entries of the definition's indexes in all shards, as PostgreSQL last counted them; unknown where it never
        did. All events looked up so far are asked for at once, and again after some minutes: the numbers only choose
        between ways to the same answer."""
        now = time.monotonic()
        suffixes = {self.definitions[named].index_suffix for named in self.named | {name}} - {None}
        missing = [suffix for suffix in suffixes if now >= _matching_events.get((self.app.name, suffix), _NEVER).until]
        if missing:
            found = rows(
                self.database,
                "SELECT index_suffix, entries FROM heap._matching_events($1, pg_catalog.string_to_array($2, ','))",
                app=self.app.name,
                suffixes=",".join(sorted(map(str, missing))),
            )
            counted = {row["index_suffix"]: row["entries"] for row in found}
            for suffix in missing:
                key, entries = (self.app.name, suffix), counted.get(suffix)
                _matching_events[key] = (
                    _Entries(now + _UNKNOWN_KEPT, _matching_events.get(key, _NEVER).number)
                    if entries is None
                    else _Entries(now + _ASKED_AGAIN, int(entries))
                )
        return _matching_events.get((self.app.name, self.definitions[name].index_suffix), _NEVER).number

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
    changed.conditions = {}
    return changed
