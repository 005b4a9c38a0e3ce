"""What may stand at a place of a statement: the grammar says which words fit there, the app which names it has.

Everything follows from the parser's state behind the text before that place: the terminals it takes next, and the rules
that would be made of them. A new keyword, unit or clause completes without a line here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeAlias

from lark import Token
from lark.exceptions import UnexpectedInput
from lark.parsers.lalr_analysis import Shift

from heap_compiler.analyses import ANALYSES
from heap_compiler.bind import CLAUSES_EVERYWHERE, written_name
from heap_compiler.errors import HeapError
from heap_compiler.parse import MAX_STATEMENT_LENGTH, clause_rules, parse, parser
from heap_compiler.schema import EVENT_COLUMNS, USER_COLUMNS
from heap_compiler.syntax import AnalysisStatement, DefinedEvent, Step
from heap_grammar.words import words

__all__ = ["FREE_RULES", "NAMING_RULES", "Vocabulary", "complete"]


_Reader: TypeAlias = Any  # Lark's InteractiveParser, whose methods have no types


class Vocabulary(Protocol):
    """The names of one app, the most useful first. Those of events and segments are all there are."""

    def event_names(self) -> Iterable[str]:
        """All defined events."""

    def segment_names(self) -> Iterable[str]:
        """All segments."""

    def event_types(self) -> Iterable[str]:
        """Types of captured events."""

    def event_properties(self) -> Iterable[str]:
        """Keys of the events' custom properties."""

    def user_properties(self) -> Iterable[str]:
        """Keys of the users' properties."""


def complete(text: str, position: int | None, vocabulary: Vocabulary) -> list[str]:
    """The words, names and symbols that may stand at a place of a statement.

    Args:
        text: the statement, finished or not. What follows the position does not matter.
        position: offset in characters; None is the end of the text.
        vocabulary: the names to choose from.

    Returns:
        Whole words that begin with the one before the position, whatever its case: names of events, then properties,
        keywords, and symbols. Nothing inside a string or a comment, or where the text before is not of the language.
    """
    before = text if position is None else text[: max(position, 0)]
    if len(before) > MAX_STATEMENT_LENGTH:
        return []
    split = _split(before)
    if split is None:
        return []
    known, begun = split
    found = [*_fitting(known, vocabulary), *_second_words(known, vocabulary)]
    return [candidate for candidate in dict.fromkeys(found) if _continues(candidate, begun)]


def _second_words(known: str, vocabulary: Vocabulary) -> list[str]:
    """Where the text ends with the first word of a keyword of two, the second."""
    before, first = _last_word(known)
    if not first or not known[len(before) + len(first) :].isspace():
        return []
    fitting = _fitting(before, vocabulary)
    return [word.split(" ")[1] for word in fitting if word.split(" ")[0] == first.lower() and word.count(" ") == 1]


# A text in pieces, the last of which may be unfinished.
_PIECE = re.compile(r"""--[^\n]*|'(?:''|[^'])*'?|"(?:""|[^"])*"?|[\w$]+|[-!<>=]+|\s+|.""", re.S)


def _split(before: str) -> tuple[str, str] | None:
    """What is finished, and the word, quoted name or operator that the text ends with; None in a string or comment."""
    last = ""
    for piece in _PIECE.finditer(before):
        last = piece[0]
    if last.startswith("--"):
        return None
    closed = last.count(last[:1]) % 2 == 0
    if last.startswith("'"):
        return (before, "") if closed else None
    if last.startswith('"') and closed:
        return before, ""
    begun = last if re.match(r'["\w$!<>=-]', last) else ""
    return before[: len(before) - len(begun)], begun


def _continues(candidate: str, begun: str) -> bool:
    whole, part = candidate.casefold(), begun.casefold()
    return whole.startswith(part) or whole.lstrip('"').startswith(part)


def _fitting(known: str, vocabulary: Vocabulary) -> list[str]:
    """What may follow the text; nothing where it is not of the language."""
    return [found for reader in _readers(known) for found in _candidates(reader, known, vocabulary)]


def _readers(known: str) -> list[_Reader]:
    """The parser behind the text, if it is of the language; and behind what it is if its last word is a keyword only
    together with what follows, such as `sum` with its parenthesis."""
    reader = _read(known)
    readers = [] if reader is None else [reader]
    text, last = _last_word(known)
    before = _read(text) if last else None
    if before is not None:
        ways = _accepted(before).items()
        readers += [ahead for name, ahead in ways if last.lower() in _listed().get(name, ())]
    return readers


def _last_word(known: str) -> tuple[str, str]:
    """The text before its last word, and that word; empty where the text ends with something else."""
    start, last = 0, ""
    for piece in _PIECE.finditer(known):
        if not piece[0].isspace() and not piece[0].startswith("--"):
            start, last = piece.start(), piece[0]
    return (known[:start], last) if re.fullmatch(r"[\w$]+", last) else (known, "")


def _read(known: str) -> _Reader | None:
    reader = parser().parse_interactive(known)
    reader.parser_state.parse_conf = _noting(reader.parser_state.parse_conf)
    try:
        reader.exhaust_lexer()
    except UnexpectedInput:
        return None
    return reader


@cache
def _listed() -> dict[str, tuple[str, ...]]:
    """Terminal -> the words it stands for."""
    return {terminal.name: words(terminal.pattern.to_regexp()) for terminal in parser().terminals}


def _is_count(known: str) -> bool:
    """The text ends with a whole number other than 1."""
    before, last = _last_word(known)
    return last.isdecimal() and last != "1" and not before.endswith(".")


def _candidates(reader: _Reader, known: str, vocabulary: Vocabulary) -> Iterator[str]:
    taken, listed = _accepted(reader), _listed()
    shown = [name for name in listed if name in taken and not _is_spent(reader, name)]
    place = _Place(vocabulary, frozenset(word for name in taken for word in listed.get(name, ())), known)
    rules = {rule for name in shown if not listed[name] for rule in _made_of(taken[name])}
    for rule, names_of in NAMING_RULES.items():  # their order, not the grammar's: events come before properties
        if rule in rules:
            yield from names_of(place)
    is_count = _is_count(known)
    fitting = [
        word
        for name in shown
        for word in _in_number(listed[name], plural=is_count and not _is_before_a_word(taken[name]))
    ]
    yield from (word for word in fitting if word[0].isalpha())
    yield from (word for word in fitting if not word[0].isalpha())


def _in_number(choices: tuple[str, ...], *, plural: bool) -> Iterator[str]:
    """Of words that come in two numbers (`day`, `days`) the one that fits; all others."""
    for word in choices:
        other = word.removesuffix("s") if word.endswith("s") else f"{word}s"
        if other not in choices or word.endswith("s") == plural:
            yield word


def _is_before_a_word(ahead: _Reader) -> bool:
    """Only a word can follow, so that a unit there says of what kind it is: `24 hour windows`, but `24 hours`."""
    return all(
        action is Shift and all(word.isalpha() for word in _listed().get(name) or ("",))
        for name, (action, _) in ahead.choices().items()
    )


# The parser's state


def _accepted(reader: _Reader) -> dict[str, _Reader]:
    """The terminals that may come next, each with the parser behind it."""
    after = {}
    choices = reader.choices()
    for name in _listed():  # in the order of the grammar, which is the same in every process
        if name not in choices:
            continue
        ahead = _fed(reader, (name,))
        if ahead is not None:
            after[name] = ahead
    return after


def _fed(reader: _Reader, names: Iterable[str]) -> _Reader | None:
    """The parser after these terminals, or None where they do not fit. Their text does not matter to the grammar."""
    ahead = reader.copy(deepcopy_values=False)
    try:
        for name in names:
            ahead.result = ahead.feed_token(Token(name, ""))
    except UnexpectedInput:
        return None
    return ahead


def _made_of(ahead: _Reader) -> set[str]:
    """The rules that end with the terminal just read: what a name there stands for."""
    return {_name(argument) for action, argument in ahead.choices().values() if action is not Shift}


def _name(rule: Any) -> str:
    return rule.alias or str(rule.origin.name)


def _is_spent(reader: _Reader, terminal: str) -> bool:
    """The terminal can only begin clauses that the analysis does not take, or has already."""
    clauses = []
    for rule, sentence in _clause_sentences():
        if sentence[0] != terminal:
            continue
        ahead = _fed(reader, (*sentence, "$END"))
        holder = None if ahead is None else _holder(ahead.result, rule)
        if holder is not None:
            clauses.append(_is_free_clause(holder, rule))
    return bool(clauses) and not any(clauses)


class _Part(NamedTuple):
    """What a rule was made of; terminals are left out."""

    rule: str
    parts: tuple[_Part, ...]


def _noting(conf: Any) -> Any:
    """The parser's configuration, but making `_Part`s: Lark's own trees change while copies of the parser go on."""
    noting = copy(conf)
    noting.callbacks = _Noting()
    return noting


class _Noting(dict[Any, Any]):
    def __bool__(self) -> bool:
        return True

    def __missing__(self, rule: Any) -> Callable[[list[Any]], _Part]:
        return lambda values: _Part(_name(rule), tuple(_parts(values)))


def _parts(values: list[Any]) -> Iterator[_Part]:
    """The parts among a rule's values, with those of rules that the grammar has only to share or repeat."""
    for value in values:
        if isinstance(value, _Part):
            yield from value.parts if value.rule.startswith("_") else (value,)


def _is_free_clause(holder: _Part, rule: str) -> bool:
    """The clause that ends the analysis is one that the analysis takes, and does not have already."""
    kinds = clause_rules()
    used = [kinds.get(part.rule) for part in holder.parts]
    takes = {analysis.keyword: analysis.clauses for analysis in ANALYSES}.get(holder.rule)
    kind = kinds[rule]
    return (kind.repeatable or used.count(kind) == 1) and (takes is None or kind in (*takes, *CLAUSES_EVERYWHERE))


def _holder(part: _Part, rule: str) -> _Part | None:
    """What the clause that ends it is a clause of; None where the last words became something else."""
    while part.parts and part.parts[-1].rule != rule:
        part = part.parts[-1]
    return part if part.parts else None


@cache
def _clause_sentences() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """For every way to write a clause its rule, and the shortest sentence of it in terminals."""
    rules = parser().rules
    shortest: dict[str, tuple[str, ...]] = {}
    while True:
        before = dict(shortest)
        for rule in rules:
            sentence = _sentence(rule, shortest)
            known = shortest.get(rule.origin.name)
            if sentence is not None and (known is None or len(sentence) < len(known)):
                shortest[rule.origin.name] = sentence
        if shortest == before:
            break
    found = ((_name(rule), _sentence(rule, shortest)) for rule in rules if _name(rule) in clause_rules())
    return tuple((name, sentence) for name, sentence in found if sentence)


def _sentence(rule: Any, shortest: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    parts = [(part.name,) if part.is_term else shortest.get(part.name) for part in rule.expansion]
    return None if None in parts else tuple(name for part in parts for name in part or ())


# Names


class _Place(NamedTuple):
    """Where a name is wanted: the names there are, the bare words that mean something else there, the text before."""

    vocabulary: Vocabulary
    keywords: frozenset[str]
    known: str


def _event_names(place: _Place) -> Iterator[str]:
    return map(_quoted, sorted(place.vocabulary.event_names()))


def _segment_names(place: _Place) -> Iterator[str]:
    return map(_quoted, sorted(place.vocabulary.segment_names()))


def _event_types(place: _Place) -> Iterator[str]:
    return (name for name in place.vocabulary.event_types() if _is_bare(name, place))


def _node_names(place: _Place) -> Iterator[str]:
    """The nodes that the paths lead across; without the clause that names one of them the text is a statement."""
    text, _ = _last_word(place.known)
    try:
        statement = parse(text)
    except HeapError:
        return
    for node in statement.head if isinstance(statement, AnalysisStatement) else ():
        if isinstance(node, Step):
            name = written_name(node.event, text) if node.label is None else node.label
            is_defined = node.label is None and isinstance(node.event, DefinedEvent)
            yield name if not is_defined and _is_bare(name, place) else _quoted(name)


def _event_properties(place: _Place) -> Iterator[str]:
    for name in (*EVENT_COLUMNS, *place.vocabulary.event_properties()):
        yield name if _is_bare(name, place) else f"property {_quoted(name)}"


def _event_properties_in_quotes(place: _Place) -> Iterator[str]:
    return map(_quoted, place.vocabulary.event_properties())


def _user_properties(place: _Place) -> Iterator[str]:
    return (name for name in (*USER_COLUMNS, *place.vocabulary.user_properties()) if _is_bare(name, place))


def _user_properties_in_quotes(place: _Place) -> Iterator[str]:
    return (_quoted(name) for name in place.vocabulary.user_properties() if not _is_bare(name, place))


def _is_bare(name: str, place: _Place) -> bool:
    return re.fullmatch(r"([^\W\d]|\$)[\w$]*", name) is not None and name.lower() not in place.keywords


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


NAMING_RULES: dict[str, Callable[[_Place], Iterator[str]]] = {
    "defined_event": _event_names,
    "event_name": _event_names,
    "segment_name": _segment_names,
    "in_segment": _segment_names,
    "_node_name": _node_names,
    "raw_event": _event_types,
    "event_property": _event_properties,
    "event_property_in_quotes": _event_properties_in_quotes,
    "user_property": _user_properties,
    "user_property_in_quotes": _user_properties_in_quotes,
}
"""Grammar rules that end with a name the app knows, and the names that may stand there."""

FREE_RULES = {"label", "string", "string_value", "number_value"}
"""Grammar rules that end with a word, string or number of the analyst's own."""
