"""heap.complete knows the names of the app, on PostgreSQL and on Citus."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from tests.extension.shop_app import ensure_shop, settle


def _complete(connection: psycopg.Connection[Any], text: str, position: int | None = None) -> list[str]:
    return [word for (word,) in connection.execute("SELECT heap.complete(%s, %s)", (text, position))]


def test_names_of_the_app_complete(dsn: str, connection: psycopg.Connection[Any]) -> None:
    ensure_shop(dsn)
    settle(connection)
    assert '"Viewed pricing"' in _complete(connection, "funnel view")
    assert "pageview" in _complete(connection, "funnel ")
    assert "amount" in _complete(connection, "trend sum(")
    assert _complete(connection, "trend co of any", 8) == ["count"]
    took = []
    for _ in range(5):
        began = time.perf_counter()
        _complete(connection, "trend count of any where ")
        took.append(time.perf_counter() - began)
    assert min(took) < 0.05
    assert connection.execute("SELECT heap.complete(NULL)").fetchall()


def test_properties_of_users_complete(asked: psycopg.Connection[Any]) -> None:
    assert _complete(asked, "trend count of any where user.p") == ["plan"]


def test_without_an_app_the_language_completes(fresh_database: str) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION heap CASCADE")
        assert _complete(connection, "fu") == ["funnel"]
        assert '"' not in "".join(_complete(connection, "funnel "))
        connection.execute("SELECT heap.create_app('empty')")
        assert "any" in _complete(connection, "funnel ")
