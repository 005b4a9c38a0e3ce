"""A Citus cluster of several nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from heap_extension.citus_cluster import CitusCluster
from heap_extension.cluster import Cluster
from heap_extension.nodes import create_extension
from heap_extension.postgres import find_postgres
from tests.servers import QUICK, require_citus, server_folder


@pytest.fixture(scope="session")
def big_cluster(installed: None) -> Iterator[CitusCluster]:
    """A coordinator and two workers with the extension. Tests that add nodes remove them."""
    require_citus()
    with server_folder() as folder:
        cluster = CitusCluster(Cluster(find_postgres(), folder / "cluster"))
        try:
            cluster.up(2, settings=QUICK)
            create_extension(cluster.dsn)
            yield cluster
        finally:
            cluster.down()
