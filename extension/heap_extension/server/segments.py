"""Commands that define and drop segments, and keep the lists of their users."""

from __future__ import annotations

import hashlib

from heap_compiler import CompiledSegment, HeapError, compile_segment
from heap_compiler.errors import Span
from heap_compiler.members import unknown_segment
from heap_extension.server.catalog import DatabaseCatalog
from heap_extension.server.quote import literal, literal_array, qualified
from heap_extension.server.roles import grant_roles
from heap_extension.server.versions import new_version

__all__ = ["define", "drop", "drop_list", "fill_list"]


def define(catalog: DatabaseCatalog, compiled: CompiledSegment) -> list[str]:
    """Stores the segment; the list of an earlier definition goes."""
    app = catalog.app.name
    values = ", ".join(literal(value) for value in (app, compiled.name, compiled.definition))
    return [
        *_drop_table(catalog, compiled.name),
        "INSERT INTO heap.segment_definition (app, name, definition, events, segments)"
        f" VALUES ({values}, {literal_array(compiled.events)}, {literal_array(compiled.segments)})"
        " ON CONFLICT (app, name) DO UPDATE SET definition = excluded.definition, events = excluded.events,"
        " segments = excluded.segments, list_table = NULL, listed_at = NULL, changed_at = now()",
        new_version(app),
    ]


def drop(catalog: DatabaseCatalog, name: str) -> list[str]:
    """Raises HeapError: there is no such segment, or others are made of it."""
    _require(catalog, name)
    users = sorted(other.name for other in catalog.segments.values() if name in other.segments)
    if users:
        quoted = ", ".join(f'"{user}"' for user in users)
        raise HeapError(f'"{name}" is part of {quoted}', hint=f"drop or redefine {quoted} first", sqlstate="2BP01")
    app = catalog.app.name
    return [
        *_drop_table(catalog, name),
        f"DELETE FROM heap.segment_definition WHERE app = {literal(app)} AND name = {literal(name)}",
        new_version(app),
    ]


def fill_list(catalog: DatabaseCatalog, name: str) -> list[str]:
    """Fills the list of the segment's users, made anew from its definition; segments it is made of give their lists,
    if they have one.

    Raises:
        HeapError: there is no such segment.
    """
    _require(catalog, name)
    app, segment = catalog.app.name, catalog.segments[name]
    members = compile_segment(name, segment.definition, catalog).members
    table_name = segment.list_table or f"segment_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    table = qualified(app, table_name)
    commands = [f"TRUNCATE {table}"]
    if segment.list_table is None:
        commands = [
            f"CREATE TABLE {table} (user_id bigint PRIMARY KEY)",
            f"COMMENT ON TABLE {table} IS {literal(f'The users of the segment {name}')}",
        ]
        if catalog.app.in_citus:
            users = literal(qualified(app, "users"))
            commands.append(f"SELECT create_distributed_table({literal(table)}, 'user_id', colocate_with => {users})")
    return [
        *commands,
        f"INSERT INTO {table} {members}",
        f"UPDATE heap.segment_definition SET list_table = {literal(table_name)}, listed_at = now()"
        f" WHERE app = {literal(app)} AND name = {literal(name)}",
        grant_roles(app),
        new_version(app),
    ]


def drop_list(catalog: DatabaseCatalog, name: str) -> list[str]:
    """Raises HeapError: there is no such segment."""
    _require(catalog, name)
    app = catalog.app.name
    return [
        *_drop_table(catalog, name),
        "UPDATE heap.segment_definition SET list_table = NULL, listed_at = NULL"
        f" WHERE app = {literal(app)} AND name = {literal(name)}",
        new_version(app),
    ]


def _require(catalog: DatabaseCatalog, name: str) -> None:
    if name not in catalog.segments:
        error = unknown_segment(name, Span(0, 0), catalog)
        raise HeapError(error.message, hint=error.hint, sqlstate=error.sqlstate)


def _drop_table(catalog: DatabaseCatalog, name: str) -> list[str]:
    segment = catalog.segments.get(name)
    if segment is None or segment.list_table is None:
        return []
    return [f"DROP TABLE {qualified(catalog.app.name, segment.list_table)}"]
