"""The words a terminal of the grammar stands for: of a keyword itself, of `UNIT` all units, of `WORD` none to list."""

from __future__ import annotations

import re._parser as regex  # type: ignore[import-not-found]  # as Lark does, to measure its terminals
from functools import cache
from itertools import product
from typing import Any

__all__ = ["words"]

_TOO_MANY = 200


@cache
def words(pattern: str) -> tuple[str, ...]:
    """Every text the regular expression matches, in its own order and lower case; none where they cannot be listed.

    Conditions on what follows (lookahead) are left out; space of any length is one space.

    >>> words("(?i:(day|week)s?(?![a-z]))")
    ('day', 'days', 'week', 'weeks')
    >>> words("[a-z]+")
    ()
    """
    found = _sequence(regex.parse(pattern))
    return () if found is None else tuple(dict.fromkeys(word.lower() for word in found if word))


def _sequence(parts: Any) -> list[str] | None:
    choices = [_choices(str(operator), argument) for operator, argument in parts]
    listed = [choice for choice in choices if choice is not None]
    count = 1
    for choice in listed:
        count *= len(choice)
    if len(listed) < len(choices) or count > _TOO_MANY:
        return None
    return ["".join(word) for word in product(*listed)]


def _choices(operator: str, argument: Any) -> list[str] | None:
    """The texts of one part of a regular expression, None where there is no end of them."""
    match operator:
        case "LITERAL":
            return [chr(argument)]
        case "ASSERT" | "ASSERT_NOT" | "AT":
            return [""]
        case "SUBPATTERN":
            return _sequence(argument[-1])
        case "BRANCH":
            branches = [_sequence(branch) for branch in argument[1]]
            return None if None in branches else [word for branch in branches for word in branch or ()]
        case "IN" if all(str(kind) == "LITERAL" for kind, _ in argument):
            return [chr(code) for _, code in argument]
        case "MAX_REPEAT" if argument[0] == 1 and "CATEGORY_SPACE" in str(argument[2]):
            return [" "]
        case "MAX_REPEAT" if argument[:2] == (0, 1):
            inner = _sequence(argument[2])
            return None if inner is None else ["", *inner]
    return None
