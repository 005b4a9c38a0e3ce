"""Predicates of the syntax tree as SQL conditions over one table, never raising an error on any data.

A predicate is true or false, never unknown: a comparison with a missing property, or with a value of another type, is
false, and `not` turns false into true. In SQL a condition may still be null where null means false; only `not` has to
spell it out.
"""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import assert_never

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.catalog import Catalog
from heap_compiler.errors import HeapError, Span, nearest
from heap_compiler.hierarchy import selector_pattern
from heap_compiler.ranges import parse_time
from heap_compiler.schema import EVENT_COLUMNS, USER_COLUMNS, Column
from heap_compiler.sql import (
    all_of,
    any_of,
    cast,
    column,
    function,
    is_set,
    number,
    select,
    text,
    timestamp,
    users_table,
)

__all__ = ["PredicateBinder", "number_of", "property_text"]

_COMPARISONS: dict[str, type[exp.Binary]] = {
    "=": exp.EQ,
    "<": exp.LT,
    "<=": exp.LTE,
    ">": exp.GT,
    ">=": exp.GTE,
}


class PredicateBinder:
    """Lowers the predicates of one statement.

    Args:
        catalog: the app.
        of_users: the predicate is about users (`for users where`), so that bare names are user properties.
        allow_users: event predicates may ask for properties of the event's user. Not in a definition: an index cannot
            follow another table.
    """

    def __init__(self, catalog: Catalog, *, of_users: bool = False, allow_users: bool = True) -> None:
        self.catalog = catalog
        self.of_users = of_users
        self.allow_users = allow_users

    def condition(self, predicate: syntax.Predicate) -> exp.Expr:
        """The SQL condition of `predicate`; its columns carry no table name.

        Raises:
            HeapError: a literal is not valid for its operator (a malformed regular expression, time or selector).
        """
        match predicate:
            case syntax.And(predicates=parts):
                return all_of([self.condition(part) for part in parts])
            case syntax.Or(predicates=parts):
                return any_of([self.condition(part) for part in parts])
            case syntax.Not(predicate=inner):
                return self._negation(inner)
            case syntax.ElementMatches(selector=selector):
                return self._element_matches(selector)
            case syntax.IsSet(property=of, negated=negated):
                value = property_text(of, of_user=self._of_user(of))
                return self._about(of, is_set(value), negated=negated)
            case syntax.Compare() | syntax.InList() | syntax.Between() | syntax.TextTest():
                return self._test(predicate)
            case syntax.Did() | syntax.DidThen() | syntax.InSegment():
                raise HeapError(
                    "this is a fact about users, and the condition is one on events",
                    predicate.span,
                    "write: for users where ...; after an event's own filter, put the event in parentheses",
                )
            case _:
                assert_never(predicate)

    def _negation(self, predicate: syntax.Predicate) -> exp.Expr:
        match predicate:
            case syntax.Not(predicate=inner):
                return self.condition(inner)
            case syntax.And(predicates=parts):
                return any_of([self._negation(part) for part in parts])
            case syntax.Or(predicates=parts):
                return all_of([self._negation(part) for part in parts])
            case syntax.Compare(operator="=") | syntax.Compare(operator="!="):
                flipped = "!=" if predicate.operator == "=" else "="
                return self.condition(predicate.replace(operator=flipped))
            case syntax.InList() | syntax.Between() | syntax.TextTest() | syntax.IsSet():
                return self.condition(predicate.replace(negated=not predicate.negated))
            case syntax.Compare() | syntax.ElementMatches() | syntax.Did() | syntax.DidThen() | syntax.InSegment():
                return _is_not_true(self.condition(predicate))
            case _:
                assert_never(predicate)

    def _test(self, test: syntax.Compare | syntax.InList | syntax.Between | syntax.TextTest) -> exp.Expr:
        """A comparison of a property with literals. Negated ones are true exactly where the plain one is not."""
        of = test.property
        values = _Values(of, self._of_user(of), self.catalog)
        negated = test.operator == "!=" if isinstance(test, syntax.Compare) else test.negated
        match test:
            case syntax.Compare(operator="!=", value=value):
                plain = values.compare("=", value)
            case syntax.Compare(operator=operator, value=value):
                plain = values.compare(operator, value)
            case syntax.InList(values=members):
                plain = values.one_of(members)
            case syntax.Between(low=low, high=high):
                plain = all_of([values.compare(">=", low), values.compare("<=", high)])
            case syntax.TextTest(operator=operator, text=literal):
                plain = values.text_test(operator, literal)
            case _:
                assert_never(test)
        return self._about(of, plain, negated=negated)

    def _of_user(self, of: syntax.Property) -> bool:
        if of.of_user and not self.of_users and not self.allow_users:
            raise HeapError(
                "a definition cannot use user properties",
                of.span,
                "they change over time: use `for users where` in the analysis",
            )
        return of.of_user or self.of_users

    def _about(self, of: syntax.Property, condition: exp.Expr, *, negated: bool) -> exp.Expr:
        """`condition`, or its negation, as a condition on the rows the predicate is about. One on an event's user asks
        the users table; a user without a row there has no properties."""
        if self.of_users or not of.of_user:
            return _is_not_true(condition) if negated else condition
        users = select([column("user_id")], users_table(self.catalog.schema), where=[condition])
        member = exp.In(this=column("user_id"), query=exp.Subquery(this=users))
        return exp.Not(this=member) if negated else member

    def _element_matches(self, selector: syntax.Value) -> exp.Expr:
        try:
            pattern = selector_pattern(str(selector.value))
        except HeapError as error:
            raise HeapError(error.message, selector.span, error.hint) from None
        return exp.RegexpLike(this=column("hierarchy"), expression=text(pattern))


def property_text(of: syntax.Property, *, of_user: bool) -> exp.Expr:
    """The property as text, null when it is missing: what `group by` shows."""
    typed = _typed_column(of, of_user)
    if typed is None:
        return _json_text(of)
    return column(typed.name) if typed.type == "text" else cast(column(typed.name), "text")


def number_of(of: syntax.Property) -> exp.Expr:
    """An event's property as numeric, null where it is missing or no number: what sum, avg, ... take.

    Raises:
        HeapError: the property is a column that never holds numbers.
    """
    typed = _typed_column(of, of_user=False)
    if of.of_user or (typed is not None and typed.type != "bigint"):
        what = "a property of the user" if of.of_user else f"a column of type {typed.type if typed else ''}"
        raise HeapError(f"{of.name} is {what}", of.span, "aggregates take a number of the event")
    if typed is not None:
        return cast(column(typed.name), "numeric")
    return exp.Case(ifs=[exp.If(this=_is_json(of, "number"), true=cast(_json(of), "numeric"))])


class _Values:
    """One property against literals: as a typed column, or as a key of `properties`."""

    def __init__(self, of: syntax.Property, of_user: bool, catalog: Catalog) -> None:
        self.of = of
        self.typed = _typed_column(of, of_user)
        self.catalog = catalog

    def compare(self, operator: str, literal: syntax.Value) -> exp.Expr:
        value = literal.value
        comparison = _COMPARISONS[operator]
        if self.typed is None:
            if operator == "=":
                return exp.EQ(this=_json(self.of), expression=_json_literal(value))
            if isinstance(value, str):
                ordered = comparison(this=_json_text(self.of), expression=text(value))
                return all_of([_is_json(self.of, "string"), ordered])
            kind = "boolean" if isinstance(value, bool) else "number"
            ordered = comparison(this=_json(self.of), expression=_json_literal(value))
            return all_of([_is_json(self.of, kind), ordered])
        constant = self._constant(literal)
        if constant is None:
            return self._never()
        return comparison(this=column(self.typed.name), expression=constant)

    def one_of(self, literals: tuple[syntax.Value, ...]) -> exp.Expr:
        if self.typed is None:
            members = [_json_literal(literal.value) for literal in literals]
            return exp.In(this=_json(self.of), expressions=members)
        constants = [constant for literal in literals if (constant := self._constant(literal)) is not None]
        return exp.In(this=column(self.typed.name), expressions=constants) if constants else self._never()

    def _never(self) -> exp.Expr:
        """False of every row. Not the constant: Citus refuses one beside an outer join on PostgreSQL 15 and 16."""
        assert self.typed is not None
        return exp.NEQ(this=column(self.typed.name), expression=column(self.typed.name))

    def _constant(self, literal: syntax.Value) -> exp.Expr | None:
        """The literal as a constant of the column's type, or None when the types differ: never equal, never less."""
        assert self.typed is not None
        match self.typed.type, literal.value:
            case "text", str(value):
                return text(value)
            case "bigint", Decimal() as value:
                return number(value)
            case "timestamptz", str(value):
                return timestamp(self._time(value, literal.span))
        return None

    def _time(self, value: str, span: Span) -> datetime:
        return parse_time(value, span, self.catalog.time_zone).instant

    def text_test(self, operator: str, literal: syntax.Value) -> exp.Expr:
        if self.typed is not None and self.typed.type != "text":
            kind = "a time" if self.typed.type == "timestamptz" else "a number"
            raise HeapError(f"{self.typed.name} is {kind}, not text", self.of.span, "compare it with = < >")
        subject = _json_text(self.of) if self.typed is None else column(self.typed.name)
        condition = self._text_condition(subject, operator, str(literal.value), literal.span)
        return condition if self.typed is not None else all_of([_is_json(self.of, "string"), condition])

    def _text_condition(self, subject: exp.Expr, operator: str, value: str, span: Span) -> exp.Expr:
        match operator:
            case "contains":
                return exp.GT(this=function("strpos", subject, text(value)), expression=number(0))
            case "starts_with":
                return function("starts_with", subject, text(value))
            case "ends_with":
                return exp.EQ(this=function("right", subject, number(len(value))), expression=text(value))
            case "like" | "ilike":
                trailing = len(value) - len(value.rstrip("\\"))
                if trailing % 2:
                    raise HeapError("the pattern ends with an escape", span, r"write \\ for a backslash")
                like = exp.Like if operator == "like" else exp.ILike
                return like(this=subject, expression=text(value))
            case "matches":
                refusal = self.catalog.regex_error(value)
                if refusal is not None:
                    raise HeapError(f"not a regular expression: {refusal}", span)
                return exp.RegexpLike(this=subject, expression=text(value))
        raise AssertionError(operator)


def _typed_column(of: syntax.Property, of_user: bool) -> Column | None:
    columns = USER_COLUMNS if of_user else EVENT_COLUMNS
    if of.name == "properties":
        raise HeapError(
            "properties is not a property itself",
            of.span,
            'name a key of it, such as plan or property "plan"',
        )
    typed = columns.get(of.name)
    if typed is None and of.name.lower() in columns:
        close = nearest(of.name, columns)
        raise HeapError(f"unknown column {of.name}", of.span, f"did you mean {close}?", sqlstate="42703")
    return typed


def _json(of: syntax.Property) -> exp.Expr:
    return exp.paren(exp.JSONExtract(this=column("properties"), expression=text(of.name), only_json_types=True))


def _json_text(of: syntax.Property) -> exp.Expr:
    return exp.paren(exp.JSONExtractScalar(this=column("properties"), expression=text(of.name), only_json_types=True))


def _json_literal(value: str | Decimal | bool) -> exp.Expr:
    written = json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else format(value, "f")
    return cast(text(written), "jsonb")


def _is_json(of: syntax.Property, kind: str) -> exp.Expr:
    return exp.EQ(this=function("jsonb_typeof", _json(of)), expression=text(kind))


def _is_not_true(condition: exp.Expr) -> exp.Expr:
    if isinstance(condition, exp.Not):  # only `is set` makes one: never null itself
        inner: exp.Expr = condition.this
        return inner
    if isinstance(condition, exp.EQ):
        return exp.NullSafeNEQ(this=condition.this, expression=condition.expression)
    return exp.Not(this=exp.paren(exp.Is(this=exp.paren(condition), expression=exp.Boolean(this=True))))
