"""`heap demo`: a generated shop, five definitions, and analyses shown as statement, SQL, plan and table."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any

import psycopg
import typer
from rich.console import Console
from rich.rule import Rule
from rich.syntax import Syntax

from heap_extension.command.analyses import print_table
from heap_extension.command.cluster import start
from heap_extension.command.connect import Dsn, embedded_cluster, failing_clearly, show_app_times
from heap_extension.load import Loader
from heap_extension.nodes import create_extension
from heap_extension.shop import DEFINITIONS, shop_events

__all__ = ["demo"]

_APP = "shop"
_ANALYSES = (
    'funnel "Viewed pricing" -> "Clicked sign up" -> "Purchase" within 14 days over last 60 days',
    'funnel "Viewed pricing" -> "Signed up" within 7 days over last 60 days group by country',
    'trend users of "Viewed product" as visitors, sum(amount) of "Purchase" as revenue by week over last 6 weeks',
)


def demo(
    dsn: Dsn = None,
    users: Annotated[
        int | None, typer.Option(help="Visitors to generate; 17 events each. Default: 11,500, or 300 with --ingest.")
    ] = None,
    ingest: Annotated[
        bool, typer.Option("--ingest", help="Send events over HTTP and Kafka instead, and kill the sink on the way.")
    ] = False,
) -> None:
    """Load a generated shop into the app `shop`, define events and print real analyses."""
    console = Console(highlight=False, width=110)
    if ingest:
        _demonstrate_ingest(dsn, console, 300 if users is None else users)
        return
    with failing_clearly():
        if dsn is None:
            dsn = start(embedded_cluster())
        else:
            create_extension(dsn)
        with psycopg.connect(dsn, application_name="heap demo") as connection:
            _load(connection, console, 11_500 if users is None else users)
            _define(connection, console)
            show_app_times(connection)
            for statement in _ANALYSES:
                _show(connection, console, statement)
        console.print(Rule("Your turn"))
        console.print(f"psql '{dsn}'", soft_wrap=True)
        console.print("SELECT * FROM heap.funnel('Viewed pricing', 'Clicked sign up', 'Purchase');")


def _demonstrate_ingest(dsn: str | None, console: Console, users: int) -> None:
    """The way of events through capture server, Kafka and sink, and a funnel of what came out."""
    from heap_ingest.demo import DEMO_APP, demonstrate
    from heap_ingest.options import embedded_broker

    with failing_clearly():
        if dsn is None:
            dsn = start(embedded_cluster())
        else:
            create_extension(dsn)
        broker = embedded_broker()
        started_here = not broker.is_running()
        broker.up()
        try:
            demonstrate(dsn, broker.bootstrap_servers, console, users)
        finally:
            if started_here:
                broker.down()
        with psycopg.connect(dsn, application_name="heap demo") as connection:
            connection.execute("SELECT set_config('heap.app', %s, false)", (DEMO_APP,))
            show_app_times(connection)
            _show(connection, console, _ANALYSES[0], with_sql=False)


def _load(connection: psycopg.Connection[Any], console: Console, users: int) -> None:
    found = connection.execute("SELECT 1 FROM heap.app WHERE name = %s", (_APP,)).fetchone()
    if found is None:
        connection.execute("SELECT heap.create_app(%s, 'Europe/Berlin')", (_APP,))
    connection.execute("SELECT set_config('heap.app', %s, false)", (_APP,))
    loader, started = Loader(connection, _APP), time.monotonic()
    with console.status("generating a shop ..."):
        result = loader.load(shop_events(datetime.now(UTC), users=users))
        connection.commit()
        loader.tidy()
    console.print(f"{result.inserted:,} events of {result.users:,} users loaded in {time.monotonic() - started:.1f} s")


def _define(connection: psycopg.Connection[Any], console: Console) -> None:
    console.print(Rule("Definitions, retroactive: each becomes a partial index"))
    for name, definition in DEFINITIONS.items():
        started = time.monotonic()
        connection.execute("SELECT heap.define_event(%s, %s)", (name, definition))
        console.print(f'define "{name}" as {definition}', markup=False, soft_wrap=True)
        console.print(f"  indexed in {time.monotonic() - started:.2f} s", style="dim")
    cursor = connection.execute("SELECT name, index_state, matching_events, bytes FROM heap.events ORDER BY name")
    print_table(console, [column.name for column in cursor.description or ()], cursor.fetchall())


def _show(connection: psycopg.Connection[Any], console: Console, statement: str, *, with_sql: bool = True) -> None:
    console.print(Rule("Analysis"))
    console.print(statement, style="bold", markup=False, soft_wrap=True)
    (sql,) = connection.execute("SELECT heap.sql(%s)", (statement,)).fetchone() or ("",)
    if with_sql:
        console.print(Syntax(sql, "sql", background_color="default"))
    for (line,) in connection.execute("SELECT heap.explain(%s)", (statement,)):
        if not line:
            break
        console.print(f"plan: {line}", style="green", markup=False, soft_wrap=True)
    started = time.monotonic()
    cursor = connection.execute(sql)
    rows = cursor.fetchall()
    print_table(console, [column.name for column in cursor.description or ()], rows)
    console.print(f"{(time.monotonic() - started) * 1000:.0f} ms", style="dim")
