"""What planning costs: the partitions and indexes that a query of a range opens, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from heap_extension.server.plans import plan_nodes

_DEFINITIONS = 10
_FIRST, _LAST = "2024-07-01", "2026-06-30"


@pytest.fixture(scope="module")
def two_years(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """An app with 24 months of events and some definitions, on the 20th of June 2026."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        distributed = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone()
        connection.execute("SELECT heap.create_app('planned', 'UTC', %s)", (2 if distributed else None,))
        connection.execute(
            "SELECT set_config('heap.app', 'planned', false), set_config('heap.now', '2026-06-20', false),"
            " set_config('heap.strategy', 'merge', false)"  # kernels keep their plans
        )
        connection.execute("SELECT heap.make_partitions('planned', %s, %s)", (_FIRST, _LAST))
        connection.execute(
            "INSERT INTO planned.events (user_id, time, event_id, type, path) SELECT n %% 50,"
            " %s::timestamptz + n %% 720 * interval '1 day', n, 'pageview', '/' || n %% 10 FROM generate_series(1, 7200) AS n",
            (_FIRST,),
        )  # fmt: skip
        for number in range(_DEFINITIONS):
            connection.execute("SELECT heap.define_event(%s, %s)", (f"E{number}", f"pageview where path = '/{number}'"))
        yield connection
        connection.execute("SELECT heap.drop_app('planned')")


def _months(plan: Any) -> set[str]:
    """The partitions that a plan reads, without the numbers of shards."""
    names = {str(node["Relation Name"]) for node in plan_nodes(plan) if "Relation Name" in node}
    return {name for named in names for name in re.findall(r"events_(\d{4}_\d\d)", named)}


def _sql(connection: psycopg.Connection[Any], statement: str) -> str:
    (sql,) = connection.execute("SELECT heap.sql(%s)", (statement,)).fetchone() or ("",)
    return str(sql)


@pytest.mark.parametrize(
    ("statement", "months"),
    [
        ('trend count of "E1" by day over last 30 days', {"2026_05", "2026_06"}),
        ("trend count of \"E1\" by day from '2026-06-01' to '2026-06-20'", {"2026_06"}),
        (
            'funnel "E1" -> "E2" -> "E3" within 7 days from \'2025-02-01\' to \'2025-02-26\'',
            {"2025_02", "2025_03"},
        ),
        (
            "retention from \"E1\" to \"E2\" by week for 4 weeks from '2025-09-01' to '2025-09-07'",
            {"2025_09", "2025_10"},
        ),
    ],
)
def test_only_the_months_of_the_range_are_planned(
    two_years: psycopg.Connection[Any], statement: str, months: set[str]
) -> None:
    (plan,) = two_years.execute(f"EXPLAIN (FORMAT JSON) {_sql(two_years, statement)}").fetchone() or (None,)  # type: ignore[arg-type]
    assert _months(plan) == months


def _locked_indexes(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """How many indexes of each partition the open transaction has locked. Planning locks all of them, running a plan
    that was kept only those it reads."""
    return dict(
        connection.execute(
            "SELECT t.relname, count(*) FROM pg_locks AS l JOIN pg_index AS i ON i.indexrelid = l.relation"
            " JOIN pg_class AS t ON t.oid = i.indrelid WHERE l.pid = pg_backend_pid()"
            " AND t.relnamespace = 'planned'::regnamespace AND t.relispartition GROUP BY 1"
        ).fetchall()
    )


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_planning_locks_the_indexes_of_those_months_and_no_others(two_years: psycopg.Connection[Any]) -> None:
    sql = _sql(two_years, 'funnel "E1" -> "E2" -> "E3" within 7 days over last 30 days')
    with two_years.transaction():
        (explained,) = two_years.execute(f"EXPLAIN (SUMMARY, FORMAT JSON) {sql}").fetchone() or ([],)  # type: ignore[arg-type]
        locked = _locked_indexes(two_years)
    indexes = _DEFINITIONS + 1
    assert locked == {"events_2026_05": indexes, "events_2026_06": indexes}
    assert explained[0]["Planning Time"] < 500


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_kernels_plan_once_in_a_session(two_years: psycopg.Connection[Any]) -> None:
    """Whatever the number of definitions and partitions, later calls open the indexes that they read and no others,
    until definitions change."""

    def locked(ranged: str) -> dict[str, int]:
        sql = _sql(two_years, f'funnel "E1" -> "E2" within 7 days {ranged}')
        assert "heap._funnel_kernel" in sql
        with two_years.transaction():
            two_years.execute(sql.encode())
            return _locked_indexes(two_years)

    months = [f"events_{year}_{month:02d}" for year in (2024, 2025, 2026) for month in range(1, 13)]
    months = months[months.index("events_2024_07") : months.index("events_2026_06") + 1]
    every, own = _DEFINITIONS + 1, 2
    two_years.execute("SELECT set_config('heap.strategy', 'vector', false)")
    try:
        two_years.execute("VACUUM ANALYZE planned.events")
        # Of months that stay the same events would be kept; pages that not all see all of may be read without an index.
        two_years.execute("UPDATE planned.events SET path = path WHERE event_id <= 720")
        two_years.execute("SET enable_seqscan = off")
        assert locked("from '2024-07-01' to '2026-06-20'") == dict.fromkeys(months, every)
        assert locked("from '2024-07-01' to '2026-06-20'") == dict.fromkeys(months, own)
        two_years.execute("SELECT heap.define_event('Other', 'purchase')")
        assert locked("from '2024-07-01' to '2026-06-20'") == dict.fromkeys(months, every + 1), "an index more"
        assert locked("from '2024-07-01' to '2026-06-20'") == dict.fromkeys(months, own)
        assert set(locked("from '2025-02-03' to '2025-03-10'").values()) == {every + 1}, "parts of months, first"
        assert set(locked("from '2025-02-07' to '2025-03-16'").values()) == {own}
    finally:
        two_years.execute("RESET enable_seqscan")
        two_years.execute("SELECT set_config('heap.strategy', 'merge', false)")
