"""Groups of an analysis in SQL: one text[] per row, one element per property, null for a missing one.

As an array a group is one value that joins and hashes with nulls in it. Two arrays stand for what no real group is: the
empty one for `other`, the rest after `top n`, and one of two dimensions for `total`, all groups together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

__all__ = [
    "OTHER",
    "TOTAL",
    "ShownGroups",
    "event_values",
    "fold_groups",
    "fold_totals",
    "folded",
    "group_columns",
    "group_key",
    "group_order",
    "group_values",
    "join_user_values",
    "shown_groups",
    "top_groups",
    "user_values",
]

OTHER = text_array([])
TOTAL = cast(text("{{total}}"), "text[]")


def group_values(keys: Sequence[GroupKey]) -> exp.Expr:
    """The group of a row that has each key's value in a column `group_1`, `group_2`, ...; null without `group by`."""
    return text_array(map(column, group_columns(keys))) if keys else cast(exp.Null(), "text[]")


def group_key(keys: Sequence[GroupKey], values: exp.Expr, *, has_other: bool, has_total: bool = False) -> exp.Expr:
    """How a group is shown: its value, or several joined by a comma. Null without `group by`."""
    if not keys:
        return cast(exp.Null(), "text")
    if len(keys) == 1:
        shown: exp.Expr = exp.Bracket(this=values.copy(), expressions=[number(1)], offset=1)
    else:
        shown = function("array_to_string", values.copy(), text(", "), text("null"))
    marks = [("other", OTHER)] * has_other + [("total", TOTAL)] * has_total
    if not marks:
        return shown
    branches = [exp.If(this=_is(values, mark), true=text(name)) for name, mark in marks]
    return exp.Case(ifs=branches, default=shown)


def group_order(
    keys: Sequence[GroupKey], values: exp.Expr, *, has_other: bool, has_total: bool = False
) -> list[exp.Expr]:
    """Groups in the order of their values, then `other`, then `total`. Nothing without `group by`."""
    if not keys:
        return []
    last = [TOTAL] * has_total + [OTHER] * has_other
    return [*(_is(values, mark) for mark in last), values.copy()]


def _is(values: exp.Expr, mark: exp.Expr) -> exp.Expr:
    return exp.EQ(this=values.copy(), expression=mark.copy())


@dataclass(frozen=True, slots=True)
class ShownGroups:
    """The groups that are found, each of which has every row of the answer: those with nothing in them, too.

    Attributes:
        ctes: for the query's WITH, behind the rows they are found in.
        joins: put them beside every row.
        values: the group of a row; null without `group by`.
    """

    ctes: tuple[tuple[str, exp.Query], ...]
    joins: tuple[exp.Join, ...]
    values: exp.Expr

    def matching(self, source: str) -> list[exp.Expr]:
        """The condition that a row of the source is of the group; none without `group by`."""
        if not self.joins:
            return []
        return [exp.EQ(this=column("group_values", source), expression=self.values.copy())]


def shown_groups(keys: Sequence[GroupKey], found_in: str) -> ShownGroups:
    """The groups of the rows of `found_in`; nothing to join without `group by`."""
    if not keys:
        return ShownGroups((), (), cast(exp.Null(), "text[]"))
    found = select([column("group_values")], found_in, distinct=True)
    return ShownGroups(
        (("shown_groups", found),),
        (join(exp.table_("shown_groups"), kind="CROSS"),),
        column("group_values", "shown_groups"),
    )


def top_groups(source: exp.Expr | str, value: exp.Expr, top: int, *, where: Sequence[exp.Expr] = ()) -> exp.Select:
    """The groups with the greatest value among rows that are one or more per group: `group_values`."""
    greatest = exp.Ordered(this=value, desc=True, nulls_first=False)
    return select(
        [column("group_values")],
        source,
        where=where,
        group_by=[column("group_values")],
        order_by=[greatest, column("group_values")],
        limit=top,
    )


def folded(groups: exp.Expr) -> exp.Expr:
    """The group if `top_groups` has it, else `other`. No join: Citus pushes a membership down under any subquery."""
    known = exp.Subquery(this=select([column("group_values")], "top_groups"))
    is_top = exp.In(this=groups, query=known)
    return exp.Case(ifs=[exp.If(this=is_top, true=groups.copy())], default=OTHER.copy())


def group_columns(keys: Sequence[GroupKey]) -> list[str]:
    """The names of the columns that hold a row's group."""
    return [f"group_{index}" for index in range(1, len(keys) + 1)]


def event_values(keys: Sequence[GroupKey]) -> dict[str, exp.Expr]:
    """What is read of an event for the keys that are its own properties: `group_1`, `group_3`, ..."""
    return {f"group_{index}": key.value for index, key in enumerate(keys, start=1) if not key.of_user}


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
    return select([exp.Star(), named(folded(group_values(keys)), "group_values")], subquery(rows, "grouped"))


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
    shown = exp.Case(ifs=[exp.If(this=is_top, true=column("group_values"))], default=OTHER.copy())
    return select([exp.Star(), named(shown, "shown")], subquery(ranked, "sized"))
