"""What `bind` makes: events, and group keys, with every name resolved and every condition a SQL expression."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sqlglot import exp

__all__ = ["EVERY_EVENT", "EVERY_EVENT_CONDITION", "Alternative", "BoundEvent", "Choice", "FirstAfter", "GroupKey"]


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way an event can match: the conjuncts of its WHERE clause, already gated and ordered.

    Attributes:
        conditions: SQL conditions over the columns of the events table; none means every event.
        definition: the defined event whose index serves these conditions, when there is one.
        exact: nothing is asked beyond the definition.
        matching_events: about how many events match the definition, or None when that is not known.
        first_after: what else the event must be, that no condition on single events says.
    """

    conditions: tuple[exp.Expr, ...]
    definition: str | None
    exact: bool = False
    matching_events: int | None = None
    first_after: FirstAfter | None = None

    @property
    def whole(self) -> str | None:
        """The defined event that this is, or "any" for every event; None where more is asked than that."""
        if not self.conditions and self.first_after is None:
            return EVERY_EVENT.name
        return self.definition if self.exact else None


@dataclass(frozen=True, slots=True)
class BoundEvent:
    """An event expression with its names resolved: it matches what any of the alternatives matches."""

    name: str
    alternatives: tuple[Alternative, ...]

    @property
    def matching_events(self) -> int | None:
        """About how many events match, in all of time; None when that is not known."""
        sizes = [alternative.matching_events for alternative in self.alternatives]
        return None if None in sizes else sum(size for size in sizes if size is not None)


EVERY_EVENT = BoundEvent("any", (Alternative((), None),))
"""`any`"""

EVERY_EVENT_CONDITION = "TRUE"
"""Its condition, as `sql.generate` writes it: that of the packs of any event."""


@dataclass(frozen=True, slots=True)
class FirstAfter:
    """An event that is its user's first `event` after some `after`, at most `within` later (None: ever later)."""

    event: BoundEvent
    after: BoundEvent
    within: timedelta | None


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether kernels count, or SQL does, and why.

    Attributes:
        shards: how many shards kernels can run on; 0 when there are no kernels.
    """

    vector: bool
    reason: str
    shards: int

    @property
    def strategy(self) -> str:
        """For people."""
        return f"{'vector' if self.vector else 'sql'}: {self.reason}"


@dataclass(frozen=True, slots=True)
class GroupKey:
    """One property of a `group by`: its text over a row of events, or of users. `page` says of which of a session's
    pageviews it is, where it is of one."""

    name: str
    of_user: bool
    value: exp.Expr
    page: Literal["entry", "exit"] | None = None
