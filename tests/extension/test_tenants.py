"""Tenants: logins with the role of one app read, define and wait within it, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

_PASSWORD = "of the test"
_LOGINS = {
    "ada": "heap_acme_write",
    "rita": "heap_acme_read",
    "bob": "heap_bolt_write",
    "nobody": None,
}
_FUNNEL = "SELECT users FROM heap.funnel('\"Home\" -> \"Bought\" since ''2026-01-01''')"
_OPERATORS_ONLY = {
    "create_app": "makes schemas and roles",
    "drop_app": "drops them",
    "grant_roles": "makes roles",
    "grant_analyst": "grants roles",
    "_make_role": "makes roles",
    "_drop_roles": "drops roles",
    "_grant_functions": "grants",
}


@pytest.fixture(scope="module")
def tenants(dsn: str) -> Iterator[str]:
    """Two apps of the same events, and a login for each right."""
    with psycopg.connect(dsn, autocommit=True) as operator:
        _clean(operator)
        for app in ("acme", "bolt"):
            operator.execute("SELECT heap.create_app(%s)", (app,))
        for login, role in _LOGINS.items():
            operator.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{_PASSWORD}'")
            if role is not None:
                operator.execute(f"GRANT {role} TO {login}")
        operator.execute("CREATE SCHEMA lab AUTHORIZATION ada")
        for login, event in (("ada", "Home"), ("bob", "Home"), ("ada", "Bought"), ("bob", "Secret")):
            with _connect(dsn, login) as connection:
                connection.execute("SELECT heap.define_event(%s, %s)", (event, f"pageview where path = '/{event}'"))
        for app in ("acme", "bolt"):
            operator.execute(
                f"INSERT INTO {app}.events (user_id, time, event_id, type, path, properties)"
                " SELECT u, now() - interval '1 day' + i * interval '1 minute', i, 'pageview',"
                " CASE i WHEN 1 THEN '/Home' ELSE '/Bought' END, jsonb_build_object('of', %s::text)"
                " FROM generate_series(1, 5) AS u, generate_series(1, 2) AS i",
                (app,),
            )
            operator.execute(
                f"INSERT INTO {app}.users (user_id, identity) SELECT u, %s || u FROM generate_series(1, 5) AS u", (app,)
            )
        yield dsn
        _clean(operator)


def _clean(operator: psycopg.Connection[Any]) -> None:
    operator.execute("DROP SCHEMA IF EXISTS lab CASCADE")
    for (app,) in operator.execute("SELECT name FROM heap.app WHERE name IN ('acme', 'bolt', 'cord')").fetchall():
        operator.execute("SELECT heap.drop_app(%s)", (app,))
    for login in _LOGINS:
        operator.execute(f"DROP ROLE IF EXISTS {login}")


@contextmanager
def _connect(dsn: str, login: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(make_conninfo(dsn, user=login, password=_PASSWORD), autocommit=True) as connection:
        connection.execute("SET statement_timeout = '30s'")
        yield connection


def _one(connection: psycopg.Connection[Any], query: str, *arguments: Any) -> Any:
    row = connection.execute(query.encode(), arguments or None).fetchone()
    return row[0] if row else None


def test_a_writer_inserts_defines_and_analyses_its_app(tenants: str) -> None:
    with _connect(tenants, "ada") as ada:
        assert ada.execute(_FUNNEL).fetchall() == [(5,), (5,)]
        with ada.transaction(force_rollback=True):
            ada.execute(
                "INSERT INTO acme.events (user_id, time, event_id, type, path) VALUES (9, now(), 1, 'pageview', '/Home')"
            )
            ada.execute(
                "INSERT INTO acme.users (user_id, identity) VALUES (9, 'nine') ON CONFLICT (user_id) DO UPDATE SET identity = 'nine'"
            )
            assert ada.execute(_FUNNEL).fetchall() == [(6,), (5,)]
        ada.execute('SELECT heap.query(\'define "Either" as "Home" or "Bought"\')')
        assert ada.execute("SELECT name, index_state FROM heap.events ORDER BY 1").fetchall() == [
            ("Bought", "ready"), ("Either", "ready"), ("Home", "ready")]  # fmt: skip
        ada.execute("SELECT heap.drop_event('Either')")
        ada.execute("SELECT heap.define_segment('Buyers', 'users who did \"Bought\"')")
        ada.execute("SELECT heap.list_segment('Buyers')")
        ada.execute("SELECT heap.make_partitions('acme', '2025-01-01', '2025-01-02')")
        assert _one(ada, "SELECT count(*) FROM acme.events_2025_01") == 0
    with _connect(tenants, "rita") as rita:
        counted = "SELECT sum(value) FROM heap.trend('users of any where in segment \"Buyers\" over last 3 days')"
        assert _one(rita, counted) == 5
        assert rita.execute("SELECT name, listed_at IS NOT NULL FROM heap.segments").fetchall() == [("Buyers", True)]
    with _connect(tenants, "ada") as ada:
        ada.execute("SELECT heap.unlist_segment('Buyers')")
        ada.execute("SELECT heap.drop_segment('Buyers')")
