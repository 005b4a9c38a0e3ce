"""`users who did "Purchase" at least 2 times`, `users of funnel A -> B reaching step 1 but not 2`: lists of users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast as typing_cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.activity import of_users
from heap_compiler.analyses.funnel import FUNNEL_RULES, bind_sequence
from heap_compiler.analysis import Analysis, ResultColumn
from heap_compiler.bind import Binder
from heap_compiler.errors import HeapError
from heap_compiler.sequence import Sequence
from heap_compiler.sql import (
    cast,
    column,
    is_set,
    join,
    named,
    select,
    subquery,
    users_table,
    with_ctes,
)
from heap_compiler.strategies import user_chains

__all__ = ["ANALYSIS", "UsersPlan"]

_ROW = (
    ResultColumn("user_id", "bigint"),
    ResultColumn("identity", "text"),
    ResultColumn("step", "int"),
    ResultColumn("times", "timestamptz[]"),
    ResultColumn("event_ids", "bigint[]"),
)


@dataclass(frozen=True, slots=True)
class UsersPlan:
    """A bound list of users: those of a query, or those of a funnel's chains that reach a step and not another."""

    schema: str
    users: exp.Query | None
    sequence: Sequence | None
    reaching: int
    but_not: int | None
    limit: int | None


def bind_users(statement: syntax.AnalysisStatement, binder: Binder) -> UsersPlan:
    """Raises HeapError: a rule of funnels without a funnel, steps it does not have, or a part that cannot be bound."""
    limit = binder.clause(syntax.Limit)
    count = None if limit is None else limit.count
    reaching = binder.clause(syntax.Reaching)
    (head, *_) = statement.head
    schema = binder.catalog.schema
    if isinstance(head, syntax.Step):
        sequence = bind_sequence(statement, binder)
        if sequence.unit == "conversions":
            raise HeapError("a list of users has no conversions", statement.span, "leave out: counting conversions")
        step, but_not = (1, None) if reaching is None else (reaching.step, reaching.but_not)
        for number_ in (step, but_not):
            if reaching is not None and number_ is not None and number_ > len(sequence.steps):
                raise HeapError(f"there is no step {number_}", reaching.span, f"the last is {len(sequence.steps)}")
        if reaching is not None and but_not is not None and but_not <= step:
            hint = f"reaching step {but_not} but not {step}" if but_not < step else f"reaching step {step}"
            raise HeapError("nobody reaches a step and not an earlier one", reaching.span, hint)
        return UsersPlan(schema, binder.users, sequence, step, but_not, count)
    kinds: tuple[type[syntax.Clause], ...] = (*FUNNEL_RULES, syntax.Within, syntax.Reaching)
    for kind in kinds:
        clause = binder.clause(kind)
        if clause is not None:
            raise HeapError("this is about a funnel", clause.span, "users of funnel A -> B reaching step 1 but not 2")
    predicate = head.predicate if isinstance(head, syntax.Members) else typing_cast(syntax.InSegment, head)
    over = binder.clause(syntax.Over) or syntax.Over(span=statement.span, count=30, unit="day")
    chosen = binder.members(predicate, during=over)
    if binder.users is not None:
        both = [exp.In(this=column("user_id"), query=exp.Subquery(this=binder.users.copy()))]
        chosen = select([column("user_id")], subquery(chosen, "chosen"), where=list(both))
    return UsersPlan(schema, chosen, None, 0, None, count)


def lower_users(plan: UsersPlan) -> exp.Query:
    """One row per user, or per session of a funnel that counts sessions."""
    if plan.sequence is None:
        assert plan.users is not None
        null = exp.Null()
        columns = [
            column("user_id", "chosen"),
            column("identity", "known"),
            named(cast(null, "int"), "step"),
            named(cast(null.copy(), "timestamptz[]"), "times"),
            named(cast(null.copy(), "bigint[]"), "event_ids"),
        ]
        return select(
            columns,
            subquery(plan.users, "chosen"),
            joins=[_known(plan, "chosen")],
            order_by=[column("user_id", "chosen")],
            limit=plan.limit,
        )
    steps = range(1, len(plan.sequence.steps) + 1)
    where = [is_set(column(f"time_{plan.reaching}", "chains")), *of_users(plan.users, "chains")]
    if plan.but_not is not None:
        where.append(exp.Is(this=column(f"time_{plan.but_not}", "chains"), expression=exp.Null()))
    columns = [
        column("user_id", "chains"),
        column("identity", "known"),
        named(cast(column("reached", "chains"), "int"), "step"),
        named(exp.Array(expressions=[column(f"time_{step}", "chains") for step in steps]), "times"),
        named(exp.Array(expressions=[column(f"event_id_{step}", "chains") for step in steps]), "event_ids"),
    ]
    query = select(
        columns,
        "chains",
        joins=[_known(plan, "chains")],
        where=where,
        order_by=[column("user_id", "chains"), column("time_1", "chains"), column("event_id_1", "chains")],
        limit=plan.limit,
    )
    return with_ctes(query, user_chains(plan.sequence, event_ids=True))


def _known(plan: UsersPlan, source: str) -> exp.Join:
    """The user's row, where there is one."""
    known = select([column("user_id"), column("identity")], users_table(plan.schema))
    same_user = exp.EQ(this=column("user_id", "known"), expression=column("user_id", source))
    return join(subquery(known, "known"), [same_user], kind="LEFT")


def users_sources(plan: UsersPlan) -> dict[str, str]:
    """The names that the steps' scans have in the query."""
    return {} if plan.sequence is None else plan.sequence.sources


ANALYSIS = Analysis(
    keyword="users",
    clauses=(syntax.Reaching, syntax.Limit, syntax.Within, *FUNNEL_RULES),
    row=_ROW,
    bind=bind_users,
    lower=lower_users,
    sources=users_sources,
)
