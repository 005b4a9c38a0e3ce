"""The analyses of the language, one module each. Adding one: its module, and its line here.

A module is imported when a statement first asks for it: a new server process pays for one analysis, not for all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from heap_compiler.analysis import Analysis

__all__ = ["ANALYSES", "KEYWORDS", "analysis_of"]

KEYWORDS: tuple[str, ...] = (
    "trend",
    "funnel",
    "retention",
    "lifecycle",
    "stickiness",
    "users",
    "sessions",
    "distribution",
    "time",
    "paths",
    "attribution",
    "correlate",
    "effort",
)
"""The first words of analyses, which are the names of their modules."""

if TYPE_CHECKING:
    ANALYSES: tuple[Analysis[Any], ...]


def analysis_of(keyword: str) -> Analysis[Any]:
    """The analysis of one of the `KEYWORDS`."""
    analysis: Analysis[Any] = import_module(f"{__name__}.{keyword}").ANALYSIS
    return analysis


def __getattr__(name: str) -> tuple[Analysis[Any], ...]:
    """`ANALYSES`: all of them, in the order of their keywords."""
    if name != "ANALYSES":
        raise AttributeError(name)
    return tuple(analysis_of(keyword) for keyword in KEYWORDS)
