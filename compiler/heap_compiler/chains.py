"""Chains of a sequence and the groups they count in: what funnels and times between events share."""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from heap_compiler.bound import GroupKey
from heap_compiler.sql import column

__all__ = ["event_values", "same_user"]


def event_values(keys: Sequence[GroupKey]) -> dict[str, exp.Expr]:
    """The values of the keys that are properties of the event, by the names of their columns."""
    return {f"group_{index}": key.value for index, key in enumerate(keys, start=1) if not key.of_user}


def same_user(table: str) -> exp.Expr:
    """A row of the table and one of `chains` have the same user."""
    return exp.EQ(this=column("user_id", table), expression=column("user_id", "chains"))
