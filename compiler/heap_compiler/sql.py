"""Small builders of sqlglot expressions. SQL is only ever built from these and sqlglot's own; user text enters as a
quoted literal or a quoted name, never as SQL."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache, lru_cache
from typing import Literal, TypeVar

from sqlglot import Dialect, Generator, exp

__all__ = [
    "FALSE",
    "all_of",
    "any_of",
    "cast",
    "column",
    "conjuncts",
    "copied",
    "divided",
    "elapsed",
    "events_table",
    "function",
    "generate",
    "greatest",
    "identifier",
    "instant_of",
    "is_set",
    "join",
    "list_table",
    "microseconds",
    "named",
    "number",
    "numbered_times",
    "numbers",
    "select",
    "shards_table",
    "share",
    "subquery",
    "table_alias",
    "text",
    "text_array",
    "timestamp",
    "timestamps",
    "union_all",
    "users_table",
    "walk",
    "with_ctes",
    "written",
]

FALSE = exp.Boolean(this=False)

_E = TypeVar("_E", bound=exp.Expr)


def column(name: str, table: str | None = None) -> exp.Column:
    """A column, quoted only when PostgreSQL needs it."""
    return exp.Column(this=identifier(name), table=identifier(table) if table else None)


@lru_cache(maxsize=4096)
def identifier(name: str) -> exp.Identifier:
    """A name, quoted only when PostgreSQL needs it. One object wherever the name stands: not to be changed."""
    return exp.to_identifier(name)


def copied(expression: _E) -> _E:
    """A copy to be put elsewhere: an expression has one place, but for names and types. Several times as fast as
    sqlglot's `copy`."""
    if type(expression) in _SHARED:
        return expression
    copy = type(expression)(
        **{
            key: copied(value)
            if isinstance(value, exp.Expr)
            else [copied(part) if isinstance(part, exp.Expr) else part for part in value]
            if isinstance(value, list)
            else value
            for key, value in expression.args.items()
        }
    )
    if expression._meta is not None:
        copy.meta.update(expression._meta)
    return copy


def walk(expression: exp.Expr) -> list[exp.Expr]:
    """The expression and all its parts, breadth first; of columns and constants no parts. Several times as fast as
    sqlglot's `walk`."""
    found = [expression]
    for part in found:  # it grows on the way
        if type(part) not in _LEAVES:
            for value in part.args.values():
                if isinstance(value, exp.Expr):
                    found.append(value)
                elif isinstance(value, list):
                    found += [inner for inner in value if isinstance(inner, exp.Expr)]
    return found


_LEAVES = frozenset({exp.Column, exp.Identifier, exp.Literal, exp.DataType, exp.Star})
_SHARED = frozenset({exp.Identifier, exp.DataType})


def text(value: str) -> exp.Literal:
    """A string constant."""
    return exp.Literal.string(value)


def number(value: int | Decimal) -> exp.Expr:
    """A numeric constant, written without an exponent."""
    literal = exp.Literal.number(format(abs(value), "f") if isinstance(value, Decimal) else str(abs(value)))
    return exp.Neg(this=literal) if value < 0 else literal


def timestamp(value: datetime) -> exp.Expr:
    """A timestamptz constant, in UTC whatever the session's zone."""
    return cast(text(_utc(value)), "timestamptz")


def timestamps(values: Sequence[datetime]) -> exp.Expr:
    """A timestamptz[] constant as one literal: thousands of boundaries still parse fast."""
    return cast(text("{" + ",".join(f'"{_utc(value)}"' for value in values) + "}"), "timestamptz[]")


def _utc(value: datetime) -> str:
    instant = value.astimezone(UTC)
    fraction = f".{instant.microsecond:06d}" if instant.microsecond else ""
    return f"{instant.year:04d}-{instant:%m-%d %H:%M:%S}{fraction}+00"


def elapsed(value: timedelta) -> exp.Expr:
    """An interval constant in hours: arithmetic with days in it is several times slower in PostgreSQL."""
    seconds = value.days * 86_400 + value.seconds
    fraction = f".{value.microseconds:06d}" if value.microseconds else ""
    written = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}"
    return cast(text(written), "interval")


def function(name: str, *arguments: exp.Expr) -> exp.Expr:
    """A call of a PostgreSQL function by its own name."""
    return exp.Anonymous(this=name, expressions=list(arguments))


def greatest(*values: exp.Expr) -> exp.Expr:
    """The greatest of the values, nulls left out; arrays compare element by element."""
    return function("greatest", *values)


def microseconds(time: exp.Expr) -> exp.Expr:
    """A timestamptz as whole microseconds since 1970, exact."""
    seconds = exp.Extract(this=exp.var("epoch"), expression=time)
    return cast(exp.paren(exp.Mul(this=seconds, expression=number(1_000_000))), "bigint")


def instant_of(microseconds: exp.Expr) -> exp.Expr:
    """The timestamptz of whole microseconds since 1970; exact until the year 2255."""
    one = cast(text("1 microsecond"), "interval")
    return exp.Add(this=cast(text("epoch"), "timestamptz"), expression=exp.Mul(this=microseconds, expression=one))


def text_array(values: Iterable[exp.Expr]) -> exp.Expr:
    """A text[] of the values; the cast keeps the empty one typed."""
    return cast(exp.Array(expressions=list(values)), "text[]")


def all_of(conditions: Sequence[exp.Expr]) -> exp.Expr:
    """The conjunction; of nothing, TRUE."""
    return exp.and_(*conditions, copy=False) if conditions else exp.true()


def any_of(conditions: Sequence[exp.Expr]) -> exp.Expr:
    """The disjunction, in parentheses."""
    return exp.paren(exp.or_(*conditions, copy=False)) if len(conditions) > 1 else conditions[0]


def conjuncts(condition: exp.Expr) -> Iterator[exp.Expr]:
    """The parts of a conjunction, nested ones flattened, without the parentheses around them.

    >>> [part.sql() for part in conjuncts(exp.maybe_parse("a = 1 AND (b = 2 AND c = 3)"))]
    ['a = 1', 'b = 2', 'c = 3']
    """
    inner = condition.unnest()
    if isinstance(inner, exp.And):
        yield from conjuncts(inner.left)
        yield from conjuncts(inner.right)
    elif not (isinstance(inner, exp.Boolean) and inner.this):
        yield inner


def events_table(schema: str, alias: str | None = None) -> exp.Table:
    """The app's table of events."""
    return _table("events", schema, alias)


def table_alias(name: str, *columns: str) -> exp.TableAlias:
    """A name for a source of rows, and for its columns."""
    return exp.TableAlias(this=identifier(name), columns=[identifier(part) for part in columns])


def numbered_times(values: Sequence[datetime], name: str, *, time: str, number: str) -> exp.Unnest:
    """The instants as rows `time, number` of a source called `name`, numbered from 1."""
    return exp.Unnest(expressions=[timestamps(values)], alias=table_alias(name, time), offset=identifier(number))


def numbers(first: int, last: int, name: str, value: str) -> exp.Table:
    """The whole numbers from `first` to `last` as rows of a source called `name`."""
    return exp.Table(this=function("generate_series", number(first), number(last)), alias=table_alias(name, value))


def users_table(schema: str) -> exp.Table:
    """The app's table of users."""
    return _table("users", schema)


def shards_table(schema: str) -> exp.Table:
    """The app's table with one row in every shard."""
    return _table("shards", schema)


def list_table(schema: str, name: str) -> exp.Table:
    """The list of a segment's users."""
    return _table(name, schema)


def _table(name: str, schema: str, alias: str | None = None) -> exp.Table:
    return exp.Table(
        this=exp.to_identifier(name, quoted=True),
        db=exp.to_identifier(schema, quoted=True),
        alias=table_alias(alias) if alias else None,
    )


def share(part: exp.Expr, whole: exp.Expr) -> exp.Expr:
    """part / whole as numeric with 8 decimals, null when the whole is 0."""
    return function("trim_scale", function("round", divided(cast(part, "numeric"), whole), number(8)))


def divided(value: exp.Expr, by: exp.Expr) -> exp.Expr:
    """value / by in the values' own type, null when dividing by 0."""
    return exp.Div(this=value, expression=exp.Nullif(this=by, expression=number(0)), typed=True)


def subquery(query: exp.Query, alias: str) -> exp.Subquery:
    """The query in parentheses, under a name, as a source of rows."""
    return exp.Subquery(this=query, alias=table_alias(alias))


def named(value: exp.Expr, name: str) -> exp.Expr:
    """`value AS name`; a column that has the name already stays as it is."""
    if isinstance(value, exp.Column) and value.name == name:
        return value
    return exp.Alias(this=value, alias=identifier(name))


def cast(value: exp.Expr, type_name: str) -> exp.Cast:
    """CAST(value AS type_name), a PostgreSQL type."""
    return exp.Cast(this=value, to=_data_type(type_name))


@cache
def _data_type(type_name: str) -> exp.DataType:
    return exp.DataType.build(type_name, dialect="postgres")


def is_set(value: exp.Expr) -> exp.Expr:
    """value IS NOT NULL"""
    return exp.Not(this=exp.Is(this=value, expression=exp.Null()))


def join(source: exp.Expr, on: Sequence[exp.Expr] = (), kind: Literal["", "CROSS", "LEFT"] = "") -> exp.Join:
    """A join for `select`."""
    sides = {"side": "LEFT"} if kind == "LEFT" else {"kind": kind}
    return exp.Join(this=source, on=all_of(on) if on else None, **sides)


def select(
    columns: Iterable[exp.Expr],
    source: exp.Expr | str,
    *,
    joins: Sequence[exp.Join] = (),
    where: Sequence[exp.Expr] = (),
    group_by: Sequence[exp.Expr] = (),
    having: exp.Expr | None = None,
    windows: Sequence[exp.Window] = (),
    distinct: bool = False,
    distinct_on: Sequence[exp.Expr] = (),
    order_by: Sequence[exp.Expr] = (),
    limit: int | None = None,
) -> exp.Select:
    """A SELECT. It takes its parts as they are: sqlglot's own builder copies each of them, half of all compile time."""
    query = exp.Select(
        expressions=list(columns),
        from_=exp.From(this=exp.table_(source) if isinstance(source, str) else source),
        joins=list(joins),
    )
    if where:
        query.set("where", exp.Where(this=all_of(where)))
    if group_by:
        query.set("group", exp.Group(expressions=list(group_by)))
    if having is not None:
        query.set("having", exp.Having(this=having))
    if windows:
        query.set("windows", list(windows))
    if distinct or distinct_on:
        on = exp.Tuple(expressions=list(distinct_on)) if distinct_on else None
        query.set("distinct", exp.Distinct(on=on))
    if order_by:
        query.set("order", exp.Order(expressions=list(order_by)))
    if limit is not None:
        query.set("limit", exp.Limit(expression=number(limit)))
    return query


def with_ctes(
    query: exp.Select, ctes: Iterable[tuple[str, exp.Query]], *, materialized: Collection[str] = ()
) -> exp.Select:
    """The query with the named queries in front of it.

    Args:
        materialized: names of those that are computed beforehand, as the totals of kernels always are.
    """
    named_queries = [
        exp.CTE(
            this=cte,
            alias=table_alias(name),
            materialized=True if name in materialized or "kernel" in cte.meta else None,
        )
        for name, cte in ctes
    ]
    query.set("with_", exp.With(expressions=named_queries))
    return query


def union_all(queries: Sequence[exp.Query]) -> exp.Query:
    """UNION ALL of the queries, each in parentheses when it has an order of its own."""
    parts: list[exp.Query] = [
        exp.Subquery(this=query) if query.args.get("order") and len(queries) > 1 else query for query in queries
    ]
    union = parts[0]
    for part in parts[1:]:
        union = exp.Union(this=union, expression=part, distinct=False)
    return union


def generate(expression: exp.Expr) -> str:
    """PostgreSQL's text of the expression. Queries are laid out for reading."""
    return _generator(pretty=isinstance(expression, exp.Query)).generate(expression, copy=False)


def written(expression: exp.Expr) -> str:
    """PostgreSQL's text of the expression, on one line."""
    return _generator(pretty=False).generate(expression, copy=False)


@cache
def _generator(*, pretty: bool) -> Generator:
    return Dialect.get_or_raise("postgres").generator(pretty=pretty, normalize_functions=False, comments=False)
