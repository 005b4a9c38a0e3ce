"""`heap ingest serve`, and `heap ingest keys`, without which it takes nothing."""

from __future__ import annotations

from typing import Annotated

import psycopg
import typer

from heap_extension.command.connect import App, Dsn, connect, fail, failing_clearly, find_dsn
from heap_ingest.options import BootstrapServers, Topic, find_bootstrap_servers
from heap_ingest.topic_names import EVENTS

__all__ = ["keys", "serve"]


def serve(
    dsn: Dsn = None,
    bootstrap_servers: BootstrapServers = None,
    topic: Topic = EVENTS,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
    workers: Annotated[int, typer.Option(help="Processes that take requests.", min=1)] = 1,
    proxies: Annotated[int, typer.Option(help="Proxies in front that add to X-Forwarded-For.", min=0)] = 0,
    events_per_second: Annotated[
        int, typer.Option(help="Events one write key may send to one process, where it says nothing else.", min=1)
    ] = 10_000,
    acknowledge_seconds: Annotated[
        float, typer.Option(help="Seconds until a request that Kafka does not acknowledge is answered 503.", min=0.1)
    ] = 10.0,
    client_seconds: Annotated[
        float, typer.Option(help="Seconds within which a client has to send its headers, and its body.", min=0.1)
    ] = 10.0,
    key_seconds: Annotated[float, typer.Option(help="Seconds until a revoked write key is refused.", min=0.1)] = 5.0,
    kafka: Annotated[
        list[str] | None, typer.Option(help="A setting of librdkafka, as name=value; may be given again.")
    ] = None,
) -> None:
    """Take events over HTTP, and answer when Kafka has acknowledged them."""
    from pydantic import ValidationError

    from heap_ingest.capture.limits import Limits
    from heap_ingest.capture.serve import CaptureSettings
    from heap_ingest.capture.serve import serve as serve_requests

    with failing_clearly():
        options = dict(setting.split("=", 1) for setting in kafka or () if "=" in setting)
        if len(options) != len(kafka or ()):
            fail("error: --kafka takes name=value")
        try:
            settings = CaptureSettings(
                find_dsn(dsn),
                find_bootstrap_servers(bootstrap_servers),
                topic,
                host=host,
                port=port,
                workers=workers,
                proxies=proxies,
                events_per_second=events_per_second,
                acknowledge_seconds=acknowledge_seconds,
                header_seconds=client_seconds,
                key_seconds=key_seconds,
                limits=Limits(body_seconds=client_seconds),
                kafka=options,
            )
        except ValidationError as error:
            fail("\n".join(f"error: {problem['loc'][0]}: {problem['msg']}" for problem in error.errors()))
        serve_requests(settings)


keys = typer.Typer(
    name="keys", help="Make, list and revoke the write keys of apps.", no_args_is_help=True, rich_markup_mode=None
)


@keys.command()
def make(
    app: Annotated[str, typer.Option(help="The app that events with this key belong to.")],
    dsn: Dsn = None,
    note: Annotated[str | None, typer.Option(help="What it is for.", show_default=False)] = None,
    address: Annotated[bool, typer.Option(help="Keep clients' IP addresses, as far as Kafka.")] = True,
    events_per_second: Annotated[
        int | None, typer.Option(help="Events it may send to one process.", min=1, show_default=False)
    ] = None,
) -> None:
    """Make a write key, and print it. It lets whoever has it send events to the app, and nothing else."""
    from heap_ingest.write_keys import make_write_key

    with failing_clearly(), connect(dsn) as connection:
        try:
            key = make_write_key(connection, app, note=note, keep_address=address, events_per_second=events_per_second)
        except psycopg.errors.ForeignKeyViolation:
            fail(f"error: unknown app '{app}'")
        connection.commit()
        typer.echo(key)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(help="The write key.")],
    dsn: Dsn = None,
) -> None:
    """Take nothing with a write key any more; capture servers refuse it within seconds."""
    from heap_ingest.write_keys import UnknownWriteKeyError, revoke_write_key

    with failing_clearly(), connect(dsn) as connection:
        try:
            revoke_write_key(connection, key)
        except UnknownWriteKeyError as error:
            fail(f"error: {error}")


@keys.command("list")
def list_keys(app: App = None, dsn: Dsn = None) -> None:
    """List write keys, those of an app or all: key, app, state and note, separated by tabs."""
    from heap_ingest.write_keys import list_write_keys

    with failing_clearly(), connect(dsn) as connection:
        for key in list_write_keys(connection, app):
            state = "valid" if key.revoked_at is None else f"revoked {key.revoked_at:%Y-%m-%d %H:%M}"
            typer.echo("\t".join([key.key, key.app, state, key.note or ""]))
