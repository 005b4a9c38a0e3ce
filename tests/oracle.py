"""The semantics of the language in the simplest Python there is, over a list of events.

Written from the reference, not from the compiler, of which it uses nothing: every chain of a funnel is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import combinations, pairwise, product
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


Chain = tuple[Event | None, ...]
"""An event per step; None for a step that was skipped or not reached."""


@dataclass(frozen=True)
class Rules:
    """The rules of a funnel's chain. Steps are numbered from 1."""

    window: timedelta
    start: datetime
    end: datetime
    within: dict[int, timedelta] = field(default_factory=dict)
    optional: frozenset[int] = frozenset()
    any_order: bool = False
    exclusions: tuple[tuple[Test, int, int], ...] = ()
    strictly: bool = False
    hold: Callable[[Event], Any] | None = None
    first_time: bool = False
    unit: str = "users"


def _taken(chain: Chain) -> list[tuple[int, Event]]:
    return [(step, event) for step, event in enumerate(chain, start=1) if event is not None]


def _is_valid(chain: Chain, events: Sequence[Event], rules: Rules) -> bool:
    taken = _taken(chain)
    first, last = taken[0][1], taken[-1][1]
    if not rules.start <= first.time < rules.end or last.time - first.time > rules.window:
        return False
    if rules.hold is not None:
        held = {rules.hold(event) for _, event in taken}
        if len(held) > 1 or None in held:
            return False
    if rules.any_order:
        return True
    for (before, one), (after, two) in pairwise(taken):
        if one.order >= two.order or two.time - one.time > rules.within.get(after, rules.window):
            return False
        forbidden = [test for test, first, last in rules.exclusions if first <= before < last]
        if rules.strictly:
            forbidden.append(lambda event: True)
        if forbidden and any(
            test(event) for event in events if one.order < event.order < two.order for test in forbidden
        ):
            return False
    return True


def _best(chains: Iterable[Chain]) -> Chain:
    """The chain that ends first, then begins last, then has each event as late as it can be, from the end back."""

    def orders(chain: Chain) -> list[tuple[datetime, int]]:
        never = (datetime.min.replace(tzinfo=UTC), 0)
        return [never if event is None else event.order for event in reversed(chain)]

    chains = list(chains)
    first_end = min(_taken(chain)[-1][1].order for chain in chains)
    ending = [chain for chain in chains if _taken(chain)[-1][1].order == first_end]
    return max(ending, key=lambda chain: (_taken(chain)[0][1].order, orders(chain)))


def _chains_to(level: int, events: Sequence[Event], steps: Sequence[Test], rules: Rules) -> list[Chain]:
    """Every valid chain that ends with step `level`, or in any order has so many steps."""
    matching = [[event for event in events if step(event)] for step in steps]
    rest = [None] * (len(steps) - level)

    def candidates() -> Iterator[Chain]:
        if not rules.any_order:
            skips = [[None] if step in rules.optional and step < level else [] for step in range(1, level + 1)]
            for chain in product(*([*found, *skip] for found, skip in zip(matching, skips, strict=False))):
                yield (*chain, *rest)
            return
        for chosen in combinations(range(len(steps)), level):
            for picked in product(*(matching[step] for step in chosen)):
                if len({event.order for event in picked}) == level:
                    yield (*sorted(picked, key=lambda event: event.order), *rest)

    return [chain for chain in candidates() if _is_valid(chain, events, rules)]


def counted_chains(events: Sequence[Event], steps: Sequence[Test], rules: Rules) -> Iterator[tuple[int, Chain]]:
    """(level, chain) of one user: the one that counts, one per session, or all that do not overlap."""
    if rules.first_time:
        ever = sorted((event for event in events if steps[0](event)), key=lambda event: event.order)
        steps = [lambda event: event in ever[:1], *steps[1:]]
    levels = range(len(steps), 0, -1)
    if rules.unit == "conversions":
        for level in levels:
            chains, last_end = _chains_to(level, events, steps, rules), None
            for end in sorted({_taken(chain)[-1][1].order for chain in chains}):
                best = _best(chain for chain in chains if _taken(chain)[-1][1].order == end)
                if last_end is None or _taken(best)[0][1].order > last_end:
                    last_end = end
                    yield level, best
        return
    sessions = {event.session_id for event in events if event.session_id is not None}
    for session in sessions if rules.unit == "sessions" else [None]:
        own_steps = [lambda e, s=session, test=step: test(e) and s in {None, e.session_id} for step in steps]
        for level in levels:
            chains = _chains_to(level, events, own_steps, rules)
            if chains:
                yield level, _best(chains)
                break


@dataclass(frozen=True)
class FunnelRow:
    users: int
    median: timedelta | None
    average: timedelta | None
    immature: int


def funnel(
    events: Iterable[Event],
    steps: Sequence[Test],
    rules: Rules,
    now: datetime,
    key: Callable[[int, Chain], Any] = lambda user, chain: None,
) -> dict[tuple[Any, int], FunnelRow]:
    """(key, step) -> its row; `key` gives the group of a user's chain."""
    by_user: dict[int, list[Event]] = {}
    for event in events:
        by_user.setdefault(event.user_id, []).append(event)
    chains: dict[Any, list[tuple[int, Chain]]] = {}
    for user, own in by_user.items():
        for level, chain in counted_chains(own, steps, rules):
            chains.setdefault(key(user, chain), []).append((level, chain))
    rows = {}
    for group, members in chains.items():
        for step in range(1, len(steps) + 1):
            here = [
                (level, chain)
                for level, chain in members
                if (level == step if rules.unit == "conversions" else chain[step - 1] is not None)
            ]
            gaps = []
            for _, chain in here if step > 1 else []:
                before = [event for number, event in _taken(chain) if number < step][-1]
                gaps.append((chain[step - 1].time - before.time).total_seconds())
            immature = [
                chain
                for _, chain in here
                if step < len(steps) and not any(chain[step:]) and _taken(chain)[0][1].time + rules.window >= now
            ]
            rows[group, step] = FunnelRow(
                len(here),
                timedelta(seconds=median(gaps)) if gaps else None,
                timedelta(seconds=sum(gaps) / len(gaps)) if gaps else None,
                len(immature),
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
