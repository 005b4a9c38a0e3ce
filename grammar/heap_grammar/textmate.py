"""The language's words for editors: `heap.tmLanguage.json`, a TextMate grammar, which most editors can read.

A highlighter sees one line and no grammar. So a word has one colour wherever it stands; the grammar says which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from heap_grammar.outline import Choice, Expression, Literal, Name, Pattern, Rule, Sequence, outline

__all__ = ["SCOPES", "textmate"]

SCOPES: dict[str, str] = {
    "COMMENT": "comment.line.double-dash",
    "STRING": "string.quoted.single",
    "NAME_IN_QUOTES": "entity.name.class",
    "AGGREGATE": "support.function",
    "AGGREGATE_OF": "support.function",
    "UNIT": "support.constant.unit",
    "USER_DOT": "variable.language",
    "NUMBER": "constant.numeric",
    "INTEGER": "constant.numeric",
    "NUMBER_OF_PERCENT": "constant.numeric",
    "WORD": "variable.other",
}
"""Scopes of terminals that are regular expressions. Those of several words, such as `in last`, are keywords."""

_PUNCTUATION = "(),;"


def textmate() -> str:
    """The TextMate grammar, JSON."""
    rules = outline()
    terminals = {rule.name: rule for rule in rules if rule.is_terminal}
    regexes = {name: rule.expression.regex for name, rule in terminals.items() if isinstance(rule.expression, Pattern)}
    quoted = [_quoted(name, regexes[name][0]) for name in ("STRING", "NAME_IN_QUOTES")]
    comment = _match(SCOPES["COMMENT"], regexes["COMMENT"])
    aside = {"COMMENT", "STRING", "NAME_IN_QUOTES", "WORD"}
    others = [
        _match(SCOPES.get(name, "keyword.other"), rf"(?<![\w$.])(?i:{regex})")
        for name, regex in regexes.items()
        if name not in aside
    ]
    symbols = {text for rule in rules for text in rule.literals() if not text.isalpha()}
    patterns = [
        comment,
        *quoted,
        *others,
        *(_match(scope, rf"(?<![\w$])(?i:{_either(group)})(?![\w$])") for scope, group in _keywords(rules).items()),
        _match("punctuation.separator", _either(symbol for symbol in symbols if symbol in _PUNCTUATION)),
        _match("keyword.operator", _either(symbol for symbol in symbols if symbol not in _PUNCTUATION)),
        _match(SCOPES["WORD"], regexes["WORD"]),
    ]
    grammar = {
        "$schema": "https://raw.githubusercontent.com/martinring/tmlanguage/master/tmlanguage.json",
        "name": "heap",
        "scopeName": "source.heap",
        "fileTypes": ["heap"],
        "patterns": patterns,
    }
    return json.dumps(grammar, indent=2, ensure_ascii=False) + "\n"


def _match(scope: str, regex: str) -> dict[str, str]:
    return {"name": f"{scope}.heap", "match": regex}


def _quoted(name: str, quote: str) -> dict[str, object]:
    """A quoted text, which may go on over several lines; a quote inside is written twice."""
    twice = {"name": "constant.character.escape.heap", "match": quote * 2}
    return {"name": f"{SCOPES[name]}.heap", "begin": quote, "end": rf"{quote}(?!{quote})", "patterns": [twice]}


def _either(choices: Iterable[str]) -> str:
    """Any of them, the longest first: `<=` before `<`."""
    return "|".join(re.escape(choice) for choice in sorted(choices, key=lambda choice: (-len(choice), choice)))


def _keywords(rules: tuple[Rule, ...]) -> dict[str, list[str]]:
    """Scope -> keywords, each in one scope: by the rules it stands in."""
    every = {text: None for rule in rules for text in rule.literals() if text.isalpha()}
    by_name = {rule.name: rule for rule in rules}
    statements = {next(by_name[name].literals()) for name in _names(by_name["statement"].expression)}
    values = {text for text in by_name["value"].literals() if text.isalpha()}
    of_predicates = _reachable(by_name, "predicate")
    tests = {text for name in of_predicates for text in by_name[name].literals() if text.isalpha()} - values
    scopes: dict[str, list[str]] = {
        "keyword.control": [text for text in every if text in statements],
        "constant.language": [text for text in every if text in values],
        "keyword.operator.word": [text for text in every if text in tests - statements],
    }
    grouped = {text for group in scopes.values() for text in group}
    return {**scopes, "keyword.other": [text for text in every if text not in grouped]}


def _reachable(by_name: dict[str, Rule], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in found:
            found.add(name)
            waiting += _names(by_name[name].expression)
    return found


def _names(expression: Expression) -> list[str]:
    match expression:
        case Name(name=name):
            return [name]
        case Sequence(parts=parts) | Choice(parts=parts):
            return [name for part in parts for name in _names(part)]
        case Literal() | Pattern():
            return []
    return _names(expression.part)
