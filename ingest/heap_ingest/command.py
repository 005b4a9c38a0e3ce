"""`heap ingest`: the commands between an app and its tables. Each is carried out by the module of what it is about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heap_extension.command.connect import Dsn, fail, failing_clearly, find_dsn
from heap_ingest.capture.command import keys, serve

if TYPE_CHECKING:
    from heap_ingest.broker import Broker
    from heap_ingest.enrich import AddressUse, Enrichment

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


Topic = Annotated[str, typer.Option(help="The topic of the log.")]
DeadLetters = Annotated[str, typer.Option(help="The topic of messages that cannot be stored.")]
Places = Annotated[
    Path | None,
    typer.Option(help="MaxMind DB file: countries, regions and cities of addresses.", show_default=False),
]
Address = Annotated[
    str,
    typer.Option(help="What becomes of addresses: drop, hash (with the key in HEAP_ADDRESS_KEY) or keep."),
]


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


@app.command()
def sink(
    dsn: Dsn = None,
    bootstrap_servers: BootstrapServers = None,
    topic: Topic = "heap-events",
    dead_letters: DeadLetters = "heap-dead-letters",
    group: Annotated[str, typer.Option(help="Sinks of one group share the log's partitions.")] = "heap-sink",
    instance: Annotated[
        str | None,
        typer.Option(help="A name of its own for this sink: started again, it goes on at once.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(help="Messages of a transaction, at most.", min=1)] = 5_000,
    linger: Annotated[float, typer.Option(help="Seconds to wait for a batch to fill.", min=0.01)] = 0.2,
    places: Places = None,
    address: Address = "drop",
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve /metrics for Prometheus on this port of loopback.", show_default=False)
    ] = None,
) -> None:
    """Store the log in the tables, each message once. Several may run; they share the work.

    Waits for a database or a Kafka that is away. Ends at SIGTERM or SIGINT, after the batch at hand.
    """
    import gc
    import signal

    from prometheus_client import start_http_server

    from heap_ingest.sink import LogMissingError, Sink

    with failing_clearly():
        worker = Sink(
            find_dsn(dsn),
            find_bootstrap_servers(bootstrap_servers),
            topic=topic,
            dead_letters=dead_letters,
            group=group,
            instance=instance,
            batch=batch,
            linger=linger,
            enrichment=enrichment(places, address),
            report=lambda line: typer.echo(line, err=True),
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: worker.stop())
        if metrics_port is not None:
            start_http_server(metrics_port, addr="127.0.0.1", registry=worker.metrics.registry)
        # A batch is many objects and no cycles: looking for some every 700 objects would take a third of the time.
        gc.set_threshold(200_000, 20, 100)
        try:
            worker.run()
        except LogMissingError as error:
            fail(f"error: {error}")


def enrichment(places: Path | None, address: str) -> Enrichment:
    """What the options say is added to events."""
    from heap_ingest.enrich import Enrichment

    uses: dict[str, AddressUse] = {"drop": "drop", "hash": "hash", "keep": "keep"}
    if address not in uses:
        fail(f"error: --address {address!r} is none of {', '.join(uses)}")
    try:
        return Enrichment(places, uses[address], os.environ.get("HEAP_ADDRESS_KEY", "").encode())
    except ValueError as error:
        fail(f"error: {error}: set HEAP_ADDRESS_KEY")


app.command()(serve)
app.add_typer(keys)
