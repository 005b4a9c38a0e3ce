"""The demo's shop, loaded once into a database: real volumes for plans."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

import psycopg

from heap_extension.load import Loader
from heap_extension.shop import DEFINITIONS, shop_events

NOW = datetime(2026, 6, 20, 18, tzinfo=UTC)


@cache
def ensure_shop(dsn: str, users: int = 3_000, shard_count: int | None = None) -> None:
    """Makes the shop unless it is there."""
    with psycopg.connect(dsn) as connection:
        if connection.execute("SELECT 1 FROM heap.app WHERE name = 'shop'").fetchone():
            return
        connection.execute("SELECT heap.create_app('shop', 'Europe/Berlin', %s)", (shard_count,))
        loader = Loader(connection, "shop")
        loader.load(shop_events(NOW, users=users))
        connection.execute("SET heap.app = 'shop'")
        for name, definition in DEFINITIONS.items():
            connection.execute("SELECT heap.define_event(%s, %s)", (name, definition))
        connection.commit()
        loader.tidy()


def settle(connection: psycopg.Connection[object]) -> None:
    connection.execute("SELECT set_config('heap.app', 'shop', false), set_config('heap.now', %s, false)", (str(NOW),))
