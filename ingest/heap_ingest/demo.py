"""`heap demo --ingest`: a few thousand events over HTTP into Kafka and from there into a funnel, the sink killed on the
way. What Kafka acknowledged is compared with what is in the table, id by id."""

from __future__ import annotations

import http.client
import itertools
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.rule import Rule

from heap_extension.cluster import ClusterError, free_port
from heap_extension.load import LOADED_COLUMNS, LoadedEvent
from heap_extension.shop import DEFINITIONS, shop_events
from heap_ingest.log import find_span
from heap_ingest.topics import create_topics, delete_topics
from heap_ingest.write_keys import make_write_key

__all__ = ["DEMO_APP", "DemoError", "demonstrate", "is_ready"]

DEMO_APP = "shop_live"
_BATCH = 50
_SECONDS = 60.0


class DemoError(ClusterError):
    """A part did not start or did not do its work; the message says which."""


def demonstrate(dsn: str, bootstrap_servers: str, console: Console, users: int) -> None:
    """Runs the capture server and the sink as processes of their own, and ends them.

    Args:
        users: visitors to generate; 17 events each.

    Raises:
        DemoError: a part did not start or did not do its work in time, or an event is missing or too many.
    """
    topic = f"heap-demo-{secrets.token_hex(4)}"
    dead_letters = f"{topic}-dead"
    create_topics(bootstrap_servers, events=topic, dead_letters=dead_letters)
    try:
        with psycopg.connect(dsn, autocommit=True, application_name="heap demo") as connection:
            connection.execute("SELECT heap.drop_app(name) FROM heap.app WHERE name = %s", (DEMO_APP,))
            connection.execute("SELECT heap.create_app(%s, 'Europe/Berlin')", (DEMO_APP,))
            connection.execute("SELECT set_config('heap.app', %s, false)", (DEMO_APP,))
            for name, definition in DEFINITIONS.items():
                connection.execute("SELECT heap.define_event(%s, %s)", (name, definition))
            key, port = make_write_key(connection, DEMO_APP), free_port()
            common = ["--dsn", dsn, "--bootstrap-servers", bootstrap_servers, "--topic", topic]
            sink = ["sink", *common, "--dead-letters", dead_letters, "--group", topic, "--instance", "demo"]
            with _command("serve", *common, "--port", str(port)):
                _wait("the capture server does not answer", lambda: is_ready(port))
                events = list(shop_events(datetime.now(UTC), users=users))
                half = len(events) // 2
                console.print(Rule("HTTP -> Kafka -> tables"))
                with _command(*sink, "--batch", "200") as process:
                    acknowledged = _send(port, key, events[:half])
                    _wait("the sink stores nothing", lambda: len(_stored(connection)) > 0)
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                there = len(_stored(connection))
                console.print(f"{len(acknowledged):,} events acknowledged, the sink killed when {there:,} were stored")
                acknowledged |= _send(port, key, events[half:])
                console.print(f"{len(acknowledged):,} events acknowledged, {there:,} stored: Kafka keeps the others")
                began = time.monotonic()
                with _command(*sink):
                    end = find_span(bootstrap_servers, None, topic=topic).length
                    _wait("the sink does not catch up", lambda: _next(connection, topic) >= end)
                took = time.monotonic() - began
            _compare(acknowledged, _stored(connection))
            console.print(
                f"the sink started again and had stored all after {took:.1f} s:"
                f" {len(acknowledged):,} events, each once, none lost",
                style="green",
            )
    finally:
        delete_topics(bootstrap_servers, [topic, dead_letters])


_Id = tuple[int, int]


def _send(port: int, key: str, events: Iterable[LoadedEvent]) -> set[_Id]:
    """Sends events as a page or an app would; the user and the id of those the server acknowledged."""
    acknowledged: set[_Id] = set()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json", "X-Write-Key": key}
    left = iter(events)
    try:
        while batch := list(itertools.islice(left, _BATCH)):
            connection.request("POST", "/capture", json.dumps({"events": [_json(event) for event in batch]}), headers)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
            if response.status != 200 or answer["rejected"]:
                raise DemoError(f"the capture server answered {response.status}: {answer}")
            acknowledged |= {(event.user_id, event.event_id or 0) for event in batch}
    finally:
        connection.close()
    return acknowledged


def _json(event: LoadedEvent) -> dict[str, Any]:
    columns = {name: text for name, text in zip(LOADED_COLUMNS, event.columns, strict=True) if text is not None}
    return {
        "user_id": event.user_id,
        "time": event.time.isoformat(),
        "event_id": event.event_id,
        "session_id": event.session_id,
        "type": event.type,
        **columns,
        "properties": event.properties,
    }


def _stored(connection: psycopg.Connection[Any]) -> list[_Id]:
    return connection.execute(f"SELECT user_id, event_id FROM {DEMO_APP}.events").fetchall()


def _next(connection: psycopg.Connection[Any], topic: str) -> int:
    row = connection.execute(
        "SELECT coalesce(sum(next_offset), 0) FROM heap.ingest_offset WHERE topic = %s", (topic,)
    ).fetchone()
    return int(row[0]) if row else 0


def _compare(acknowledged: set[_Id], stored: list[_Id]) -> None:
    lost, twice = len(acknowledged - set(stored)), len(stored) - len(set(stored))
    strange = len(set(stored) - acknowledged)
    if lost or twice or strange:
        raise DemoError(f"{lost} events are lost, {twice} are there twice, {strange} were never acknowledged")


def is_ready(port: int) -> bool:
    """Whether a capture server on this port of loopback takes events."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _wait(otherwise: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(f"{otherwise}, in {_SECONDS:.0f} s")
        time.sleep(0.05)


@contextmanager
def _command(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command of `heap ingest` that runs while the block does."""
    heap = Path(sys.executable).with_name("heap")
    process = subprocess.Popen([heap, "ingest", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
