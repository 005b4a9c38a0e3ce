"""Completion follows the grammar: at every place of every example of the reference, and for every candidate."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lark import Token

import heap_grammar
from heap_compiler.analyses import ANALYSES
from heap_compiler.complete import FREE_RULES, NAMING_RULES, complete
from heap_compiler.parse import parser
from heap_grammar.words import words

_EXAMPLES = re.findall(r"```heap\n(.*?)\n```", heap_grammar.reference_text(), re.S)


_NUMBERS = {
    terminal.name for terminal in parser().terminals if re.match(r"-?\\d|\(\?i:-?\\d", terminal.pattern.to_regexp())
}


@dataclass(frozen=True)
class _Words:
    """A vocabulary of these words, each of which may be the name of anything."""

    quoted: tuple[str, ...] = ("Viewed pricing", "Sign up", "Sold")
    bare: tuple[str, ...] = ("pageview", "plan", "odd name", "not")

    def event_names(self) -> Iterable[str]:
        return self.quoted

    def segment_names(self) -> Iterable[str]:
        return self.quoted

    def event_types(self) -> Iterable[str]:
        return self.bare

    def event_properties(self) -> Iterable[str]:
        return (*self.bare, *self.quoted)

    def user_properties(self) -> Iterable[str]:
        return (*self.bare, *self.quoted)


def _at_the_end(text: str) -> list[str]:
    return complete(text, None, _Words())


@pytest.mark.parametrize("example", _EXAMPLES)
def test_the_next_word_of_every_example_is_a_candidate_everywhere(example: str) -> None:
    tokens = parser().parse_interactive(example).exhaust_lexer()
    free = {
        token.start_pos
        for tree in parser().parse(example).iter_subtrees()
        for token in tree.children
        if isinstance(token, Token) and (tree.data in FREE_RULES or token.type in _NUMBERS)
    }
    names = tuple(token[1:-1].replace('""', '"') for token in tokens if token.type == "NAME_IN_QUOTES")
    vocabulary = _Words(names, tuple(token for token in tokens if token.type == "WORD"))
    for position in range(len(example)):
        token = next((token for token in tokens if _is_wanted(token, position)), None)
        if token is not None and token.start_pos not in free:
            found = [candidate.lower() for candidate in complete(example, position, vocabulary)]
            word = token.lower()
            rest = word[example[token.start_pos : position].rfind(" ") + 1 :]  # of a keyword of two words, the second
            assert (word if token.type == "NAME_IN_QUOTES" else rest) in found, (example[:position], token)


def _is_wanted(token: Token, position: int) -> bool:
    """The token is the one being written at the position, or the next one."""
    assert token.start_pos is not None
    assert token.end_pos is not None
    may_go_on = re.search(r"[\w$<>=!-]$", token) is not None
    return token.start_pos >= position or token.end_pos > position or (token.end_pos == position and may_go_on)


@given(st.data())
def test_every_candidate_fits(data: st.DataObject) -> None:
    example = data.draw(st.sampled_from(_EXAMPLES))
    position = data.draw(st.integers(0, len(example)))
    word = re.search(r"""("[^"]*|[\w$]+|[-<>=!]+)?$""", example[:position])
    assert word is not None
    if example[:position].count('"') % 2 == 0 and word[0].startswith('"'):
        return
    for candidate in complete(example, position, _Words()):
        reader = parser().parse_interactive(
            example[: word.start()] + candidate + ("(" if candidate in _AGGREGATES else "")
        )
        reader.exhaust_lexer()


_AGGREGATES = {
    word
    for terminal in parser().terminals
    if terminal.name == "AGGREGATE"
    for word in words(terminal.pattern.to_regexp())
}


@given(st.text(max_size=60), st.none() | st.integers(-5, 70))
def test_any_text_completes_to_something_or_nothing(text: str, position: int | None) -> None:
    complete(text, position, _Words())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["define", "drop", "segment", *(analysis.keyword for analysis in ANALYSES)]),
        ("FUN", ["funnel"]),
        ('trend count of "S', ['"Sign up"', '"Sold"']),
        ("trend count of si", ['"Sign up"']),
        ('trend count of "Sold', ['"Sold"']),
        ("trend users of any by we", ["week"]),
        ("trend users of any over last 3 d", ["days"]),
        ("trend users of any over last 1 d", ["day"]),
        ("retention from any to any in 24 h", ["hour"]),
        ("retention from any to any in brackets (1, 3 d", ["days"]),
        ("trend count of any where pl", ["platform", "plan"]),
        ("trend count of any where property o", ['"odd name"']),
        ("trend count of any where user.pl", ["plan"]),
        ("trend count of any where not path is ", ["not", "set"]),
        ("trend count of any group by country top 2 ov", ["over"]),
        ("funnel any -", ["->"]),
        ("drop event ", ['"Sign up"', '"Sold"', '"Viewed pricing"']),
        ("trend count of any where path = '/a", []),
        ("trend count of any -- by", []),
        ("trend sum ", ["(", "of"]),
        ("trend count of any -- by 3\n d", []),
        ("trend count -- sum\n ", ["of"]),
        ("paths across any, \"Sold\", click where path = '/' as shop from ", ["any", '"Sold"', "shop"]),
        (
            'paths across click where path = \'/\', "Sold" from "Sold" to -- the end\n',
            ["\"click where path = '/'\"", '"Sold"'],
        ),
        ("paths across pageview as 'the start', click as b to \"th", ['"the start"']),
        ("paths of pageview by path from ", []),
        ("trnd count of ", []),
        ("trend count of any by day by", []),
        ("stickiness of any rol", []),
    ],
)
def test_what_completes(text: str, expected: list[str]) -> None:
    found = _at_the_end(text)
    assert sorted(found) == sorted(expected) if not text else found == expected


def test_clauses_that_are_there_or_not_taken_are_left_out() -> None:
    assert "within" in _at_the_end("funnel any -> any ")
    assert "within" not in _at_the_end("funnel any -> any within 1 day ")
    assert "without" in _at_the_end("funnel any -> any without click ")
    assert "within" not in _at_the_end("lifecycle of any ")
    ranges = {"over", "from", "since"}
    assert ranges <= set(_at_the_end("trend count of any by day "))
    assert not ranges & set(_at_the_end("trend count of any since '2026-01-01' "))


def test_text_behind_the_position_does_not_matter() -> None:
    assert complete("trend cou??", 9, _Words()) == ["count"]
    assert complete("trend", -3, _Words()) == _at_the_end("")
    assert complete("tre", 99, _Words()) == ["trend"]


def test_every_rule_that_takes_a_name_is_known_to_completion() -> None:
    taking = {
        rule.alias or rule.origin.name
        for rule in parser().rules
        for symbol in rule.expansion
        if symbol.name in {"WORD", "NAME_IN_QUOTES"}
    }
    assert taking - NAMING_RULES.keys() - FREE_RULES == set()


def test_completion_is_fast() -> None:
    _at_the_end("trend ")
    long = "trend count of any where " + " or ".join(f"path = '/{number}'" for number in range(100)) + " "
    began = time.process_time()
    assert "or" in _at_the_end(long)
    assert time.process_time() - began < 0.05
