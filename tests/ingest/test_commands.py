"""The commands of the sink as a user runs them."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psycopg

from heap_extension.cluster import Cluster, free_port
from heap_extension.nodes import create_extension
from heap_ingest.broker import Broker
from tests.ingest.conftest import drained
from tests.ingest.log import Log, events, stored_ids
from tests.waiting import until

_HEAP = str(Path(sys.executable).with_name("heap"))


def test_sink_tells_prometheus_and_stops_when_asked(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    log.send(events(500))
    log.send_raw(b"{")
    log.flush()
    port = free_port()
    process = subprocess.Popen(
        [_HEAP, "ingest", "sink", "--dsn", dsn, "--bootstrap-servers", log.broker.bootstrap_servers,
         "--topic", log.topic, "--dead-letters", log.dead_letters, "--group", log.topic,
         "--metrics-port", str(port), "--linger", "0.05"],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        drained(owner, log)
        counted = "heap_sink_messages_total 501.0"
        until(lambda: counted in _metrics(port))
        shown = _metrics(port)
        process.terminate()
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert 'heap_sink_events_total{app="ingested"} 500.0' in shown
    assert "heap_sink_dead_letters_total 1.0" in shown
    assert "heap_sink_database_up 1.0" in shown
    assert 'heap_sink_lag{partition="0"} 0.0' in shown
    assert "heap_sink_delay_seconds_count" in shown
    assert "dead letter" in said
    assert stored_ids(owner) == list(range(1, 501))


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_the_demo_loses_nothing(postgres_cluster: Cluster, broker: Broker) -> None:
    """HTTP, Kafka, tables and a funnel, the sink killed on the way; the demo compares the ids itself."""
    from rich.console import Console

    from heap_ingest.demo import DEMO_APP, demonstrate

    create_extension(postgres_cluster.dsn)
    console = Console(width=120, record=True)
    demonstrate(postgres_cluster.dsn, broker.bootstrap_servers, console, 40)
    assert "each once, none lost" in console.export_text()
    with psycopg.connect(postgres_cluster.dsn, autocommit=True) as connection:
        connection.execute("SELECT set_config('heap.app', %s, false)", (DEMO_APP,))
        rows = connection.execute(
            'SELECT users FROM heap.funnel(\'"Viewed pricing" -> "Clicked sign up" over last 60 days\')'
        ).fetchall()
        assert rows[0][0] > 0
        connection.execute("SELECT heap.drop_app(%s)", (DEMO_APP,))
