"""heap itself, on plain PostgreSQL or on Citus: an app per dataset, an index per definition."""

from __future__ import annotations

import hashlib
import io
import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.data import MONTHS, Dataset
from benchmarks.peers.peer import Asked, TookTooLongError
from benchmarks.work import EVENTS, GROUPED, NOW, Funnel, Paths, Question, Retention, Row, Trend
from heap_extension.citus_cluster import CitusCluster
from heap_extension.cluster import Cluster
from heap_extension.install import VERSION, extension_scripts
from heap_extension.maintain import Maintainer
from heap_extension.nodes import create_extension
from heap_extension.postgres import find_postgres

__all__ = ["Heap", "app_of", "plain_table", "users_of"]

_PATIENCE = 120
_AT_ONCE = 100_000
_HOURS = 720
"""Of a month."""
_SETTINGS = """
shared_buffers = '{shared_buffers}'
effective_cache_size = '12GB'
work_mem = '256MB'
maintenance_work_mem = '1GB'
max_wal_size = '16GB'
checkpoint_timeout = '30min'
random_page_cost = 1.1
autovacuum = off
heap.session_cache = '256MB'
"""
"""Enough memory for all indexes; what is loaded is vacuumed by hand, so that nothing runs beside what is measured."""
_PLANS = ("free", "pro", "team")


class Heap:
    """A cluster in `folder`; with `workers`, of a coordinator and so many.

    Attributes:
        tiers: whose events are defined.
    """

    def __init__(self, folder: Path, workers: int = 0, tiers: Sequence[str] | None = None) -> None:
        self.name = "heap on Citus" if workers else "heap"
        self.workers = workers
        self.tiers = tuple(EVENTS) if tiers is None else tuple(tiers)
        self.cluster = Cluster(find_postgres(), folder)
        self._connection: psycopg.Connection[Any] | None = None
        self._app: str | None = None

    @property
    def dsn(self) -> str:
        return self.cluster.dsn

    def start(self) -> None:
        """Runs the cluster; one whose extension other code made is made anew, and loaded again."""
        mark = self.cluster.directory / "extension"
        scripts = extension_scripts(VERSION, Path("-"))
        code = hashlib.sha256("\n".join(scripts[name] for name in sorted(scripts)).encode()).hexdigest()
        if self.cluster.exists and not (mark.exists() and mark.read_text() == code):
            self.stop()
            shutil.rmtree(self.cluster.directory)
        if self.workers:
            settings = _SETTINGS.format(shared_buffers="1GB")
            CitusCluster(self.cluster).up(self.workers, settings=settings)
        else:
            self.cluster.up(settings=_SETTINGS.format(shared_buffers="2GB"))
        with psycopg.connect(self.dsn) as connection:
            made = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'heap'").fetchone()
        if not made:
            create_extension(self.dsn)
            with psycopg.connect(self.dsn) as connection:  # as in the days that the last month has not yet
                connection.execute(
                    "UPDATE heap.settings SET pack_after = clock_timestamp() - %s::timestamptz", (f"{MONTHS[-1]}-15",)
                )
            mark.write_text(code)

    def stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self.workers:
            CitusCluster(self.cluster).down()
        else:
            self.cluster.down()

    def connect(self, app: str) -> psycopg.Connection[Any]:
        """A new connection that asks about that app."""
        connection = psycopg.connect(self.dsn, autocommit=True)
        connection.execute(
            "SELECT set_config('heap.app', %s, false), set_config('heap.now', %s, false),"
            " set_config('statement_timeout', %s, false)",
            (app, NOW, f"{_PATIENCE}s"),
        )
        return connection

    def load(self, dataset: Dataset) -> float:
        app = app_of(dataset)
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS public.loaded (app text, digest text, seconds float)")
            if self.workers:
                connection.execute(
                    "SELECT create_reference_table('public.loaded') WHERE NOT EXISTS"
                    " (SELECT FROM pg_dist_partition WHERE logicalrelid = 'public.loaded'::regclass)"
                )
            found = connection.execute(
                "SELECT seconds FROM public.loaded WHERE app = %s AND digest = %s", (app, dataset.digest)
            ).fetchone()
            if found:
                return float(found[0])
            if connection.execute("SELECT 1 FROM heap.app WHERE name = %s", (app,)).fetchone():
                connection.execute("SELECT heap.drop_app(%s)", (app,))
            began = time.perf_counter()
            # As many shards as there are cores: the same as workers here.
            connection.execute("SELECT heap.create_app(%s, 'UTC', %s)", (app, self.workers or None))
            connection.execute("SELECT heap.make_partitions(%s, %s, %s)", (app, f"{MONTHS[0]}-01", f"{MONTHS[-1]}-01"))
            settled, newest = _newest(dataset)
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(lambda file: self._copy(app, file), dataset.files[:-1]))
            self._copy_batches(app, settled)
            self._load_users(connection, app, dataset)
            connection.execute("SELECT set_config('heap.app', %s, false)", (app,))
            for event in (event for tier in self.tiers for event in EVENTS[tier]):
                connection.execute("SELECT heap.define_event(%s, %s)", (event.name, event.definition))
                if event.name in GROUPED:
                    connection.execute("SELECT heap.cover_event(%s, %s)", (event.name, GROUPED[event.name]))
            for table in ("users", *(f"events_{month.replace('-', '_')}" for month in MONTHS)):
                connection.execute(f"VACUUM (ANALYZE, FREEZE) {app}.{table}")
            # As where `heap maintain` runs: it packs months that are over, and each hour the last one, which goes on:
            # an hour of events came since.
            Maintainer(self.dsn).run_once()
            self._copy_batches(app, newest)
            connection.execute("CHECKPOINT")
            took = time.perf_counter() - began
            connection.execute("INSERT INTO public.loaded VALUES (%s, %s, %s)", (app, dataset.digest, took))
        return took

    def variants(self, question: Question) -> tuple[str, ...]:
        return ("",)

    def ask(self, dataset: Dataset, question: Question, variant: str) -> Asked:
        connection = self.asked(dataset)
        began = time.perf_counter()
        try:
            rows = connection.execute(*_call(question)).fetchall()
        except psycopg.errors.QueryCanceled:
            raise TookTooLongError(_PATIENCE) from None
        return Asked(time.perf_counter() - began, _answer(question, rows))

    def asked(self, dataset: Dataset) -> psycopg.Connection[Any]:
        """The connection that questions about the dataset go over."""
        app = app_of(dataset)
        if self._connection is None or self._connection.closed:
            self._connection, self._app = self.connect(app), app
        if self._app != app:
            self._connection.execute("SELECT set_config('heap.app', %s, false)", (app,))
            self._app = app
        return self._connection

    def bytes_per_event(self, dataset: Dataset) -> float:
        """The tables with their primary key, and the indexes of all definitions."""
        app = app_of(dataset)
        size = "citus_total_relation_size" if self.workers else "pg_total_relation_size"
        (total,) = self.asked(dataset).execute(
            f"SELECT sum({size}(inhrelid)) FROM pg_inherits WHERE inhparent = '{app}.events'::regclass"
        ).fetchone() or (0,)
        return float(total) / dataset.events

    def bytes_of_definitions(self, dataset: Dataset) -> dict[str, float]:
        """Bytes of the indexes and of the packs of one definition of each tier, on plain PostgreSQL."""
        app = app_of(dataset)
        sizes = {}
        for tier in self.tiers:
            (size,) = self.asked(dataset).execute(
                "SELECT bytes FROM heap.events WHERE app = %s AND name = %s", (app, EVENTS[tier][0].name)
            ).fetchone() or (0,)
            sizes[f"bytes of a definition, {tier}"] = float(size or 0)
            (size,) = self.asked(dataset).execute(
                "SELECT sum(bytes) FROM heap.pack_health(%s) WHERE event = %s", (app, EVENTS[tier][0].name)
            ).fetchone() or (0,)
            sizes[f"bytes of its packs, {tier}"] = float(size or 0)
        return sizes

    def settings(self) -> str:
        with psycopg.connect(self.dsn) as connection:
            names = [line.split(" = ")[0] for line in _SETTINGS.strip().splitlines()]
            asked = "SELECT name, current_setting(name, true) FROM unnest(%s::text[]) AS asked (name)"
            found = connection.execute(asked, ([*names, "jit"],)).fetchall()
            (version,) = connection.execute("SHOW server_version").fetchone() or ("",)
            citus = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'citus'").fetchone()
        on = f" with Citus {citus[0]}, {self.workers} workers, {self.workers} shards" if citus else ""
        set_to = ", ".join(f"{name} = {value}" for name, value in found if value)
        covered = "".join(f'; {column} covered for "{event}"' for event, column in GROUPED.items())
        return f"PostgreSQL {version}{on}; {set_to}{covered}"

    def _copy(self, app: str, file: Path) -> None:
        self._copy_batches(app, pq.ParquetFile(file).iter_batches(_AT_ONCE))

    def _copy_batches(self, app: str, batches: Iterable[pa.RecordBatch]) -> None:
        with psycopg.connect(self.dsn) as connection, connection.cursor() as cursor:
            for batch in batches:
                statement = f"COPY {app}.events ({', '.join(batch.schema.names)}) FROM STDIN (FORMAT csv)"
                with cursor.copy(statement) as copy:
                    copy.write(_csv(batch))

    def _load_users(self, connection: psycopg.Connection[Any], app: str, dataset: Dataset) -> None:
        with (
            connection.cursor() as cursor,
            cursor.copy(f"COPY {app}.users (user_id, identity, properties) FROM STDIN") as copy,
        ):
            for user in users_of(dataset):
                copy.write_row((user, f"user {user}", f'{{"plan": "{_PLANS[user % 3]}"}}'))


def app_of(dataset: Dataset) -> str:
    """The app's name."""
    return f"events_{dataset.events}"


def users_of(dataset: Dataset) -> list[int]:
    """The users that have events, in order."""
    users: set[int] = set()
    for file in dataset.files:
        users.update(pq.read_table(file, columns=["user_id"])["user_id"].unique().to_pylist())
    return sorted(users)


def plain_table(table: pa.Table) -> pa.Table:
    """The table with texts written out, as CSV wants them."""
    columns = [column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column for column in table.columns]
    return pa.table(columns, names=table.column_names)


def _newest(dataset: Dataset) -> tuple[list[pa.RecordBatch], list[pa.RecordBatch]]:
    """The events of the last month, in the order of time: all but an hour's worth, and these."""
    month = pq.read_table(dataset.files[-1])
    settled = len(month) - len(month) // _HOURS
    return month[:settled].to_batches(_AT_ONCE), month[settled:].to_batches(_AT_ONCE)


def _csv(batch: pa.RecordBatch) -> bytes:
    sink = io.BytesIO()
    table = plain_table(pa.Table.from_batches([batch]))
    pyarrow.csv.write_csv(table, sink, pyarrow.csv.WriteOptions(include_header=False))
    return sink.getvalue()


def _call(question: Question) -> tuple[str, tuple[str]]:
    match question:
        case Funnel():
            columns = "group_key, step, users FROM heap.funnel(%s)"
        case Trend():
            columns = "bucket, series, value FROM heap.trend(%s)"
        case Retention():
            columns = "cohort, period, users FROM heap.retention(%s)"
        case Paths():
            columns = "step, source, target, users FROM heap.paths(%s)"
    return f"SELECT {columns}", (question.statement,)


def _answer(question: Question, rows: list[Any]) -> set[Row]:
    match question:
        case Funnel():
            return {tuple(row) for row in rows if row[2]}
        case Trend():
            days: dict[str, dict[str, int]] = {}
            for bucket, series, value in rows:
                days.setdefault(_day(bucket), {})[series] = int(value)
            return {(day, of["events"], of["users"]) for day, of in days.items() if of["events"]}
        case Retention():
            return {(_day(cohort), period, users) for cohort, period, users in rows if users}
        case Paths(nodes=nodes):
            numbers = {None: None, **{node.name: number for number, node in enumerate(nodes, start=1)}}
            return {(step, numbers[source], numbers[target], users) for step, source, target, users in rows}


def _day(bucket: datetime) -> str:
    return bucket.date().isoformat()
