"""A Citus cluster of several nodes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from heap_extension.citus_cluster import CitusCluster
from heap_extension.cluster import Cluster
from heap_extension.nodes import create_extension
from heap_extension.postgres import find_postgres

# Nothing here outlives the tests, and a killed server's writes are the kernel's by then.
_FAST = """
shared_buffers = '64MB'
fsync = off
"""


@pytest.fixture(scope="session")
def big_cluster(installed: None) -> Iterator[CitusCluster]:
    """A coordinator and two workers with the extension. Tests that add nodes remove them."""
    if not find_postgres().has_extension("citus"):
        pytest.skip("Citus is not installed in this machine's PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="heap-tests-"))
    folder.chmod(0o755)
    cluster = CitusCluster(Cluster(find_postgres(), folder / "cluster"))
    try:
        cluster.up(2, settings=_FAST)
        create_extension(cluster.dsn)
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder)


Measured = dict[str, float]
"""Seconds, by what took them."""
_measured: Measured = {}


@pytest.fixture
def measured() -> Measured:
    """What tests measured; printed after all of them."""
    return _measured


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _measured:
        terminalreporter.section("measured")
        for what, seconds in _measured.items():
            terminalreporter.write_line(f"{seconds:6.2f} s  {what}")
