"""Put an integer comparison in front of every comparison of a keyed column with constants.

Every insert tests the predicate of every definition. `path_key = hashtext('/pricing')` fails in a few nanoseconds for
almost every event, before `path = '/pricing'` would compare any text.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlglot import exp

from heap_compiler.schema import KEYED_COLUMNS, key_column
from heap_compiler.sql import column, conjuncts, function

__all__ = ["allowed_values", "gate_predicates", "pinned_values"]


def gate_predicates(conditions: tuple[exp.Expr, ...]) -> tuple[exp.Expr, ...]:
    """The conditions with their gates in front, keyed columns in the order of `KEYED_COLUMNS`.

    >>> [c.sql() for c in gate_predicates((exp.maybe_parse("type = 'click'"),))]
    ["type_key = HASHTEXT('click')", "type = 'click'"]
    """
    allowed = allowed_values(conditions)
    gates = tuple(_gate(name, allowed[name]) for name in KEYED_COLUMNS if name in allowed)
    return (*gates, *conditions)


def _gate(name: str, values: frozenset[str]) -> exp.Expr:
    keys = [function("hashtext", exp.Literal.string(value)) for value in sorted(values)]
    if len(keys) == 1:
        return exp.EQ(this=column(key_column(name)), expression=keys[0])
    return exp.In(this=column(key_column(name)), expressions=keys)


def allowed_values(conditions: Iterable[exp.Expr]) -> dict[str, frozenset[str]]:
    """For each column that the conditions pin to constants, the only texts it can have.

    >>> allowed = allowed_values([exp.maybe_parse("type = 'click' AND (path = '/a' OR path IN ('/b', '/c'))")])
    >>> {name: sorted(values) for name, values in allowed.items()}
    {'type': ['click'], 'path': ['/a', '/b', '/c']}
    """
    # A contradiction (`type = 'a' and type = 'b'`) pins nothing that could be compared.
    return {name: values for name, values in pinned_values(conditions).items() if values}


def pinned_values(conditions: Iterable[exp.Expr]) -> dict[str, frozenset[str]]:
    """As `allowed_values`, and with no text at all for a column that the conditions contradict each other about."""
    allowed: dict[str, frozenset[str]] = {}
    for condition in conditions:
        for part in conjuncts(condition):
            for name, values in _pinned(part).items():
                allowed[name] = allowed[name] & values if name in allowed else values
    return allowed


def _pinned(condition: exp.Expr) -> dict[str, frozenset[str]]:
    match condition:
        case exp.EQ(this=exp.Column() as of, expression=exp.Literal(is_string=True) as literal):
            return {of.name: frozenset({literal.this})}
        case exp.In(this=exp.Column() as of) if condition.expressions:
            if all(isinstance(member, exp.Literal) and member.is_string for member in condition.expressions):
                return {of.name: frozenset(member.this for member in condition.expressions)}
        case exp.Or():
            left, right = allowed_values([condition.left]), allowed_values([condition.right])
            return {name: left[name] | right[name] for name in left if name in right}
    return {}
