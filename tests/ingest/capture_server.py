"""A capture server in processes of its own, a client that shows what goes over the wire, and what is in Kafka."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from confluent_kafka import Consumer, TopicPartition

from heap_extension.cluster import free_port
from heap_ingest.broker import Broker
from heap_ingest.messages import Message
from heap_ingest.topics import create_topics
from heap_ingest.write_keys import make_write_key
from tests.ingest.log import unpacked
from tests.waiting import until

__all__ = ["APP", "PARTITIONS", "Answer", "CaptureServer", "ensure_key", "read_topic", "topic_ends"]

APP = "captured"
PARTITIONS = 4


class Answer(NamedTuple):
    """What the server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class CaptureServer:
    """`heap ingest serve` on a free port, with a topic of its own."""

    def __init__(self, dsn: str, broker: Broker, topic: str, *options: str) -> None:
        self.port = free_port()
        self.broker = broker
        self.topic = topic
        create_topics(broker.bootstrap_servers, events=topic, dead_letters=f"{topic}-dead", partitions=PARTITIONS)
        heap = Path(sys.executable).with_name("heap")
        self._command = [str(heap), "ingest", "serve", "--dsn", dsn, "--bootstrap-servers", broker.bootstrap_servers,
                         "--topic", topic, "--port", str(self.port), *options]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when events can be taken."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        until(self.is_ready)

    def is_ready(self) -> bool:
        """True when events can be taken."""
        try:
            return self.get("/healthz").status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """Ends every process of it at once."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> None:
        """Tells it to end, and does not wait."""
        assert self._process is not None
        self._process.terminate()

    def wait(self, seconds: float = 30) -> int:
        """Waits for its end; the exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self) -> None:
        """Ends it, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    @contextmanager
    def connection(self, seconds: float = 30) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            yield connection
        finally:
            connection.close()

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        """Sends a body, JSON unless it is bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with self.connection() as connection:
            return ask(connection, "POST", path, content, headers)

    def get(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
        with self.connection() as connection:
            return ask(connection, method, path, None, headers)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return [pid for pid, _ in self._listed()]

    def memory(self) -> int:
        """Bytes that its processes keep, in all."""
        return sum(size for _, size in self._listed())

    def _listed(self) -> list[tuple[int, int]]:
        """Its processes, and the bytes each keeps."""
        assert self._process is not None
        group = os.getpgid(self._process.pid)
        command = ["ps", "-A", "-o", "pgid=,pid=,rss="]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = (map(int, line.split()) for line in listed.splitlines())
        return [(pid, kilobytes * 1024) for pgid, pid, kilobytes in rows if pgid == group]


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on a connection that stays open."""
    connection.request(method, path, body, dict(headers or {}))
    response = connection.getresponse()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def ensure_key(dsn: str, **options: Any) -> str:
    """A new write key of the app, which is made if need be."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        if connection.execute("SELECT FROM heap.app WHERE name = %s", (APP,)).fetchone() is None:
            connection.execute("SELECT heap.create_app(%s)", (APP,))
        return make_write_key(connection, APP, **options)


def topic_ends(broker: Broker, topic: str) -> list[int]:
    """How many records each partition has."""
    with _reader(broker) as reader:
        return [reader.get_watermark_offsets(TopicPartition(topic, number), 10)[1] for number in range(PARTITIONS)]


def read_topic(broker: Broker, topic: str, since: list[int] | None = None) -> list[Message]:
    """The messages from those places on, or all, to the end of now; events one by one."""
    starts, ends = since or [0] * PARTITIONS, topic_ends(broker, topic)
    found: list[Message] = []
    with _reader(broker) as reader:
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            reader.assign([TopicPartition(topic, number, start)])
            while start < end:
                records = reader.consume(min(end - start, 10_000), 10)
                assert records
                start += len(records)
                found += (message for record in records for message in unpacked(record.value() or b""))
    return found


@contextmanager
def _reader(broker: Broker) -> Iterator[Consumer]:
    reader = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "capture tests", "log_level": 0})
    try:
        yield reader
    finally:
        reader.close()
