"""`retention from "Signed up" to pageview by week for 12 weeks`: how many of each cohort come back later.

A cohort is the users whose first start event of the range lies in one calendar bucket; period k is the k-th bucket
after it. Periods that have not begun are absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import cast as typing_cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import active_buckets, bucket_of, of_users
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.bound import BoundEvent, GroupKey
from heap_compiler.errors import HeapError
from heap_compiler.groups import group_key, group_values, user_values
from heap_compiler.ranges import TimeRange, bucket_starts
from heap_compiler.scan import EVENT_ORDER, scans
from heap_compiler.sql import (
    cast,
    column,
    function,
    is_set,
    join,
    named,
    number,
    numbered_times,
    numbers,
    select,
    share,
    subquery,
    table_alias,
    union_all,
    with_ctes,
)

__all__ = ["ANALYSIS", "RetentionPlan"]

_DEFAULT_PERIODS = 12
_MAX_PERIODS = 1_000

_ROW = (
    ResultColumn("cohort", "timestamptz"),
    ResultColumn("group_key", "text"),
    ResultColumn("size", "bigint"),
    ResultColumn("period", "int"),
    ResultColumn("users", "bigint"),
    ResultColumn("rate", "numeric"),
)


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """A bound retention. `bounds` are the buckets that have begun, the cohorts' own first; `end` ends the last."""

    schema: str
    start: BoundEvent
    back: BoundEvent
    entry: TimeRange
    bounds: tuple[datetime, ...]
    end: datetime
    cohorts: int
    periods: int
    rolling: bool
    recurring: bool
    users: exp.Query | None
    group_keys: tuple[GroupKey, ...]


def bind_retention(statement: syntax.AnalysisStatement, binder: Binder) -> RetentionPlan:
    """Raises HeapError: `for` and `by` name different units, too many periods, or a part that cannot be bound."""
    start, back = typing_cast("tuple[syntax.Event, syntax.Event]", statement.head)
    by, follow = binder.clause(syntax.By), binder.clause(syntax.Follow)
    unit: syntax.Unit = by.unit if by is not None else follow.unit if follow is not None else "week"
    if follow is not None and follow.unit != unit:
        raise HeapError(f"cohorts by {unit} are followed in {unit}s", follow.span, f"for {follow.count} {unit}s")
    periods = _DEFAULT_PERIODS if follow is None else follow.count
    if periods > _MAX_PERIODS:
        assert follow is not None
        raise HeapError(f"a cohort can be followed for {_MAX_PERIODS:,} periods", follow.span)
    over, now, zone = binder.time_range, binder.catalog.now, binder.catalog.time_zone
    rolling = binder.clause(syntax.Rolling) is not None
    span = None if by is None else by.span
    cohorts = len(bucket_starts(over, unit, zone, span))
    last = max(over.end, now) if rolling else over.end
    starts = bucket_starts(TimeRange(over.start, last), unit, zone, span, beyond=periods + 1)
    begun = max(1, sum(instant <= now for instant in starts[:-1]))
    return RetentionPlan(
        schema=binder.catalog.schema,
        start=binder.event(start),
        back=binder.event(back),
        entry=over,
        bounds=tuple(starts[:begun]),
        end=starts[begun],
        cohorts=min(cohorts, begun),
        periods=periods,
        rolling=rolling,
        recurring=binder.clause(syntax.Recurring) is not None,
        users=binder.users,
        group_keys=binder.group_keys,
    )


def lower_retention(plan: RetentionPlan) -> exp.Query:
    """One row per cohort, group and period that has begun."""
    read = TimeRange(plan.entry.start, plan.end)
    returned = active_buckets(plan.schema, plan.back, read, plan.bounds, None, alias="return_events")
    ctes: list[tuple[str, exp.Query]] = [("started", _started(plan)), ("returned", returned), ("kept", _kept(plan))]
    ctes.append(("counted", _counted(plan)))
    keys = [column("bucket", "counted"), column("period", "counted")]
    cohorts = numbered_times(plan.bounds[: plan.cohorts], "cohorts", time="cohort", number="bucket")
    periods = numbers(0, plan.periods, "periods", "period")
    joins = [join(periods, kind="CROSS")]
    same = [
        exp.EQ(this=keys[0], expression=column("bucket", "cohorts")),
        exp.EQ(this=keys[1], expression=column("period", "periods")),
    ]
    same_size = [
        exp.EQ(this=column("bucket", "sizes"), expression=column("bucket", "cohorts")),
        exp.EQ(this=column("period", "sizes"), expression=number(0)),
    ]
    groups: exp.Expr = cast(exp.Null(), "text[]")
    if plan.group_keys:
        ctes.append(("shown_groups", select([column("group_values")], "counted", distinct=True)))
        joins.append(join(exp.table_("shown_groups"), kind="CROSS"))
        groups = column("group_values", "shown_groups")
        same.append(exp.EQ(this=column("group_values", "counted"), expression=groups.copy()))
        same_size.append(exp.EQ(this=column("group_values", "sizes"), expression=groups.copy()))
    joins.append(join(exp.table_("counted"), same, kind="LEFT"))
    sizes = exp.Table(this=exp.to_identifier("counted"), alias=table_alias("sizes"))
    joins.append(join(sizes, same_size, kind="LEFT"))
    size = exp.Coalesce(this=column("users", "sizes"), expressions=[number(0)])
    users = exp.Coalesce(this=column("users", "counted"), expressions=[number(0)])
    period_bucket = exp.Add(this=column("bucket", "cohorts"), expression=column("period", "periods"))
    query = select(
        [
            column("cohort", "cohorts"),
            named(group_key(plan.group_keys, groups, has_other=False), "group_key"),
            named(cast(size, "bigint"), "size"),
            column("period", "periods"),
            named(cast(users, "bigint"), "users"),
            named(share(users.copy(), size.copy()), "rate"),
        ],
        cohorts,
        joins=joins,
        where=[exp.LTE(this=period_bucket, expression=number(len(plan.bounds)))],
        order_by=[
            column("cohort", "cohorts"),
            *([groups.copy()] if plan.group_keys else []),
            column("period", "periods"),
        ],
    )
    return with_ctes(query, ctes)


def _started(plan: RetentionPlan) -> exp.Query:
    """The user's first start event, or with `recurring` the first of every bucket: its bucket and group values."""
    values = {f"group_{index}": key.value for index, key in enumerate(plan.group_keys, start=1) if not key.of_user}
    columns = {**{name: column(name) for name in EVENT_ORDER}, "bucket": bucket_of(plan.bounds), **values}
    events = union_all(
        scans(
            plan.schema, plan.start, plan.entry, columns, alias="start_events", extra=of_users(plan.users), ordered=True
        )
    )
    each = ["user_id", "bucket"] if plan.recurring else ["user_id"]
    order = [*each, "time", "event_id"]
    return select(
        [column(name) for name in ("user_id", "bucket", *values)],
        subquery(events, "events"),
        distinct_on=[column(name) for name in each],
        order_by=[column(name) for name in order],
    )


def _kept(plan: RetentionPlan) -> exp.Query:
    """Per user and cohort the later periods they came back in; with `rolling` the last of them."""
    start, later = column("bucket", "started"), column("bucket", "returned")
    came_back: list[exp.Expr] = [
        exp.EQ(this=column("user_id", "returned"), expression=column("user_id", "started")),
        exp.GT(this=later, expression=start),
    ]
    period = exp.Sub(this=later.copy(), expression=start.copy())
    if plan.rolling:
        periods: exp.Expr = exp.Max(this=period)
    else:
        reach = exp.Add(this=start.copy(), expression=number(plan.periods))
        came_back.append(exp.LTE(this=later.copy(), expression=reach))
        came = exp.Where(this=is_set(later.copy()))
        periods = exp.Filter(this=exp.ArrayAgg(this=period), expression=came)
    joins = [join(exp.table_("returned"), came_back, kind="LEFT")]
    if any(key.of_user for key in plan.group_keys):
        same_user = exp.EQ(this=column("user_id", "grouped_users"), expression=column("user_id", "started"))
        joins.append(
            join(subquery(user_values(plan.schema, plan.group_keys), "grouped_users"), [same_user], kind="LEFT")
        )
    groups = [column(f"group_{index}") for index in range(1, len(plan.group_keys) + 1)]
    keys = [column("user_id", "started"), start.copy(), *groups]
    return select([*(key.copy() for key in keys), named(periods, "periods")], "started", joins=joins, group_by=keys)


def _counted(plan: RetentionPlan) -> exp.Query:
    """Users per cohort, group and period; everybody is in period 0."""
    if plan.rolling:
        last = exp.Coalesce(this=column("periods"), expressions=[number(0)])
        each = function("generate_series", number(0), function("least", last, number(plan.periods)))
    else:
        each = function("unnest", function("array_prepend", number(0), column("periods")))
    rows = select(
        [
            column("bucket"),
            *([named(group_values(plan.group_keys), "group_values")] if plan.group_keys else []),
            named(each, "period"),
        ],
        "kept",
    )
    keys = ["bucket", *(["group_values"] if plan.group_keys else []), "period"]
    return select(
        [*(column(key) for key in keys), named(exp.Count(this=exp.Star()), "users")],
        subquery(rows, "followed"),
        group_by=[column(key) for key in keys],
    )


def retention_sources(plan: RetentionPlan) -> dict[str, str]:
    """The names of the two scans."""
    return {"start_events": plan.start.name, "return_events": plan.back.name}


ANALYSIS = Analysis(
    keyword="retention",
    clauses=(syntax.By, syntax.Follow, syntax.Rolling, syntax.Recurring, syntax.GroupBy),
    row=_ROW,
    bind=bind_retention,
    lower=lower_retention,
    sources=retention_sources,
)  # fmt: skip
