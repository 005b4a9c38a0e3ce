"""The compiler's catalog from a dictionary: an app of 2026-06-17 12:00 UTC, in Berlin."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from sqlglot import exp

from heap_compiler.catalog import MergingUsers, Segment, Strategy


class DictionaryCatalog:
    schema = "shop"
    time_zone = ZoneInfo("Europe/Berlin")
    now = datetime(2026, 6, 17, 12, tzinfo=UTC)
    is_distributed = True
    shards = 0
    has_packs = False
    strategy: Strategy = "auto"
    merging: MergingUsers | None = None
    without_gates: frozenset[str] = frozenset()
    """Events whose indexes have no gates before regular expressions."""

    def __init__(self, definitions: dict[str, str] | None = None, sizes: dict[str, int] | None = None) -> None:
        self.definitions = definitions if definitions is not None else {
            "Viewed pricing": "pageview where path = '/pricing'",
            "Clicked sign up": "click where target_text = 'Sign up' and element matches 'form.signup button.primary'",
            "Sign up": "submit where path = '/signup'",
            "Purchase": "purchase",
        }  # fmt: skip
        self.sizes = sizes or {}
        self.segments = {
            "Bought twice": Segment('where did "Purchase" at least 2 times', None),
            "Lapsed": Segment('who did "Purchase" and did not do any in last 30 days', None),
            "Listed": Segment("where plan = 'pro'", "segment_listed_1"),
            "Circle": Segment("where in \"Circle\" or plan = 'pro'", None),
        }

    @property
    def conditions(self) -> dict[str, tuple[exp.Expr, ...]]:
        return {}

    def definition(self, name: str) -> str | None:
        return self.definitions.get(name)

    def gates_patterns(self, name: str) -> bool:
        return name not in self.without_gates

    def event_names(self) -> Iterable[str]:
        return self.definitions

    def segment(self, name: str) -> Segment | None:
        return self.segments.get(name)

    def segment_names(self) -> Iterable[str]:
        return self.segments

    def matching_events(self, name: str) -> int | None:
        return self.sizes.get(name)

    def regex_error(self, pattern: str) -> str | None:
        return "parentheses () not balanced" if pattern.count("(") != pattern.count(")") else None
