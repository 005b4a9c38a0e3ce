"""The semantics of the language in the simplest Python there is, over a list of events.

Written from the reference, not from the compiler, of which it uses nothing: every chain of a funnel is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise, product
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo


@dataclass(frozen=True)
class Event:
    user_id: int
    time: datetime
    event_id: int
    type: str
    session_id: int | None = None
    columns: dict[str, str | None] = field(default_factory=dict)
    properties: Any = None

    @property
    def order(self) -> tuple[datetime, int]:
        return self.time, self.event_id

    def get(self, name: str) -> Any:
        """A property by name: a column, else a key of the properties. Missing and JSON null are None."""
        if name in self.columns:
            return self.columns[name]
        if name in {"user_id", "time", "event_id", "session_id", "type"}:
            return getattr(self, name)
        return self.properties.get(name) if isinstance(self.properties, dict) else None


Test = Callable[[Event], bool]
Group = Callable[[Event], Any]


@dataclass(frozen=True)
class Chain:
    events: tuple[Event, ...]


def user_chain(
    events: Sequence[Event], steps: Sequence[Test], window: timedelta, start: datetime, end: datetime
) -> Chain | None:
    """The chain that counts for one user's events, or None when they never entered."""
    ordered = sorted(events, key=lambda event: event.order)
    for length in range(len(steps), 0, -1):
        candidates = [[event for event in ordered if step(event)] for step in steps[:length]]
        chains = [
            chain
            for chain in product(*candidates)
            if all(one.order < two.order for one, two in pairwise(chain))
            and start <= chain[0].time < end
            and chain[-1].time - chain[0].time <= window
        ]
        if chains:
            first_end = min(chain[-1].order for chain in chains)
            ending = [chain for chain in chains if chain[-1].order == first_end]
            # The latest entry; events between as late as they can be, from the last one back.
            return Chain(max(ending, key=lambda chain: [event.order for event in reversed(chain)]))
    return None


def funnel(
    events: Iterable[Event],
    steps: Sequence[Test],
    window: timedelta,
    start: datetime,
    end: datetime,
    group: Callable[[Event], Any] = lambda event: None,
) -> dict[tuple[Any, int], tuple[int, timedelta | None, timedelta | None]]:
    """(group, step) -> users, median time and average time since the step before."""
    by_user: dict[int, list[Event]] = {}
    for event in events:
        by_user.setdefault(event.user_id, []).append(event)
    chains: dict[Any, list[Chain]] = {}
    for own in by_user.values():
        chain = user_chain(own, steps, window, start, end)
        if chain is not None:
            chains.setdefault(group(chain.events[0]), []).append(chain)
    rows = {}
    for key, members in chains.items():
        for index in range(len(steps)):
            reached = [chain.events for chain in members if len(chain.events) > index]
            gaps = [(chain[index].time - chain[index - 1].time).total_seconds() for chain in reached] if index else []
            rows[key, index + 1] = (
                len(reached),
                timedelta(seconds=median(gaps)) if gaps else None,
                timedelta(seconds=sum(gaps) / len(gaps)) if gaps else None,
            )
    return rows


def local_bucket(time: datetime, unit: str, zone: ZoneInfo) -> str:
    """The local calendar unit an instant lies in, as text."""
    local = time.astimezone(zone)
    match unit:
        case "hour":
            return f"{local:%Y-%m-%d %H} {local.utcoffset()}"
        case "day":
            return f"{local:%Y-%m-%d}"
        case "week":
            return f"{local.date() - timedelta(days=local.weekday())}"
        case "month":
            return f"{local:%Y-%m}-01"
    raise ValueError(unit)


def percentile(values: Sequence[float], fraction: float) -> float:
    """Linear interpolation between the two nearest ranks."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * fraction
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def measure(name: str, events: Sequence[Event], of: str | None = None) -> Any:
    """One value of a trend over the events of one bucket and group."""
    if name == "count":
        return len(events)
    if name == "users":
        return len({event.user_id for event in events})
    if name == "sessions":
        return len({(event.user_id, event.session_id) for event in events if event.session_id is not None})
    assert of is not None
    values = [event.get(of) for event in events]
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if name == "sum":
        return sum(numbers)
    if not numbers:
        return None
    match name:
        case "avg":
            return sum(numbers) / len(numbers)
        case "min":
            return min(numbers)
        case "max":
            return max(numbers)
        case "median":
            return percentile(numbers, 0.5)
    return percentile(numbers, int(name[1:]) / 100)


def _local_start(time: datetime, unit: str, zone: ZoneInfo) -> datetime:
    """Local midnight, without a zone, of the calendar unit an instant lies in."""
    midnight = time.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    match unit:
        case "week":
            return midnight - timedelta(days=midnight.weekday())
        case "month":
            return midnight.replace(day=1)
    return midnight


def shifted(start: datetime, unit: str, count: int) -> datetime:
    """`count` calendar units after a local start."""
    if unit == "month":
        index = start.year * 12 + start.month - 1 + count
        return start.replace(year=index // 12, month=index % 12 + 1)
    return start + count * timedelta(days=7 if unit == "week" else 1)


def retention(
    events: Sequence[Event],
    starts: Test,
    returns: Test,
    unit: str,
    periods: int,
    start: datetime,
    end: datetime,
    now: datetime,
    zone: ZoneInfo,
    *,
    rolling: bool = False,
    recurring: bool = False,
    group: Group = lambda event: None,
) -> dict[tuple[datetime, Any, int], tuple[int, int]]:
    """(local start of the cohort, group, period) -> size and users, for cohorts that have users."""
    cohorts: dict[tuple[datetime, Any], list[int]] = {}
    for user in {event.user_id for event in events}:
        own = sorted(
            (e for e in events if e.user_id == user and starts(e) and start <= e.time < end), key=lambda e: e.order
        )
        seen = set()
        for event in own if recurring else own[:1]:
            bucket = _local_start(event.time, unit, zone)
            if bucket not in seen:
                seen.add(bucket)
                cohorts.setdefault((bucket, group(event)), []).append(user)
    rows = {}
    active = {(e.user_id, _local_start(e.time, unit, zone)) for e in events if returns(e)}
    current = _local_start(now, unit, zone)
    for (bucket, key), users in cohorts.items():
        for period in range(periods + 1):
            wanted = shifted(bucket, unit, period)
            if wanted > current:
                break
            back = {u for u, b in active if u in users and (b >= wanted if rolling else b == wanted) and b <= current}
            rows[bucket, key, period] = len(users), len(users) if period == 0 else len(back)
    return rows


def lifecycle(
    events: Sequence[Event], test: Test, unit: str, buckets: Sequence[datetime], end: datetime, zone: ZoneInfo
) -> dict[tuple[datetime, str], int]:
    """(local start, status) -> users, dormant ones negative."""
    active = {(e.user_id, _local_start(e.time, unit, zone)) for e in events if test(e) and e.time < end}
    rows = {}
    for bucket in buckets:
        before = shifted(bucket, unit, -1)
        found = dict.fromkeys(("new", "returning", "resurrecting", "dormant"), 0)
        for user in {user for user, _ in active}:
            mine = {b for u, b in active if u == user}
            if bucket in mine:
                earlier = {b for b in mine if b < bucket}
                found["new" if not earlier else "returning" if before in mine else "resurrecting"] += 1
            elif before in mine:
                found["dormant"] -= 1
        rows |= {(bucket, status): users for status, users in found.items()}
    return rows


def stickiness(
    events: Sequence[Event], test: Test, unit: str, start: datetime, end: datetime, zone: ZoneInfo
) -> dict[int, int]:
    """Number of buckets -> users active in exactly that many; numbers nobody has are left out."""
    counts: dict[int, int] = {}
    matching = [e for e in events if test(e) and start <= e.time < end]
    for user in {e.user_id for e in matching}:
        active = len({_local_start(e.time, unit, zone) for e in matching if e.user_id == user})
        counts[active] = counts.get(active, 0) + 1
    return counts
