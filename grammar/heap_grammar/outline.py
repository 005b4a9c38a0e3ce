"""The Lark grammar as data, in its own order and with its comments: what the views of it are made from.

Lark compiles repetitions and options away; its own grammar of grammars, which comes with it, keeps them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from lark import Lark, Token, Tree
from lark.visitors import Interpreter

from heap_grammar import grammar_text

__all__ = ["Choice", "Expression", "Literal", "Maybe", "Name", "Pattern", "Repeat", "Rule", "Sequence", "outline"]


@dataclass(frozen=True, slots=True)
class Literal:
    """A keyword or symbol as it is written."""

    text: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression."""

    regex: str


@dataclass(frozen=True, slots=True)
class Name:
    """Another rule or terminal."""

    name: str


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Maybe:
    part: Expression


@dataclass(frozen=True, slots=True)
class Repeat:
    """`part` once or more; `optional`: or not at all."""

    part: Expression
    optional: bool


Expression = Literal | Pattern | Name | Sequence | Choice | Maybe | Repeat


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule or terminal of the grammar.

    Attributes:
        name: as in the grammar, without the marks that say how Lark builds its tree.
        is_terminal: it is a word; the others are made of words.
        section: the comment that heads its part of the grammar.
        expression: what it is made of.
    """

    name: str
    is_terminal: bool
    section: str
    expression: Expression

    def literals(self) -> Iterator[str]:
        """The keywords and symbols written in it, in order."""
        waiting: list[Expression] = [self.expression]
        while waiting:
            match waiting.pop(0):
                case Literal(text=text):
                    yield text
                case Sequence(parts=parts) | Choice(parts=parts):
                    waiting[:0] = parts
                case Maybe(part=part) | Repeat(part=part):
                    waiting[:0] = [part]


@cache
def outline() -> tuple[Rule, ...]:
    """All rules and terminals in the order of the grammar."""
    text = grammar_text()
    sections = {text.count("\n", 0, found.start()) + 1: found[0] for found in _SECTION.finditer(text)}
    lark = Lark.open_from_package("lark", "lark.lark", ("grammars",), parser="lalr", propagate_positions=True)
    items = [item for item in lark.parse(text).children if isinstance(item, Tree) and item.data in {"rule", "token"}]
    reader = _Reader({str(item.children[0]) for item in items})
    rules = []
    for item in items:
        heading = max((line for line in sections if line < item.meta.line), default=None)
        section = "" if heading is None else sections[heading]
        section = " ".join(line.removeprefix("//").strip() for line in section.splitlines())
        name, *_, expression = item.children
        assert isinstance(expression, Tree)
        rules.append(Rule(reader.plain(str(name)), item.data == "token", section, reader.visit(expression)))
    return tuple(rules)


# Comment lines with an empty line around them.
_SECTION = re.compile(r"(?<=\n\n)(?://[^\n]*\n)+(?=\n)")


class _Reader(Interpreter[Token, Expression]):
    """Lark's tree of an expression to ours.

    Args:
        written: the names of all rules and terminals, with their marks.
    """

    def __init__(self, written: set[str]) -> None:
        super().__init__()
        self.written = written

    def plain(self, name: str) -> str:
        """The name without the marks that say how Lark builds its tree, unless it is then that of another."""
        unmarked = name.lstrip("!?")
        short = unmarked.lstrip("_")
        return unmarked if short != unmarked and self.written & {short, f"?{short}", f"!{short}"} else short

    def expansions(self, tree: Tree[Token]) -> Expression:
        return Choice(tuple(self._parts(tree)))

    def alias(self, tree: Tree[Token]) -> Expression:
        return next(self._parts(tree))  # the alias itself is about Lark's tree

    def expansion(self, tree: Tree[Token]) -> Expression:
        parts = tuple(self._parts(tree))
        return parts[0] if len(parts) == 1 else Sequence(parts)

    def expr(self, tree: Tree[Token]) -> Expression:
        part = next(self._parts(tree))
        match [str(child) for child in tree.children if isinstance(child, Token)]:
            case []:
                return part
            case ["?"]:
                return Maybe(part)
            case ["*"]:
                return Repeat(part, optional=True)
            case ["+"]:
                return Repeat(part, optional=False)
            case other:
                raise NotImplementedError(f"a repetition {other} in the grammar")

    def maybe(self, tree: Tree[Token]) -> Expression:
        return Maybe(next(self._parts(tree)))

    def name(self, tree: Tree[Token]) -> Expression:
        return Name(self.plain(str(tree.children[0])))

    def literal(self, tree: Tree[Token]) -> Expression:
        written = str(tree.children[0])
        if written.startswith("/"):
            return Pattern(written[1 : written.rindex("/")])
        return Literal(ast.literal_eval(written.removesuffix("i")))

    def __default__(self, tree: Tree[Token]) -> Expression:
        raise NotImplementedError(f"{tree.data} in the grammar")

    def _parts(self, tree: Tree[Token]) -> Iterator[Expression]:
        return (self.visit(child) for child in tree.children if isinstance(child, Tree))
