"""What tests of the sink share: a log of their own, an empty app, and sinks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from heap_extension.cluster import Cluster
from heap_extension.nodes import create_extension
from heap_ingest.broker import Broker
from heap_ingest.sink import Sink
from tests.ingest.capture_server import CaptureServer, ensure_key
from tests.ingest.log import APP, Log, fresh_app
from tests.servers import Lender
from tests.waiting import until

QUICK = {"session.timeout.ms": 2_000, "heartbeat.interval.ms": 300}
"""Kafka notices within 2 seconds that a sink has ended."""


@pytest.fixture
def log(broker: Broker) -> Log:
    return Log(broker)


@pytest.fixture
def owner(dsn: str, lender: Lender) -> Iterator[psycopg.Connection[Any]]:
    """An owner's connection to a database with the empty app, on plain PostgreSQL and on Citus."""
    with lender.connection(dsn, autocommit=True) as connection:
        fresh_app(connection)
        yield connection
        connection.execute("SELECT heap.drop_app(%s)", (APP,))


@contextmanager
def running(dsn: str, log: Log, lines: list[str] | None = None, **options: Any) -> Iterator[Sink]:
    """A sink that runs in a thread while the block does."""
    said = [] if lines is None else lines
    options = {"group": log.topic, "linger": 0.05, "kafka": QUICK, "report": said.append, **options}
    sink = Sink(dsn, log.broker.bootstrap_servers, topic=log.topic, dead_letters=log.dead_letters, **options)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            sink.run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sink
    finally:
        sink.stop()
        thread.join(60)
    assert not failed, failed


def drained(connection: psycopg.Connection[Any], log: Log, seconds: float = 60) -> None:
    """Waits until the whole log is stored."""
    end = log.length()

    def stored() -> bool:
        row = connection.execute(
            "SELECT coalesce(sum(next_offset), 0) FROM heap.ingest_offset WHERE topic = %s", (log.topic,)
        ).fetchone()
        assert row is not None
        return bool(row[0] >= end)

    until(stored, seconds)


@pytest.fixture(scope="session")
def capture_dsn(postgres_cluster: Cluster) -> str:
    """A database that capture servers read their write keys from."""
    create_extension(postgres_cluster.dsn)
    return postgres_cluster.dsn


@pytest.fixture(scope="session")
def write_key(capture_dsn: str) -> str:
    return ensure_key(capture_dsn, events_per_second=1_000_000)


@pytest.fixture(scope="session")
def capture(capture_dsn: str, broker: Broker) -> Iterator[CaptureServer]:
    """A capture server. Tests that kill it start another one afterwards."""
    server = CaptureServer(capture_dsn, broker, "captured", "--key-seconds", "1")
    server.start()
    yield server
    server.stop()
