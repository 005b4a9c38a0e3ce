"""An embedded Citus cluster: a coordinator and workers on this machine, each a PostgreSQL cluster of its own."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psycopg

from heap_extension.cluster import Cluster, ClusterError

__all__ = ["CitusCluster"]

_HOST = "127.0.0.1"
_SETTINGS = """
# A node of Citus: every query opens connections for its shards, moved shards are replicated logically.
max_connections = 300
wal_level = logical
max_wal_senders = 32
max_replication_slots = 32
max_worker_processes = 64
max_logical_replication_workers = 16
shared_buffers = '256MB'
citus.node_conninfo = 'sslmode=prefer'
# Kernels load numpy once per connection: kept ones have it.
citus.max_cached_conns_per_worker = 4
"""


@dataclass(frozen=True, slots=True)
class CitusCluster:
    """A coordinator, with its workers in the folders `worker-<n>` beside its data.

    All nodes share the password of the role heap and know it from their PGPASSFILE. Other roles that query need theirs
    in Citus's pg_dist_authinfo.
    """

    coordinator: Cluster

    @property
    def dsn(self) -> str:
        """Where to connect: the coordinator."""
        return self.coordinator.dsn

    @property
    def workers(self) -> list[Cluster]:
        """The workers there are, by number."""
        found: list[Cluster] = []
        while self._worker(len(found) + 1).exists:
            found.append(self._worker(len(found) + 1))
        return found

    def up(self, workers: int = 0, port: int | None = None, *, preload: str | None = None, settings: str = "") -> None:
        """Starts all nodes there are, makes new workers until there are as many as asked for, and registers these.

        Args:
            workers: how many there should be, at least. Others that are there are only started: a worker that was
                removed from the cluster comes back when it is asked for.
            port: of the coordinator; None keeps its port, or takes a free one.
            preload: further libraries of new nodes' shared_preload_libraries.
            settings: further lines of new nodes' postgresql.conf.

        Raises:
            ClusterError: Citus is not installed, the coordinator was made to be alone, or a node did not start.
        """
        postgres = self.coordinator.postgres
        if not postgres.has_extension("citus"):
            raise ClusterError(
                f"Citus is not installed in PostgreSQL {postgres.version} ({postgres.bin}). Its own package repository"
                f" has it: the package postgresql-{postgres.version}-citus-13.2, or a later one; see"
                " https://docs.citusdata.com/en/stable/installation/multi_node_debian.html"
            )
        if self.coordinator.exists and self.coordinator.setting("wal_level") != "logical":
            raise ClusterError(
                f"the cluster in {self.coordinator.directory} was made without workers: choose another --data"
            )
        libraries = ", ".join(filter(None, ["citus", preload]))
        self.coordinator.up(port, preload=libraries, settings=_SETTINGS + settings)

        def start(worker: Cluster) -> None:
            # The other nodes know a worker by its port.
            worker.up(
                worker.port if worker.exists else None,
                preload=libraries,
                settings=_SETTINGS + settings,
                password=self.coordinator.password,
            )

        nodes = [self._worker(number) for number in range(1, max(workers, len(self.workers)) + 1)]
        with ThreadPoolExecutor() as threads:
            list(threads.map(start, nodes))
        self._register(nodes[:workers])

    def down(self) -> bool:
        """Stops all nodes. False when none ran."""
        stopped = [node.down() for node in (self.coordinator, *self.workers)]
        return any(stopped)

    def _worker(self, number: int) -> Cluster:
        return Cluster(self.coordinator.postgres, self.coordinator.directory / f"worker-{number}")

    def _register(self, workers: Iterable[Cluster]) -> None:
        for node in [self.coordinator, *workers]:
            with psycopg.connect(node.dsn, autocommit=True) as connection:
                connection.execute("CREATE EXTENSION IF NOT EXISTS citus")
        with psycopg.connect(self.coordinator.dsn, autocommit=True) as connection:
            nodes: dict[int, int] = dict(connection.execute("SELECT nodeport, groupid FROM pg_dist_node").fetchall())
            if nodes.get(self.coordinator.port) != 0:
                connection.execute("SELECT citus_set_coordinator_host(%s, %s)", (_HOST, self.coordinator.port))
            for worker in workers:
                if worker.port not in nodes:
                    connection.execute("SELECT citus_add_node(%s, %s)", (_HOST, worker.port))
