"""`heap ingest`: the commands between an app and its tables. Each is carried out by the module of what it is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from heap_extension.command.connect import Dsn, fail, failing_clearly, find_dsn
from heap_ingest.capture.command import keys, serve
from heap_ingest.options import (
    Address,
    BootstrapServers,
    DeadLettersTopic,
    Places,
    Topic,
    embedded_broker,
    enrichment,
    find_bootstrap_servers,
)
from heap_ingest.topic_names import DEAD_LETTERS, EVENTS

__all__ = ["app"]

app = typer.Typer(
    name="ingest",
    help="From an app to its tables through Kafka, with nothing lost.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BrokerData = Annotated[
    Path | None, typer.Option(help="Folder of the broker; default: .heap-kafka here.", show_default=False)
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
    topic: Topic = EVENTS,
    dead_letters: DeadLettersTopic = DEAD_LETTERS,
    group: Annotated[str, typer.Option(help="Sinks of one group share the log's partitions.")] = "heap-sink",
    instance: Annotated[
        str | None,
        typer.Option(help="A name of its own for this sink: started again, it goes on at once.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(help="Events of a transaction, about.", min=1)] = 20_000,
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


@app.command()
def status(
    dsn: Dsn = None,
    bootstrap_servers: BootstrapServers = None,
    topic: Topic = EVENTS,
    seconds: Annotated[float, typer.Option(help="How long to measure rates for.", min=0.1)] = 1.0,
) -> None:
    """Show how far each partition of the log is stored, what is left, and the rates. Exits with 1 when no sink stores
    what is there."""
    import psycopg
    from rich.console import Console

    from heap_extension.command.analyses import print_table
    from heap_ingest.status import PartitionStatus, read_status

    with _failing_clearly(), psycopg.connect(find_dsn(dsn), autocommit=True) as connection:
        found = read_status(connection, find_bootstrap_servers(bootstrap_servers), topic, seconds)
        rounded = [row._replace(incoming=round(row.incoming), storing=round(row.storing)) for row in found]
        print_table(Console(), PartitionStatus._fields, rounded)
        lag, storing = sum(row.lag for row in found), sum(row.storing for row in found)
        typer.echo(
            f"{lag:,} messages to be stored; {sum(row.incoming for row in found):,.0f} a second come in,"
            f" {storing:,.0f} are stored; {sum(row.dead for row in found):,} dead letters so far"
        )
        if lag and not storing:
            fail("error: nothing is being stored: is a `heap ingest sink` running?")


@app.command()
def replay(
    start: Annotated[str, typer.Option("--from", help="beginning, a time (ISO 8601, UTC), or an offset.")],
    end: Annotated[
        str | None, typer.Option("--to", help="The end, likewise; default: all there is now.", show_default=False)
    ] = None,
    app_name: Annotated[str | None, typer.Option("--app", help="Only this app's; default: all.")] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build the app anew from the log, and put that in its place.")
    ] = False,
    keep_as: Annotated[
        str | None,
        typer.Option(help="With --rebuild: keep what was there as an app of this name.", show_default=False),
    ] = None,
    dsn: Dsn = None,
    bootstrap_servers: BootstrapServers = None,
    topic: Topic = EVENTS,
    places: Places = None,
    address: Address = "drop",
) -> None:
    """Store the log again, from some time or offset on. Changes nothing that is right, and fills what is missing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from heap_ingest.log import find_span, parse_start
    from heap_ingest.rebuild import rebuild as rebuild_app
    from heap_ingest.replay import replay as replay_span

    with _failing_clearly():
        database, servers = find_dsn(dsn), find_bootstrap_servers(bootstrap_servers)
        span = find_span(servers, parse_start(start), parse_start(end) if end is not None else None, topic)
        if rebuild and (app_name is None or start != "beginning" or end is not None):
            fail("error: --rebuild needs --app, --from beginning, and no --to")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("messages", total=span.length)
            added = enrichment(places, address)

            def progress(read: int) -> None:
                bar.update(task, completed=read)

            if rebuild:
                assert app_name is not None
                done = rebuild_app(
                    database, servers, topic, app_name, keep_as=keep_as, enrichment=added, progress=progress
                )
            else:
                done = replay_span(database, servers, span, app=app_name, enrichment=added, progress=progress)
        typer.echo(
            f"{done.read:,} messages read, {done.stored:,} items stored again, {done.rejected:,} cannot be stored"
        )


@app.command("dead-letters")
def dead_letters(
    show: Annotated[
        str | None,
        typer.Option(help="Print one as it was sent: <partition>:<offset> of the list.", show_default=False),
    ] = None,
    resend: Annotated[bool, typer.Option("--resend", help="Send them to the log again.")] = False,
    all_of_them: Annotated[bool, typer.Option("--all", help="Also those that were sent again before.")] = False,
    dsn: Dsn = None,
    bootstrap_servers: BootstrapServers = None,
    topic: Topic = EVENTS,
    dead_letters: DeadLettersTopic = DEAD_LETTERS,
) -> None:
    """List the messages that could not be stored, with the reasons; look at one; send them again."""
    import sys

    import psycopg
    from rich.console import Console

    from heap_extension.command.analyses import print_table
    from heap_ingest.dead_letters import DeadLetters
    from heap_ingest.log import Span

    with _failing_clearly(), psycopg.connect(find_dsn(dsn), autocommit=True) as connection:
        found = DeadLetters(connection, find_bootstrap_servers(bootstrap_servers), dead_letters)
        if show is not None:
            partition, _, offset = show.partition(":")
            if not partition.isdigit() or not offset.isdigit():
                fail(f"error: {show!r} is no place such as 3:17")
            place = Span(dead_letters, {int(partition): (int(offset), int(offset) + 1)})
            for letter in found.read(place):
                sys.stdout.buffer.write(letter.value + b"\n")
        elif resend:
            typer.echo(f"{found.resend(topic):,} sent again")
        else:
            letters = list(found.read(found.span(all_of_them=all_of_them)))
            rows = [
                (f"{letter.partition}:{letter.offset}", letter.time, ":".join(map(str, letter.source)), letter.reason)
                for letter in letters
            ]
            print_table(Console(), ["place", "time", "source", "reason"], rows)
            typer.echo(f"{len(letters):,} dead letters")


@contextmanager
def _failing_clearly() -> Iterator[None]:
    """As the other commands do, also with what Kafka says."""
    from confluent_kafka import KafkaException

    from heap_ingest.log import SpanError
    from heap_ingest.rebuild import RebuildError

    with failing_clearly():
        try:
            yield
        except (SpanError, RebuildError) as error:
            fail(f"error: {error}")
        except KafkaException as error:
            fail(f"error: Kafka: {error.args[0].str() if error.args else error}")


app.command()(serve)
app.add_typer(keys)
