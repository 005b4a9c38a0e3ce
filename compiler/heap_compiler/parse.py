"""Text to syntax tree. The grammar is `heap_grammar`'s; Lark's LALR parser with a contextual lexer reads it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from lark import Lark, Token, Tree, UnexpectedInput
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedToken
from lark.tree import Meta

import heap_grammar
from heap_compiler import syntax
from heap_compiler.errors import HeapError, Span, nearest

__all__ = [
    "MAX_STATEMENT_LENGTH",
    "clause_rules",
    "parse",
    "parse_event",
    "parse_members",
    "parser",
    "save_parser",
]

MAX_STATEMENT_LENGTH = 100_000
"""Characters. A longer statement is refused: nothing a person writes is near it."""

_SAVED_PARSER = Path(__file__).with_name("heap.parser")


def parse(text: str) -> syntax.Statement:
    """The statement in `text`.

    Raises:
        HeapError: the text is not a statement of the language; the error points at the first word that does not fit.
    """
    if len(text) > MAX_STATEMENT_LENGTH:
        raise HeapError(f"a statement may have {MAX_STATEMENT_LENGTH:,} characters, this one has {len(text):,}")
    if "\x00" in text:
        position = text.index("\x00")
        raise HeapError("a statement cannot contain the NUL character", Span(position, position + 1))
    try:
        return cast(syntax.Statement, _BUILDER.build(parser().parse(text)))
    except UnexpectedInput as unexpected:
        raise _syntax_error(text, unexpected) from None
    except RecursionError:
        raise HeapError("the statement is nested too deeply", sqlstate="54001") from None


@lru_cache(maxsize=1024)
def parse_event(text: str) -> syntax.Event:
    """An event expression alone, such as the stored text of a definition. Those of an app are read again and again.

    Raises:
        HeapError: as `parse`; positions are those of `text`.
    """
    return cast(syntax.Define, _parse_after('define "" as ', text)).event


def parse_members(text: str) -> syntax.Members:
    """A condition on users alone, such as the stored text of a segment: `where country = 'DE'`.

    Raises:
        HeapError: as `parse`; positions are those of `text`.
    """
    return cast(syntax.DefineSegment, _parse_after('segment "" as users ', text)).members


def _parse_after(prefix: str, text: str) -> syntax.Statement:
    try:
        return parse(prefix + text)
    except HeapError as error:
        if error.span is not None:
            start, end = (max(0, offset - len(prefix)) for offset in error.span)
            error.span = Span(start, end)
        raise


def save_parser() -> Path:
    """Write the generated parser beside this module, so that a new process loads it instead of generating it.

    Called once at installation, into the directory PostgreSQL's Python reads; never in a source tree.
    """
    with _SAVED_PARSER.open("wb") as file:
        _generate_parser().save(file)
    return _SAVED_PARSER


def _generate_parser() -> Lark:
    return Lark(heap_grammar.grammar_text(), parser="lalr", propagate_positions=True, maybe_placeholders=True)


@cache
def parser() -> Lark:
    """The language's parser: the one saved at installation, else generated. A process makes it once."""
    try:
        with _SAVED_PARSER.open("rb") as file:
            return Lark.load(file)
    except (OSError, pickle.UnpicklingError, EOFError):
        return _generate_parser()


@cache
def clause_rules() -> dict[str, type[syntax.Clause]]:
    """The clauses of the language: grammar rule -> the node made of it."""
    made = {name: get_type_hints(method).get("return") for name, method in vars(_TreeBuilder).items()
            if callable(method) and not name.startswith("_")}  # fmt: skip
    return {name: node for name, node in made.items() if isinstance(node, type) and issubclass(node, syntax.Clause)}


# Names of terminals as an analyst would say them; keywords say themselves.
_TERMINAL_NAMES = {
    "NAME_IN_QUOTES": 'a defined event such as "Signed up"',
    "WORD": "a name",
    "STRING": "a string such as 'text'",
    "INTEGER": "a whole number",
    "NUMBER": "a number",
    "UNIT": "a unit of time such as day",
    "ARROW": "->",
    "LSQB": "[",
    "RSQB": "]",
    "COMPARE": "a comparison such as =",
    "MODEL": "first, last, linear or position",
    "AGGREGATE": "an aggregate such as sum(amount)",
    "AGGREGATE_OF": "an aggregate over users such as median of count of any per user",
    "PLUS_OR_MINUS": "+ or -",
    "TIMES_OR_OVER": "* or /",
    "USER_DOT": "a user property such as user.plan",
    "PAGE": "a page such as entry path",
    "LPAR": "(",
    "RPAR": ")",
    "COMMA": "a comma",
    "IN_LAST": "in last",
    "IN_PREVIOUS": "in previous",
    "NUMBER_OF_PERCENT": "a part such as 10%",
    "_TIMES": "times",
    "SEMICOLON": None,
    "$END": "the end of the statement",
}


@cache
def _keywords() -> dict[str, str]:
    """Terminal name -> the keyword it stands for."""
    words: dict[str, str] = {}
    for terminal in parser().terminals:
        value = terminal.pattern.value
        if value.isalpha():
            words[terminal.name] = value.lower()
    return words


def _syntax_error(text: str, unexpected: UnexpectedInput) -> HeapError:
    if isinstance(unexpected, UnexpectedCharacters):
        accepted, start = unexpected.allowed or set(), unexpected.pos_in_stream or 0
        word = _word_at(text, start)
    elif isinstance(unexpected, UnexpectedToken):
        accepted, token = unexpected.accepts or unexpected.expected, unexpected.token
        start = len(text.rstrip()) if token.type == "$END" else token.start_pos or 0
        word = "" if token.type == "$END" else _word_at(text, start)
    else:
        accepted = set(cast(UnexpectedEOF, unexpected).expected)
        start, word = len(text.rstrip()), ""
    span = Span(start, max(start + len(word), start + 1))
    if word[:1] in {"'", '"'} and (len(word) == 1 or word[-1] != word[0]):
        return HeapError(f"this {'string' if word[0] == chr(39) else 'name'} has no closing {word[0]}", span,
                         sqlstate="42601")  # fmt: skip
    if word and not word.isprintable():
        return HeapError(f"unexpected character U+{ord(word[0]):04X}", span, "remove it", sqlstate="42601")
    keywords = {_keywords()[name] for name in accepted if name in _keywords()}
    others = [_TERMINAL_NAMES[name] for name in sorted(accepted) if _TERMINAL_NAMES.get(name)]
    expected = [name for name in others if name] + sorted(keywords)
    found = f"unexpected {word}" if word else "the statement ends too early"
    units = get_args(syntax.Unit) if "UNIT" in accepted else ()
    models = get_args(syntax.Model) if "MODEL" in accepted else ()
    close = nearest(word, {*keywords, *units, *models}) if word else None
    if close is not None:
        return HeapError(found, span, f"did you mean {close}?", sqlstate="42601")
    hint = f"expected {_either(expected)}" if expected else None
    return HeapError(found, span, hint, sqlstate="42601")


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else ", ".join(choices[:-1]) + " or " + choices[-1]


def _word_at(text: str, start: int) -> str:
    """The word, quoted text or single character that begins at `start`."""
    if start >= len(text):
        return ""
    if text[start] in "'\"":
        end = text.find(text[start], start + 1)
        line_end = text.find("\n", start)
        return text[start : end + 1] if end >= 0 else text[start : line_end if line_end >= 0 else None]
    end = start
    while end < len(text) and (text[end].isalnum() or text[end] in "_$"):
        end += 1
    return text[start : max(end, start + 1)]


def _unquote(token: str) -> str:
    quote = token[0]
    return token[1:-1].replace(quote * 2, quote)


def _number(token: Token) -> Decimal:
    """A number every PostgreSQL numeric operation can take: at most 300 digits on either side of the point."""
    try:
        number = Decimal(str(token)) if len(token) <= 100 else None
    except InvalidOperation:  # an exponent beyond what Decimal holds
        number = None
    if number is None or (number and not -300 <= number.adjusted() <= 300):
        span = Span(cast(int, token.start_pos), cast(int, token.end_pos))
        raise HeapError(f"the number {token[:20]} is out of bounds", span, "between -1e300 and 1e300")
    return number


def _unit(token: Token) -> syntax.Unit:
    return cast(syntax.Unit, str(token).lower().removesuffix("s"))


_COUNT_LIMIT = 1_000_000


def _count(token: Token) -> int:
    """A whole number in a clause: positive, and small enough that calendar arithmetic cannot overflow."""
    span = Span(cast(int, token.start_pos), cast(int, token.end_pos))
    if len(token) > 7 or not 1 <= int(token) <= _COUNT_LIMIT:
        raise HeapError(f"{token[:20]} is out of bounds", span, f"a whole number from 1 to {_COUNT_LIMIT:,}")
    return int(token)


def _span(meta: Meta) -> Span:
    return Span(meta.start_pos, meta.end_pos) if not meta.empty else Span(0, 0)


@dataclass(frozen=True)
class _SeriesOfNext:
    """`sum(amount)` in `sum(amount), p90(amount) of purchase`: a series that has no event yet."""

    span: Span
    function: Token
    property: syntax.Property
    label: str | None

    def of(self, following: syntax.Node) -> syntax.Series:
        """The series, with the event of the one after it."""
        assert isinstance(following, syntax.Series)
        if not isinstance(following.formula, syntax.Measure):
            raise HeapError("of what event?", self.span, f"{self.function}(...) of any")
        function, event = str(self.function).lower(), following.formula.event
        measure = syntax.Measure(span=self.span, function=function, property=self.property, event=event)  # type: ignore[arg-type]
        return syntax.Series(span=self.span, formula=measure, label=self.label)


class _TreeBuilder:
    """One method per rule of the grammar, each making the node of that rule. A rule without one is an analysis. It
    walks trees itself: lark's `Transformer` takes twice as long."""

    def build(self, tree: Tree[Token]) -> Any:
        """The node of the tree."""
        children = [self.build(child) if isinstance(child, Tree) else child for child in tree.children]
        rule = getattr(self, tree.data, None)
        return self._analysis(tree.data, children, tree.meta) if rule is None else rule(tree.meta, children)

    def _analysis(self, data: str, children: list[Any], meta: Meta) -> syntax.AnalysisStatement:
        nodes = [child for child in children if isinstance(child, syntax.Node)]
        return syntax.AnalysisStatement(
            span=_span(meta),
            keyword=str(data),
            head=tuple(node for node in nodes if not isinstance(node, syntax.Clause)),
            clauses=tuple(node for node in nodes if isinstance(node, syntax.Clause)),
        )

    # Statements

    def define(self, meta: Meta, children: list[Any]) -> syntax.Define:
        (name, name_span), event = children
        return syntax.Define(span=_span(meta), name=name, name_span=name_span, event=event)

    def drop_event(self, meta: Meta, children: list[Any]) -> syntax.DropEvent:
        ((name, name_span),) = children
        return syntax.DropEvent(span=_span(meta), name=name, name_span=name_span)

    def event_name(self, meta: Meta, children: list[Token]) -> tuple[str, Span]:
        return _unquote(children[0]), _span(meta)

    def segment(self, meta: Meta, children: list[Any]) -> syntax.DefineSegment:
        (name, name_span), members = children
        return syntax.DefineSegment(span=_span(meta), name=name, name_span=name_span, members=members)

    def drop_segment(self, meta: Meta, children: list[Any]) -> syntax.DropSegment:
        ((name, name_span),) = children
        return syntax.DropSegment(span=_span(meta), name=name, name_span=name_span)

    segment_name = event_name

    def members(self, meta: Meta, children: list[Any]) -> syntax.Members:
        return syntax.Members(span=_span(meta), predicate=children[0])

    # Heads

    def trend(self, meta: Meta, children: list[Any]) -> syntax.AnalysisStatement:
        """An aggregate without an event is of the event of the series after it."""
        nodes: list[syntax.Node] = []
        for child in reversed(children):
            nodes.append(child.of(nodes[-1]) if isinstance(child, _SeriesOfNext) else child)
        return self._analysis("trend", nodes[::-1], meta)

    def series_of_next(self, meta: Meta, children: list[Any]) -> _SeriesOfNext:
        return _SeriesOfNext(_span(meta), *children)

    def series(self, meta: Meta, children: list[Any]) -> syntax.Series:
        formula, label = children
        return syntax.Series(span=_span(meta), formula=formula, label=label)

    def arithmetic(self, meta: Meta, children: list[Any]) -> syntax.Arithmetic:
        left, operator, right = children
        return syntax.Arithmetic(span=_span(meta), left=left, operator=str(operator), right=right)  # type: ignore[arg-type]

    def constant(self, meta: Meta, children: list[Token]) -> syntax.Value:
        return self.number_value(meta, children)

    def per_user(self, meta: Meta, children: list[Any]) -> syntax.PerUser:
        function, measure = children
        return syntax.PerUser(span=_span(meta), function=str(function).lower(), measure=measure)  # type: ignore[arg-type]

    def measure(self, _: Meta, children: list[Any]) -> syntax.Measure:
        return cast(syntax.Measure, children[0])

    def count_of(self, meta: Meta, children: list[Any]) -> syntax.Measure:
        return syntax.Measure(span=_span(meta), function="count", property=None, event=children[0])

    def users_of(self, meta: Meta, children: list[Any]) -> syntax.Measure:
        return syntax.Measure(span=_span(meta), function="users", property=None, event=children[0])

    def sessions_of(self, meta: Meta, children: list[Any]) -> syntax.Measure:
        return syntax.Measure(span=_span(meta), function="sessions", property=None, event=children[0])

    def aggregate_of(self, meta: Meta, children: list[Any]) -> syntax.Measure:
        function, of, event = children
        return syntax.Measure(span=_span(meta), function=str(function).lower(), property=of, event=event)  # type: ignore[arg-type]

    def step(self, meta: Meta, children: list[Any]) -> syntax.Step:
        event, label = children
        return syntax.Step(span=_span(meta), event=event, label=label)

    def next_step(self, meta: Meta, children: list[Any]) -> syntax.Step:
        _, within, optional, step = children
        window = None if within is None else within.duration
        return syntax.Step(
            span=_span(meta), event=step.event, label=step.label, within=window, optional=optional is not None
        )

    def label(self, _: Meta, children: list[Token]) -> str:
        return str(children[0]) if children[0].type == "WORD" else _unquote(children[0])

    # Clauses

    def within(self, meta: Meta, children: list[Any]) -> syntax.Within:
        return syntax.Within(span=_span(meta), duration=children[0])

    def by(self, meta: Meta, children: list[Token]) -> syntax.By:
        return syntax.By(span=_span(meta), unit=_unit(children[0]))

    def over(self, meta: Meta, children: list[Token]) -> syntax.Over:
        return syntax.Over(span=_span(meta), count=_count(children[0]), unit=_unit(children[1]))

    def previous(self, meta: Meta, children: list[Token]) -> syntax.Over:
        count, unit = children
        return syntax.Over(span=_span(meta), count=_count(count), unit=_unit(unit), complete=True)

    def between_dates(self, meta: Meta, children: list[Any]) -> syntax.Over:
        return syntax.Over(span=_span(meta), start=children[0], end=children[1])

    def since(self, meta: Meta, children: list[Any]) -> syntax.Over:
        return syntax.Over(span=_span(meta), start=children[0])

    def where(self, meta: Meta, children: list[Any]) -> syntax.Where:
        return syntax.Where(span=_span(meta), predicate=children[0])

    def for_users_where(self, meta: Meta, children: list[Any]) -> syntax.ForUsersWhere:
        return syntax.ForUsersWhere(span=_span(meta), predicate=children[0])

    def for_users_in(self, meta: Meta, children: list[Any]) -> syntax.ForUsersIn:
        return syntax.ForUsersIn(span=_span(meta), segment=children[0])

    def sample(self, meta: Meta, children: list[Token]) -> syntax.Sample:
        percent = Decimal(children[0].rstrip("%").strip())
        if not 0 < percent <= 100:
            raise HeapError(f"a sample of {children[0]} is out of bounds", _span(meta), "more than 0%, at most 100%")
        return syntax.Sample(span=_span(meta), percent=percent)

    def reaching(self, meta: Meta, children: list[Any]) -> syntax.Reaching:
        step, but_not = (None if number is None else _count(number) for number in children)
        assert step is not None
        return syntax.Reaching(span=_span(meta), step=step, but_not=but_not)

    def limit(self, meta: Meta, children: list[Token]) -> syntax.Limit:
        return syntax.Limit(span=_span(meta), count=_count(children[0]))

    def group_by(self, meta: Meta, children: list[Any]) -> syntax.GroupBy:
        *properties, step = children
        number = None if step is None else _count(step)
        return syntax.GroupBy(span=_span(meta), properties=tuple(properties), step=number)

    def top(self, meta: Meta, children: list[Token]) -> syntax.Top:
        return syntax.Top(span=_span(meta), count=_count(children[0]))

    def follow(self, meta: Meta, children: list[Token]) -> syntax.Follow:
        return syntax.Follow(span=_span(meta), count=_count(children[0]), unit=_unit(children[1]))

    def with_total(self, meta: Meta, _: list[Any]) -> syntax.WithTotal:
        return syntax.WithTotal(span=_span(meta))

    def rolling(self, meta: Meta, children: list[Token | None]) -> syntax.Rolling:
        count, unit = children
        return syntax.Rolling(
            span=_span(meta),
            count=None if count is None else _count(count),
            unit=None if unit is None else _unit(unit),
        )

    def cumulative(self, meta: Meta, _: list[Any]) -> syntax.Cumulative:
        return syntax.Cumulative(span=_span(meta))

    def compared(self, meta: Meta, _: list[Any]) -> syntax.Compared:
        return syntax.Compared(span=_span(meta))

    def recurring(self, meta: Meta, _: list[Any]) -> syntax.Recurring:
        return syntax.Recurring(span=_span(meta))

    def in_any_order(self, meta: Meta, _: list[Any]) -> syntax.InAnyOrder:
        return syntax.InAnyOrder(span=_span(meta))

    def strictly(self, meta: Meta, _: list[Any]) -> syntax.StrictlyInOrder:
        return syntax.StrictlyInOrder(span=_span(meta))

    def without(self, meta: Meta, children: list[Any]) -> syntax.Without:
        event, *steps = children
        first, last = (None if step is None else _count(step) for step in steps)
        return syntax.Without(span=_span(meta), event=event, first=first, last=last)

    def holding(self, meta: Meta, children: list[Any]) -> syntax.Holding:
        return syntax.Holding(span=_span(meta), properties=tuple(children))

    def first_time(self, meta: Meta, _: list[Any]) -> syntax.FirstTime:
        return syntax.FirstTime(span=_span(meta))

    def counting(self, meta: Meta, children: list[Token]) -> syntax.Counting:
        return syntax.Counting(span=_span(meta), unit=str(children[0]).lower())  # type: ignore[arg-type]

    def streak(self, meta: Meta, _: list[Any]) -> syntax.Streak:
        return syntax.Streak(span=_span(meta))

    def at_least(self, meta: Meta, children: list[Token]) -> syntax.AtLeast:
        return syntax.AtLeast(span=_span(meta), count=_count(children[1]))

    def windows(self, meta: Meta, children: list[Token]) -> syntax.Windows:
        return syntax.Windows(span=_span(meta), count=_count(children[0]), unit=_unit(children[1]))

    def brackets(self, meta: Meta, children: list[Token]) -> syntax.Brackets:
        *ends, unit = children
        return syntax.Brackets(span=_span(meta), ends=tuple(_count(end) for end in ends), unit=_unit(unit))

    def even_bins(self, meta: Meta, children: list[Any]) -> syntax.Bins:
        return syntax.Bins(span=_span(meta), width=children[0], edges=())

    def bins_between(self, meta: Meta, children: list[Any]) -> syntax.Bins:
        return syntax.Bins(span=_span(meta), width=None, edges=tuple(children))

    def steps(self, meta: Meta, children: list[Token]) -> syntax.Steps:
        return syntax.Steps(span=_span(meta), count=_count(children[0]))

    def starts_from(self, meta: Meta, children: list[Token | syntax.Value]) -> syntax.StartsFrom:
        name, is_value = self._node_name(meta, children[0])
        return syntax.StartsFrom(span=_span(meta), name=name, is_value=is_value)

    def ends_at(self, meta: Meta, children: list[Token | syntax.Value]) -> syntax.EndsAt:
        name, is_value = self._node_name(meta, children[0])
        return syntax.EndsAt(span=_span(meta), name=name, is_value=is_value)

    def _node_name(self, meta: Meta, written: Token | syntax.Value) -> tuple[str, bool]:
        """The name, and whether it is a string."""
        return (self.label(meta, [written]), False) if isinstance(written, Token) else (str(written.value), True)

    def factors(self, meta: Meta, children: list[Any]) -> syntax.Factors:
        return syntax.Factors(span=_span(meta), factors=tuple(children))

    def at_least_users(self, meta: Meta, children: list[Token]) -> syntax.AtLeastUsers:
        return syntax.AtLeastUsers(span=_span(meta), count=_count(children[0]))

    def touch_model(self, meta: Meta, children: list[Any]) -> syntax.TouchModel:
        return syntax.TouchModel(span=_span(meta), model=str(children[0]).lower())  # type: ignore[arg-type]

    def touches(self, meta: Meta, children: list[Any]) -> syntax.Touches:
        return syntax.Touches(span=_span(meta), event=children[0])

    def duration(self, meta: Meta, children: list[Token]) -> syntax.Duration:
        return syntax.Duration(span=_span(meta), count=_count(children[0]), unit=_unit(children[1]))

    # Events

    def any_of(self, meta: Meta, children: list[Any]) -> syntax.AnyOf:
        return syntax.AnyOf(span=_span(meta), events=tuple(children))

    def filtered(self, meta: Meta, children: list[Any]) -> syntax.Filtered:
        event, predicate = children
        return syntax.Filtered(span=_span(meta), event=event, predicate=predicate)

    def any_event(self, meta: Meta, _: list[Any]) -> syntax.AnyEvent:
        return syntax.AnyEvent(span=_span(meta))

    def first_after(self, meta: Meta, children: list[Any]) -> syntax.FirstAfter:
        event, after, within = children
        return syntax.FirstAfter(span=_span(meta), event=event, after=after, within=within)

    def raw_event(self, meta: Meta, children: list[Token]) -> syntax.RawEvent:
        return syntax.RawEvent(span=_span(meta), type=str(children[0]))

    def defined_event(self, meta: Meta, children: list[Token]) -> syntax.DefinedEvent:
        return syntax.DefinedEvent(span=_span(meta), name=_unquote(children[0]))

    # Predicates

    def or_(self, meta: Meta, children: list[Any]) -> syntax.Or:
        return syntax.Or(span=_span(meta), predicates=tuple(children))

    def and_(self, meta: Meta, children: list[Any]) -> syntax.And:
        return syntax.And(span=_span(meta), predicates=tuple(children))

    def not_(self, meta: Meta, children: list[Any]) -> syntax.Not:
        return syntax.Not(span=_span(meta), predicate=children[0])

    def compare(self, meta: Meta, children: list[Any]) -> syntax.Compare:
        of, operator, value = children
        written = "!=" if operator == "<>" else str(operator)
        return syntax.Compare(span=_span(meta), property=of, operator=written, value=value)  # type: ignore[arg-type]

    def in_list(self, meta: Meta, children: list[Any]) -> syntax.InList:
        of, negation, *values = children
        return syntax.InList(span=_span(meta), property=of, negated=negation is not None, values=tuple(values))

    def between(self, meta: Meta, children: list[Any]) -> syntax.Between:
        of, negation, low, high = children
        return syntax.Between(span=_span(meta), property=of, negated=negation is not None, low=low, high=high)

    def text_test(self, meta: Meta, children: list[Any]) -> syntax.TextTest:
        of, negation, operator, text = children
        return syntax.TextTest(
            span=_span(meta), property=of, negated=negation is not None, operator=operator, text=text
        )

    def contains(self, _: Meta, __: list[Any]) -> str:
        return "contains"

    def starts_with(self, _: Meta, __: list[Any]) -> str:
        return "starts_with"

    def ends_with(self, _: Meta, __: list[Any]) -> str:
        return "ends_with"

    def like(self, _: Meta, __: list[Any]) -> str:
        return "like"

    def ilike(self, _: Meta, __: list[Any]) -> str:
        return "ilike"

    def matches(self, _: Meta, __: list[Any]) -> str:
        return "matches"

    def is_set(self, meta: Meta, children: list[Any]) -> syntax.IsSet:
        return syntax.IsSet(span=_span(meta), property=children[0], negated=False)

    def is_not_set(self, meta: Meta, children: list[Any]) -> syntax.IsSet:
        return syntax.IsSet(span=_span(meta), property=children[0], negated=True)

    def element_matches(self, meta: Meta, children: list[Any]) -> syntax.ElementMatches:
        return syntax.ElementMatches(span=_span(meta), selector=children[0])

    def did(self, meta: Meta, children: list[Any]) -> syntax.Did:
        event, how_often, during = children
        least, most = (1, None) if how_often is None else how_often
        return syntax.Did(span=_span(meta), event=event, least=least, most=most, during=during)

    def did_not(self, meta: Meta, children: list[Any]) -> syntax.Did:
        event, during = children
        return syntax.Did(span=_span(meta), event=event, least=None, most=0, during=during)

    def did_then(self, meta: Meta, children: list[Any]) -> syntax.DidThen:
        *events, within, during = children
        return syntax.DidThen(span=_span(meta), events=tuple(events), within=within, during=during)

    def how_often(self, _: Meta, children: list[Token]) -> tuple[int | None, int | None]:
        word, times = str(children[0]).lower(), _count(children[1])
        return {"least": (times, None), "most": (None, times), "exactly": (times, times)}[word]

    def in_last(self, meta: Meta, children: list[Token]) -> syntax.Over:
        return self.over(meta, children[1:])

    def in_previous(self, meta: Meta, children: list[Token]) -> syntax.Over:
        return self.previous(meta, children[1:])

    def in_segment(self, meta: Meta, children: list[Token]) -> syntax.InSegment:
        return syntax.InSegment(span=_span(meta), name=_unquote(children[0]))

    def event_property(self, meta: Meta, children: list[Token]) -> syntax.Property:
        return syntax.Property(span=_span(meta), of_user=False, name=str(children[0]))

    def event_property_in_quotes(self, meta: Meta, children: list[Token]) -> syntax.Property:
        return syntax.Property(span=_span(meta), of_user=False, name=_unquote(children[0]))

    def user_property(self, meta: Meta, children: list[Token]) -> syntax.Property:
        return syntax.Property(span=_span(meta), of_user=True, name=str(children[1]))

    def user_property_in_quotes(self, meta: Meta, children: list[Token]) -> syntax.Property:
        return syntax.Property(span=_span(meta), of_user=True, name=_unquote(children[1]))

    def page_property(self, meta: Meta, children: list[Any]) -> syntax.PageProperty:
        page, of = children
        if of.of_user:
            raise HeapError("a property of the user is the same on every page", of.span, f"leave out {page}")
        return syntax.PageProperty(span=_span(meta), of_user=False, name=of.name, page=str(page).lower())  # type: ignore[arg-type]

    # Words

    def string(self, meta: Meta, children: list[Token]) -> syntax.Value:
        return self.string_value(meta, children)

    def string_value(self, meta: Meta, children: list[Token]) -> syntax.Value:
        return syntax.Value(span=_span(meta), value=_unquote(children[0]))

    def number_value(self, meta: Meta, children: list[Token]) -> syntax.Value:
        return syntax.Value(span=_span(meta), value=_number(children[0]))

    def true_value(self, meta: Meta, _: list[Any]) -> syntax.Value:
        return syntax.Value(span=_span(meta), value=True)

    def false_value(self, meta: Meta, _: list[Any]) -> syntax.Value:
        return syntax.Value(span=_span(meta), value=False)


_BUILDER = _TreeBuilder()
