"""What an analyst waits for: the first call on a new connection, later calls, and compilation alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from heap_compiler import compile_statement
from heap_extension.cluster import Cluster
from heap_extension.install import install
from heap_extension.nodes import create_extension
from heap_extension.postgres import find_postgres
from tests.dictionary_catalog import DictionaryCatalog
from tests.extension.shop_app import ensure_shop, settle

_FUNNEL = 'funnel "Viewed pricing" -> "Clicked sign up" -> "Purchase" within 14 days over last 30 days'
_COMPILED = 'funnel "Viewed pricing" -> "Clicked sign up" -> "Purchase" within 14 days'


@pytest.fixture(scope="session")
def shop() -> Iterator[str]:
    """The demo's shop at its full size, in a cluster of its own."""
    import shutil
    import tempfile

    install(find_postgres())
    folder = Path(tempfile.mkdtemp(prefix="heap-bench-"))
    folder.chmod(0o755)
    cluster = Cluster(find_postgres(), folder / "cluster")
    cluster.up()
    try:
        create_extension(cluster.dsn)
        ensure_shop(cluster.dsn, users=11_500)
        yield cluster.dsn
    finally:
        cluster.down()
        shutil.rmtree(folder)


def test_first_call_on_a_new_connection(shop: str, benchmark: BenchmarkFixture) -> None:
    """Connecting is not counted; loading PL/Python, the compiler and its parser is."""
    connections: list[psycopg.Connection[Any]] = []

    def connect() -> tuple[tuple[psycopg.Connection[Any]], dict[str, Any]]:
        connection = psycopg.connect(shop)
        settle(connection)
        connections.append(connection)
        return (connection,), {}

    benchmark.pedantic(_ask, setup=connect, rounds=15)
    for connection in connections:
        connection.close()


def test_later_call(shop: str, benchmark: BenchmarkFixture) -> None:
    with psycopg.connect(shop) as connection:
        settle(connection)
        _ask(connection)
        benchmark(_ask, connection)


def test_its_sql_alone(shop: str, benchmark: BenchmarkFixture) -> None:
    """What is left of a later call when nothing has to be compiled: planning and running the SQL."""
    with psycopg.connect(shop) as connection:
        settle(connection)
        (sql,) = connection.execute("SELECT heap.sql(%s)", (_FUNNEL,)).fetchone() or ("",)
        benchmark(lambda: connection.execute(sql).fetchall())


def test_compile_a_new_statement(benchmark: BenchmarkFixture) -> None:
    benchmark(compile_statement, _COMPILED, DictionaryCatalog())


def _ask(connection: psycopg.Connection[Any]) -> list[Any]:
    return connection.execute("SELECT * FROM heap.funnel(%s)", (_FUNNEL,)).fetchall()
