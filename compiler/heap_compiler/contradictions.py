"""Conditions that no event can meet, found where they are written: an analyst who wrote one did not mean it.

Only what is certain, and only within one conjunction as written: one side of an `or` may be impossible, and what a
defined event stands for is not looked into, since it may change. A value of another type than its column is no
contradiction: the language says that such a comparison is simply false.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.errors import HeapError
from heap_compiler.passes.gate_predicates import pinned_values

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
                why = f"{name} is {others} already" if values else "one part of it contradicts another"
                return HeapError("this can never match", predicate.span, why)
        if isinstance(predicate, syntax.Between) and not predicate.negated and _is_reversed(predicate):
            return HeapError("this can never match", predicate.span, "the first value is the greater one")
    return None


def _is_reversed(between: syntax.Between) -> bool:
    """True of numbers; texts are ordered by the database."""
    low, high = between.low.value, between.high.value
    return isinstance(low, Decimal) and isinstance(high, Decimal) and low > high
