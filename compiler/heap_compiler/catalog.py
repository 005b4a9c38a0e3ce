"""What the compiler may ask about an app: a protocol, so that it runs without a database.

`heap_extension` answers from the catalog tables; the tests answer from a dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from sqlglot import exp

__all__ = ["STRATEGIES", "Catalog", "MergingUsers", "Segment", "Strategy"]

Strategy = Literal["auto", "vector", "merge", "probe"]
STRATEGIES: tuple[Strategy, ...] = ("auto", "vector", "merge", "probe")
"""How sequences can run; `auto` chooses."""


class Segment(NamedTuple):
    """A stored segment: its condition as written, from `users` on, and the table of its list where it has one."""

    definition: str
    list_table: str | None


class MergingUsers(NamedTuple):
    """Users whose events and rows are being copied to others.

    Attributes:
        batch: the number that their copies carry, and negated the originals that were copied.
        merged: the users that end.
        into: those they become, not among `merged`.
        is_moved: whether the copies are read, and no longer the originals.
    """

    batch: int
    merged: tuple[int, ...]
    into: tuple[int, ...]
    is_moved: bool


class Catalog(Protocol):
    """One app, as `bind` sees it."""

    @property
    def schema(self) -> str:
        """PostgreSQL schema of the app's tables, unquoted."""

    @property
    def time_zone(self) -> ZoneInfo:
        """The zone in which the app's days begin."""

    @property
    def now(self) -> datetime:
        """The instant `over last ...` counts back from, with a time zone."""

    @property
    def is_distributed(self) -> bool:
        """Whether the app's tables are spread over shards, which queries must be sent to whole."""

    @property
    def shards(self) -> int:
        """On how many shards kernels can run; 0 when they cannot, or must not, and SQL serves everything."""

    @property
    def has_packs(self) -> bool:
        """Whether kernels may find events in packs, which say faster how many there are than PostgreSQL counts them."""

    @property
    def strategy(self) -> Strategy:
        """The strategy that was asked for."""

    @property
    def merging(self) -> MergingUsers | None:
        """The merge of users under way, or None."""

    def definition(self, name: str) -> str | None:
        """The event expression a defined event stands for, or None when there is no event of that name."""

    @property
    def conditions(self) -> dict[str, tuple[exp.Expr, ...]]:
        """The conditions of definitions that were bound before, by name, for `bind` to add to; all forgotten when any
        definition changes. Statements share them: what is changed or put elsewhere is a copy."""

    def gates_patterns(self, name: str) -> bool:
        """Whether the indexes of a defined event search for text before they try a regular expression."""

    def event_names(self) -> Iterable[str]:
        """All defined events, for suggestions."""

    def segment(self, name: str) -> Segment | None:
        """A segment, or None when there is none of that name."""

    def segment_names(self) -> Iterable[str]:
        """All segments, for suggestions."""

    def matching_events(self, name: str) -> int | None:
        """About how many events match the definition, or None when nobody has counted."""

    def regex_error(self, pattern: str) -> str | None:
        """Why PostgreSQL refuses the regular expression, or None when it takes it."""
