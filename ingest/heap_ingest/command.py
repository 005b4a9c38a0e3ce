"""`heap ingest`: the commands between an app and its tables. Each is carried out by the module of what it is about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heap_extension.command.connect import failing_clearly
from heap_ingest.capture.command import keys, serve

if TYPE_CHECKING:
    from heap_ingest.broker import Broker

__all__ = ["BootstrapServers", "app", "find_bootstrap_servers"]

app = typer.Typer(
    name="ingest",
    help="From an app to its tables through Kafka, with nothing lost.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BootstrapServers = Annotated[
    str | None,
    typer.Option(help="Kafka; default: HEAP_BOOTSTRAP_SERVERS, else `heap ingest broker`.", show_default=False),
]
BrokerData = Annotated[
    Path | None, typer.Option(help="Folder of the broker; default: .heap-kafka here.", show_default=False)
]


def embedded_broker(data: Path | None = None) -> Broker:
    """The broker of `heap ingest broker`."""
    from heap_ingest.broker import Broker, find_kafka

    return Broker(find_kafka(), (data or Path(".heap-kafka")).absolute())


def find_bootstrap_servers(given: str | None) -> str:
    """The Kafka given, else that of HEAP_BOOTSTRAP_SERVERS, else the embedded broker.

    Raises:
        BrokerError: none of them.
    """
    from heap_ingest.broker import BrokerError

    servers = given or os.environ.get("HEAP_BOOTSTRAP_SERVERS")
    if servers is None:
        broker = embedded_broker()
        if not broker.is_running():
            raise BrokerError(
                "no Kafka: give --bootstrap-servers, set HEAP_BOOTSTRAP_SERVERS, or run `heap ingest broker` here first"
            )
        servers = broker.bootstrap_servers
    return servers


@app.command()
def broker(
    data: BrokerData = None,
    port: Annotated[int | None, typer.Option(help="Port on loopback; default: a free one.", show_default=False)] = None,
    partitions: Annotated[int, typer.Option(help="Of new topics: how many sinks can share the work.", min=1)] = 8,
    down: Annotated[bool, typer.Option("--down", help="Stop it. Its data stays.")] = False,
) -> None:
    """Start a Kafka of one node for development, make the topics, and print where clients connect."""
    from heap_ingest.topics import create_topics

    with failing_clearly():
        node = embedded_broker(data)
        if down:
            typer.echo("stopped" if node.down() else "it was not running", err=True)
            return
        node.up(port)
        create_topics(node.bootstrap_servers, partitions=partitions)
        typer.echo(node.bootstrap_servers)


app.command()(serve)
app.add_typer(keys)
