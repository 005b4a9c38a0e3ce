"""The compiler in one sentence: parse, bind, lower, run the passes, generate."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.analyses import analysis_of
from heap_compiler.analysis import ResultColumn
from heap_compiler.bind import Binder, bind_definition, unknown_event
from heap_compiler.catalog import Catalog
from heap_compiler.errors import HeapError, Span
from heap_compiler.members import events_named, segments_named, unknown_segment
from heap_compiler.parse import parse, parse_event, parse_members
from heap_compiler.passes import QUERY_PASSES, STORAGE_PASSES
from heap_compiler.scan import Scan, scans_in
from heap_compiler.sql import generate, written
from heap_compiler.strategies.kernels import Packable, Reads, kernel_calls

__all__ = [
    "Compiled",
    "CompiledDefinition",
    "CompiledDrop",
    "CompiledDropSegment",
    "CompiledQuery",
    "CompiledSegment",
    "compile_definition",
    "compile_segment",
    "compile_statement",
]


@dataclass(frozen=True)
class CompiledQuery:
    """An analysis as SQL. What explains it is found when it is asked for, which few do: half as much work again.

    Attributes:
        keyword: which analysis it is.
        sql: one PostgreSQL query.
        columns: the columns of its rows.
        strategy: how chains are found and why so, where that was chosen.
    """

    keyword: str
    sql: str
    columns: tuple[ResultColumn, ...]
    strategy: str | None
    _query: exp.Query = field(repr=False, compare=False)
    _named_sources: dict[str, str]

    @cached_property
    def scans(self) -> tuple[Scan, ...]:
        """Every read of events; a source has one per alternative of its event."""
        read = (scan for shown in self._shown for scan in scans_in(shown))
        return tuple(dict.fromkeys([*scans_in(self._query), *read]))

    @cached_property
    def sources(self) -> dict[str, str]:
        """Names of the scans in the query, and the event each reads; first those the analysis names."""
        sources = dict(self._named_sources)
        for scan in self.scans:
            sources.setdefault(scan.alias, scan.event)
        return sources

    @cached_property
    def kernel_reads(self) -> tuple[str, ...]:
        """The queries that kernels run beside the data, over the app's tables."""
        return tuple(written(shown) for shown in self._shown)

    @cached_property
    def packable(self) -> tuple[Packable, ...]:
        """Which of the scans kernels read from packs, where there are any."""
        return tuple(packable for call in self._calls for packable in call.packable)

    @cached_property
    def _calls(self) -> list[Reads]:
        return kernel_calls(self._query)

    @cached_property
    def _shown(self) -> list[exp.Query]:
        return [shown() for call in self._calls for shown in call.shown]


@dataclass(frozen=True, slots=True)
class CompiledDefinition:
    """A `define` statement.

    Attributes:
        name: the event to be defined.
        definition: the event expression as written.
        predicate: the SQL condition of its partial indexes, over the events table; None for a sequence, which no
            index can hold.
        uses: the defined events it is made of, directly.
    """

    name: str
    definition: str
    predicate: str | None
    uses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CompiledDrop:
    """A `drop event` statement."""

    name: str


@dataclass(frozen=True, slots=True)
class CompiledSegment:
    """A `segment` statement.

    Attributes:
        name: the segment to be defined.
        definition: the condition as written, from `where` or `who` on.
        members: SQL query of its users' ids.
        events, segments: the defined events and the segments it is made of, directly.
    """

    name: str
    definition: str
    members: str
    events: tuple[str, ...]
    segments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CompiledDropSegment:
    """A `drop segment` statement."""

    name: str


Compiled = CompiledQuery | CompiledDefinition | CompiledDrop | CompiledSegment | CompiledDropSegment


def compile_statement(text: str, catalog: Catalog, keyword: str | None = None) -> Compiled:
    """Compiles one statement of the language.

    Args:
        text: the statement.
        catalog: the app it is about.
        keyword: the analysis it must be. Its first word may then be left out.

    Raises:
        HeapError: with the position of what is wrong and the nearest fix.
    """
    if keyword is not None and [word.lower() for word in text.split(None, 1)[:1]] != [keyword]:
        text = f"{keyword} {text}"
    try:
        return _compile(text, catalog, keyword)
    except HeapError as error:
        error.text = text if error.text is None else error.text
        raise
    except RecursionError:
        raise HeapError("the statement is nested too deeply", sqlstate="54001") from None


def _compile(text: str, catalog: Catalog, keyword: str | None) -> Compiled:
    statement = parse(text)
    match statement:
        case syntax.Define(name=name, event=event, name_span=span):
            _check_name(name, span)
            definition = text[event.span.start : event.span.end]
            return _definition(name, definition, event, catalog)
        case syntax.DropEvent(name=name, name_span=span):
            if catalog.definition(name) is None:
                raise unknown_event(name, span, catalog)
            return CompiledDrop(name)
        case syntax.DefineSegment(name=name, members=members, name_span=span):
            _check_name(name, span, "a segment")
            return _segment(name, text[members.span.start : members.span.end], members, catalog, text)
        case syntax.DropSegment(name=name, name_span=span):
            if catalog.segment(name) is None:
                raise unknown_segment(name, span, catalog)
            return CompiledDropSegment(name)
        case syntax.AnalysisStatement():
            return _analyse(statement, text, catalog, keyword)
    raise AssertionError(statement)


def _analyse(statement: syntax.AnalysisStatement, text: str, catalog: Catalog, keyword: str | None) -> CompiledQuery:
    if keyword not in {None, statement.keyword}:
        raise HeapError(f"this is a {statement.keyword}, not a {keyword}", statement.span)
    analysis = analysis_of(statement.keyword)
    binder = Binder(text, catalog, statement.clauses, analysis.clauses)
    plan = analysis.bind(statement, binder)
    query = _stored(_checked(analysis.lower(plan), catalog), catalog)
    named_sources = {**analysis.sources(plan), **binder.sources}
    return CompiledQuery(
        statement.keyword, generate(query), analysis.row, analysis.strategy(plan), query, named_sources
    )


def _checked(query: exp.Query, catalog: Catalog) -> exp.Query:
    """The query; where there are shards, what was built is checked to stay on them, a quarter of the time it takes to
    compile a statement."""
    if catalog.is_distributed:
        for query_pass in QUERY_PASSES:
            query = query_pass(query)
    return query


def _stored(query: exp.Query, catalog: Catalog) -> exp.Query:
    for storage_pass in STORAGE_PASSES:
        query = storage_pass(query, catalog)
    return query


def compile_definition(name: str, definition: str, catalog: Catalog) -> CompiledDefinition:
    """Compiles the event expression `definition` under a name of its own: what `heap.define_event` takes.

    Raises:
        HeapError: positions are those of `definition`; none when the name itself is not acceptable.
    """
    try:
        _check_name(name, None)
        return _definition(name, definition.strip(), parse_event(definition), catalog)
    except HeapError as error:
        error.text = definition if error.text is None else error.text
        raise
    except RecursionError:
        raise HeapError("the definition is nested too deeply", sqlstate="54001") from None


def compile_segment(name: str, definition: str, catalog: Catalog) -> CompiledSegment:
    """Compiles a condition on users under a name: what `heap.define_segment` takes, such as `users where plan = 'pro'`.

    Raises:
        HeapError: positions are those of `definition`; none when the name itself is not acceptable.
    """
    written = definition.strip()
    if written.split(None, 1)[:1] and written.split(None, 1)[0].lower() == "users":
        written = written.split(None, 1)[1] if len(written.split(None, 1)) > 1 else ""
    try:
        _check_name(name, None, "a segment")
        return _segment(name, written, parse_members(written), catalog, written)
    except HeapError as error:
        error.text = written if error.text is None else error.text
        raise
    except RecursionError:
        raise HeapError("the segment is nested too deeply", sqlstate="54001") from None


def _segment(name: str, definition: str, members: syntax.Members, catalog: Catalog, text: str) -> CompiledSegment:
    binder = Binder(text, catalog, (), ())
    query = _stored(_checked(binder.members(members.predicate, segment=name), catalog), catalog)
    events = {name for event in events_named(members.predicate) for name in _names(event)}
    segments = segments_named(members.predicate)
    return CompiledSegment(name, definition, generate(query), tuple(sorted(events)), tuple(sorted(segments)))


def _definition(name: str, definition: str, event: syntax.Event, catalog: Catalog) -> CompiledDefinition:
    predicate = bind_definition(event, catalog, name)
    sql = None if predicate is None else generate(predicate)
    return CompiledDefinition(name, definition, sql, tuple(sorted(_names(event))))


def _names(event: syntax.Event) -> set[str]:
    """The defined events an expression names itself."""
    match event:
        case syntax.DefinedEvent(name=name):
            return {name}
        case syntax.Filtered(event=inner):
            return _names(inner)
        case syntax.AnyOf(events=events):
            return {name for inner in events for name in _names(inner)}
        case syntax.FirstAfter(event=first, after=after):
            return _names(first) | _names(after)
    return set()


_MAX_NAME_LENGTH = 200


def _check_name(name: str, span: Span | None, what: str = "an event") -> None:
    if not name.strip():
        raise HeapError(f"{what} needs a name", span)
    if len(name) > _MAX_NAME_LENGTH:
        raise HeapError(f"a name may have {_MAX_NAME_LENGTH} characters, this one has {len(name)}", span)
    if not name.isprintable():
        raise HeapError("a name cannot contain line breaks or control characters", span)
