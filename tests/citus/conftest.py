"""A Citus cluster of several nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from heap_extension.citus_cluster import CitusCluster
from heap_extension.cluster import Cluster
from heap_extension.nodes import create_extension
from heap_extension.postgres import find_postgres
from tests.servers import require_citus, server_folder

# Nothing here outlives the tests, and a killed server's writes are the kernel's by then.
_FAST = """
shared_buffers = '64MB'
fsync = off
"""


@pytest.fixture(scope="session")
def big_cluster(installed: None) -> Iterator[CitusCluster]:
    """A coordinator and two workers with the extension. Tests that add nodes remove them."""
    require_citus()
    with server_folder() as folder:
        cluster = CitusCluster(Cluster(find_postgres(), folder / "cluster"))
        try:
            cluster.up(2, settings=_FAST)
            create_extension(cluster.dsn)
            yield cluster
        finally:
            cluster.down()
