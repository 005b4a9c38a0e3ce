"""What goes wrong around the capture server. The oracle is its own ids: what was acknowledged is in Kafka, each event
under one key, and nothing is there that nobody sent."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from heap_ingest.broker import Broker
from heap_ingest.messages import EventMessage
from tests.ingest.capture_server import CaptureServer, ask, read_topic
from tests.waiting import until

_BATCH = 50
_ids = itertools.count(1)


class _Load:
    """Clients that send batches, and each again until it is acknowledged, as clients do.

    Attributes:
        sent, acknowledged: ids of events.
        refused: how often a status other than 200 came, by status.
    """

    def __init__(self, server: CaptureServer, key: str, clients: int = 4) -> None:
        self.server = server
        self.sent: set[int] = set()
        self.acknowledged: set[int] = set()
        self.refused: dict[int, int] = {}
        self.retry_after: set[str] = set()
        self.slowest = 0.0
        self._headers = {"X-Write-Key": key}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(clients)]

    def __enter__(self) -> _Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def reach(self, more: int) -> None:
        """Waits until so many more events are acknowledged."""
        goal = len(self.acknowledged) + more
        until(lambda: len(self.acknowledged) >= goal)

    def check(self) -> None:
        """What the topic holds is what was acknowledged, and perhaps what was sent: each id under one key."""
        events = [m for m in read_topic(self.server.broker, self.server.topic) if isinstance(m, EventMessage)]
        keys: dict[int, set[object]] = {}
        for event in events:
            keys.setdefault(event.event_id, set()).add((event.app, event.user_id, event.time))
        assert self.acknowledged <= keys.keys() <= self.sent
        assert all(len(places) == 1 for places in keys.values())

    def _send(self) -> None:
        while not self._stop.is_set():
            ids = [next(_ids) for _ in range(_BATCH)]
            self.sent.update(ids)
            events = [{"type": "x", "user_id": n % 50, "event_id": n, "time": 1_767_323_045 + n} for n in ids]
            body = json.dumps({"events": events}).encode()
            while not self._stop.is_set() and not self._send_once(body):
                time.sleep(0.05)
            else:
                if not self._stop.is_set():
                    self.acknowledged.update(ids)

    def _send_once(self, body: bytes) -> bool:
        started = time.monotonic()
        try:
            answer = self.server.post("/capture", body, self._headers)
        except (OSError, http.client.HTTPException):
            return False
        self.slowest = max(self.slowest, time.monotonic() - started)
        if answer.status != 200:
            self.refused[answer.status] = self.refused.get(answer.status, 0) + 1
            self.retry_after.add(answer.headers.get("retry-after", ""))
        return answer.status == 200


@contextmanager
def _server(dsn: str, broker: Broker, topic: str, *options: str) -> Iterator[CaptureServer]:
    server = CaptureServer(dsn, broker, topic, *options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def test_kill_9_of_the_server_under_load(capture_dsn: str, broker: Broker, write_key: str) -> None:
    chance = random.Random(1)
    with _server(capture_dsn, broker, "killed") as server:
        with _Load(server, write_key) as load:
            for _ in range(2):
                load.reach(500)
                time.sleep(chance.random() / 4)
                server.kill()
                server.start()
            load.reach(500)
        load.check()


def test_kafka_down_for_a_while_under_load(capture_dsn: str, broker: Broker, write_key: str) -> None:
    with _server(capture_dsn, broker, "kafka-down", "--acknowledge-seconds", "1") as server:
        with _Load(server, write_key) as load:
            load.reach(1_000)
            broker.kill()
            try:
                until(lambda: load.refused.get(503, 0) >= 4)
                assert server.get("/healthz").status == 503
                assert server.metric("heap_capture_in_flight_bytes") <= 4 * _BATCH * 1_000
            finally:
                broker.up()
            load.reach(1_000)
        assert load.refused.keys() == {503}
        assert load.retry_after == {"5"}
        assert load.slowest < 10
        load.check()
        until(lambda: server.metric("heap_capture_in_flight_bytes") == 0)


def test_kafka_hangs_under_load(capture_dsn: str, broker: Broker, write_key: str) -> None:
    """It keeps its connections and answers nobody: what it had not acknowledged in time may be there all the same."""
    with _server(capture_dsn, broker, "kafka-hangs", "--acknowledge-seconds", "1") as server:
        with _Load(server, write_key) as load:
            load.reach(500)
            broker.pause()
            try:
                until(lambda: load.refused.get(503, 0) >= 4)
            finally:
                broker.resume()
            load.reach(500)
        load.check()


def test_it_ends_when_what_it_took_is_acknowledged(capture_dsn: str, broker: Broker, write_key: str) -> None:
    with _server(capture_dsn, broker, "ended", "--kafka", "linger.ms=1000") as server:
        answers: list[int] = []
        event = {"type": "last", "user_id": 1}
        asking = [threading.Thread(
            target=lambda: answers.append(server.post("/track", event, {"X-Write-Key": write_key}).status)
        ) for _ in range(5)]  # fmt: skip
        for thread in asking:
            thread.start()
        until(lambda: server.metric("heap_capture_in_flight_bytes") > 0)
        time.sleep(0.3)
        server.terminate()
        for thread in asking:
            thread.join()
        assert server.wait() == 0
        assert answers == [200] * 5
        assert len(read_topic(broker, server.topic)) == 5


def test_a_flood_of_malformed_and_of_large_bodies_leaves_memory_flat(capture: CaptureServer, write_key: str) -> None:
    headers = {"X-Write-Key": write_key}
    large, deep, cut = b"[" + b" " * 10_000_000 + b"]", b"[" * 500_000, b'{"events": [' + b'{"type": "x"}, ' * 20_000

    def flood(rounds: int) -> None:
        for _ in range(rounds):
            for body, statuses in ((large, {413}), (deep, {400}), (cut, {400}), (b"\xff\x00", {400})):
                try:
                    assert capture.post("/capture", body, headers).status in statuses
                except OSError:  # it answers and closes before it has read all of a large one
                    assert body is large

    flood(3)
    before = capture.memory()
    threads = [threading.Thread(target=flood, args=(10,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capture.memory() - before < 32_000_000
    assert capture.metric("heap_capture_in_flight_bytes") == 0
    assert capture.post("/track", {"type": "x", "user_id": 1}, headers).status == 200


@pytest.mark.parametrize("slow", ["headers", "body"])
def test_slow_clients_are_cut_off_and_hold_up_nobody(
    slow: str, capture_dsn: str, broker: Broker, write_key: str
) -> None:
    head = f"POST /capture HTTP/1.1\r\nHost: x\r\nX-Write-Key: {write_key}\r\nContent-Length: 1000\r\n".encode()
    with _server(capture_dsn, broker, f"slow-{slow}", "--client-seconds", "1.5") as server:
        sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
        try:
            for connected in sockets:
                connected.sendall(head + (b"\r\n{" if slow == "body" else b"X-Slow: "))
            time.sleep(0.5)
            with server.connection() as quick:
                started = time.monotonic()
                event = json.dumps({"type": "x", "user_id": 1}).encode()
                assert ask(quick, "POST", "/track", event, {"X-Write-Key": write_key}).status == 200
                assert time.monotonic() - started < 1
            deadline = time.monotonic() + 5
            for connected in sockets:
                connected.settimeout(max(0.1, deadline - time.monotonic()))
                with suppress(ConnectionError):
                    answer = connected.recv(65_536)
                    assert answer.startswith(b"HTTP/1.1 408") if slow == "body" else answer == b""
            until(lambda: server.metric("heap_capture_in_flight_bytes") == 0)
        finally:
            for connected in sockets:
                connected.close()


def test_a_client_that_goes_away_leaves_nothing_behind(capture: CaptureServer, write_key: str) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", capture.port)) as connected:
            connected.sendall(
                f"POST /capture HTTP/1.1\r\nHost: x\r\nX-Write-Key: {write_key}\r\nContent-Length: 90000\r\n\r\n".encode()
                + b" " * 10_000
            )
    until(lambda: capture.metric("heap_capture_in_flight_bytes") == 0)
