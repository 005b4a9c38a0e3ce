"""Faults of the sink on a Citus cluster: nodes end in the middle of two-phase commits. Each id that Kafka acknowledged
is in the table exactly once, and nothing else is."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from heap_extension.citus_cluster import CitusCluster
from heap_extension.cluster import Cluster
from tests.ingest.conftest import drained, log, running  # noqa: F401  (log is a fixture)
from tests.ingest.log import APP, Log, events, fresh_app, stored_ids
from tests.waiting import until


@pytest.fixture
def ingesting(big_cluster: CitusCluster) -> Iterator[CitusCluster]:
    """The cluster with the empty app, healthy again after the test."""
    with psycopg.connect(big_cluster.dsn, autocommit=True) as connection:
        fresh_app(connection)
    try:
        yield big_cluster
    finally:
        big_cluster.up()
        with psycopg.connect(big_cluster.dsn, autocommit=True) as connection:
            connection.execute("SELECT recover_prepared_transactions()")
            connection.execute("SELECT heap.drop_app(%s)", (APP,))


@contextmanager
def _preparing_forever(worker: Cluster) -> Iterator[psycopg.Connection[Any]]:
    """PREPARE TRANSACTION does not return on this worker: it waits for a standby that nobody is."""
    with psycopg.connect(worker.dsn, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = local")
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        connection.execute("SELECT pg_reload_conf()")
        try:
            yield connection
        finally:
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")


def _is_preparing(connection: psycopg.Connection[Any]) -> bool:
    return bool(
        connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'PREPARE TRANSACTION%'"
        ).fetchone()
    )


def _prepared(worker: Cluster) -> int:
    with psycopg.connect(worker.dsn, autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM pg_prepared_xacts").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("ended", ["a worker", "the coordinator", "the sink"])
def test_end_between_prepare_and_commit(ingesting: CitusCluster, log: Log, ended: str) -> None:  # noqa: F811
    """One worker has prepared a batch, the other is about to: then a worker, the coordinator or the sink is killed."""
    from tests.ingest.process import sink_process

    first, second = ingesting.workers
    log.send(events(500))
    log.flush()
    with sink_process(ingesting.dsn, log, batch=500) as process:
        with psycopg.connect(ingesting.dsn, autocommit=True) as owner:
            drained(owner, log)
        with _preparing_forever(second) as there:
            log.send(events(500, 501))
            log.flush()
            until(lambda: _is_preparing(there) and _prepared(first) > 0)
            match ended:
                case "a worker":
                    first.kill()
                    first.up(first.port)
                case "the coordinator":
                    ingesting.coordinator.kill()
                    ingesting.coordinator.up(ingesting.coordinator.port)
                case "the sink":
                    process.kill()
                    process.join(30)
        if ended == "a worker":  # which did not hear of the commit: the sink was warned, and has it told
            until(lambda: _prepared(first) == 0, 20)
        with psycopg.connect(ingesting.dsn, autocommit=True) as owner, running(ingesting.dsn, log, instance="sink"):
            drained(owner, log)
            until(lambda: _recovered(owner, [first, second]))
            assert stored_ids(owner) == sorted(log.acknowledged) == list(range(1, 1_001))


def _recovered(owner: psycopg.Connection[Any], workers: list[Cluster]) -> bool:
    """No transaction is left prepared."""
    owner.execute("SELECT recover_prepared_transactions()")
    return not any(_prepared(worker) for worker in workers)


def test_workers_killed_at_random_moments(ingesting: CitusCluster, log: Log) -> None:  # noqa: F811
    chance = random.Random(3)
    sent = 0
    with running(ingesting.dsn, log, batch=100):
        for turn in range(4):
            (log.send_together if turn % 2 else log.send)(events(1_500, sent + 1, seed=turn))
            sent += 1_500
            time.sleep(chance.uniform(0.05, 0.5))
            worker = ingesting.workers[turn % 2]
            worker.kill()
            worker.up(worker.port)
        log.flush()
        with psycopg.connect(ingesting.dsn, autocommit=True) as owner:
            drained(owner, log)
            until(lambda: _recovered(owner, ingesting.workers))
            assert stored_ids(owner) == sorted(log.acknowledged) == list(range(1, sent + 1))
