"""While users are being merged, queries read in other ways: as much on the workers and from the indexes as ever."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

import heap_grammar
from heap_extension.server.plans import plan_nodes
from tests.citus.test_pushdown import problems
from tests.extension.shop_app import ensure_shop, settle

_EXAMPLES = re.findall(r"```heap\n(.*?)\n```", heap_grammar.reference_text(), re.S)
_FUNNEL = 'funnel "Viewed pricing" -> "Clicked sign up" -> "Purchase" within 7 days over last 30 days'


def _merge_nobody(connection: psycopg.Connection[Any], is_moved: bool) -> None:
    """What the catalog says while sixty users are merged, who are not there."""
    connection.execute(
        "INSERT INTO heap.user_merge (app, user_id, merged_into, batch, is_moved)"
        " SELECT 'shop', user_id, 9000, 77, %s FROM generate_series(1, 60) AS user_id",
        (is_moved,),
    )
    connection.execute("UPDATE heap.app SET version = nextval('heap.catalog_version') WHERE name = 'shop'")


@pytest.mark.parametrize("dsn", ["citus"], indirect=True)
@pytest.mark.parametrize("is_moved", [False, True], ids=["copying", "moved"])
def test_no_example_of_the_reference_brings_users_to_the_coordinator(dsn: str, is_moved: bool) -> None:
    ensure_shop(dsn)
    found = {}
    with psycopg.connect(dsn) as connection:
        settle(connection)
        _merge_nobody(connection, is_moved)
        for example in _EXAMPLES:
            if example.startswith("segment"):
                connection.execute("SELECT heap.query(%s)", (example,))
            elif example.split()[0].lower() not in {"define", "drop"}:
                found[example] = list(problems(connection, example))
        connection.rollback()
    assert not any(found.values()), "\n".join(f"{problem} {example}" for example, problem in found.items() if problem)


@pytest.mark.parametrize("is_moved", [False, True], ids=["copying", "moved"])
def test_a_funnel_is_still_merged_from_its_indexes(dsn: str, is_moved: bool) -> None:
    """All users but the merged ones; those are looked up one by one."""
    ensure_shop(dsn)
    with psycopg.connect(dsn) as connection:
        settle(connection)
        connection.execute("SET citus.enable_local_execution = off")  # the node writes to its shards over connections
        before = connection.execute("SELECT * FROM heap.funnel(%s)", (_FUNNEL,)).fetchall()
        _merge_nobody(connection, is_moved)
        (sql,) = connection.execute("SELECT heap.sql(%s)", (_FUNNEL,)).fetchone() or ("",)
        (plan,) = connection.execute("EXPLAIN (FORMAT JSON) " + sql).fetchone() or ("",)
        nodes = list(plan_nodes(plan))
        scans = [node for node in nodes if "Scan" in node.get("Node Type", "") and "step_" in node.get("Alias", "")]
        others = [node for node in scans if "<> ALL" in node.get("Filter", "")]
        assert others
        assert {node["Node Type"] for node in others} == {"Index Only Scan"}
        assert all("merge_id" in str(node) for node in scans if node not in others)
        sorts = [node for node in nodes if node.get("Node Type") == "Sort" and "event_id" in str(node["Sort Key"])]
        assert all("<> ALL" not in str(node) for node in sorts)
        assert connection.execute("SELECT * FROM heap.funnel(%s)", (_FUNNEL,)).fetchall() == before
        connection.rollback()
