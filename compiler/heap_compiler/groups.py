"""Groups of an analysis in SQL: one text[] per row, one element per property, null for a missing one.

As an array a group is one value that joins and hashes with nulls in it. The empty array stands for `other`, the rest
after `top n`: no real group has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from heap_compiler.bound import GroupKey
from heap_compiler.sql import cast, column, function, named, number, select, text, text_array, users_table

__all__ = ["OTHER", "group_key", "group_values", "user_values"]

OTHER = text_array([])


def group_values(keys: Sequence[GroupKey]) -> exp.Expr:
    """The group of a row that has each key's value in a column `group_1`, `group_2`, ..."""
    return text_array(column(f"group_{index}") for index in range(1, len(keys) + 1))


def group_key(keys: Sequence[GroupKey], values: exp.Expr, *, has_other: bool) -> exp.Expr:
    """How a group is shown: its value, or several joined by a comma. Null without `group by`."""
    if not keys:
        return cast(exp.Null(), "text")
    if len(keys) == 1:
        shown: exp.Expr = exp.Bracket(this=values.copy(), expressions=[number(0)], offset=0)
    else:
        shown = function("array_to_string", values.copy(), text(", "), text("null"))
    if not has_other:
        return shown
    is_other = exp.EQ(this=values.copy(), expression=OTHER.copy())
    return exp.Case(ifs=[exp.If(this=is_other, true=text("other"))], default=shown)


def user_values(schema: str, keys: Sequence[GroupKey]) -> exp.Select:
    """Each user's values of the keys that are user properties: `user_id`, `group_2`, ..."""
    values = [named(key.value.copy(), f"group_{index}") for index, key in enumerate(keys, start=1) if key.of_user]
    return select([column("user_id"), *values], users_table(schema))
