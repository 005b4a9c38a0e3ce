"""How fast the capture server acknowledges, against bare producers of the same events with the same settings.

All send to one Kafka on this machine, in turns: a producer in a loop that sends each event as a message of its own, as
one would do without a capture server; a producer that sends the very messages the server makes; and clients over HTTP.
The rate that counts is that of the first. Processor time an event says what the machine's other work does not blur.
Requests of several kinds: a program's large batches, of many users and of one; a browser's; single events.

    python -m benchmarks.capture --workers 2 --rounds 5
    python -m benchmarks.capture --requests 10:1           # only batches of 10 events of one user, as a browser sends
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from confluent_kafka import KafkaError, Producer

from heap_extension.cluster import Cluster
from heap_extension.install import install
from heap_extension.nodes import create_extension
from heap_extension.postgres import find_postgres
from heap_ingest.broker import Broker, find_kafka
from heap_ingest.capture.acknowledge import producer_settings
from heap_ingest.capture.limits import Limits
from heap_ingest.capture.pack import Origin
from heap_ingest.capture.parse import parse_body, parse_items
from heap_ingest.log import ProducerRecord
from heap_ingest.messages import CapturedMessage, EventMessage, decode, encode, message_key
from tests.ingest.capture_server import PARTITIONS, CaptureServer, ensure_key
from tests.servers import server_folder

_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
_BODIES = 1_000
"""So many that none comes again within what zstd looks back: a producer's large batches would become small by it."""
_REQUESTS = ((100, 100), (100, 1), (10, 1), (1, 1))
_MOST_REQUESTS = 20_000
_TICKS = os.sysconf("SC_CLK_TCK")


def bodies(batch: int, users: int) -> list[bytes]:
    """Batches of clicks with what a page's script captures, each of so many users."""
    chance = random.Random(1)
    made = []
    for _ in range(_BODIES):
        of_batch = [chance.getrandbits(60) for _ in range(users)]
        events = [_event(chance, of_batch[number % users]) for number in range(batch)]
        made.append(json.dumps({"events": events}, separators=(",", ":")).encode())
    return made


def _event(chance: random.Random, user_id: int) -> dict[str, object]:
    page = chance.choice(("/", "/pricing", "/docs/start", "/product/17", "/signup"))
    return {
        "type": "click", "user_id": user_id, "event_id": chance.getrandbits(60),
        "time": f"2026-01-02T03:{chance.randrange(60):02}:{chance.randrange(60):02}.{chance.randrange(1000):03}Z",
        "session_id": chance.getrandbits(50), "library": "web", "platform": "web", "language": "en-US",
        "domain": "www.example.com", "path": page, "title": f"Example: {page}", "target_text": "Sign up",
        "target_tag": "button", "hierarchy": "@html;|@body;|@div;.main;|@form;.signup;|@button;#go;:nth-child(2);|",
        "properties": {"plan": chance.choice(("free", "pro")), "seats": chance.randrange(50)},
    }  # fmt: skip


def together(batches: list[bytes]) -> list[ProducerRecord]:
    """The messages the server makes of these bodies."""
    origin = Origin("captured", datetime.now(UTC), ip="127.0.0.1", user_agent=_AGENT, partitions=PARTITIONS)
    records: list[ProducerRecord] = []
    for body in batches:
        content = parse_body(body, "events", Limits())
        records += parse_items(EventMessage, content, origin, Limits()).records
    return records


def one_by_one(records: list[ProducerRecord]) -> list[ProducerRecord]:
    """The same events, each a message of its own."""
    singles = []
    for record in records:
        message = decode(record.value)
        assert isinstance(message, CapturedMessage)
        events = (message.single(position) for position in range(len(message.events)))
        singles += [ProducerRecord(message_key(event.app, event.user_id), encode(event)) for event in events]
    return singles


def bare(servers: str, topic: str, records: list[ProducerRecord], count: int) -> tuple[float, float]:
    """Seconds in which a producer in a loop gets so many messages acknowledged, and processor time it took."""
    producer = Producer(producer_settings(servers, 30) | {"queue.buffering.max.messages": 100_000})
    producer.list_topics(timeout=10)
    left = count

    def acknowledged(error: KafkaError | None, _: object) -> None:
        nonlocal left
        assert error is None
        left -= 1

    used, started = _own_cpu(), time.perf_counter()
    for number in range(count):
        key, value, partition = records[number % len(records)]
        while True:
            try:
                producer.produce(topic, value, key, partition, on_delivery=acknowledged)
                break
            except BufferError:
                producer.poll(0.01)
        if number % 100 == 0:
            producer.poll(0)
    while left:
        producer.poll(0.01)
    return time.perf_counter() - started, _own_cpu() - used


def _own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def over_http(
    port: int, key: str, batches: list[bytes], clients: int, requests: int, per_second: float | None
) -> tuple[float, float, list[float]]:
    """Seconds in which so many requests are answered, processor time the clients took, and how long each request took,
    from the moment it was due.

    Args:
        per_second: requests that are due; None sends the next as soon as one is answered.
    """
    head = f"POST /capture HTTP/1.1\r\nHost: x\r\nX-Write-Key: {key}\r\nUser-Agent: {_AGENT}\r\nContent-Length: "
    messages = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in batches]
    taken: list[float] = []
    used, began = _own_cpu(), time.perf_counter()

    def client(first: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number in range(first, requests, clients):
                started = time.perf_counter()
                if per_second is not None:
                    due = began + number / per_second
                    time.sleep(max(due - started, 0))
                    started = due
                connection.sendall(messages[number % len(messages)])
                answer = b""
                while not answer.endswith(b"}"):
                    answer += connection.recv(65_536)
                taken.append(time.perf_counter() - started)
                assert answer.startswith(b"HTTP/1.1 200"), answer

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == requests
    return time.perf_counter() - began, _own_cpu() - used, taken


@dataclass
class _Measured:
    """By round: events a second, and microseconds of processor time an event, of who sends it, of Kafka and of the
    clients."""

    rates: list[float] = field(default_factory=list)
    sender: list[float] = field(default_factory=list)
    kafka: list[float] = field(default_factory=list)
    clients: list[float] = field(default_factory=list)

    @property
    def processor(self) -> list[float]:
        """All of it."""
        return [sum(parts) for parts in zip(self.sender, self.kafka, self.clients, strict=True)]

    def __str__(self) -> str:
        lists = self.rates, self.sender, self.kafka, self.clients
        rate, sender, kafka, clients = (statistics.median(numbers) for numbers in lists)
        return f"{rate:9,.0f} events/s  {sender:6.2f} us  Kafka {kafka:5.2f}  clients {clients:5.2f} us an event"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=128, help="each sends its next request when one is answered")
    parser.add_argument(
        "--requests", action="append", type=_shape, help="events and users of a request, such as 100:100; several"
    )
    parser.add_argument("--events", type=int, default=400_000, help="of a round, but no more than 20,000 requests")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kafka", action="append", default=[], help="a setting of librdkafka for the server, too")
    options = parser.parse_args()
    install(find_postgres())
    with server_folder() as folder:
        cluster, broker = Cluster(find_postgres(), folder / "cluster"), Broker(find_kafka(), folder / "kafka")
        cluster.up()
        create_extension(cluster.dsn)
        broker.up()
        key = ensure_key(cluster.dsn, events_per_second=100_000_000)
        settings = [part for setting in options.kafka for part in ("--kafka", setting)]
        server = CaptureServer(cluster.dsn, broker, "measured", "--workers", str(options.workers), *settings)
        server.start()
        try:
            for batch, users in options.requests or _REQUESTS:
                _measure(server, key, batch, users, options)
        finally:
            server.stop()
            broker.kill()
            cluster.down()


def _shape(text: str) -> tuple[int, int]:
    batch, _, users = text.partition(":")
    return int(batch), min(int(users or batch), int(batch))


def _measure(server: CaptureServer, key: str, batch: int, users: int, options: argparse.Namespace) -> None:
    batches = bodies(batch, users)
    packed = together(batches)
    singles = one_by_one(packed)
    requests = min(options.events // batch, _MOST_REQUESTS)
    events = requests * batch
    messages = len(packed) * events // len(singles)
    print(
        f"\n{batch} events of {users} users a request of {len(batches[0]):,} bytes,"
        f" {options.clients} clients, {options.workers} workers;"
        f" {_mean_size(singles):,} bytes a message of one event, {_mean_size(packed):,} of {events / messages:.0f}"
    )
    servers = server.broker.bootstrap_servers
    kafka = [int((server.broker.directory / "pid").read_text())]
    alone, alike, ours = _Measured(), _Measured(), _Measured()
    waits: list[float] = []
    with multiprocessing.get_context("spawn").Pool(1) as process:
        for number in range(options.rounds + 1):  # the first warms up
            for measured, records, count in ((alone, singles, events), (alike, packed, messages)):
                with _cpu(kafka) as of_kafka:
                    seconds, used = process.apply(bare, (servers, server.topic, records, count))
                _note(measured, number, events, seconds, used, of_kafka[0])
            with _cpu(server.pids) as of_server, _cpu(kafka) as of_kafka:
                seconds, used, taken = process.apply(
                    over_http, (server.port, key, batches, options.clients, requests, None)
                )
            _note(ours, number, events, seconds, of_server[0], of_kafka[0], used)
            waits += taken if number else []
        half = statistics.median(ours.rates) / batch / 2
        _, _, waits_at_half = process.apply(over_http, (server.port, key, batches, options.clients, requests, half))
    for name, measured in (("bare, one by one", alone), ("bare, same messages", alike), ("capture", ours)):
        print(f"{name:19}  {measured}")
    for name, measured in (("one by one", alone), ("the same messages", alike)):
        ratio = statistics.median(one / other for one, other in zip(ours.rates, measured.rates, strict=True))
        costs = zip(ours.processor, measured.processor, strict=True)
        cost = statistics.median(theirs / mine for mine, theirs in costs)
        print(
            f"capture acknowledges {ratio:.0%} of a bare producer of {name}; {cost:.0%} by processor time"
            f" (medians of {options.rounds} rounds)"
        )
    for name, found in (("full load", waits), ("half load", waits_at_half)):
        cuts = statistics.quantiles(found, n=100)
        numbers = ", ".join(f"p{cut} {cuts[cut - 1] * 1000:.1f}" for cut in (50, 95, 99))
        print(f"acknowledged at {name} after {numbers} ms")


def _note(
    measured: _Measured, number: int, events: int, seconds: float, sender: float, kafka: float, clients: float = 0.0
) -> None:
    if number:
        measured.rates.append(events / seconds)
        measured.sender.append(1e6 * sender / events)
        measured.kafka.append(1e6 * kafka / events)
        measured.clients.append(1e6 * clients / events)


def _mean_size(records: list[ProducerRecord]) -> int:
    return sum(len(record.value) for record in records) // len(records)


@contextmanager
def _cpu(pids: list[int]) -> Iterator[list[float]]:
    """The seconds of processor time these processes use while the block runs."""

    def used() -> float:
        found = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
        return sum((int(fields[11]) + int(fields[12])) / _TICKS for fields in found)

    before, seconds = used(), [0.0]
    yield seconds
    seconds[0] = used() - before


if __name__ == "__main__":
    main()
