"""The app that the semantics tests run in: definitions and users committed, events only inside a test's transaction."""

from __future__ import annotations

from functools import cache

import psycopg

from tests.histories import DEFINITIONS, NOW

APP = "meaning"


@cache
def ensure_app(dsn: str) -> None:
    """Makes the app unless it is there."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM heap.app WHERE name = %s", (APP,)).fetchone():
            return
        connection.execute("SELECT heap.create_app(%s, 'Europe/Berlin')", (APP,))
        connection.execute("SELECT heap.make_partitions(%s, '2025-10-01', '2025-11-30')", (APP,))
        connection.execute("SELECT set_config('heap.app', %s, false)", (APP,))
        for name, (definition, _) in DEFINITIONS.items():
            connection.execute("SELECT heap.define_event(%s, %s)", (name, definition))
        connection.execute(
            f'INSERT INTO {APP}.users (user_id, properties) VALUES (1, \'{{"plan": "pro"}}\'), (2, \'{{"plan": 7}}\'),'
            " (3, '[]')"
        )


def settle(connection: psycopg.Connection[object]) -> None:
    connection.execute("SELECT set_config('heap.app', %s, false), set_config('heap.now', %s, false)", (APP, NOW))
