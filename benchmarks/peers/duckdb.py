"""DuckDB: typed columns, sorted as ClickHouse's, in a file of its own; a funnel by windows and by ASOF joins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.data import Dataset
from benchmarks.peers.engine_process import Run
from benchmarks.peers.library import Library
from benchmarks.peers.peer import Asked
from benchmarks.peers.standard_sql import by_asof_joins, in_sql, rows_of
from benchmarks.work import Event, Funnel, Question, Test

__all__ = ["DuckDB"]

_PATIENCE = 60.0
_MEMORY = "8GB"


def open_duckdb(path: str) -> Run:
    """A function that runs SQL in the database at `path`."""
    import duckdb

    connection = duckdb.connect(path)
    connection.execute(f"SET threads = {os.cpu_count()}")
    connection.execute(f"SET memory_limit = '{_MEMORY}'")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")

    def run(sql: str) -> list[tuple[Any, ...]]:
        return connection.execute(sql).fetchall()

    return run


class DuckDB(Library):
    """A schema for each dataset, all in one file under `folder`."""

    name = "DuckDB"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, open_duckdb, "events.duckdb")

    def _load(self, dataset: Dataset) -> None:
        self._engine.run(f"CREATE SCHEMA IF NOT EXISTS {_schema(dataset)}")
        self._engine.run(
            f"CREATE OR REPLACE TABLE {_schema(dataset)}.events AS SELECT * REPLACE (CAST(time AS timestamp) AS time)"
            f" FROM read_parquet('{dataset.pattern}') ORDER BY type, user_id, time"
        )
        self._engine.run("CHECKPOINT")

    def variants(self, question: Question) -> tuple[str, ...]:
        return ("windows", "ASOF joins") if isinstance(question, Funnel) else ("windows",)

    def ask(self, dataset: Dataset, question: Question, variant: str) -> Asked:
        if variant == "ASOF joins":
            assert isinstance(question, Funnel)
            sql = by_asof_joins(question, _condition)
        else:
            sql = in_sql(question, _condition)
        self._engine.run(f"USE {_schema(dataset)}")
        seconds, rows = self._engine.run(sql, _PATIENCE)
        return Asked(seconds, rows_of(question, rows))

    def bytes_per_event(self, dataset: Dataset) -> float:
        self._engine.run(f"USE {_schema(dataset)}")
        _, rows = self._engine.run(
            "SELECT count(DISTINCT block_id) * 262144 FROM pragma_storage_info('events') WHERE persistent"
        )
        return float(rows[0][0]) / dataset.events

    def settings(self) -> str:
        _, rows = self._engine.run("SELECT version()")
        return (
            f"DuckDB {rows[0][0]}; table ordered by type, user_id, time; threads = {os.cpu_count()};"
            f" memory_limit = {_MEMORY}"
        )


def _schema(dataset: Dataset) -> str:
    return f"events_{dataset.events}"


def _condition(event: Event) -> str:
    return " AND ".join(map(_test, event.tests)) or "true"


def _test(test: Test) -> str:
    literal = "'" + test.value.replace("'", "''") + "'"
    return f"{test.column} = {literal}" if test.operator == "=" else f"regexp_matches({test.column}, {literal})"
