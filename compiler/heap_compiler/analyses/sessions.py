"""`sessions by day group by landing_page`: how many visits there were, how long they lasted, how many bounced.

A session is the events of one user with one session_id, inside the range. The events of a user stay in one order from
the first subquery to the last, so that one sort serves numbering, grouping by session and telling users apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import bucket_of, of_users
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.bound import BoundEvent, Choice, GroupKey
from heap_compiler.durations import (
    average_duration,
    duration_quantiles,
    each_of,
    interval,
    joined_durations,
    quantile,
    seconds,
)
from heap_compiler.groups import (
    event_values,
    fold_groups,
    group_columns,
    group_key,
    group_order,
    group_values,
    join_user_values,
    shown_groups,
    top_groups,
)
from heap_compiler.passes.choose_strategy import choose_counting
from heap_compiler.ranges import TimeRange, bucket_starts
from heap_compiler.scan import EVENT_ORDER, distinct_events
from heap_compiler.sql import (
    all_of,
    any_of,
    cast,
    column,
    function,
    is_set,
    join,
    named,
    number,
    numbered_times,
    select,
    share,
    subquery,
    table_alias,
    text,
    with_ctes,
)
from heap_compiler.strategies.counting import counted_by_kernels
from heap_compiler.strategies.kernels import SLICE, Reads, instants, kernel_column, kernel_query

__all__ = ["ANALYSIS", "SessionsPlan"]

_ROW = (
    ResultColumn("bucket", "timestamptz"),
    ResultColumn("group_key", "text"),
    ResultColumn("sessions", "bigint"),
    ResultColumn("users", "bigint"),
    ResultColumn("events_per_session", "numeric"),
    ResultColumn("average_duration", "interval"),
    ResultColumn("median_duration", "interval"),
    ResultColumn("bounce_rate", "numeric"),
)


@dataclass(frozen=True, slots=True)
class SessionsPlan:
    """Bound sessions. `event` is any, with the statement's `where`; `buckets` is empty without `by`."""

    schema: str
    event: BoundEvent
    read: TimeRange
    buckets: tuple[datetime, ...]
    users: exp.Query | None
    group_keys: tuple[GroupKey, ...]
    top: int | None
    choice: Choice

    @property
    def bounds(self) -> tuple[datetime, ...]:
        """Where the buckets begin: the range is one where there are none."""
        return self.buckets or (self.read.start,)


def bind_sessions(statement: syntax.AnalysisStatement, binder: Binder) -> SessionsPlan:
    """Raises HeapError: a part that cannot be bound, `top` without groups."""
    by = binder.clause(syntax.By)
    zone = binder.catalog.time_zone
    buckets = [] if by is None else bucket_starts(binder.time_range, by.unit, zone, by.span)
    event = binder.event(syntax.AnyEvent(span=statement.span), "any")
    return SessionsPlan(
        schema=binder.catalog.schema,
        event=event,
        read=binder.time_range,
        buckets=tuple(buckets),
        users=binder.users,
        group_keys=binder.session_group_keys,
        top=binder.top,
        choice=choose_counting([event], binder.catalog, known=len(event.alternatives) == 1),
    )


def lower_sessions(plan: SessionsPlan) -> exp.Query:
    """One row per bucket and group."""
    ctes: list[tuple[str, exp.Query]] = []
    if plan.choice.vector:
        if plan.top is not None:
            sizes = counted_by_kernels("bucket_number", {"sessions": 1}, plan.group_keys, kernel="kernel_of_all")
            ctes += [("kernel_of_all", _kernel(plan, whole=True)), ("sizes", sizes)]
            ctes.append(("top_groups", top_groups("sizes", exp.Sum(this=column("sessions")), plan.top)))
        ctes.append(("kernel", _kernel(plan)))
    elif plan.top is not None:
        ctes.append(("top_groups", _top_groups(plan, plan.top)))
    ctes.append(("counted", _counted_by_kernels(plan) if plan.choice.vector else _counted(plan)))
    buckets = numbered_times(plan.bounds, "buckets", time="bucket", number="bucket_number")
    same = exp.EQ(this=column("bucket_number", "counted"), expression=column("bucket_number", "buckets"))
    groups, has_other = shown_groups(plan.group_keys, "counted"), plan.top is not None
    sessions = exp.Coalesce(this=column("sessions", "counted"), expressions=[number(0)])
    users = exp.Coalesce(this=column("users", "counted"), expressions=[number(0)])
    average: exp.Expr = column("average_seconds", "durations")
    median: exp.Expr = column("median_seconds", "durations")
    durations = [join(_durations(), kind="CROSS")]
    if plan.choice.vector:
        average = average_duration(column("seconds", "counted"))
        median = duration_quantiles(column("seconds", "counted"), "0.5")
        durations = []
    query = select(
        [
            named(column("bucket", "buckets") if plan.buckets else cast(exp.Null(), "timestamptz"), "bucket"),
            named(group_key(plan.group_keys, groups.values, has_other=has_other), "group_key"),
            named(cast(sessions, "bigint"), "sessions"),
            named(cast(users, "bigint"), "users"),
            named(share(column("events", "counted"), column("sessions", "counted")), "events_per_session"),
            named(interval(average), "average_duration"),
            named(interval(median), "median_duration"),
            named(share(column("bounces", "counted"), column("sessions", "counted")), "bounce_rate"),
        ],
        buckets,
        joins=[
            *groups.joins,
            join(exp.table_("counted"), [same, *groups.matching("counted")], kind="LEFT"),
            *durations,
        ],
        order_by=[
            column("bucket_number", "buckets"),
            *group_order(plan.group_keys, groups.values, has_other=has_other),
        ],
    )
    return with_ctes(query, [*ctes, *groups.ctes])


def _kernel(plan: SessionsPlan, *, whole: bool = False) -> exp.Select:
    """Per shard, bucket and group the columns of heap._kernel_totals; or `whole`, of the range as one bucket
    and of all groups, also where only the `top_groups` are asked for."""
    reads = Reads(plan.schema, plan.choice.shards)
    (alias,) = sessions_sources(plan)
    of_events = [key for key in plan.group_keys if not key.of_user]
    values = {
        name: value if key.page is None else exp.Case(ifs=[exp.If(this=_is_pageview(), true=value)])
        for key, (name, value) in zip(of_events, event_values(plan.group_keys).items(), strict=True)
    }
    specification = {
        "schema": plan.schema,
        "events": reads.selection(
            plan.event,
            plan.read,
            alias,
            values=values,
            extra=[is_set(column("session_id"))],
            ordered=False,
        ),
        "pages": [key.page for key in of_events],
        "bounds": instants([plan.read.start] if whole else plan.bounds),
        "top": None,
        **reads.population(plan.group_keys, plan.users),
        "slice": SLICE,
    }
    computed = {}
    if plan.top is not None and not whole:
        each = function("to_jsonb", column("group_values"))
        computed["top"] = exp.Subquery(this=select([function("jsonb_agg", each)], "top_groups"))
    return kernel_query("heap._sessions_kernel", specification, reads, computed)


def _counted_by_kernels(plan: SessionsPlan) -> exp.Select:
    """What `_counted` gives, from kernels, with microseconds as bytes instead of an array of seconds."""
    counts = {name: index for index, name in enumerate(("sessions", "users", "events", "bounces"), start=1)}
    counted = counted_by_kernels("bucket_number", counts, plan.group_keys)
    return counted.select(named(joined_durations(kernel_column("durations")), "seconds"), copy=False)


def _durations() -> exp.Lateral:
    """Mean and median of a row's durations; one row also where there are none."""
    each = [exp.Avg(this=column("second")), quantile("0.5", column("second"))]
    measured = select(each, each_of(column("seconds", "counted"), "second"))
    return exp.Lateral(
        this=exp.Subquery(this=measured), alias=table_alias("durations", "average_seconds", "median_seconds")
    )


def _top_groups(plan: SessionsPlan, top: int) -> exp.Select:
    """The groups with the most sessions in the whole range."""
    whole = select(
        [named(group_values(plan.group_keys), "group_values"), named(exp.Count(this=exp.Star()), "sessions")],
        subquery(_visits(plan), "visits"),
        group_by=[column(name) for name in group_columns(plan.group_keys)],
    )
    most = exp.Ordered(this=column("sessions"), desc=True, nulls_first=False)
    return select(
        [column("group_values")],
        subquery(whole, "whole_range"),
        order_by=[most, column("group_values")],
        limit=top,
    )


def _counted(plan: SessionsPlan) -> exp.Query:
    """Per bucket and group: sessions, users, events, bounces and every duration."""
    visits, groups = _visits(plan), group_columns(plan.group_keys)
    if plan.top is not None:
        visits, groups = fold_groups(plan.group_keys, visits), ["group_values"]
    nth = exp.Window(
        this=exp.RowNumber(), partition_by=[column(name) for name in ("user_id", "bucket_number", *groups)]
    )
    numbered = select([exp.Star(), named(nth, "nth_of_user")], subquery(visits, "visits"))
    is_first = exp.EQ(this=column("nth_of_user"), expression=number(1))
    is_bounce = any_of([exp.EQ(this=column(name), expression=number(1)) for name in ("pageviews", "events")])
    shown: list[exp.Expr] = [column("group_values")]
    if plan.top is None:
        shown = [named(group_values(plan.group_keys), "group_values")] if plan.group_keys else []
    return select(
        [
            column("bucket_number"),
            *shown,
            named(exp.Count(this=exp.Star()), "sessions"),
            named(_count_where(is_first), "users"),
            named(exp.Sum(this=column("events")), "events"),
            named(_count_where(is_bounce), "bounces"),
            named(exp.ArrayAgg(this=column("seconds")), "seconds"),
        ],
        subquery(numbered, "numbered_visits"),
        group_by=[column(name) for name in ("bucket_number", *groups)],
    )


def _visits(plan: SessionsPlan) -> exp.Query:
    """One row per session."""
    groups = {
        f"group_{position}": exp.Filter(
            this=exp.Max(this=column(f"group_{position}")), expression=exp.Where(this=_gives_group(key))
        )
        for position, key in enumerate(plan.group_keys, start=1)
        if not key.of_user
    }
    start, end = exp.Min(this=column("time")), exp.Max(this=column("time"))
    columns: dict[str, exp.Expr] = {
        "user_id": column("user_id"),
        "bucket_number": bucket_of(plan.buckets, start) if plan.buckets else number(1),
        "events": exp.Count(this=exp.Star()),
        "pageviews": _count_where(column("is_pageview")),
        "seconds": seconds(start.copy(), end),
        **groups,
    }
    visits = select(
        [named(value, name) for name, value in columns.items()],
        subquery(_events(plan), "events"),
        group_by=[column("user_id"), column("session_id")],
    )
    return join_user_values(plan.schema, plan.group_keys, visits, list(columns))


def _gives_group(key: GroupKey) -> exp.Expr:
    """The one event of a session whose value is the session's."""
    if key.page is None:
        return exp.EQ(this=column("event_number"), expression=number(1))
    rest = {"entry": number(1), "exit": column("all_pageviews")}[key.page]
    return all_of([column("is_pageview"), exp.EQ(this=column("pageview_number"), expression=rest)])


def _events(plan: SessionsPlan) -> exp.Query:
    """The events that belong to a session. Where a group is read off one of them, they are numbered in it."""
    columns = {
        **{name: column(name) for name in (*EVENT_ORDER, "session_id")},
        "is_pageview": _is_pageview(),
        **event_values(plan.group_keys),
    }
    in_session = [is_set(column("session_id")), *of_users(plan.users)]
    events = distinct_events(plan.schema, plan.event, plan.read, columns, alias="session_events", extra=in_session)
    pages = {key.page for key in plan.group_keys if not key.of_user}
    if not pages:
        return events
    numbers = []
    if None in pages:
        numbers.append(named(_over_session(exp.RowNumber(), ordered=True), "event_number"))
    if pages - {None}:
        numbers.append(named(_over_session(_count_where(column("is_pageview")), ordered=True), "pageview_number"))
    if "exit" in pages:
        numbers.append(named(_over_session(_count_where(column("is_pageview")), ordered=False), "all_pageviews"))
    return select([exp.Star(), *numbers], subquery(events, "session_event"))


def _is_pageview() -> exp.Expr:
    return exp.EQ(this=column("type"), expression=text("pageview"))


def _over_session(aggregate: exp.Expr, *, ordered: bool) -> exp.Window:
    order = exp.Order(expressions=[column("time"), column("event_id")]) if ordered else None
    return exp.Window(this=aggregate, partition_by=[column("user_id"), column("session_id")], order=order)


def _count_where(condition: exp.Expr) -> exp.Expr:
    return exp.Filter(this=exp.Count(this=exp.Star()), expression=exp.Where(this=condition))


def sessions_sources(plan: SessionsPlan) -> dict[str, str]:
    """The name of the one scan."""
    return {"session_events": plan.event.name}


ANALYSIS = Analysis(
    keyword="sessions",
    clauses=(syntax.By, syntax.GroupBy, syntax.Top),
    row=_ROW,
    bind=bind_sessions,
    lower=lower_sessions,
    sources=sessions_sources,
    strategy=lambda plan: plan.choice.strategy,
)
