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
from heap_compiler.bound import BoundEvent
from heap_compiler.ranges import TimeRange, bucket_starts
from heap_compiler.sql import cast, column, join, named, number, numbers, select, with_ctes

__all__ = ["ANALYSIS", "StickinessPlan"]

_ROW = (ResultColumn("intervals", "int"), ResultColumn("users", "bigint"))


@dataclass(frozen=True, slots=True)
class StickinessPlan:
    """A bound stickiness."""

    schema: str
    event: BoundEvent
    read: TimeRange
    buckets: tuple[datetime, ...]
    users: exp.Query | None


def bind_stickiness(statement: syntax.AnalysisStatement, binder: Binder) -> StickinessPlan:
    """Raises HeapError: a part that cannot be bound."""
    (event,) = typing_cast("tuple[syntax.Event]", statement.head)
    by = binder.clause(syntax.By)
    unit: syntax.Unit = "day" if by is None else by.unit
    span = None if by is None else by.span
    buckets = bucket_starts(binder.time_range, unit, binder.catalog.time_zone, span)
    return StickinessPlan(binder.catalog.schema, binder.event(event), binder.time_range, tuple(buckets), binder.users)


def lower_stickiness(plan: StickinessPlan) -> exp.Query:
    """One row per possible number of buckets."""
    active = active_buckets(plan.schema, plan.event, plan.read, plan.buckets, plan.users, alias="active_events")
    each = select(
        [column("user_id"), named(exp.Count(this=exp.Star()), "intervals")], "active", group_by=[column("user_id")]
    )
    counted = select(
        [column("intervals"), named(exp.Count(this=exp.Star()), "users")], "each_user", group_by=[column("intervals")]
    )
    possible = numbers(1, len(plan.buckets), "numbers", "intervals")
    same = exp.EQ(this=column("intervals", "counted"), expression=column("intervals", "numbers"))
    users = exp.Coalesce(this=column("users", "counted"), expressions=[number(0)])
    query = select(
        [column("intervals", "numbers"), named(cast(users, "bigint"), "users")],
        possible,
        joins=[join(exp.table_("counted"), [same], kind="LEFT")],
        order_by=[column("intervals", "numbers")],
    )
    return with_ctes(query, [("active", active), ("each_user", each), ("counted", counted)])


def stickiness_sources(plan: StickinessPlan) -> dict[str, str]:
    """The name of the one scan."""
    return {"active_events": plan.event.name}


ANALYSIS = Analysis(
    keyword="stickiness",
    clauses=(syntax.By,),
    row=_ROW,
    bind=bind_stickiness,
    lower=lower_stickiness,
    sources=stickiness_sources,
)
