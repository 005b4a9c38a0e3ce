"""A retention as SQL: all about one user stays with the user; only counts per cohort and period leave the shards."""

from __future__ import annotations

from sqlglot import exp

from heap_compiler.activity import active_buckets, bucket_of, of_users
from heap_compiler.analyses.retention.plan import RetentionPlan
from heap_compiler.groups import folded, group_key, group_order, group_values, top_groups, user_values
from heap_compiler.ranges import TimeRange
from heap_compiler.scan import EVENT_ORDER, distinct_events, scans
from heap_compiler.sql import (
    cast,
    column,
    elapsed,
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
    text,
    timestamp,
    union_all,
    with_ctes,
)
from heap_compiler.strategies.counting import counting_kernel
from heap_compiler.strategies.kernels import kernel_column, microseconds

__all__ = ["lower_retention", "retention_sources"]


def lower_retention(plan: RetentionPlan) -> exp.Query:
    """One row per cohort, group and period that has begun."""
    ctes: list[tuple[str, exp.Query]] = [
        ("started", _started(plan)), ("returned", _returned(plan)), ("kept", _kept(plan)), ("counted", _counted(plan))
    ]  # fmt: skip
    if plan.choice.vector:
        ctes = [("kernel", _kernel(plan)), ("counted", _counted_by_kernels(plan))]
    counted, joins = "counted", [join(_periods(plan), kind="CROSS")]
    groups: exp.Expr = cast(exp.Null(), "text[]")
    if plan.top is not None:
        whole = exp.EQ(this=column("period"), expression=number(0))
        ctes.append(("top_groups", top_groups("counted", exp.Sum(this=column("users")), plan.top, where=[whole])))
        ctes.append(("folded", _folded()))
        counted = "folded"
    same = [
        exp.EQ(this=column("bucket", "counted"), expression=column("bucket", "cohorts")),
        exp.EQ(this=column("period", "counted"), expression=_of_period(plan, "number")),
    ]
    same_size = [
        exp.EQ(this=column("bucket", "sizes"), expression=column("bucket", "cohorts")),
        exp.EQ(this=column("period", "sizes"), expression=number(0)),
    ]
    if plan.group_keys:
        ctes.append(("shown_groups", select([column("group_values")], counted, distinct=True)))
        joins.append(join(exp.table_("shown_groups"), kind="CROSS"))
        groups = column("group_values", "shown_groups")
        same.append(exp.EQ(this=column("group_values", "counted"), expression=groups.copy()))
        same_size.append(exp.EQ(this=column("group_values", "sizes"), expression=groups.copy()))
    for alias, on in (("counted", same), ("sizes", same_size)):
        source = exp.Table(this=exp.to_identifier(counted), alias=None if alias == counted else table_alias(alias))
        joins.append(join(source, on, kind="LEFT"))
    size = exp.Coalesce(this=column("users", "sizes"), expressions=[number(0)])
    users = exp.Coalesce(this=column("users", "counted"), expressions=[number(0)])
    has_other = plan.top is not None
    query = select(
        [
            column("cohort", "cohorts"),
            named(group_key(plan.group_keys, groups, has_other=has_other), "group_key"),
            named(cast(size, "bigint"), "size"),
            column("period", "periods"),
            named(cast(users, "bigint"), "users"),
            named(share(users.copy(), size.copy()), "rate"),
        ],
        numbered_times(plan.bounds[: plan.cohorts], "cohorts", time="cohort", number="bucket"),
        joins=joins,
        where=[_has_begun(plan)],
        order_by=[
            column("cohort", "cohorts"),
            *group_order(plan.group_keys, groups, has_other=has_other),
            column("period", "periods"),
        ],
    )
    return with_ctes(query, ctes)


def _periods(plan: RetentionPlan) -> exp.Expr:
    """The periods as rows: as shown, and of brackets the number SQL counts them by and the unit they begin with."""
    if not plan.has_brackets:
        return numbers(0, len(plan.periods), "periods", "period")
    rows = [(0, 0, 0), *((index, period.last, period.first) for index, period in enumerate(plan.periods, start=1))]
    tuples = [exp.Tuple(expressions=[number(value) for value in row]) for row in rows]
    return exp.Values(expressions=tuples, alias=table_alias("periods", "number", "period", "begins"))


def _of_period(plan: RetentionPlan, name: str) -> exp.Expr:
    return column(name if plan.has_brackets else "period", "periods")


def _has_begun(plan: RetentionPlan) -> exp.Expr:
    """Whether a period of a cohort has begun: of windows, for the first who could have started in it."""
    begins = _of_period(plan, "begins")
    if plan.window is None:
        bucket = exp.Add(this=column("bucket", "cohorts"), expression=begins)
        return exp.LTE(this=bucket, expression=number(len(plan.bounds)))
    after = exp.Mul(this=begins, expression=elapsed(plan.window))
    begun = exp.Add(this=column("cohort", "cohorts"), expression=after)
    return exp.LTE(this=begun, expression=timestamp(plan.now))


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
    time = [] if plan.window is None else ["time"]
    return select(
        [column(name) for name in ("user_id", "bucket", *time, *values)],
        subquery(events, "events"),
        distinct_on=[column(name) for name in each],
        order_by=[column(name) for name in order],
    )


def _returned(plan: RetentionPlan) -> exp.Query:
    """Where users come back, by bucket, or by time for windows; with how many events, where a period needs several."""
    read, alias = TimeRange(plan.entry.start, plan.end), "return_events"
    if plan.at_least == 1:
        if plan.window is None:
            return active_buckets(plan.schema, plan.back, read, plan.bounds, None, alias=alias)
        columns = {name: column(name) for name in ("user_id", "time")}
        return union_all(scans(plan.schema, plan.back, read, columns, alias=alias))
    place = {"time": column("time")} if plan.window is not None else {"bucket": bucket_of(plan.bounds)}
    events = distinct_events(plan.schema, plan.back, read, {"user_id": column("user_id"), **place}, alias=alias)
    keys = ["user_id", *place]
    return select(
        [*(column(key) for key in keys), named(exp.Count(this=exp.Star()), "events")],
        subquery(events, "events"),
        group_by=[column(key) for key in keys],
    )


def _kept(plan: RetentionPlan) -> exp.Query:
    """Per user and cohort the periods that count; where each one counts for others too, the last of them."""
    keys = ["user_id", "bucket", *_groups(plan)]
    rows, period = _followed(plan), column("period")
    if plan.has_brackets or plan.window is not None or plan.at_least > 1:
        rows = _counting(plan, rows, keys)
    if plan.counting == "on":
        came = exp.Where(this=is_set(period.copy()))
        periods: exp.Expr = exp.Filter(this=exp.ArrayAgg(this=period), expression=came)
    elif plan.counting == "rolling":
        periods = exp.Max(this=period)
    else:
        rows = select([exp.Star(), named(_rank(), "rank")], subquery(rows, "visits"))
        unbroken = exp.Where(this=exp.EQ(this=period.copy(), expression=column("rank")))
        periods = exp.Filter(this=exp.Max(this=period), expression=unbroken)
    return select(
        [*(column(key) for key in keys), named(periods, "periods")],
        subquery(rows, "visits"),
        group_by=[column(key) for key in keys],
    )


def _rank() -> exp.Expr:
    """The place of a period among those the user came back in: without a gap before it, its own number."""
    return exp.Window(
        this=exp.RowNumber(),
        partition_by=[column("user_id"), column("bucket")],
        order=exp.Order(expressions=[column("period")]),
    )


def _followed(plan: RetentionPlan) -> exp.Select:
    """Everybody of a cohort with the periods of their returns, null for those who never came back."""
    start, unit_end = column("bucket", "started"), plan.periods[-1].last
    came_back: list[exp.Expr] = [exp.EQ(this=column("user_id", "returned"), expression=column("user_id", "started"))]
    if plan.window is None:
        later = column("bucket", "returned")
        came_back.append(exp.GT(this=later, expression=start))
        units: exp.Expr = exp.Sub(this=later.copy(), expression=start.copy())
        reach: exp.Expr = exp.LTE(this=later.copy(), expression=exp.Add(this=start.copy(), expression=number(unit_end)))
    else:
        own, later = column("time", "started"), column("time", "returned")
        came_back.append(exp.GTE(this=later, expression=exp.Add(this=own, expression=elapsed(plan.window))))
        seconds = function("date_part", text("epoch"), exp.Sub(this=later.copy(), expression=own.copy()))
        unit = number(int(plan.window.total_seconds()))
        units = cast(function("floor", exp.Div(this=seconds, expression=unit, typed=True)), "int")
        window_end = elapsed(plan.window * (unit_end + 1))
        reach = exp.LT(this=later.copy(), expression=exp.Add(this=own.copy(), expression=window_end))
    if plan.counting != "rolling":
        came_back.append(reach)
    period = units
    if plan.has_brackets:  # what lies beyond the last is one more
        firsts = [number(first) for first in (*(period.first for period in plan.periods), unit_end + 1)]
        period = function("width_bucket", units, exp.Array(expressions=firsts))
    joins = [join(exp.table_("returned"), came_back, kind="LEFT")]
    if any(key.of_user for key in plan.group_keys):
        same_user = exp.EQ(this=column("user_id", "grouped_users"), expression=column("user_id", "started"))
        users = subquery(user_values(plan.schema, plan.group_keys), "grouped_users")
        joins.append(join(users, [same_user], kind="LEFT"))
    events = [column("events", "returned")] if plan.at_least > 1 else []
    keys = [column("user_id", "started"), start.copy(), *(column(name) for name in _groups(plan))]
    return select([*keys, named(period, "period"), *events], "started", joins=joins)


def _counting(plan: RetentionPlan, followed: exp.Query, keys: list[str]) -> exp.Select:
    """Each period of a user once, null where they came back too few times."""
    period: exp.Expr = column("period")
    if plan.at_least > 1:
        enough = exp.GTE(this=exp.Sum(this=column("events")), expression=number(plan.at_least))
        period = exp.Case(ifs=[exp.If(this=enough, true=period)])
    return select(
        [*(column(key) for key in keys), named(period, "period")],
        subquery(followed, "followed"),
        group_by=[column(key) for key in (*keys, "period")],
    )


def _groups(plan: RetentionPlan) -> list[str]:
    return [f"group_{index}" for index in range(1, len(plan.group_keys) + 1)]


def _counted(plan: RetentionPlan) -> exp.Query:
    """Users per cohort, group and period; everybody is in period 0."""
    if plan.counting == "on":
        each = function("unnest", function("array_prepend", number(0), column("periods")))
    else:
        last = exp.Coalesce(this=column("periods"), expressions=[number(0)])
        each = function("generate_series", number(0), function("least", last, number(len(plan.periods))))
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


def _kernel(plan: RetentionPlan) -> exp.Select:
    events = {
        "start_events": (plan.start, plan.entry),
        "return_events": (plan.back, TimeRange(plan.entry.start, plan.end)),
    }
    follow = {
        "firsts": [period.first for period in plan.periods],
        "last": plan.periods[-1].last,
        "window": None if plan.window is None else microseconds(plan.window),
        "at_least": plan.at_least,
        "counting": plan.counting,
        "recurring": plan.recurring,
    }
    return counting_kernel(
        "retention",
        plan.schema,
        events,
        plan.bounds,
        choice=plan.choice,
        keys=plan.group_keys,
        users=plan.users,
        follow=follow,
    )


def _counted_by_kernels(plan: RetentionPlan) -> exp.Select:
    """What `_counted` gives. A cohort's totals are an array: period 0 and those after it."""
    keys = ["bucket", *(["group_values"] if plan.group_keys else []), "period"]
    rows = select(
        [
            *(named(kernel_column(key), key) for key in keys[:-1]),
            named(function("generate_series", number(0), number(len(plan.periods))), "period"),
            named(function("unnest", kernel_column("counts")), "users"),
        ],
        "kernel",
    )
    return select(
        [*(column(key) for key in keys), named(cast(exp.Sum(this=column("users")), "bigint"), "users")],
        subquery(rows, "followed"),
        group_by=[column(key) for key in keys],
    )


def _folded() -> exp.Select:
    """The counts with the groups beyond the top added up: within a cohort a user is in one group."""
    shown = named(folded(column("group_values")), "group_values")
    rows = select([column("bucket"), shown, column("period"), column("users")], "counted")
    keys = ["bucket", "group_values", "period"]
    return select(
        [*(column(key) for key in keys), named(exp.Sum(this=column("users")), "users")],
        subquery(rows, "grouped"),
        group_by=[column(key) for key in keys],
    )


def retention_sources(plan: RetentionPlan) -> dict[str, str]:
    """The names of the two scans."""
    return {"start_events": plan.start.name, "return_events": plan.back.name}
