"""Requests of the SQL functions to what they run: `answer` is the only function PostgreSQL calls."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import TypedDict

from heap_compiler import (
    Compiled,
    CompiledDefinition,
    CompiledDrop,
    CompiledDropSegment,
    CompiledQuery,
    CompiledSegment,
    HeapError,
    compile_definition,
    compile_segment,
    compile_statement,
)
from heap_compiler.catalog import Strategy
from heap_extension.server import apps, definitions, plans, segments, users
from heap_extension.server.catalog import App, Database, DatabaseCatalog, rows
from heap_extension.server.prepared import prepared
from heap_extension.server.quote import qualified

__all__ = ["Answer", "answer"]

_CACHE_SIZE = 256
_Key = tuple[str, str, str | None, int, Strategy, int, int]
_compiled: dict[_Key, tuple[str, dict[str, bool]]] = {}
"""The SQL of queries compiled before, each with the events it names, and whether they are dormant."""

_TOLD_FOR = 3600.0
"""Seconds in which a session tells once that somebody asks about an event."""
_told: dict[tuple[str, str], float] = {}
"""When it last told that somebody asks about an event of an app, by the monotonic clock."""


class Answer(TypedDict):
    """A row of heap._compiled: either statements of a kind, or an error."""

    kind: str | None
    statements: list[str] | None
    error: str | None
    sqlstate: str | None


def answer(database: Database, request: str, arguments: list[str | None]) -> Answer:
    """Compiles one request.

    Args:
        database: PL/Python's `plpy`.
        request: statement, analysis, describe, kernel_reads, complete, app, create_app, drop_app, make_partitions,
            define_event, cover_event, drop_event, define_segment, drop_segment, list_segment, unlist_segment,
            merge_users, identify, known_user, delete_user, user_traces or upgrade_app. All but create_app and drop_app
            are about the chosen app, whose rights were checked: no argument names another.
        arguments: those of the SQL function.
    """
    try:
        kind, statements = _answer(database, request, arguments)
    except HeapError as error:
        return {"kind": None, "statements": None, "error": str(error), "sqlstate": error.sqlstate}
    return {"kind": kind, "statements": statements, "error": None, "sqlstate": None}


def _answer(database: Database, request: str, arguments: list[str | None]) -> tuple[str, list[str]]:
    first, second, third = (*arguments, None, None, None)[:3]
    match request:
        case "create_app":
            return "create app", apps.create_app(database, first, second, third)
        case "drop_app":
            return "drop app", apps.drop_app(database, first)
        case "complete":
            return "completions", _complete(database, first, second)
    app = App.current(database)
    match request:
        case "app":
            return "app", [app.name]
        case "make_partitions":
            return "make partitions", apps.make_partitions(database, app.name, first, second)
    catalog = DatabaseCatalog(database, app)
    match request:
        case "merge_users":
            return "merge users", users.merge(catalog, first, second)
        case "identify":
            return "identify", users.identify(catalog, first, second)
        case "known_user":
            return "user", users.known_user(catalog, first)
        case "delete_user":
            return "delete user", users.delete(catalog, first)
        case "user_traces":
            return "query", users.traces(catalog, first)
        case "upgrade_app":
            return "upgrade app", users.upgrade(catalog)
    if first is None or (second is None and request in {"define_event", "define_segment"}):
        raise HeapError("a statement, not null, is expected")
    match request:
        case "statement":
            return _statement(catalog, _compile(catalog, first, None))
        case "analysis":
            asked_before = _key(app, first, second) in _compiled
            compiled = _compile(catalog, first, second)
            if asked_before and isinstance(compiled, str):
                return "query", [prepared(database, compiled)]
            return _statement(catalog, compiled)
        case "kernel_reads":
            return "queries", list(_explained(catalog, first).kernel_reads)
        case "describe":
            assert second is not None
            query = _explained(catalog, first)
            packed = _packed(catalog, query)
            return "description", plans.describe(query, json.loads(second), catalog.definitions, packed)
        case "define_event":
            assert second is not None
            return "define", definitions.define(catalog, compile_definition(first, second, catalog))
        case "cover_event":
            return "cover", definitions.cover(catalog, first, arguments[1:])
        case "drop_event":
            quoted = first.replace('"', '""')
            return _statement(catalog, _compile(catalog, f'drop event "{quoted}"', None))
        case "define_segment":
            assert second is not None
            return "define", segments.define(catalog, compile_segment(first, second, catalog))
        case "drop_segment":
            return "drop segment", segments.drop(catalog, first)
        case "list_segment":
            return "list segment", segments.fill_list(catalog, first)
        case "unlist_segment":
            return "unlist segment", segments.drop_list(catalog, first)
    raise AssertionError(request)


def _explained(catalog: DatabaseCatalog, text: str) -> CompiledQuery:
    """The query with all that explains it, which is not kept: some hundred kilobytes."""
    query = compile_statement(text, catalog)
    assert isinstance(query, CompiledQuery)
    return query


def _packed(catalog: DatabaseCatalog, query: CompiledQuery) -> set[tuple[str, str]]:
    """The condition and the table, of a partition or its shard, of every pack that the query reads: one that is there
    and whose partition did not change since, or says what is right of it."""
    conditions = {sha256(packable.condition.encode()).hexdigest(): packable.condition for packable in query.packable}
    packs = qualified(catalog.schema, "packs")
    if not conditions or not rows(catalog.database, "SELECT WHERE pg_catalog.to_regclass($1) IS NOT NULL", table=packs):
        return set()
    found = rows(
        catalog.database,
        "SELECT condition, relation, pg_catalog.bool_and("
        " heap._is_pack_valid(pg_catalog.quote_ident($1) || '.' || relation, stamp, pages IS NOT NULL)) AS is_valid"
        f" FROM {packs} WHERE condition = ANY (pg_catalog.string_to_array($2, ',')) GROUP BY condition, relation",
        app=catalog.schema,
        conditions=",".join(sorted(conditions)),
    )
    return {(conditions[row["condition"]], row["relation"]) for row in found if row["is_valid"]}


def _complete(database: Database, text: str | None, position: str | None) -> list[str]:
    from heap_compiler.complete import complete  # it reads every analysis: no other request should wait for that
    from heap_extension.server.vocabulary import AppVocabulary, NoVocabulary

    try:
        vocabulary: AppVocabulary | NoVocabulary = AppVocabulary(DatabaseCatalog(database, App.current(database)))
    except HeapError:  # no app, or none chosen: whoever runs a statement is told
        vocabulary = NoVocabulary()
    return complete(text or "", None if position is None else int(position), vocabulary)


def _statement(catalog: DatabaseCatalog, compiled: str | Compiled) -> tuple[str, list[str]]:
    match compiled:
        case str() | CompiledQuery():
            return "query", [compiled if isinstance(compiled, str) else compiled.sql]
        case CompiledDefinition():
            return "define", definitions.define(catalog, compiled)
        case CompiledDrop(name=name):
            return "drop event", definitions.drop(catalog, name)
        case CompiledSegment():
            return "define", segments.define(catalog, compiled)
        case CompiledDropSegment(name=name):
            return "drop segment", segments.drop(catalog, name)


def _compile(catalog: DatabaseCatalog, text: str, keyword: str | None) -> str | Compiled:
    """Compiles, or finds the SQL of the query compiled before: the same while no definition and no minute changes."""
    key = _key(catalog.app, text, keyword)
    if key in _compiled:
        kept, named = _compiled[key]
        _tell(catalog, named)
        return kept
    compiled = compile_statement(text, catalog, keyword)
    if isinstance(compiled, CompiledQuery):
        named = {name: catalog.definitions[name].dormant for name in sorted(catalog.named)}
        _tell(catalog, named)
        if "second" not in text.lower():  # a range in seconds moves within a minute
            if len(_compiled) >= _CACHE_SIZE:
                _compiled.pop(next(iter(_compiled)))
            _compiled[key] = compiled.sql, named
    return compiled


def _key(app: App, text: str, keyword: str | None) -> _Key:
    """What a compiled query depends on."""
    return app.name, text, keyword, app.version, app.strategy, app.shards, int(app.now.timestamp()) // 60


def _tell(catalog: DatabaseCatalog, named: Mapping[str, bool]) -> None:
    """Tells `heap maintain` which events a query asks about: at once where they are dormant, whose indexes it then
    builds (this once, the query does without); of others once an hour, since packs and what a session keeps serve them
    without a scan of their indexes that would show it. On a standby nobody can be told.

    Args:
        named: the events, and whether they are dormant.
    """
    now = time.monotonic()
    for name, dormant in named.items():
        key = catalog.app.name, name
        if not dormant and key in _told and now - _told[key] < _TOLD_FOR:
            continue
        _told[key] = now
        rows(
            catalog.database,
            "SELECT pg_catalog.pg_notify('heap_maintain', $1) WHERE NOT pg_catalog.pg_is_in_recovery()"
            " AND ($2 = 'dormant' OR EXISTS (SELECT FROM heap.settings WHERE drop_unused_after IS NOT NULL))",
            payload=json.dumps({"app": catalog.app.name, "event": name, "dormant": dormant}),
            state="dormant" if dormant else "ready",
        )
