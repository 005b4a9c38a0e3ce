"""The names an app has, for completion: its definitions, and what a small sample of its data shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from heap_extension.server.catalog import Database, DatabaseCatalog, rows
from heap_extension.server.indexes import partitions
from heap_extension.server.quote import qualified

__all__ = ["AppVocabulary", "NoVocabulary"]

_SAMPLE = 1_000
_RECENT_PARTITIONS = 3
_SECONDS_KEPT = 300
_samples: dict[str, tuple[tuple[int, int], _Sample]] = {}


class NoVocabulary:
    """No names: without an app the language's own words still complete."""

    def event_names(self) -> Iterable[str]:
        return ()

    def segment_names(self) -> Iterable[str]:
        return ()

    def event_types(self) -> Iterable[str]:
        return ()

    def event_properties(self) -> Iterable[str]:
        return ()

    def user_properties(self) -> Iterable[str]:
        return ()


class AppVocabulary:
    """`heap_compiler.complete.Vocabulary` for one app. What was sampled is kept for five minutes of the session."""

    def __init__(self, catalog: DatabaseCatalog) -> None:
        self.catalog = catalog

    def event_names(self) -> Iterable[str]:
        return self.catalog.event_names()

    def segment_names(self) -> Iterable[str]:
        return self.catalog.segment_names()

    def event_types(self) -> Iterable[str]:
        return self._sample.event_types

    def event_properties(self) -> Iterable[str]:
        return self._sample.event_properties

    def user_properties(self) -> Iterable[str]:
        return self._sample.user_properties

    @property
    def _sample(self) -> _Sample:
        app = self.catalog.app
        state = app.version, int(app.now.timestamp()) // _SECONDS_KEPT
        if _samples.get(app.name, (None, None))[0] != state:
            _samples[app.name] = state, _read(self.catalog.database, app.name, f"{app.now:%Y_%m}")
        return _samples[app.name][1]


@dataclass(frozen=True, slots=True)
class _Sample:
    """Names by how often they were seen, the most frequent first."""

    event_types: tuple[str, ...]
    event_properties: tuple[str, ...]
    user_properties: tuple[str, ...]


def _read(database: Database, app: str, month: str) -> _Sample:
    """Looks at events of the newest partition up to `month` that has some; no scan goes further than its sample."""
    named = partitions(database, app)
    monthly = [name for name in reversed(named) if name <= f"events_{month}"]
    types: tuple[str, ...] = ()
    for partition in [*monthly[:_RECENT_PARTITIONS], "events"]:
        types = _frequent(database, _TYPES, qualified(app, partition))
        if types:
            break
    properties = _frequent(database, _KEYS, qualified(app, partition))
    return _Sample(types, properties, _frequent(database, _KEYS, qualified(app, "users")))


def _frequent(database: Database, query: str, table: str) -> tuple[str, ...]:
    found = rows(database, query.format(table=table, sample=_SAMPLE))
    return tuple(row["name"] for row in found)


_TYPES = (
    "SELECT type AS name FROM (SELECT type FROM {table} LIMIT {sample}) AS sampled GROUP BY 1 ORDER BY count(*) DESC, 1"
)
_KEYS = (
    "SELECT key AS name FROM (SELECT properties FROM {table} LIMIT {sample}) AS sampled"
    " CROSS JOIN LATERAL pg_catalog.jsonb_object_keys(CASE WHEN pg_catalog.jsonb_typeof(properties) = 'object'"
    " THEN properties END) AS key GROUP BY 1 ORDER BY count(*) DESC, 1"
)
