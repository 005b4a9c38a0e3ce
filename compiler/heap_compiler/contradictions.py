"""Conditions that no event can meet, found where they are written: an analyst who wrote one did not mean it.

Only what is certain, and only within one conjunction as written: one side of an `or` may be impossible, and what a
defined event stands for is not looked into, since it may change.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.errors import HeapError
from heap_compiler.passes.gate_predicates import pinned_values
from heap_compiler.sql import FALSE, conjuncts

__all__ = ["contradiction"]


def contradiction(
    parts: Iterable[tuple[syntax.Predicate, exp.Expr]], known: tuple[exp.Expr, ...] = ()
) -> HeapError | None:
    """The error for the first part of a conjunction that cannot be true, by itself or after those before it.

    Args:
        parts: the predicates as written, each with its condition.
        known: conditions that hold already.
    """
    allowed = pinned_values(known)
    for predicate, condition in parts:
        for name, values in pinned_values([condition]).items():
            before = allowed.get(name, values)
            allowed[name] = before & values
            if not allowed[name]:
                others = " or ".join(repr(value) for value in sorted(before))
                return _never(predicate, f"{name} is {others} already" if values else _why(predicate))
        if any(part == FALSE for part in conjuncts(condition)):
            return _never(predicate, _why(predicate))
    return None


def _never(predicate: syntax.Predicate, why: str) -> HeapError:
    return HeapError("this can never match", predicate.span, why)


def _why(predicate: syntax.Predicate) -> str:
    match predicate:
        case syntax.Between(low=low, high=high) if type(low.value) is type(high.value):
            return "the first value is the greater one"
        case syntax.Compare(property=of) | syntax.InList(property=of) | syntax.Between(property=of):
            return f"{of.name} never has a value of that type"
    return "one part of it contradicts another"
