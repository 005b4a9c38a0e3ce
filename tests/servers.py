"""What every test that starts servers of its own needs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from heap_extension.postgres import find_postgres

__all__ = ["QUICK", "Lender", "connect", "require_citus", "server_folder"]

QUICK = """
shared_buffers = '64MB'
fsync = off
"""
"""Settings of clusters that do not outlive the tests. What a killed server wrote is the kernel's by then."""


def require_citus() -> None:
    """Skips the test where Citus is not installed."""
    if not find_postgres().has_extension("citus"):
        pytest.skip("Citus is not installed in this machine's PostgreSQL")


@contextmanager
def server_folder() -> Iterator[Path]:
    """A folder for clusters, which the server's user can enter; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="heap-tests-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def connect(dsn: str, app: str) -> psycopg.Connection[Any]:
    """A connection that has chosen the app and commits every statement."""
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute("SELECT set_config('heap.app', %s, false)", (app,))
    return connection


class Lender:
    """Lends connections and takes them back as a pool does, so that a test has not to wait for Python in a new backend."""

    def __init__(self) -> None:
        self._kept: dict[str, psycopg.Connection[Any]] = {}

    @contextmanager
    def connection(self, dsn: str, *, autocommit: bool = False) -> Iterator[psycopg.Connection[Any]]:
        """A connection as good as new; what is not committed is rolled back."""
        connection = self._kept.pop(dsn, None)
        if connection is None or not _is_alive(connection):
            connection = psycopg.connect(dsn)
        connection.autocommit = autocommit
        try:
            yield connection
        finally:
            self._take_back(dsn, connection)

    def _take_back(self, dsn: str, connection: psycopg.Connection[Any]) -> None:
        try:
            connection.rollback()
            connection.autocommit = True
            connection.execute("DISCARD ALL")
            connection.autocommit = False
        except psycopg.Error:
            connection.close()
        else:
            self._kept[dsn] = connection

    def close(self) -> None:
        """Ends the connections that are not lent."""
        while self._kept:
            self._kept.popitem()[1].close()


def _is_alive(connection: psycopg.Connection[Any]) -> bool:
    """False where the server has ended it meanwhile, which closes it here, too."""
    try:
        connection.execute("SELECT 1")
        connection.rollback()
    except psycopg.OperationalError:
        connection.close()
    return not connection.closed
