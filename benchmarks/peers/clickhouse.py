"""ClickHouse, as the library chdb: typed columns in the order that suits it best, and properties as JSON text.

Typed: LowCardinality columns without nulls, sorted by type, user and time, merged into one part. A question is asked
with the conditions of its events as they are, and with lists of texts where they are equalities, each with and without
aggregation in the order of the table. JSON: the table and the order that PostHog stores its events in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from benchmarks.data import Dataset
from benchmarks.peers.engine_process import Run
from benchmarks.peers.library import Library
from benchmarks.peers.peer import Asked
from benchmarks.work import Event, Funnel, Paths, Question, Retention, Row, Test, Trend

__all__ = ["ClickHouse"]

_PATIENCE = 60.0
_TEXTS = (
    "type", "path", "target_text", "hierarchy", "country", "device_type", "os", "browser", "referrer", "utm_source",
    "landing_page",
)  # fmt: skip
_IN_ORDER = " SETTINGS optimize_aggregation_in_order = 1"


def open_clickhouse(path: str) -> Run:
    """A function that runs SQL in the database at `path`."""
    import chdb

    connection = chdb.connect(path)

    def run(sql: str) -> list[tuple[Any, ...]]:
        answer = str(connection.query(sql, "JSONCompact"))
        return [tuple(row) for row in json.loads(answer)["data"]] if answer else []

    for setting in (f"max_threads = {os.cpu_count()}", "output_format_json_quote_64bit_integers = 0"):
        run(f"SET {setting}")
    return run


class ClickHouse(Library):
    """All datasets in one database under `folder`, a table each."""

    def __init__(self, folder: Path, layout: Literal["typed", "json"]) -> None:
        self.layout = layout
        self.name = "ClickHouse" if layout == "typed" else "ClickHouse, JSON"
        super().__init__(folder, open_clickhouse, "database")

    def _load(self, dataset: Dataset) -> None:
        table = _table(dataset)
        self._engine.run(f"DROP TABLE IF EXISTS {table}")
        source = f"file('{dataset.pattern}', 'Parquet')"
        if self.layout == "typed":
            columns = ", ".join(f"{name} LowCardinality(String)" for name in _TEXTS)
            texts = ", ".join(f"ifNull({name}, '')" for name in _TEXTS)
            self._engine.run(
                f"CREATE TABLE {table} (user_id UInt64, time DateTime('UTC'), event_id UInt64, session_id UInt64,"
                f" {columns}, properties String) ENGINE = MergeTree ORDER BY (type, user_id, time)"
            )
            self._engine.run(
                f"INSERT INTO {table} SELECT user_id, time, event_id, session_id, {texts}, properties FROM {source}"
            )
        else:
            pairs = ", ".join(f"'{name}', ifNull({name}, '')" for name in (*_TEXTS, "properties") if name != "type")
            self._engine.run(
                f"CREATE TABLE {table} (user_id UInt64, time DateTime('UTC'), event_id UInt64,"
                " type LowCardinality(String), properties String CODEC(ZSTD(3))) ENGINE = MergeTree"
                " PARTITION BY toYYYYMM(time) ORDER BY (toDate(time), type, cityHash64(user_id), cityHash64(event_id))"
            )
            self._engine.run(
                f"INSERT INTO {table} SELECT user_id, time, event_id, type,"
                f" toJSONString(mapFilter((name, value) -> value != '', map({pairs},"
                f" 'session_id', toString(session_id)))) FROM {source}"
            )
        self._engine.run(f"OPTIMIZE TABLE {table} FINAL")

    def variants(self, question: Question) -> tuple[str, ...]:
        if self.layout == "json" or not question.events[0].tests:
            return ("plain",)
        return ("plain", "lists", "plain, in order", "lists, in order")

    def ask(self, dataset: Dataset, question: Question, variant: str) -> Asked:
        sql = self.sql(question, variant).replace("{table}", _table(dataset))
        seconds, rows = self._engine.run(sql, _PATIENCE)
        return Asked(seconds, _answer(question, rows))

    def bytes_per_event(self, dataset: Dataset) -> float:
        _, rows = self._engine.run(
            f"SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = '{_table(dataset)}'"
        )
        return float(rows[0][0]) / dataset.events

    def settings(self) -> str:
        _, rows = self._engine.run("SELECT version()")
        order = (
            "MergeTree ORDER BY (type, user_id, time), LowCardinality texts"
            if self.layout == "typed"
            else "MergeTree PARTITION BY month ORDER BY (day, type, hash of user, hash of event), properties"
            " as JSON text, ZSTD"
        )
        return f"ClickHouse {rows[0][0]} in chdb; {order}; max_threads = {os.cpu_count()}; merged (OPTIMIZE FINAL)"

    def sql(self, question: Question, variant: str) -> str:
        """The question about `{table}`."""
        where = _lists if variant.startswith("lists") else _any_of
        condition = self._condition
        tail = _IN_ORDER if variant.endswith("in order") else ""
        match question:
            case Funnel(steps=steps, group_by=group_by):
                conditions = ", ".join(map(condition, steps))
                grouped = "NULL" if group_by is None else f"any({self._column(group_by)})"
                return (
                    "SELECT grouped, level, count() FROM"
                    f" (SELECT user_id, {grouped} AS grouped, windowFunnel(604800)(time, {conditions}) AS level"
                    f" FROM {{table}} WHERE {where(steps, condition)} GROUP BY user_id)"
                    f" WHERE level > 0 GROUP BY grouped, level{tail}"
                )
            case Trend(event=event):
                return (
                    "SELECT toDate(time) AS day, count(), uniqExact(user_id) FROM {table}"
                    f" WHERE {condition(event)} GROUP BY day{tail}"
                )
            case Retention(start=start, back=back):
                return (
                    "SELECT cohort, intDiv(week - cohort, 7), count() FROM (SELECT user_id,"
                    f" toMonday(minIf(time, {condition(start)})) AS cohort,"
                    f" arrayJoin(arrayConcat([cohort], arrayFilter(week -> week > cohort AND week <= cohort + 56,"
                    f" groupUniqArrayIf(toMonday(time), {condition(back)})))) AS week"
                    f" FROM {{table}} WHERE {where((start, back), condition)} GROUP BY user_id"
                    f" HAVING countIf({condition(start)}) > 0) GROUP BY cohort, week{tail}"
                )
            case Paths(nodes=nodes):
                return _paths(nodes, condition, where(nodes, condition)) + tail

    def _condition(self, event: Event) -> str:
        return " AND ".join(map(self._test, event.tests)) or "1"

    def _test(self, test: Test) -> str:
        column = self._column(test.column)
        if test.operator == "=":
            return f"{column} = {_literal(test.value)}"
        return f"match({column}, {_literal(test.value)})"

    def _column(self, name: str) -> str:
        return name if self.layout == "typed" or name == "type" else f"JSONExtractString(properties, '{name}')"


def _table(dataset: Dataset) -> str:
    return f"events_{dataset.events}"


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _any_of(events: tuple[Event, ...], condition: Callable[[Event], str]) -> str:
    return " OR ".join(f"({condition(event)})" for event in events)


def _lists(events: tuple[Event, ...], condition: Callable[[Event], str]) -> str:
    """Of each type, every column against the list of texts that events are equal to; other conditions as they are."""
    lists: dict[tuple[str, str], list[str]] = {}
    others = []
    for event in events:
        match event.tests:
            case (Test("type", "=", of_type), Test(column, "=", value)):
                lists.setdefault((of_type, column), []).append(_literal(value))
            case (Test("type", "=", of_type),):
                lists.setdefault(("", "type"), []).append(_literal(of_type))
            case _:
                others.append(condition(event))
    parts = [
        (f"type = {_literal(of_type)} AND " if of_type else "") + f"{column} IN ({', '.join(values)})"
        for (of_type, column), values in lists.items()
    ]
    return " OR ".join(f"({part})" for part in (*parts, *others))


def _paths(nodes: tuple[Event, ...], condition: Callable[[Event], str], where: str) -> str:
    whens = ", ".join(f"{condition(node)}, {number}" for number, node in enumerate(nodes, start=1))
    lives = (
        f"SELECT user_id, arraySort(groupArray((time, multiIf({whens}, 0)))) AS life FROM {{table}} WHERE {where}"
        " GROUP BY user_id"
    )
    whole = (
        "SELECT user_id, arrayCompact(arrayJoin(arraySplit((node, gap) -> gap > 1800, life.2,"
        f" arrayDifference(arrayMap(at -> toUInt32(at), life.1))))) AS whole FROM ({lives})"
    )
    paths = f"SELECT user_id, arraySlice(whole, indexOf(whole, 1)) AS path FROM ({whole}) WHERE has(whole, 1)"
    steps = (
        "SELECT user_id, arrayJoin(arrayMap(step -> (step, path[step], path[step + 1]),"
        f" range(1, least(3, length(path)) + 1))) AS step FROM ({paths})"
    )
    return (
        f"SELECT step.1, step.2, nullIf(step.3, 0), uniqExact(user_id) FROM ({steps}) GROUP BY step.1, step.2, step.3"
    )


def _answer(question: Question, rows: list[tuple[Any, ...]]) -> set[Row]:
    return question.rows(rows) if isinstance(question, Funnel) else set(rows)
