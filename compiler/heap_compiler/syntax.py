"""The syntax tree: what the analyst wrote, immutable, each node with its place in the text.

`parse` makes these nodes, `bind` reads them. Names are not looked up yet. The statement node of an analysis lives in
that analysis's own module under `analyses/`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, ClassVar, Literal, Self, dataclass_transform

from heap_compiler.errors import Span

__all__ = [
    "AnalysisStatement",
    "And",
    "AnyEvent",
    "AnyOf",
    "Arithmetic",
    "AtLeast",
    "AtLeastUsers",
    "Between",
    "Bins",
    "Brackets",
    "By",
    "Clause",
    "Compare",
    "Compared",
    "Counting",
    "Cumulative",
    "Define",
    "DefineSegment",
    "DefinedEvent",
    "Did",
    "DidThen",
    "DropEvent",
    "DropSegment",
    "Duration",
    "ElementMatches",
    "EndsAt",
    "Event",
    "Factors",
    "Filtered",
    "FirstAfter",
    "FirstTime",
    "Follow",
    "ForUsersIn",
    "ForUsersWhere",
    "Formula",
    "GroupBy",
    "Holding",
    "InAnyOrder",
    "InList",
    "InSegment",
    "IsSet",
    "Limit",
    "Measure",
    "Members",
    "Model",
    "Node",
    "Not",
    "Or",
    "Over",
    "PageProperty",
    "PerUser",
    "Predicate",
    "Property",
    "RawEvent",
    "Reaching",
    "Recurring",
    "Rolling",
    "Sample",
    "Series",
    "StartsFrom",
    "Statement",
    "Step",
    "Steps",
    "Streak",
    "StrictlyInOrder",
    "TextTest",
    "Top",
    "TouchModel",
    "Touches",
    "Unit",
    "Value",
    "Where",
    "Windows",
    "WithTotal",
    "Within",
    "Without",
]

Unit = Literal["second", "minute", "hour", "day", "week", "month", "quarter", "year"]


@dataclass_transform(kw_only_default=True, frozen_default=True)
class _Immutable:
    """Immutable values with the annotated fields, as a frozen dataclass has them: given by keyword, equal when type and
    fields are. `dataclasses` compiles several functions for each class, 21 ms for those below, and every new server
    process would wait for it."""

    _fields: ClassVar[frozenset[str]] = frozenset()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own = [name for name, written in cls.__annotations__.items() if not written.startswith("ClassVar")]
        cls._fields = cls._fields.union(own)
        cls._defaults = cls._defaults | {name: cls.__dict__[name] for name in own if name in cls.__dict__}

    def __init__(self, **values: Any) -> None:
        values = self._defaults | values
        if values.keys() != self._fields:
            different = ", ".join(sorted(values.keys() ^ self._fields))
            raise TypeError(f"{type(self).__name__} lacks, or does not have, the fields {different}")
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *(self.__dict__[name] for name in sorted(self._fields))))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def replace(self, **changes: Any) -> Self:
        """The same with other values in some of its fields."""
        return type(self)(**self.__dict__ | changes)


class Node(_Immutable):
    """Anything the analyst wrote. `span` gives its offsets in the statement's text."""

    span: Span


class Value(Node):
    """A literal: text, number or truth value."""

    value: str | Decimal | bool


class Property(Node):
    """A property of the event, or of its user (`user.plan`)."""

    of_user: bool
    name: str


class PageProperty(Property):
    """`entry path`, `exit path`: a property of the first or last pageview of a session."""

    page: Literal["entry", "exit"]


# Predicates


class Compare(Node):
    """`property = value` and its kin; `operator` is one of = != < <= > >=."""

    property: Property
    operator: Literal["=", "!=", "<", "<=", ">", ">="]
    value: Value


class InList(Node):
    property: Property
    negated: bool
    values: tuple[Value, ...]


class Between(Node):
    property: Property
    negated: bool
    low: Value
    high: Value


class TextTest(Node):
    """`contains`, `starts with`, `ends with`, `like`, `ilike`, `matches`."""

    property: Property
    negated: bool
    operator: Literal["contains", "starts_with", "ends_with", "like", "ilike", "matches"]
    text: Value


class IsSet(Node):
    property: Property
    negated: bool


class ElementMatches(Node):
    """`element matches 'css selector'`."""

    selector: Value


class Not(Node):
    predicate: Predicate


class And(Node):
    predicates: tuple[Predicate, ...]


class Or(Node):
    predicates: tuple[Predicate, ...]


class Did(Node):
    """`did E at least 2 times in last 90 days`: from `least` to `most` such events; None means no limit. `segment` is
    the one whose definition says so, set where it is put in."""

    event: Event
    least: int | None
    most: int | None
    during: Over | None
    segment: str | None = None


class DidThen(Node):
    """`did A then B within 7 days`: these events one after another, the last at most `within` after the first.
    `segment` as in `Did`."""

    events: tuple[Event, ...]
    within: Duration | None
    during: Over | None
    segment: str | None = None


class InSegment(Node):
    """`in "Bought twice"`"""

    name: str


Predicate = Compare | InList | Between | TextTest | IsSet | ElementMatches | Not | And | Or | Did | DidThen | InSegment


# Events


class DefinedEvent(Node):
    """`"Signed up"`."""

    name: str


class RawEvent(Node):
    """`pageview`: an event type as captured."""

    type: str


class AnyEvent(Node):
    """`any`."""


class Filtered(Node):
    """`event where predicate`."""

    event: Event
    predicate: Predicate


class AnyOf(Node):
    """`event or event or ...`."""

    events: tuple[Event, ...]


class FirstAfter(Node):
    """`the first E after F within 7 days`: what a definition stands for that is no condition on single events."""

    event: Event
    after: Event
    within: Duration | None


Event = DefinedEvent | RawEvent | AnyEvent | Filtered | AnyOf | FirstAfter


# Clauses


class Duration(Node):
    """Elapsed time: a month is 30 days, a quarter 90, a year 365."""

    count: int
    unit: Unit


class Clause(Node):
    """A part of an analysis after its head. `repeatable`: it may be there several times; the others once."""

    repeatable: ClassVar[bool] = False


class Within(Clause):
    duration: Duration


class By(Clause):
    unit: Unit


class Over(Clause):
    """A range. Either `count` calendar units (`complete`: only whole ones), or dates from `start` to `end`."""

    count: int | None = None
    unit: Unit | None = None
    complete: bool = False
    start: Value | None = None
    end: Value | None = None


class Where(Clause):
    predicate: Predicate


class ForUsersWhere(Clause):
    predicate: Predicate


class ForUsersIn(Clause):
    """`for users in "Bought twice"`"""

    segment: InSegment


class Sample(Clause):
    """`sample 10%`: a part of the users, always the same ones. `percent` is more than 0 and at most 100."""

    percent: Decimal


class GroupBy(Clause):
    """`group by country, user.plan`; in a funnel `of step 2` takes the values at that step instead of at the first."""

    properties: tuple[Property, ...]
    step: int | None


class Top(Clause):
    count: int


class Follow(Clause):
    """`for 12 weeks`: how many calendar units a cohort is followed."""

    count: int
    unit: Unit


class WithTotal(Clause):
    """`with total`: beside the groups, all of them together."""


class Rolling(Clause):
    """`rolling` of a retention: in that period or any later one. `rolling 7 days` of a trend: over trailing units."""

    count: int | None
    unit: Unit | None


class Cumulative(Clause):
    """`cumulative`: from the start of the range to the end of each bucket."""


class Compared(Clause):
    """`compared to previous period`."""


class Recurring(Clause):
    """`recurring`: a user belongs to every cohort they start in, not only to the first."""


class InAnyOrder(Clause):
    """`in any order`"""


class StrictlyInOrder(Clause):
    """`strictly in order`: nothing else lies between the steps."""


class Without(Clause):
    """`without E between step 1 and 2`: no such event between these steps; None and None: between any."""

    repeatable: ClassVar[bool] = True
    event: Event
    first: int | None
    last: int | None


class Holding(Clause):
    """`holding product_id`: the properties keep their values along the chain."""

    properties: tuple[Property, ...]


class FirstTime(Clause):
    """`first time`: the chain begins with the user's first event of step 1 ever."""


class Counting(Clause):
    """`counting sessions`: what a row of the funnel counts."""

    unit: Literal["users", "sessions", "conversions"]


class Reaching(Clause):
    """`reaching step 1 but not 2`"""

    step: int
    but_not: int | None


class Limit(Clause):
    count: int


class Streak(Clause):
    """`streak`: in that period and in every one before it."""


class AtLeast(Clause):
    """`at least 3 times`."""

    count: int


class Steps(Clause):
    """`for 5 steps`: how far paths are followed."""

    count: int


class Windows(Clause):
    """`in 24 hour windows`: periods of elapsed time from each user's own start."""

    count: int
    unit: Unit


class Brackets(Clause):
    """`in brackets (1, 3, 7 days)`: periods by their last unit."""

    ends: tuple[int, ...]
    unit: Unit


class Bins(Clause):
    """`in bins of 10`, or `in bins (1, 5, 20)`: one `width`, or the `edges` between them; numbers or durations."""

    width: Value | Duration | None
    edges: tuple[Value | Duration, ...]


class AtLeastUsers(Clause):
    """`at least 30 users`: values of fewer are left out."""

    count: int


Model = Literal["first", "last", "linear", "position"]


class TouchModel(Clause):
    """`by first touch`: which touches of a conversion are credited with it."""

    model: Model


class Touches(Clause):
    """`from E`: the events that can be touches."""

    event: Event


class NodeName(Clause):
    """The name of a node of paths; `is_value`: a string, so the value of a property, not the name of an event."""

    name: str
    is_value: bool


class StartsFrom(NodeName):
    """`from '/'`"""


class EndsAt(NodeName):
    """`to "Purchase"`"""


# Statements


class Statement(Node):
    """A whole statement."""


class Define(Statement):
    name: str
    name_span: Span
    event: Event


class DropEvent(Statement):
    name: str
    name_span: Span


class DefineSegment(Statement):
    name: str
    name_span: Span
    members: Members


class DropSegment(Statement):
    name: str
    name_span: Span


# Heads of analyses


class Members(Node):
    """`where country = 'DE' and did "Purchase"`: a condition on users."""

    predicate: Predicate


class Measure(Node):
    """`count of E`, `users of E`, `sessions of E`, `sum(amount) of E` ..."""

    function: Literal["count", "users", "sessions", "sum", "avg", "min", "max", "median", "p75", "p90", "p95", "p99"]
    property: Property | None
    event: Event


class PerUser(Node):
    """`median of count of E per user`: a measure of each user, then a function over the users."""

    function: Literal["sum", "avg", "min", "max", "median", "p75", "p90", "p95", "p99"]
    measure: Measure


class Arithmetic(Node):
    """Two formulas joined by one of + - * /."""

    left: Formula
    operator: Literal["+", "-", "*", "/"]
    right: Formula


Formula = Measure | PerUser | Value | Arithmetic


class Series(Node):
    """A line of a trend: a measure, or a formula over several."""

    formula: Formula
    label: str | None


class Step(Node):
    """A step of a sequence: `within` at most that long after the step before, `optional` if it may be skipped."""

    event: Event
    label: str | None
    within: Duration | None = None
    optional: bool = False


class Factors(Clause):
    """`with country, "Clicked help"`: properties, and events as steps."""

    factors: tuple[Property | Step, ...]


class AnalysisStatement(Statement):
    """An analysis: its first word, what it is about, and its clauses in the order they were written."""

    keyword: str
    head: tuple[Node, ...]
    clauses: tuple[Clause, ...]
