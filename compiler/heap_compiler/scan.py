"""Reading events: one SELECT per alternative of an event, so that each uses its own partial index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from sqlglot import exp

from heap_compiler.bound import Alternative, BoundEvent, FirstAfter
from heap_compiler.passes.disjoint_steps import disjoint
from heap_compiler.ranges import BEGINNING, TimeRange
from heap_compiler.sql import (
    column,
    conjuncts,
    copied,
    elapsed,
    events_table,
    function,
    named,
    number,
    select,
    subquery,
    text,
    timestamp,
    union_all,
    walk,
)

__all__ = ["EVENT_ORDER", "Scan", "distinct_events", "matching", "scans", "scans_in"]

EVENT_ORDER = ("user_id", "time", "event_id")
"""The order of a user's events, and the columns of every partial index."""


class Scan(NamedTuple):
    """A read of the events table.

    Attributes:
        alias: its name in the query.
        event: what it reads.
        definition: the defined event whose index serves it, if there is one.
        every_event: it has no condition that an index could have.
    """

    alias: str
    event: str
    definition: str | None
    every_event: bool


def scans_in(query: exp.Query) -> Iterator[Scan]:
    """Every scan that `scans` put into the query."""
    return (part.meta["scan"] for part in walk(query) if type(part) is exp.Select and "scan" in part.meta)


def scans(
    schema: str,
    event: BoundEvent,
    read: TimeRange,
    columns: Mapping[str, exp.Expr],
    *,
    alias: str,
    extra: Sequence[exp.Expr] = (),
    ordered: bool = False,
) -> list[exp.Select]:
    """One SELECT per alternative.

    Args:
        columns: output name -> value over the events table.
        alias: name of the events table in the query; EXPLAIN shows it, so it says which step reads.
        extra: further conditions.
        ordered: in the order of the index. PostgreSQL then merges index scans instead of sorting.
    """
    order = [column(name) for name in EVENT_ORDER] if ordered else []
    queries = []
    for alternative in event.alternatives:
        query = select(
            [named(copied(value), name) for name, value in columns.items()],
            events_table(schema, alias),
            where=[*matching(schema, alternative, read, alias=alias, extra=extra), *_within(read)],
            order_by=[copied(part) for part in order],
        )
        query.meta["scan"] = Scan(alias, event.name, alternative.definition, not alternative.conditions)
        queries.append(query)
    return queries


def matching(
    schema: str, alternative: Alternative, read: TimeRange, *, alias: str, extra: Sequence[exp.Expr] = ()
) -> list[exp.Expr]:
    """What an event of the range `read` must fulfil beside being in it; as in `scans`."""
    conditions = (_of_known_users(copied(part), alias) for part in (*alternative.conditions, *extra))
    return [*conditions, *_is_first_after(schema, alternative.first_after, read, alias)]


def _of_known_users(condition: exp.Expr, alias: str) -> exp.Expr:
    """The condition on events of `alias`, memberships of users inside `not` and `or` written as EXISTS: as IN, Citus
    would bring those users to the coordinator first, since PostgreSQL makes a join of IN only where it must hold."""
    if isinstance(condition, exp.In):
        return condition
    for member in list(condition.find_all(exp.In)):
        asked = member.args.get("query")
        if asked is not None:
            users: exp.Select = asked.this
            table = users.args["from_"].this.alias_or_name
            same_user = exp.EQ(this=column("user_id", table), expression=column("user_id", alias))
            where = [*conjuncts(users.args["where"].this), same_user]
            exists = exp.Exists(this=select([number(1)], users.args["from_"].this, where=where))
            member.replace(exists)
    return condition


def _is_first_after(schema: str, rule: FirstAfter | None, read: TimeRange, alias: str) -> list[exp.Expr]:
    """The event is one of `rule.event` with a `rule.after` before it, at most `within` ago, and no other between: in
    the timeline of both, the last `after` is no earlier than the last other `event`."""
    if rule is None:
        return []
    start = read.start - min(rule.within, read.start - BEGINNING) if rule.within is not None else BEGINNING
    timeline: list[exp.Select] = []
    for part, event in (("event", rule.event), ("after", rule.after)):
        columns = {**{name: column(name) for name in EVENT_ORDER}, "part": text(part)}
        timeline += scans(schema, event, TimeRange(start, read.end), columns, alias=f"{alias}_{part}", ordered=True)
    in_time = exp.Order(expressions=[column("time"), column("event_id")])
    place = exp.Window(this=function("rank"), partition_by=[column("user_id")], order=in_time)
    numbered = select([exp.Star(), named(place, "position")], subquery(union_all(timeline), "timeline"))
    lasts = [
        named(_last_before(column("position"), "event"), "event_position"),
        named(_last_before(column("position"), "after"), "after_position"),
        named(_last_before(column("time"), "after"), "after_time"),
    ]
    ordered = select([exp.Star(), *lasts], subquery(numbered, "numbered"))
    no_other_between = exp.GTE(
        this=column("after_position"), expression=exp.Coalesce(this=column("event_position"), expressions=[number(0)])
    )
    where: list[exp.Expr] = [exp.EQ(this=column("part"), expression=text("event")), no_other_between]
    if rule.within is not None:
        reach = exp.Add(this=column("after_time"), expression=elapsed(rule.within))
        where.append(exp.LTE(this=column("time"), expression=reach))
    first = select([column(name) for name in EVENT_ORDER], subquery(ordered, "ordered"), where=where)
    key = exp.Tuple(expressions=[column(name, alias) for name in EVENT_ORDER])
    return [exp.In(this=key, query=exp.Subquery(this=first))]


def _last_before(value: exp.Expr, part: str) -> exp.Expr:
    of_part = exp.EQ(this=column("part"), expression=text(part))
    return exp.Window(
        this=exp.Filter(this=exp.Max(this=value), expression=exp.Where(this=of_part)),
        partition_by=[column("user_id")],
        order=exp.Order(expressions=[column("time"), column("event_id")]),
        spec=exp.WindowSpec(
            kind="GROUPS", start="UNBOUNDED", start_side="PRECEDING", end=number(1), end_side="PRECEDING"
        ),
    )


def distinct_events(
    schema: str,
    event: BoundEvent,
    read: TimeRange,
    columns: Mapping[str, exp.Expr],
    *,
    alias: str,
    extra: Sequence[exp.Expr] = (),
) -> exp.Query:
    """The matching events, each once even when it matches several alternatives; with `user_id`, if there are several,
    since Citus pushes a union down only where it sees that its rows stay with their users."""
    if len(event.alternatives) > 1:
        columns = {"user_id": column("user_id"), **columns}
    if _pairwise_disjoint(event.alternatives):
        return union_all(scans(schema, event, read, columns, alias=alias, extra=extra))
    keyed = {**{name: column(name) for name in EVENT_ORDER}, **columns}
    every = union_all(scans(schema, event, read, keyed, alias=alias, extra=extra, ordered=True))
    return select(
        [column(name) for name in keyed],
        subquery(every, "matching"),
        distinct_on=[column(name) for name in EVENT_ORDER],
        order_by=[column(name) for name in EVENT_ORDER],
    )


def _pairwise_disjoint(alternatives: tuple[Alternative, ...]) -> bool:
    return all(disjoint(one, other) for one, other in combinations(alternatives, 2))


def _within(read: TimeRange) -> list[exp.Expr]:
    return [
        exp.GTE(this=column("time"), expression=timestamp(read.start)),
        exp.LT(this=column("time"), expression=timestamp(read.end)),
    ]
