"""Which users a condition on users keeps: `country = 'DE' and did "Purchase" at least 2 times in last 90 days`.

Every fact of the condition is a scan that marks users with a number; a GROUP BY per user then tests the condition over
the marks of each. That is one pass over the indexes of the facts, within a user, whatever `and`, `or` and `not` say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.bound import BoundEvent
from heap_compiler.catalog import Catalog
from heap_compiler.errors import HeapError, Span, nearest
from heap_compiler.parse import parse_members
from heap_compiler.passes import SEQUENCE_PASSES
from heap_compiler.predicates import PredicateBinder
from heap_compiler.ranges import BEGINNING, TimeRange, resolve, window
from heap_compiler.scan import distinct_events, scans
from heap_compiler.sequence import Sequence, SequenceStep, counted
from heap_compiler.sql import (
    all_of,
    any_of,
    column,
    function,
    is_set,
    list_table,
    named,
    number,
    select,
    subquery,
    union_all,
    users_table,
    with_ctes,
)
from heap_compiler.strategies import user_chains

__all__ = ["EVER", "MemberBinder", "events_named", "segments_named", "unknown_segment"]

EVER = TimeRange(BEGINNING, datetime(9999, 12, 29, tzinfo=UTC))
"""All time: what a fact is about that names no range."""

_MAX_FACTS = 50
_LONGEST = timedelta(days=3650)


class MemberBinder:
    """Binds one condition on users.

    Args:
        catalog: the app.
        bind_event: syntax of an event -> bound event.
        during: the range of facts that name none of their own.
        name: the segment being defined, which must not lead back to itself.

    Attributes:
        sources: names of the scans in the query, and the event each reads.
    """

    def __init__(
        self,
        catalog: Catalog,
        bind_event: Callable[[syntax.Event], BoundEvent],
        *,
        during: syntax.Over | None = None,
        name: str | None = None,
    ) -> None:
        self.catalog = catalog
        self.sources: dict[str, str] = {}
        self._bind_event = bind_event
        self._during = during
        self._path = () if name is None else (name,)
        self._marks: list[exp.Query] = []

    def query(self, predicate: syntax.Predicate) -> exp.Query:
        """The users' ids.

        Raises:
            HeapError: a part that cannot be bound, an unknown segment, or one that leads back to itself.
        """
        resolved = self._resolve(_during(predicate, self._during), self._path)
        if _is_about_properties(resolved):
            return self._users([self._properties(resolved)])
        condition = self._condition(resolved)
        if _holds_without_facts(resolved):  # then users without any mark belong to it too: every user gets one
            self._mark(self._users([]))
        facts = union_all(self._marks)
        return select([column("user_id")], subquery(facts, "facts"), group_by=[column("user_id")], having=condition)

    def _resolve(self, predicate: syntax.Predicate, path: tuple[str, ...]) -> syntax.Predicate:
        """The predicate with what segments stand for in their place; those with a list stay."""
        match predicate:
            case syntax.And(predicates=parts) | syntax.Or(predicates=parts):
                resolved = tuple(self._resolve(part, path) for part in parts)
                return predicate.replace(predicates=resolved)
            case syntax.Not(predicate=inner):
                return predicate.replace(predicate=self._resolve(inner, path))
            case syntax.InSegment(name=name, span=span):
                if name in path:
                    cycle = " in ".join(f'"{step}"' for step in (*path[path.index(name) :], name))
                    raise HeapError(f'the segment "{name}" would contain itself', span, f"a cycle: {cycle}")
                segment = self.catalog.segment(name)
                if segment is None:
                    raise unknown_segment(name, span, self.catalog)
                if segment.list_table is not None:
                    return predicate
                return self._resolve(parse_members(segment.definition).predicate, (*path, name))
            case syntax.Did() | syntax.DidThen() if len(path) > len(self._path):
                return predicate.replace(segment=path[-1])
        return predicate

    def _event(self, event: syntax.Event, segment: str | None) -> BoundEvent:
        """The bound event; one written in a segment is named after it, since its words are not in the statement."""
        bound = self._bind_event(event)
        if segment is None or isinstance(event, (syntax.DefinedEvent, syntax.RawEvent, syntax.AnyEvent)):
            return bound
        return replace(bound, name=f'an event of "{segment}"')

    def _users(self, where: list[exp.Expr]) -> exp.Select:
        return select([column("user_id")], users_table(self.catalog.schema), where=where)

    def _properties(self, predicate: syntax.Predicate) -> exp.Expr:
        return PredicateBinder(self.catalog, of_users=True).condition(predicate)

    def _mark(self, users: exp.Query) -> exp.Expr:
        """Marks the rows of the query with a new number; gives the condition that a row has it."""
        index = self._next_mark
        if index > _MAX_FACTS:
            raise HeapError(f"more than {_MAX_FACTS} facts about users")
        self._marks.append(select([column("user_id"), named(number(index), "mark")], subquery(users, f"fact_{index}")))
        return exp.EQ(this=column("mark"), expression=number(index))

    @property
    def _next_mark(self) -> int:
        return len(self._marks) + 1

    def _condition(self, predicate: syntax.Predicate) -> exp.Expr:
        """The condition over a user's marks."""
        if _is_about_properties(predicate):
            return _some(self._mark(self._users([self._properties(predicate)])))
        match predicate:
            case syntax.And(predicates=parts):
                return all_of([self._condition(part) for part in parts])
            case syntax.Or(predicates=parts):
                return any_of([self._condition(part) for part in parts])
            case syntax.Not(predicate=inner):
                return exp.Not(this=exp.paren(self._condition(inner)))
            case syntax.Did():
                return self._did(predicate)
            case syntax.DidThen():
                return _some(self._mark(self._did_then(predicate)))
            case syntax.InSegment(name=name):
                listed = self.catalog.segment(name)
                assert listed is not None
                assert listed.list_table is not None
                members = list_table(self.catalog.schema, listed.list_table)
                return _some(self._mark(select([column("user_id")], members)))
        raise AssertionError(predicate)

    def _did(self, did: syntax.Did) -> exp.Expr:
        event, read = self._event(did.event, did.segment), self._range(did.during)
        alias = f"fact_{self._next_mark}_events"
        self.sources[alias] = event.name
        columns = {"user_id": column("user_id")}
        if (did.least, did.most) in {(1, None), (None, 0)}:
            users = union_all(scans(self.catalog.schema, event, read, columns, alias=alias))
            ever = _some(self._mark(users))
            return ever if did.least else exp.Not(this=ever)
        is_marked = self._mark(distinct_events(self.catalog.schema, event, read, columns, alias=alias))
        times = exp.Filter(this=exp.Count(this=exp.Star()), expression=exp.Where(this=is_marked))
        bounds: list[exp.Expr] = []
        if did.least is not None:
            bounds.append(exp.GTE(this=times, expression=number(did.least)))
        if did.most is not None:
            bounds.append(exp.LTE(this=times.copy(), expression=number(did.most)))
        return all_of(bounds)

    def _did_then(self, did: syntax.DidThen) -> exp.Query:
        alias = f"fact_{self._next_mark}_step"
        sequence = Sequence(
            schema=self.catalog.schema,
            steps=tuple(SequenceStep(counted(self._event(event, did.segment), self.catalog)) for event in did.events),
            window=_LONGEST if did.within is None else window(did.within),
            entry=self._range(did.during),
            alias=alias,
        )
        for sequence_pass in SEQUENCE_PASSES:
            sequence = sequence_pass(sequence)
        self.sources |= sequence.sources
        done = is_set(column(f"time_{len(sequence.steps)}"))
        return with_ctes(select([column("user_id")], "chains", where=[done]), user_chains(sequence))

    def _range(self, during: syntax.Over | None) -> TimeRange:
        return EVER if during is None else resolve(during, self.catalog.now, self.catalog.time_zone)


def _some(is_marked: exp.Expr) -> exp.Expr:
    return function("bool_or", is_marked)


def _during(predicate: syntax.Predicate, during: syntax.Over | None) -> syntax.Predicate:
    """The predicate with a range for the facts that name none."""
    if during is None:
        return predicate
    match predicate:
        case syntax.And(predicates=parts) | syntax.Or(predicates=parts):
            return predicate.replace(predicates=tuple(_during(part, during) for part in parts))
        case syntax.Not(predicate=inner):
            return predicate.replace(predicate=_during(inner, during))
        case syntax.Did(during=None) | syntax.DidThen(during=None):
            return predicate.replace(during=during)
    return predicate


def _is_about_properties(predicate: syntax.Predicate) -> bool:
    match predicate:
        case syntax.And(predicates=parts) | syntax.Or(predicates=parts):
            return all(_is_about_properties(part) for part in parts)
        case syntax.Not(predicate=inner):
            return _is_about_properties(inner)
    return not isinstance(predicate, (syntax.Did, syntax.DidThen, syntax.InSegment))


def _holds_without_facts(predicate: syntax.Predicate) -> bool:
    """True when a user without any mark belongs to it."""
    if _is_about_properties(predicate):  # one fact, `not` and all
        return False
    match predicate:
        case syntax.And(predicates=parts):
            return all(_holds_without_facts(part) for part in parts)
        case syntax.Or(predicates=parts):
            return any(_holds_without_facts(part) for part in parts)
        case syntax.Not(predicate=inner):
            return not _holds_without_facts(inner)
        case syntax.Did(least=least):
            return least is None
    return False


def segments_named(predicate: syntax.Predicate) -> set[str]:
    """The segments a condition names itself."""
    match predicate:
        case syntax.And(predicates=parts) | syntax.Or(predicates=parts):
            return {name for part in parts for name in segments_named(part)}
        case syntax.Not(predicate=inner):
            return segments_named(inner)
        case syntax.InSegment(name=name):
            return {name}
    return set()


def events_named(predicate: syntax.Predicate) -> list[syntax.Event]:
    """The event expressions of a condition's own facts."""
    match predicate:
        case syntax.And(predicates=parts) | syntax.Or(predicates=parts):
            return [event for part in parts for event in events_named(part)]
        case syntax.Not(predicate=inner):
            return events_named(inner)
        case syntax.Did(event=event):
            return [event]
        case syntax.DidThen(events=events):
            return list(events)
    return []


def unknown_segment(name: str, span: Span, catalog: Catalog) -> HeapError:
    """The error for a segment nobody has defined, with the closest one that is."""
    close = nearest(name, catalog.segment_names())
    hint = f'did you mean "{close}"?' if close is not None else 'make it first: segment "..." as users where ...'
    return HeapError(f'unknown segment "{name}"', span, hint, sqlstate="42704")
