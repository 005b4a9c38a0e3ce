"""When users were active: the distinct calendar buckets in which each of them has a matching event."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlglot import exp

from heap_compiler.bound import BoundEvent, GroupKey
from heap_compiler.groups import event_values, join_user_values
from heap_compiler.ranges import TimeRange
from heap_compiler.scan import EVENT_ORDER, scans
from heap_compiler.sql import column, function, named, select, subquery, timestamps, union_all

__all__ = ["active_buckets", "bucket_of", "of_users"]


def bucket_of(bounds: Sequence[datetime], time: exp.Expr | str = "time") -> exp.Expr:
    """The bucket of a time, by default an event's: 1 for the first of `bounds`, 0 for anything earlier."""
    return function("width_bucket", column(time) if isinstance(time, str) else time, timestamps(bounds))


def of_users(users: exp.Query | None, table: str | None = None) -> list[exp.Expr]:
    """The condition that keeps the rows (of `table`) of some users, if there is one."""
    return [] if users is None else [exp.In(this=column("user_id", table), query=exp.Subquery(this=users.copy()))]


def active_buckets(
    schema: str,
    event: BoundEvent,
    read: TimeRange,
    bounds: Sequence[datetime],
    users: exp.Query | None,
    *,
    alias: str,
    keys: Sequence[GroupKey] = (),
) -> exp.Query:
    """Rows of distinct `user_id, bucket`, with `time` and `event_id` of the first event there, in the order of the
    index: what is distinct needs neither hash nor sort. With `keys` distinct also in `group_1`, `group_2`, ...: a user
    is in each group that some event of theirs is in."""
    groups = event_values(keys)
    columns = {**{name: column(name) for name in EVENT_ORDER}, "bucket": bucket_of(bounds), **groups}
    events = union_all(scans(schema, event, read, columns, alias=alias, extra=of_users(users), ordered=True))
    before = exp.Window(
        this=function("lag", column("bucket")),
        partition_by=[column(name) for name in ("user_id", *groups)],
        order=exp.Order(expressions=[column("time"), column("event_id")]),
    )
    placed = select([exp.Star(), named(before, "bucket_of_event_before")], subquery(events, "events"))
    is_first = exp.NullSafeNEQ(this=column("bucket"), expression=column("bucket_of_event_before"))
    active = select([column(name) for name in columns], subquery(placed, "placed"), where=[is_first])
    return join_user_values(schema, keys, active, list(columns))
