"""Groups of an analysis in SQL: one text[] per row, one element per property, null for a missing one.

As an array a group is one value that joins and hashes with nulls in it. The empty array stands for `other`, the rest
after `top n`: no real group has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from heap_compiler.bound import GroupKey
from heap_compiler.sql import (
    cast,
    column,
    function,
    join,
    named,
    number,
    select,
    subquery,
    text,
    text_array,
    users_table,
)

__all__ = ["OTHER", "fold_groups", "fold_totals", "group_key", "group_values", "join_user_values", "user_values"]

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


def join_user_values(schema: str, keys: Sequence[GroupKey], rows: exp.Query, columns: Sequence[str]) -> exp.Query:
    """The rows, which have the columns, with the groups that are properties of their users."""
    if not any(key.of_user for key in keys):
        return rows
    same_user = exp.EQ(this=column("user_id", "users"), expression=column("user_id", "events"))
    user_groups = [column(f"group_{position}", "users") for position, key in enumerate(keys, start=1) if key.of_user]
    return select(
        [*(column(name, "events") for name in columns), *user_groups],
        subquery(rows, "events"),
        joins=[join(subquery(user_values(schema, keys), "users"), [same_user], kind="LEFT")],
    )


def fold_groups(keys: Sequence[GroupKey], rows: exp.Query) -> exp.Query:
    """The rows with one column `group_values`: their group if it is one of `top_groups`, else `other`."""
    known = column("group_values", "top_groups")
    grouped = select([exp.Star(), named(group_values(keys), "row_groups")], subquery(rows, "measured"))
    same_group = exp.EQ(this=known.copy(), expression=column("row_groups", "grouped"))
    folded = named(exp.Coalesce(this=known, expressions=[OTHER.copy()]), "group_values")
    return select(
        [exp.Column(this=exp.Star(), table=exp.to_identifier("grouped")), folded],
        subquery(grouped, "grouped"),
        joins=[join(exp.table_("top_groups"), [same_group], kind="LEFT")],
    )


def fold_totals(size: str, top: int) -> exp.Select:
    """The rows of `totals`, one per group, with the group they are `shown` as: those beyond the top become `other`."""
    rank = exp.Window(
        this=exp.RowNumber(),
        order=exp.Order(
            expressions=[
                exp.Ordered(this=column(size), desc=True, nulls_first=False),
                column("group_values"),
            ]
        ),
    )
    ranked = select([exp.Star(), named(rank, "rank")], "totals")
    is_top = exp.LTE(this=column("rank"), expression=number(top))
    folded = exp.Case(ifs=[exp.If(this=is_top, true=column("group_values"))], default=OTHER.copy())
    return select([exp.Star(), named(folded, "shown")], subquery(ranked, "sized"))
