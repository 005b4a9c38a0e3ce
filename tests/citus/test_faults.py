"""Faults on a real cluster: nodes and processes killed, a full disk, a node cut off, and writes that never stop.

After each, one run of `heap maintain` leaves every index valid and nothing else, and answers are those of the events
that were acknowledged. What was measured is printed after the tests.
"""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from heap_extension.citus_cluster import CitusCluster
from heap_extension.cluster import Cluster
from heap_extension.maintain import Maintainer
from heap_extension.maintain.nodes import connect_node
from tests.citus.inserter import Inserter
from tests.conftest import Measured
from tests.servers import connect
from tests.waiting import until

_HEAP = Path(sys.executable).with_name("heap")
_APP = "faulty"
_EVENTS = 20_000
_PATHS = 10
_RANGE = "from '2026-01-01' to '2026-03-01'"


@pytest.fixture
def faulty(big_cluster: CitusCluster) -> Iterator[CitusCluster]:
    """The cluster with an app whose indexes are left to `heap maintain`; healthy again after the test."""
    with connect(big_cluster.dsn, _APP) as connection:
        _make_app(connection)
    try:
        yield big_cluster
    finally:
        big_cluster.up()
        with connect(big_cluster.dsn, _APP) as connection:
            connection.execute("SELECT recover_prepared_transactions()")
            until(lambda: connection.execute(_SYNCED).fetchone() == (True,), 90)
            _drop_app(connection)


_SYNCED = "SELECT bool_and(metadatasynced) FROM pg_dist_node WHERE hasmetadata"
"""Whether the nodes know what the coordinator knows: Citus tells one that was away only after a while."""


def _make_app(connection: psycopg.Connection[Any]) -> None:
    connection.execute("UPDATE heap.settings SET index_builds = 'maintain', pack_above = 1")
    connection.execute("SELECT heap.create_app('faulty', shard_count => 4)")
    connection.execute("SELECT heap.make_partitions('faulty', '2026-01-01', '2026-02-28')")
    connection.execute(
        "INSERT INTO faulty.events (user_id, time, event_id, type, path)"
        " SELECT n %% 500, '2026-01-02'::timestamptz + make_interval(mins => n), n, 'pageview', '/' || n %% %s"
        " FROM generate_series(1, %s) AS n",
        (_PATHS, _EVENTS),
    )


def _drop_app(connection: psycopg.Connection[Any]) -> None:
    connection.execute("UPDATE heap.settings SET index_builds = 'auto', pack_above = DEFAULT, pack_after = DEFAULT")
    connection.execute("SELECT heap.drop_app(name) FROM heap.app WHERE name = 'faulty'")


def _define(connection: psycopg.Connection[Any], name: str, path: str) -> None:
    connection.execute("SELECT heap.define_event(%s, %s)", (name, f"pageview where path = '{path}'"))


def _count(connection: psycopg.Connection[Any], event: str) -> int:
    (value,) = connection.execute(
        "SELECT value FROM heap.trend(%s)", (f'count of "{event}" {_RANGE}',)
    ).fetchone() or (0,)  # fmt: skip
    return int(value)


def _states(connection: psycopg.Connection[Any]) -> set[str]:
    return {state for (state,) in connection.execute("SELECT DISTINCT state FROM heap.index_health('faulty')")}


def _converge(cluster: CitusCluster) -> float:
    """Seconds until one run of `heap maintain` has everything in order, which is asserted."""
    began = time.monotonic()
    lines: list[str] = []
    assert Maintainer(cluster.dsn, lines.append).run_once(patience=30), lines
    took = time.monotonic() - began
    with connect(cluster.dsn, _APP) as connection:
        assert _states(connection) <= {"valid"}, lines
        invalid = connection.execute(
            "SELECT result FROM run_command_on_all_nodes('SELECT count(*) FROM pg_index WHERE NOT indisvalid')"
        ).fetchall()
        assert {count for (count,) in invalid} == {"0"}
        packs = connection.execute("SELECT DISTINCT state FROM heap.pack_health('faulty')").fetchall()
        assert {state for (state,) in packs} <= {"valid", "waiting"}, lines
        for (event,) in connection.execute("SELECT name FROM heap.events WHERE app = 'faulty'").fetchall():
            assert _count(connection, event) == _EVENTS // _PATHS
    return took


def _placement(cluster: CitusCluster, worker: Cluster) -> str:
    """A shard of January on this worker."""
    with connect(cluster.dsn, _APP) as connection:
        row = connection.execute(
            "SELECT shard_name FROM citus_shards WHERE table_name = 'faulty.events_2026_01'::regclass"
            " AND nodeport = %s ORDER BY 1 LIMIT 1",
            (worker.port,),
        ).fetchone()
    assert row is not None
    return str(row[0])


@contextmanager
def _writing(worker: Cluster, shard: str) -> Iterator[psycopg.Connection[Any]]:
    """A transaction on a worker that wrote to a shard and is open; it may die with its server."""
    connection = connect_node(worker.dsn, None)
    try:
        connection.execute("BEGIN")
        connection.execute(f"LOCK TABLE {shard} IN ROW EXCLUSIVE MODE")
        yield connection
    finally:
        with suppress(psycopg.Error):
            connection.execute("ROLLBACK")
        connection.close()


def _phases(worker: Cluster) -> set[str]:
    with psycopg.connect(worker.dsn, autocommit=True) as connection:
        return {phase for (phase,) in connection.execute("SELECT phase FROM pg_stat_progress_create_index")}


@pytest.mark.parametrize(
    "phase", ["waiting for writers before build", "waiting for writers before validation", "waiting for old snapshots"]
)
def test_worker_killed_during_a_build(faulty: CitusCluster, phase: str, measured: Measured) -> None:
    worker = faulty.workers[0]
    shard = _placement(faulty, worker)
    with connect(faulty.dsn, _APP) as connection:
        _define(connection, "A", "/1")
    with _writing(worker, shard) as first:
        thread = threading.Thread(target=Maintainer(faulty.dsn).run_once, kwargs={"patience": 2})
        thread.start()
        until(lambda: "waiting for writers before build" in _phases(worker))
        if phase == "waiting for writers before validation":
            with _writing(worker, shard):
                first.execute("ROLLBACK")
                until(lambda: phase in _phases(worker))
                worker.kill()
        elif phase == "waiting for old snapshots":
            old = connect_node(worker.dsn, None)
            old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            old.execute("SELECT count(*) FROM pg_class")
            first.execute("ROLLBACK")
            until(lambda: phase in _phases(worker))
            worker.kill()
            old.close()
        else:
            worker.kill()
    thread.join(60)
    assert not thread.is_alive()
    worker.up(worker.port)
    with connect(faulty.dsn, _APP) as connection:
        assert _states(connection) & {"invalid", "missing"}
        assert _count(connection, "A") == _EVENTS // _PATHS
    measured[f"converged after kill -9 of a worker {phase}"] = _converge(faulty)


def _inserter(cluster: CitusCluster, user: int) -> Inserter:
    """Of events of one user."""
    return Inserter(
        cluster.dsn,
        "INSERT INTO faulty.events (user_id, time, event_id, type, path)"
        " VALUES (%s, '2026-02-01'::timestamptz + make_interval(secs => %s), %s, 'tap', '/tap')",
        lambda number: (user, number, number),
    )


def _taps(connection: psycopg.Connection[Any], user: int) -> int:
    (count,) = connection.execute(
        "SELECT count(*) FROM faulty.events WHERE type = 'tap' AND user_id = %s", (user,)
    ).fetchone() or (0,)  # fmt: skip
    return int(count)


def test_worker_killed_during_queries_and_inserts(faulty: CitusCluster, measured: Measured) -> None:
    """A statement fails or is right; what was acknowledged is there, once."""
    worker = faulty.workers[1]
    with connect(faulty.dsn, _APP) as connection:
        _define(connection, "A", "/1")
    _converge(faulty)
    answers: list[int] = []
    refused: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                with connect(faulty.dsn, _APP) as connection:
                    while not stop.is_set():
                        answers.append(_count(connection, "A"))
            except psycopg.Error as error:
                refused.append(str(error))
                time.sleep(0.01)

    inserters = {user: _inserter(faulty, user) for user in range(1_000_000, 1_000_004)}
    asking = threading.Thread(target=ask)
    with ExitStack() as stack:
        asking.start()
        stack.callback(asking.join, 60)
        stack.callback(stop.set)
        for inserter in inserters.values():
            stack.enter_context(inserter)
        until(lambda: len(answers) > 20)
        worker.kill()
        until(lambda: refused)
        worker.up(worker.port)
        before = len(answers)
        began = time.monotonic()
        until(lambda: len(answers) > before)
        measured["answers again after kill -9 of a worker"] = time.monotonic() - began
    assert set(answers) == {_EVENTS // _PATHS}
    with connect(faulty.dsn, _APP) as connection:
        connection.execute("SELECT recover_prepared_transactions()")
        for user, inserter in inserters.items():
            assert inserter.acknowledged <= _taps(connection, user) <= inserter.sent
    assert any(inserter.errors for inserter in inserters.values())
    _converge(faulty)


_STEPS = {
    "partitions": "%make_partitions%",
    "health": "%heap.index_health%",
    "use": "UPDATE heap.event_definition%",
    "build": "CREATE INDEX CONCURRENTLY%",
    "rebuild": "DROP INDEX CONCURRENTLY%",
    "drop": "DROP INDEX CONCURRENTLY%",
    "vacuum": "VACUUM (ANALYZE, TRUNCATE%",
    "freeze": "VACUUM (ANALYZE, FREEZE%",
    "settle": "VACUUM (FREEZE, TRUNCATE%",
    "reindex": "REINDEX%",
    "unpack": "DELETE FROM%packs%",
    "pack": "SELECT heap._make_pack%",
}


def _packs_beside(connection: psycopg.Connection[Any], shard: str) -> str:
    (packs,) = connection.execute(
        "SELECT 'faulty.' || packs FROM heap._pack_places('faulty') WHERE 'faulty.' || relation = %s", (shard,)
    ).fetchone() or ("",)
    return str(packs)


def _slow_vacuum(node: psycopg.Connection[Any], *, slow: bool) -> None:
    """VACUUM waits for no lock: asleep after every page, it can be caught in the middle."""
    for name, value in (("vacuum_cost_delay", "2ms"), ("vacuum_cost_limit", "1")):
        node.execute(f"ALTER SYSTEM SET {name} = '{value}'" if slow else f"ALTER SYSTEM RESET {name}")
    node.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("step", _STEPS)
def test_maintainer_killed_at_each_step(faulty: CitusCluster, step: str, measured: Measured) -> None:
    """What the step needs is locked, so that it is in the middle of it when it is killed."""
    worker = faulty.workers[0]
    shard = _placement(faulty, worker)
    with connect(faulty.dsn, _APP) as connection, connect(faulty.dsn, _APP) as blocker:
        _define(connection, "A", "/1")
        if step != "build":
            _converge(faulty)
        there = connect_node(worker.dsn, None)
        match step:
            case "rebuild":
                there.execute(
                    "UPDATE pg_index SET indisvalid = false WHERE indrelid = %s::regclass AND indpred IS NOT NULL",
                    (shard,),
                )
            case "drop":
                connection.execute("SELECT heap.drop_event('A')")
            case "pack":
                connection.execute("DELETE FROM faulty.packs")
            case "unpack":
                there.execute(f"UPDATE {shard} SET path = path")
            case "use":
                connection.execute("UPDATE heap.event_definition SET scans = -1 WHERE app = 'faulty'")
            case "vacuum":
                there.execute(f"UPDATE {shard} SET path = path")
                there.execute("SELECT pg_stat_force_next_flush()")
                _slow_vacuum(there, slow=True)
            case "freeze":  # of one page in many: too few for the other VACUUM
                there.execute(f"UPDATE {shard} SET path = path WHERE event_id = (SELECT min(event_id) FROM {shard})")
                there.execute("SELECT pg_stat_force_next_flush()")
                _slow_vacuum(there, slow=True)
            case "settle":
                connection.execute("UPDATE heap.settings SET pack_after = '100 years'")  # so that all months go on
                there.execute(f"UPDATE {shard} SET path = path WHERE event_id % 2 = 0")
                _slow_vacuum(there, slow=True)
            case "reindex":
                there.execute(
                    f"INSERT INTO {shard} (user_id, time, event_id, type, path) SELECT user_id, time, -n, type, '/1'"
                    f" FROM (SELECT * FROM {shard} LIMIT 1) AS e, generate_series(1, 60000) AS n"
                )
                there.execute(f"DELETE FROM {shard} WHERE event_id < 0")
                there.execute("SELECT pg_stat_force_next_flush()")
        blocker.execute("BEGIN")
        match step:
            case "partitions":
                blocker.execute("SELECT FROM heap.app WHERE name = 'faulty' FOR UPDATE")
            case "health":
                blocker.execute("LOCK TABLE heap.event_definition IN ACCESS EXCLUSIVE MODE")
            case "use":
                blocker.execute("LOCK TABLE heap.event_definition IN SHARE MODE")
            case "pack" | "unpack":
                there.execute("BEGIN")
                there.execute(f"LOCK TABLE {_packs_beside(connection, shard)} IN SHARE MODE")
            case "build" | "rebuild" | "drop" | "reindex":
                there.execute("BEGIN")
                there.execute(f"LOCK TABLE {shard} IN ROW EXCLUSIVE MODE")
        process = subprocess.Popen(
            [_HEAP, "maintain", "--once", "--dsn", faulty.dsn], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        nodes = [psycopg.connect(node.dsn, autocommit=True) for node in (faulty.coordinator, worker)]
        try:
            until(
                lambda: any(
                    node.execute(
                        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'heap maintain' AND query LIKE %s",
                        (_STEPS[step],),
                    ).fetchone()
                    for node in nodes
                )
            )
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            for node in nodes:
                node.close()
            if step in {"vacuum", "freeze", "settle"}:
                _slow_vacuum(there, slow=False)
        with suppress(psycopg.Error):
            there.execute("ROLLBACK")
        there.close()
        blocker.execute("ROLLBACK")
    measured[f"converged after kill -9 of heap maintain at: {step}"] = _converge(faulty)


def test_coordinator_killed_during_define_event(faulty: CitusCluster, measured: Measured) -> None:
    """The event is defined with all its indexes, or not at all."""
    worker = faulty.workers[0]
    shard = _placement(faulty, worker)
    with connect(faulty.dsn, _APP) as connection:
        connection.execute("UPDATE heap.settings SET index_builds = 'statement'")
    moments = random.Random(4)
    for number in range(4):

        def define() -> None:
            with suppress(psycopg.Error), connect(faulty.dsn, _APP) as connection:
                _define(connection, f"E{number}", "/2")  # noqa: B023

        thread = threading.Thread(target=define)
        if number == 0:  # in the middle of the builds, for certain
            with _writing(worker, shard):
                thread.start()
                with psycopg.connect(worker.dsn, autocommit=True) as there:
                    until(
                        lambda: there.execute(
                            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'CREATE%INDEX%'"
                        ).fetchone()
                    )
                faulty.coordinator.kill()
        else:
            thread.start()
            time.sleep(moments.uniform(0.05, 0.8))
            faulty.coordinator.kill()
        thread.join(60)
        faulty.up()
        with connect(faulty.dsn, _APP) as connection:
            connection.execute("SELECT recover_prepared_transactions()")
            (defined,) = connection.execute("SELECT count(*) FROM heap.events WHERE name = %s", (f"E{number}",)).fetchone() or (0,)  # fmt: skip
            if not defined:
                _define(connection, f"E{number}", "/2")
            assert _count(connection, f"E{number}") == _EVENTS // _PATHS
    measured["converged after kill -9 of the coordinator during define_event"] = _converge(faulty)


def test_disk_full_on_one_worker_during_a_build(big_cluster: CitusCluster, measured: Measured) -> None:
    folder = big_cluster.coordinator.directory / "worker-3"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", folder], check=False)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("no file system can be mounted here")
    ballast = folder / "ballast"
    try:
        big_cluster.up(3, settings="max_wal_size = '64MB'\nmin_wal_size = '32MB'\nwal_keep_size = 0\nfsync = off\n")
        worker = big_cluster.workers[2]
        with connect(big_cluster.dsn, _APP) as connection:
            _make_app(connection)
            _define(connection, "A", "/1")
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            lines: list[str] = []
            assert not Maintainer(big_cluster.dsn, lines.append).run_once(patience=3)
            assert any(line.startswith("failed: build") and f":{worker.port}" in line for line in lines), lines
            healthy = connection.execute(
                "SELECT DISTINCT state FROM heap.index_health('faulty') WHERE node NOT LIKE %s", (f"%:{worker.port}",)
            ).fetchall()
            assert healthy == [("valid",)]
        ballast.unlink()
        until(lambda: worker.is_running(), 10)
        measured["converged after a full disk on a worker"] = _converge(big_cluster)
    finally:
        ballast.unlink(missing_ok=True)
        big_cluster.up()
        with connect(big_cluster.dsn, _APP) as connection:
            _drop_app(connection)
            nodes = connection.execute("SELECT nodeport FROM pg_dist_node").fetchall()
            third = big_cluster.workers[2]
            if (third.port,) in nodes:
                connection.execute("SELECT citus_drain_node('127.0.0.1', %s)", (third.port,))
                connection.execute("SELECT citus_remove_node('127.0.0.1', %s)", (third.port,))
        third.down()
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


class _Proxy:
    """A port that leads to another until it is cut: connections end, new ones get no answer."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._open = threading.Event()
        self._open.set()
        self._pairs: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._open.wait()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._pairs += [near, far]
                for source, sink in ((near, far), (far, near)):
                    self._start(self._copy, source, sink)

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self._open.clear()
        for end in self._pairs:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        self._open.set()

    def close(self) -> None:
        self.join()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(10)
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for end in (self._listener, *self._pairs):
            end.close()


@contextmanager
def _behind_a_proxy(cluster: CitusCluster, worker: Cluster) -> Iterator[_Proxy]:
    """The other nodes reach this worker through the proxy only."""
    proxy = _Proxy(worker.port)
    update = (
        "SELECT citus_update_node(nodeid, '127.0.0.1', %s, force => true) FROM pg_dist_node WHERE nodeport = %s"
    )  # fmt: skip
    with connect(cluster.dsn, _APP) as connection:
        connection.execute(update, (proxy.port, worker.port))
    try:
        yield proxy
    finally:
        proxy.join()
        with connect(cluster.dsn, _APP) as connection:
            connection.execute(update, (worker.port, proxy.port))
        proxy.close()


def test_worker_cut_off_and_back(faulty: CitusCluster, measured: Measured) -> None:
    """The others are taken care of meanwhile; a question that needs it fails and is never answered in part."""
    worker = faulty.workers[1]
    with _behind_a_proxy(faulty, worker) as proxy, connect(faulty.dsn, _APP) as connection:
        connection.execute("SET citus.node_connection_timeout = '2s'")
        proxy.cut()
        _define(connection, "A", "/1")
        maintainer = Maintainer(faulty.dsn)
        thread = threading.Thread(target=maintainer.run, kwargs={"interval": 0.5})
        thread.start()
        try:
            until(lambda: _states(connection) == {"valid", "unreachable"}, 90)
            with pytest.raises(psycopg.Error):
                _count(connection, "A")
            began = time.monotonic()
            proxy.join()
            until(lambda: _states(connection) == {"valid"}, 90)
            measured["converged after a worker was cut off and came back"] = time.monotonic() - began
        finally:
            proxy.join()
            maintainer.stop()
            thread.join(60)
        assert _count(connection, "A") == _EVENTS // _PATHS
    _converge(faulty)


def test_inserts_and_answers_while_definitions_come_and_go(faulty: CitusCluster, measured: Measured) -> None:
    """16 inserters, 50 definitions made and dropped, `heap maintain`, and a reader who knows what may be the answer."""
    inserters = {user: _inserter(faulty, user) for user in range(1_000_000, 1_000_016)}
    wrong: list[str] = []
    failed: list[str] = []
    asked = 0
    stop = threading.Event()

    def ask() -> None:
        nonlocal asked
        try:
            with connect(faulty.dsn, _APP) as connection:
                while not stop.is_set():
                    least = sum(inserter.acknowledged for inserter in inserters.values())
                    answer = _count(connection, "Tap")
                    most = sum(inserter.sent for inserter in inserters.values())
                    fixed = _count(connection, "Fixed")
                    asked += 1
                    if not least <= answer <= most or fixed != _EVENTS // _PATHS:
                        wrong.append(f"{least} <= {answer} <= {most}, {fixed}")
        except psycopg.Error as error:
            failed.append(str(error))

    reader = threading.Thread(target=ask)
    with ExitStack() as stack, connect(faulty.dsn, _APP) as connection:
        maintain = subprocess.Popen(
            [_HEAP, "maintain", "--interval", "1", "--dsn", faulty.dsn],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(maintain.wait, 60)
        stack.callback(maintain.terminate)
        _define(connection, "Fixed", "/3")
        connection.execute("SELECT heap.define_event('Tap', 'tap')")
        with ExitStack() as busy:
            for inserter in inserters.values():
                busy.enter_context(inserter)
            reader.start()
            busy.callback(reader.join, 60)
            busy.callback(stop.set)
            for number in range(50):
                _define(connection, f"D{number}", f"/{number % _PATHS}")
                if number >= 5:
                    assert _count(connection, f"D{number - 5}") == _EVENTS // _PATHS
                    connection.execute("SELECT heap.drop_event(%s)", (f"D{number - 5}",))
                time.sleep(0.1)
        assert failed == []
        assert wrong == []
        assert [error for inserter in inserters.values() for error in inserter.errors] == []
        for user, inserter in inserters.items():
            assert inserter.acknowledged == inserter.sent == _taps(connection, user)
        assert _count(connection, "Tap") == sum(inserter.sent for inserter in inserters.values())
        connection.execute("SELECT heap.drop_event('Tap')")
    assert asked > 10
    longest = max(inserter.longest for inserter in inserters.values())
    measured["longest pause of 16 inserters while 50 definitions came and went"] = longest
    assert longest < 5
    measured["converged after that"] = _converge(faulty)
