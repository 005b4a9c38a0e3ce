"""Hostile input: mutated statements and names give rows or a HeapError's message, and never anything else."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from heap_compiler import HeapError, compile_definition, compile_statement
from tests.dictionary_catalog import DictionaryCatalog

_STATEMENTS = [
    'funnel "Viewed a" -> ("Either" or click where path = \'/a\') -> "Purchase" where amount > 10 within 7 days group by country',
    "trend users of \"Viewed\", p90(amount) of purchase as 'p' by week from '2025-10-01' to '2025-10-31' where plan in ('a', 5)",
    "define \"X\" as click where element matches 'form.a > b[c=\"d\"]:nth-child(2)' and not (path like 'a%' or path matches 'x+')",
    "trend count of any where property \"it's\" is not set and user.plan = 'pro' over last 3 weeks group by user.plan top 2",
    'drop event "Viewed"',
    "sessions where country = 'DE' group by entry path, property \"it's\" by day top 5",
    "distribution of sum(amount) of purchase per user in bins (-0.5, 1, 1e9) group by country top 2",
    'time from "Viewed" to purchase where amount > 10 in bins of 1 day within 7 days',
    "paths of any by path from '/a' to '/b' for 3 steps within 5 minutes top 2 over from '2025-10-01' to '2025-10-31'",
    'paths across "Viewed a", click as c, "Purchase" from c to "Purchase"',
    'attribution of sum(amount) of "Purchase" to country, path by position touch from pageview within 3 days',
    'correlate "Viewed a" -> "Purchase" with country, user.plan, "Viewed" where path = \'/a\', (click) as c at least 2 users',
]
_PIECES = st.sampled_from(
    ["'", "''", '"', '""', "\\", ";", "--", "/*", "*/", "$$", "$1", "%s", "{}", "\x00", "\n", "\r", "\t", "é", "😀", "\u202e",
     "(", ")", ",", "->", "or", "not", "any", "within", "9" * 30, "1e9999", "-1", "'; DROP TABLE heap.app; --", "NULL",
     "\ud800", "matches '(((('", "matches '[[:foo:]]'", "matches '(a*)*\\1'", "element matches ':::'", "last", "0", "=", "' OR '1'='1"]
)  # fmt: skip


@st.composite
def _mutated(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(_STATEMENTS))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        until = min(len(text), at + draw(st.integers(0, 12)))
        text = text[:at] + draw(_PIECES | st.text(max_size=3)) + text[until:]
    return text


@settings(max_examples=3_000)
@given(_mutated())
@example("trend count of purchase where amount > 1e9999999999999999999")
def test_the_compiler_answers_or_raises_a_heap_error(text: str) -> None:
    try:
        compile_statement(text, DictionaryCatalog())
    except HeapError as error:
        assert str(error).startswith("error")


@settings(max_examples=1_000)
@given(st.text(max_size=40), st.text(max_size=60) | _mutated())
def test_any_name_and_definition_compile_or_raise_a_heap_error(name: str, definition: str) -> None:
    try:
        compile_definition(name, definition, DictionaryCatalog())
    except HeapError as error:
        assert str(error).startswith("error")


@pytest.mark.parametrize("text", ["(" * 30_000, "funnel " + "(" * 5_000 + "any" + ")" * 5_000 + " -> any",
                                  "trend count of any where " + "not " * 20_000 + "a = 1",
                                  "trend count of any where " + "a = 1 or " * 9_000 + "a = 1", "x" * 200_000])  # fmt: skip
def test_endless_statements_end(text: str) -> None:
    try:
        compile_statement(text, DictionaryCatalog())
    except HeapError as error:
        assert str(error).startswith("error")


@settings(max_examples=400)
@given(_mutated().filter(lambda text: "\x00" not in text and "\ud800" not in text and text.isprintable()))
def test_the_database_answers_or_raises_a_heap_error(asked: psycopg.Connection[Any], text: str) -> None:
    try:
        asked.execute("SELECT heap.query(%s)", (text,)).fetchall()
    except psycopg.Error as error:
        assert (error.diag.message_primary or "").startswith("error"), (text, error)
    finally:
        asked.rollback()
    assert asked.execute("SELECT count(*) FROM heap.app WHERE name = 'meaning'").fetchone() == (1,)
    asked.rollback()


_NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Cn", "Co", "Cf"]), min_size=1, max_size=60)


@settings(max_examples=60)
@given(name=_NAMES.filter(lambda name: name.isprintable() and name.strip() != ""))
def test_any_printable_name_can_be_defined_and_asked(asked: psycopg.Connection[Any], name: str) -> None:
    try:
        asked.execute("SELECT heap.define_event(%s, 'purchase where path = ''/never''')", (name,))
        rows = asked.execute("SELECT users FROM heap.funnel(%s, %s)", (name, "Purchase")).fetchall()
        assert rows == [(0,), (0,)]
        asked.execute("SELECT heap.drop_event(%s)", (name,))
    finally:
        asked.rollback()
