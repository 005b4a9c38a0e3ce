"""Read each event and each user once while users are being merged: their rows are in two places then.

`heap maintain` copies a batch of users into others, beside reads. The copies carry the batch's number, the originals
that have one its negative. Until the batch moves, queries leave out the copies; from then on, the originals. The
catalog says which, so the switch is one commit, whatever shards the rows are on.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlglot import exp

from heap_compiler.catalog import Catalog, MergingUsers
from heap_compiler.schema import USER_COLUMNS
from heap_compiler.sql import cast, column, list_table, number, select, subquery, text, union_all

__all__ = ["MERGED_USERS", "read_merging_users"]

MERGED_USERS = "merged_users"
"""The table of the users of the batch as they will be: user_id, identity, properties, is_known (has a row in users),
lists (tables of segments that a user merged into it is in)."""


def read_merging_users(query: exp.Query, catalog: Catalog) -> exp.Query:
    """The query over what is to be read now; itself while no users are being merged."""
    merging = catalog.merging
    if merging is None:
        return query
    scans = [part for part in query.find_all(exp.Select) if "scan" in part.meta]
    for scan in reversed(scans):  # one within another first
        union = _read_events(scan, merging)
        if scan is query:
            query = union
    if merging.is_moved:
        for table in list(query.find_all(exp.Table)):
            if table.db == catalog.schema and table.name != "events":
                _read_users(table, merging)
    return query


def _read_events(scan: exp.Select, merging: MergingUsers) -> exp.Query:
    """Two reads in place of one: that of all other users stays index-only, that of the few looks at their rows. They
    take the place of the SELECT, so that its order is merged; of one that does not show the user, whom Citus wants to
    see in any union, they take the place of the table."""
    touched = merging.merged if merging.is_moved else merging.into
    hidden = -merging.batch if merging.is_moved else merging.batch
    table = scan.args["from_"].this
    others: list[exp.Expr] = [exp.Not(this=_is_any_of(touched, table.alias_or_name))]
    shown = exp.NullSafeNEQ(this=column("merge_id", table.alias_or_name), expression=number(hidden))
    few: list[exp.Expr] = [_is_any_of(touched, table.alias_or_name), shown]
    if all(value.alias_or_name != "user_id" for value in scan.selects):
        reads = [select([exp.Star()], table.copy(), where=where) for where in (others, few)]
        table.replace(subquery(union_all(reads), table.alias_or_name))
        return scan
    parent = scan.parent
    halves = [scan.copy().where(*where, copy=False) for where in (others, few)]
    union = union_all(halves)
    if parent is not None:
        scan.replace(exp.Subquery(this=union) if isinstance(parent, exp.Union) else union)
    return union


def _read_users(table: exp.Table, merging: MergingUsers) -> None:
    """The users as they will be instead of those that are merged and those they are merged into; or the list of a
    segment with whom the merged ones became."""
    merged_users = list_table(table.db, MERGED_USERS)
    if table.name == "users":
        columns = [*USER_COLUMNS, "properties"]
        untouched = exp.Not(this=_is_any_of((*merging.merged, *merging.into)))
        will_be: exp.Expr = column("is_known")
    else:
        columns = ["user_id"]
        untouched = exp.Not(this=_is_any_of(merging.merged))
        will_be = exp.EQ(this=text(table.name), expression=exp.Any(this=exp.paren(column("lists"))))
    plain = table.copy()
    plain.set("alias", None)
    reads = [
        select([column(name) for name in columns], source, where=[condition])
        for source, condition in ((plain, untouched), (merged_users, will_be))
    ]
    table.replace(subquery(union_all(reads), table.alias_or_name))


def _is_any_of(users: Iterable[int], table: str | None = None) -> exp.Expr:
    ids = cast(text("{" + ",".join(str(user) for user in sorted(users)) + "}"), "bigint[]")
    return exp.EQ(this=column("user_id", table), expression=exp.Any(this=exp.paren(ids)))
