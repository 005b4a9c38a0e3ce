"""Faults with a real Kafka and a real PostgreSQL, under load. After each, every id that Kafka acknowledged is in the
table exactly once, and nothing else is: id by id."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest

from heap_extension.cluster import Cluster
from heap_extension.nodes import create_extension
from tests.ingest.conftest import drained, running
from tests.ingest.log import APP, Log, events, fresh_app, stored_ids
from tests.ingest.process import sink_process
from tests.servers import server_folder
from tests.waiting import until


@contextmanager
def _producing(log: Log, per_second: int = 1_500) -> Iterator[None]:
    """Events come in all the time while the block runs, alone and together; all are acknowledged afterwards."""
    stop = threading.Event()

    def produce() -> None:
        sent = 0
        while not stop.wait(0.02):
            count = max(per_second // 100, 1)
            log.send(events(count, sent + 1, seed=sent))
            log.send_together(events(count, sent + count + 1, seed=sent))
            sent += 2 * count

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        log.flush()


@pytest.fixture
def plain(postgres_cluster: Cluster) -> Iterator[Cluster]:
    """A plain PostgreSQL that may be killed, with the empty app."""
    create_extension(postgres_cluster.dsn)
    with psycopg.connect(postgres_cluster.dsn, autocommit=True) as connection:
        fresh_app(connection)
    try:
        yield postgres_cluster
    finally:
        postgres_cluster.up()
        with psycopg.connect(postgres_cluster.dsn, autocommit=True) as connection:
            connection.execute("SELECT heap.drop_app(%s)", (APP,))


def _owner(cluster: Cluster) -> psycopg.Connection[Any]:
    return psycopg.connect(cluster.dsn, autocommit=True)


def _check(connection: psycopg.Connection[Any], log: Log) -> None:
    """Each acknowledged id is stored once, and nothing else. With Citus a commit is seen shard by shard, and what a node
    prepared and was not told to commit when its connection broke, only after Citus's recovery, once a minute."""
    drained(connection, log)
    expected = sorted(log.acknowledged)
    if connection.execute("SELECT heap._has_citus()").fetchone() == (True,):
        with suppress(AssertionError):
            until(lambda: stored_ids(connection) == expected, 75)
    prepared = connection.execute("SELECT gid, prepared FROM pg_prepared_xacts").fetchall()
    offsets = connection.execute("SELECT partition, next_offset FROM heap.ingest_offset WHERE topic = %s", (log.topic,))
    assert stored_ids(connection) == expected, f"transactions left prepared: {prepared}, offsets: {offsets.fetchall()}"
    assert len(log.acknowledged) > 0


def test_sink_killed_at_random_moments(
    request: pytest.FixtureRequest, dsn: str, owner: psycopg.Connection[Any], log: Log
) -> None:
    kills: int = request.config.getoption("--sink-kills")
    chance = random.Random(kills)
    with _producing(log):
        for _ in range(kills):
            with sink_process(dsn, log):
                time.sleep(chance.uniform(0.05, 0.6))
    with running(dsn, log):
        _check(owner, log)


def test_sink_stopped_and_woken_when_another_has_its_partitions(
    dsn: str, owner: psycopg.Connection[Any], log: Log
) -> None:
    """It goes on where it stood, in the middle of whatever it did, and must not store that a second time."""
    with _producing(log), sink_process(dsn, log, "first") as first:
        begun = "SELECT 1 FROM heap.ingest_offset WHERE topic = %s"
        until(lambda: owner.execute(begun, (log.topic,)).fetchone())
        assert first.pid is not None
        for _ in range(2):
            os.kill(first.pid, signal.SIGSTOP)
            with running(dsn, log, batch=100):
                time.sleep(2.5)  # longer than Kafka waits for a member of the group
                os.kill(first.pid, signal.SIGCONT)
                time.sleep(0.5)
        assert first.is_alive()
    with running(dsn, log):
        _check(owner, log)


def test_sink_whose_place_another_took_goes_on_when_that_has_left(plain: Cluster, log: Log) -> None:
    """Kafka lets one member of a name be in a group, and Kafka's client of the other has ended for good."""
    lines: list[str] = []
    with _owner(plain) as connection, running(plain.dsn, log, lines, instance="one"):
        log.send(events(100))
        log.flush()
        drained(connection, log)
        with sink_process(plain.dsn, log, "one"):
            until(lambda: any("joining again" in line for line in lines))
        log.send(events(100, 101))
        log.flush()
        _check(connection, log)


def test_broker_killed_under_load(plain: Cluster, log: Log) -> None:
    with running(plain.dsn, log, batch=200), _producing(log):
        time.sleep(0.7)
        log.broker.kill()
        time.sleep(0.5)
        log.broker.up()
        time.sleep(0.5)
    with _owner(plain) as connection, running(plain.dsn, log):
        _check(connection, log)


def test_postgres_killed_at_random_moments(plain: Cluster, log: Log) -> None:
    chance = random.Random(5)
    with running(plain.dsn, log, batch=100) as sink, _producing(log):
        for _ in range(3):
            time.sleep(chance.uniform(0.3, 1.2))
            plain.kill()
            plain.up()
        with _owner(plain) as connection:
            drained(connection, log)
        assert sink.metrics.registry.get_sample_value("heap_sink_messages_total")
    with _owner(plain) as connection, running(plain.dsn, log):
        _check(connection, log)


def test_postgres_down_for_a_while_only_delays(plain: Cluster, log: Log) -> None:
    lines: list[str] = []
    with running(plain.dsn, log, lines) as sink:
        with _producing(log):
            until(lambda: sink.metrics.registry.get_sample_value("heap_sink_messages_total"))
            plain.down()
            until(lambda: sink.metrics.registry.get_sample_value("heap_sink_database_up") == 0)
            time.sleep(2)
            plain.up()
        with _owner(plain) as connection:
            _check(connection, log)
    assert not any("dead letter" in line for line in lines)
    assert log.buried() == []


def test_disk_full_for_staging_only_delays(plain: Cluster, log: Log) -> None:
    """Known events are staged in a temporary table, here on a file system that is full."""
    with server_folder() as folder:
        place = folder / "tiny"
        place.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], check=False)
        if mounted.returncode:
            pytest.skip("no file system can be mounted here")
        try:
            _fill_and_free(plain, log, str(place))
        finally:
            subprocess.run(["umount", place], check=True)


def _fill_and_free(plain: Cluster, log: Log, place: str) -> None:
    subprocess.run(["chown", "-R", "postgres", place], check=False)
    with _owner(plain) as connection:
        connection.execute(f"CREATE TABLESPACE tiny LOCATION '{place}'")
        connection.execute("ALTER DATABASE heap SET temp_tablespaces = 'tiny'")
        lines: list[str] = []
        sent = list(events(4_000))
        try:
            log.send(sent)
            log.flush()
            with running(plain.dsn, log, lines, batch=4_000):
                drained(connection, log)
                log.send(sent)
                log.flush()
                until(lambda: any("No space left" in line for line in lines))
                assert connection.execute(f"SELECT count(*) FROM {APP}.events").fetchone() == (4_000,)
                subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
                _check(connection, log)
            assert log.buried() == []
        finally:
            connection.execute("ALTER DATABASE heap RESET temp_tablespaces")
            until(lambda: _dropped(connection), 10)


def _dropped(connection: psycopg.Connection[Any]) -> bool:
    """The tablespace is gone, once the sink's temporary tables are."""
    try:
        connection.execute("DROP TABLESPACE tiny")
    except psycopg.errors.ObjectNotInPrerequisiteState:
        return False
    return True
