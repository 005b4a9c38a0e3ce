"""Refuse a query that would bring users to the coordinator: a defect of a lowering, found before it runs.

Every table of an app is distributed by `user_id`. Rows of users stay on the shards as long as everything that relates
them to each other, joins, windows, groups, memberships and set operations, goes by `user_id`. Aggregates turn them into
totals, which the coordinator may combine as it likes and send back to the shards. So every query gets one of three
kinds, from the inside out, by the rules of Citus's planner (13.2); where one is unclear, the stricter is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple, NoReturn

from sqlglot import exp

from heap_compiler.sql import conjuncts

__all__ = ["verify_pushdown"]


def verify_pushdown(query: exp.Query) -> exp.Query:
    """The query, unchanged. It may be a list of users; then the rows of users are what it is for.

    Raises:
        AssertionError: naming the part that keeps the query from being pushed down.
    """
    _Verification().rows_of(query, None, is_statement=True)
    return query


class _Kind(Enum):
    USERS = "rows on the shards, each of one user"
    TOTALS = "aggregates of all shards"
    CONSTANTS = "what no table is read for"


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a source or a query gives.

    Attributes:
        columns: their names in order; None where a star stands for a table's.
        by_user: the column `user_id` is the id of the row's user.
        ids: columns made of the id of a user, a session or an event: grouped by them, totals would be as many.
        merged: the rows of a set operation, not grouped since.
        tied: only rows of the same user as the row of the query around.
        aggregated: totals that are computed here, not read from a query in WITH.
    """

    kind: _Kind
    columns: tuple[str, ...] | None = ()
    by_user: bool = False
    ids: frozenset[str] = frozenset()
    merged: bool = False
    tied: bool = False
    aggregated: bool = False

    @property
    def of_users(self) -> bool:
        return self.kind is _Kind.USERS


_TABLE = _Rows(_Kind.USERS, None, by_user=True, ids=frozenset({"user_id", "session_id", "event_id"}))
_CONSTANTS = _Rows(_Kind.CONSTANTS)

_Sources = dict[str, _Rows]


class _Scope(NamedTuple):
    """What the parts of a SELECT can name: its sources, and those of the query around it."""

    sources: _Sources
    outer: _Scope | None


def _refuse(what: str, part: exp.Expr) -> NoReturn:
    raise AssertionError(f"{what}: {part.sql('postgres')}")


class _Verification:
    def __init__(self) -> None:
        self.named: dict[str, _Rows] = {}

    def rows_of(self, query: exp.Expr, outer: _Scope | None, *, is_statement: bool = False) -> _Rows:
        """What a query gives; its parts are verified on the way."""
        self._name_queries(query)
        match query:
            case exp.Subquery():
                rows = self.rows_of(query.this, outer)
            case exp.SetOperation():
                rows = self._set_operation(query, outer)
            case exp.Select() if "kernel" in query.meta:  # what it reads is read on one shard, and comes back as totals
                rows = _Rows(_Kind.TOTALS, None)
            case exp.Select():
                rows = self._select(query, outer)
            case _:  # VALUES
                rows = _CONSTANTS
                queries = query.find_all(exp.Query, bfs=True)
                if any(self.rows_of(part, outer).of_users for part in queries):
                    _refuse("rows of users asked for by a query that has none", query)
        if rows.of_users and _is_limited(query) and not is_statement and not rows.tied:
            _refuse("LIMIT over rows of users", query)
        return rows

    def _name_queries(self, query: exp.Expr) -> None:
        """A query in WITH that is read once is put into the one that reads it; any other is computed beforehand."""
        with_ = query.args.get("with_")
        if with_ is None:
            return
        reads = Counter(table.name for table in query.find_all(exp.Table) if not table.db)
        for cte in with_.expressions:
            rows = self.rows_of(cte.this, None)
            materialized = cte.args.get("materialized")
            if rows.of_users and (materialized or (reads[cte.alias] > 1 and materialized is None)):
                _refuse("rows of users computed beforehand, by MATERIALIZED or since they are read twice", cte)
            self.named[cte.alias] = replace(rows, aggregated=False)

    def _set_operation(self, query: exp.SetOperation, outer: _Scope | None) -> _Rows:
        parts = [self.rows_of(part, outer) for part in (query.left, query.right)]
        left, right = parts
        if not any(part.of_users for part in parts):
            return replace(_combined(parts), columns=left.columns)
        if not isinstance(query, exp.Union):
            _refuse(f"{query.key.upper()} of rows of users", query)
        if not (left.by_user and right.by_user and _place(left) == _place(right)):
            _refuse("UNION without user_id in one place of every part", query)
        return replace(left, merged=True, tied=left.tied and right.tied)

    def _select(self, select: exp.Select, outer: _Scope | None) -> _Rows:
        sources = self._sources(select, outer)
        of_users = any(source.of_users for source in sources.values())
        contents = _contents(select)
        if contents.queries:
            self._verify_subqueries(contents.queries, select, _Scope(sources, outer), of_users=of_users)
        output = _output(select, sources)
        if not of_users:
            return replace(_combined(sources.values()), columns=output.columns)
        tied = any(source.tied for source in sources.values()) or any(
            _equates(condition, sources, outer.sources if outer else {}) for condition in _conditions(select)
        )
        group = select.args.get("group")
        if group and group.find(exp.GroupingSets, exp.Cube, exp.Rollup):
            _refuse("grouping sets", group)
        keys = list(_keys(select, group)) if group else []
        of_each_user = any(_is_user_id(key, sources) for key in keys)
        if (group or contents.aggregates) and not of_each_user and not tied:
            for aggregate in contents.aggregates:
                _verify_combines(aggregate, sources)
            for key in keys:
                if _has_id(key, sources):
                    _refuse("totals of every user, session or event", key)
            return _Rows(_Kind.TOTALS, output.columns, aggregated=True)
        _verify_windows(contents.windows, select, sources)
        _verify_distinct(select, sources)
        merged = not of_each_user and any(source.merged for source in sources.values())
        return replace(output, merged=merged, tied=tied)

    def _sources(self, select: exp.Select, outer: _Scope | None) -> _Sources:
        """The sources of a SELECT, each verified to be of the same users as those before it."""
        sources: _Sources = {}
        first = select.args.get("from_")
        if first is not None:
            sources[first.this.alias_or_name] = self._source(first.this, _Scope({}, outer))
        for join in select.args.get("joins") or ():
            rows = self._source(join.this, _Scope(dict(sources), outer))
            _verify_join(join, rows, sources, list(_conditions(select)))
            sources[join.this.alias_or_name] = replace(rows, tied=False) if isinstance(join.this, exp.Lateral) else rows
        constants = any(source.kind is _Kind.CONSTANTS for source in sources.values())
        if constants and any(source.merged for source in sources.values()):
            _refuse("constants, or a function, beside a UNION of rows of users", select)
        return sources

    def _source(self, source: exp.Expr, scope: _Scope) -> _Rows:
        match source:
            case exp.Table() if source.db:
                rows = _TABLE
            case exp.Table(this=exp.Identifier()):
                rows = self.named.get(source.name, _CONSTANTS)
            case exp.Subquery():
                rows = self.rows_of(source.this, scope.outer)
            case exp.Lateral(this=exp.Subquery() as body):
                rows = self.rows_of(body.this, scope)
                if rows.aggregated and _reads(body, scope.sources):
                    _refuse("LATERAL not on user_id", source)
            case _:
                rows = _CONSTANTS
        return _renamed(rows, source)

    def _verify_subqueries(
        self, queries: Iterable[_Asked], select: exp.Select, scope: _Scope, *, of_users: bool
    ) -> None:
        demanded = {id(condition) for condition in _conditions(select)}
        for query, membership in queries:
            rows = self.rows_of(query, scope)
            if not rows.of_users and not (rows.aggregated and _reads(query, scope.sources)):
                continue
            if not of_users:
                _refuse("rows of users asked for by a query that has none", query)
            if rows.tied:
                continue
            if membership is None or id(membership) not in demanded:
                _refuse("subquery not on user_id", query)
            asked = membership.this.unnest()
            values = asked.expressions if isinstance(asked, exp.Tuple) else [asked]
            if not any(_is_user_id(value, scope.sources) and _place(rows) == at for at, value in enumerate(values)):
                _refuse("membership not of user_id", membership)


def _verify_windows(windows: Iterable[exp.Window], select: exp.Select, sources: _Sources) -> None:
    named = {window.name: window for window in select.args.get("windows") or ()}
    for window in windows:
        of = named.get(window.alias, window)
        if not any(_is_user_id(key, sources) for key in of.args.get("partition_by") or ()):
            _refuse("window not partitioned by user_id", of)


def _verify_distinct(select: exp.Select, sources: _Sources) -> None:
    distinct = select.args.get("distinct")
    if distinct is None:
        return
    on = distinct.args.get("on")
    values = on.expressions if on else [value.unalias() for value in select.expressions]
    if not any(isinstance(value, exp.Star) or _is_user_id(value, sources) for value in values):
        _refuse("DISTINCT without user_id", select)


def _verify_join(join: exp.Join, rows: _Rows, before: _Sources, where: list[exp.Expr]) -> None:
    users_before = any(source.of_users for source in before.values())
    keeps_left, keeps_right = join.side in {"LEFT", "FULL"}, join.side in {"RIGHT", "FULL"}
    if (keeps_left and rows.of_users and not users_before) or (keeps_right and users_before and not rows.of_users):
        _refuse("outer join that keeps rows of no user", join)
    if not (rows.of_users and users_before) or rows.tied:
        return
    on = join.args.get("on")
    conditions = [*(conjuncts(on) if on else ()), *where]
    new = {join.this.alias_or_name: rows}
    shared = rows.by_user and any(source.by_user for source in before.values())
    on_shared = shared and any(name.name == "user_id" for name in join.args.get("using") or ())
    if not on_shared and not any(_equates(condition, new, before) for condition in conditions):
        _refuse("join not on user_id", join)


_COMBINED = (exp.ArrayAgg, exp.Avg, exp.Count, exp.LogicalAnd, exp.LogicalOr, exp.Max, exp.Min, exp.Sum)
_COMBINED_BY_NAME = {"bool_and", "bool_or"}


def _verify_combines(aggregate: exp.Expr, sources: _Sources) -> None:
    """Each shard must be able to give its part of the value; for any other Citus fetches all rows."""
    if not isinstance(aggregate, _COMBINED) and aggregate.name not in _COMBINED_BY_NAME:
        _refuse("aggregate that shards give no part of", aggregate)
    argument = aggregate.this
    if isinstance(argument, exp.Order):
        _refuse("ordered aggregate of all users", aggregate)
    if isinstance(argument, exp.Distinct) and not (
        isinstance(aggregate, exp.Count) and [_is_user_id(value, sources) for value in argument.expressions] == [True]
    ):
        _refuse("distinct values, not of user_id, of all users", aggregate)


def _is_user_id(value: exp.Expr, sources: Mapping[str, _Rows]) -> bool:
    """The value is a column that holds a user's id."""
    value = value.unnest()
    if not isinstance(value, exp.Column) or value.name != "user_id":
        return False
    return any(source.by_user for of, source in sources.items() if value.table in {"", of})


_SAME_AS_PART = (exp.Add, exp.Cast, exp.Max, exp.Min, exp.Mul, exp.Paren, exp.Sub)


def _has_id(value: exp.Expr, sources: Mapping[str, _Rows]) -> bool:
    """The value tells users, sessions or events apart: a column of their ids, or what is computed of one."""
    if isinstance(value, exp.Column):
        return any(value.name in source.ids for of, source in sources.items() if value.table in {"", of})
    return isinstance(value, _SAME_AS_PART) and any(_has_id(part, sources) for part in value.iter_expressions())


def _equates(condition: exp.Expr, some: Mapping[str, _Rows], others: Mapping[str, _Rows]) -> bool:
    """The condition says that rows of both are of the same user."""
    if not isinstance(condition, exp.EQ):
        return False
    left, right = condition.left, condition.right
    return any(
        _is_user_id(one, some) and _is_user_id(other, others) and one.args.get("table") != other.args.get("table")
        for one, other in ((left, right), (right, left))
    )


def _combined(parts: Iterable[_Rows]) -> _Rows:
    """Of parts without rows of users."""
    totals = [part for part in parts if part.kind is _Kind.TOTALS]
    return _Rows(_Kind.TOTALS, aggregated=any(part.aggregated for part in totals)) if totals else _CONSTANTS


def _place(rows: _Rows) -> int | None:
    """Where user_id is among the columns; None where a star hides it."""
    return rows.columns.index("user_id") if rows.by_user and rows.columns is not None else None


def _renamed(rows: _Rows, source: exp.Expr) -> _Rows:
    """The rows with the column names that an alias gives them."""
    alias = source.args.get("alias")
    names = [name.name for name in alias.columns] if isinstance(alias, exp.TableAlias) else []
    if not names or rows.columns is None:
        return rows
    renamed = dict(zip(rows.columns, names, strict=False))
    by_user = rows.by_user and renamed.get("user_id", "user_id") == "user_id"
    ids = frozenset(renamed.get(name, name) for name in rows.ids)
    return replace(rows, columns=tuple(renamed.get(name, name) for name in rows.columns), by_user=by_user, ids=ids)


def _output(select: exp.Select, sources: _Sources) -> _Rows:
    """What a SELECT from rows of users has in its columns."""
    columns: list[str] = []
    by_user = False
    ids: set[str] = set()
    is_known = True
    for value in select.expressions:
        inner, name = value.unalias(), value.alias_or_name
        if value.is_star:
            of = inner.text("table")
            starred = [source for name, source in sources.items() if of in {"", name}]
            for source in starred:
                columns += source.columns or ()
                by_user = by_user or source.by_user
                ids |= source.ids
            is_known = is_known and all(source.columns is not None for source in starred)
            is_known = is_known and not any(join.args.get("using") for join in select.args.get("joins") or ())
            continue
        columns.append(name)
        by_user = by_user or (name == "user_id" and _is_user_id(inner, sources))
        if _has_id(inner, sources):
            ids.add(name)
    return _Rows(_Kind.USERS, tuple(columns) if is_known else None, by_user, frozenset(ids))


def _conditions(select: exp.Select) -> Iterator[exp.Expr]:
    """What WHERE demands."""
    where = select.args.get("where")
    return conjuncts(where.this) if where else iter(())


def _keys(select: exp.Select, group: exp.Group) -> Iterator[exp.Expr]:
    """What is grouped by, places in the select list looked up there."""
    for key in group.expressions:
        if isinstance(key, exp.Literal) and not key.is_string:
            yield select.expressions[int(key.this) - 1].unalias()
        else:
            yield key


class _Asked(NamedTuple):
    """A subquery, and the membership it is asked for, if it is. Parts are shared by queries: no node knows its own."""

    query: exp.Expr
    membership: exp.In | None


class _Contents(NamedTuple):
    """What is in a SELECT, beside its sources and not inside its subqueries."""

    queries: list[_Asked]
    windows: list[exp.Window]
    aggregates: list[exp.Expr]


_LEAVES = (exp.Column, exp.DataType, exp.Identifier, exp.Literal)


def _contents(select: exp.Select) -> _Contents:
    found = _Contents([], [], [])
    parts: list[exp.Expr] = [*select.expressions]
    parts += [select.args[name] for name in ("where", "having", "order") if select.args.get(name)]
    parts += [join.args["on"] for join in select.args.get("joins") or () if join.args.get("on")]
    while parts:
        part = parts.pop()
        match part:
            case exp.Query():
                found.queries.append(_Asked(part, None))
                continue
            case exp.In() if part.args.get("query"):
                found.queries.append(_Asked(part.args["query"], part))
                parts.append(part.this)
                continue
            case exp.Window():
                found.windows.append(part)
                function = part.this.this if isinstance(part.this, exp.Filter) else part.this
                parts += [*function.iter_expressions(), *part.args.get("partition_by", ())]  # its own is no aggregate
                continue
            case exp.WithinGroup() | exp.AggFunc():
                found.aggregates.append(part)
            case exp.Anonymous() if part.name.lower() in _COMBINED_BY_NAME:
                found.aggregates.append(part)
        if not isinstance(part, exp.WithinGroup):
            parts += [inner for inner in part.iter_expressions() if not isinstance(inner, _LEAVES)]
    return found


def _reads(query: exp.Expr, sources: Mapping[str, _Rows]) -> bool:
    """The query names columns of the sources around it."""
    return any(column.table in sources for column in query.find_all(exp.Column))


def _is_limited(query: exp.Expr) -> bool:
    return any(query.args.get(name) for name in ("limit", "offset", "fetch"))
