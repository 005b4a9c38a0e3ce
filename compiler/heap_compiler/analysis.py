"""What an analysis is to the compiler: its keyword, the rows it returns, and the functions that bind and lower it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.bind import Binder

__all__ = ["Analysis", "ResultColumn"]

_Plan = TypeVar("_Plan")


class ResultColumn(NamedTuple):
    """A column of an analysis's rows."""

    name: str
    type: Literal["text", "int", "bigint", "numeric", "timestamptz", "interval", "timestamptz[]", "bigint[]"]


@dataclass(frozen=True, slots=True)
class Analysis(Generic[_Plan]):
    """One analysis of the language.

    Attributes:
        keyword: the statement's first word, and the grammar rule's name.
        clauses: the clauses it takes beyond ranges and filters, which every analysis has.
        row: the columns of its result.
        bind: statement -> typed plan; the only step that looks names up.
        lower: typed plan -> query.
        sources: typed plan -> names of the scans in that query, and the event each reads; EXPLAIN shows the names.
        strategy: typed plan -> how the users' chains are found, where that was chosen.
    """

    keyword: str
    clauses: tuple[type[syntax.Clause], ...]
    row: tuple[ResultColumn, ...]
    bind: Callable[[syntax.AnalysisStatement, Binder], _Plan]
    lower: Callable[[_Plan], exp.Query]
    sources: Callable[[_Plan], dict[str, str]]
    strategy: Callable[[_Plan], str | None] = lambda _: None
