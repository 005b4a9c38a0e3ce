"""How fast the capture server acknowledges, against a bare producer of the same bytes with the same settings.

Both send to one Kafka on this machine, in turns, each from a process of its own:

    python -m benchmarks.capture --workers 2 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import socket
import statistics
import threading
import time
from datetime import UTC, datetime

from confluent_kafka import KafkaError, Producer

from heap_extension.cluster import Cluster
from heap_extension.install import install
from heap_extension.nodes import create_extension
from heap_extension.postgres import find_postgres
from heap_ingest.broker import Broker, find_kafka
from heap_ingest.capture.acknowledge import producer_settings
from heap_ingest.capture.limits import Limits
from heap_ingest.capture.parse import Origin, parse_body, parse_items
from heap_ingest.messages import EventMessage
from tests.ingest.capture_server import CaptureServer, ensure_key
from tests.servers import server_folder

_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
_BODIES = 20


def bodies(batch: int) -> list[bytes]:
    """Batches of clicks with what a page's script captures."""
    chance = random.Random(1)
    return [
        json.dumps({"events": [_event(chance) for _ in range(batch)]}, separators=(",", ":")).encode()
        for _ in range(_BODIES)
    ]


def _event(chance: random.Random) -> dict[str, object]:
    page = chance.choice(("/", "/pricing", "/docs/start", "/product/17", "/signup"))
    return {
        "type": "click", "user_id": chance.getrandbits(60), "event_id": chance.getrandbits(60),
        "time": f"2026-01-02T03:{chance.randrange(60):02}:{chance.randrange(60):02}.{chance.randrange(1000):03}Z",
        "session_id": chance.getrandbits(50), "library": "web", "platform": "web", "language": "en-US",
        "domain": "www.example.com", "path": page, "title": f"Example: {page}", "target_text": "Sign up",
        "target_tag": "button", "hierarchy": "@html;|@body;|@div;.main;|@form;.signup;|@button;#go;:nth-child(2);|",
        "properties": {"plan": chance.choice(("free", "pro")), "seats": chance.randrange(50)},
    }  # fmt: skip


def bare(servers: str, topic: str, records: list[tuple[bytes, bytes]], count: int) -> float:
    """Events a second that a producer in a loop gets acknowledged."""
    producer = Producer(producer_settings(servers, 30) | {"queue.buffering.max.messages": 100_000})
    producer.list_topics(timeout=10)
    left = count

    def acknowledged(error: KafkaError | None, _: object) -> None:
        nonlocal left
        assert error is None
        left -= 1

    started = time.perf_counter()
    for number in range(count):
        key, value = records[number % len(records)]
        while True:
            try:
                producer.produce(topic, value, key, on_delivery=acknowledged)
                break
            except BufferError:
                producer.poll(0.01)
        if number % 100 == 0:
            producer.poll(0)
    while left:
        producer.poll(0.01)
    return count / (time.perf_counter() - started)


def over_http(port: int, key: str, batches: list[bytes], clients: int, requests: int) -> tuple[float, list[float]]:
    """Requests a second, and how long each took."""
    head = f"POST /capture HTTP/1.1\r\nHost: x\r\nX-Write-Key: {key}\r\nUser-Agent: {_AGENT}\r\nContent-Length: "
    messages = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in batches]
    taken: list[float] = []

    def client(first: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number in range(first, requests, clients):
                started = time.perf_counter()
                connection.sendall(messages[number % len(messages)])
                answer = b""
                while not answer.endswith(b"}"):
                    answer += connection.recv(65_536)
                taken.append(time.perf_counter() - started)
                assert answer.startswith(b"HTTP/1.1 200"), answer

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == requests
    return requests / (time.perf_counter() - started), taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    install(find_postgres())
    with server_folder() as folder:
        cluster, broker = Cluster(find_postgres(), folder / "cluster"), Broker(find_kafka(), folder / "kafka")
        cluster.up()
        create_extension(cluster.dsn)
        broker.up()
        key = ensure_key(cluster.dsn, events_per_second=100_000_000)
        server = CaptureServer(cluster.dsn, broker, "measured", "--workers", str(options.workers))
        server.start()
        try:
            _measure(server, key, options)
        finally:
            server.stop()
            broker.kill()
            cluster.down()


def _measure(server: CaptureServer, key: str, options: argparse.Namespace) -> None:
    batches = bodies(options.batch)
    origin = Origin("captured", datetime.now(UTC), ip="127.0.0.1", user_agent=_AGENT)
    records = [
        record
        for body in batches
        for record in parse_items(EventMessage, parse_body(body, "events"), origin, Limits()).records
    ]
    size = sum(len(value) for _, value in records) // len(records)
    print(f"{size} bytes a message, {options.batch} a request, {options.clients} clients, {options.workers} workers")
    requests = options.events // options.batch
    servers = server.broker.bootstrap_servers
    bares: list[float] = []
    ours: list[float] = []
    waits: list[float] = []
    with multiprocessing.get_context("spawn").Pool(1) as process:
        for number in range(options.rounds + 1):  # the first warms up
            alone = process.apply(bare, (servers, server.topic, records, options.events))
            rate, taken = process.apply(over_http, (server.port, key, batches, options.clients, requests))
            events = rate * options.batch
            print(f"bare {alone:9,.0f}  capture {events:9,.0f} events/s  {events / alone:.0%}")
            if number:
                bares.append(alone)
                ours.append(events)
                waits += taken
    shares = statistics.quantiles(waits, n=100)
    ratio = statistics.median(one / other for one, other in zip(ours, bares, strict=True))
    print(f"median: bare {statistics.median(bares):,.0f}, capture {statistics.median(ours):,.0f} events/s: {ratio:.0%}")
    print("acknowledged in p50 {:.1f}, p95 {:.1f}, p99 {:.1f} ms".format(*(shares[n] * 1000 for n in (49, 94, 98))))


if __name__ == "__main__":
    main()
