"""Texts that regular expressions require, against PostgreSQL: whatever it matches has them."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import heap_compiler.patterns
from heap_compiler.patterns import required_texts
from heap_extension.cluster import Cluster


class _Case(NamedTuple):
    """A regular expression, and a text it matches."""

    pattern: str
    text: str


def _joined(cases: list[_Case]) -> _Case:
    return _Case("".join(case.pattern for case in cases), "".join(case.text for case in cases))


def _either(cases: list[_Case]) -> _Case:
    return _Case("(" + "|".join(case.pattern for case in cases) + ")", cases[0].text)


def _repeated(case: _Case, quantifier: tuple[str, int], lazy: str) -> _Case:
    written, times = quantifier
    atom = case.pattern if case in _ATOMS else f"(?:{case.pattern})"
    return _Case(atom + written + lazy, case.text * times)


_ATOMS = [
    *(_Case(character, character) for character in "aab/-{],é"), _Case(r"\.", "."), _Case(r"\|", "|"), _Case(".", "x"),
    _Case(r"\d", "7"), _Case("[^a]", "b"), _Case("[]a]", "]"), _Case(r"[\]b]", "b"), _Case("[[:alpha:]]", "a"),
    _Case("[[.-.]]", "-"), _Case("^", ""), _Case("()", ""),
]  # fmt: skip
_QUANTIFIERS = st.sampled_from(
    [("*", 0), ("*", 2), ("+", 1), ("+", 3), ("?", 0), ("?", 1), ("{2}", 2), ("{0,1}", 0), ("{1,}", 2)]
)
_PATTERNS = st.recursive(
    st.sampled_from(_ATOMS),
    lambda inner: (
        st.lists(inner, min_size=2, max_size=4).map(_joined)
        | st.lists(inner, min_size=2, max_size=3).map(_either)
        | st.builds(_repeated, inner.filter(lambda case: case.pattern not in {"^", "()"}), _QUANTIFIERS, st.sampled_from(["", "?"]))
    ),
    max_leaves=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def plain(postgres_cluster: Cluster) -> Any:
    with psycopg.connect(postgres_cluster.dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def shortest_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text counts, so that more of them are there to be wrong."""
    monkeypatch.setattr(heap_compiler.patterns, "_SHORTEST", 1)
    monkeypatch.setattr(heap_compiler.patterns, "_MOST_CLAUSES", 100)


def _passes(pattern: str, text: str) -> bool:
    clauses = required_texts.__wrapped__(pattern)
    return all(any(required in text for required in choices) for choices in clauses)


@settings(max_examples=60)
@given(st.lists(st.tuples(_PATTERNS, st.text("ab/-.|]", max_size=6)), min_size=20, max_size=20))
def test_what_postgresql_matches_passes_the_gate(
    plain: psycopg.Connection[Any], shortest_texts: None, cases: list[tuple[_Case, str]]
) -> None:
    patterns = [case.pattern for case, _ in cases for _ in range(2)]
    texts = [text for case, other in cases for text in (case.text, other)]
    matched = plain.execute(
        "SELECT pattern, subject FROM unnest(%s::text[], %s::text[]) AS u (pattern, subject) WHERE subject ~ pattern",
        (patterns, texts),
    ).fetchall()
    assert all("^" in case.pattern or (case.pattern, case.text) in matched for case, _ in cases), "made to match"
    for pattern, text in matched:
        assert _passes(pattern, text), (pattern, text)


@settings(max_examples=300)
@given(st.text("aab|()[]{}*+?\\^$.,12:=!dmw", max_size=12), st.text("ab1|]{,", max_size=8))
def test_no_pattern_that_postgresql_takes_has_a_gate_which_a_match_fails(
    plain: psycopg.Connection[Any], shortest_texts: None, pattern: str, text: str
) -> None:
    try:
        (matches,) = plain.execute("SELECT %s::text ~ %s", (text, pattern)).fetchone() or (False,)
    except psycopg.errors.InvalidRegularExpression:
        return
    assert not matches or _passes(pattern, text)
