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
