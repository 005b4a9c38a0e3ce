"""Refuse a query that Citus could not send to the workers whole: a defect of a lowering, found before it runs.

Every table of an app is distributed by `user_id`. What relates events to each other must therefore stay within one
user; only aggregates, which combine across shards, may look beyond.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlglot import exp

from heap_compiler.sql import walk

__all__ = ["verify_pushdown"]


def verify_pushdown(query: exp.Query) -> exp.Query:
    """The query, unchanged.

    Raises:
        AssertionError: naming the part that keeps the query from being pushed down.
    """
    nodes = walk(query)
    ctes = {node.alias: node.this for node in nodes if isinstance(node, exp.CTE)}
    for node in nodes:
        if isinstance(node, exp.Window):
            _verify_window(node, ctes)
        elif isinstance(node, exp.Select) and _reads_events(node):
            _verify_select(node)
    return query


def _verify_window(window: exp.Window, ctes: Mapping[str, exp.Query]) -> None:
    keys = window.args.get("partition_by")
    if not keys or keys[0].name == "user_id":
        return
    select = window.find_ancestor(exp.Select)
    if select is not None and _has_users(select, ctes):
        raise AssertionError(f"window not partitioned by user_id first: {window.sql('postgres')}")


def _has_users(select: exp.Select, ctes: Mapping[str, exp.Query]) -> bool:
    """Whether a source has rows of single users; the others are aggregates, which the coordinator has."""
    for source in (select.args["from_"].this, *(join.this for join in select.args.get("joins") or ())):
        if isinstance(source, exp.Table) and source.db:
            return True
        rows = ctes.get(source.name) if isinstance(source, exp.Table) else source.this
        if isinstance(rows, exp.Query):
            columns = {column.alias_or_name for column in rows.selects}
            if "user_id" in columns or ("*" in columns and isinstance(rows, exp.Select) and _has_users(rows, ctes)):
                return True
    return False


def _verify_select(select: exp.Select) -> None:
    if select.args.get("limit") or select.args.get("offset"):
        raise AssertionError(f"LIMIT over events: {select.sql('postgres')}")
    distinct = select.args.get("distinct")
    if distinct and "user_id" not in _distinct_columns(select, distinct):
        raise AssertionError(f"DISTINCT without user_id: {select.sql('postgres')}")
    for join in select.args.get("joins") or ():
        if not _relates_users(join):
            raise AssertionError(f"join not on user_id: {join.sql('postgres')}")


def _reads_events(select: exp.Select) -> bool:
    source = select.args.get("from_")
    return source is not None and isinstance(source.this, exp.Table) and source.this.name == "events"


def _distinct_columns(select: exp.Select, distinct: exp.Distinct) -> set[str]:
    on = distinct.args.get("on")
    return {column.name for column in (on.find_all(exp.Column) if on else select.expressions)}


def _relates_users(join: exp.Join) -> bool:
    on = join.args.get("on")
    if join.args.get("using") or on is None:
        return any(identifier.name == "user_id" for identifier in join.args.get("using") or ())
    return any(equality.left.name == equality.right.name == "user_id" for equality in on.find_all(exp.EQ))
