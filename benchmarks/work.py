"""What the systems are asked: questions in heap's language, with all that a peer needs to say the same in its own.

A question's answer is a set of rows of plain numbers and texts, so that answers can be compared before times are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.data import TIERS, Kind
from heap_compiler.hierarchy import selector_pattern

__all__ = [
    "ANY",
    "EVENTS",
    "GRID",
    "GROUPED",
    "NOW",
    "QUESTIONS",
    "RANGE",
    "Event",
    "Funnel",
    "Paths",
    "Question",
    "Retention",
    "Row",
    "Test",
    "Trend",
    "funnel",
]

NOW = "2026-06-30 18:00+00"
RANGE = "from '2026-01-01' to '2026-06-30'"
"""All events there are."""

Row = tuple[str | int | None, ...]


@dataclass(frozen=True)
class Test:
    """A condition on one column: equal to a text, or matching a regular expression."""

    column: str
    operator: Literal["=", "matches"]
    value: str


@dataclass(frozen=True)
class Event:
    """A defined event: `definition` in heap's language, and the same as `tests` that must all hold."""

    name: str
    definition: str
    tests: tuple[Test, ...]

    @property
    def quoted(self) -> str:
        """As a statement names it."""
        return f'"{self.name}"' if self.tests else "any"


ANY = Event("any", "any", ())


def _events(tier: str) -> tuple[Event, ...]:
    return tuple(_event(tier, number, kind) for number, kind in enumerate(TIERS[tier], start=1))


def _event(tier: str, number: int, kind: Kind) -> Event:
    name = f"{tier} {number}"
    of_type = Test("type", "=", kind.type)
    if tier == "custom types":
        return Event(name, kind.type, (of_type,))
    if tier == "css":
        selector = _SELECTORS[number - 1]
        matches = Test("hierarchy", "matches", selector_pattern(selector))
        return Event(name, f"{kind.type} where element matches '{selector}'", (of_type, matches))
    if tier == "regex":
        pattern = f"^{kind.path.replace('{n}', '[0-9]+')}$"
        return Event(name, f"{kind.type} where path matches '{pattern}'", (of_type, Test("path", "matches", pattern)))
    column, value = ("target_text", kind.target_text) if kind.target_text else ("path", kind.path)
    return Event(name, f"{kind.type} where {column} = '{value}'", (of_type, Test(column, "=", value)))


_SELECTORS = (
    "form.checkout button.next.primary",
    "form.checkout > div button.pay",
    "form.checkout.wide button.confirm",
)

EVENTS: dict[str, tuple[Event, ...]] = {tier: _events(tier) for tier in TIERS}
"""The defined events of each tier of the data, in the order users tend to do them."""


@dataclass(frozen=True)
class Funnel:
    """How many users take the steps in order within seven days. Rows: group, step, users."""

    title: str
    steps: tuple[Event, ...]
    group_by: str | None = None

    @property
    def events(self) -> tuple[Event, ...]:
        return self.steps

    @property
    def statement(self) -> str:
        group = f" group by {self.group_by}" if self.group_by else ""
        return f"funnel {' -> '.join(step.quoted for step in self.steps)} within 7 days {RANGE}{group}"

    def rows(self, levels: Iterable[tuple[str | None, int, int]]) -> set[Row]:
        """From the number of users of each group whose furthest step it is."""
        reached: dict[tuple[str | None, int], int] = {}
        for group, level, users in levels:
            for step in range(1, int(level) + 1):
                reached[group, step] = reached.get((group, step), 0) + int(users)
        return {(group, step, users) for (group, step), users in reached.items() if users}


@dataclass(frozen=True)
class Trend:
    """Events and distinct users a day. Rows: day, events, users."""

    title: str
    event: Event

    @property
    def events(self) -> tuple[Event, ...]:
        return (self.event,)

    @property
    def statement(self) -> str:
        of = self.event.quoted
        return f"trend count of {of} as events, users of {of} as users by day {RANGE}"


@dataclass(frozen=True)
class Retention:
    """Of the users who began in a week, how many did `back` in each of the eight weeks after it. Rows: week, number of
    weeks later, users; 0 weeks later is all who began."""

    title: str
    start: Event
    back: Event

    @property
    def events(self) -> tuple[Event, ...]:
        return (self.start, self.back)

    @property
    def statement(self) -> str:
        return f"retention from {self.start.quoted} to {self.back.quoted} by week for 8 weeks {RANGE}"


@dataclass(frozen=True)
class Paths:
    """What users do next, from the first of the events on, for three steps; half an hour without any ends a path. Rows:
    step, event, next event or None, users."""

    title: str
    nodes: tuple[Event, ...]

    @property
    def events(self) -> tuple[Event, ...]:
        return self.nodes

    @property
    def statement(self) -> str:
        names = ", ".join(node.quoted for node in self.nodes)
        return f"paths across {names} from {self.nodes[0].quoted} for 3 steps within 30 minutes over {RANGE}"


Question = Funnel | Trend | Retention | Paths


def funnel(tier: str, steps: int) -> Funnel:
    """The funnel of the tier's first steps."""
    return Funnel(f"{steps}-step funnel, {tier}", EVENTS[tier][:steps])


QUESTIONS: tuple[Question, ...] = (
    *(funnel(tier, steps) for steps in (2, 3, 8) for tier in ("0.01 %", "0.1 %", "1 %", "10 %")),
    Funnel("3-step funnel, three event types of 0.1 %", EVENTS["custom types"]),
    Funnel("3-step funnel, CSS selectors, 0.1 %", EVENTS["css"]),
    Funnel("3-step funnel, regular expressions, 0.1 %", EVENTS["regex"]),
    Funnel("3-step funnel, 1 %, by country", EVENTS["1 %"][:3], group_by="country"),
    Trend("trend by day with users, 1 %", EVENTS["1 %"][0]),
    Trend("trend by day with users, all events", ANY),
    Retention("retention by week, 1 %", EVENTS["1 %"][0], EVENTS["1 %"][2]),
    Retention("retention by week, 10 %", EVENTS["10 %"][0], EVENTS["10 %"][1]),
    Paths("paths across five events of 1 %", EVENTS["1 %"][:5]),
)

GROUPED: dict[str, str] = {
    question.events[0].name: question.group_by
    for question in QUESTIONS
    if isinstance(question, Funnel) and question.group_by is not None
}
"""The events that questions are grouped at, with the column."""

GRID: tuple[Funnel, ...] = tuple(
    Funnel(f"{first} -> {second}", (EVENTS[first][0], EVENTS[second][1]))
    for first in ("0.01 %", "0.1 %", "1 %", "10 %")
    for second in ("0.01 %", "0.1 %", "1 %", "10 %")
)
"""Every size of a step followed by every other: what the strategies are compared on."""
