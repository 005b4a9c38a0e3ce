"""Put a search for text that a regular expression requires in front of it.

Every insert tests the predicate of every definition, and a server process keeps 32 regular expressions compiled: with
more, each test compiles its own again. `strpos(hierarchy, '.primary;') <> 0` fails first for almost every event.
"""

from __future__ import annotations

from sqlglot import exp

from heap_compiler.patterns import required_texts
from heap_compiler.sql import all_of, any_of, copied, function, number, text, walk

__all__ = ["gate_patterns"]


def gate_patterns(conditions: tuple[exp.Expr, ...]) -> tuple[exp.Expr, ...]:
    """The conditions with their gates, which change no answer: where the expression is null the gate is, too.

    >>> [c.sql() for c in gate_patterns((exp.RegexpLike(this=exp.column("path"), expression=text("^/a/blog$")),))]
    ["STRPOS(path, '/a/blog') <> 0", "REGEXP_LIKE(path, '^/a/blog$')"]
    """
    return tuple(part for condition in conditions for part in _gated(condition))


def _gated(condition: exp.Expr) -> list[exp.Expr]:
    if isinstance(condition, exp.RegexpLike):
        return [*_gates(condition), condition]
    parts = walk(condition)
    patterns = [part for part in parts if isinstance(part, exp.RegexpLike)]
    if not any(_gates(pattern) for pattern in patterns) or any(isinstance(part, exp.Query) for part in parts):
        return [condition]
    gated = copied(condition)  # it may stand in other conditions, too
    for pattern in [part for part in walk(gated) if isinstance(part, exp.RegexpLike)]:
        gates = _gates(pattern)
        if gates:
            pattern.replace(exp.paren(all_of([*gates, copied(pattern)]), copy=False))
    return [gated]


def _gates(pattern: exp.RegexpLike) -> list[exp.Expr]:
    """PostgreSQL knows nothing about the function's values, so it takes `<> 0` for true of all rows, which keeps its
    estimates those of the expression; of `> 0`, for true of a third."""
    subject, expression = pattern.this, pattern.expression
    return [
        any_of(
            [
                exp.NEQ(this=function("strpos", copied(subject), text(choice)), expression=number(0))
                for choice in choices
            ]
        )
        for choices in required_texts(expression.this)
    ]
