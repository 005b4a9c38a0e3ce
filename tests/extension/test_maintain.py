"""`heap maintain` on PostgreSQL and on Citus: what it builds, mends and drops, and that it never waits in the way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from heap_extension.maintain import Maintainer
from heap_extension.maintain.nodes import connect_node
from tests.servers import Lender
from tests.waiting import until

APP = "kept"
_HEAP = Path(sys.executable).with_name("heap")


@pytest.fixture
def kept(dsn: str, lender: Lender) -> Iterator[psycopg.Connection[Any]]:
    """An app whose indexes are left to `heap maintain`, with events in two months."""
    with lender.connection(dsn, autocommit=True) as connection:
        connection.execute("SELECT heap.create_app('kept')")
        connection.execute("SET heap.app = 'kept'")
        connection.execute("UPDATE heap.settings SET index_builds = 'maintain'")
        connection.execute("SELECT heap.make_partitions('kept', '2026-01-01', '2026-02-28')")
        connection.execute(
            "INSERT INTO kept.events (user_id, time, event_id, type, path) SELECT n % 50, '2026-01-15'::timestamptz"
            " + make_interval(mins => n * 4), n, 'pageview', '/' || n % 10 FROM generate_series(1, 9000) AS n"
        )
        try:
            yield connection
        finally:
            connection.execute("UPDATE heap.settings SET index_builds = 'auto', drop_unused_after = NULL")
            connection.execute("SELECT heap.drop_app('kept')")


def _states(connection: psycopg.Connection[Any]) -> set[tuple[str | None, str]]:
    return set(connection.execute("SELECT event, state FROM heap.index_health('kept')").fetchall())


def _states_in(connection: psycopg.Connection[Any], partition: str) -> set[str]:
    """Of its shards with Citus, which locks the tables here together, whatever partition is written to."""
    states = (
        "SELECT DISTINCT state FROM heap.index_health('kept')"
        " WHERE partition = %s AND (shard IS NOT NULL OR NOT heap._has_citus())"
    )
    return {state for (state,) in connection.execute(states, (partition,))}


def _count(connection: psycopg.Connection[Any], event: str = '"A"') -> int:
    statement = f"count of {event} from '2026-01-01' to '2026-03-01'"
    (value,) = connection.execute("SELECT value FROM heap.trend(%s)", (statement,)).fetchone() or (None,)
    return int(value)


def _a_placement(connection: psycopg.Connection[Any]) -> tuple[str | None, str, str]:
    """Node, table and index of a placement that has events: with Citus, one of a shard."""
    row = connection.execute(
        "SELECT node, partition || coalesce('_' || shard, ''), index_name FROM heap.index_health('kept')"
        " WHERE partition = 'events_2026_01' ORDER BY shard NULLS LAST LIMIT 1"
    ).fetchone()
    assert row is not None
    return row


def test_a_definition_answers_at_once_and_is_indexed_by_a_pass(dsn: str, kept: psycopg.Connection[Any]) -> None:
    kept.execute("SELECT heap.define_event('A', 'pageview where path = ''/1''')")
    assert _states(kept) == {("A", "missing")}
    assert kept.execute("SELECT index_state FROM heap.events WHERE app = 'kept'").fetchall() == [("missing",)]
    (partitions, _) = (
        kept.execute("SELECT count(DISTINCT partition), max(shards) FROM heap.index_builds").fetchone() or ()
    )
    assert partitions == len(
        kept.execute("SELECT FROM pg_inherits WHERE inhparent = 'kept.events'::regclass").fetchall()
    )
    assert _count(kept) == 900
    assert Maintainer(dsn).run_once()
    assert _states(kept) == {("A", "valid")}
    assert kept.execute("SELECT index_state, matching_events FROM heap.events WHERE app = 'kept'").fetchall() == [
        ("ready", 900)
    ]
    assert kept.execute("SELECT * FROM heap.index_builds").fetchall() == []
    assert _count(kept) == 900
    lines: list[str] = []
    assert Maintainer(dsn, lines.append).run_once()
    again = [line for line in lines if not line.startswith("vacuum")]  # statistics of inserts may come late
    assert again == [], "a second pass finds nothing to do"


def test_redefining_builds_the_new_index_and_drops_the_old(dsn: str, kept: psycopg.Connection[Any]) -> None:
    kept.execute("SELECT heap.define_event('A', 'pageview where path = ''/1''')")
    assert Maintainer(dsn).run_once()
    kept.execute("SELECT heap.define_event('A', 'pageview where path in (''/1'', ''/2'')')")
    assert _states(kept) == {("A", "missing"), (None, "orphan")}
    assert _count(kept) == 1800
    assert Maintainer(dsn).run_once()
    assert _states(kept) == {("A", "valid")}
    kept.execute("SELECT heap.drop_event('A')")
    assert _states(kept) == {(None, "orphan")}
    assert Maintainer(dsn).run_once()
    assert _states(kept) == set()


def test_a_definition_dropped_amid_a_pass_is_passed_over(
    dsn: str, kept: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the pass's look at what is missing and its work."""
    kept.execute("SELECT heap.define_event('A', 'pageview where path = ''/1''')")
    kept.execute("SELECT heap.define_event('B', 'pageview where path = ''/2''')")
    lines: list[str] = []
    maintainer = Maintainer(dsn, lines.append)
    do = maintainer._do

    def drop_first(*arguments: Any) -> None:
        kept.execute("SELECT heap.drop_event('A') FROM heap.event_definition WHERE app = 'kept' AND name = 'A'")
        do(*arguments)

    monkeypatch.setattr(maintainer, "_do", drop_first)
    assert maintainer.run_once()
    assert _states(kept) == {("B", "valid")}
    assert not [line for line in lines if line.startswith(("failed", "build A"))]


def test_covering_a_column_is_left_to_maintain_too(dsn: str, kept: psycopg.Connection[Any]) -> None:
    kept.execute("SELECT heap.define_event('A', 'pageview where path = ''/1''')")
    assert Maintainer(dsn).run_once()
    kept.execute("SELECT heap.cover_event('A', 'country')")
    assert _states(kept) == {("A", "missing"), (None, "orphan")}
    assert _count(kept) == 900
    assert Maintainer(dsn).run_once()
    assert _states(kept) == {("A", "valid")}
    node, table, _ = _a_placement(kept)
    with connect_node(dsn, node) as there:
        (definition,) = there.execute(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = %s AND tablename = %s AND indexdef LIKE '%%WHERE%%'",
            (APP, table),
        ).fetchone() or ("",)  # fmt: skip
    assert "INCLUDE (country)" in definition
    kept.execute("SELECT heap.drop_event('A')")
    assert Maintainer(dsn).run_once()


@pytest.mark.parametrize("damage", ["UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{app}.{index}'::regclass",
                                    "DROP INDEX {app}.{index}"])  # fmt: skip
def test_an_invalid_or_lost_index_is_built_again(dsn: str, kept: psycopg.Connection[Any], damage: str) -> None:
    kept.execute("SELECT heap.define_event('A', 'pageview where path = ''/1''')")
    assert Maintainer(dsn).run_once()
    node, _, index = _a_placement(kept)
    with connect_node(dsn, node) as there:
        there.execute(damage.format(app=APP, index=index))
    state = "missing" if damage.startswith("DROP") else "invalid"
    assert _states(kept) == {("A", "valid"), ("A", state)}
    assert _count(kept) == 900
    assert Maintainer(dsn).run_once()
    assert _states(kept) == {("A", "valid")}


def test_an_index_of_somebody_else_stays(dsn: str, kept: psycopg.Connection[Any]) -> None:
    kept.execute("CREATE INDEX events_by_path ON kept.events (path) WHERE type = 'pageview'")
    assert Maintainer(dsn).run_once()
    assert kept.execute("SELECT to_regclass('kept.events_by_path')").fetchone() != (None,)
    assert _states(kept) == set()


def test_partitions_are_made_ahead_with_every_index(dsn: str, kept: psycopg.Connection[Any]) -> None:
    kept.execute("SELECT heap.define_event('A', 'pageview')")
    (last,) = kept.execute("SELECT to_char(now() + interval '3 months', '\"events_\"YYYY_MM')").fetchone() or ("",)
    kept.execute(f"DROP TABLE kept.{last}")
    assert Maintainer(dsn).run_once()
    states = kept.execute(
        "SELECT DISTINCT event, state FROM heap.index_health('kept') WHERE partition = %s", (last,)
    ).fetchall()
    assert states == [("A", "valid")]


def test_changed_partitions_are_vacuumed_and_empty_ones_are_not(dsn: str, kept: psycopg.Connection[Any]) -> None:
    def visible() -> list[float]:
        rows = kept.execute(
            "SELECT visible FROM heap.partition_health('kept') WHERE partition = 'events_2026_01' ORDER BY 1"
        ).fetchall()
        return [share for (share,) in rows]

    assert min(visible()) < 0.9
    assert Maintainer(dsn).run_once()
    assert min(visible()) == 1.0
    (vacuumed,) = kept.execute(
        "SELECT count(*) FROM heap.partition_health('kept') WHERE bytes = 0 AND last_vacuum IS NOT NULL"
    ).fetchone() or (None,)
    assert vacuumed == 0


def test_a_bloated_index_is_built_anew(dsn: str, kept: psycopg.Connection[Any]) -> None:
    kept.execute("SELECT heap.define_event('A', 'pageview')")
    assert Maintainer(dsn).run_once()
    kept.execute(
        "INSERT INTO kept.events (user_id, time, event_id, type) SELECT 7, '2026-01-20'::timestamptz"
        " + make_interval(secs => n % 86400), 100000 + n, 'pageview' FROM generate_series(1, 120000) AS n"
    )
    kept.execute("DELETE FROM kept.events WHERE event_id > 100000")
    assert Maintainer(dsn).run_once()
    worst = kept.execute("SELECT max(bytes) FROM heap.index_health('kept')").fetchone()
    assert worst is not None
    assert worst[0] < 1_000_000
    assert _count(kept) == 9000


def test_unused_definitions_sleep_until_somebody_asks(dsn: str, kept: psycopg.Connection[Any]) -> None:
    kept.execute("SELECT heap.define_event('A', 'pageview where path = ''/1''')")
    kept.execute("SELECT heap.define_event('B', 'pageview where path = ''/2''')")
    assert Maintainer(dsn).run_once()
    kept.execute("UPDATE heap.event_definition SET last_used = now() - interval '100 days' WHERE name = 'A'")
    kept.execute("UPDATE heap.settings SET drop_unused_after = '90 days'")
    assert Maintainer(dsn).run_once()
    assert _states(kept) == {("B", "valid")}
    assert _index_states(kept) == {"A": "dormant", "B": "ready"}
    with _running(dsn):
        assert _count(kept) == 900, "a sleeping definition answers"
        until(lambda: _index_states(kept) == {"A": "ready", "B": "ready"})
    assert _count(kept) == 900


def test_use_is_noticed(dsn: str, kept: psycopg.Connection[Any]) -> None:
    kept.execute("SELECT heap.define_event('A', 'pageview where path = ''/1''')")
    assert Maintainer(dsn).run_once()
    kept.execute("UPDATE heap.event_definition SET last_used = '2020-01-01' WHERE name = 'A'")
    _count(kept)
    kept.execute("SELECT pg_stat_force_next_flush()")

    def noticed() -> bool:
        Maintainer(dsn).run_once()
        return kept.execute(
            "SELECT last_used > '2025-01-01' FROM heap.event_definition WHERE app = 'kept'"
        ).fetchall() == [(True,)]

    until(noticed)


def test_a_question_that_scans_no_index_is_noticed(dsn: str, kept: psycopg.Connection[Any]) -> None:
    """As those that packs or kept events serve: here about a time without events, in a transaction that only reads."""
    kept.execute("UPDATE heap.settings SET drop_unused_after = '90 days'")
    scans = "SELECT sum(scans) FROM heap.index_health('kept')"
    with _running(dsn), psycopg.connect(dsn) as reader:
        kept.execute("SELECT heap.define_event('A', 'pageview where path = ''/1''')")
        until(lambda: _states(kept) == {("A", "valid")})  # it listens
        before = kept.execute(scans).fetchone()
        kept.execute("UPDATE heap.event_definition SET last_used = now() - interval '89 days' WHERE app = 'kept'")
        reader.read_only = True
        reader.execute("SET LOCAL heap.app = 'kept'")
        reader.execute("SET LOCAL heap.strategy = 'vector'")  # kernels pass over tables without pages
        statement = "\"A\" -> \"A\" from '2020-01-01' to '2020-02-01'"
        assert reader.execute("SELECT sum(users) FROM heap.funnel(%s)", (statement,)).fetchone() == (0,)
        reader.execute("SELECT pg_stat_force_next_flush()")
        reader.commit()
        noted = "SELECT last_used > now() - interval '1 day' FROM heap.event_definition WHERE app = 'kept'"
        until(lambda: kept.execute(noted).fetchone() == (True,))
        assert kept.execute(scans).fetchone() == before


def test_one_leads_and_the_others_wait(dsn: str, kept: psycopg.Connection[Any]) -> None:
    assert kept.execute("SELECT heap._maintainer()").fetchone() == (None,)
    with _running(dsn), pytest.raises(TimeoutError, match="another heap maintain"):
        Maintainer(dsn).run_once(patience=0.3)
    until(lambda: kept.execute("SELECT heap._maintainer()").fetchone() == (None,))


def test_a_tenant_that_holds_the_lock_or_notifies_nonsense_stops_nothing(
    dsn: str, kept: psycopg.Connection[Any]
) -> None:
    kept.execute("CREATE ROLE eve LOGIN PASSWORD 'of the test'")
    eves = make_conninfo(dsn, user="eve", password="of the test")
    try:
        with psycopg.connect(eves, autocommit=True) as eve:
            eve.execute("SELECT pg_advisory_lock(hashtextextended('heap maintain', 0))")
            assert kept.execute("SELECT heap._maintainer()").fetchone() == (None,)
            lines: list[str] = []
            assert Maintainer(dsn, lines.append).run_once()
            assert "ended a session of eve that held the lock of heap maintain" in lines
        with _running(dsn), psycopg.connect(eves, autocommit=True) as eve:
            for payload in (
                "",
                "{",
                "[]",
                "7",
                '{"app": 1}',
                '{"app": null, "event": [], "dormant": {}}',
                '{"app": "x", "event": "X", "dormant": true}',
                '{"app": "x", "event": "X", "dormant": false}',
            ):
                eve.execute("SELECT pg_notify('heap_maintain', %s)", (payload,))
            kept.execute("SELECT heap.define_event('A', 'pageview where path = ''/1''')")
            until(lambda: _states(kept) == {("A", "valid")})
    finally:
        kept.execute("DROP ROLE eve")


def test_an_open_change_of_one_app_stops_no_other(dsn: str, kept: psycopg.Connection[Any]) -> None:
    kept.execute("SELECT heap.create_app('other')")
    try:
        with psycopg.connect(dsn) as holder:
            holder.execute("SET heap.app = 'other'")
            holder.execute("SELECT heap.define_event('Held', 'purchase')")
            kept.execute("SELECT heap.define_event('A', 'pageview where path = ''/1''')")
            assert Maintainer(dsn).run_once()
            kept.execute("UPDATE heap.event_definition SET last_used = '2020-01-01' WHERE app = 'kept'")
            kept.execute("UPDATE heap.settings SET drop_unused_after = '90 days'")
            with _running(dsn):
                until(lambda: _index_states(kept) == {"A": "dormant"})
                _count(kept)
                until(lambda: _index_states(kept) == {"A": "ready"})
            holder.commit()
        kept.execute("UPDATE heap.settings SET drop_unused_after = NULL")
        assert Maintainer(dsn).run_once()
        assert kept.execute(
            "SELECT DISTINCT state FROM heap.index_health() WHERE app IN ('kept', 'other')"
        ).fetchall() == [("valid",)]
    finally:
        kept.execute("SELECT heap.drop_app('other')")


def test_builds_that_wait_too_long_make_room(dsn: str, kept: psycopg.Connection[Any]) -> None:
    """More builds wait for an open transaction than may run at once, and those of other partitions are done."""
    kept.execute("UPDATE heap.settings SET build_patience = '300 ms'")
    kept.execute(
        "INSERT INTO kept.events (user_id, time, event_id, type, path)"
        " SELECT n % 50, '2026-02-15', n, 'pageview', '/1' FROM generate_series(1, 100) AS n"
    )
    try:
        with psycopg.connect(dsn) as writer:
            writer.execute("INSERT INTO kept.events (user_id, time, event_id, type) VALUES (1, '2026-02-15', 999, 'x')")
            for name in ("A", "B", "C"):
                kept.execute("SELECT heap.define_event(%s, 'pageview where path = ''/1''')", (name,))
            with _running(dsn):
                until(lambda: _states_in(kept, "events_2026_01") == {"valid"}, 60)
            assert _states_in(kept, "events_2026_02") != {"valid"}
        assert Maintainer(dsn).run_once()
        assert {state for _, state in _states(kept)} == {"valid"}
    finally:
        kept.execute("UPDATE heap.settings SET build_patience = DEFAULT")


def test_definitions_leave_their_indexes_to_a_running_maintain(dsn: str, kept: psycopg.Connection[Any]) -> None:
    kept.execute("UPDATE heap.settings SET index_builds = 'auto'")
    kept.execute("SELECT heap.define_event('In the statement', 'pageview where path = ''/3''')")
    assert _states(kept) == {("In the statement", "valid")}
    with _running(dsn):
        kept.execute("SELECT heap.define_event('In the background', 'pageview where path = ''/4''')")
        until(lambda: set(_index_states(kept).values()) == {"ready"})


def test_an_open_transaction_delays_a_build_and_no_insert(dsn: str, kept: psycopg.Connection[Any]) -> None:
    """The build waits for whoever wrote to the table before it; others go on writing meanwhile."""
    with psycopg.connect(dsn) as writer:
        writer.execute(
            "INSERT INTO kept.events (user_id, time, event_id, type) VALUES (1, '2026-01-15', 99999, 'open')"
        )
        kept.execute("SELECT heap.define_event('A', 'pageview where path = ''/1''')")
        maintainer = Maintainer(dsn)
        thread = threading.Thread(target=maintainer.run_once, kwargs={"patience": 60})
        thread.start()
        try:
            phases: set[str | None] = set()

            def is_waiting() -> bool:
                phases.update(phase for (phase,) in kept.execute("SELECT phase FROM heap.index_builds"))
                return any("waiting" in phase for phase in phases if phase)

            until(is_waiting)
            longest = 0.0
            for number in range(50):
                began = time.monotonic()
                kept.execute(
                    "INSERT INTO kept.events (user_id, time, event_id, type) VALUES (%s, '2026-01-15', %s, 'pageview')",
                    (number, 200_000 + number),
                )
                longest = max(longest, time.monotonic() - began)
            assert longest < 1.5
        finally:
            writer.commit()
            thread.join(60)
    assert not thread.is_alive()
    until(lambda: _states(kept) == {("A", "valid")})


def test_killed_at_any_moment_it_converges(dsn: str, kept: psycopg.Connection[Any]) -> None:
    """kill -9 at moments from the first import to the last vacuum; then one run mends all."""
    seed = int(os.environ.get("HEAP_SEED", str(random.randrange(1_000_000))))
    moments = random.Random(seed)
    for number in range(6):
        kept.execute(
            "SELECT heap.define_event(%s, %s)", (f"E{number % 3}", f"pageview where path in ('/{number}', '/9')")
        )
        process = _start(dsn, "--once")
        time.sleep(moments.uniform(0.3, 2.0))
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    began = time.monotonic()
    assert Maintainer(dsn).run_once(patience=30), seed
    assert time.monotonic() - began < 30
    assert _states(kept) == {("E0", "valid"), ("E1", "valid"), ("E2", "valid")}, seed
    assert _count(kept, '"E2"') == 1800


def test_once_shows_its_progress_and_ends(dsn: str, kept: psycopg.Connection[Any]) -> None:
    kept.execute("SELECT heap.define_event('A', 'pageview where path = ''/1''')")
    done = subprocess.run(
        [_HEAP, "maintain", "--once", "--verbose", "--dsn", dsn],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "build A on kept.events_2026_01" in done.stderr
    assert _states(kept) == {("A", "valid")}


def _index_states(connection: psycopg.Connection[Any]) -> dict[str, str]:
    return dict(connection.execute("SELECT name, index_state FROM heap.events WHERE app = 'kept'").fetchall())


def _start(dsn: str, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [_HEAP, "maintain", *options, "--dsn", dsn], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


class _running:  # noqa: N801
    """`heap maintain` in a thread, leading."""

    def __init__(self, dsn: str) -> None:
        self.dsn, self.maintainer = dsn, Maintainer(dsn)
        self.thread = threading.Thread(target=self.maintainer.run, kwargs={"interval": 0.5})

    def __enter__(self) -> None:
        self.thread.start()
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            until(lambda: connection.execute("SELECT heap._maintainer()").fetchone() != (None,))

    def __exit__(self, *_: object) -> None:
        self.maintainer.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()
