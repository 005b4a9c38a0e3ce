"""Defining, redefining and dropping events, on PostgreSQL and on Citus."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.extension.shop_app import ensure_shop, settle
from tests.histories import insert
from tests.oracle import Event

_NOTHING = {"path": None, "target_text": None, "hierarchy": None, "country": None}


@pytest.fixture
def app(dsn: str, connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    connection.execute("SELECT heap.create_app('defs')")
    connection.execute("SET heap.app = 'defs'")
    connection.execute("SET heap.now = '2026-01-20'")
    connection.execute("SELECT heap.make_partitions('defs', '2025-12-31', '2026-01-01')")
    from datetime import UTC, datetime

    at = datetime(2026, 1, 15, tzinfo=UTC)
    events = [
        Event(user, at, user * 10 + number, kind, None, {**_NOTHING, "path": path})
        for user in (1, 2) for number, (kind, path) in enumerate([("pageview", "/a"), ("pageview", "/b"), ("x", "/a")])
    ]  # fmt: skip
    insert(connection, "defs", events)
    return connection


def _count(connection: psycopg.Connection[Any], event: str) -> int:
    (value,) = connection.execute("SELECT value FROM heap.trend(%s)", (f"count of {event}",)).fetchone() or (None,)
    return int(value)


def _indexes(connection: psycopg.Connection[Any]) -> list[str]:
    rows = connection.execute(
        "SELECT indexname FROM pg_indexes WHERE schemaname = 'defs' AND tablename ~ '^events_2026_01$'"
        " AND indexname NOT LIKE '%pkey' ORDER BY 1"
    )
    return [name for (name,) in rows]


def _states(connection: psycopg.Connection[Any]) -> set[tuple[str, str]]:
    """Events and the states of their indexes on the tables here: what nodes have is seen once it is committed."""
    return set(connection.execute("SELECT event, state FROM heap.index_health('defs') WHERE node IS NULL").fetchall())


def test_a_definition_holds_for_all_history_and_has_its_index(app: psycopg.Connection[Any]) -> None:
    app.execute("SELECT heap.query('define \"A\" as pageview where path = ''/a''')")
    assert _count(app, '"A"') == 2
    assert len(_indexes(app)) == 1
    assert _states(app) == {("A", "valid")}


def test_the_view_counts_matches_and_bytes_over_all_shards(dsn: str, connection: psycopg.Connection[Any]) -> None:
    ensure_shop(dsn)
    for name, matching, size in connection.execute(
        "SELECT name, matching_events, bytes FROM heap.events WHERE app = 'shop'"
    ).fetchall():
        settle(connection)
        statement = 'count of "' + name + "\" from '2026-01-01' to '2026-12-31'"
        (counted,) = connection.execute("SELECT value FROM heap.trend(%s)", (statement,)).fetchone() or (None,)
        assert abs(matching - counted) <= counted // 50  # as VACUUM estimated it
        assert size > 0


def test_redefining_swaps_the_index_and_those_of_events_made_of_it(app: psycopg.Connection[Any]) -> None:
    app.execute("SELECT heap.define_event('A', 'pageview where path = ''/a''')")
    app.execute("SELECT heap.define_event('A or x', '\"A\" or x')")
    before = _indexes(app)
    assert (_count(app, '"A"'), _count(app, '"A or x"')) == (2, 4)
    app.execute("SELECT heap.define_event('A', 'pageview')")
    after = _indexes(app)
    assert (_count(app, '"A"'), _count(app, '"A or x"')) == (4, 6)
    assert len(after) == len(before) == 2
    assert not set(before) & set(after)


def test_a_definition_cannot_contain_itself(app: psycopg.Connection[Any]) -> None:
    app.execute("SELECT heap.define_event('A', 'pageview'), heap.define_event('B', '\"A\" or x')")
    with pytest.raises(psycopg.Error, match='"A" would contain itself'):
        app.execute("SELECT heap.define_event('A', '\"B\"')")


def test_dropping_removes_the_index_unless_another_event_needs_the_definition(
    app: psycopg.Connection[Any],
) -> None:
    app.execute("SELECT heap.define_event('A', 'pageview'), heap.define_event('B', '\"A\" or x')")
    with app.transaction(), pytest.raises(psycopg.Error, match='"A" is part of "B"'), app.transaction():
        app.execute("SELECT heap.drop_event('A')")
    app.execute("SELECT heap.drop_event('B'), heap.drop_event('A')")
    assert _indexes(app) == []
    with pytest.raises(psycopg.Error, match='unknown event "A"'):
        app.execute("SELECT heap.drop_event('A')")


def test_what_heap_maintain_did_not_come_to_drop_is_no_obstacle(app: psycopg.Connection[Any]) -> None:
    app.execute("SELECT heap.define_event('A', 'pageview where path = ''/a''')")
    (left,) = _indexes(app)
    app.execute("UPDATE heap.settings SET index_builds = 'maintain'")
    app.execute("SELECT heap.drop_event('A')")
    assert _indexes(app) == [left], "left to heap maintain, which is not there"
    app.execute("UPDATE heap.settings SET index_builds = 'statement'")
    app.execute("SELECT heap.define_event('A', 'pageview where path = ''/a''')")
    assert _indexes(app) == [left]
    assert _states(app) == {("A", "valid")}


def test_new_partitions_have_every_index_and_take_over_what_waited(app: psycopg.Connection[Any]) -> None:
    app.execute("SELECT heap.define_event('A', 'pageview')")
    app.execute(
        "INSERT INTO defs.events (user_id, time, event_id, type) VALUES (7, '2024-02-29 12:00Z', 1, 'pageview')"
    )
    app.execute("SELECT heap.make_partitions('defs', '2024-02-01', '2024-03-31')")
    rows = app.execute("SELECT tableoid::regclass::text FROM defs.events WHERE user_id = 7").fetchall()
    if not app.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone():
        assert rows == [("defs.events_2024_02",)]
    assert len(rows) == 1
    assert _states(app) == {("A", "valid")}


@pytest.mark.parametrize(
    "document", ["null", "5", '"text"', "[1, [2]]", "true", '{"a": {"b": [null]}}', "{}", '"\\ud83d\\ude00"']
)
def test_no_json_makes_an_insert_or_an_analysis_fail(app: psycopg.Connection[Any], document: str) -> None:
    app.execute(
        "SELECT heap.define_event('Deep', 'any where a > 5 or b contains ''x'' or c in (1, ''y'') or not d = true')"
    )
    app.execute(
        "INSERT INTO defs.events (user_id, time, event_id, type, properties) VALUES (9, '2026-01-15', 1, 'x', %s::jsonb)",
        (document,),
    )
    assert _count(app, '"Deep" where user_id = 9') == 1
    app.execute("SELECT * FROM heap.trend('avg(a) of any group by a, property \"odd\"')").fetchall()


def test_apps_are_created_once_and_dropped_whole(app: psycopg.Connection[Any]) -> None:
    with app.transaction(), pytest.raises(psycopg.Error, match="exists already"), app.transaction():
        app.execute("SELECT heap.create_app('defs')")
    for name in ("Shop", "pg_x", "heap", "", "a b", "a" * 40):
        with app.transaction(), pytest.raises(psycopg.Error, match="cannot name an app"), app.transaction():
            app.execute("SELECT heap.create_app(%s)", (name,))
    with (
        app.transaction(),
        pytest.raises(psycopg.Error, match="did you mean 'Europe/Berlin'"),
        app.transaction(),
    ):
        app.execute("SELECT heap.create_app('zoned', 'Europe/Brelin')")
    app.execute("SELECT heap.drop_app('defs')")
    assert app.execute("SELECT count(*) FROM heap.event_definition WHERE app = 'defs'").fetchone() == (0,)
    with pytest.raises(psycopg.Error, match="app"):
        app.execute("SELECT heap.query('trend count of any')")


def _index_columns(connection: psycopg.Connection[Any]) -> list[str]:
    """What the indexes of January have between the table and the condition, in the order of their names."""
    rows = connection.execute(
        "SELECT substring(indexdef FROM 'btree (.*) WHERE') FROM pg_indexes WHERE schemaname = 'defs'"
        " AND tablename = 'events_2026_01' AND indexname NOT LIKE '%pkey' ORDER BY indexname"
    )
    return [columns for (columns,) in rows]


def test_covered_columns_stay_through_redefinitions_until_taken_back(app: psycopg.Connection[Any]) -> None:
    app.execute("SELECT heap.define_event('A', 'pageview where path = ''/a''')")
    plain = _indexes(app)
    app.execute("SELECT heap.cover_event('A', 'country', 'session_id')")
    covered = _indexes(app)
    assert _index_columns(app) == ['(user_id, "time", event_id) INCLUDE (country, session_id)']
    assert len(covered) == 1
    assert covered != plain
    assert _states(app) == {("A", "valid")}
    assert _count(app, '"A"') == 2
    app.execute("SELECT heap.define_event('A', 'pageview')")
    assert _index_columns(app) == ['(user_id, "time", event_id) INCLUDE (country, session_id)']
    assert _count(app, '"A"') == 4
    app.execute("SELECT heap.define_event('A', 'pageview where path = ''/a'''), heap.cover_event('A')")
    assert _indexes(app) == plain
    app.execute("SELECT heap.cover_event('A', 'country')")
    app.execute("SELECT heap.make_partitions('defs', '2026-02-01', '2026-02-01')")
    (definition,) = app.execute(
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'defs' AND tablename = 'events_2026_02'"
        " AND indexname NOT LIKE '%pkey'"
    ).fetchone() or ("",)  # fmt: skip
    assert "INCLUDE (country)" in definition


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("heap.cover_event('AA', 'country')", 'unknown event "AA"(.|\n)*did you mean "A"'),
        ("heap.cover_event('A', 'contry')", "contry is no column of events(.|\n)*did you mean country"),
        ("heap.cover_event('A', 'time')", "every index has time"),
        ("heap.cover_event('A', 'city', 'city')", "city is named twice"),
        ("heap.cover_event('A', NULL)", "the name of a column, not null"),
        ("heap.cover_event('A', 'x\" text); DROP TABLE defs.events; --')", "is no column of events"),
        ("heap.cover_event('B after A', 'country')", 'no index of its own(.|\n)*cover "A" and "B"'),
    ],
)
def test_what_cannot_be_covered_is_said(app: psycopg.Connection[Any], call: str, message: str) -> None:
    app.execute("SELECT heap.define_event('A', 'pageview'), heap.define_event('B', 'x')")
    app.execute("SELECT heap.define_event('B after A', 'the first \"B\" after \"A\"')")
    before = _indexes(app)
    with pytest.raises(psycopg.Error, match=message), app.transaction():
        app.execute(f"SELECT {call}")
    assert _indexes(app) == before
