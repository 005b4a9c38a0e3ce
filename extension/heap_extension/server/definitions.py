"""Commands that define, redefine and drop events, with their indexes."""

from __future__ import annotations

from heap_compiler import CompiledDefinition, HeapError, compile_definition
from heap_extension.server.catalog import DatabaseCatalog, with_definition
from heap_extension.server.indexes import (
    WAKE_MAINTAIN,
    create_index,
    drop_index,
    index_suffix,
    left_to_maintain,
    partitions,
)
from heap_extension.server.quote import literal, literal_array
from heap_extension.server.versions import new_version

__all__ = ["define", "drop"]


def define(catalog: DatabaseCatalog, compiled: CompiledDefinition) -> list[str]:
    """Builds the new indexes, changes the catalog, drops the old indexes. Events made of this one change with it.

    Until the transaction ends, other sessions see the old definition with the old indexes; after it, both new ones.
    Where indexes are left to `heap maintain`, only the catalog changes: the answer is right at once, and fast later.
    """
    after = with_definition(catalog, compiled.name, compiled.definition)
    changed = [compiled]
    for name in _dependents(catalog, compiled.name):
        changed.append(compile_definition(name, catalog.definitions[name].definition, after))
    app = catalog.app.name
    maintained = left_to_maintain(catalog.database)
    tables = [] if maintained else partitions(catalog.database, app)
    builds, records, drops = [], [], []
    for event in changed:
        suffix = None if event.predicate is None else index_suffix(event.name, event.predicate)
        old = catalog.definitions.get(event.name)
        records.append(_record(app, event, suffix))
        if old is not None and old.index_suffix == suffix:
            continue
        if event.predicate is not None and suffix is not None:
            builds += [create_index(app, table, suffix, event.predicate) for table in tables]
        if old is not None and old.index_suffix is not None:
            drops += [drop_index(app, table, old.index_suffix) for table in tables]
    return [*builds, *records, new_version(app), *drops, *([WAKE_MAINTAIN] if maintained else [])]


def _record(app: str, event: CompiledDefinition, suffix: str | None) -> str:
    values = [app, event.name, event.definition, event.predicate, suffix]
    written = ", ".join("NULL" if value is None else literal(value) for value in values)
    return (
        "INSERT INTO heap.event_definition (app, name, definition, predicate, index_suffix, uses, gates_patterns)"
        f" VALUES ({written}, {literal_array(event.uses)}, true)"
        " ON CONFLICT (app, name) DO UPDATE SET definition = excluded.definition, predicate = excluded.predicate,"
        " index_suffix = excluded.index_suffix, uses = excluded.uses, gates_patterns = excluded.gates_patterns,"
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
