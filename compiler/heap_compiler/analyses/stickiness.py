"""`stickiness of "Used search" by day over last 28 days`: users active in exactly n of the range's buckets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import cast as typing_cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import active_buckets
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.bound import BoundEvent, Choice, GroupKey
from heap_compiler.groups import group_columns, group_key, group_order, group_values, shown_groups
from heap_compiler.passes.choose_strategy import choose_counting
from heap_compiler.ranges import TimeRange, bucket_starts
from heap_compiler.sequence import counted
from heap_compiler.sql import cast, column, join, named, number, numbers, select, with_ctes
from heap_compiler.strategies.counting import counted_by_kernels, counting_kernel

__all__ = ["ANALYSIS", "StickinessPlan"]

_ROW = (ResultColumn("intervals", "int"), ResultColumn("users", "bigint"), ResultColumn("group_key", "text"))


@dataclass(frozen=True, slots=True)
class StickinessPlan:
    """A bound stickiness."""

    schema: str
    event: BoundEvent
    read: TimeRange
    buckets: tuple[datetime, ...]
    users: exp.Query | None
    group_keys: tuple[GroupKey, ...]
    choice: Choice


def bind_stickiness(statement: syntax.AnalysisStatement, binder: Binder) -> StickinessPlan:
    """Raises HeapError: a part that cannot be bound."""
    (event,) = typing_cast("tuple[syntax.Event]", statement.head)
    by = binder.clause(syntax.By)
    unit: syntax.Unit = "day" if by is None else by.unit
    span = None if by is None else by.span
    buckets = bucket_starts(binder.time_range, unit, binder.catalog.time_zone, span)
    bound = counted(binder.event(event), binder.catalog)
    return StickinessPlan(
        schema=binder.catalog.schema,
        event=bound,
        read=binder.time_range,
        buckets=tuple(buckets),
        users=binder.users,
        group_keys=binder.group_keys,
        choice=choose_counting([bound], binder.catalog),
    )


def lower_stickiness(plan: StickinessPlan) -> exp.Query:
    """One row per group and possible number of buckets."""
    keys = plan.group_keys
    ctes = _counted_by_kernels(plan) if plan.choice.vector else _counted(plan)
    groups = shown_groups(keys, "counted")
    same = exp.EQ(this=column("intervals", "counted"), expression=column("intervals", "numbers"))
    users = exp.Coalesce(this=column("users", "counted"), expressions=[number(0)])
    query = select(
        [
            column("intervals", "numbers"),
            named(cast(users, "bigint"), "users"),
            named(group_key(keys, groups.values, has_other=False), "group_key"),
        ],
        numbers(1, len(plan.buckets), "numbers", "intervals"),
        joins=[*groups.joins, join(exp.table_("counted"), [same, *groups.matching("counted")], kind="LEFT")],
        order_by=[*group_order(keys, groups.values, has_other=False), column("intervals", "numbers")],
    )
    return with_ctes(query, [*ctes, *groups.ctes])


def _counted_by_kernels(plan: StickinessPlan) -> list[tuple[str, exp.Query]]:
    """The named queries that end in `counted`: per number of buckets and group its users."""
    kernel = counting_kernel(
        "stickiness",
        plan.schema,
        {"active_events": (plan.event, plan.read)},
        plan.buckets,
        choice=plan.choice,
        keys=plan.group_keys,
        users=plan.users,
    )
    return [("kernel", kernel), ("counted", counted_by_kernels("intervals", {"users": 1}, plan.group_keys))]


def _counted(plan: StickinessPlan) -> list[tuple[str, exp.Query]]:
    """The same in SQL."""
    keys = plan.group_keys
    active = active_buckets(
        plan.schema, plan.event, plan.read, plan.buckets, plan.users, alias="active_events", keys=keys
    )
    unit = [column(name) for name in ("user_id", *group_columns(keys))]
    each = select([*unit, named(exp.Count(this=exp.Star()), "intervals")], "active", group_by=list(unit))
    by_groups = [named(group_values(keys), "group_values")] if keys else []
    users = select(
        [column("intervals"), *by_groups, named(exp.Count(this=exp.Star()), "users")],
        "each_user",
        group_by=[column(name) for name in ("intervals", *group_columns(keys))],
    )
    return [("active", active), ("each_user", each), ("counted", users)]


def stickiness_sources(plan: StickinessPlan) -> dict[str, str]:
    """The name of the one scan."""
    return {"active_events": plan.event.name}


ANALYSIS = Analysis(
    keyword="stickiness",
    clauses=(syntax.By, syntax.GroupBy),
    row=_ROW,
    bind=bind_stickiness,
    lower=lower_stickiness,
    sources=stickiness_sources,
    strategy=lambda plan: plan.choice.strategy,
)
