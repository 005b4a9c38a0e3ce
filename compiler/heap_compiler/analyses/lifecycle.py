"""`lifecycle of any by week`: users who are new, returning, resurrecting or dormant in each bucket.

All history before the range is read, since only it tells who is new.
"""

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
from heap_compiler.ranges import BEGINNING, TimeRange, bucket_starts
from heap_compiler.sequence import counted
from heap_compiler.sql import cast, column, join, named, number, numbered_times, select, table_alias, text, with_ctes
from heap_compiler.strategies.counting import counted_by_kernels, counting_kernel

__all__ = ["ANALYSIS", "LifecyclePlan"]

_ROW = (
    ResultColumn("bucket", "timestamptz"),
    ResultColumn("status", "text"),
    ResultColumn("users", "bigint"),
    ResultColumn("group_key", "text"),
)
_STATUSES = ("new", "returning", "resurrecting", "dormant")


@dataclass(frozen=True, slots=True)
class LifecyclePlan:
    """A bound lifecycle. `buckets` begins with the one before the range, which decides who is returning or dormant."""

    schema: str
    event: BoundEvent
    end: datetime
    buckets: tuple[datetime, ...]
    users: exp.Query | None
    group_keys: tuple[GroupKey, ...]
    choice: Choice


def bind_lifecycle(statement: syntax.AnalysisStatement, binder: Binder) -> LifecyclePlan:
    """Raises HeapError: a part that cannot be bound."""
    (event,) = typing_cast("tuple[syntax.Event]", statement.head)
    by, zone = binder.clause(syntax.By), binder.catalog.time_zone
    unit: syntax.Unit = "day" if by is None else by.unit
    span = None if by is None else by.span
    over = binder.time_range
    buckets = bucket_starts(over, unit, zone, span)
    instant = buckets[0] - datetime.resolution
    before = bucket_starts(TimeRange(instant, buckets[0]), unit, zone, span)
    bound = counted(binder.event(event), binder.catalog)
    return LifecyclePlan(
        schema=binder.catalog.schema,
        event=bound,
        end=over.end,
        buckets=(*before, *buckets),
        users=binder.users,
        group_keys=binder.group_keys,
        choice=choose_counting([bound], binder.catalog),
    )


def lower_lifecycle(plan: LifecyclePlan) -> exp.Query:
    """One row per bucket and status. In the query bucket 0 is all history, 1 the bucket before the range."""
    keys = plan.group_keys
    ctes = _counted_by_kernels(plan) if plan.choice.vector else _counted_in_order(plan)
    groups = shown_groups(keys, "counted")
    here = exp.EQ(this=column("bucket", "counted"), expression=column("bucket_number", "buckets"))
    bucket_before = exp.Sub(this=column("bucket_number", "buckets"), expression=number(1))
    before = exp.EQ(this=column("bucket", "before"), expression=bucket_before)
    counted_before = exp.Table(this=exp.to_identifier("counted"), alias=table_alias("before"))
    counts = [column(status, "counted") for status in _STATUSES[:-1]] + [column("leaving", "before")]
    rows = [
        exp.Tuple(expressions=[number(index), text(status), count])
        for index, (status, count) in enumerate(zip(_STATUSES, counts, strict=True), start=1)
    ]
    statuses = exp.Lateral(
        this=exp.Subquery(this=exp.Values(expressions=rows)),
        alias=table_alias("statuses", "status_number", "status", "users"),
    )
    users = exp.Coalesce(this=column("users", "statuses"), expressions=[number(0)])
    is_dormant = exp.EQ(this=column("status", "statuses"), expression=text("dormant"))
    signed = exp.Case(ifs=[exp.If(this=is_dormant, true=exp.Neg(this=users))], default=users.copy())
    query = select(
        [
            column("bucket", "buckets"),
            column("status", "statuses"),
            named(cast(signed, "bigint"), "users"),
            named(group_key(keys, groups.values, has_other=False), "group_key"),
        ],
        numbered_times(plan.buckets, "buckets", time="bucket", number="bucket_number"),
        joins=[
            *groups.joins,
            join(exp.table_("counted"), [here, *groups.matching("counted")], kind="LEFT"),
            join(counted_before, [before, *groups.matching("before")], kind="LEFT"),
            join(statuses, kind="CROSS"),
        ],
        where=[exp.GT(this=column("bucket_number", "buckets"), expression=number(1))],
        order_by=[
            column("bucket_number", "buckets"),
            *group_order(keys, groups.values, has_other=False),
            column("status_number", "statuses"),
        ],
    )
    return with_ctes(query, [*ctes, *groups.ctes])


def _counted_by_kernels(plan: LifecyclePlan) -> list[tuple[str, exp.Query]]:
    """The named queries that end in `counted`: per bucket and group, its users by status, and those leaving."""
    events = {"active_events": (plan.event, TimeRange(BEGINNING, plan.end))}
    kernel = counting_kernel(
        "lifecycle", plan.schema, events, plan.buckets, choice=plan.choice, keys=plan.group_keys, users=plan.users
    )
    counts = {name: index for index, name in enumerate((*_STATUSES[:-1], "leaving"), start=1)}
    return [("kernel", kernel), ("counted", counted_by_kernels("bucket", counts, plan.group_keys))]


def _counted_in_order(plan: LifecyclePlan) -> list[tuple[str, exp.Query]]:
    """The same in SQL: every user's buckets, each with the ones before and after."""
    keys, read = plan.group_keys, TimeRange(BEGINNING, plan.end)
    active = active_buckets(plan.schema, plan.event, read, plan.buckets, plan.users, alias="active_events", keys=keys)
    neighbours = select(
        [
            *(column(name) for name in ("bucket", *group_columns(keys))),
            _neighbour("lag", "bucket_before", keys),
            _neighbour("lead", "bucket_after", keys),
        ],
        "active",
    )
    return [("active", active), ("neighbours", neighbours), ("counted", _counted(keys))]


def _neighbour(function: str, name: str, keys: tuple[GroupKey, ...]) -> exp.Expr:
    window = exp.Window(
        this=exp.Anonymous(this=function, expressions=[column("bucket")]),
        partition_by=[column(part) for part in ("user_id", *group_columns(keys))],
        order=exp.Order(expressions=[column("time"), column("event_id")]),
    )
    return named(window, name)


def _counted(keys: tuple[GroupKey, ...]) -> exp.Select:
    """Per bucket and group, its users by status, and those who are not there in the next one."""
    bucket, before = column("bucket"), column("bucket_before")
    just_before = exp.Sub(this=bucket, expression=number(1))
    next_bucket = exp.Add(this=bucket.copy(), expression=number(1))
    conditions = {
        "new": exp.Is(this=before, expression=exp.Null()),
        "returning": exp.EQ(this=before.copy(), expression=just_before),
        "resurrecting": exp.LT(this=before.copy(), expression=just_before.copy()),
        "leaving": exp.NullSafeNEQ(this=column("bucket_after"), expression=next_bucket),
    }
    counts = [
        named(exp.Filter(this=exp.Count(this=exp.Star()), expression=exp.Where(this=condition)), name)
        for name, condition in conditions.items()
    ]
    by_groups = [named(group_values(keys), "group_values")] if keys else []
    group_by = [column(name) for name in ("bucket", *group_columns(keys))]
    return select([column("bucket"), *by_groups, *counts], "neighbours", group_by=group_by)


def lifecycle_sources(plan: LifecyclePlan) -> dict[str, str]:
    """The name of the one scan."""
    return {"active_events": plan.event.name}


ANALYSIS = Analysis(
    keyword="lifecycle",
    clauses=(syntax.By, syntax.GroupBy),
    row=_ROW,
    bind=bind_lifecycle,
    lower=lower_lifecycle,
    sources=lifecycle_sources,
    strategy=lambda plan: plan.choice.strategy,
)
