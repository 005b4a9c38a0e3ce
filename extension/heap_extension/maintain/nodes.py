"""The nodes of a cluster, connected to directly: a worker's shards are its tables."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

__all__ = ["APPLICATION", "connect_node"]

APPLICATION = "heap maintain"

# A node that was cut off must not hold its thread for the two hours of TCP's defaults.
_IMPATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


def connect_node(dsn: str, node: str | None) -> psycopg.Connection[Any]:
    """A connection in autocommit mode to the database, or with its user and password to one of its nodes.

    Args:
        dsn: of the coordinator.
        node: host:port, or None for the coordinator itself.
    """
    parameters: dict[str, Any] = {**conninfo_to_dict(dsn), **_IMPATIENCE, "application_name": APPLICATION}
    if node is not None:
        host, port = node.rsplit(":", 1)
        parameters.update(host=host, port=port)
        parameters.pop("hostaddr", None)
    connection = psycopg.connect(make_conninfo(**parameters), autocommit=True)
    connection.execute("SET client_min_messages = warning")
    if connection.execute("SELECT FROM pg_extension WHERE extname = 'citus'").fetchone() is not None:
        connection.execute("SET citus.override_table_visibility = off")  # which hides shards
        connection.execute("SET citus.enable_manual_changes_to_shards = on")
        connection.execute("SET citus.enable_ddl_propagation = off")
        connection.execute("SET citus.node_connection_timeout = '5s'")
        connection.execute("SET citus.max_cached_conns_per_worker = 0")  # one to a node that was cut off would wait
    return connection
