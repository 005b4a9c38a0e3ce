"""PostgreSQL as it is used without heap: one table, properties as jsonb, b-trees and a GIN index over all of them."""

from __future__ import annotations

import json
import time
from typing import Any

import psycopg

from benchmarks.data import Dataset
from benchmarks.peers.heap import Heap, app_of
from benchmarks.peers.peer import Asked, TookTooLongError
from benchmarks.peers.standard_sql import in_sql, rows_of
from benchmarks.work import Event, Funnel, Question, Test

__all__ = ["Postgres"]

_PATIENCE = 60
_COLUMNS = (
    "path", "target_text", "hierarchy", "country", "device_type", "os", "browser", "referrer", "utm_source",
    "landing_page",
)  # fmt: skip


class Postgres:
    """A schema beside the app of each dataset, in the cluster of `heap`: the same server, the same settings."""

    name = "PostgreSQL, GIN"

    def __init__(self, heap: Heap) -> None:
        self._heap = heap
        self._connection: psycopg.Connection[Any] | None = None

    def start(self) -> None:
        self._heap.start()

    def stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def load(self, dataset: Dataset) -> float:
        """From the app's table: the same rows in the same order."""
        schema = f"plain_{dataset.events}"
        properties = "jsonb_strip_nulls(jsonb_build_object({})) || properties".format(
            ", ".join(f"'{name}', {name}" for name in _COLUMNS)
        )
        with psycopg.connect(self._heap.dsn, autocommit=True) as connection:
            found = connection.execute(
                "SELECT seconds FROM public.loaded WHERE app = %s AND digest = %s", (schema, dataset.digest)
            ).fetchone()
            if found:
                return float(found[0])
            began = time.perf_counter()
            connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
            connection.execute(f"CREATE SCHEMA {schema}")
            connection.execute(
                f"CREATE TABLE {schema}.events AS SELECT user_id, time, event_id, session_id, type, {properties}"
                f" AS properties FROM {app_of(dataset)}.events"
            )
            connection.execute(f"ALTER TABLE {schema}.events ADD PRIMARY KEY (user_id, time, event_id)")
            connection.execute(f"CREATE INDEX ON {schema}.events (type, time)")
            connection.execute(f"CREATE INDEX ON {schema}.events USING gin (properties jsonb_path_ops)")
            connection.execute(f"VACUUM (ANALYZE, FREEZE) {schema}.events")
            took = time.perf_counter() - began
            connection.execute("INSERT INTO public.loaded VALUES (%s, %s, %s)", (schema, dataset.digest, took))
        return took

    def variants(self, question: Question) -> tuple[str, ...]:
        return ("windows",) if isinstance(question, Funnel) else ("",)

    def ask(self, dataset: Dataset, question: Question, variant: str) -> Asked:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._heap.dsn, autocommit=True)
        self._connection.execute(
            "SELECT set_config('search_path', %s, false), set_config('statement_timeout', %s, false),"
            " set_config('TimeZone', 'UTC', false)",
            (f"plain_{dataset.events}", f"{_PATIENCE}s"),
        )
        sql = in_sql(question, _condition)
        if isinstance(question, Funnel) and question.group_by:
            sql = sql.replace(f", {question.group_by} AS grouped", f", properties->>'{question.group_by}' AS grouped")
        began = time.perf_counter()
        try:
            rows = self._connection.execute(sql).fetchall()  # type: ignore[arg-type]
        except psycopg.errors.QueryCanceled:
            raise TookTooLongError(_PATIENCE) from None
        return Asked(time.perf_counter() - began, rows_of(question, rows))

    def bytes_per_event(self, dataset: Dataset) -> float:
        with psycopg.connect(self._heap.dsn) as connection:
            (total,) = connection.execute(
                "SELECT pg_total_relation_size(%s::regclass)", (f"plain_{dataset.events}.events",)
            ).fetchone() or (0,)
        return float(total) / dataset.events

    def settings(self) -> str:
        return (
            "the server of heap; primary key (user_id, time, event_id), (type, time), GIN (properties jsonb_path_ops)"
        )


def _condition(event: Event) -> str:
    return " AND ".join(map(_test, event.tests)) or "true"


def _test(test: Test) -> str:
    if test.column == "type":
        return f"type = {_literal(test.value)}"
    if test.operator == "=":
        return f"properties @> {_literal(json.dumps({test.column: test.value}))}"
    return f"properties->>{_literal(test.column)} ~ {_literal(test.value)}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
