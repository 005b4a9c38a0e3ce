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
from heap_compiler.bound import BoundEvent
from heap_compiler.ranges import BEGINNING, TimeRange, bucket_starts
from heap_compiler.sql import cast, column, join, named, number, numbered_times, select, table_alias, text, with_ctes

__all__ = ["ANALYSIS", "LifecyclePlan"]

_ROW = (ResultColumn("bucket", "timestamptz"), ResultColumn("status", "text"), ResultColumn("users", "bigint"))
_STATUSES = ("new", "returning", "resurrecting", "dormant")


@dataclass(frozen=True, slots=True)
class LifecyclePlan:
    """A bound lifecycle. `buckets` begins with the one before the range, which decides who is returning or dormant."""

    schema: str
    event: BoundEvent
    end: datetime
    buckets: tuple[datetime, ...]
    users: exp.Query | None


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
    return LifecyclePlan(binder.catalog.schema, binder.event(event), over.end, (*before, *buckets), binder.users)


def lower_lifecycle(plan: LifecyclePlan) -> exp.Query:
    """One row per bucket and status. In the query bucket 0 is all history, 1 the bucket before the range."""
    read = TimeRange(BEGINNING, plan.end)
    active = active_buckets(plan.schema, plan.event, read, plan.buckets, plan.users, alias="active_events")
    neighbours = select(
        [column("bucket"), _neighbour("lag", "bucket_before"), _neighbour("lead", "bucket_after")], "active"
    )
    counted = select(
        [column("bucket", "marks"), column("status", "marks"), named(exp.Count(this=exp.Star()), "users")],
        "neighbours",
        joins=[join(_marks(), kind="CROSS")],
        group_by=[column("bucket", "marks"), column("status", "marks")],
    )
    shown = numbered_times(plan.buckets, "buckets", time="bucket", number="bucket_number")
    rows = [exp.Tuple(expressions=[number(index), text(status)]) for index, status in enumerate(_STATUSES, start=1)]
    statuses = exp.Values(expressions=rows, alias=table_alias("statuses", "status_number", "status"))
    same = [
        exp.EQ(this=column("bucket", "counted"), expression=column("bucket_number", "buckets")),
        exp.EQ(this=column("status", "counted"), expression=column("status", "statuses")),
    ]
    users: exp.Expr = exp.Coalesce(this=column("users", "counted"), expressions=[number(0)])
    is_dormant = exp.EQ(this=column("status", "statuses"), expression=text("dormant"))
    signed = exp.Case(ifs=[exp.If(this=is_dormant, true=exp.Neg(this=users))], default=users.copy())
    query = select(
        [column("bucket", "buckets"), column("status", "statuses"), named(cast(signed, "bigint"), "users")],
        shown,
        joins=[join(statuses, kind="CROSS"), join(exp.table_("counted"), same, kind="LEFT")],
        where=[exp.GT(this=column("bucket_number", "buckets"), expression=number(1))],
        order_by=[column("bucket_number", "buckets"), column("status_number", "statuses")],
    )
    return with_ctes(query, [("active", active), ("neighbours", neighbours), ("counted", counted)])


def _neighbour(function: str, name: str) -> exp.Expr:
    window = exp.Window(
        this=exp.Anonymous(this=function, expressions=[column("bucket")]),
        partition_by=[column("user_id")],
        order=exp.Order(expressions=[column("bucket")]),
    )
    return named(window, name)


def _marks() -> exp.Expr:
    """What one active bucket of a user says: a status in it, and `dormant` in the next one unless active there too."""
    next_bucket = exp.Add(this=column("bucket"), expression=number(1))
    status = exp.Case(
        ifs=[
            exp.If(this=exp.Is(this=column("bucket_before"), expression=exp.Null()), true=text("new")),
            exp.If(
                this=exp.EQ(
                    this=column("bucket_before"), expression=exp.Sub(this=column("bucket"), expression=number(1))
                ),
                true=text("returning"),
            ),
        ],
        default=text("resurrecting"),
    )
    absent = exp.NullSafeNEQ(this=column("bucket_after"), expression=next_bucket.copy())
    dormant = exp.Case(ifs=[exp.If(this=absent, true=next_bucket)])
    rows = exp.Values(
        expressions=[
            exp.Tuple(expressions=[column("bucket"), status]),
            exp.Tuple(expressions=[dormant, text("dormant")]),
        ]
    )
    return exp.Lateral(this=exp.Subquery(this=rows), alias=table_alias("marks", "bucket", "status"))


def lifecycle_sources(plan: LifecyclePlan) -> dict[str, str]:
    """The name of the one scan."""
    return {"active_events": plan.event.name}


ANALYSIS = Analysis(
    keyword="lifecycle",
    clauses=(syntax.By,),
    row=_ROW,
    bind=bind_lifecycle,
    lower=lower_lifecycle,
    sources=lifecycle_sources,
)
