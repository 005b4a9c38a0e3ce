"""`heap query`, `heap sql`, `heap explain`: statements of the analysis language from the shell."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from heap_extension.command.connect import App, Dsn, connect, failing_clearly, show_app_times

__all__ = ["Format", "explain", "print_table", "query", "sql"]

Statement = Annotated[str, typer.Argument(help="A statement of the analysis language; - reads it from stdin.")]


class Format(StrEnum):
    """How `heap query` prints rows."""

    table = "table"
    csv = "csv"
    json = "json"


def _read(statement: str) -> str:
    return sys.stdin.read() if statement == "-" else statement


def query(
    statement: Statement,
    dsn: Dsn = None,
    app: App = None,
    format: Annotated[Format, typer.Option(help="How rows are printed.")] = Format.table,  # noqa: A002
) -> None:
    """Run a statement and print its rows."""
    with failing_clearly(), connect(dsn, app) as connection:
        text = _read(statement)
        cursor = connection.execute("SELECT kind, statements FROM heap._compile('statement', ARRAY[%s])", (text,))
        kind, statements = cursor.fetchone() or (None, [])
        if kind != "query":  # a definition, or an error that heap.query raises in its own words
            connection.execute("SELECT heap.query(%s)", (text,))
            typer.echo("done", err=True)
            return
        connection.execute("SET jit = off")
        show_app_times(connection)
        cursor = connection.execute(statements[0])
        names = [column.name for column in cursor.description or ()]
        _print(names, cursor.fetchall(), format)


def _print(names: Sequence[str], rows: Sequence[Sequence[Any]], format: Format) -> None:  # noqa: A002
    match format:
        case Format.table:
            print_table(Console(), names, rows)
        case Format.csv:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(names)
            writer.writerows(rows)
        case Format.json:
            for row in rows:
                typer.echo(json.dumps(dict(zip(names, row, strict=True)), default=_as_json, ensure_ascii=False))


def _as_json(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value.total_seconds() if isinstance(value, timedelta) else str(value)


def print_table(console: Console, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Rows as a table; columns that are null in every row are left out."""
    shown = [index for index in range(len(names)) if not rows or any(row[index] is not None for row in rows)]
    table = Table()
    for index in shown:
        number = any(isinstance(row[index], (int, Decimal, float, timedelta)) for row in rows)
        table.add_column(names[index], justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(names[index], row[index]) for index in shown))
    console.print(table)


def _cell(name: str, value: Any) -> str:
    match value:
        case None:
            return ""
        case Decimal() if name.endswith("conversion") or name in {"rate", "share"}:
            return f"{value:.1%}"
        case Decimal() if name == "p_value":
            return f"{value:.6f}"
        case Decimal():
            return f"{value:,.2f}".rstrip("0").rstrip(".")
        case int():
            return f"{value:,}"
        case timedelta():
            return str(timedelta(seconds=round(value.total_seconds())))
        case str():
            return value.replace("[", r"\[")
    return str(value)


def sql(statement: Statement, dsn: Dsn = None, app: App = None) -> None:
    """Print the SQL a statement compiles to."""
    _print_lines("SELECT heap.sql(%s)", statement, dsn, app)


def explain(statement: Statement, dsn: Dsn = None, app: App = None) -> None:
    """Print how a statement runs: which index serves each step, and the plan."""
    _print_lines("SELECT heap.explain(%s)", statement, dsn, app)


def _print_lines(call: str, statement: str, dsn: str | None, app: str | None) -> None:
    with failing_clearly(), connect(dsn, app) as connection:
        for (line,) in connection.execute(call, (_read(statement),)):
            typer.echo(line)
