"""`funnel A -> B -> C within 7 days`: how many users take the steps in order inside the conversion window.

A user's chain is the one that reaches furthest; among those, the one whose last event comes first, with the latest
entry it can have. Groups, and times between steps, are read off that chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import cast as typing_cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import of_users
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.bound import GroupKey
from heap_compiler.errors import HeapError
from heap_compiler.groups import OTHER, group_key, group_values, user_values
from heap_compiler.passes import SEQUENCE_PASSES
from heap_compiler.ranges import window
from heap_compiler.scan import EVENT_ORDER, scans
from heap_compiler.sequence import Sequence, SequenceStep
from heap_compiler.sql import (
    cast,
    column,
    function,
    is_set,
    join,
    named,
    number,
    select,
    share,
    subquery,
    table_alias,
    text,
    union_all,
    with_ctes,
)
from heap_compiler.strategies import user_chains

__all__ = ["ANALYSIS", "FunnelPlan"]

_DEFAULT_WINDOW = timedelta(days=30)
_MAX_STEPS = 20

_ROW = (
    ResultColumn("group_key", "text"),
    ResultColumn("step", "int"),
    ResultColumn("event", "text"),
    ResultColumn("users", "bigint"),
    ResultColumn("conversion", "numeric"),
    ResultColumn("step_conversion", "numeric"),
    ResultColumn("median_time", "interval"),
    ResultColumn("average_time", "interval"),
)


@dataclass(frozen=True, slots=True)
class FunnelPlan:
    """A bound funnel."""

    sequence: Sequence
    users: exp.Query | None
    group_keys: tuple[GroupKey, ...]
    top: int | None


def bind_funnel(statement: syntax.AnalysisStatement, binder: Binder) -> FunnelPlan:
    """Raises HeapError: fewer than two steps or more than twenty, or a part that cannot be bound."""
    steps = typing_cast("tuple[syntax.Step, ...]", statement.head)
    if not 2 <= len(steps) <= _MAX_STEPS:
        raise HeapError(
            f"a funnel has 2 to {_MAX_STEPS} steps, this one {len(steps)}",
            steps[-1].span,
            "funnel A -> B -> C",
        )
    within = binder.clause(syntax.Within)
    sequence = Sequence(
        schema=binder.catalog.schema,
        steps=tuple(SequenceStep(binder.event(step.event, step.label)) for step in steps),
        window=_DEFAULT_WINDOW if within is None else window(within.duration),
        entry=binder.time_range,
    )
    for sequence_pass in SEQUENCE_PASSES:
        sequence = sequence_pass(sequence)
    return FunnelPlan(sequence, binder.users, binder.group_keys, binder.top)


def lower_funnel(plan: FunnelPlan) -> exp.Query:
    """One row per group and step."""
    by_event = any(not key.of_user for key in plan.group_keys)
    ctes = user_chains(plan.sequence, entries=by_event)
    if by_event:
        ctes.append(("entries", _entries(plan)))
    ctes.append(("totals", _totals(plan)))
    if plan.top is not None:
        ctes.append(("ranked", _ranked(plan.top)))
        ctes.append(("folded", _folded(plan)))
    totals = "totals" if plan.top is None else "folded"
    rows = exp.Values(
        expressions=[
            exp.Tuple(
                expressions=[
                    number(index),
                    text(step.event.name),
                    column(f"users_{index}", totals),
                    column(f"users_{max(index - 1, 1)}", totals),
                    _median(plan, totals, index),
                    _average(plan, totals, index),
                ]
            )
            for index, step in enumerate(plan.sequence.steps, start=1)
        ]
    )
    lateral = exp.Lateral(
        this=exp.Subquery(this=rows),
        alias=table_alias("steps", "step", "event", "users", "users_before", "median_seconds", "average_seconds"),
    )
    values = column("group_values", totals)
    key = group_key(plan.group_keys, values, has_other=plan.top is not None)
    order: list[exp.Expr] = []
    if plan.group_keys:
        is_other = exp.EQ(this=values.copy(), expression=OTHER.copy())
        largest = exp.Ordered(this=column("users_1", totals), desc=True, nulls_first=False)
        order = [*([is_other] if plan.top is not None else []), largest, values.copy()]
    query = select(
        [
            named(key, "group_key"),
            column("step", "steps"),
            column("event", "steps"),
            named(cast(column("users", "steps"), "bigint"), "users"),
            named(share(column("users", "steps"), column("users_1", totals)), "conversion"),
            named(share(column("users", "steps"), column("users_before", "steps")), "step_conversion"),
            named(_interval(column("median_seconds", "steps")), "median_time"),
            named(_interval(column("average_seconds", "steps")), "average_time"),
        ],
        totals,
        joins=[join(lateral, kind="CROSS")],
        order_by=[*order, column("step", "steps")],
    )
    return with_ctes(query, ctes)


def _entries(plan: FunnelPlan) -> exp.Query:
    """The events of step 1, numbered per user, with their group values: a chain knows its entry by that number."""
    entry_step = plan.sequence.steps[0]
    assert entry_step.read is not None
    values = {f"group_{index}": key.value for index, key in enumerate(plan.group_keys, start=1) if not key.of_user}
    columns = {**{name: column(name) for name in EVENT_ORDER}, **values}
    read = union_all(scans(plan.sequence.schema, entry_step.event, entry_step.read, columns, alias="entry"))
    ordinal = exp.Window(
        this=exp.RowNumber(),
        partition_by=[column("user_id")],
        order=exp.Order(expressions=[column("time"), column("event_id")]),
    )
    return select(
        [column("user_id"), named(ordinal, "entry"), *(column(name) for name in values)],
        subquery(read, "entered"),
    )


def _totals(plan: FunnelPlan) -> exp.Query:
    """Per group: how many users completed each step, and the seconds each took since the step before."""
    steps = len(plan.sequence.steps)
    columns: list[exp.Expr] = [
        named(exp.Count(this=column(f"time_{index}")), f"users_{index}") for index in range(1, steps + 1)
    ]
    for index in range(2, steps + 1):
        seconds = exp.Filter(
            this=exp.ArrayAgg(this=_gap(index)),
            expression=exp.Where(this=is_set(column(f"time_{index}"))),
        )
        columns.append(named(seconds, f"seconds_{index}"))
    joins, group_by = [], []
    groups: exp.Expr = cast(exp.Null(), "text[]")
    if plan.group_keys:
        groups = group_values(plan.group_keys)
        group_by = [column(f"group_{index}") for index in range(1, len(plan.group_keys) + 1)]
    if any(not key.of_user for key in plan.group_keys):
        same_entry = exp.EQ(this=column("entry", "entries"), expression=column("entry", "chains"))
        joins.append(join(exp.table_("entries"), [_same_user("entries"), same_entry]))
    if any(key.of_user for key in plan.group_keys):
        users = user_values(plan.sequence.schema, plan.group_keys)
        joins.append(join(subquery(users, "grouped_users"), [_same_user("grouped_users")], kind="LEFT"))
    where = of_users(plan.users, "chains")
    return select([*columns, named(groups, "group_values")], "chains", joins=joins, where=where, group_by=group_by)


def _same_user(table: str) -> exp.Expr:
    return exp.EQ(this=column("user_id", table), expression=column("user_id", "chains"))


def _gap(index: int) -> exp.Expr:
    """Seconds on the user's chain between two steps."""
    taken = exp.Sub(this=column(f"time_{index}"), expression=column(f"time_{index - 1}"))
    return function("date_part", text("epoch"), taken)


def _ranked(top: int) -> exp.Select:
    """The groups by size; those beyond the top become the empty group, `other`."""
    rank = exp.Window(
        this=exp.RowNumber(),
        order=exp.Order(
            expressions=[
                exp.Ordered(this=column("users_1"), desc=True, nulls_first=False),
                column("group_values"),
            ]
        ),
    )
    ranked = select([exp.Star(), named(rank, "rank")], "totals")
    is_top = exp.LTE(this=column("rank"), expression=number(top))
    folded = exp.Case(ifs=[exp.If(this=is_top, true=column("group_values"))], default=OTHER.copy())
    return select([exp.Star(), named(folded, "shown")], subquery(ranked, "sized"))


def _folded(plan: FunnelPlan) -> exp.Select:
    users = [
        named(exp.Sum(this=column(f"users_{index}")), f"users_{index}")
        for index in range(1, len(plan.sequence.steps) + 1)
    ]
    shown = named(column("shown"), "group_values")
    return select([shown, *users], "ranked", group_by=[column("shown")])


def _median(plan: FunnelPlan, totals: str, index: int) -> exp.Expr:
    ordered = exp.Order(expressions=[column("seconds")])
    half = exp.PercentileCont(this=exp.Literal.number("0.5"))
    return _over_seconds(plan, totals, index, exp.WithinGroup(this=half, expression=ordered))


def _average(plan: FunnelPlan, totals: str, index: int) -> exp.Expr:
    return _over_seconds(plan, totals, index, exp.Avg(this=column("seconds")))


def _over_seconds(plan: FunnelPlan, totals: str, index: int, aggregate: exp.Expr) -> exp.Expr:
    """An aggregate over the seconds to one step; of a folded group, over those of all its groups."""
    if index == 1:
        return cast(exp.Null(), "double precision")
    of = "ranked" if plan.top is not None else totals
    unnested = exp.Table(
        this=function("unnest", column(f"seconds_{index}", of)),
        alias=table_alias("seconds"),
    )
    if plan.top is None:
        return exp.Subquery(this=select([aggregate], unnested))
    same_group = exp.EQ(this=column("shown", "ranked"), expression=column("group_values", totals))
    return exp.Subquery(this=select([aggregate], "ranked", joins=[join(unnested, kind="CROSS")], where=[same_group]))


def _interval(seconds: exp.Expr) -> exp.Expr:
    second = cast(text("1 second"), "interval")
    return function("justify_hours", exp.Mul(this=seconds, expression=second))


def funnel_sources(plan: FunnelPlan) -> dict[str, str]:
    """The names that the steps' scans have in the query."""
    return {f"step_{index}": step.event.name for index, step in enumerate(plan.sequence.steps, start=1)}


ANALYSIS = Analysis(
    keyword="funnel",
    clauses=(syntax.Within, syntax.Over, syntax.Where, syntax.ForUsersWhere, syntax.GroupBy, syntax.Top),
    row=_ROW,
    bind=bind_funnel,
    lower=lower_funnel,
    sources=funnel_sources,
)
