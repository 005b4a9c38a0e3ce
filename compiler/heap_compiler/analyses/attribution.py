"""`attribution of "Purchase" to utm_source by first touch within 30 days`: which touches conversions are credited to.

A touch is a run of a user's events with the same values in one session. Touches are numbered per user, so that those of
a conversion are the numbers between two bounds, which windows over touches and conversions find in one pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import cast as typing_cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import of_users
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.bound import BoundEvent, Choice, GroupKey
from heap_compiler.errors import HeapError
from heap_compiler.groups import event_values, group_columns, group_key, group_values
from heap_compiler.passes.choose_strategy import choose_counting
from heap_compiler.predicates import number_of, property_text
from heap_compiler.ranges import BEGINNING, TimeRange, window
from heap_compiler.scan import EVENT_ORDER, distinct_events, scans
from heap_compiler.sql import (
    FALSE,
    all_of,
    any_of,
    cast,
    column,
    elapsed,
    function,
    is_set,
    named,
    number,
    select,
    share,
    subquery,
    union_all,
    with_ctes,
)
from heap_compiler.strategies.kernels import SLICE, Reads, kernel_column, kernel_query, microseconds

__all__ = ["ANALYSIS", "AttributionPlan"]

_DEFAULT_WINDOW = timedelta(days=30)

_ROW = (
    ResultColumn("group_key", "text"),
    ResultColumn("conversions", "numeric"),
    ResultColumn("users", "bigint"),
    ResultColumn("share", "numeric"),
    ResultColumn("value", "numeric"),
)


@dataclass(frozen=True, slots=True)
class AttributionPlan:
    """A bound attribution. `value` is what is credited beside the conversions themselves, such as an amount; where
    `any_touches`, any event can be a touch, conversions too."""

    schema: str
    conversion: BoundEvent
    value: exp.Expr | None
    touch: BoundEvent
    any_touches: bool
    keys: tuple[GroupKey, ...]
    model: syntax.Model
    window: timedelta
    converted: TimeRange
    users: exp.Query | None
    choice: Choice

    @property
    def groups(self) -> list[str]:
        """The columns that hold a touch's values."""
        return group_columns(self.keys)

    @property
    def touched(self) -> TimeRange:
        """The instants touches are read from: up to a window before the first conversion."""
        room = self.converted.start - BEGINNING
        return TimeRange(self.converted.start - min(self.window, room), self.converted.end)


def bind_attribution(statement: syntax.AnalysisStatement, binder: Binder) -> AttributionPlan:
    """Raises HeapError: a property of the user, an aggregate that is no sum, or a part that cannot be bound."""
    credited, *properties = statement.head
    value: exp.Expr | None = None
    if isinstance(credited, syntax.Measure):
        if credited.function != "sum" or credited.property is None:
            raise HeapError(f"{credited.function} cannot be shared out among touches", credited.span, "use sum")
        conversion, value = credited.event, number_of(credited.property)
    else:
        conversion = typing_cast(syntax.Event, credited)
    keys = []
    for of in typing_cast("list[syntax.Property]", properties):
        if of.of_user:
            raise HeapError("a property of the user is no touch", of.span, "attribute to a property of the event")
        keys.append(GroupKey(binder.name_of(of), False, property_text(of, of_user=False)))
    model, touches = binder.clause(syntax.TouchModel), binder.clause(syntax.Touches)
    within = binder.clause(syntax.Within)
    converts = binder.event(conversion)
    any_event = syntax.AnyEvent(span=statement.span)
    touch = binder.event(any_event, "any") if touches is None else binder.event(touches.event)
    return AttributionPlan(
        schema=binder.catalog.schema,
        conversion=converts,
        value=value,
        touch=touch,
        any_touches=touches is None,
        keys=tuple(keys),
        model="last" if model is None else model.model,
        window=_DEFAULT_WINDOW if within is None else window(within.duration),
        converted=binder.time_range,
        users=binder.users,
        choice=choose_counting([converts, touch], binder.catalog),
    )


def lower_attribution(plan: AttributionPlan) -> exp.Query:
    """One row per value, or combination of values, of the touches; null for conversions without any."""
    credit = column("conversions" if plan.value is None else "value")
    whole = exp.Window(this=exp.Sum(this=credit.copy()))
    value: exp.Expr = cast(exp.Null(), "numeric") if plan.value is None else _rounded(column("value"))
    query = select(
        [
            named(group_key(plan.keys, column("group_values"), has_other=False), "group_key"),
            named(_rounded(column("conversions")), "conversions"),
            column("users"),
            named(share(credit.copy(), whole), "share"),
            named(value, "value"),
        ],
        "credited",
        order_by=[exp.Ordered(this=credit.copy(), desc=True, nulls_first=False), column("group_values")],
    )
    if plan.choice.vector:
        return with_ctes(query, [("kernel", _kernel(plan)), ("credited", _credited_by_kernels(plan))])
    return with_ctes(query, [("credited", _credited(plan))])


def _kernel(plan: AttributionPlan) -> exp.Select:
    """Per shard, group and number of touches the columns of heap._kernel_totals."""
    reads = Reads(plan.schema, plan.choice.shards)
    conversions, touches = attribution_sources(plan)
    values = event_values(plan.keys)
    amount = {} if plan.value is None else {"value": cast(plan.value, "text")}
    specification = {
        "schema": plan.schema,
        "conversions": reads.selection(plan.conversion, plan.converted, conversions, values=amount),
        "touches": reads.selection(
            plan.touch,
            plan.touched,
            touches,
            values=values,
            extra=[_has_value(values.values())],
            ordered=False,
        ),
        "are_touches": plan.any_touches,
        "model": plan.model,
        "window": microseconds(plan.window),
        **reads.population((), plan.users),
        "slice": SLICE,
    }
    return kernel_query("heap._attribution_kernel", specification, reads)


def _credited_by_kernels(plan: AttributionPlan) -> exp.Select:
    """What `_credited` gives, from kernels, whose buckets are numbers of touches: negative for touches that are neither
    the first nor the last, 0 for the users."""
    touches, inside = column("touches"), exp.LT(this=column("touches"), expression=number(0))
    totals = select(
        [
            named(kernel_column("group_values"), "group_values"),
            named(kernel_column("counts", 1), "credits"),
            named(kernel_column("value"), "value"),
            named(kernel_column("bucket"), "touches"),
        ],
        "kernel",
    )
    each = select(
        [
            exp.Star(),
            named(number(1), "low"),
            named(function("greatest", function("abs", touches), number(1)), "high"),
            named(exp.Case(ifs=[exp.If(this=inside, true=number(2))], default=number(1)), "at"),
        ],
        subquery(totals, "totals"),
    )
    weighted = select([exp.Star(), named(_weight(plan.model), "weight")], subquery(each, "each_credit"))
    of_users = exp.Where(this=exp.EQ(this=column("touches"), expression=number(0)))
    of_touches = exp.Where(this=exp.NEQ(this=column("touches"), expression=number(0)))
    sums: dict[str, exp.Expr] = {"conversions": column("credits")}
    if plan.value is not None:
        sums["value"] = column("value")
    return select(
        [
            column("group_values"),
            named(cast(exp.Filter(this=exp.Sum(this=column("credits")), expression=of_users), "bigint"), "users"),
            *(
                named(
                    exp.Filter(
                        this=exp.Sum(this=exp.Mul(this=column("weight"), expression=part)),
                        expression=of_touches.copy(),
                    ),
                    name,
                )
                for name, part in sums.items()
            ),
        ],
        subquery(weighted, "weighted"),
        group_by=[column("group_values")],
    )


def _rounded(value: exp.Expr) -> exp.Expr:
    return function("trim_scale", function("round", value, number(8)))


def _credited(plan: AttributionPlan) -> exp.Select:
    """Per group the credit of all conversions, and the users who made them."""
    sums: dict[str, exp.Expr] = {"conversions": column("weight")}
    if plan.value is not None:
        value = exp.Coalesce(this=column("value"), expressions=[number(0)])
        sums["value"] = exp.Mul(this=column("weight"), expression=value)
    of_each_user = select(
        [*_columns("user_id", *plan.groups), *(named(exp.Sum(this=part), name) for name, part in sums.items())],
        subquery(_weighted(plan), "weighted"),
        group_by=_columns("user_id", *plan.groups),
    )
    touched = any_of([is_set(column(name)) for name in plan.groups])  # without a touch no value is set
    groups = exp.Case(ifs=[exp.If(this=touched, true=group_values(plan.keys))])
    return select(
        [
            named(groups, "group_values"),
            named(exp.Count(this=exp.Star()), "users"),
            *(named(exp.Sum(this=column(name)), name) for name in sums),
        ],
        subquery(of_each_user, "of_each_user"),
        group_by=_columns(*plan.groups),
    )


def _weighted(plan: AttributionPlan) -> exp.Select:
    """Every credited touch of every conversion: its values, and its share of the conversion."""
    values = [named(exp.Bracket(this=column(name), expressions=[column("at")], offset=1), name) for name in plan.groups]
    value = [column("value")] if plan.value is not None else []
    return select(
        [column("user_id"), *values, named(_weight(plan.model), "weight"), *value],
        subquery(_credited_touches(plan), "credited_touches"),
    )


def _weight(model: syntax.Model) -> exp.Expr:
    """Of all touches of a conversion the weights add up to 1. `at` is one of the numbers from `low` to `high`."""
    one, further = _numeric("1"), exp.paren(exp.Sub(this=column("high"), expression=column("low")))
    match model:
        case "first" | "last":
            return one
        case "linear":
            return exp.Div(this=one, expression=exp.paren(exp.Add(this=further, expression=number(1))))
    between = exp.paren(exp.Sub(this=further.copy(), expression=number(1)))
    is_end = exp.In(this=column("at"), expressions=[column("low"), column("high")])
    return exp.Case(
        ifs=[
            exp.If(this=exp.EQ(this=further, expression=number(0)), true=one),
            exp.If(this=exp.EQ(this=further.copy(), expression=number(1)), true=_numeric("0.5")),
            exp.If(this=is_end, true=_numeric("0.4")),
        ],
        default=exp.Div(this=_numeric("0.2"), expression=between),
    )


def _numeric(value: str) -> exp.Expr:
    return cast(exp.Literal.number(value), "numeric")


def _credited_touches(plan: AttributionPlan) -> exp.Select:
    """Every conversion once for each touch that the model credits; once with touch 0, which none is, without any."""
    low, high = {"first": ("low", "low"), "last": ("high", "high")}.get(plan.model, ("low", "high"))
    each = named(function("generate_series", column(low), column(high)), "at")
    return select([exp.Star(), each], subquery(_conversions(plan), "conversions"))


def _conversions(plan: AttributionPlan) -> exp.Select:
    """Every conversion with the numbers of its first and last touch, and all its user's touches as arrays."""
    touched = exp.GTE(this=column("last_touch"), expression=column("first_touch"))
    bounds = [
        named(exp.Case(ifs=[exp.If(this=touched.copy(), true=column(touch))], default=number(0)), name)
        for name, touch in (("low", "first_touch"), ("high", "last_touch"))
    ]
    unnested = ["first_touch", "last_touch", *(["value"] if plan.value is not None else [])]
    each = select(
        [*_columns("user_id", *plan.groups), *(named(function("unnest", column(name)), name) for name in unnested)],
        subquery(_users(plan, unnested), "users"),
    )
    value = [column("value")] if plan.value is not None else []
    return select([*_columns("user_id", *plan.groups), *bounds, *value], subquery(each, "each_conversion"))


def _users(plan: AttributionPlan, of_conversions: Iterable[str]) -> exp.Select:
    """Per user who converted: the values of the touches in order, and the conversions."""
    begins, is_conversion = exp.Where(this=column("begins")), exp.Where(this=column("is_conversion"))
    touches = [
        exp.ArrayAgg(this=exp.Order(this=column(name), expressions=[column("last_touch")])) for name in plan.groups
    ]
    return select(
        [
            column("user_id"),
            *(
                named(exp.Filter(this=values, expression=begins.copy()), name)
                for name, values in zip(plan.groups, touches, strict=True)
            ),
            *(
                named(exp.Filter(this=exp.ArrayAgg(this=column(name)), expression=is_conversion.copy()), name)
                for name in of_conversions
            ),
        ],
        subquery(_bounded(plan), "bounded"),
        group_by=[column("user_id")],
        having=function("bool_or", column("is_conversion")),
    )


def _bounded(plan: AttributionPlan) -> exp.Select:
    """Touches and conversions in order. `last_touch` is the number of the touch that has begun by then, `first_touch`
    the first that has an event inside the window."""
    too_early = elapsed(plan.window + timedelta(microseconds=1))
    frame = exp.WindowSpec(kind="RANGE", start="UNBOUNDED", start_side="PRECEDING", end=too_early, end_side="PRECEDING")
    windows = [_user_order("so_far", *EVENT_ORDER[1:]), _user_order("too_early", "time", spec=frame)]
    first = exp.Coalesce(this=_over(exp.Max(this=column("next_touch")), "too_early"), expressions=[number(1)])
    last = _over(exp.Max(this=column("touch")), "so_far")
    own = ["user_id", "is_conversion", "begins", *plan.groups, *(["value"] if plan.value is not None else [])]
    return select(
        [*_columns(*own), named(first, "first_touch"), named(last, "last_touch")],
        subquery(union_all([_touches(plan), _converting(plan)]), "timeline"),
        windows=windows,
    )


def _touches(plan: AttributionPlan) -> exp.Select:
    """The events that have a value, each with the number of its touch, and the touch of the event after it."""
    order = [*EVENT_ORDER, *plan.groups]
    same: list[exp.Expr] = [
        exp.EQ(this=column("session_id"), expression=_over(function("lag", column("session_id")), "so_far"))
    ]
    same += [
        exp.NullSafeEQ(this=column(name), expression=_over(function("lag", column(name)), "so_far"))
        for name in plan.groups
    ]
    continues = exp.Is(this=exp.paren(all_of(same)), expression=exp.Boolean(this=True))
    begun = select(
        [*_columns(*order), named(exp.Not(this=exp.paren(continues)), "begins")],
        subquery(_touching_events(plan), "touching"),
        windows=[_user_order("so_far", "time", "event_id")],
    )
    number_of_touch = exp.Filter(this=exp.Count(this=exp.Star()), expression=exp.Where(this=column("begins")))
    numbered = select(
        [*_columns(*order), column("begins"), named(_over(number_of_touch, "so_far"), "touch")],
        subquery(begun, "begun"),
        windows=[_user_order("so_far", "time", "event_id")],
    )
    following = exp.Coalesce(
        this=_over(function("lead", column("touch")), "so_far"),
        expressions=[exp.Add(this=column("touch"), expression=number(1))],
    )
    value = [named(cast(exp.Null(), "numeric"), "value")] if plan.value is not None else []
    return select(
        [
            *_columns(*order),
            named(FALSE.copy(), "is_conversion"),
            *_columns("begins", "touch"),
            named(following, "next_touch"),
            *value,
        ],
        subquery(numbered, "numbered"),
        windows=[_user_order("so_far", "time", "event_id")],
        order_by=_columns(*EVENT_ORDER),
    )


def _touching_events(plan: AttributionPlan) -> exp.Query:
    """The events that can be touches, of users who converted alone."""
    columns = {name: column(name) for name in (*EVENT_ORDER, "session_id")}
    values = event_values(plan.keys)
    user = {"user_id": column("user_id")}
    converted = union_all(
        scans(plan.schema, plan.conversion, plan.converted, user, alias="converting_users", extra=of_users(plan.users))
    )
    extra = [_has_value(values.values()), *of_users(converted)]
    return distinct_events(
        plan.schema, plan.touch, plan.touched, {**columns, **values}, alias="touch_events", extra=extra
    )


def _has_value(values: Iterable[exp.Expr]) -> exp.Expr:
    """The event has one of the values at least."""
    return any_of([is_set(value.copy()) for value in values])


def _converting(plan: AttributionPlan) -> exp.Select:
    columns: dict[str, exp.Expr] = {name: column(name) for name in EVENT_ORDER}
    if plan.value is not None:
        columns["value"] = plan.value
    extra = of_users(plan.users)
    events = distinct_events(
        plan.schema, plan.conversion, plan.converted, columns, alias="conversion_events", extra=extra
    )
    return select(
        [
            *_columns(*EVENT_ORDER),
            *(named(cast(exp.Null(), "text"), name) for name in plan.groups),
            named(exp.true(), "is_conversion"),
            named(FALSE.copy(), "begins"),
            *(named(cast(exp.Null(), "bigint"), name) for name in ("touch", "next_touch")),
            *([column("value")] if plan.value is not None else []),
        ],
        subquery(events, "converting"),
        order_by=_columns(*EVENT_ORDER),
    )


def _columns(*names: str) -> list[exp.Expr]:
    return [column(name) for name in names]


def _over(value: exp.Expr, window_name: str) -> exp.Expr:
    return exp.Window(this=value, alias=exp.to_identifier(window_name), over="OVER")


def _user_order(name: str, *order: str, spec: exp.WindowSpec | None = None) -> exp.Window:
    return exp.Window(
        this=exp.to_identifier(name),
        partition_by=[column("user_id")],
        order=exp.Order(expressions=_columns(*order)),
        spec=spec,
    )


def attribution_sources(plan: AttributionPlan) -> dict[str, str]:
    """The names of the scans of conversions and touches."""
    return {"conversion_events": plan.conversion.name, "touch_events": plan.touch.name}


ANALYSIS = Analysis(
    keyword="attribution",
    clauses=(syntax.TouchModel, syntax.Touches, syntax.Within),
    row=_ROW,
    bind=bind_attribution,
    lower=lower_attribution,
    sources=attribution_sources,
    strategy=lambda plan: plan.choice.strategy,
)
