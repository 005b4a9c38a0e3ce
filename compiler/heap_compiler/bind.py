"""Names to what they stand for: the only stage that reads the catalog.

Takes syntax nodes, gives bound events, ranges, filters and group keys, with every condition already a SQL expression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar, assert_never, cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.bound import Alternative, BoundEvent, FirstAfter, GroupKey
from heap_compiler.catalog import Catalog
from heap_compiler.contradictions import contradiction
from heap_compiler.errors import HeapError, Span, nearest
from heap_compiler.members import MemberBinder
from heap_compiler.parse import parse_event
from heap_compiler.passes import PREDICATE_PASSES
from heap_compiler.passes.gate_patterns import gate_patterns
from heap_compiler.predicates import PredicateBinder, property_text
from heap_compiler.ranges import TimeRange, default_range, previous_range, resolve, window
from heap_compiler.sql import all_of, any_of, column, conjuncts, function, number, select, subquery, text, users_table

__all__ = ["CLAUSES_EVERYWHERE", "Binder", "bind_definition", "unknown_event", "written_name"]

CLAUSES_EVERYWHERE = (syntax.Over, syntax.Where, syntax.ForUsersWhere, syntax.ForUsersIn, syntax.Sample)
_MAX_ALTERNATIVES = 100
_SAMPLE_SEED, _SAMPLE_PARTS = 20_261, 1_000_000
_C = TypeVar("_C", bound=syntax.Clause)


@dataclass(frozen=True, slots=True)
class _Branch:
    """An alternative while it is being bound: a definition's predicate, made when it is needed, and what was asked
    beyond it."""

    definition: str | None
    base: Callable[[], exp.Expr] | None
    beyond: tuple[exp.Expr, ...]
    first_after: FirstAfter | None = None
    impossible: HeapError | None = None


def bind_definition(event: syntax.Event, catalog: Catalog, name: str | None = None) -> exp.Expr | None:
    """The predicate of a definition: what its partial indexes are built on. None when it is a sequence, or made of
    one, which no condition on single events can say.

    Args:
        event: what the definition stands for.
        catalog: the app.
        name: the event being defined, which must not lead back to itself.

    Raises:
        HeapError: an unknown event, a user property, or a definition that contains itself.
    """
    binder = _EventBinder(catalog, allow_users=False, path=(name,) if name is not None else ())
    branches = binder.possible_branches(event)
    if binder.is_sequence(event):
        return None
    return all_of(_conditions([_predicate(branches)]))


def _conditions(predicates: Iterable[exp.Expr], *, gates_patterns: bool = True) -> tuple[exp.Expr, ...]:
    """The conjuncts of one predicate as they stand in SQL, in an index and in a query alike. `gates_patterns` is false
    of a definition whose indexes are from a version that had no such gates: a query that asks for more than the index
    says could not be answered by it alone."""
    parts = tuple(part for predicate in predicates for part in conjuncts(predicate))
    for predicate_pass in PREDICATE_PASSES:
        if gates_patterns or predicate_pass is not gate_patterns:
            parts = predicate_pass(parts)
    return parts


class Binder:
    """Binds the parts of one analysis.

    Args:
        text: the statement, for names taken from it.
        catalog: the app.
        clauses: the analysis's clauses.
        allowed: the kinds of clause it takes beyond ranges and filters, which every analysis has.

    Raises:
        HeapError: a clause that the analysis does not take, or one that is there twice.
    """

    def __init__(
        self,
        text: str,
        catalog: Catalog,
        clauses: tuple[syntax.Clause, ...],
        allowed: tuple[type[syntax.Clause], ...],
    ) -> None:
        self.text = text
        self.catalog = catalog
        self.sources: dict[str, str] = {}  # scans of who the users are, and the event each reads
        self._clauses: dict[type[syntax.Clause], syntax.Clause] = {}
        for clause in clauses:
            kind = type(clause)
            if kind not in allowed and kind not in CLAUSES_EVERYWHERE:
                raise HeapError(f"this analysis takes no {_keyword(kind)} clause", clause.span)
            if kind in self._clauses and not kind.repeatable:
                raise HeapError(f"a second {_keyword(kind)} clause", clause.span, "each may appear once")
            self._clauses.setdefault(kind, clause)
        self._all_clauses = clauses

    def clause(self, kind: type[_C]) -> _C | None:
        """The analysis's clause of that kind, if it has one."""
        return cast("_C | None", self._clauses.get(kind))

    def all_clauses(self, kind: type[_C]) -> list[_C]:
        """The analysis's clauses of a kind that may be there several times."""
        return [clause for clause in self._all_clauses if isinstance(clause, kind)]

    @cached_property
    def time_range(self) -> TimeRange:
        """The range of the analysis; without a clause, the last 30 days."""
        over = self.clause(syntax.Over)
        zone, now = self.catalog.time_zone, self.catalog.now
        return default_range(now, zone) if over is None else resolve(over, now, zone)

    @cached_property
    def compared_range(self) -> TimeRange | None:
        """The range before it that `compared to previous period` asks for; None without the clause."""
        clause = self.clause(syntax.Compared)
        if clause is None:
            return None
        return previous_range(self.clause(syntax.Over), self.time_range, self.catalog.time_zone, clause.span)

    @cached_property
    def _where(self) -> tuple[exp.Expr, ...]:
        where = self.clause(syntax.Where)
        return () if where is None else (_possible(PredicateBinder(self.catalog), where.predicate),)

    def event(self, event: syntax.Event, label: str | None = None) -> BoundEvent:
        """The event expression, with the analysis's own `where` added to it."""
        name = self.name_of(event) if label is None else label
        return BoundEvent(name, _EventBinder(self.catalog).alternatives(event, self._where))

    def name_of(self, node: syntax.Node) -> str:
        """What the analyst wrote there, on one line; a defined event's plain name."""
        return written_name(node, self.text)

    @cached_property
    def users(self) -> exp.Query | None:
        """The users the analysis is about, as a query of their ids; None means all.

        Raises:
            HeapError: `for users` twice.
        """
        where, within = self.clause(syntax.ForUsersWhere), self.clause(syntax.ForUsersIn)
        if where is not None and within is not None:
            hint = f'for users where in "{within.segment.name}" and ...'
            raise HeapError("a second for users clause", within.span, hint)
        chosen = where.predicate if where is not None else within.segment if within is not None else None
        return self._sampled(None if chosen is None else self.members(chosen))

    def members(
        self, predicate: syntax.Predicate, *, during: syntax.Over | None = None, segment: str | None = None
    ) -> exp.Query:
        """The users that a condition keeps, as a query of their ids.

        Args:
            during: the range of facts that name none; None means ever.
            segment: the segment that the condition defines.
        """
        binder = MemberBinder(self.catalog, self._event_of_users, during=during, name=segment)
        query = binder.query(predicate)
        self.sources |= binder.sources
        return query

    def _event_of_users(self, event: syntax.Event) -> BoundEvent:
        """Without the analysis's `where`, which is about the events that are analysed."""
        return BoundEvent(self.name_of(event), _EventBinder(self.catalog).alternatives(event, ()))

    def _sampled(self, users: exp.Query | None) -> exp.Query | None:
        """Those of the users whose hash falls into the sample: the same ones in every analysis."""
        sample = self.clause(syntax.Sample)
        if sample is None:
            return users
        positive = exp.BitwiseAnd(
            this=function("hashint8extended", column("user_id"), number(_SAMPLE_SEED)), expression=number(2**63 - 1)
        )
        place = exp.Mod(this=exp.paren(positive), expression=number(_SAMPLE_PARTS))
        chosen = exp.LT(this=place, expression=number(int(sample.percent * _SAMPLE_PARTS / 100)))
        if users is None:
            return select([column("user_id")], users_table(self.catalog.schema), where=[chosen])
        return select([column("user_id")], subquery(users, "members"), where=[chosen])

    @cached_property
    def group_keys(self) -> tuple[GroupKey, ...]:
        """The properties of `group by`, in order.

        Raises:
            HeapError: one is of a session's entry or exit.
        """
        clause = self.clause(syntax.GroupBy)
        for of in clause.properties if clause is not None else ():
            if isinstance(of, syntax.PageProperty):
                raise HeapError(f"only sessions have an {of.page}", of.span, f"leave out {of.page}")
        return self.session_group_keys

    @cached_property
    def session_group_keys(self) -> tuple[GroupKey, ...]:
        """The properties of `group by`, in order, among them such of a session's entry and exit."""
        clause = self.clause(syntax.GroupBy)
        return () if clause is None else tuple(self._group_key(of) for of in clause.properties)

    def _group_key(self, of: syntax.Property) -> GroupKey:
        page = of.page if isinstance(of, syntax.PageProperty) else None
        return GroupKey(self.name_of(of), of.of_user, property_text(of, of_user=of.of_user), page)

    @cached_property
    def top(self) -> int | None:
        """How many groups `top` keeps; None keeps all.

        Raises:
            HeapError: there are no groups.
        """
        clause = self.clause(syntax.Top)
        if clause is not None and self.clause(syntax.GroupBy) is None:
            raise HeapError("top needs groups to choose from", clause.span, "add: group by country")
        return None if clause is None else clause.count

    @cached_property
    def with_total(self) -> bool:
        """Whether all groups together are shown beside them.

        Raises:
            HeapError: there are no groups.
        """
        clause = self.clause(syntax.WithTotal)
        if clause is not None and not self.group_keys:
            raise HeapError("without groups every row is the total", clause.span, "add: group by country")
        return clause is not None


_KEYWORDS = {
    syntax.AtLeast: "at least",
    syntax.Compared: "compared to previous period",
    syntax.AtLeastUsers: "at least",
    syntax.EndsAt: "to",
    syntax.Factors: "with",
    syntax.FirstTime: "first time",
    syntax.Follow: "for",
    syntax.ForUsersIn: "for users",
    syntax.ForUsersWhere: "for users",
    syntax.GroupBy: "group by",
    syntax.InAnyOrder: "in any order",
    syntax.Over: "range",
    syntax.StartsFrom: "from",
    syntax.Steps: "for ... steps",
    syntax.StrictlyInOrder: "strictly in order",
    syntax.WithTotal: "with total",
    syntax.Touches: "from",
    syntax.TouchModel: "by",
}


def _keyword(kind: type[syntax.Clause]) -> str:
    return _KEYWORDS.get(kind, kind.__name__.lower())


class _EventBinder:
    """Resolves event expressions; `path` holds the definitions being resolved, outermost first."""

    def __init__(self, catalog: Catalog, *, allow_users: bool = True, path: tuple[str, ...] = ()) -> None:
        self.catalog = catalog
        self.predicates = PredicateBinder(catalog, allow_users=allow_users)
        self.path = path

    def alternatives(self, event: syntax.Event, where: tuple[exp.Expr, ...]) -> tuple[Alternative, ...]:
        """The ways the event can match, with further conditions.

        Raises:
            HeapError: an unknown name, or too many alternatives.
        """
        branches = self.possible_branches(event)
        if len(branches) > _MAX_ALTERNATIVES:
            raise HeapError(f"more than {_MAX_ALTERNATIVES} alternatives", event.span)
        return tuple(self._alternative(branch, where) for branch in branches)

    def _alternative(self, branch: _Branch, where: tuple[exp.Expr, ...]) -> Alternative:
        beyond = (*branch.beyond, *where)
        if branch.base is None:
            return Alternative(_conditions(beyond), None, first_after=branch.first_after)
        # The definition's own conjuncts pass through untouched by what is asked beyond them, so that PostgreSQL can
        # prove its index predicate from the query.
        assert branch.definition is not None
        base = self._definition(branch.definition, branch.base)
        extra = tuple(part for part in _conditions(beyond) if part not in base) if beyond else ()
        return Alternative((*base, *extra), branch.definition, exact=not extra)

    def _definition(self, name: str, predicate: Callable[[], exp.Expr]) -> tuple[exp.Expr, ...]:
        """The conditions of a definition. The catalog keeps them, but for one that is being made or changed."""
        known = self.catalog.conditions.get(name) if not self.path else None
        if known is None:
            known = _conditions([predicate()], gates_patterns=self.catalog.gates_patterns(name))
            if not self.path:
                self.catalog.conditions[name] = known
        return known

    def is_sequence(self, event: syntax.Event) -> bool:
        """True when the event is defined by a sequence, itself or through the definitions it is made of."""
        match event:
            case syntax.FirstAfter():
                return True
            case syntax.DefinedEvent(name=name, span=span):
                return self._inside(name, span).is_sequence(self._meaning(name, span))
            case syntax.Filtered(event=inner):
                return self.is_sequence(inner)
            case syntax.AnyOf(events=events):
                return any(self.is_sequence(inner) for inner in events)
        return False

    def branches(self, event: syntax.Event) -> list[_Branch]:
        """The alternatives of an event expression: one per definition, so that each can use its own index."""
        match event:
            case syntax.DefinedEvent(name=name, span=span):
                inside, meaning = self._inside(name, span), self._meaning(name, span)
                if self.is_sequence(event):
                    return inside.branches(meaning)
                return [_Branch(name, lambda: _predicate(inside.branches(meaning)), ())]
            case syntax.FirstAfter(event=first, after=after, within=within):
                rule = FirstAfter(
                    BoundEvent("event", self.alternatives(first, ())),
                    BoundEvent("after", self.alternatives(after, ())),
                    None if within is None else window(within),
                )
                return [_Branch(None, None, (), rule)]
            case syntax.RawEvent(type=raw):
                return [_Branch(None, None, (_has_type(raw),))]
            case syntax.AnyEvent():
                return [_Branch(None, None, ())]
            case syntax.Filtered(event=inner, predicate=predicate):
                parts = _bound_parts(self.predicates, predicate)
                condition = all_of([condition for _, condition in parts])
                return [
                    replace(
                        branch,
                        beyond=(*branch.beyond, condition),
                        impossible=branch.impossible or contradiction(parts, branch.beyond),
                    )
                    for branch in self.branches(inner)
                ]
            case syntax.AnyOf(events=events):
                return [branch for inner in events for branch in self.branches(inner)]
            case _:
                assert_never(event)

    def possible_branches(self, event: syntax.Event) -> list[_Branch]:
        """As `branches`; raises HeapError when every one of them contradicts itself."""
        branches = self.branches(event)
        errors = [branch.impossible for branch in branches if branch.impossible is not None]
        if len(errors) == len(branches):
            raise errors[0]
        return branches

    def _meaning(self, name: str, span: Span) -> syntax.Event:
        definition = self.catalog.definition(name)
        if definition is None:
            raise unknown_event(name, span, self.catalog)
        return parse_event(definition)

    def _inside(self, name: str, span: Span) -> _EventBinder:
        """The binder of what a definition stands for."""
        if name in self.path:
            cycle = " in ".join(f'"{step}"' for step in (*self.path[self.path.index(name) :], name))
            raise HeapError(f'"{name}" would contain itself', span, f"a cycle: {cycle}")
        return _EventBinder(self.catalog, allow_users=False, path=(*self.path, name))


def _predicate(branches: list[_Branch]) -> exp.Expr:
    """A whole event expression as one condition."""
    parts = [all_of([*([branch.base()] if branch.base is not None else []), *branch.beyond]) for branch in branches]
    return any_of(parts)


def _bound_parts(binder: PredicateBinder, predicate: syntax.Predicate) -> list[tuple[syntax.Predicate, exp.Expr]]:
    """The conjuncts of a predicate as written, each with its condition."""
    parts = predicate.predicates if isinstance(predicate, syntax.And) else (predicate,)
    return [(part, binder.condition(part)) for part in parts]


def _possible(binder: PredicateBinder, predicate: syntax.Predicate) -> exp.Expr:
    """The condition of a predicate; raises HeapError when it contradicts itself."""
    parts = _bound_parts(binder, predicate)
    error = contradiction(parts)
    if error is not None:
        raise error
    return all_of([condition for _, condition in parts])


def unknown_event(name: str, span: Span | None, catalog: Catalog) -> HeapError:
    """The error for a name nobody has defined, with the closest one that is."""
    close = nearest(name, catalog.event_names())
    hint = f'did you mean "{close}"?' if close is not None else 'make it first: define "..." as ...'
    return HeapError(f'unknown event "{name}"', span, hint, sqlstate="42704")


def written_name(node: syntax.Node, text: str) -> str:
    """What the analyst wrote there, on one line; a defined event's plain name."""
    match node:
        case syntax.DefinedEvent(name=name):
            return name
        case syntax.RawEvent(type=raw):
            return raw
        case syntax.AnyEvent():
            return "any"
    return " ".join(text[node.span.start : node.span.end].split())


def _has_type(raw: str) -> exp.Expr:
    return exp.EQ(this=column("type"), expression=text(raw))
