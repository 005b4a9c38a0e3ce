"""A log of its own for a test, an app to store it in, and the oracle: which ids Kafka acknowledged."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka import Message as KafkaMessage

from heap_ingest.broker import Broker
from heap_ingest.capture.pack import Origin, pack_events
from heap_ingest.messages import (
    CapturedEvent,
    CapturedMessage,
    EventMessage,
    EventsMessage,
    IdentifyMessage,
    Message,
    UserMessage,
    decode,
    encode,
    message_key,
)
from heap_ingest.topics import create_topics
from tests.waiting import until

__all__ = ["APP", "Log", "captured", "events", "fresh_app", "stored_ids", "unpacked"]

APP = "ingested"
NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)


class Log:
    """Topics that nobody else uses.

    Attributes:
        acknowledged: the ids of the events that Kafka has taken: the oracle of what has to be stored.
    """

    def __init__(self, broker: Broker, partitions: int = 4) -> None:
        self.broker = broker
        self.topic = f"log-{uuid.uuid4().hex[:12]}"
        self.dead_letters = f"{self.topic}-dead"
        self.partitions = partitions
        self.acknowledged: set[int] = set()
        create_topics(
            broker.bootstrap_servers, events=self.topic, dead_letters=self.dead_letters, partitions=partitions
        )
        self._producer = Producer(
            {
                "bootstrap.servers": broker.bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )

    def send(self, messages: Iterable[EventMessage | UserMessage | IdentifyMessage]) -> None:
        """Sends messages; those that are events become acknowledged ones when Kafka says so."""
        for message in messages:
            event_id = message.event_id if isinstance(message, EventMessage) else None

            def delivered(error: KafkaError | None, _: KafkaMessage, event_id: int | None = event_id) -> None:
                if error is None and event_id is not None:
                    self.acknowledged.add(event_id)

            key = message_key(message.app, message.user_id)
            self._producer.produce(self.topic, encode(message), key, on_delivery=delivered)
            self._producer.poll(0)

    def send_together(self, messages: Iterable[EventMessage]) -> None:
        """Sends events of one app as the capture server does those of one request: several in a message."""
        sent = list(messages)
        origin = Origin(sent[0].app, sent[0].received_at, partitions=self.partitions)
        packed = pack_events([captured(event) for event in sent], origin, 4_000)
        assert not packed.too_large
        for key, value, partition in packed.records:
            ids = [event.event_id for event in unpacked(value) if isinstance(event, EventMessage)]

            def delivered(error: KafkaError | None, _: KafkaMessage, ids: list[int] = ids) -> None:
                if error is None:
                    self.acknowledged.update(ids)

            self._producer.produce(self.topic, value, key, partition, on_delivery=delivered)
            self._producer.poll(0)

    def send_in_transactions(self, messages: Iterable[EventMessage]) -> None:
        """Sends each in a transaction of its own, to the first partition: behind it Kafka keeps a marker in the log,
        which nobody is given."""
        producer = Producer(
            {"bootstrap.servers": self.broker.bootstrap_servers, "transactional.id": self.topic, "log_level": 0}
        )
        producer.init_transactions(30)
        for message in messages:
            length = self.length()
            producer.begin_transaction()
            producer.produce(self.topic, encode(message), b"k", 0)
            producer.commit_transaction(30)
            until(lambda wanted=length + 2: self.length() == wanted)  # Kafka writes the marker after it has answered

    def send_raw(self, value: bytes, key: bytes | None = None) -> None:
        """Sends what may be no message."""
        self._producer.produce(self.topic, value, key)

    def flush(self) -> None:
        """Returns when Kafka has acknowledged all that was sent."""
        assert self._producer.flush(60) == 0

    def length(self) -> int:
        """How many records there are."""
        with self._reader() as reader:
            ends = [reader.get_watermark_offsets(TopicPartition(self.topic, n), 10) for n in range(self.partitions)]
        return sum(high for _, high in ends)

    def buried(self) -> list[tuple[bytes, dict[str, str]]]:
        """The dead letters, with their headers."""
        found: list[tuple[bytes, dict[str, str]]] = []
        with self._reader() as reader:
            places = [TopicPartition(self.dead_letters, partition, 0) for partition in range(self.partitions)]
            count = sum(reader.get_watermark_offsets(place, 10)[1] for place in places)
            reader.assign(places)
            while len(found) < count:
                (message,) = reader.consume(1, 10)
                headers = {name: value.decode() for name, value in message.headers() or [] if isinstance(value, bytes)}
                found.append((message.value() or b"", headers))
        return found

    @contextmanager
    def _reader(self) -> Iterator[Consumer]:
        reader = Consumer({"bootstrap.servers": self.broker.bootstrap_servers, "group.id": "tests", "log_level": 0})
        try:
            yield reader
        finally:
            reader.close()


def captured(event: EventMessage) -> CapturedEvent:
    """An event as it is among others."""
    return CapturedEvent(
        event.user_id, event.time, event.event_id, event.type, event.session_id, event.properties, **event.columns
    )


def unpacked(value: bytes) -> list[Message]:
    """The messages of a record, those of several events one by one."""
    message = decode(value)
    if isinstance(message, CapturedMessage | EventsMessage):
        return [message.single(position) for position in range(len(message.events))]
    return [message]


def events(count: int, first_id: int = 1, *, users: int = 50, seed: int = 1, app: str = APP) -> Iterator[EventMessage]:
    """Events with the ids from `first_id` on, of users and times by chance."""
    chance = random.Random(seed)
    for number in range(first_id, first_id + count):
        yield EventMessage(
            app=app,
            user_id=chance.randrange(users),
            time=NOON + timedelta(seconds=chance.randrange(86_400)),
            received_at=datetime.now(UTC),
            event_id=number,
            type="pageview",
            columns={"path": f"/{number % 7}"},
            properties={"number": number},
        )


def fresh_app(connection: psycopg.Connection[Any], app: str = APP) -> None:
    """Makes the app, and drops what is of it from an earlier test."""
    connection.execute("SELECT heap.drop_app(name) FROM heap.app WHERE name = %s", (app,))
    distributed = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone()
    connection.execute("SELECT heap.create_app(%s, shard_count => %s)", (app, 4 if distributed else None))
    connection.execute("SELECT set_config('heap.app', %s, false)", (app,))


def stored_ids(connection: psycopg.Connection[Any], app: str = APP) -> list[int]:
    """The ids of all rows, each as often as it is there."""
    return [number for (number,) in connection.execute(f"SELECT event_id FROM {app}.events ORDER BY 1").fetchall()]
