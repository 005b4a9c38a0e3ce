"""What a plan of PostgreSQL or Citus says about a statement, in the analyst's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from typing import Any, NamedTuple

from heap_compiler import CompiledQuery
from heap_compiler.scan import Scan
from heap_extension.server.catalog import Definition

__all__ = ["describe", "plan_nodes"]


def describe(
    query: CompiledQuery, plan: Any, definitions: dict[str, Definition], packed: Set[tuple[str, str]]
) -> list[str]:
    """One line per scan of the statement, then how it is distributed.

    Args:
        query: the compiled statement.
        plan: the parsed output of EXPLAIN (FORMAT JSON), on Citus of all tasks; with ANALYZE, rows that were read.
        definitions: the app's definitions, whose index names are recognised.
        packed: the conditions and tables of packs that are read instead of indexes.
    """
    placed = [place for place in _places(plan, None, 1) if _is_read(place.node)]
    nodes = [node for node in plan_nodes(plan) if not _is_of_empty_partition(node)]
    distributed = any("Task Count" in node for node in nodes)
    lines = []
    for alias, event in query.sources.items():
        reads = [place for place in placed if _source_of(place.node.get("Alias", ""), query.sources) == alias]
        own = [scan for scan in query.scans if scan.alias == alias]
        facts = [_access(reads, definitions), *_unused(reads, own, definitions)]
        facts += [*_packs(reads, [of.condition for of in query.packable if of.alias == alias], packed), *_rows(reads)]
        if reads and distributed:
            tasks = len({place.task for place in reads} - {None})
            facts.append(f"pushed down, {_count(tasks, 'task')}" if tasks else "not pushed down")
        name = alias.removesuffix("_events").replace("_", " ")
        lines.append(f"{name if event == alias else f'{name} ({event})'}: {'; '.join(facts)}")
    if query.strategy is not None:
        lines.append(f"strategy: {query.strategy}")
    tasks_of = [node["Task Count"] for node in nodes if "Task Count" in node]
    if tasks_of:
        lines.append(f"pushed down: {max(tasks_of)} tasks on the workers")
    sorts = [node for node in nodes if node.get("Node Type") in {"Sort", "Incremental Sort"}]
    keys = [key for node in sorts for key in node.get("Sort Key", [])]
    if query.kernel_reads:
        lines.append("timeline: merged by the kernels")
    elif any("event_id" in key for key in keys):
        lines.append("timeline: sorted")
    elif any(node.get("Node Type") == "Merge Append" for node in nodes):
        lines.append("timeline: merged from the indexes, no sort")
    return lines


class _Place(NamedTuple):
    """A node of a plan: which of Citus's tasks it is in, and how often it is expected to run there."""

    node: dict[str, Any]
    task: int | None
    times: float


def _places(plan: Any, task: int | None, times: float) -> Iterator[_Place]:
    if isinstance(plan, list):
        for part in plan:
            yield from _places(part, task, times)
    elif isinstance(plan, dict):
        if "Node Type" in plan:
            yield _Place(plan, task, times)
        for name, value in plan.items():
            if name == "Remote Plan":
                yield from _places(value, id(value), times)
            elif name == "Plans" and plan.get("Node Type") == "Nested Loop":
                outer, inner = value[:2]
                yield from _places([outer, *value[2:]], task, times)
                yield from _places(inner, task, times * float(outer.get("Plan Rows", 1)))
            elif isinstance(value, (dict, list)):
                yield from _places(value, task, 1 if plan.get("Node Type") == "Materialize" else times)


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


def _source_of(alias: str, sources: Iterable[str]) -> str | None:
    """The source that a name in the plan stands for. PostgreSQL numbers partitions, and names that are there twice:
    step_1, step_1_1, step_1_1_2.

    >>> _source_of("step_1_2", ["step", "step_1"])
    'step_1'
    """
    named = [source for source in sources if re.fullmatch(rf"{re.escape(source)}(_\d+)*", alias)]
    return max(named, key=len, default=None)


def _is_read(node: dict[str, Any]) -> bool:
    """The node reads a partition that has events."""
    kind = str(node.get("Node Type", ""))
    return "Scan" in kind and kind != "Bitmap Index Scan" and not _is_of_empty_partition(node)


def _access(reads: list[_Place], definitions: dict[str, Definition]) -> str:
    """How the partitions are read: by which index, and whether the table itself is touched."""
    ways: dict[str, dict[int | None, int]] = {}
    for node, task, _ in reads:
        index = _index_name(node)
        way = f"{node['Node Type'].lower()}{f' of {_index(index, definitions)}' if index else ''}"
        in_task = ways.setdefault(way, {})
        in_task[task] = in_task.get(task, 0) + 1
    if not ways:
        return "reads nothing"
    return "; ".join(f"{way}, {_count(max(in_task.values()), 'partition')}" for way, in_task in ways.items())


def _unused(reads: list[_Place], scans: list[Scan], definitions: dict[str, Definition]) -> Iterator[str]:
    """The indexes that could serve and do not, and the one that is missing."""
    used = {_index(name, definitions) for node, _, _ in reads if (name := _index_name(node))}
    for name in sorted({scan.definition for scan in scans if reads and scan.definition is not None}):
        if f'the index of "{name}"' not in used:
            yield f'the index of "{name}" is not used'
    undefined = any(scan.definition is None and not scan.every_event for scan in scans)
    if undefined and any(node["Node Type"] == "Seq Scan" for node, _, _ in reads):
        yield "a definition would have an index"


def _packs(reads: list[_Place], conditions: list[str], packed: Set[tuple[str, str]]) -> Iterator[str]:
    """In how many of the partitions kernels read packs instead."""
    in_task: dict[int | None, set[str]] = {}
    for node, task, _ in reads:
        table = str(node.get("Relation Name"))
        if conditions and all((condition, table) in packed for condition in conditions):
            in_task.setdefault(task, set()).add(table)
    if in_task:
        yield f"packs instead in {_count(max(map(len, in_task.values())), 'partition')}"


def _rows(reads: list[_Place]) -> Iterator[str]:
    """Rows over all partitions and tasks: as estimated, and as read where the plan has run."""
    if reads:
        estimated = sum(float(node.get("Plan Rows", 0)) * times for node, _, times in reads)
        yield f"about {_count(round(estimated), 'row')}"
    if any("Actual Rows" in node for node, _, _ in reads):
        dropped = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
        passed = sum(node.get("Actual Rows", 0) * node.get("Actual Loops", 1) for node, _, _ in reads)
        filtered = sum(node.get(key, 0) * node.get("Actual Loops", 1) for node, _, _ in reads for key in dropped)
        yield f"{round(passed + filtered):,} read" + (f", {round(filtered):,} of them filtered out" if filtered else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _index_name(node: dict[str, Any]) -> str | None:
    """The index a scan reads; a bitmap scan has it in a node below."""
    return next((below["Index Name"] for below in plan_nodes(node) if "Index Name" in below), None)


def _index(name: str, definitions: dict[str, Definition]) -> str:
    for definition in definitions.values():
        if definition.index_suffix is not None and f"_{definition.index_suffix}" in name:
            return f'the index of "{definition.name}"'
    return "the primary key" if "_pkey" in name else name
