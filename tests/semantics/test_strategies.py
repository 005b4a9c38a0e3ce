"""Every strategy gives the rows of merge: neither probing, whichever steps it is chosen for, nor kernels change them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_compiler import CompiledQuery, compile_statement
from heap_compiler.catalog import Strategy
from tests.dictionary_catalog import DictionaryCatalog
from tests.extension.shop_app import ensure_shop
from tests.extension.shop_app import settle as settle_shop
from tests.histories import DEFINITIONS, histories, insert
from tests.oracle import Event
from tests.semantics_app import APP

_RARE, _FREQUENT = 1, 1_000_000


def _sql(statement: str, sizes: dict[str, int], strategy: Strategy = "auto", shards: int = 0) -> str:
    catalog = DictionaryCatalog({name: definition for name, (definition, _) in DEFINITIONS.items()}, sizes)
    catalog.schema = APP
    catalog.strategy = strategy
    catalog.shards = shards
    catalog.now = datetime(2025, 11, 5, 11, tzinfo=UTC)
    compiled = compile_statement(statement, catalog)
    assert isinstance(compiled, CompiledQuery)
    return compiled.sql


@settings(max_examples=80)
@given(data=st.data())
def test_probing_changes_no_answer(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    names = data.draw(st.lists(st.sampled_from(list(DEFINITIONS)), min_size=2, max_size=4))
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    window = data.draw(st.sampled_from(["1 second", "1 day", "30 days"]))
    grouped = data.draw(st.sampled_from(["", "group by country, user.plan"]))
    statement = f"funnel {' -> '.join(quoted)} within {window} {grouped}"
    rare = data.draw(st.sampled_from(names[:-1]))
    sizes = {name: _RARE if name == rare else _FREQUENT for name in names}
    probed = _sql(statement, sizes)
    if set(names[names.index(rare) + 1 :]) - {rare}:
        assert "AS probe" in probed
    insert(asked, APP, events)
    try:
        assert asked.execute(probed).fetchall() == asked.execute(_sql(statement, {})).fetchall(), statement
    finally:
        asked.rollback()


_CLAUSES = [
    "", "", "by day", "by week", "group by country", "group by country, user.plan", "group by country of step 2",
    "group by country of step 2 by day", "group by user.plan with total", "group by country top 1 by week", "first time",
    "first time group by country", "for users where plan = 'pro'", "for users who did \"Viewed\" group by country",
    "compared to previous period", "group by country with total compared to previous period",
]  # fmt: skip


_EFFORT_CLAUSES = ["", "group by country", "group by country, user.plan", "first time", "for users where plan = 'pro'"]

_RULES = [
    "", "counting sessions", "counting conversions", "holding path", "holding path counting sessions", "holding country, path",
    "holding path counting conversions", "strictly in order", "without {0}", "without {0} between step 1 and 2",
    "without {0} counting sessions", "without any first time holding path", "without {0} strictly in order",
]  # fmt: skip
_ANY_ORDER = ["in any order", "in any order counting sessions", "in any order holding path",
              "in any order holding path counting sessions"]  # fmt: skip


_CORRELATED = [
    "with country, user.plan", "with {0}, country", "with {0}, {1}, path at least 1 user", "with user.plan, {0} without {1}",
    "with country holding path at least 1 user", "with {0}, path first time at least 1 user",
]  # fmt: skip


_COUNTED = [
    "trend users of {0} by day", "trend users of {0}, count of {1} as 'counted', count of {0} as 'all of them' by week",
    "trend users of {0} / users of {1} as rate by month group by user.plan", "trend users of ({0} or {1}), count of ({0} or {1})",
    "lifecycle of {0} by week", "lifecycle of {0} by day group by country", "stickiness of {0} by day",
    "stickiness of {0} by week group by country, user.plan", "retention from {0} to {1} by day for 5 days",
    "retention from {0} to {1} by week for 3 weeks group by country, user.plan recurring",
    "retention from {0} to any by day in brackets (1, 3, 7 days) rolling group by path top 1",
    "retention from {0} to {1} by day for 9 days in 24 hour windows at least 2 times",
    "retention from any to {0} by day for 9 days streak",
    "sessions", "sessions by day", "sessions by week group by country, user.plan",
    "sessions by day group by country, path top 1", "sessions group by entry path top 2",
    "sessions where path != '/b' by day group by entry path", "sessions by month group by exit country, path, entry path",
    *(f"attribution of {{0}} to path by {model} within 1 day" for model in ("first", "last", "linear", "position")),
    "attribution of {0} to country, path by linear", "attribution of {0} to path from {1} within 1 hour",
    "attribution of sum(amount) of {0} to path by position from ({0} or {1})",
    "attribution of sum(amount) of {0} to country, path by linear within 1 second",
]  # fmt: skip


def _counted(draw: st.DrawFn, events: list[str], over: str) -> str:
    statement = draw(st.sampled_from(_COUNTED)).format(*events)
    users = draw(st.sampled_from(["", "", "for users where plan = 'pro'", 'for users who did "Viewed"']))
    return f"{statement} {users} {over}"


@st.composite
def _statements(draw: st.DrawFn) -> str:
    """What kernels serve."""
    names = draw(st.lists(st.sampled_from(list(DEFINITIONS)), min_size=2, max_size=4))
    events = ['"' + name.replace('"', '""') + '"' for name in names]
    events[0] = draw(st.sampled_from([events[0], "any", f"({events[0]} or pageview)"]))
    window = f"within {draw(st.sampled_from(['1 second', '1 hour', '1 day', '30 days']))}"
    over = draw(
        st.sampled_from(["", "from '2025-10-26' to '2025-10-26'", "since '2025-10-31 13:00'", "since '2020-01-01'"])
    )
    if draw(st.booleans()):
        return _counted(draw, events[:2], over)
    if draw(st.integers(0, 3)) == 0:
        group = draw(
            st.sampled_from(["", "group by country", "group by user.plan", "group by country, user.plan top 2"])
        )
        return f"time from {events[0]} to {events[1]} {window} {group} {over}"
    if draw(st.integers(0, 4)) == 0:
        factors = draw(st.sampled_from(_CORRELATED)).format(*draw(st.permutations(sorted({*events, "click"}))))
        return f"correlate {' -> '.join(events)} {window} {factors} {over}"
    is_effort = draw(st.integers(0, 3)) == 0
    clauses = draw(st.sampled_from(_EFFORT_CLAUSES if is_effort else _CLAUSES))
    in_any_order = "first time" not in clauses and draw(st.integers(0, 3)) == 0
    if in_any_order:
        arrows, rules = ["->"] * len(events[1:]), draw(st.sampled_from(_ANY_ORDER))
    else:
        ways = ["->", "->", "->[within 1 hour]", "->[within 1 second]", "-> optional", "->[within 1 day] optional"]
        arrows = [draw(st.sampled_from(ways)) for _ in events[1:]]
        rules = draw(st.sampled_from(_RULES)).format(draw(st.sampled_from(events)))
        rules = rules.replace("first time", "") if "first time" in clauses else rules
        rules = rules.replace("counting conversions", "") if is_effort else rules
    clauses = f"{rules} {clauses}"
    steps = events[0] + "".join(f" {arrow} {event}" for arrow, event in zip(arrows, events[1:], strict=True))
    return f"{'effort' if is_effort else 'funnel'} {steps} {window} {clauses} {'' if 'compared' in clauses else over}"


_users = st.lists(st.sampled_from([1, 2, 3, 2**53 + 1, 2**63 - 1, -(2**63)]), min_size=4, max_size=4, unique=True)


@settings(max_examples=80)
@given(data=st.data(), events=histories(), users=_users)
def test_kernels_change_no_answer(
    asked: psycopg.Connection[Any], data: st.DataObject, events: list[Event], users: list[int]
) -> None:
    """Also read in slices, when a step is said to be huge, and with users looked up, when one is said to be rare."""
    statement = data.draw(_statements())
    sizes = data.draw(
        st.sampled_from([{}, dict.fromkeys(DEFINITIONS, 20_000_000), {"Viewed": _FREQUENT, "Purchase": _RARE}])
    )
    insert(asked, APP, [replace(event, user_id=users[event.user_id % 4]) for event in events])
    try:
        (shards,) = asked.execute("SELECT shards FROM heap.app WHERE name = %s", (APP,)).fetchone() or (0,)
        vector, merged = (_sql(statement, sizes, strategy, shards) for strategy in ("vector", "merge"))
        assert "_kernel" in vector
        assert "_kernel" not in merged
        if data.draw(st.booleans()):
            vector = vector.replace('"size":null', '"size":40000000')  # read in slices
        assert _rounded(asked.execute(vector)) == _rounded(asked.execute(merged)), statement
    finally:
        asked.rollback()


def _rounded(answer: psycopg.Cursor[Any]) -> list[tuple[Any, ...]]:
    """The rows with intervals in whole milliseconds: SQL adds the seconds of an average up in any order."""
    return [
        tuple(round(value / timedelta(milliseconds=1)) if isinstance(value, timedelta) else value for value in row)
        for row in answer
    ]


def test_a_rare_first_step_is_probed_on_real_volumes(dsn: str, connection: psycopg.Connection[Any]) -> None:
    """Without kernels the database's own counts choose probing where it pays; the answer is that of reading everything."""
    ensure_shop(dsn)
    settle_shop(connection)
    connection.execute("SELECT heap.define_event('Rare', 'purchase where path = ''/checkout'' and amount > 120')")
    connection.execute("UPDATE heap.app SET shards = NULL WHERE name = 'shop'")
    statement = 'funnel "Rare" -> "Viewed product" within 7 days over last 60 days'
    (chosen,) = connection.execute("SELECT heap.sql(%s)", (statement,)).fetchone() or ("",)
    distributed = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone()
    assert ("AS probe" in chosen) is (not distributed), "a coordinator does not see what is not committed"
    found = connection.execute(chosen).fetchall()
    raw = statement.replace('"Rare"', "purchase where path = '/checkout' and amount > 120")
    (read,) = connection.execute("SELECT heap.sql(%s)", (raw,)).fetchone() or ("",)
    assert "AS probe" not in read
    everything = connection.execute(read).fetchall()
    assert [row[3:] for row in found] == [row[3:] for row in everything]
    assert found[0][3] > 5
