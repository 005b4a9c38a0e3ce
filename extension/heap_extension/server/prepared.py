"""Statements that a session asks again are prepared, so that PostgreSQL and Citus plan them once.

Planning takes longer than all else of an analysis that reads little. The statements have no parameters, so that their
plans are as good as others; PostgreSQL plans anew what DDL, statistics or another role make invalid, and checks rights
whenever a plan runs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from heap_extension.server.catalog import Database, rows

__all__ = ["prepared"]

_MAX_PREPARED = 32

_names: OrderedDict[str, str] = OrderedDict()
"""What was prepared, by name; what was asked for longest ago first."""


def prepared(database: Database, statement: str) -> str:
    """The command that runs a query as it was prepared, which it is first unless it is there.

    Args:
        statement: a query without parameters.
    """
    name = "heap_" + hashlib.sha256(statement.encode()).hexdigest()[:32]
    command = f"PREPARE {name} AS {statement}"
    if not _is_there(database, name, command):
        if name in _names:
            _names.pop(name)
        elif len(_names) >= _MAX_PREPARED:
            _deallocate(database, *_names.popitem(last=False))
        _run(database, command)
    _names[name] = command
    _names.move_to_end(name)
    return f"EXECUTE {name}"


def _is_there(database: Database, name: str, command: str) -> bool:
    """Whether it still is: anybody in the session may drop it and prepare another one under its name."""
    found = rows(
        database,
        "SELECT statement = $2 AS same FROM pg_catalog.pg_prepared_statements WHERE name = $1",
        name=name,
        command=command,
    )
    if not found:
        return False
    if not found[0]["same"]:
        _run(database, f"DEALLOCATE {name}")
        return False
    return True


def _deallocate(database: Database, name: str, command: str) -> None:
    if _is_there(database, name, command):
        _run(database, f"DEALLOCATE {name}")


def _run(database: Database, command: str) -> None:
    list(database.execute(database.prepare(command, []), []))
