"""Every analysis runs on the workers: what comes back to the coordinator are totals, not users."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import heap_grammar
from heap_extension.server.plans import plan_nodes
from tests.extension.shop_app import ensure_shop, settle

_EXAMPLES = re.findall(r"```heap\n(.*?)\n```", heap_grammar.reference_text(), re.S)


@pytest.mark.parametrize("dsn", ["citus"], indirect=True)
def test_no_example_of_the_reference_brings_users_to_the_coordinator(dsn: str) -> None:
    """Every task of every query aggregates (or, in a list of users, is asked for them), and none reads what another
    query brought together, but for the top groups. Percentiles of a trend need every value on the coordinator."""
    ensure_shop(dsn)
    problems = {}
    with psycopg.connect(dsn) as connection:
        settle(connection)
        for example in _EXAMPLES:
            first = example.split()[0].lower()
            if first == "segment":
                connection.execute("SELECT heap.query(%s)", (example,))
            if first in {"define", "drop", "segment"}:
                continue
            found = list(problems(connection, example))
            if found:
                problems[example] = found
        connection.rollback()
    assert problems == {}, "\n".join(f"{found} {example}" for example, found in problems.items())


def problems(connection: psycopg.Connection[Any], statement: str) -> Iterator[str]:
    (sql,) = connection.execute("SELECT heap.sql(%s)", (statement,)).fetchone() or ("",)
    (plan,) = connection.execute(f"EXPLAIN (FORMAT JSON) {sql}").fetchone() or (None,)
    tasks = [[node for node in plan_nodes(task["Remote Plan"]) if "Node Type" in node]
             for task in plan_nodes(plan) if "Remote Plan" in task]  # fmt: skip
    on_shards = [nodes for nodes in tasks if any("Relation Name" in node for node in nodes)]
    if not on_shards:
        yield "nothing reads the shards"
    for nodes in on_shards:
        top = nodes[0]["Node Type"]
        is_list = statement.startswith("users") or re.search(r"^trend .*\b(median|p\d\d)\b", statement)
        is_kernel = top == "ProjectSet" and nodes[1]["Relation Name"].startswith("shards")  # one row of which calls it
        if top not in {"Aggregate", "Group", "Unique"} and not is_list and not is_kernel:
            yield f"a task ends in {top}"
        if " top " not in statement and any(node.get("Function Name") == "read_intermediate_result" for node in nodes):
            yield "a task reads an intermediate result"
