"""What a plan of PostgreSQL or Citus says about a statement, in the analyst's words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from heap_compiler import CompiledQuery
from heap_extension.server.catalog import Definition

__all__ = ["describe", "plan_nodes"]


def describe(query: CompiledQuery, plan: Any, definitions: dict[str, Definition]) -> list[str]:
    """One line per scan of the statement, then how it is distributed.

    Args:
        query: the compiled statement.
        plan: the parsed output of EXPLAIN (FORMAT JSON).
        definitions: the app's definitions, whose index names are recognised.
    """
    nodes = [node for node in plan_nodes(plan) if not _is_of_empty_partition(node)]
    lines = []
    for alias, event in query.sources.items():
        reads = [node for node in nodes if _is_alias(node.get("Alias", ""), alias)]
        place = alias.removesuffix("_events").replace("_", " ")
        lines.append(f"{place} ({event}): {_access(reads, definitions)}")
    tasks = [node["Task Count"] for node in nodes if "Task Count" in node]
    if tasks:
        lines.append(f"pushed down: {max(tasks)} tasks on the workers")
    sorts = [node for node in nodes if node.get("Node Type") in {"Sort", "Incremental Sort"}]
    keys = [key for node in sorts for key in node.get("Sort Key", [])]
    if any("event_id" in key for key in keys):
        lines.append("timeline: sorted")
    elif any(node.get("Node Type") == "Merge Append" for node in nodes):
        lines.append("timeline: merged from the indexes, no sort")
    return lines


def plan_nodes(plan: Any) -> Iterator[dict[str, Any]]:
    """Every object of the plan's JSON, in order."""
    if isinstance(plan, dict):
        yield plan
        for value in plan.values():
            yield from plan_nodes(value)
    elif isinstance(plan, list):
        for value in plan:
            yield from plan_nodes(value)


def _is_of_empty_partition(node: dict[str, Any]) -> bool:
    """PostgreSQL reads an empty partition, such as a month to come, at no cost: it does not bother its index."""
    return node.get("Node Type") in {"Seq Scan", "Sort"} and float(node.get("Total Cost", 1)) < 0.05


def _is_alias(alias: str, source: str) -> bool:
    """PostgreSQL numbers the partitions of a scan: step_1, step_1_1, step_1_2."""
    rest = alias.removeprefix(source)
    return alias.startswith(source) and (rest == "" or (rest[0] == "_" and rest[1:].isdigit()))


def _access(reads: list[dict[str, Any]], definitions: dict[str, Definition]) -> str:
    """How the partitions are read: by which index, and whether the table itself is touched."""
    ways: dict[str, int] = {}
    for node in reads:
        kind = node.get("Node Type", "")
        if "Scan" not in kind or kind == "Bitmap Index Scan":
            continue
        index = node.get("Index Name")
        if kind == "Bitmap Heap Scan":
            children = plan_nodes(node.get("Plans"))
            index = next((child["Index Name"] for child in children if "Index Name" in child), None)
        way = f"{kind.lower()}{f' of {_index(index, definitions)}' if index else ''}"
        ways[way] = ways.get(way, 0) + 1
    if not ways:
        return "reads nothing"
    return "; ".join(f"{way}, {count} partition{'s' if count > 1 else ''}" for way, count in ways.items())


def _index(name: str, definitions: dict[str, Definition]) -> str:
    for definition in definitions.values():
        if definition.index_suffix is not None and f"_{definition.index_suffix}" in name:
            return f'the index of "{definition.name}"'
    return "the primary key" if "_pkey" in name else name
