"""`heap up`, `heap down`, `heap install`: the embedded cluster, and the extension in any database."""

from __future__ import annotations

from typing import Annotated

import psycopg
import typer

from heap_extension.cluster import Cluster
from heap_extension.command.connect import Data, connect, embedded_cluster, failing_clearly
from heap_extension.install import VERSION, installed
from heap_extension.install import install as install_files
from heap_extension.postgres import find_postgres

__all__ = ["create_extension", "down", "install", "start", "up"]


def create_extension(dsn: str) -> None:
    """Creates the extension in a database, or brings it to this version. What follows is on stderr and in the logs."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute("CREATE EXTENSION IF NOT EXISTS heap CASCADE")
        row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'heap'").fetchone()
        if row is not None and row[0] != VERSION:
            connection.execute("ALTER EXTENSION heap UPDATE")
            connection.execute("SELECT heap.make_roles()")  # first: the nodes of Citus see them once committed
            connection.execute("SELECT heap.grant_roles()")


def start(cluster: Cluster, port: int | None = None, preload: str | None = None) -> str:
    """Brings the cluster up with the extension in it; its DSN."""
    if not installed(cluster.postgres):
        install_files(cluster.postgres)
    cluster.up(port, preload=preload)
    create_extension(cluster.dsn)
    return cluster.dsn


def up(
    data: Data = None,
    port: Annotated[int | None, typer.Option(help="Port on loopback; default: a free one.", show_default=False)] = None,
    preload: Annotated[
        str | None,
        typer.Option(help="shared_preload_libraries of a new cluster, such as citus.", show_default=False),
    ] = None,
) -> None:
    """Start an embedded PostgreSQL cluster with the extension, and print its DSN."""
    with failing_clearly():
        typer.echo(start(embedded_cluster(data), port, preload))


def down(data: Data = None) -> None:
    """Stop the embedded cluster. Its data stays."""
    with failing_clearly():
        cluster = embedded_cluster(data)
        typer.echo("stopped" if cluster.down() else "it was not running", err=True)


def install(
    dsn: Annotated[
        str | None,
        typer.Option(help="Also create or update the extension in this database.", show_default=False),
    ] = None,
) -> None:
    """Install the extension's files into this machine's PostgreSQL."""
    with failing_clearly():
        for path in install_files(find_postgres()):
            typer.echo(path)
        if dsn is not None:
            create_extension(dsn)
            with connect(dsn):
                typer.echo(f"heap {VERSION} is in the database")
