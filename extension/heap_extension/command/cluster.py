"""`heap up`, `heap down`, `heap install`: the embedded cluster, and the extension in any database."""

from __future__ import annotations

from typing import Annotated

import typer

from heap_extension.citus_cluster import CitusCluster
from heap_extension.cluster import Cluster
from heap_extension.command.connect import Data, connect, embedded_cluster, failing_clearly
from heap_extension.install import VERSION, installed
from heap_extension.install import install as install_files
from heap_extension.nodes import create_extension, nodes
from heap_extension.postgres import find_postgres

__all__ = ["down", "install", "start", "up"]


def start(cluster: Cluster, port: int | None = None, preload: str | None = None, workers: int = 0) -> str:
    """Brings the cluster up with the extension on every node; its DSN."""
    if not installed(cluster.postgres):
        install_files(cluster.postgres)
    distributed = CitusCluster(cluster)
    if workers or distributed.workers:
        distributed.up(workers, port, preload=preload)
    else:
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
    workers: Annotated[
        int,
        typer.Option(help="Distribute with Citus over so many workers; more than there are adds some.", min=0),
    ] = 0,
) -> None:
    """Start an embedded PostgreSQL cluster with the extension, and print its DSN."""
    with failing_clearly():
        typer.echo(start(embedded_cluster(data), port, preload, workers))


def down(data: Data = None) -> None:
    """Stop the embedded cluster, all its nodes. Its data stays."""
    with failing_clearly():
        cluster = CitusCluster(embedded_cluster(data))
        typer.echo("stopped" if cluster.down() else "it was not running", err=True)


def install(
    dsn: Annotated[
        str | None,
        typer.Option(
            help="Also create or update the extension in this database; with Citus, on all its nodes.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Install the extension's files into this machine's PostgreSQL."""
    with failing_clearly():
        for path in install_files(find_postgres()):
            typer.echo(path)
        if dsn is not None:
            create_extension(dsn)
            with connect(dsn) as connection:
                places = ", ".join(node.place for node in nodes(connection))
                typer.echo(f"heap {VERSION} is in {places}")
