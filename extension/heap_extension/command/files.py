"""`heap import`: a file of events into an app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import psycopg
import typer
from rich.console import Console
from rich.progress import Progress

from heap_extension.command.connect import Dsn, connect, fail, failing_clearly
from heap_extension.importer import FileReader, ImportMapping, Rejections
from heap_extension.load import Loader

__all__ = ["import_file"]


def import_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A CSV, TSV, NDJSON or Parquet file.")],
    app: Annotated[str, typer.Option(help="The app; it is created when it is not there.")],
    user_column: Annotated[str, typer.Option(help="Column of the user: numbers, or any text.")],
    time_column: Annotated[str, typer.Option(help="Column of the time: ISO 8601, or a number since 1970.")],
    type_column: Annotated[str | None, typer.Option(help="Column of the event type.", show_default=False)] = None,
    type: Annotated[str, typer.Option(help="The type of every event, without --type-column.")] = "pageview",  # noqa: A002
    id_column: Annotated[str | None, typer.Option(help="Column of the event id.", show_default=False)] = None,
    session_column: Annotated[str | None, typer.Option(help="Column of the session.", show_default=False)] = None,
    map: Annotated[  # noqa: A002
        list[str] | None, typer.Option(help="file_column=event_column, several times.", show_default=False)
    ] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="A column whose numbers stay text.", show_default=False)
    ] = None,
    time_zone: Annotated[str, typer.Option(help="Zone of a new app.")] = "UTC",
    rejected: Annotated[
        Path | None,
        typer.Option(help="Where refused rows go; default: <file>.rejected.tsv", show_default=False),
    ] = None,
    dsn: Dsn = None,
) -> None:
    """Import a file of events. Importing it again changes nothing."""
    columns: dict[str, str] = {}
    for pair in map or ():
        source, equals, target = pair.partition("=")
        if not equals:
            fail(f"error: --map takes file_column=event_column, not {pair}")
        columns[source] = target
    with failing_clearly(), connect(dsn) as connection:
        mapping = ImportMapping(
            user=user_column,
            time=time_column,
            type=type_column,
            fixed_type=type,
            event_id=id_column,
            session_id=session_column,
            columns=columns,
            text=frozenset(text_column or ()),
            zone=_zone_of(connection, app, time_zone),
        )
        rejections = Rejections(rejected or file.with_name(file.name + ".rejected.tsv"))
        loader = Loader(connection, app)
        try:
            with Progress(console=Console(stderr=True), transient=True) as progress:
                task = progress.add_task(file.name, total=None if file.suffix == ".parquet" else file.stat().st_size)
                reader = FileReader(file, mapping, rejections, lambda done: progress.update(task, completed=done))
                result = loader.load(reader.events())
                connection.commit()
                progress.update(task, description="vacuum, analyze")
                loader.tidy()
        finally:
            rejections.close()
    typer.echo(f"{result.inserted:,} events imported, {result.known:,} were there already, {result.users:,} new users")
    if rejections.count:
        typer.echo(f"{rejections.count:,} rows were refused: {rejections.path}", err=True)


def _zone_of(connection: psycopg.Connection[Any], app: str, time_zone: str) -> ZoneInfo:
    """The app's zone; a new app is created with `time_zone`."""
    found = connection.execute("SELECT time_zone FROM heap.app WHERE name = %s", (app,)).fetchone()
    if found is None:
        connection.execute("SELECT heap.create_app(%s, %s)", (app, time_zone))
        return ZoneInfo(time_zone)
    return ZoneInfo(found[0])
