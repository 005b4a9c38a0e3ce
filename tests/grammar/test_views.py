"""The views of the grammar are those of today's grammar, and complete."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import heap_grammar
from heap_compiler.parse import parser
from heap_grammar.__main__ import VIEWS
from heap_grammar.outline import Pattern, outline
from heap_grammar.textmate import SCOPES, textmate
from heap_grammar.words import words

_FOLDER = Path(heap_grammar.__file__).parents[1]
_EXAMPLES = re.findall(r"```heap\n(.*?)\n```", heap_grammar.reference_text(), re.S)
_SCOPED = [
    *_EXAMPLES,
    "TREND count of any -- it's a \"comment\"\nwhere path = 'it''s' and amount in (1, -2.5e3, TRUE) by weeks;",
    "funnel any -> any where my_event = 'several\nlines' or days_left is not set",
]


@pytest.mark.parametrize("name", VIEWS)
def test_the_views_are_current(name: str) -> None:
    assert (_FOLDER / name).read_text(encoding="utf-8") == VIEWS[name](), "run: python -m heap_grammar"


def test_the_outline_has_every_rule_and_terminal_once() -> None:
    names = [rule.name for rule in outline()]
    assert len(names) == len(set(names))
    rules = {rule.origin.name.lstrip("_") for rule in parser().rules if not rule.origin.name.startswith("__")}
    assert rules <= set(names)
    written = {terminal.name.lstrip("_") for terminal in parser().terminals if terminal.pattern.type == "re"} - {"WS"}
    assert written <= {rule.name for rule in outline() if rule.is_terminal}


@pytest.mark.parametrize("name", ["GRAMMAR.md", "railroad.html"])
def test_every_link_leads_to_a_rule(name: str) -> None:
    page = VIEWS[name]()
    targets = set(re.findall(r"id=[\"'](\w+)[\"']", page))
    links = set(re.findall(r"(?:\(|href=[\"'])#(\w+)", page))
    assert {rule.name for rule in outline()} == targets
    assert links <= targets


def test_every_regular_expression_among_the_terminals_has_a_scope() -> None:
    patterns = {rule.name: rule.expression.regex for rule in outline() if isinstance(rule.expression, Pattern)}
    assert {name for name, regex in patterns.items() if not words(regex)} <= SCOPES.keys() <= patterns.keys()


def _scopes(text: str) -> list[str]:
    """The scope of every character, as a TextMate highlighter finds it: line by line, first match first."""
    patterns = json.loads(textmate())["patterns"]
    scopes: list[str] = []
    within: dict[str, Any] | None = None
    for line in text.splitlines(keepends=True):
        at = 0
        while at < len(line):
            rules = [(within["end"], within), *((p["match"], within) for p in within["patterns"])] if within else [
                (p.get("match") or p["begin"], p) for p in patterns
            ]  # fmt: skip
            found = [(match, p) for regex, p in rules if (match := re.compile(regex).match(line, at))]
            if not found:
                scopes.append(within["name"] if within else "")
                at += 1
                continue
            match, rule = found[0]
            scopes += [rule["name"]] * (match.end() - at)
            if within is None and "begin" in rule:
                within = rule
            elif within is not None and match.re.pattern == within["end"]:
                within = None
            at = match.end()
    return scopes


@pytest.mark.parametrize("example", _SCOPED)
def test_every_word_of_every_example_has_its_scope(example: str) -> None:
    scopes = _scopes(example)
    assert len(scopes) == len(example)
    texts = {terminal.name for terminal in parser().terminals if terminal.pattern.type == "str"}
    keywords = {t.pattern.value for t in parser().terminals if t.name in texts and t.pattern.value.isalpha()}
    between = set(range(len(example)))
    for token in parser().parse_interactive(example).exhaust_lexer():
        between -= set(range(token.start_pos, token.end_pos))
        found = set(scopes[token.start_pos : token.end_pos])
        is_symbol = token.type != "STRING" and re.fullmatch(r"\W+", token)
        if token.type in texts or is_symbol or token.lower() in keywords:
            assert len(found) == 1, token
            (scope,) = found
            assert scope.startswith(("keyword.", "constant.language", "punctuation.")), token
        else:
            assert found == {f"{SCOPES.get(token.type, 'keyword.other')}.heap"}, token
    assert {scopes[at] for at in between} <= {"", f"{SCOPES['COMMENT']}.heap"}
