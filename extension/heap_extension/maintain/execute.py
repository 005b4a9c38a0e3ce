"""Doing one piece of work on one node, without holding back its writes for longer than the lock time-out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
from psycopg import errors, sql

from heap_compiler.bound import EVERY_EVENT_CONDITION
from heap_extension.maintain.work import Kind, Wanted, Work
from heap_extension.server.indexes import index_rows

__all__ = ["execute"]

_QUICK_BYTES = 8_000_000
"""A table of this size is indexed in some 10 ms: sooner than the three transactions of CONCURRENTLY end."""


def execute(
    connection: psycopg.Connection[Any], work: Work, event: Wanted | None, lock_timeout: timedelta, patience: timedelta
) -> None:
    """Does it. What is done already, or whose table is gone, is no error.

    Args:
        connection: to the node of the work, in autocommit mode.
        event: the definition that an index or pack is made for; None for all else.
        lock_timeout: for how long writes may wait.
        patience: for how long the work itself may wait for open transactions.

    Raises:
        psycopg.Error: the node refused, or is gone.
    """
    table = sql.Identifier(work.app, work.relation)
    try:
        connection.execute(f"SET lock_timeout = {_milliseconds(patience)}")
        match work.kind:
            case Kind.build | Kind.rebuild:
                assert event is not None
                if work.kind is Kind.rebuild:
                    _drop(connection, work)
                _build(connection, work, index_rows(event.predicate, event.covering), lock_timeout)
            case Kind.drop:
                _drop(connection, work)
            case Kind.reindex:
                connection.execute(
                    sql.SQL("REINDEX INDEX CONCURRENTLY {}").format(sql.Identifier(work.app, work.index_name or ""))
                )
            case Kind.vacuum:
                # Truncation would take an exclusive lock.
                connection.execute(sql.SQL("VACUUM (ANALYZE, TRUNCATE false, SKIP_LOCKED) {}").format(table))
            case Kind.unpack:
                connection.execute(
                    sql.SQL("DELETE FROM {} WHERE relation = %s AND condition = %s").format(
                        sql.Identifier(work.app, work.packs)
                    ),
                    (work.relation, work.condition),
                )
            case Kind.freeze:
                # Else a later VACUUM would freeze what did not change, and packs would have to be made again.
                # And where few rows went, VACUUM would leave their places, and so pages that not all see all of.
                options = "ANALYZE, FREEZE, INDEX_CLEANUP on, TRUNCATE false, SKIP_LOCKED"
                connection.execute(sql.SQL(f"VACUUM ({options}) {{}}").format(table))
            case Kind.settle:
                # Where nothing was deleted, this reads what was written since the last time, and no index.
                options = "FREEZE, TRUNCATE false, SKIP_LOCKED"
                connection.execute(sql.SQL(f"VACUUM ({options}) {{}}").format(table))
            case Kind.pack:
                assert event is not None or work.event is None
                predicate = EVERY_EVENT_CONDITION if event is None else event.predicate
                connection.execute(
                    "SELECT heap._make_pack(%s, %s, %s, %s, %s, %s)",
                    (work.app, work.relation, work.packs, work.place, predicate, work.goes_on),
                )
    except (errors.DuplicateTable, errors.UndefinedTable, errors.UndefinedObject, errors.InvalidSchemaName):
        pass  # somebody was faster, or dropped what it was for: the next pass sees


def _build(connection: psycopg.Connection[Any], work: Work, rows: str, lock_timeout: timedelta) -> None:
    """Quickly where the table is small; else, or when that takes long, CONCURRENTLY. Never IF NOT EXISTS, which would
    take an invalid index for one."""
    name, table = sql.Identifier(work.index_name or ""), sql.Identifier(work.app, work.relation)

    def command(concurrently: str) -> sql.Composed:
        return sql.SQL("CREATE INDEX {} {} ON {} {}").format(sql.SQL(concurrently), name, table, sql.SQL(rows))

    if _is_small(connection, work):
        milliseconds = _milliseconds(lock_timeout / 2)
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = {milliseconds}")
                connection.execute(f"SET LOCAL statement_timeout = {2 * milliseconds}")
                connection.execute(command(""))
            return
        except (errors.LockNotAvailable, errors.QueryCanceled):
            pass
    connection.execute(command("CONCURRENTLY"))


def _is_small(connection: psycopg.Connection[Any], work: Work) -> bool:
    row = connection.execute(
        "SELECT pg_relation_size(c.oid) FROM pg_class AS c WHERE c.relname = %s"
        " AND c.relnamespace = to_regnamespace(quote_ident(%s))",
        (work.relation, work.app),
    ).fetchone()
    return row is not None and row[0] < _QUICK_BYTES


def _milliseconds(time: timedelta) -> int:
    return max(1, int(time / timedelta(milliseconds=1)))


def _drop(connection: psycopg.Connection[Any], work: Work) -> None:
    connection.execute(
        sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(work.app, work.index_name or ""))
    )
