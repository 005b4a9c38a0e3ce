"""Commands that define, redefine, cover and drop events, with their indexes."""

from __future__ import annotations

from collections.abc import Sequence

from heap_compiler import CompiledDefinition, HeapError, compile_definition
from heap_compiler.bind import unknown_event
from heap_compiler.errors import nearest
from heap_compiler.schema import EVENT_COLUMNS
from heap_extension.server.catalog import DatabaseCatalog, with_definition
from heap_extension.server.indexes import (
    WAKE_MAINTAIN,
    create_index,
    drop_index,
    index_suffix,
    indexed_partitions,
    left_to_maintain,
    partitions,
)
from heap_extension.server.quote import literal, literal_array
from heap_extension.server.versions import new_version

__all__ = ["cover", "define", "drop"]

_KEY = frozenset({"user_id", "time", "event_id"})


def define(catalog: DatabaseCatalog, compiled: CompiledDefinition) -> list[str]:
    """Builds the new indexes, changes the catalog, drops the old indexes. Events made of this one change with it.

    Until the transaction ends, other sessions see the old definition with the old indexes; after it, both new ones.
    Where indexes are left to `heap maintain`, only the catalog changes: the answer is right at once, and fast later.
    """
    after = with_definition(catalog, compiled.name, compiled.definition)
    changed = [compiled]
    for name in _dependents(catalog, compiled.name):
        changed.append(compile_definition(name, catalog.definitions[name].definition, after))
    known = {name: definition.covering for name, definition in catalog.definitions.items()}
    return _replaced(catalog, [(event, known.get(event.name, ())) for event in changed])


def cover(catalog: DatabaseCatalog, name: str, columns: Sequence[str | None]) -> list[str]:
    """Builds the event's indexes anew, with columns whose values are then read from them and not from the table; none
    for indexes without.

    Raises HeapError: the event is not defined or has no index of its own; a column is none of events, or named twice.
    """
    known = catalog.definitions.get(name)
    if known is None:
        raise unknown_event(name, None, catalog)
    compiled = compile_definition(name, known.definition, catalog)
    if compiled.predicate is None:
        parts = " and ".join(f'"{part}"' for part in known.uses)
        hint = f"cover {parts}, of which it is made" if parts else None
        raise HeapError(f'"{name}" has no index of its own', hint=hint, sqlstate="42809")
    covering: list[str] = []
    for column in columns:
        if column is None:
            raise HeapError("the name of a column, not null, is expected")
        if column in _KEY:
            raise HeapError(f"every index has {column}", sqlstate="42701")
        if column not in EVENT_COLUMNS:
            close = nearest(column, EVENT_COLUMNS)
            raise HeapError(
                f"{column} is no column of events: only columns can be covered, properties cannot",
                hint=None if close is None else f"did you mean {close}?",
                sqlstate="42703",
            )
        if column in covering:
            raise HeapError(f"{column} is named twice", sqlstate="42701")
        covering.append(column)
    return _replaced(catalog, [(compiled, tuple(covering))])


def _replaced(catalog: DatabaseCatalog, changed: Sequence[tuple[CompiledDefinition, tuple[str, ...]]]) -> list[str]:
    """Builds the indexes of these definitions, each with what it covers, and drops those they had."""
    app = catalog.app.name
    maintained = left_to_maintain(catalog.database)
    tables = [] if maintained else partitions(catalog.database, app)
    builds, records, drops = [], [], []
    for event, covering in changed:
        suffix = None if event.predicate is None else index_suffix(event.name, event.predicate, covering)
        old = catalog.definitions.get(event.name)
        records.append(_record(app, event, suffix, covering))
        if old is not None and old.index_suffix == suffix:
            continue
        if event.predicate is not None and suffix is not None:
            left = tables and indexed_partitions(catalog.database, app, suffix)
            builds += [drop_index(app, table, suffix) for table in left]
            builds += [create_index(app, table, suffix, event.predicate, covering) for table in tables]
        if old is not None and old.index_suffix is not None:
            drops += [drop_index(app, table, old.index_suffix) for table in tables]
    return [*builds, *records, new_version(app), *drops, *([WAKE_MAINTAIN] if maintained else [])]


def _record(app: str, event: CompiledDefinition, suffix: str | None, covering: Sequence[str]) -> str:
    values = [app, event.name, event.definition, event.predicate, suffix]
    written = ", ".join("NULL" if value is None else literal(value) for value in values)
    return (
        "INSERT INTO heap.event_definition"
        " (app, name, definition, predicate, index_suffix, uses, covering, gates_patterns)"
        f" VALUES ({written}, {literal_array(event.uses)}, {literal_array(covering)}, true)"
        " ON CONFLICT (app, name) DO UPDATE SET definition = excluded.definition, predicate = excluded.predicate,"
        " index_suffix = excluded.index_suffix, uses = excluded.uses, covering = excluded.covering,"
        " gates_patterns = excluded.gates_patterns,"
        " changed_at = now(), dormant = false, last_used = now()"
    )


def _dependents(catalog: DatabaseCatalog, name: str) -> list[str]:
    """The definitions made of `name`, directly or through others."""
    found: list[str] = []
    waiting = [name]
    while waiting:
        part = waiting.pop()
        direct = [other.name for other in catalog.definitions.values() if part in other.uses]
        new = [dependent for dependent in direct if dependent not in found]
        found += new
        waiting += new
    return found


def drop(catalog: DatabaseCatalog, name: str) -> list[str]:
    """Raises HeapError: other definitions or segments are made of this one."""
    users = sorted(
        [other.name for other in catalog.definitions.values() if name in other.uses]
        + [segment.name for segment in catalog.segments.values() if name in segment.events]
    )
    if users:
        quoted = ", ".join(f'"{user}"' for user in users)
        raise HeapError(f'"{name}" is part of {quoted}', hint=f"drop or redefine {quoted} first", sqlstate="2BP01")
    app, suffix = catalog.app.name, catalog.definitions[name].index_suffix
    maintained = left_to_maintain(catalog.database)
    tables = [] if maintained or suffix is None else partitions(catalog.database, app)
    return [
        f"DELETE FROM heap.event_definition WHERE app = {literal(app)} AND name = {literal(name)}",
        new_version(app),
        *(drop_index(app, table, str(suffix)) for table in tables),
        *([WAKE_MAINTAIN] if maintained else []),
    ]
