"""Users are merged, identified and erased, on PostgreSQL and on Citus."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_extension.maintain import Maintainer
from heap_extension.user_ids import hash_bigint
from tests import oracle
from tests.histories import NOW, ZONE, histories, insert
from tests.merges import finish_merges, person, relabelled
from tests.oracle import Event
from tests.servers import Lender

_Connection = psycopg.Connection[Any]
_ROWS = "SELECT user_id, time, event_id, type, properties FROM people.events ORDER BY 1, 2, 3"


@pytest.fixture(scope="module")
def people(dsn: str) -> Iterator[str]:
    """An app for users who come and go."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT heap.create_app('people', 'Europe/Berlin', NULL)")
        connection.execute("SELECT heap.make_partitions('people', '2025-10-01', '2025-11-30')")
        connection.execute("SET heap.app = 'people'")
        connection.execute("SELECT heap.define_event('A', 'pageview')")
        connection.execute("SELECT heap.define_event('B', 'purchase')")
        connection.execute("SELECT heap.define_segment('Listed', 'users where plan = ''pro''')")
        yield dsn
        connection.execute("SELECT heap.drop_app('people')")


@pytest.fixture
def crowd(people: str, lender: Lender) -> Iterator[_Connection]:
    with lender.connection(people, autocommit=True) as connection:
        connection.execute("SELECT set_config('heap.app', 'people', false), set_config('heap.now', %s, false)", (NOW,))
        _clear(connection)
        yield connection
        _clear(connection)


def _clear(connection: _Connection) -> None:
    for table in ("people.events", "people.users"):
        connection.execute(f"DELETE FROM {table}")
    for table in ("user_alias", "user_merge", "erased_user"):
        connection.execute(f"DELETE FROM heap.{table} WHERE app = 'people'")
    connection.execute("UPDATE heap.app SET version = nextval('heap.catalog_version') WHERE name = 'people'")


def _is_distributed(connection: _Connection) -> bool:
    return connection.execute("SELECT heap._has_citus()").fetchone() == (True,)


def _merge(connection: _Connection, *pairs: tuple[int, int]) -> None:
    for pair in pairs:
        connection.execute("SELECT heap.merge_users(%s, %s)", pair)
    finish_merges(connection, "people")


def _happened(connection: _Connection, user: int, *events: tuple[int, str]) -> None:
    """Events of a user: number, which is also the minute, and type."""
    for number, kind in events:
        connection.execute(
            "INSERT INTO people.events (user_id, time, event_id, type)"
            " VALUES (%s, '2025-11-01'::timestamptz + make_interval(mins => %s), %s, %s)",
            (user, number, number, kind),
        )


def _users(connection: _Connection) -> dict[int, tuple[str | None, Any]]:
    return {
        user: (identity, properties)
        for user, identity, properties in connection.execute("SELECT user_id, identity, properties FROM people.users")
    }


def _aliases(connection: _Connection) -> dict[int, int]:
    return dict(connection.execute("SELECT user_id, merged_into FROM heap.user_alias WHERE app = 'people'").fetchall())


def _events(connection: _Connection) -> Counter[tuple[Any, ...]]:
    found = connection.execute("SELECT user_id, type, count(*) FROM people.events GROUP BY 1, 2").fetchall()
    return Counter({(user, kind): count for user, kind, count in found})


_PAIRS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)


@given(history=histories(), pairs=_PAIRS, together=st.booleans(), data=st.data())
@settings(max_examples=8)
def test_analyses_equal_the_oracle_on_relabelled_events(
    crowd: _Connection, history: list[Event], pairs: list[tuple[int, int]], together: bool, data: st.DataObject
) -> None:
    """Whatever is merged into whom, in one batch or one after the other, with events written before and after."""
    _clear(crowd)
    late = data.draw(st.integers(0, len(history)))
    insert(crowd, "people", history[late:])
    for batch in [pairs] if together else [[pair] for pair in pairs]:
        _merge(crowd, *batch)
    insert(crowd, "people", [*relabelled(history[:late], pairs)])
    expected = relabelled(history, pairs)
    aliases = {user: person(user, pairs) for user in range(1, 6) if person(user, pairs) != user}
    assert _aliases(crowd) == aliases
    found = crowd.execute("SELECT user_id, time, event_id FROM people.events ORDER BY 3").fetchall()
    assert found == sorted(((e.user_id, e.time, e.event_id) for e in expected), key=lambda row: row[2])
    start, end = datetime(2025, 10, 7, tzinfo=ZONE), datetime(2025, 11, 6, tzinfo=ZONE)
    rules = oracle.Rules(timedelta(days=8), start, end)
    steps = [lambda e: e.type == "pageview", lambda e: e.type == "purchase", lambda e: e.type == "pageview"]
    lives = [[event for event in expected if event.user_id == user] for user in range(1, 6)]
    levels = [level for life in lives for level, _ in oracle.counted_chains(life, steps, rules)]
    answer = crowd.execute('SELECT users FROM heap.funnel(\'"A" -> "B" -> "A" within 8 days\')').fetchall()
    assert [users for (users,) in answer] == [sum(level >= step for level in levels) for step in (1, 2, 3)]
    inside = [event for event in expected if start <= event.time < end]
    answer = crowd.execute("SELECT value FROM heap.trend('count of any, users of any, users of \"B\"')").fetchall()
    buyers = {event.user_id for event in inside if event.type == "purchase"}
    assert [int(value) for (value,) in answer] == [len(inside), len({e.user_id for e in inside}), len(buyers)]


_into_few = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([4, 9])), min_size=1, max_size=5)
_small = st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 2), st.sampled_from(["a", "b"]))


@given(events=st.lists(_small, max_size=12), pairs=_into_few | _PAIRS)
@settings(max_examples=8)
def test_events_of_one_instant_and_id_are_one_or_each_is_kept(
    crowd: _Connection, events: list[tuple[int, int, int, str]], pairs: list[tuple[int, int]]
) -> None:
    """The same event of both users is one afterwards; different ones stay, under whatever id. One that has got another
    id already is not taken for the same when its user is merged once more: it is there twice rather than not at all."""
    _clear(crowd)
    stored = {(user, minute, number): kind for user, minute, number, kind in events}
    for (user, minute, number), kind in stored.items():
        crowd.execute(
            "INSERT INTO people.events (user_id, time, event_id, type, path)"
            " VALUES (%s, '2025-11-01'::timestamptz + make_interval(mins => %s), %s, %s, '/x')",
            (user, minute, number, kind),
        )
    _merge(crowd, *pairs)
    _merge(crowd, *pairs)
    once = {(person(user, pairs), minute, number, kind) for (user, minute, number), kind in stored.items()}
    found = crowd.execute("SELECT user_id, extract(minute FROM time)::int, type FROM people.events").fetchall()
    expected = Counter((user, minute, kind) for user, minute, _, kind in once)
    if {merged for merged, _ in pairs} & {into for _, into in pairs}:
        assert set(found) == set(expected)
        assert Counter(found) >= expected
        assert len(found) <= len(stored)
    else:
        assert Counter(found) == expected


def test_merging_again_or_in_a_circle_changes_nothing(crowd: _Connection) -> None:
    for user in (1, 2, 3):
        _happened(crowd, user, (user, "pageview"))
    _merge(crowd, (1, 2), (2, 3))
    before = crowd.execute(_ROWS).fetchall()
    assert _events(crowd) == {(3, "pageview"): 3}
    assert _aliases(crowd) == {1: 3, 2: 3}
    _merge(crowd, (1, 2), (3, 1), (2, 2), (3, 3), (2, 3))
    assert crowd.execute(_ROWS).fetchall() == before
    assert _aliases(crowd) == {1: 3, 2: 3}
    assert crowd.execute("SELECT count(*) FROM heap.user_merge").fetchone() == (0,)


def test_events_written_for_a_merged_user_move_over(crowd: _Connection) -> None:
    """With the next merge of the two, or when heap maintain looks for them."""
    _happened(crowd, 1, (1, "pageview"))
    _merge(crowd, (1, 2))
    _happened(crowd, 1, (2, "purchase"))
    _merge(crowd, (1, 2))
    assert _events(crowd) == {(2, "pageview"): 1, (2, "purchase"): 1}
    _happened(crowd, 1, (3, "purchase"))
    crowd.execute('INSERT INTO people.users VALUES (1, NULL, \'{"plan": "pro"}\')')
    finish_merges(crowd, "people", late_users=True)
    assert _events(crowd) == {(2, "pageview"): 1, (2, "purchase"): 2}
    assert _users(crowd) == {2: (None, {"plan": "pro"})}


def test_rows_of_users_become_one(crowd: _Connection) -> None:
    """Identity and properties of who is merged into win; what is missing there is filled in."""
    rows = {1: ("one", {"plan": "free", "a": 1}), 2: (None, {"plan": "pro"}), 3: ("three", {}), 4: (None, {"b": [1]})}
    for user, (identity, properties) in rows.items():
        crowd.execute("INSERT INTO people.users VALUES (%s, %s, %s)", (user, identity, json.dumps(properties)))
    _merge(crowd, (1, 2))
    assert _users(crowd)[2] == ("one", {"plan": "pro", "a": 1})
    _merge(crowd, (4, 3), (5, 6), (3, 7))
    assert _users(crowd) == {2: ("one", {"plan": "pro", "a": 1}), 7: ("three", {"b": [1]})}


def test_lists_of_segments_have_who_the_users_became(crowd: _Connection) -> None:
    for user in (1, 2, 3):
        crowd.execute("INSERT INTO people.users VALUES (%s, NULL, %s)", (user, json.dumps({"plan": "pro"})))
        _happened(crowd, user, (user, "pageview"))
    _happened(crowd, 9, (9, "pageview"))
    crowd.execute("SELECT heap.list_segment('Listed')")
    _merge(crowd, (1, 9), (2, 3))
    (table,) = crowd.execute("SELECT list_table FROM heap.segment_definition WHERE app = 'people'").fetchone() or ("",)
    assert crowd.execute(f"SELECT user_id FROM people.{table} ORDER BY 1").fetchall() == [(3,), (9,)]
    answer = "SELECT value FROM heap.trend('count of any for users in \"Listed\"')"
    assert crowd.execute(answer).fetchall() == [(4,)]
    crowd.execute("SELECT heap.unlist_segment('Listed')")


def _identify(connection: _Connection, user: int, identity: str) -> int:
    row = connection.execute("SELECT heap.identify(%s, %s)", (user, identity)).fetchone()
    assert row is not None
    return int(row[0])


def test_identifies_in_any_order_and_again_have_one_outcome(crowd: _Connection) -> None:
    """Three devices of Ann, of which one was used before by nobody known, and one of Bob's."""
    calls = [(1, "ann"), (2, "ann"), (3, "ann"), (4, "bob")]
    outcomes = []
    orders = list(permutations(calls))[:: 6 if _is_distributed(crowd) else 1]
    for number, order in enumerate(orders):
        _clear(crowd)
        for user in (1, 2, 3, 4):
            _happened(crowd, user, (user, "pageview"), (10 + user, "purchase"))
            crowd.execute("INSERT INTO people.users VALUES (%s, NULL, %s)", (user, json.dumps({f"of {user}": user})))
        for user, identity in (*order, *order[: number % 4]):
            assert _identify(crowd, user, identity) == hash_bigint(identity)
            if number % 3 == 0:
                _merge(crowd)
        _merge(crowd)
        outcomes.append((crowd.execute(_ROWS).fetchall(), _users(crowd), _aliases(crowd)))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    ann, bob = hash_bigint("ann"), hash_bigint("bob")
    assert outcomes[0][1] == {ann: ("ann", {"of 1": 1, "of 2": 2, "of 3": 3}), bob: ("bob", {"of 4": 4})}
    assert outcomes[0][2] == {1: ann, 2: ann, 3: ann, 4: bob}
    assert Counter(user for user, *_ in outcomes[0][0]) == {ann: 6, bob: 2}


def test_the_known_user_is_who_has_the_identity(crowd: _Connection) -> None:
    crowd.execute("INSERT INTO people.users VALUES (50, 'ann', '{}')")
    assert _identify(crowd, 1, "ann") == 50
    assert _identify(crowd, 50, "ann") == 50
    _merge(crowd)
    assert _aliases(crowd) == {1: 50}
    with pytest.raises(psycopg.Error, match=r"(?s)user 1 is known as 'ann'.*heap\.merge_users\(50, "):
        _identify(crowd, 1, "bob")
    assert _identify(crowd, 2, "bob") == hash_bigint("bob")
    with pytest.raises(psycopg.Error, match="user 2 is known as 'bob'"):  # also before the merge is done
        _identify(crowd, 2, "ann")
    _merge(crowd, (hash_bigint("bob"), 50))
    for user, identity in ((2, "bob"), (3, "bob"), (4, "ann")):
        assert _identify(crowd, user, identity) == 50, "two known users were merged on purpose: both identities are one"
    _merge(crowd)
    assert _users(crowd) == {50: ("ann", {})}


@pytest.mark.parametrize(
    "call", ["merge_users(NULL, 1)", "merge_users(1, NULL)", "identify(NULL, 'a')", "identify(1, NULL)", "identify(1, '')",
             "delete_user(NULL)"],
)  # fmt: skip
def test_what_is_missing_is_said(crowd: _Connection, call: str) -> None:
    with pytest.raises(psycopg.Error, match=r"^error: .* expected"):
        crowd.execute(f"SELECT heap.{call}".encode())


def _scan(connection: _Connection, ids: list[int]) -> list[tuple[str, str]]:
    """Where one of the numbers is, in any column of any table of the app and of heap, on any node."""
    found: list[tuple[str, str]] = []
    columns = connection.execute(
        "SELECT table_schema, table_name, column_name FROM information_schema.columns JOIN pg_class AS c"
        " ON c.relname = table_name AND c.relnamespace = to_regnamespace(table_schema)"
        " WHERE table_schema IN ('people', 'heap') AND c.relkind = 'r'"
    ).fetchall()
    assert {"user_alias", "users"} < {table for _, table, _ in columns}
    pattern = "(^|[^0-9])(" + "|".join(str(number).replace("-", "") for number in ids) + ")([^0-9]|$)"
    for schema, table, column in columns:
        query = f'SELECT FROM "{schema}"."{table}" WHERE "{column}"::text ~ \'{pattern}\' LIMIT 1'
        if connection.execute(query.encode()).fetchone() is not None:
            found.append((table, column))
    if _is_distributed(connection):
        shards = connection.execute(
            "SELECT shard_name, nodename || ':' || nodeport FROM citus_shards WHERE table_name::text LIKE 'people.%'"
        ).fetchall()
        assert shards
        for shard, node in shards:
            row = connection.execute(
                "SELECT result FROM run_command_on_all_nodes(%s) AS r JOIN pg_dist_node AS n USING (nodeid)"
                " WHERE n.nodename || ':' || n.nodeport = %s",
                (f"SELECT count(*) FROM {shard} AS t WHERE t::text ~ '{pattern}'", node),
            ).fetchone()
            if row != ("0",):
                found.append((shard, node))
    return found


@pytest.mark.parametrize("waiting", [False, True], ids=["after merges", "while merges wait"])
def test_a_user_is_erased_without_a_trace(crowd: _Connection, waiting: bool) -> None:
    device, other, ann, bystander = 710001, 710002, hash_bigint("ann"), 720009
    for user in (device, other, bystander):
        crowd.execute("INSERT INTO people.users VALUES (%s, NULL, %s)", (user, json.dumps({"plan": "pro"})))
        _happened(crowd, user, (user % 10, "pageview"), (10 + user % 10, "purchase"))
    crowd.execute("SELECT heap.list_segment('Listed')")
    for user in (device, other):
        _identify(crowd, user, "ann")
    if not waiting:
        _merge(crowd)
    _happened(crowd, other, (30, "late"))
    assert _scan(crowd, [device, other, ann])
    deleted = dict(crowd.execute("SELECT * FROM heap.delete_user(%s)", (device,)).fetchall())
    assert deleted["people.events"] == 5
    assert deleted["people.users"] >= 1
    _merge(crowd)
    assert {table for table, _ in _scan(crowd, [device, other, ann])} == {"erased_user"}
    assert {user for user, *_ in crowd.execute(_ROWS)} == {bystander}
    assert set(_users(crowd)) == {bystander}
    erased = crowd.execute("SELECT user_id, erased_at <= now() FROM heap.erased_user WHERE app = 'people'").fetchall()
    assert dict(erased) == dict.fromkeys([device, other, ann], True)
    assert crowd.execute("SELECT * FROM heap.delete_user(%s)", (device,)).fetchall() == []
    crowd.execute("SELECT heap.unlist_segment('Listed')")


def test_an_app_of_an_earlier_version_is_brought_to_this_one(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT heap.create_app('olden', 'UTC', NULL)")
        try:
            connection.execute("SET heap.app = 'olden'")
            columns = "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'olden'"
            now = connection.execute(columns).fetchone()
            connection.execute("ALTER TABLE olden.events DROP COLUMN merge_id")
            connection.execute("ALTER TABLE olden.users DROP COLUMN property_times")
            connection.execute("DROP TABLE IF EXISTS olden.merged_users")
            connection.execute("DROP INDEX olden.users_identity")
            connection.execute("INSERT INTO olden.events (user_id, time, event_id, type) VALUES (1, now(), 1, 'x')")
            connection.execute(
                "INSERT INTO olden.events (user_id, time, event_id, type) VALUES (1, '2020-05-05', 2, 'x')"
            )
            connection.execute("SELECT heap.make_partitions('olden', '2020-05-01', '2020-05-02')")
            for _ in range(2):
                connection.execute("SELECT heap.upgrade_apps()")
            connection.execute("SELECT heap.make_partitions('olden', '2020-04-01', '2020-04-02')")
            assert connection.execute(columns + " AND table_name !~ '_2020_'").fetchone() == now
            connection.execute("SELECT heap.identify(1, 'one')")
            finish_merges(connection, "olden")
            found = connection.execute("SELECT user_id, count(*) FROM olden.events GROUP BY 1").fetchall()
            assert found == [(hash_bigint("one"), 2)]
        finally:
            connection.execute("SELECT heap.drop_app('olden')")


@pytest.mark.parametrize("dsn", ["citus"], indirect=True)
def test_maintain_says_whose_transaction_holds_up_merges(crowd: _Connection, people: str) -> None:
    with psycopg.connect(people) as idle:
        idle.execute("SELECT FROM people.events")
        crowd.execute("INSERT INTO people.users (user_id) SELECT generate_series(1, 20)")
        crowd.execute("SELECT heap.merge_users(user_id, 99) FROM generate_series(1, 20) AS user_id")
        lines: list[str] = []
        assert not Maintainer(people, lines.append).run_once(patience=0.1)
        pid = idle.info.backend_pid
        waiting = [line for line in lines if line.startswith("waiting")]
        assert len(waiting) == 1
        assert f"merges of users of people wait for process {pid} of " in waiting[0]
        assert "idle in transaction" in waiting[0]
    finish_merges(crowd, "people")
    assert crowd.execute("SELECT count(*) FROM heap.user_merge WHERE app = 'people'").fetchone() == (0,)
