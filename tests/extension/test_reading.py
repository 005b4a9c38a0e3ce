"""What kernels read: partition by partition, by plans that a session keeps, and right whatever changes between calls."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import errors

_APP = "reading"
_START = datetime(2025, 1, 1, tzinfo=UTC)
_STATEMENTS = (
    'funnel "A" -> "B" -> "C" within 40 days',
    'funnel ("A" or "B" or pageview) -> ("B" or "C") within 3 days group by country',
    'funnel "A" -> "B" within 40 days first time by month',
    'funnel "B" -> "C" within 2 hours group by country of step 2',
    'time from "A" to "C" within 40 days',
)
_RANGES = ("", " from '2025-02-10' to '2025-03-05'", " since '2024-06-01'")


@pytest.fixture(scope="module")
def app(dsn: str) -> Iterator[str]:
    """An app with six months of partitions, of which the third is missing, and events of other times."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT heap.create_app(%s)", (_APP,))
        connection.execute("SELECT heap.make_partitions(%s, '2025-01-01', '2025-02-01')", (_APP,))
        connection.execute("SELECT heap.make_partitions(%s, '2025-04-01', '2025-06-01')", (_APP,))
        _settle(connection)
        for name, path in (("A", "/a"), ("B", "/b"), ("C", "/c")):
            connection.execute("SELECT heap.define_event(%s, %s)", (name, f"pageview where path = '{path}'"))
        yield dsn
        connection.execute("SELECT heap.drop_app(%s)", (_APP,))


@pytest.fixture
def reader(app: str) -> Iterator[psycopg.Connection[Any]]:
    """A session of its own, with nothing kept yet; events are gone after it."""
    with psycopg.connect(app, autocommit=True) as connection:
        _settle(connection)
        yield connection
        connection.execute("RESET ROLE")
        connection.execute(f"TRUNCATE {_APP}.events")


def _settle(connection: psycopg.Connection[Any]) -> None:
    connection.execute("SELECT set_config('heap.app', %s, false), set_config('heap.now', '2025-06-20', false)", (_APP,))


def _ask(connection: psycopg.Connection[Any], statement: str, strategy: str = "vector") -> list[Any]:
    return connection.execute(_sql(connection, statement, strategy).encode()).fetchall()


def _sql(connection: psycopg.Connection[Any], statement: str, strategy: str = "vector") -> str:
    connection.execute("SELECT set_config('heap.strategy', %s, false)", (strategy,))
    (sql,) = connection.execute("SELECT heap.sql(%s)", (statement,)).fetchone() or ("",)
    assert ("heap._funnel_kernel" in sql) == (strategy == "vector")
    return str(sql)


def _insert(connection: psycopg.Connection[Any], events: list[tuple[int, datetime, int, str]]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {_APP}.events (user_id, time, event_id, type, path, country)"
            " VALUES (%s, %s, %s, 'pageview', %s, %s)",
            [(user, time, event_id, path, ("DE", "AT", None)[event_id % 3]) for user, time, event_id, path in events],
        )


def _converts(user: int, at: datetime) -> list[tuple[int, datetime, int, str]]:
    return [(user, at + timedelta(minutes=minute), minute, path) for minute, path in enumerate(("/a", "/b", "/c"))]


def _users(connection: psycopg.Connection[Any]) -> list[int]:
    """How many users take each step of A -> B -> C, by kernels."""
    return [row[3] for row in _ask(connection, 'funnel "A" -> "B" -> "C" within 1 day since \'2020-01-01\'')]


def test_late_rows_in_many_partitions_are_read_in_their_order(reader: psycopg.Connection[Any]) -> None:
    """Events come in any order of time, also before all partitions, in a gap between them and behind them; several at
    one instant. After each batch, the session that asked before answers as SQL does."""
    draw = random.Random(4)
    for batch in range(3):
        events = {}
        for _ in range(80):
            time = _START + timedelta(
                days=draw.choice((-300, 40, 41, 70, 75, 100, 150, 151)), minutes=draw.randrange(3)
            )
            event = (draw.randrange(6), time, batch * 100 + draw.randrange(80), draw.choice(("/a", "/b", "/c", "/d")))
            events[event[:3]] = event
        _insert(reader, list(events.values()))
        for at, statement in enumerate(_STATEMENTS):
            asked = statement + _RANGES[(batch + at) % len(_RANGES)]
            assert _ask(reader, asked) == _ask(reader, asked, "merge"), asked


def test_few_users_are_looked_up_as_long_as_they_are_on_their_way(reader: psycopg.Connection[Any]) -> None:
    """Steps are said to have so many events that whoever is on their way to one is looked up there; the windows of
    users reach over partitions, gaps between them and the ends of ranges."""
    rng = random.Random(5)
    moments = [_START + timedelta(days=rng.randrange(-40, 170), minutes=rng.randrange(3)) for _ in range(150)]
    places = {(rng.randrange(-20, 20), rng.choice(moments), rng.randrange(4)) for _ in range(1_500)}
    _insert(reader, [(*place, rng.choice(("/a", "/b", "/c"))) for place in sorted(places, key=lambda _: rng.random())])
    for statement in (*_STATEMENTS, 'funnel "A" ->[within 1 day] "B" ->[within 20 days] "C" within 60 days'):
        for over in _RANGES:
            sql = re.sub(r'"size":(null|\d+)', '"size":5000', _sql(reader, statement + over))
            assert reader.execute(sql.encode()).fetchall() == _ask(reader, statement + over, "merge"), statement + over


def test_an_event_redefined_is_another_one_in_the_same_session(reader: psycopg.Connection[Any]) -> None:
    _insert(reader, [*_converts(1, _START), (2, _START, 1, "/a"), (2, _START, 2, "/x"), (2, _START, 3, "/c")])
    assert _users(reader) == [2, 1, 1]
    reader.execute("SELECT heap.define_event('B', 'pageview where path in (''/b'', ''/x'')')")
    assert _users(reader) == [2, 2, 2]
    reader.execute("SELECT heap.define_event('B', 'pageview where path = ''/x''')")
    assert _users(reader) == [2, 1, 1]
    reader.execute("SELECT heap.define_event('B', 'pageview where path = ''/b''')")
    assert _users(reader) == [2, 1, 1]


def test_partitions_come_and_go_between_calls(reader: psycopg.Connection[Any]) -> None:
    """Events wait in the default partition, move to their own when it is made, and go with it."""
    _insert(reader, _converts(1, _START) + _converts(2, datetime(2023, 5, 30, tzinfo=UTC)))
    assert _users(reader) == [2, 2, 2]
    reader.execute("SELECT heap.make_partitions(%s, '2023-05-01', '2023-05-01')", (_APP,))
    assert _users(reader) == [2, 2, 2]
    _insert(reader, _converts(3, datetime(2023, 5, 1, tzinfo=UTC)))
    assert _users(reader) == [3, 3, 3]
    reader.execute(f"DROP TABLE {_APP}.events_2023_05")
    assert _users(reader) == [1, 1, 1]


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_partitions_are_detached_attached_and_renamed_between_calls(reader: psycopg.Connection[Any]) -> None:
    _insert(reader, _converts(1, _START) + _converts(2, datetime(2025, 4, 5, tzinfo=UTC)))
    april = f"{_APP}.events_2025_04"
    bounds = "FROM ('2025-04-01 00:00+00') TO ('2025-05-01 00:00+00')"
    assert _users(reader) == [2, 2, 2]
    reader.execute(f"ALTER TABLE {_APP}.events DETACH PARTITION {april}")
    assert _users(reader) == [1, 1, 1]
    reader.execute(f"ALTER TABLE {_APP}.events ATTACH PARTITION {april} FOR VALUES {bounds}")
    assert _users(reader) == [2, 2, 2]
    reader.execute(f"ALTER TABLE {april} RENAME TO april")
    assert _users(reader) == [2, 2, 2]
    reader.execute(f"ALTER TABLE {_APP}.april RENAME TO events_2025_04")
    assert _users(reader) == [2, 2, 2]


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_a_snapshot_sees_events_once_while_they_move_to_a_partition_of_their_own(
    app: str, reader: psycopg.Connection[Any]
) -> None:
    _insert(reader, _converts(1, _START) + _converts(2, datetime(2025, 3, 5, tzinfo=UTC)))
    with psycopg.connect(app) as earlier:
        earlier.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        _settle(earlier)  # takes its snapshot
        reader.execute("SELECT heap.make_partitions(%s, '2025-03-01', '2025-03-01')", (_APP,))
        _insert(reader, _converts(3, datetime(2025, 3, 6, tzinfo=UTC)))
        assert _users(earlier) == [2, 2, 2]
        assert _users(reader) == [3, 3, 3]
        earlier.commit()
        assert _users(earlier) == [3, 3, 3]
        earlier.commit()
        _settle(earlier)
        reader.execute(f"DROP TABLE {_APP}.events_2025_03")
        assert _users(earlier) == [1, 1, 1], "what is dropped is gone for every snapshot"


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_two_apps_that_change_names_answer_for_themselves(reader: psycopg.Connection[Any]) -> None:
    """As when an app was rebuilt from the log: the session knows partitions and plans by names."""
    reader.execute("SELECT heap.create_app('reread')")
    try:
        for name, path in (("A", "/a"), ("B", "/b"), ("C", "/c")):
            reader.execute("SELECT set_config('heap.app', 'reread', false)")
            reader.execute("SELECT heap.define_event(%s, %s)", (name, f"pageview where path = '{path}'"))
        _insert(reader, _converts(1, _START))
        asked = {"reread": [0, 0, 0], _APP: [1, 1, 1]}
        for swapped in (False, True, False):
            for app, users in asked.items():
                reader.execute("SELECT set_config('heap.app', %s, false)", (app,))
                assert _users(reader) == (users if not swapped else [1 - users[0]] * 3), (app, swapped)
            for old, new in ((_APP, "aside"), ("reread", _APP), ("aside", "reread")):
                reader.execute(f"ALTER SCHEMA {old} RENAME TO {new}")
    finally:
        if reader.execute("SELECT to_regclass('reread.events_2025_01')").fetchone() != (None,):
            for old, new in ((_APP, "aside"), ("reread", _APP), ("aside", "reread")):
                reader.execute(f"ALTER SCHEMA {old} RENAME TO {new}")
        reader.execute("SELECT heap.drop_app('reread')")
        _settle(reader)


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_one_session_reads_what_each_of_its_roles_may(reader: psycopg.Connection[Any]) -> None:
    """Plans and events are kept per session, rights are the caller's: all, none, no partition by itself, the rows of a
    policy."""
    _insert(reader, _converts(1, _START) + _converts(2, _START))
    reader.execute(f"VACUUM {_APP}.events")  # else nothing would be kept
    for role in ("reading_reader", "reading_narrow"):
        reader.execute(f"DROP ROLE IF EXISTS {role}")
        reader.execute(f"CREATE ROLE {role} IN ROLE heap_{_APP}_read")
    try:
        sql = _sql(reader, 'funnel "A" -> "B" within 1 day since \'2020-01-01\'')

        def users() -> int:
            return int(reader.execute(sql.encode()).fetchall()[0][3])

        assert users() == 2
        reader.execute("SET ROLE reading_reader")
        assert users() == 2
        reader.execute("RESET ROLE")
        reader.execute(f"REVOKE SELECT ON ALL TABLES IN SCHEMA {_APP} FROM heap_{_APP}_read")
        reader.execute("SET ROLE reading_reader")
        with pytest.raises(errors.InsufficientPrivilege):
            users()
        reader.execute("RESET ROLE")
        assert users() == 2
        reader.execute(f"GRANT SELECT ON {_APP}.events, {_APP}.shards TO reading_narrow")
        reader.execute("SET ROLE reading_narrow")
        assert users() == 2
        reader.execute("RESET ROLE")
        reader.execute("SELECT heap.grant_roles()")
        reader.execute(f"ALTER TABLE {_APP}.events ENABLE ROW LEVEL SECURITY")
        reader.execute(f"CREATE POLICY own ON {_APP}.events USING (current_user <> 'reading_narrow' OR user_id = 1)")
        for role, count in (("reading_narrow", 1), ("reading_reader", 2), ("reading_narrow", 1)):
            reader.execute(f"SET ROLE {role}")
            assert users() == count, role
            reader.execute("RESET ROLE")
            assert users() == 2
    finally:
        reader.execute("RESET ROLE")
        reader.execute(f"DROP POLICY IF EXISTS own ON {_APP}.events")
        reader.execute(f"ALTER TABLE {_APP}.events DISABLE ROW LEVEL SECURITY")
        reader.execute("SELECT heap.grant_roles()")
        for role in ("reading_reader", "reading_narrow"):
            reader.execute(f"DROP OWNED BY {role}")
            reader.execute(f"DROP ROLE {role}")
