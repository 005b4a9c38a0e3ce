"""`heap doctor`: what is missing on this machine or in a database, and how to mend it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import psycopg
import typer

from heap_extension.command.connect import Dsn, embedded_cluster, failing_clearly
from heap_extension.install import VERSION, installed
from heap_extension.nodes import Node, asks_for_huge_pages, nodes
from heap_extension.postgres import MIN_VERSION, PostgresMissingError, find_postgres

__all__ = ["doctor"]

_LOCKS = 1024


class Finding(NamedTuple):
    """One thing that was looked at; `mend` says what to do when it is not well."""

    well: bool
    what: str
    mend: str = ""
    needed: bool = True


def doctor(dsn: Dsn = None) -> None:
    """Say what is missing, and how to mend it. Exits with 1 when something needed is."""
    findings = list(_machine())
    with failing_clearly():
        dsn = dsn or os.environ.get("HEAP_DSN")
        if dsn is None and findings[0].well:
            cluster = embedded_cluster()
            dsn = cluster.dsn if cluster.is_running() else None
        findings += _database(dsn) if dsn is not None else [Finding(False, "no database to look at", "heap up", False)]
    for finding in findings:
        mark = "ok     " if finding.well else "missing" if finding.needed else "note   "
        typer.echo(f"{mark} {finding.what}" + ("" if finding.well else f"\n        mend: {finding.mend}"))
    if any(finding.needed and not finding.well for finding in findings):
        raise typer.Exit(1)


def _machine() -> Iterator[Finding]:
    try:
        postgres = find_postgres()
    except PostgresMissingError:
        yield Finding(False, f"PostgreSQL {MIN_VERSION} or later", "apt-get install postgresql postgresql-plpython3-15")
        return
    yield Finding(True, f"PostgreSQL {postgres.version} in {postgres.bin}")
    yield Finding(
        postgres.has_extension("plpython3u"),
        "PL/Python",
        f"apt-get install postgresql-plpython3-{postgres.version}",
    )
    yield Finding(
        postgres.has_extension("pageinspect"),
        "pageinspect",
        "the package of PostgreSQL's contrib modules, where it is not part of PostgreSQL's own",
    )
    yield Finding(installed(postgres), f"the files of heap {VERSION} in PostgreSQL", "heap install, as root")
    yield Finding(
        postgres.has_extension("citus"),
        "Citus (only to distribute)",
        f"the package postgresql-{postgres.version}-citus-13.2 from Citus's own repository, see the README",
        needed=False,
    )
    java = shutil.which("java")
    yield Finding(java is not None, "Java (only for Kafka)", "apt-get install default-jre-headless", needed=False)


def _database(dsn: str) -> Iterator[Finding]:
    with psycopg.connect(dsn, application_name="heap doctor") as connection:

        def ask(query: str) -> str | None:
            row = connection.execute(query).fetchone()
            return None if row is None else str(row[0])

        version = ask("SELECT extversion FROM pg_extension WHERE extname = 'heap'")
        for node in nodes(connection):
            yield from _node(node)
        if version == VERSION:
            for name, asks in asks_for_huge_pages(connection).items():
                place = Node(name).place
                yield Finding(
                    asks,
                    f"server processes ask for huge pages in {place}"
                    if asks
                    else f"no huge pages for server processes in {place}",
                    "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment of the server: inserts cost a sixth less",
                    needed=False,
                )
        if version is not None:
            missing = ask("SELECT string_agg(name, ', ') FROM heap.events WHERE index_state <> 'ready'")
            yield Finding(
                missing in {None, "None"},
                "every definition has its indexes" if missing in {None, "None"} else f"indexes missing for {missing}",
                "define the events again: SELECT heap.define_event(name, definition)",
                needed=False,
            )
            waiting = ask(
                "SELECT string_agg(name, ', ') FROM heap.app CROSS JOIN LATERAL (SELECT reltuples FROM pg_class WHERE"
                " oid = to_regclass(quote_ident(name) || '.events_default')) AS d WHERE d.reltuples > 0"
            )
            yield Finding(
                waiting in {None, "None"},
                "no events wait in a default partition"
                if waiting in {None, "None"}
                else f"events wait in the default partition of {waiting}",
                "SELECT heap.make_partitions(app, first_time, last_time)",
                needed=False,
            )


def _node(node: Node) -> Iterator[Finding]:
    yield Finding(
        node.version == VERSION,
        f"extension heap {node.version or VERSION} in {node.place}",
        node.lack or "heap install --dsn ...",
    )
    if not node.answers:
        return
    locks, jit, wal = (node.settings[name] for name in ("max_locks_per_transaction", "jit", "wal_level"))
    yield Finding(
        int(locks) >= _LOCKS,
        f"max_locks_per_transaction = {locks} in {node.place}",
        f"set it to {_LOCKS} in postgresql.conf and restart: planning locks every index of a partition",
        needed=False,
    )
    yield Finding(
        jit == "off", f"jit = {jit} in {node.place}", "off: it costs these queries more than it gives", needed=False
    )
    if node.name is not None:
        yield Finding(
            wal == "logical",
            f"wal_level = {wal} in {node.place}",
            "set it to logical in postgresql.conf and restart: shards then move while events come in",
            needed=False,
        )
