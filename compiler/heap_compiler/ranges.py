"""Calendar time: ranges of an analysis and the buckets in them, in the app's time zone.

Days, weeks (Monday first), months, quarters and years are the zone's own, daylight saving included: a bucket starts at
the first instant of its local date. Everything leaves here as instants, so that SQL compares constants.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from heap_compiler.errors import HeapError, Span
from heap_compiler.syntax import Duration, Over, Unit

__all__ = [
    "BEGINNING",
    "MAX_BUCKETS",
    "ParsedTime",
    "TimeRange",
    "bucket_starts",
    "default_range",
    "elapsed_unit",
    "is_shorter",
    "parse_time",
    "previous_range",
    "resolve",
    "trailing_starts",
    "window",
]

MAX_BUCKETS = 10_000
"""More points than this is no chart, and no SQL constant either."""

BEGINNING = datetime(1, 1, 3, tzinfo=UTC)
"""Before any event: what is read from here is all history."""

_DEFAULT_DAYS = 30
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = BEGINNING, datetime(9999, 12, 29, tzinfo=UTC)


class TimeRange(NamedTuple):
    """Half-open range of instants, `start <= time < end`, both with a time zone."""

    start: datetime
    end: datetime


class ParsedTime(NamedTuple):
    """A time literal: its first instant, whether it named a whole day, and the first instant after it."""

    instant: datetime
    is_date: bool
    end: datetime


_ELAPSED = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(days=7),
    "month": timedelta(days=30),
    "quarter": timedelta(days=90),
    "year": timedelta(days=365),
}

_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_FEWEST_DAYS = {"day": 1, "week": 7, "month": 28, "quarter": 90, "year": 365}
_MOST_DAYS = {"day": 1, "week": 7, "month": 31, "quarter": 92, "year": 366}

_MAX_WINDOW = timedelta(days=3650)


def window(duration: Duration) -> timedelta:
    """Elapsed time of a duration: 1 day is 24 hours, 1 month is 30 days.

    Raises:
        HeapError: longer than ten years.
    """
    if duration.count > _MAX_WINDOW / _ELAPSED[duration.unit]:
        raise HeapError("a window may last ten years", duration.span)
    return duration.count * _ELAPSED[duration.unit]


def parse_time(text: str, span: Span, zone: ZoneInfo) -> ParsedTime:
    """An ISO 8601 date or timestamp; without an offset it is read in `zone`.

    Raises:
        HeapError: not a date or time, or outside the years 1 to 9999.
    """
    try:
        local = datetime.fromisoformat(text.strip())
    except ValueError:
        raise HeapError(
            f"'{text[:40]}' is not a date or time", span, "write it as '2025-06-01' or '2025-06-01 12:30'"
        ) from None
    is_date = len(text.strip()) <= 10 and ":" not in text
    if not _FIRST <= local.replace(tzinfo=UTC) <= _LAST:
        raise HeapError(f"'{text[:40]}' is out of bounds", span, "years 1 to 9999")
    instant = _instant(local, zone) if local.tzinfo is None else local.astimezone(UTC)
    end = _instant(local + timedelta(days=1), zone) if is_date else instant + datetime.resolution
    return ParsedTime(instant, is_date, end)


def resolve(over: Over, now: datetime, zone: ZoneInfo) -> TimeRange:
    """The instants an `over`, `from ... to` or `since` clause means.

    Raises:
        HeapError: the range is empty, or reaches before year 1.
    """
    if over.start is not None:
        start = parse_time(str(over.start.value), over.start.span, zone)
        if over.end is None:
            end = _later(_floor(now.astimezone(zone), "day"), "day", 1)
            finish = _instant(end, zone)
        else:
            finish = parse_time(str(over.end.value), over.end.span, zone).end
        if finish <= start.instant:
            raise HeapError("the range ends before it starts", over.span)
        return TimeRange(start.instant, finish)
    assert over.count is not None
    assert over.unit is not None
    return _last(over.count, over.unit, now, zone, complete=over.complete, span=over.span)


def default_range(now: datetime, zone: ZoneInfo) -> TimeRange:
    """`over last 30 days`: today and the 29 days before it."""
    return _last(_DEFAULT_DAYS, "day", now, zone, complete=False, span=None)


def _last(count: int, unit: Unit, now: datetime, zone: ZoneInfo, *, complete: bool, span: Span | None) -> TimeRange:
    if unit in {"second", "minute", "hour"}:  # elapsed units: the same instants in every zone, across DST too
        length = _ELAPSED[unit]
        local = now.astimezone(zone)
        offset = local.utcoffset() or timedelta()
        seconds = int(length.total_seconds())
        epoch = int((now - _EPOCH + offset).total_seconds())
        end = _EPOCH + timedelta(seconds=epoch - epoch % seconds) - offset
        if not complete:
            end += length
        if count * seconds > (end - _FIRST).total_seconds():
            raise HeapError("the range reaches before year 1", span)
        return TimeRange(end - count * length, end)
    current = _floor(now.astimezone(zone), unit)
    finish = current if complete else _later(current, unit, 1)
    try:
        begin = _later(finish, unit, -count)
        if begin.replace(tzinfo=UTC) < _FIRST:
            raise OverflowError
    except (OverflowError, ValueError):
        raise HeapError("the range reaches before year 1", span) from None
    return TimeRange(_instant(begin, zone), _instant(finish, zone))


def previous_range(over: Over | None, current: TimeRange, zone: ZoneInfo, span: Span) -> TimeRange:
    """The range of the same length just before `current`, which `over` resolved to: as many calendar units, or between
    two times as much of the calendar and the clock (so as many days between two dates).

    Raises:
        HeapError: it reaches before year 1.
    """
    try:
        if over is not None and over.start is not None:
            until = current.end
            if over.end is not None and not parse_time(str(over.end.value), over.end.span, zone).is_date:
                until -= datetime.resolution  # the instant itself is in the range, and no length
            start, end = (_local(instant, zone) for instant in (current.start, until))
            begin = _instant(start - max(end - start, datetime.resolution), zone)
        else:
            count = _DEFAULT_DAYS if over is None or over.count is None else over.count
            unit = "day" if over is None or over.unit is None else over.unit
            begin = _before(current.start, count, unit, zone)
        if begin < _FIRST:
            raise OverflowError
    except (OverflowError, ValueError):
        raise HeapError("the previous period reaches before year 1", span) from None
    return TimeRange(begin, current.start)


def _before(instant: datetime, count: int, unit: Unit, zone: ZoneInfo) -> datetime:
    """`count` units before an instant, by the calendar from days on.

    Raises:
        OverflowError, ValueError: before year 1.
    """
    if unit in {"second", "minute", "hour"}:
        return instant - count * _ELAPSED[unit]
    return _instant(_later(_local(instant, zone), unit, -count), zone)


def trailing_starts(ends: Sequence[datetime], count: int, unit: Unit, zone: ZoneInfo, span: Span) -> list[datetime]:
    """For each of `ends`, in order, the instant `count` units before it.

    Raises:
        HeapError: it lies before year 1.
    """
    starts: list[datetime] = []
    try:
        for end in ends:
            start = _before(end, count, unit, zone)
            if start < _FIRST:
                raise OverflowError
            starts.append(max([start, *starts[-1:]]))  # a clock set forward must not move it back
    except (OverflowError, ValueError):
        raise HeapError("this reaches before year 1", span) from None
    return starts


def is_shorter(count: int, unit: Unit, bucket: Unit) -> bool:
    """Whether `count` units can be shorter than some bucket.

    >>> is_shorter(28, "day", "week"), is_shorter(30, "day", "month"), is_shorter(1, "quarter", "month")
    (False, True, False)
    """
    if unit in _MONTHS and bucket in _MONTHS:
        return count * _MONTHS[unit] < _MONTHS[bucket]
    if unit in _FEWEST_DAYS:
        return bucket in _MOST_DAYS and count * _FEWEST_DAYS[unit] < _MOST_DAYS[bucket]
    longest = timedelta(days=_MOST_DAYS[bucket], hours=1) if bucket in _MOST_DAYS else _ELAPSED[bucket]
    return count * _ELAPSED[unit] < longest


def elapsed_unit(unit: Unit, span: Span) -> timedelta:
    """A unit as elapsed time, where it always has the same: a day is 24 hours.

    Raises:
        HeapError: months, quarters and years differ in length.
    """
    if unit in _MONTHS:
        raise HeapError(f"a {unit} is no fixed length of time", span, "use hours, days or weeks")
    return _ELAPSED[unit]


def bucket_starts(
    over: TimeRange, unit: Unit, zone: ZoneInfo, span: Span | None = None, *, beyond: int = 0
) -> list[datetime]:
    """The first instants of the buckets that cover `over`, in order, and of `beyond` more after them. The first bucket
    may begin before the range.

    Raises:
        HeapError: more than `MAX_BUCKETS`.
    """
    if unit in {"second", "minute", "hour"} and (over.end - over.start) / _ELAPSED[unit] > MAX_BUCKETS:
        raise _too_many(span)
    starts: list[datetime] = []
    covering = 0
    try:
        for instant in _starts_from(over.start, unit, zone):
            if instant < over.end:
                covering += 1
            if covering > MAX_BUCKETS:
                raise _too_many(span)
            if len(starts) == covering + beyond:
                return starts
            starts.append(instant)
    except (OverflowError, ValueError):
        raise HeapError("this reaches beyond year 9999", span) from None
    raise AssertionError("the buckets ended")


def _starts_from(first: datetime, unit: Unit, zone: ZoneInfo) -> Iterator[datetime]:
    """Where the unit around an instant begins, the one after it, and so on; what a clock leaves out does not begin."""
    if unit in {"second", "minute", "hour"}:
        instant = _last(1, unit, first, zone, complete=False, span=None).start
        while True:
            yield instant
            instant = _next_elapsed(instant, _ELAPSED[unit], zone)
    local = _floor(first.astimezone(zone), unit)
    while True:
        following = _later(local, unit, 1)
        if _instant(local, zone) < _instant(following, zone):  # else a day left out on crossing the date line
            yield _instant(local, zone)
        local = following


def _next_elapsed(start: datetime, length: timedelta, zone: ZoneInfo) -> datetime:
    """Where the hour (minute, second) after the one that begins at `start` begins. Where a clock is set by half an hour
    an hour is longer or shorter, so that the next ones begin with the clock's again."""
    following = start + length
    before, after = (instant.astimezone(zone).utcoffset() or timedelta() for instant in (start, following))
    beyond = (following - _EPOCH + after) % length
    if not beyond or after > before:
        return following
    return following + length - beyond if after < before else following - beyond


def _too_many(span: Span | None) -> HeapError:
    return HeapError(f"more than {MAX_BUCKETS:,} buckets", span, "use a larger unit or a shorter range")


def _floor(local: datetime, unit: Unit) -> datetime:
    """Local midnight, naive, at which the unit around `local` begins."""
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    match unit:
        case "week":
            return midnight - timedelta(days=midnight.weekday())
        case "month":
            return midnight.replace(day=1)
        case "quarter":
            return midnight.replace(month=midnight.month - (midnight.month - 1) % 3, day=1)
        case "year":
            return midnight.replace(month=1, day=1)
    return midnight


def _later(midnight: datetime, unit: Unit, count: int) -> datetime:
    """`count` calendar units after a local time; a day the month does not have is its last one."""
    match unit:
        case "day":
            return midnight + timedelta(days=count)
        case "week":
            return midnight + timedelta(weeks=count)
        case "month" | "quarter" | "year":
            index = midnight.year * 12 + midnight.month - 1 + count * _MONTHS[unit]
            year, month = index // 12, index % 12 + 1
            return midnight.replace(year=year, month=month, day=min(midnight.day, monthrange(year, month)[1]))
    raise AssertionError(unit)


def _local(instant: datetime, zone: ZoneInfo) -> datetime:
    """The local time of an instant, naive; midnight where the clock jumps over it to that instant."""
    local = instant.astimezone(zone).replace(tzinfo=None)
    midnight = _floor(local, "day")
    return midnight if _instant(midnight, zone) == instant else local


def _instant(local: datetime, zone: ZoneInfo) -> datetime:
    """The first instant with that local time; where the clock jumps over it, the first one after the jump."""
    return local.replace(tzinfo=zone, fold=0).astimezone(UTC)
