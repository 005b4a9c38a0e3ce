"""The questions in the SQL that PostgreSQL and DuckDB share.

A funnel comes in two formulations. By windows: one pass per step carries the latest start that can still reach an
event. By ASOF joins: each event of a step is joined with the last event of the step before it, which has the latest
start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.work import Event, Funnel, Paths, Question, Retention, Row, Trend

__all__ = ["by_asof_joins", "by_windows", "in_sql", "rows_of"]

Condition = Callable[[Event], str]
"""Prints what makes an event match in a system's own terms, and `true` for any event."""


def in_sql(question: Question, condition: Condition) -> str:
    """The question; a funnel by windows."""
    match question:
        case Funnel():
            return by_windows(question, condition)
        case Trend(event=event):
            return (
                "SELECT CAST(time AS date) AS day, count(*), count(DISTINCT user_id) FROM events"
                f" WHERE {condition(event)} GROUP BY day"
            )
        case Retention(start=start, back=back):
            return _retention(condition(start), condition(back))
        case Paths(nodes=nodes):
            return _paths(nodes, condition)


def rows_of(question: Question, answer: list[tuple[Any, ...]]) -> set[Row]:
    """The question's rows, out of what a system answered to its SQL."""
    if isinstance(question, Funnel):
        return question.rows(answer)
    return {tuple(value if isinstance(value, int | None) else str(value) for value in row) for row in answer}


def by_windows(funnel: Funnel, condition: Condition) -> str:
    """Rows: group, furthest step, users."""
    group = f", {funnel.group_by} AS grouped" if funnel.group_by else ", NULL AS grouped"
    query = (
        f"SELECT user_id, time, {_numbered(funnel.steps, condition)} AS step{group} FROM events"
        f" WHERE {_any_of(funnel.steps, condition)}"
    )
    query = (
        "SELECT user_id, time, grouped, step, CASE WHEN step = 1 THEN time END AS began,"
        f" CASE WHEN step = 1 THEN 1 ELSE 0 END AS reached FROM ({query}) AS steps"
    )
    for step in range(2, len(funnel.steps) + 1):
        arrives = f"step = {step} AND time <= start + INTERVAL '168 hours'"
        query = (
            f"SELECT user_id, time, grouped, step, CASE WHEN {arrives} THEN start END AS began,"
            f" CASE WHEN {arrives} THEN {step} ELSE reached END AS reached"
            " FROM (SELECT *, max(began) OVER (PARTITION BY user_id ORDER BY time"
            f" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS start FROM ({query}) AS earlier) AS carried"
        )
    return (
        "SELECT grouped, level, count(*) FROM (SELECT user_id, max(grouped) AS grouped, max(reached) AS level"
        f" FROM ({query}) AS events GROUP BY user_id) AS users WHERE level > 0 GROUP BY grouped, level"
    )


def by_asof_joins(funnel: Funnel, condition: Condition) -> str:
    """Rows: group, furthest step, users."""
    grouped = funnel.group_by or "NULL"
    parts = [
        f"chain_1 AS MATERIALIZED (SELECT user_id, time, time AS start, {grouped} AS grouped FROM events"
        f" WHERE {condition(funnel.steps[0])})"
    ]
    for step, event in enumerate(funnel.steps[1:], start=2):
        parts.append(
            f"chain_{step} AS MATERIALIZED (SELECT later.user_id, later.time, chain.start, chain.grouped"
            f" FROM (SELECT user_id, time FROM events WHERE {condition(event)}) AS later"
            f" ASOF JOIN chain_{step - 1} AS chain ON later.user_id = chain.user_id AND later.time > chain.time"
            " WHERE later.time <= chain.start + INTERVAL '168 hours')"
        )
    reached = " UNION ALL ".join(
        f"SELECT user_id, grouped, {step} AS level FROM chain_{step}" for step in range(1, len(funnel.steps) + 1)
    )
    return (
        f"WITH {', '.join(parts)} SELECT grouped, level, count(*) FROM (SELECT user_id, max(grouped) AS grouped,"
        f" max(level) AS level FROM ({reached}) AS reached GROUP BY user_id) AS users GROUP BY grouped, level"
    )


def _numbered(events: Sequence[Event], condition: Condition) -> str:
    whens = " ".join(f"WHEN {condition(event)} THEN {number}" for number, event in enumerate(events, start=1))
    return f"CASE {whens} END"


def _any_of(events: Sequence[Event], condition: Condition) -> str:
    return " OR ".join(f"({condition(event)})" for event in events)


def _retention(start: str, back: str) -> str:
    return (
        "WITH starts AS (SELECT user_id, CAST(date_trunc('week', min(time)) AS date) AS cohort FROM events"
        f" WHERE {start} GROUP BY user_id), returns AS (SELECT DISTINCT user_id, CAST(date_trunc('week', time) AS date)"
        f" AS week FROM events WHERE {back})"
        " SELECT cohort, 0, count(*) FROM starts GROUP BY cohort UNION ALL"
        " SELECT cohort, CAST((week - cohort) / 7 AS int), count(*) FROM starts JOIN returns USING (user_id)"
        " WHERE week - cohort BETWEEN 7 AND 56 GROUP BY cohort, week"
    )


def _paths(nodes: Sequence[Event], condition: Condition) -> str:
    marked = (
        f"SELECT user_id, time, {_numbered(nodes, condition)} AS node FROM events WHERE {_any_of(nodes, condition)}"
    )
    compared = (
        "SELECT *, lag(node) OVER life AS before, coalesce(time > lag(time) OVER life + INTERVAL '30 minutes', true)"
        f" AS begins FROM ({marked}) AS marked WINDOW life AS (PARTITION BY user_id ORDER BY time)"
    )
    numbered = (
        "SELECT *, sum(CASE WHEN begins THEN 1 ELSE 0 END) OVER (PARTITION BY user_id ORDER BY time"
        f" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS path FROM ({compared}) AS compared"
        " WHERE begins OR node <> before"
    )
    started = (
        "SELECT *, sum(CASE WHEN node = 1 THEN 1 ELSE 0 END) OVER (PARTITION BY user_id, path ORDER BY time"
        f" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS starts FROM ({numbered}) AS numbered"
    )
    steps = (
        "SELECT user_id, node, row_number() OVER path AS step, lead(node) OVER path AS target"
        f" FROM ({started}) AS started WHERE starts > 0 WINDOW path AS (PARTITION BY user_id, path ORDER BY time)"
    )
    return (
        f"SELECT step, node, target, count(DISTINCT user_id) FROM ({steps}) AS steps WHERE step <= 3"
        " GROUP BY step, node, target"
    )
