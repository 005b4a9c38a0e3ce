"""A bound retention: its cohorts, and the periods they are followed for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal, NamedTuple
from typing import cast as typing_cast

from sqlglot import exp

from heap_compiler import syntax
from heap_compiler.bind import Binder
from heap_compiler.bound import BoundEvent, Choice, GroupKey
from heap_compiler.errors import HeapError
from heap_compiler.passes.choose_strategy import choose_counting
from heap_compiler.ranges import TimeRange, bucket_starts, elapsed_unit
from heap_compiler.sequence import counted

__all__ = ["Period", "RetentionPlan", "bind_retention"]

_DEFAULT_PERIODS = 12
_MAX_PERIODS = 1_000


class Period(NamedTuple):
    """Some units after the start, `first` to `last`; it is shown as its last."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """A bound retention.

    Attributes:
        schema: of the app.
        start: what puts a user into a cohort.
        back: what they come back with.
        entry: the range.
        bounds: the buckets that have begun, the cohorts' own first.
        end: where the last of them ends.
        cohorts: how many of them are cohorts.
        periods: what follows the start.
        window: the length of a unit that is measured from the user's own start; None for the calendar's units.
        now: what begins later is not shown; only for windows, since `bounds` say so of the calendar.
        at_least: how many return events a period needs to count.
        counting: whether a period counts for itself (`on`), for those before it too (`rolling`), or only after all
            of those before it (`streak`).
        recurring: a user belongs to every cohort they start in.
        users: the query of those the cohorts are made of; None means all.
        group_keys: of the start event and its user.
        top: how many groups are kept.
        choice: whether kernels count.
    """

    schema: str
    start: BoundEvent
    back: BoundEvent
    entry: TimeRange
    bounds: tuple[datetime, ...]
    end: datetime
    cohorts: int
    periods: tuple[Period, ...]
    window: timedelta | None
    now: datetime
    at_least: int
    counting: Literal["on", "rolling", "streak"]
    recurring: bool
    users: exp.Query | None
    group_keys: tuple[GroupKey, ...]
    top: int | None
    choice: Choice

    @property
    def has_brackets(self) -> bool:
        """Whether some period is longer than its unit."""
        return any(period.first < period.last for period in self.periods)


def bind_retention(statement: syntax.AnalysisStatement, binder: Binder) -> RetentionPlan:
    """Raises HeapError: clauses that do not fit together, too many periods, or a part that cannot be bound."""
    start, back = typing_cast("tuple[syntax.Event, syntax.Event]", statement.head)
    by = binder.clause(syntax.By)
    unit, periods = _periods(binder)
    counting, windows = _counting(binder), binder.clause(syntax.Windows)
    if windows is not None and (windows.count, windows.unit) != (24, "hour"):
        raise HeapError("periods of elapsed time are written as days", windows.span, "in 24 hour windows")
    window = None if windows is None else elapsed_unit(unit, windows.span)
    at_least = binder.clause(syntax.AtLeast)
    over, now, zone = binder.time_range, binder.catalog.now, binder.catalog.time_zone
    span = None if by is None else by.span
    cohorts = len(bucket_starts(over, unit, zone, span))
    last = max(over.end, now) if counting == "rolling" else over.end
    # A window may begin at the very end of a cohort, and a calendar day have 23 hours: two buckets more hold it.
    beyond = periods[-1].last + (1 if window is None else 3)
    starts = bucket_starts(TimeRange(over.start, last), unit, zone, span, beyond=beyond)
    begun = max(1, sum(instant <= now for instant in starts[:-1]))
    bound = [counted(binder.event(event), binder.catalog) for event in (start, back)]
    return RetentionPlan(
        schema=binder.catalog.schema,
        start=bound[0],
        back=bound[1],
        entry=over,
        bounds=tuple(starts[:begun]),
        end=starts[begun],
        cohorts=min(cohorts, begun),
        periods=periods,
        window=window,
        now=max(now, starts[0]),
        at_least=1 if at_least is None else at_least.count,
        counting=counting,
        recurring=binder.clause(syntax.Recurring) is not None,
        users=binder.users,
        group_keys=binder.group_keys,
        top=binder.top,
        choice=choose_counting(bound, binder.catalog),
    )


def _periods(binder: Binder) -> tuple[syntax.Unit, tuple[Period, ...]]:
    by, follow, brackets = (
        binder.clause(syntax.By), binder.clause(syntax.Follow), binder.clause(syntax.Brackets)
    )  # fmt: skip
    if brackets is not None:
        if follow is not None:
            raise HeapError("the brackets say how long a cohort is followed", follow.span)
        if by is not None and by.unit != brackets.unit:
            raise HeapError(f"cohorts by {by.unit} have brackets of {by.unit}s", brackets.span)
        if any(one >= two for one, two in pairwise(brackets.ends)):
            raise HeapError("brackets rise", brackets.span, "in brackets (1, 3, 7 days)")
        ends, unit = brackets.ends, brackets.unit
    else:
        unit = by.unit if by is not None else follow.unit if follow is not None else "week"
        if follow is not None and follow.unit != unit:
            raise HeapError(f"cohorts by {unit} are followed in {unit}s", follow.span, f"for {follow.count} {unit}s")
        count = _DEFAULT_PERIODS if follow is None else follow.count
        ends = tuple(range(1, count + 1))
    written = brackets or follow
    if written is not None and ends[-1] > _MAX_PERIODS:
        raise HeapError(f"a cohort can be followed for {_MAX_PERIODS:,} periods", written.span)
    return unit, tuple(Period(before + 1, end) for before, end in pairwise((0, *ends)))


def _counting(binder: Binder) -> Literal["on", "rolling", "streak"]:
    rolling, streak = binder.clause(syntax.Rolling), binder.clause(syntax.Streak)
    if rolling is not None and rolling.count is not None:
        raise HeapError("a retention is rolling without a length", rolling.span, "rolling")
    if rolling is not None and streak is not None:
        raise HeapError("a retention is rolling or a streak, not both", max(rolling.span, streak.span))
    return "rolling" if rolling is not None else "streak" if streak is not None else "on"
