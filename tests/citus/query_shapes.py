"""Queries over events and users as the lowerings build them, right and wrong, for hypothesis to draw.

Every query of rows has the columns `user_id`, `time`, `event_id` and `name`; every query of totals has `name` and `n`.
"""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st
from sqlglot import exp

__all__ = ["mutations", "statements"]

_LEAVES = (
    "SELECT user_id, time, event_id, path AS name FROM shop.events",
    "SELECT user_id, time, event_id, type AS name FROM shop.events WHERE type = 'purchase'",
    "SELECT user_id, time, event_id, path AS name FROM shop.events ORDER BY user_id, time, event_id",
    "SELECT user_id, to_timestamp(0) AS time, user_id + 1 AS event_id, identity AS name FROM shop.users",
)
_ALL = "user_id, time, event_id, name"


def _mostly(right: str, *wrong: str) -> st.SearchStrategy[str]:
    """The right one three times in four."""
    return st.one_of(*[st.just(right)] * 3, st.sampled_from(wrong))


_key = _mostly("user_id", "name", "event_id", "user_id + 0")


@st.composite
def _narrowed(draw: st.DrawFn, rows: str) -> str:
    """A query over one source of rows."""
    match draw(st.sampled_from(["project", "window", "distinct", "group", "limit", "unnest", "constants"])):
        case "project":
            user = draw(_mostly("user_id", "event_id AS user_id", "user_id + 0 AS user_id"))
            order = draw(st.sampled_from(["", " ORDER BY time"]))
            return f"SELECT {user}, time, event_id, name FROM ({rows}) AS p{order}"
        case "window":
            keys = draw(st.one_of(_key, st.sampled_from(["name, user_id", "user_id, name"])))
            part = draw(_mostly(f"PARTITION BY {keys} ", ""))
            return f"SELECT user_id, max(time) OVER ({part}ORDER BY time) AS time, event_id, name FROM ({rows}) AS w"
        case "distinct":
            keys = draw(st.one_of(_key, st.just("user_id, name")))
            on = draw(st.sampled_from([f" ON ({keys})", ""]))
            return f"SELECT DISTINCT{on} {_ALL} FROM ({rows}) AS d"
        case "group":
            keys = draw(_mostly("user_id, name", "name", "event_id, name", "user_id"))
            columns = (name if name in keys.split(", ") else f"max({name}) AS {name}" for name in _ALL.split(", "))
            return f"SELECT {', '.join(columns)} FROM ({rows}) AS g GROUP BY {keys}"
        case "limit":
            limit = draw(_mostly("", " LIMIT 5", " OFFSET 5"))
            return f"SELECT {_ALL} FROM ({rows}) AS l ORDER BY time{limit}"
        case "unnest":
            return f"SELECT user_id, time, event_id, unnest(ARRAY[name, 'x']) AS name FROM ({rows}) AS u"
    constants = draw(st.sampled_from(["generate_series(1, 3) AS c(x)", "(VALUES (1), (2)) AS c(x)"]))
    return f"SELECT {_ALL} FROM ({rows}) AS s CROSS JOIN {constants}"


@st.composite
def _related(draw: st.DrawFn, left: str, right: str) -> str:
    """A query over two sources of rows."""
    key = draw(_key)
    other = draw(_mostly(f"b.{key}", "b.event_id"))
    of_left = "a.user_id, a.time, a.event_id, a.name"
    match draw(st.sampled_from(["join", "lateral", "member", "exists", "scalar", "set"])):
        case "join":
            kind = draw(st.sampled_from(["JOIN", "LEFT JOIN", "FULL JOIN"]))
            return (f"SELECT a.user_id, b.time, a.event_id, b.name FROM ({left}) AS a"
                    f" {kind} ({right}) AS b ON a.{key} = {other}")  # fmt: skip
        case "lateral":
            limit = draw(st.sampled_from(["", " ORDER BY b.time LIMIT 1"]))
            kind, on = draw(st.sampled_from([("CROSS JOIN", ""), ("LEFT JOIN", " ON true")]))
            body = f"SELECT b.time, b.name FROM ({right}) AS b WHERE {other} = a.{key}{limit}"
            return f"SELECT a.user_id, b.time, a.event_id, b.name FROM ({left}) AS a {kind} LATERAL ({body}) AS b{on}"
        case "member":
            negated = draw(_mostly("IN", "NOT IN"))
            also = draw(_mostly("", " OR a.name = 'x'"))
            asked = f"SELECT {other} FROM ({right}) AS b"
            return f"SELECT {of_left} FROM ({left}) AS a WHERE a.{key} {negated} ({asked}){also}"
        case "exists":
            negated = draw(st.sampled_from(["EXISTS", "NOT EXISTS"]))
            where = draw(_mostly(f" WHERE {other} = a.{key}", ""))
            return f"SELECT {of_left} FROM ({left}) AS a WHERE {negated} (SELECT 1 FROM ({right}) AS b{where})"
        case "scalar":
            value = f"(SELECT max(b.name) FROM ({right}) AS b WHERE {other} = a.{key})"
            return f"SELECT a.user_id, a.time, a.event_id, {value} AS name FROM ({left}) AS a"
    operator = draw(st.one_of(*[st.just("UNION ALL")] * 4, st.sampled_from(["UNION", "INTERSECT", "EXCEPT"])))
    columns = draw(_mostly(_ALL, "event_id, time, user_id, name"))
    return f"SELECT {_ALL} FROM ({left}) AS a {operator} SELECT {columns} FROM ({right}) AS b"


@st.composite
def _with_totals(draw: st.DrawFn, rows: str, totals: str) -> str:
    """A query over rows that asks totals, which are computed before."""
    kept = "r.user_id, r.time, r.event_id, r.name"
    match draw(st.sampled_from(["member", "scalar", "join", "union"])):
        case "member":
            return f"SELECT {kept} FROM ({rows}) AS r WHERE r.name IN (SELECT t.name FROM ({totals}) AS t)"
        case "scalar":
            return f"SELECT {kept} FROM ({rows}) AS r WHERE r.event_id > (SELECT max(t.n) FROM ({totals}) AS t)"
        case "union":
            return f"SELECT {_ALL} FROM ({rows}) AS r UNION ALL SELECT 1, now(), n, name FROM ({totals}) AS t"
    kind = draw(st.sampled_from(["JOIN", "LEFT JOIN", "RIGHT JOIN"]))
    return f"SELECT {kept} FROM ({rows}) AS r {kind} ({totals}) AS t ON t.name = r.name"


@st.composite
def _totals(draw: st.DrawFn, rows: str) -> str:
    """Aggregates of rows."""
    if draw(st.integers(0, 4)) == 0:
        counted = f"SELECT {draw(_key)} AS who, name, count(*) AS times FROM ({rows}) AS c GROUP BY 1, 2"
        return f"SELECT name, sum(times) AS n FROM ({counted}) AS f GROUP BY name"
    value = draw(_mostly("count(*)", "count(DISTINCT user_id)", "max(event_id)", "count(DISTINCT name)",
                         "cardinality(array_agg(name ORDER BY time))", "sum(count(*)) OVER ()"))  # fmt: skip
    end = draw(st.sampled_from(["", " HAVING count(*) > 1", " ORDER BY 2, 1 LIMIT 3"]))
    return f"SELECT name, {value} AS n FROM ({rows}) AS m GROUP BY name{end}"


@st.composite
def _rows(draw: st.DrawFn, depth: int) -> str:
    if depth == 0:
        return draw(st.sampled_from(_LEAVES))
    smaller = _rows(depth - 1)
    match draw(st.sampled_from(["leaf", "narrowed", "narrowed", "related", "related", "totals"])):
        case "leaf":
            return draw(st.sampled_from(_LEAVES))
        case "narrowed":
            return draw(_narrowed(draw(smaller)))
        case "related":
            return draw(_related(draw(smaller), draw(_rows(draw(st.integers(0, depth - 1))))))
    return draw(_with_totals(draw(smaller), draw(_totals(draw(_rows(0))))))


@st.composite
def statements(draw: st.DrawFn) -> str:
    """A statement of totals over up to three levels of queries, which may be named in WITH and read once or twice."""
    rows = draw(_rows(draw(st.integers(0, 3))))
    match draw(st.sampled_from(["plain", "plain", "once", "twice", "materialized"])):
        case "once":
            return f"WITH c AS ({rows}) {draw(_totals('SELECT * FROM c'))}"
        case "twice":
            both = draw(_related("SELECT * FROM c", "SELECT * FROM c"))
            return f"WITH c AS ({rows}) {draw(_totals(both))}"
        case "materialized":
            return f"WITH c AS MATERIALIZED ({rows}) {draw(_totals('SELECT * FROM c'))}"
    return draw(_totals(rows))


@st.composite
def mutations(draw: st.DrawFn, query: exp.Query) -> exp.Query:
    """A copy of a compiled query with one part changed that keeps it, or may keep it, on the shards."""
    mutated = query.copy()
    changes = list(_changes(mutated))
    node, replacement = draw(st.sampled_from(changes))
    if isinstance(replacement, exp.Expr):
        node.replace(replacement)
    else:
        name, value = replacement
        node.set(name, value)
    return mutated


def _changes(query: exp.Query) -> Iterator[tuple[exp.Expr, exp.Expr | tuple[str, object]]]:
    """Nodes of the query, and what may stand there instead, or be set of them."""
    for node in query.walk():
        match node:
            case exp.Window() if node.args.get("partition_by"):
                yield node, ("partition_by", [exp.column("time")])
            case exp.Group():
                kept = [key for key in node.expressions if key.name != "user_id"]
                yield node, ("expressions", [*kept, exp.column("session_id")])
            case exp.Distinct() if node.args.get("on"):
                yield node, ("on", exp.Tuple(expressions=[exp.column("time")]))
            case exp.Union():
                yield node, ("distinct", True)
                yield node, exp.Except(this=node.left.copy(), expression=node.right.copy(), distinct=True)
            case exp.In() if node.args.get("query"):
                yield node, exp.Not(this=node.copy())
                yield node, exp.Or(this=node.copy(), expression=exp.false())
            case exp.CTE():
                yield node, ("materialized", True)
            case exp.EQ() if node.left.name == node.right.name == "user_id":
                yield node.left, exp.column("event_id", node.left.args.get("table"))
                yield node, exp.GTE(this=node.left.copy(), expression=node.right.copy())
            case exp.Select() if node.parent is not None and not node.args.get("limit"):
                yield node, ("limit", exp.Limit(expression=exp.Literal.number(1000)))
            case exp.Column() if node.name == "user_id" and isinstance(node.parent, exp.Select):
                yield node, exp.alias_(exp.column("event_id", node.args.get("table")), "user_id")
