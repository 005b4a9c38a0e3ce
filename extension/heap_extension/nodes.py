"""The extension on every node of a database: which have its files, which have which version of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg

from heap_extension.install import VERSION, InstallError

__all__ = ["Node", "asks_for_huge_pages", "create_extension", "nodes"]


@dataclass(frozen=True, slots=True)
class Node:
    """What a node has.

    Attributes:
        name: host:port; None for a database without Citus.
        answers: whether it could be asked.
        has_python: whether PL/Python is installed on its machine.
        has_pageinspect: whether that contrib module is.
        has_files: whether this version's files are.
        version: of the extension in its database.
        settings: of its server, those that heap wants in a certain way.
    """

    name: str | None
    answers: bool = False
    has_python: bool = False
    has_pageinspect: bool = False
    has_files: bool = False
    version: str | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """In messages."""
        return "the database" if self.name is None else self.name

    @property
    def lack(self) -> str | None:
        """What keeps the extension from being created or updated there, and how to mend it."""
        if not self.answers:
            return f"{self.place} does not answer"
        if not self.has_python:
            return f"{self.place} has no PL/Python: apt-get install postgresql-plpython3-<version> on its machine"
        if not self.has_pageinspect:
            return f"{self.place} has no pageinspect: the package of PostgreSQL's contrib modules on its machine"
        if not self.has_files:
            return f"{self.place} has not the files of heap {VERSION}: `heap install` on its machine, as root"
        return None


_ASKED = f"""
SELECT json_build_object(
    'answers', true,
    'has_python', EXISTS (SELECT FROM pg_available_extensions WHERE name = 'plpython3u'),
    'has_pageinspect', EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pageinspect'),
    'has_files', EXISTS (SELECT FROM pg_available_extension_versions WHERE name = 'heap' AND version = '{VERSION}'),
    'version', (SELECT extversion FROM pg_extension WHERE extname = 'heap'),
    'settings', (SELECT json_object_agg(name, setting) FROM pg_settings
        WHERE name IN ('jit', 'max_locks_per_transaction', 'wal_level')))
"""

_CREATE = """
SELECT set_config('citus.enable_ddl_propagation', 'off', true);
CREATE EXTENSION IF NOT EXISTS heap CASCADE;
ALTER EXTENSION heap UPDATE
"""


def nodes(connection: psycopg.Connection[Any]) -> list[Node]:
    """The nodes of a Citus cluster, the coordinator first; of any other database itself."""
    return [Node(name, **answer) for name, answer in _answers(connection, _ASKED)]


def asks_for_huge_pages(connection: psycopg.Connection[Any]) -> dict[str | None, bool]:
    """By the names of nodes, whether their server processes ask for huge pages; this node has to have this version of
    the extension."""
    return {name: asks is True for name, asks in _answers(connection, "SELECT to_json(heap._asks_for_huge_pages())")}


def _answers(connection: psycopg.Connection[Any], query: str) -> list[tuple[str | None, Any]]:
    """The JSON that a query gives on each node of Citus by its name, the coordinator first, `{}` where it failed; the
    database's own, without name, where there are no nodes."""
    (has_citus,) = connection.execute(
        "SELECT count(*) FROM pg_extension WHERE extname = 'citus'"
    ).fetchone() or (0,)  # fmt: skip
    found: list[tuple[str | None, Any]] = []
    if has_citus:
        found = connection.execute(
            "SELECT n.nodename || ':' || n.nodeport, CASE WHEN r.success THEN r.result::json ELSE '{}' END"
            " FROM run_command_on_all_nodes(%s, give_warning_for_connection_errors => true) AS r"
            " JOIN pg_dist_node AS n USING (nodeid) ORDER BY n.groupid",
            (query,),
        ).fetchall()
    if not found:  # Citus, too, has no nodes before the first is added
        (answer,) = connection.execute(query).fetchone() or ({},)
        found = [(None, answer)]
    return found


def create_extension(dsn: str) -> None:
    """Creates the extension in a database, or brings it to this version; on every node.

    Raises:
        InstallError: nodes lack files, do not answer, or end up with another version. Their names are in the message.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        lacks = [node.lack for node in nodes(connection) if node.lack is not None]
        if lacks:
            raise InstallError("; ".join(lacks))
        connection.execute("CREATE EXTENSION IF NOT EXISTS heap CASCADE")
        if all(node.version == VERSION for node in nodes(connection)):
            return
        connection.execute("ALTER EXTENSION heap UPDATE")
        behind = [node for node in nodes(connection) if node.version != VERSION]
        if behind:
            connection.execute("SELECT run_command_on_workers(%s)", (_CREATE,))
            behind = [node for node in nodes(connection) if node.version != VERSION]
        if behind:
            found = ", ".join(f"{node.place} has {node.version or 'none'}" for node in behind)
            raise InstallError(f"the extension could not be brought to {VERSION} everywhere: {found}")
        connection.execute("SELECT heap.upgrade_apps()")
        connection.execute("SELECT heap.make_roles()")  # first: the nodes of Citus see them once committed
        connection.execute("SELECT heap.make_shards()")
        connection.execute("SELECT heap.grant_roles()")
