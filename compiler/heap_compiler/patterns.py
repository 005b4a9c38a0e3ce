"""What a regular expression asks for at least: texts that everything it matches contains.

Reads PostgreSQL's advanced regular expressions as far as such texts can be known for certain. Searching a text is a
hundred times cheaper than a regular expression that PostgreSQL has to compile first, and it keeps only 32 of them.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["required_texts"]

_SHORTEST = 3
"""Shorter texts are in nearly everything, such as what separates elements of a hierarchy."""
_FREQUENT = (":nth-child(", "@", "|@")
"""How tags and positions of elements begin, which are in many hierarchies: of use only where there are no names."""
_MOST_CLAUSES = 3
_MOST_CHOICES = 8
_DEEPEST = 50

_Clause = frozenset[str]
"""Texts one of which is there."""

_BOUND = re.compile(r"\{(\d+)(,\d*)?\}")
_ONE_CHARACTER_ESCAPES = "dDsSwW"
_PLACE_ESCAPES = "AmMyYZ"


@lru_cache(maxsize=4096)
def required_texts(pattern: str) -> tuple[tuple[str, ...], ...]:
    """Clauses that are true of every text the pattern matches: of each, one text is contained. The rarest texts come
    first, for which the longest are taken. None for what is not understood, or too short to tell anything.

    >>> required_texts(r"^/blog/[0-9]+(-news|-sport)\\.html$")
    (('/blog/',), ('-news', '-sport'), ('.html',))
    >>> required_texts("(?i)blog")
    ()
    """
    if pattern.startswith("***"):  # another kind of regular expression, or none
        return ()
    reader = _Reader(pattern)
    try:
        clauses = reader.alternatives(0)
    except _NotUnderstoodError:
        return ()
    if reader.at < len(pattern):  # a closing parenthesis too many
        return ()
    chosen: list[_Clause] = []
    for clause in sorted(dict.fromkeys(clauses), key=_rarity):
        if _is_frequent(clause) and chosen and not _is_frequent(chosen[0]):
            break
        if not any(_implies(known, clause) for known in chosen):
            chosen.append(clause)
    return tuple(tuple(sorted(clause)) for clause in chosen[:_MOST_CLAUSES])


def _rarity(clause: _Clause) -> tuple[bool, int, list[str]]:
    """Less for rarer ones. Some order of equals is needed: an index and a query must have the same."""
    return _is_frequent(clause), -min(map(len, clause)), sorted(clause)


def _is_frequent(clause: _Clause) -> bool:
    return any(text.startswith(_FREQUENT) for text in clause)


def _implies(known: _Clause, clause: _Clause) -> bool:
    return all(any(text in one for text in clause) for one in known)


class _NotUnderstoodError(Exception):
    """Part of the pattern changes what the rest means, or is not read here."""


class _Reader:
    """Reads a pattern from the left; `at` is how far."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0

    def alternatives(self, depth: int) -> list[_Clause]:
        """What one of the branches up to a closing parenthesis or the end requires, whichever it is."""
        if depth > _DEEPEST:
            raise _NotUnderstoodError
        branches = [self._branch(depth)]
        while self._next() == "|":
            self.at += 1
            branches.append(self._branch(depth))
        if len(branches) == 1:
            return branches[0]
        if not all(branches):
            return []
        together = frozenset[str]().union(*(min(branch, key=_rarity) for branch in branches))
        return [together] if len(together) <= _MOST_CHOICES else []

    def _branch(self, depth: int) -> list[_Clause]:
        clauses: list[_Clause] = []
        run = ""
        while self._next() not in {"", "|", ")"}:
            atom = self._atom(depth)
            least = self._quantifier()
            if isinstance(atom, str) and least != 0:
                run += atom
            if isinstance(atom, list) or least is not None:  # what follows is not known to be next to the run
                clauses += _clause(run)
                run = atom if isinstance(atom, str) and least else ""
            if isinstance(atom, list) and least != 0:
                clauses += atom
        return clauses + _clause(run)

    def _next(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _atom(self, depth: int) -> str | list[_Clause]:
        """A character that stands for itself, or what a part of another kind requires."""
        character = self._next()
        self.at += 1
        match character:
            case "(":
                return self._group(depth)
            case "[":
                self._bracket()
                return []
            case "\\":
                return self._escape()
            case "." | "^" | "$":
                return []
            case "*" | "+" | "?":
                raise _NotUnderstoodError
            case "{" if self._next().isdigit():
                raise _NotUnderstoodError
        return character

    def _group(self, depth: int) -> list[_Clause]:
        if self.pattern.startswith("?:", self.at):
            self.at += 2
        elif self._next() in {"?", "*"}:  # looks ahead or behind, sets options, or is a comment
            raise _NotUnderstoodError
        clauses = self.alternatives(depth + 1)
        if self._next() != ")":
            raise _NotUnderstoodError
        self.at += 1
        return clauses

    def _bracket(self) -> None:
        """Up to the end of `[...]`, which stands for one character, or for none, as `[[:<:]]`."""
        if self._next() == "^":
            self.at += 1
        first = self.at
        while (character := self._next()) != "]" or self.at == first:
            if character == "":
                raise _NotUnderstoodError
            named = character == "[" and self.pattern[self.at + 1 : self.at + 2] in {".", ":", "="}
            if named:
                end = self.pattern.find(self.pattern[self.at + 1] + "]", self.at + 2)
                if end < 0:
                    raise _NotUnderstoodError
                self.at = end + 2
            else:
                self.at += 2 if character == "\\" else 1
        self.at += 1

    def _escape(self) -> str | list[_Clause]:
        character = self._next()
        self.at += 1
        if character and (character in _ONE_CHARACTER_ESCAPES or character in _PLACE_ESCAPES):
            return []
        if character == "" or character.isalnum():  # a code of a character, or a group that matched before
            raise _NotUnderstoodError
        return character

    def _quantifier(self) -> int | None:
        """How often the atom before it is there at least; None without one."""
        bound = _BOUND.match(self.pattern, self.at)
        if bound is not None:
            least = int(bound[1])
            self.at = bound.end()
        elif self._next() in {"*", "+", "?"}:
            least = int(self._next() == "+")
            self.at += 1
        else:
            return None
        if self._next() == "?":  # as few as possible
            self.at += 1
        return least


def _clause(run: str) -> list[_Clause]:
    return [frozenset({run})] if len(run) >= _SHORTEST else []
