"""The embedded cluster starts although others take ports."""

from __future__ import annotations

import socket

import pytest

from heap_extension import cluster as clusters
from heap_extension.cluster import Cluster, ClusterError
from heap_extension.postgres import find_postgres
from tests.servers import server_folder


def test_a_port_that_another_process_took_meanwhile_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with server_folder() as folder, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first, second = taken.getsockname()[1], clusters.free_port()
        ports = iter([first, second])
        monkeypatch.setattr(clusters, "free_port", lambda: next(ports))
        cluster = Cluster(find_postgres(), folder / "cluster")
        try:
            cluster.up()
            assert cluster.port == second
            cluster.down()
            with pytest.raises(ClusterError, match="could not create any TCP/IP sockets"):
                cluster.up(port=first)
        finally:
            cluster.down()
