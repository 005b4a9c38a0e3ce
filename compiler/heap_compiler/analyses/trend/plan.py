"""A bound trend: its series as formulas over measures, and the periods they are measured in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Literal
from typing import cast as typing_cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.bind import Binder
from heap_compiler.bound import EVERY_EVENT, BoundEvent, Choice, GroupKey
from heap_compiler.catalog import Catalog
from heap_compiler.errors import HeapError
from heap_compiler.passes.choose_strategy import COUNTING_COST, NUMBER_COST, choose_counting
from heap_compiler.predicates import number_of
from heap_compiler.ranges import TimeRange, bucket_starts, is_shorter, trailing_starts
from heap_compiler.sequence import counted

__all__ = ["Formula", "Operation", "TrendMeasure", "TrendPeriod", "TrendPlan", "TrendSeries", "bind_trend"]


@dataclass(frozen=True, slots=True)
class TrendMeasure:
    """A number per bucket and group.

    Attributes:
        cte: names its rows in the query.
        function: count, users, sessions, or an aggregate of `value`.
        event: what is measured.
        value: the property, where it is a measure of one.
        over_users: `function` is taken of each user, and this of the users.
    """

    cte: str
    function: str
    event: BoundEvent
    value: exp.Expr | None
    over_users: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """Two formulas joined by one of + - * /."""

    left: Formula
    operator: str
    right: Formula


Formula = TrendMeasure | Decimal | Operation


@dataclass(frozen=True, slots=True)
class TrendSeries:
    """One line of the trend."""

    name: str
    formula: Formula

    @property
    def measures(self) -> tuple[TrendMeasure, ...]:
        """The measures of its formula, from left to right."""
        return tuple(_measures_of(self.formula))


def _measures_of(formula: Formula) -> Iterator[TrendMeasure]:
    match formula:
        case TrendMeasure():
            yield formula
        case Operation(left=left, right=right):
            yield from _measures_of(left)
            yield from _measures_of(right)


@dataclass(frozen=True, slots=True)
class TrendPeriod:
    """A range with its buckets.

    Attributes:
        name: what its CTEs' names end with.
        label: what its series' names end with.
        over: the range.
        buckets: where each begins; empty without `by`.
        trailing: `rolling`: where each bucket's trailing window begins; the windows end with the buckets, the last one
            with the range.
    """

    name: str
    label: str
    over: TimeRange
    buckets: tuple[datetime, ...] = ()
    trailing: tuple[datetime, ...] = ()

    @property
    def read(self) -> TimeRange:
        """The instants whose events count."""
        return TimeRange(min(self.over.start, *self.trailing[:1]), self.over.end) if self.trailing else self.over


@dataclass(frozen=True, slots=True)
class TrendPlan:
    """A bound trend. The first of `periods` is the statement's own, a second one the one before it to compare with.

    `window` says what a bucket's value covers: the bucket (None), the trailing units, or all from the range's start.
    `countable` are the measures that kernels can count, those of the same events together.
    """

    schema: str
    series: tuple[TrendSeries, ...]
    periods: tuple[TrendPeriod, ...]
    window: Literal["rolling", "cumulative"] | None
    users: exp.Query | None
    group_keys: tuple[GroupKey, ...]
    top: int | None
    with_total: bool
    countable: tuple[tuple[TrendMeasure, ...], ...]
    choice: Choice

    @property
    def measures(self) -> tuple[TrendMeasure, ...]:
        """Every measure of any series, once."""
        return tuple({measure.cte: measure for series in self.series for measure in series.measures}.values())

    @property
    def of_kernels(self) -> tuple[tuple[TrendMeasure, ...], ...]:
        """The measures that kernels count, those of the same events together."""
        return self.countable if self.choice.vector else ()


def _countable(measures: Iterable[TrendMeasure], catalog: Catalog) -> Iterator[tuple[TrendMeasure, ...]]:
    """What kernels count together: users of the same events, with their number. That alone is SQL's, which several
    processes count, unless there are packs."""
    by_event: list[list[TrendMeasure]] = []
    for measure in measures:
        if measure.function in {"count", "users"} and measure.over_users is None:
            same = (some for some in by_event if some[0].event.alternatives == measure.event.alternatives)
            known = next(same, None)
            if known is None:
                by_event.append([measure])
            else:
                known.append(measure)
    return (tuple(some) for some in by_event if _of_users(some) or (_is_packable(some[0]) and catalog.has_packs))


def _of_users(measures: Iterable[TrendMeasure]) -> bool:
    return any(measure.function == "users" for measure in measures)


def _is_packable(measure: TrendMeasure) -> bool:
    """Whether nothing is asked but definitions that have indexes, which somebody has counted, and `any`."""
    return all(
        alternative.whole == EVERY_EVENT.name
        or (alternative.whole is not None and alternative.matching_events is not None)
        for alternative in measure.event.alternatives
    )


_MAX_SERIES = 50


def bind_trend(statement: syntax.AnalysisStatement, binder: Binder) -> TrendPlan:
    """Raises HeapError: a part that cannot be bound, too many series, two of one name, or clauses that do not fit
    together."""
    head = typing_cast("tuple[syntax.Series, ...]", statement.head)
    if len(head) > _MAX_SERIES:
        raise HeapError(f"a trend has at most {_MAX_SERIES} series, this one {len(head)}", head[_MAX_SERIES].span)
    ranges = [("", "", binder.time_range)]
    if binder.compared_range is not None:
        ranges.append(("_previous", " (previous period)", binder.compared_range))
    measures: list[TrendMeasure] = []
    series = tuple(_series(written, f"series_{index}", binder, measures) for index, written in enumerate(head, start=1))
    names: set[str] = set()
    for written, bound in zip(head, series, strict=True):
        for _, label, _ in ranges:
            if bound.name + label in names:
                raise HeapError(f"a second series called {bound.name}", written.span, "name it: ... as other_name")
            names.add(bound.name + label)
    rolling, cumulative = binder.clause(syntax.Rolling), binder.clause(syntax.Cumulative)
    if rolling is not None and cumulative is not None:
        raise HeapError("a trend is rolling or cumulative, not both", max(rolling.span, cumulative.span))
    countable = tuple(_countable(measures, binder.catalog))
    plain = rolling is None and cumulative is None and binder.top is None and not binder.with_total
    by_user = all(
        key.of_user for key in binder.group_keys
    )  # values of events are read from the table, best in no order
    events = [together[0].event for together in countable]
    cost = COUNTING_COST if any(map(_of_users, countable)) else NUMBER_COST
    return TrendPlan(
        schema=binder.catalog.schema,
        series=series,
        periods=tuple(_period(name, label, over, binder) for name, label, over in ranges),
        window="rolling" if rolling is not None else "cumulative" if cumulative is not None else None,
        users=binder.users,
        group_keys=binder.group_keys,
        top=binder.top,
        with_total=binder.with_total,
        countable=countable,
        choice=choose_counting(events, binder.catalog, known=plain and by_user and bool(events), cost=cost),
    )


def _period(name: str, label: str, over: TimeRange, binder: Binder) -> TrendPeriod:
    by, rolling = binder.clause(syntax.By), binder.clause(syntax.Rolling)
    window = rolling or binder.clause(syntax.Cumulative)
    if by is None:
        if window is not None:
            raise HeapError("this needs buckets", window.span, "add: by day")
        return TrendPeriod(name, label, over)
    zone = binder.catalog.time_zone
    buckets = bucket_starts(over, by.unit, zone, by.span)
    if rolling is None:
        return TrendPeriod(name, label, over, tuple(buckets))
    if rolling.count is None or rolling.unit is None:
        raise HeapError("over how long?", rolling.span, "rolling 7 days")
    if is_shorter(rolling.count, rolling.unit, by.unit):
        message = f"{rolling.count} {rolling.unit}{'s' * (rolling.count > 1)} can be shorter than a {by.unit}"
        raise HeapError(message, rolling.span, f"rolling 1 {by.unit}, or a longer time")
    trailing = trailing_starts([*buckets[1:], over.end], rolling.count, rolling.unit, zone, rolling.span)
    return TrendPeriod(name, label, over, tuple(buckets), tuple(trailing))


def _series(written: syntax.Series, cte: str, binder: Binder, measures: list[TrendMeasure]) -> TrendSeries:
    first = len(measures)
    formula = _formula(written.formula, cte, binder, measures, first)
    series = TrendSeries(written.label or _name(written, binder), formula)
    if not series.measures:
        raise HeapError("a series measures events", written.span, "count of any")
    return series


def _name(written: syntax.Series, binder: Binder) -> str:
    """What the analyst wrote, with the event where it is written in the next series."""
    name, formula = binder.name_of(written), written.formula
    if isinstance(formula, syntax.Measure) and formula.event.span.start >= written.span.end:
        event = binder.text[formula.event.span.start : formula.event.span.end]
        return f"{name} of {' '.join(event.split())}"
    return name


def _formula(written: syntax.Formula, cte: str, binder: Binder, measures: list[TrendMeasure], first: int) -> Formula:
    """The formula; measures that are not among `measures` yet are added to them, so that each is read once."""
    match written:
        case syntax.Value(value=value):
            return typing_cast(Decimal, value)
        case syntax.Arithmetic(left=left, operator=operator, right=right):
            return Operation(
                _formula(left, cte, binder, measures, first), operator, _formula(right, cte, binder, measures, first)
            )
        case syntax.PerUser(function=function, measure=measure):
            bound = replace(_measure(measure, binder), over_users=function)
        case syntax.Measure():
            bound = _measure(written, binder)
    for known in measures:
        if replace(known, cte="", event=replace(known.event, name=bound.event.name)) == bound:
            return known
    number = len(measures) - first + 1
    added = replace(bound, cte=cte if number == 1 else f"{cte}_{number}")
    measures.append(added)
    return added


def _measure(written: syntax.Measure, binder: Binder) -> TrendMeasure:
    value = None if written.property is None else number_of(written.property)
    return TrendMeasure("", written.function, counted(binder.event(written.event), binder.catalog), value)
