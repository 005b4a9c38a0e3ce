"""Connections of the commands, and how their errors end: one message on stderr, exit code 1, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import psycopg
import typer

from heap_extension.cluster import Cluster, ClusterError, default_data_directory
from heap_extension.importer import ImportRefusedError
from heap_extension.install import InstallError
from heap_extension.postgres import PostgresMissingError, find_postgres

__all__ = ["App", "Data", "Dsn", "connect", "embedded_cluster", "fail", "failing_clearly", "find_dsn", "show_app_times"]

Dsn = Annotated[
    str | None,
    typer.Option(help="The database; default: HEAP_DSN, else the cluster of `heap up`.", show_default=False),
]
App = Annotated[str | None, typer.Option(help="The app; default: the only one there is.", show_default=False)]
Data = Annotated[
    Path | None, typer.Option(help="Folder of the embedded cluster; default: .heap here.", show_default=False)
]


def fail(message: str) -> NoReturn:
    """Ends the command with a message."""
    typer.echo(message, err=True)
    raise typer.Exit(1)


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Turns what can go wrong outside this program into a message."""
    try:
        yield
    except psycopg.Error as error:
        detail = error.diag.message_primary
        fail(detail if detail is not None else f"error: {error}")
    except (ClusterError, InstallError, PostgresMissingError, ImportRefusedError) as error:
        fail(f"error: {error}")
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        fail(f"error: {error}")


def embedded_cluster(data: Path | None = None) -> Cluster:
    """The cluster of `heap up`."""
    return Cluster(find_postgres(), (data or default_data_directory()).absolute())


def find_dsn(dsn: str | None) -> str:
    """The DSN given, else that of HEAP_DSN, else that of the embedded cluster.

    Raises:
        ClusterError: neither a DSN nor a running embedded cluster.
    """
    dsn = dsn or os.environ.get("HEAP_DSN")
    if dsn is None:
        cluster = embedded_cluster()
        if not cluster.is_running():
            raise ClusterError("no database: give --dsn, set HEAP_DSN, or run `heap up` here first")
        dsn = cluster.dsn
    return dsn


@contextmanager
def connect(dsn: str | None, app: str | None = None) -> Iterator[psycopg.Connection[Any]]:
    """A connection with heap.app set.

    Raises:
        ClusterError: neither a DSN nor a running embedded cluster.
    """
    with psycopg.connect(find_dsn(dsn), application_name="heap") as connection:
        if app is not None:
            connection.execute("SELECT set_config('heap.app', %s, false)", (app,))
        yield connection


def show_app_times(connection: psycopg.Connection[Any]) -> None:
    """Shows times in the app's zone, in which its days begin."""
    connection.execute(
        "SELECT set_config('TimeZone', time_zone, false) FROM heap.app"
        " WHERE name = coalesce(nullif(current_setting('heap.app', true), ''), name)"
    )
