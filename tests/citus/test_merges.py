"""Users are merged between shards while processes and nodes die: every answer is that of before or of after.

Forty users did the first step of a funnel, forty others the second; each of those becomes one of these. Somebody asks all
the time; nobody in the funnel is ever there twice, or not at all, and after the first new answer there is no old one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from heap_extension.citus_cluster import CitusCluster
from heap_extension.cluster import Cluster
from heap_extension.maintain import Maintainer
from heap_extension.maintain.merges import UserMerges
from heap_extension.maintain.nodes import connect_node
from tests.citus.inserter import Inserter
from tests.conftest import Measured
from tests.servers import connect
from tests.waiting import until

_HEAP = Path(sys.executable).with_name("heap")
_APP = "crowded"
_PAIRS, _FIRSTS, _BYSTANDERS = 40, 50, 100
_EVENTS = _PAIRS * (_FIRSTS + 1) + _BYSTANDERS
_RANGE = "from '2026-01-01' to '2026-01-31'"
_FUNNEL = f"first -> second within 30 days {_RANGE}"
_TREND = f"count of (first or second or other) as events, users of (first or second or other) as users {_RANGE}"
_BEFORE = (_PAIRS, 0, _EVENTS, 2 * _PAIRS + _BYSTANDERS)
_AFTER = (_PAIRS, _PAIRS, _EVENTS, _PAIRS + _BYSTANDERS)


@pytest.fixture
def crowded(big_cluster: CitusCluster) -> Iterator[CitusCluster]:
    with connect(big_cluster.dsn, _APP) as connection:
        connection.execute("UPDATE heap.settings SET lock_timeout = '20 s'")
        connection.execute("SELECT heap.create_app('crowded', shard_count => 4)")
        connection.execute("SELECT heap.make_partitions('crowded', '2026-01-01', '2026-01-31')")
        for users, kind, times in ((_PAIRS, "first", _FIRSTS), (_PAIRS, "second", 1), (_BYSTANDERS, "other", 1)):
            base = {"first": 0, "second": 1000, "other": 2000}[kind]
            connection.execute(
                "INSERT INTO crowded.events (user_id, time, event_id, type)"
                " SELECT %s + u, '2026-01-02'::timestamptz + make_interval(hours => %s, mins => n), n, %s"
                " FROM generate_series(1, %s) AS u, generate_series(1, %s) AS n",
                (base, 24 if kind == "second" else 0, kind, users, times),
            )
        connection.execute(
            "INSERT INTO crowded.users SELECT u, 'user ' || u FROM generate_series(1, %s) AS u", (_PAIRS,)
        )
    try:
        yield big_cluster
    finally:
        big_cluster.up()
        with connect(big_cluster.dsn, _APP) as connection:
            connection.execute("SELECT recover_prepared_transactions()")
            connection.execute("UPDATE heap.settings SET lock_timeout = '500 ms'")
            connection.execute("SELECT heap.drop_app('crowded')")


def _merge_all(connection: psycopg.Connection[Any]) -> None:
    connection.execute("SELECT heap.merge_users(u, 1000 + u) FROM generate_series(1, %s) AS u", (_PAIRS,))


def _answer(connection: psycopg.Connection[Any]) -> tuple[int, ...]:
    """Users of both steps, events and users; each pair of one moment."""
    funnel = connection.execute("SELECT users FROM heap.funnel(%s)", (_FUNNEL,)).fetchall()
    trend = connection.execute("SELECT value::bigint FROM heap.trend(%s)", (_TREND,)).fetchall()
    return tuple(value for (value,) in (*funnel, *trend))


class _Asker:
    """Asks all the time while its block runs; errors are noted where a node may be gone, and else raised."""

    def __init__(self, cluster: CitusCluster) -> None:
        self.cluster = cluster
        self.answers: list[tuple[int, ...]] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with connect(self.cluster.dsn, _APP) as connection:
                    while not self._stop.is_set():
                        self.answers.append(_answer(connection))
                        self._stop.wait(0.1)  # two cores are for everybody
            except psycopg.Error as error:
                self.errors.append(str(error))
                self._stop.wait(0.05)

    def __enter__(self) -> _Asker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def check(self) -> None:
        """Old answers, then new ones. Funnel and trend are two statements: between them the change may come."""
        assert len(self.answers) > 10
        funnels = [answer[:2] for answer in self.answers]
        trends = [answer[2:] for answer in self.answers]
        for found, before, after in ((funnels, _BEFORE[:2], _AFTER[:2]), (trends, _BEFORE[2:], _AFTER[2:])):
            changed = found.index(after) if after in found else len(found)
            assert set(found[:changed]) <= {before}, found
            assert set(found[changed:]) <= {after}, found


def _converge(cluster: CitusCluster) -> float:
    """Seconds until one run of `heap maintain` has done the merges, which is asserted."""
    began = time.monotonic()
    lines: list[str] = []
    assert Maintainer(cluster.dsn, lines.append).run_once(patience=30), lines
    took = time.monotonic() - began
    with connect(cluster.dsn, _APP) as connection:
        assert _answer(connection) == _AFTER
        merged = connection.execute(
            "SELECT user_id, merged_into FROM heap.user_alias WHERE app = 'crowded' AND user_id BETWEEN 1 AND 1000"
            " ORDER BY 1"
        ).fetchall()
        assert merged == [(user, 1000 + user) for user in range(1, _PAIRS + 1)]
        assert connection.execute("SELECT count(*) FROM heap.user_merge").fetchone() == (0,)
        left = "SELECT count(*) FROM crowded.{} WHERE user_id BETWEEN 1 AND 1000"
        for table in ("events", "users"):
            assert connection.execute(left.format(table).encode()).fetchone() == (0,)
        known = connection.execute("SELECT user_id, identity FROM crowded.users ORDER BY 1").fetchall()
        assert known == [(1000 + user, f"user {user}") for user in range(1, _PAIRS + 1)]
    return took


def _shard(connection: psycopg.Connection[Any], table: str, user: int) -> tuple[str, int]:
    """The shard of the user and the port of its node."""
    row = connection.execute(
        "SELECT %s || '_' || shardid, nodeport FROM citus_shards WHERE table_name = %s::regclass"
        " AND shardid = get_shard_id_for_distribution_column(%s, %s)",
        (f"crowded.{table}", f"crowded.{table}", f"crowded.{table}", user),
    ).fetchone()
    assert row is not None
    return row


_Hold = Callable[[psycopg.Connection[Any]], tuple[int | None, str]]
_STEPS: dict[str, tuple[str, _Hold]] = {
    "begin": ("UPDATE heap.user_merge %", lambda _: (None, "LOCK TABLE heap.user_merge IN SHARE MODE")),
    "copy": ('INSERT INTO "crowded"."events"%', lambda connection: _same_key(connection, 1001)),
    "mark": ('UPDATE "crowded"."events" SET merge_id =  -%', lambda connection: _row(connection, 1, "SHARE")),
    "rows": ('%"crowded"."merged_users"%', lambda connection: _table(connection, "merged_users", 1001)),
    "move": ("INSERT INTO heap.user_alias%", lambda _: (None, "LOCK TABLE heap.user_alias IN SHARE MODE")),
    "delete": ('DELETE FROM "crowded"."events"%', lambda connection: _row(connection, 1, "KEY SHARE")),
    "users": ('INSERT INTO "crowded"."users"%', lambda connection: _table(connection, "users", 1001)),
}
"""What `heap maintain` is to be doing, and what holds it there: on which node (by port; None for the coordinator)."""


def _table(connection: psycopg.Connection[Any], table: str, user: int) -> tuple[int | None, str]:
    shard, port = _shard(connection, table, user)
    return port, f"LOCK TABLE {shard} IN SHARE MODE"


def _row(connection: psycopg.Connection[Any], user: int, lock: str) -> tuple[int | None, str]:
    shard, port = _shard(connection, "events_2026_01", user)
    return port, f"SELECT FROM {shard} WHERE user_id = {user} FOR {lock}"


def _same_key(connection: psycopg.Connection[Any], user: int) -> tuple[int | None, str]:
    shard, port = _shard(connection, "events_2026_01", user)
    first = "'2026-01-02'::timestamptz + interval '1 minute'"
    return port, f"INSERT INTO {shard} (user_id, time, event_id, type) VALUES ({user}, {first}, 1, 'first')"


def _node(cluster: CitusCluster, port: int | None) -> Cluster:
    return next((worker for worker in cluster.workers if worker.port == port), cluster.coordinator)


@contextmanager
def _in_a_process(cluster: CitusCluster) -> Iterator[None]:
    """`heap maintain`, killed at the end."""
    process = subprocess.Popen(
        [_HEAP, "maintain", "--once", "--dsn", cluster.dsn], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)


@contextmanager
def _in_a_thread(cluster: CitusCluster) -> Iterator[None]:
    """What it does with the merges, until a node refuses."""

    def advance() -> None:
        with suppress(psycopg.Error), connect_node(cluster.dsn, None) as leader:
            UserMerges(cluster.dsn, "crowded", leader, timedelta(seconds=20)).advance()

    thread = threading.Thread(target=advance)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def _held(
    cluster: CitusCluster, step: str, run: Callable[[CitusCluster], AbstractContextManager[None]]
) -> Iterator[Cluster]:
    """Merges in the middle of a step, on the node that is given; what holds them there ends after them."""
    doing, hold = _STEPS[step]
    with connect(cluster.dsn, _APP) as connection:
        port, lock = hold(connection)
        node = _node(cluster, port)
        blocker = connect_node(node.dsn, None)
        try:
            blocker.execute("BEGIN")
            blocker.execute(lock.encode())
            with run(cluster):
                until(
                    lambda: connection.execute(
                        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'heap maintain' AND query LIKE %s"
                        " AND state = 'active' AND clock_timestamp() - query_start > '0.1 s'",
                        (doing,),
                    ).fetchone()
                )
                yield node
        finally:
            with suppress(psycopg.Error):
                blocker.execute("ROLLBACK")
            blocker.close()


def test_maintainer_killed_at_each_step_of_a_merge(crowded: CitusCluster, measured: Measured) -> None:
    """One after the other, on the way of one merge."""
    with _Asker(crowded) as asker, connect(crowded.dsn, _APP) as connection:
        until(lambda: asker.answers)
        _merge_all(connection)
        for step in _STEPS:
            with _held(crowded, step, _in_a_process):
                pass
            since = len(asker.answers)
            until(lambda: len(asker.answers) > since)  # noqa: B023
        measured["merged after kill -9 of heap maintain at each step of a merge"] = _converge(crowded)
        since = len(asker.answers)
        until(lambda: len(asker.answers) > since + 1)
    asker.check()
    assert asker.answers[-1] == _AFTER
    assert asker.errors == []


def test_worker_killed_during_a_merge(crowded: CitusCluster, measured: Measured) -> None:
    """While events are copied, rows written and originals deleted; whoever asks gets an error or a right answer."""
    with _Asker(crowded) as asker, connect(crowded.dsn, _APP) as connection:
        until(lambda: asker.answers)
        _merge_all(connection)
        for step in ("copy", "rows", "delete"):
            with _held(crowded, step, _in_a_thread) as worker:
                assert worker is not crowded.coordinator
                worker.kill()
            worker.up(worker.port)
            since = len(asker.answers)
            until(lambda: len(asker.answers) > since)  # noqa: B023
        measured["merged after kill -9 of a worker while events are copied, moved, deleted"] = _converge(crowded)
        since = len(asker.answers)
        until(lambda: len(asker.answers) > since + 1)
    asker.check()
    assert asker.answers[-1] == _AFTER


def _taps(connection: psycopg.Connection[Any]) -> int:
    (value,) = connection.execute(
        "SELECT value FROM heap.trend('count of tap from ''2026-01-01'' to ''2026-01-31''')"
    ).fetchone() or (0,)
    return int(value)


def test_merges_while_everybody_writes_and_asks(crowded: CitusCluster, measured: Measured) -> None:
    """Writers of both users of a pair, who know nothing of merges: no event is lost or there twice at any moment, the
    answers about everybody else are those of before or after, and nobody waits for long."""
    inserters = {
        user: Inserter(
            crowded.dsn,
            "INSERT INTO crowded.events (user_id, time, event_id, type)"
            " VALUES (%s, '2026-01-05'::timestamptz + make_interval(secs => %s), %s, 'tap')",
            lambda number, user=user: (user, number, user * 1_000_000 + number),
        )
        for user in (1, 1001, 5000)
    }
    wrong: list[str] = []
    with ExitStack() as stack, connect(crowded.dsn, _APP) as connection:
        connection.execute("UPDATE heap.settings SET lock_timeout = '500 ms'")
        asker = stack.enter_context(_Asker(crowded))
        maintainer = Maintainer(crowded.dsn)
        thread = threading.Thread(target=maintainer.run, kwargs={"interval": 0.2})
        thread.start()
        stack.callback(thread.join, 60)
        stack.callback(maintainer.stop)
        with ExitStack() as writing:
            for inserter in inserters.values():
                writing.enter_context(inserter)
            until(lambda: asker.answers and all(inserter.acknowledged for inserter in inserters.values()))
            _merge_all(connection)
            ended, deadline = 0, time.monotonic() + 30
            while ended < 10 and time.monotonic() < deadline:
                least = sum(inserter.acknowledged for inserter in inserters.values())
                found = _taps(connection)
                most = sum(inserter.sent for inserter in inserters.values())
                if not least <= found <= most:
                    wrong.append(f"{least} <= {found} <= {most}")
                ended += asker.answers[-1] == _AFTER
        maintainer.stop()
        thread.join(60)
    assert wrong == []
    asker.check()
    assert asker.errors == []
    assert [error for inserter in inserters.values() for error in inserter.errors] == []
    _converge(crowded)
    with connect(crowded.dsn, _APP) as connection:
        found = connection.execute(
            "SELECT user_id, count(*) FROM crowded.events WHERE type = 'tap' GROUP BY 1 ORDER BY 1"
        ).fetchall()
        assert found == [
            (1001, inserters[1].acknowledged + inserters[1001].acknowledged),
            (5000, inserters[5000].acknowledged),
        ]
    measured["longest pause of an insert while users were merged"] = max(one.longest for one in inserters.values())


def test_a_copy_that_cannot_be_seen_keeps_the_merge_from_moving(crowded: CitusCluster) -> None:
    """As between the two phases of a commit: a copy is not there though its commit succeeded."""
    with connect(crowded.dsn, _APP) as connection, connect_node(crowded.dsn, None) as leader:
        _merge_all(connection)
        merges = UserMerges(crowded.dsn, "crowded", leader, timedelta(seconds=10))
        copy_some = merges._copy_some

        def copy_and_hide(work: psycopg.Connection[Any], batch: Any) -> int:
            copied = copy_some(work, batch)
            work.execute("DELETE FROM crowded.events WHERE user_id = 1001 AND type = 'first' AND event_id = 7")
            return copied

        merges._copy_some = copy_and_hide  # type: ignore[method-assign]
        with pytest.raises(psycopg.Error, match="not to be seen"):
            merges.advance()
        assert _answer(connection) == _BEFORE
        merges._copy_some = copy_some  # type: ignore[method-assign]
        assert merges.advance() == 2 * _PAIRS, "every user, and the number of their identity"
        assert _answer(connection) == _AFTER
