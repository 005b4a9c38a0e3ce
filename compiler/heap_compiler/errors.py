"""What goes wrong in a statement, told to the analyst: where, what was expected, and the nearest known name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple

__all__ = ["HeapError", "Span", "nearest"]


class Span(NamedTuple):
    """Half-open range of character offsets in the statement's text."""

    start: int
    end: int


class HeapError(Exception):
    """A statement that cannot be compiled.

    Attributes:
        message: what is wrong, one line, without the position.
        span: offsets in the statement, or None when the error has no place in it.
        hint: what to do instead, or None.
        sqlstate: the five-character code PostgreSQL clients see.
        text: the statement; `compile` fills it in, so that stages need not carry it.
    """

    def __init__(
        self, message: str, span: Span | None = None, hint: str | None = None, sqlstate: str = "22023"
    ) -> None:
        super().__init__(message)
        self.message = message
        self.span = span
        self.hint = hint
        self.sqlstate = sqlstate
        self.text: str | None = None

    @property
    def line(self) -> int | None:
        """1-based line of the error's first character."""
        if self.span is None or self.text is None:
            return None
        return self.text.count("\n", 0, self.span.start) + 1

    @property
    def column(self) -> int | None:
        """1-based column of the error's first character."""
        if self.span is None or self.text is None:
            return None
        return self.span.start - (self.text.rfind("\n", 0, self.span.start) + 1) + 1

    def __str__(self) -> str:
        if self.span is None or self.text is None:
            return f"error: {self.message}" + (f"\n  {self.hint}" if self.hint else "")
        line_start = self.text.rfind("\n", 0, self.span.start) + 1
        line_end = self.text.find("\n", self.span.start)
        source = self.text[line_start : line_end if line_end >= 0 else len(self.text)].rstrip("\r")
        offset = self.span.start - line_start
        width = max(1, min(self.span.end - self.span.start, len(source) - offset))
        # A tab is as wide as the terminal says: repeat it under the source, so that the caret still lines up.
        margin = "".join("\t" if character == "\t" else " " for character in source[:offset])
        caret = f"  {margin}{'^' * width}" + (f" {self.hint}" if self.hint else "")
        return f"error at line {self.line}, column {self.column}: {self.message}\n  {source}\n{caret}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is close (Ratcliff/Obershelp similarity of 0.6).

    >>> nearest("Sign upp", ["Purchase", "Sign up"])
    'Sign up'
    """
    names = sorted(known)
    folded = {candidate.casefold(): candidate for candidate in names}
    match = get_close_matches(name.casefold(), folded, n=1)
    return folded[match[0]] if match else None
