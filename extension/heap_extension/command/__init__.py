"""The command line: `heap`. Each command is in the module of what it is about."""

from __future__ import annotations

from importlib.util import find_spec

import typer

from heap_extension.command import analyses, cluster, demo, doctor, files, maintain
from heap_extension.command.connect import fail

__all__ = ["app"]

app = typer.Typer(
    name="heap",
    help="Product analytics inside PostgreSQL and Citus.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("up")(cluster.up)
app.command("down")(cluster.down)
app.command("install")(cluster.install)
app.command("demo")(demo.demo)
app.command("query")(analyses.query)
app.command("sql")(analyses.sql)
app.command("explain")(analyses.explain)
app.command("import")(files.import_file)
app.command("maintain")(maintain.maintain)
app.command("doctor")(doctor.doctor)


def ingest() -> None:
    """From an app to its tables through Kafka: needs the extra `ingest`."""
    fail("error: `heap ingest` needs more packages: pip install 'heap-analytics[ingest]'")


if find_spec("confluent_kafka") is not None:
    from heap_ingest.command import app as ingest_commands

    app.add_typer(ingest_commands)
else:
    app.command("ingest", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(ingest)
