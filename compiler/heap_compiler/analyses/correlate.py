"""`correlate "Viewed pricing" -> "Purchase" with country, "Clicked help"`: what those who convert have in common.

Everybody who enters is asked for the values at their entry and for what they did on the way; each answer is then a
two-by-two table of few numbers, tested on the coordinator.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import of_users
from heap_compiler.analyses.funnel import bind_sequence
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.bound import BoundEvent, GroupKey
from heap_compiler.chains import entry_values
from heap_compiler.errors import HeapError
from heap_compiler.groups import event_values, group_columns, user_values
from heap_compiler.predicates import property_text
from heap_compiler.scan import EVENT_ORDER, distinct_events, scans
from heap_compiler.sequence import Sequence
from heap_compiler.significance import COMPUTED_ONCE, odds_ratio, p_values
from heap_compiler.sql import (
    FALSE,
    all_of,
    cast,
    column,
    elapsed,
    function,
    is_set,
    join,
    named,
    number,
    select,
    share,
    subquery,
    text,
    text_array,
    union_all,
    with_ctes,
)
from heap_compiler.strategies import sequence_specification, user_chains
from heap_compiler.strategies.kernels import Reads, kernel_column, kernel_query

__all__ = ["ANALYSIS", "CorrelatePlan"]

_DEFAULT_LEAST = 30
_MAX_FACTORS = 50
_DONE = "done"

_ROW = (
    ResultColumn("factor", "text"),
    ResultColumn("value", "text"),
    ResultColumn("converted", "bigint"),
    ResultColumn("not_converted", "bigint"),
    ResultColumn("conversion", "numeric"),
    ResultColumn("lift", "numeric"),
    ResultColumn("odds_ratio", "numeric"),
    ResultColumn("p_value", "numeric"),
    ResultColumn("note", "text"),
)

Factor = GroupKey | BoundEvent
"""A property, with its value, or an event that is done or not."""


@dataclass(frozen=True, slots=True)
class CorrelatePlan:
    """A bound correlation. Values of fewer than `least` users are left out."""

    sequence: Sequence
    factors: tuple[Factor, ...]
    least: int
    users: exp.Query | None

    @property
    def properties(self) -> list[GroupKey]:
        """The factors that are properties, in order."""
        return [factor for factor in self.factors if isinstance(factor, GroupKey)]

    @property
    def events(self) -> list[BoundEvent]:
        """The factors that are events, in order."""
        return [factor for factor in self.factors if isinstance(factor, BoundEvent)]


def bind_correlate(statement: syntax.AnalysisStatement, binder: Binder) -> CorrelatePlan:
    """Raises HeapError: no factors, too many or one twice, or a part that cannot be bound."""
    sequence = bind_sequence(statement, binder)
    written, least = binder.clause(syntax.Factors), binder.clause(syntax.AtLeastUsers)
    if written is None:
        raise HeapError("there is nothing to correlate with", statement.span, 'add: with country, "Clicked help"')
    if len(written.factors) > _MAX_FACTORS:
        raise HeapError(f"more than {_MAX_FACTORS} factors", written.span)
    factors: list[Factor] = []
    for node in written.factors:
        factor = _factor(node, binder)
        if factor.name in {other.name for other in factors}:
            raise HeapError(f"a second factor called {factor.name}", node.span)
        factors.append(factor)
    return CorrelatePlan(sequence, tuple(factors), _DEFAULT_LEAST if least is None else least.count, binder.users)


def _factor(node: syntax.Property | syntax.Step, binder: Binder) -> Factor:
    if isinstance(node, syntax.Step):
        return binder.event(node.event, node.label)
    return GroupKey(binder.name_of(node), node.of_user, property_text(node, of_user=node.of_user))


def lower_correlate(plan: CorrelatePlan) -> exp.Query:
    """One row per factor and value, and one per factor of which values are left out."""
    if plan.sequence.vector:
        ctes: list[tuple[str, exp.Query]] = [("kernel", _kernel(plan)), ("counted", _counted_by_kernels())]
    else:
        ctes = user_chains(plan.sequence, entries=_asks_entries(plan))
        if _asks_entries(plan):
            ctes.append(("entries", _entries(plan)))
        ctes += [("entered", _entered(plan)), ("observed", _observed(plan)), ("counted", _counted(plan))]
    enough = select([exp.Star()], "tables", where=[_enough(plan)])
    ctes += [("tables", _tables()), ("enough", enough), *p_values("enough")]
    names = exp.paren(text_array(text(factor.name) for factor in plan.factors))
    factor = exp.Bracket(this=names, expressions=[column("factor")], offset=1)
    strength = function("abs", function("ln", function("greatest", column("odds_ratio"), exp.Literal.number("1e-8"))))
    query = select(
        [named(factor, "factor"), *(column(name) for name in [result.name for result in _ROW[1:]])],
        subquery(union_all([_tested(), _left_out(plan)]), "rows"),
        order_by=[
            column("p"),
            exp.Ordered(this=strength, desc=True, nulls_first=False),
            column("factor", "rows"),
            column("value"),
        ],
    )
    return with_ctes(query, ctes, materialized=COMPUTED_ONCE)


def _asks_entries(plan: CorrelatePlan) -> bool:
    return any(not key.of_user for key in plan.properties)


def _entry(plan: CorrelatePlan) -> dict[str, str]:
    """What finds a chain's first event: columns of `chains`, and those of `entries` that they are equal to."""
    return {"entry": "entry"} if plan.sequence.is_plain else {"time_1": "time", "event_id_1": "event_id"}


def _entries(plan: CorrelatePlan) -> exp.Query:
    """The events of step 1 with the properties' values."""
    values = event_values(plan.properties)
    sequence = plan.sequence
    if sequence.is_plain:
        return entry_values(sequence, values)
    first = sequence.steps[0]
    assert first.read is not None
    columns = {**{name: column(name) for name in EVENT_ORDER}, **values}
    return distinct_events(sequence.schema, first.event, first.read, columns, alias="entry")


def _entered(plan: CorrelatePlan) -> exp.Select:
    """Everybody who entered: whether they converted, and which of the events they did on the way."""
    end = column(f"time_{len(plan.sequence.steps)}", "chains")
    own = [column("user_id", "chains"), *(column(name, "chains") for name in _entry(plan) if _asks_entries(plan))]
    converted = named(is_set(end), "converted")
    where = of_users(plan.users, "chains")
    if not plan.events:
        return select([*own, converted], "chains", where=where)
    names = [column.name for column in own]
    done = [
        named(exp.Coalesce(this=function("bool_or", _did_on_the_way(index)), expressions=[FALSE.copy()]), name)
        for index, name in enumerate(_event_columns(plan), start=1)
    ]
    firsts = [named(exp.Max(this=column(name)), name) for name in (*names[1:], "converted_number")]
    told = select(
        [column("user_id"), *firsts, *done],
        subquery(_told(plan, own, where), "told"),
        group_by=[column("user_id")],
        having=is_set(exp.Max(this=column("entered_at"))),
    )
    has_converted = exp.EQ(this=column("converted_number"), expression=number(1))
    return select(
        [*(column(name) for name in (*names, *_event_columns(plan))), named(has_converted, "converted")],
        subquery(told, "entrants"),
    )


def _told(plan: CorrelatePlan, own: list[exp.Column], where: list[exp.Expr]) -> exp.Select:
    """The chains and the factors' events in one list, every row with when its user entered and until when events
    count: before the conversion or, without one, inside the window. No join: how few events a definition has is more
    than the planner knows."""
    end = column(f"time_{len(plan.sequence.steps)}", "chains")
    reach = exp.Add(this=column("time_1", "chains"), expression=elapsed(plan.sequence.window))
    moment = exp.Add(this=reach, expression=elapsed(timedelta(microseconds=1)))
    read = plan.sequence.steps[-1].read
    assert read is not None
    chain: dict[str, exp.Expr] = {
        **{name.name: name for name in own},
        "converted_number": exp.Case(ifs=[exp.If(this=is_set(end), true=number(1))], default=number(0)),
        "entered_at": column("time_1", "chains"),
        "until": exp.Coalesce(this=end.copy(), expressions=[moment]),
        "event": cast(exp.Null(), "int"),
        "time": cast(exp.Null(), "timestamptz"),
    }
    types = {"entry": "bigint", "time_1": "timestamptz", "event_id_1": "bigint", "converted_number": "int"}
    rows: list[exp.Select] = [
        select([named(value.copy(), name) for name, value in chain.items()], "chains", where=where)
    ]
    for index, event in enumerate(plan.events, start=1):
        of_event = {
            **{name: cast(exp.Null(), types.get(name, "timestamptz")) for name in chain},
            "user_id": column("user_id"),
            "event": number(index),
            "time": column("time"),
        }
        rows += scans(plan.sequence.schema, event, read, of_event, alias=f"factor_{index}")
    whole = [
        named(exp.Window(this=exp.Max(this=column(name)), partition_by=[column("user_id")]), f"users_{name}")
        for name in ("entered_at", "until")
    ]
    return select([exp.Star(), *whole], subquery(union_all(rows), "listed"))


def _did_on_the_way(index: int) -> exp.Expr:
    """The row is one of the factor's events, after the entry and while events count."""
    return all_of(
        [
            _is(column("event"), index),
            exp.GT(this=column("time"), expression=column("users_entered_at")),
            exp.LT(this=column("time"), expression=column("users_until")),
        ]
    )


def _event_columns(plan: CorrelatePlan) -> list[str]:
    return [f"done_{index}" for index in range(1, len(plan.events) + 1)]


def _observed(plan: CorrelatePlan) -> exp.Select:
    """Everybody who entered, with the values of all factors."""
    joins: list[exp.Join] = []
    if _asks_entries(plan):
        same_entry = [
            exp.EQ(this=column(name, "entries"), expression=column(own, "entered"))
            for own, name in _entry(plan).items()
        ]
        joins.append(join(exp.table_("entries"), [_same_user("entries", "entered"), *same_entry]))
    if any(key.of_user for key in plan.properties):
        users = user_values(plan.sequence.schema, plan.properties)
        joins.append(join(subquery(users, "known_users"), [_same_user("known_users", "entered")], kind="LEFT"))
    names = ("converted", *group_columns(plan.properties), *_event_columns(plan))
    return select([column(name) for name in names], "entered", joins=joins)


def _counted(plan: CorrelatePlan) -> exp.Select:
    """Users by factor and value. Factor 0 is everybody; an event has one value, which users have or not."""
    values: list[exp.Expr] = [cast(exp.Null(), "text")]
    having: list[exp.Expr] = [exp.true()]
    properties, events = 0, 0
    for factor in plan.factors:
        if isinstance(factor, GroupKey):
            properties += 1
            values.append(column(f"group_{properties}"))
            having.append(exp.true())
        else:
            events += 1
            values.append(text(_DONE))
            having.append(column(f"done_{events}"))
    arrays = {
        "factor": exp.Array(expressions=[number(index) for index in range(len(plan.factors) + 1)]),
        "value": text_array(values),
        "has": exp.Array(expressions=having),
    }
    each = select(
        [column("converted"), *(named(function("unnest", array), name) for name, array in arrays.items())], "observed"
    )
    counts = {"converted": column("converted"), "not_converted": exp.Not(this=column("converted"))}
    return select(
        [
            column("factor"),
            column("value"),
            *(named(_count(all_of([column("has"), condition])), name) for name, condition in counts.items()),
        ],
        subquery(each, "each_factor"),
        group_by=[column("factor"), column("value")],
    )


def _kernel(plan: CorrelatePlan) -> exp.Select:
    """Per shard, factor and value the columns of heap._kernel_totals."""
    reads = Reads(plan.sequence.schema, plan.sequence.shards)
    asked = sequence_specification(plan.sequence, reads, keys=plan.properties, users=plan.users)
    read = plan.sequence.steps[-1].read
    assert read is not None
    factors: list[dict[str, object]] = []
    for factor in plan.factors:
        if isinstance(factor, GroupKey):
            factors.append({"property": plan.properties.index(factor), "events": None})
            continue
        alias = f"factor_{plan.events.index(factor) + 1}"
        selection = reads.selection(factor, read, alias)
        factors.append({"property": None, "events": selection})
    return kernel_query("heap._correlate_kernel", {**asked, "factors": factors}, reads)


def _counted_by_kernels() -> exp.Select:
    """What `_counted` gives, from kernels: the factor comes as the bucket."""
    value = exp.Bracket(this=kernel_column("group_values"), expressions=[number(1)], offset=1)
    counts = [
        named(cast(exp.Sum(this=kernel_column("counts", index)), "bigint"), name)
        for index, name in enumerate(("converted", "not_converted"), start=1)
    ]
    keys = [named(kernel_column("bucket"), "factor"), named(value, "value")]
    # By what they are: the totals have another column that is called value.
    return select([*keys, *counts], "kernel", group_by=[key.this.copy() for key in keys])


def _tables() -> exp.Select:
    """The two-by-two table of each value: those with it, and all others."""
    cells = ("converted", "not_converted")
    everybody = exp.Table(this=exp.to_identifier("counted"), alias=exp.TableAlias(this=exp.to_identifier("everybody")))
    return select(
        [
            *(column(name, "counted") for name in ("factor", "value", *cells)),
            *(named(column(name, "everybody") - column(name, "counted"), f"others_{name}") for name in cells),
        ],
        "counted",
        joins=[join(everybody, [_is(column("factor", "everybody"), 0)])],
        where=[exp.GT(this=column("factor", "counted"), expression=number(0))],
    )


def _tested() -> exp.Select:
    with_it, others = (
        [column(f"{prefix}{name}") for name in ("converted", "not_converted")] for prefix in ("", "others_")
    )
    rate, rate_of_others = with_it[0] * (others[0] + others[1]), others[0] * (with_it[0] + with_it[1])
    p_value = cast(column("p_value"), "numeric")
    return select(
        [
            column("factor"),
            column("value"),
            *with_it,
            named(share(with_it[0], with_it[0] + with_it[1]), "conversion"),
            named(share(rate, rate_of_others), "lift"),
            named(odds_ratio(), "odds_ratio"),
            named(function("trim_scale", function("round", p_value, number(6))), "p_value"),
            named(cast(exp.Null(), "text"), "note"),
            named(column("p_value"), "p"),
        ],
        "tested",
    )


def _left_out(plan: CorrelatePlan) -> exp.Select:
    """A row for each factor with values of too few users."""
    count = exp.Count(this=exp.Star())
    users = f"fewer than {plan.least} user{'s' if plan.least > 1 else ''} left out"
    is_one = exp.EQ(this=count, expression=number(1))
    several = function("concat", count.copy(), text(f" values with {users}"))
    note = exp.Case(ifs=[exp.If(this=is_one, true=text(f"1 value with {users}"))], default=several)
    missing = {"value": "text", "converted": "bigint", "not_converted": "bigint"}
    missing |= dict.fromkeys(("conversion", "lift", "odds_ratio", "p_value"), "numeric")
    return select(
        [
            column("factor"),
            *(named(cast(exp.Null(), type_name), name) for name, type_name in missing.items()),
            named(note, "note"),
            named(cast(exp.Null(), "double precision"), "p"),
        ],
        "tables",
        where=[exp.Not(this=exp.paren(_enough(plan)))],
        group_by=[column("factor")],
    )


def _enough(plan: CorrelatePlan) -> exp.Expr:
    users = column("converted") + column("not_converted")
    return exp.GTE(this=users, expression=number(plan.least))


def _count(condition: exp.Expr) -> exp.Expr:
    return exp.Filter(this=exp.Count(this=exp.Star()), expression=exp.Where(this=condition))


def _is(value: exp.Expr, constant: int) -> exp.Expr:
    return exp.EQ(this=value, expression=number(constant))


def _same_user(table: str, other: str) -> exp.Expr:
    return exp.EQ(this=column("user_id", table), expression=column("user_id", other))


def correlate_sources(plan: CorrelatePlan) -> dict[str, str]:
    """The names of the scans of the steps and of the events that are factors."""
    return plan.sequence.sources | {f"factor_{index}": event.name for index, event in enumerate(plan.events, start=1)}


ANALYSIS = Analysis(
    keyword="correlate",
    clauses=(
        syntax.Factors, syntax.AtLeastUsers, syntax.Within, syntax.StrictlyInOrder, syntax.Without, syntax.Holding,
        syntax.FirstTime,
    ),
    row=_ROW,
    bind=bind_correlate,
    lower=lower_correlate,
    sources=correlate_sources,
    strategy=lambda plan: plan.sequence.strategy,
)  # fmt: skip
