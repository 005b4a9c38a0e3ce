"""The log as it is in Kafka: its records, stretches of it that are read beside the sinks, and what is added to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from heap_ingest.gaps import Gaps
from heap_ingest.topic_names import EVENTS
from heap_ingest.topics import first_offsets

__all__ = [
    "ProducerRecord",
    "Record",
    "Sender",
    "Span",
    "SpanError",
    "cluster_id",
    "find_span",
    "parse_start",
    "read_span",
]

_BATCH = 5_000
_BATCH_BYTES = 4_000_000
_PIECE = 64


class Record(NamedTuple):
    """A record of the log: where it is and what it holds.

    Attributes:
        position: of the one event that is meant, in a message of several; else None.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    position: int | None = None

    @property
    def place(self) -> str:
        """Partition, offset and position, as people read it.

        >>> Record("heap-events", 3, 17, None, b"", 2).place
        '3:17:2'
        """
        return ":".join(str(number) for number in (self.partition, self.offset, self.position) if number is not None)


class ProducerRecord(NamedTuple):
    """A record to be added to the log; without a partition of its own it goes where its key belongs."""

    key: bytes | None
    value: bytes
    partition: int = -1


class SpanError(ValueError):
    """There is no such stretch of the log."""


class Span(NamedTuple):
    """A stretch of the log: by partition, the first offset and the one after the last."""

    topic: str
    offsets: dict[int, tuple[int, int]]

    @property
    def length(self) -> int:
        """Messages in it, at most: offsets may be missing."""
        return sum(after - first for first, after in self.offsets.values())


class Sender:
    """Adds records to a topic; `finish` returns when Kafka has acknowledged them all."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._failed: list[KafkaError] = []
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                "message.max.bytes": 8_000_000,
                "compression.type": "zstd",
                "log_level": 0,
            }
        )

    def send(
        self, topic: str, value: bytes, key: bytes | None = None, headers: Mapping[str, bytes] | None = None
    ) -> None:
        """Adds a record, soon."""
        while True:
            try:
                self._producer.produce(topic, value, key, headers=dict(headers or {}), on_delivery=self._delivered)
            except BufferError:
                self._producer.poll(0.1)
            else:
                self._producer.poll(0)
                return

    def finish(self, timeout: float = 30.0) -> None:
        """Waits for all acknowledgements.

        Raises:
            KafkaException: not all came within `timeout` seconds. Which records are in the topic is not known.
        """
        if self._producer.flush(timeout):
            self._producer.purge()
            self._producer.flush(1.0)
            self._failed.clear()
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"not acknowledged in {timeout:.0f} s"))
        failed, self._failed = self._failed, []
        if failed:
            raise KafkaException(failed[0])

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failed.append(error)


def parse_start(text: str) -> datetime | int | None:
    """Where to begin: `beginning` (None), an offset, or a time in ISO 8601, in UTC unless it says otherwise.

    >>> parse_start("2026-01-15")
    datetime.datetime(2026, 1, 15, 0, 0, tzinfo=datetime.timezone.utc)
    >>> parse_start("1200")
    1200

    Raises:
        SpanError: it is none of them.
    """
    if text == "beginning":
        return None
    if text.isascii() and text.isdigit() and len(text) != 8:
        return int(text)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise SpanError(f"{text!r} is neither `beginning`, an offset nor a time such as 2026-01-15T12:00:00Z") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def find_span(
    bootstrap_servers: str, start: datetime | int | None, end: datetime | int | None = None, topic: str = EVENTS
) -> Span:
    """The stretch of the log from `start` to `end`, as it is now: what comes later is not in it.

    Args:
        start, end: a time, when messages were taken by Kafka; or an offset, of every partition. None begins with the
            oldest message there is, and ends with the newest. `end` itself is outside.

    Raises:
        SpanError: the start is in the future or behind the end; there is no such topic.
        KafkaException: Kafka does not answer.
    """
    if isinstance(start, datetime) and isinstance(end, datetime) and start > end:
        raise SpanError("the start is behind the end")
    if isinstance(start, int) and isinstance(end, int) and start > end:
        raise SpanError("the start is behind the end")
    for name, bound in (("start", start), ("end", end)):
        if isinstance(bound, datetime) and bound > datetime.now(UTC):
            raise SpanError(f"the {name} {bound.isoformat()} is in the future")
    with _consumer(bootstrap_servers) as consumer:
        found = consumer.list_topics(topic, timeout=10).topics[topic]
        if found.error is not None:
            raise SpanError(f"there is no topic {topic}")
        places = [TopicPartition(topic, partition) for partition in found.partitions]
        lows = first_offsets(bootstrap_servers, topic, found.partitions)
        highs = {place.partition: consumer.get_watermark_offsets(place, timeout=10)[1] for place in places}
        starts, ends = _offsets(consumer, places, start, lows), _offsets(consumer, places, end, highs)
    offsets = {}
    for partition in sorted(lows):
        first, after = max(starts[partition], lows[partition]), min(ends[partition], highs[partition])
        if first < after:
            offsets[partition] = first, after
    if isinstance(start, int) and start and not offsets:
        raise SpanError(f"no partition of {topic} has an offset {start}")
    return Span(topic, offsets)


def _offsets(
    consumer: Consumer, places: list[TopicPartition], bound: datetime | int | None, otherwise: Mapping[int, int]
) -> dict[int, int]:
    """By partition, the first offset at or after the bound. Beyond the last message it is the end."""
    if bound is None:
        return dict(otherwise)
    if isinstance(bound, int):
        return {place.partition: bound for place in places}
    asked = [TopicPartition(place.topic, place.partition, int(bound.timestamp() * 1000)) for place in places]
    found: dict[int, int] = {}
    for place in consumer.offsets_for_times(asked, timeout=10):
        found[place.partition] = place.offset if place.offset >= 0 else 2**63 - 1
    return found


def read_span(bootstrap_servers: str, span: Span) -> Iterator[list[tuple[Record, dict[str, bytes]]]]:
    """The records of the span with their headers, in batches. Those of a partition come in their order, each once, and
    none is left out that Kafka's client skips: what is missing is asked for again (see `Gaps`).

    Raises:
        KafkaException: Kafka does not answer, or no longer has them.
    """
    with _consumer(bootstrap_servers) as consumer:
        positions = {partition: first for partition, (first, _) in span.offsets.items()}
        gaps = Gaps()
        silent = 0
        reads_again = True
        while positions:
            if reads_again:
                consumer.assign([TopicPartition(span.topic, *place) for place in positions.items()])
                reads_again = False
            records = []
            messages = _consume(consumer)
            silent = 0 if messages else silent + 1
            if silent > 60:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "Kafka sends nothing for a minute"))
            for message in messages:
                partition, offset, error = message.partition(), message.offset(), message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                assert partition is not None
                assert offset is not None
                if offset < positions.get(partition, offset + 1):
                    continue  # seen before what was missing, or behind the span
                after = span.offsets[partition][1]
                if error is not None and offset < after:
                    continue  # what follows is of a transaction that has not ended
                if not gaps.follows(partition, positions[partition], min(offset, after)):
                    reads_again = True
                    break
                if offset < after:
                    record = Record(span.topic, partition, offset, message.key(), message.value() or b"")
                    headers = {name: value for name, value in _headers(message) if value is not None}
                    records.append((record, headers))
                positions[partition] = offset + 1
                if offset + 1 >= after:
                    del positions[partition]
            if records:
                yield records


def _consume(consumer: Consumer) -> list[Message]:
    """The messages of a batch, or what comes in a second. Their bytes are bounded, too: one may hold many events."""
    messages: list[Message] = []
    size, deadline = 0, time.monotonic() + 1.0
    while len(messages) < _BATCH and size < _BATCH_BYTES:
        piece = consumer.consume(_PIECE, max(deadline - time.monotonic(), 0))
        messages += piece
        if len(piece) < _PIECE:
            break
        size += sum(len(message.value() or b"") for message in piece)
    return messages


def cluster_id(bootstrap_servers: str) -> str:
    """The id of the Kafka cluster.

    Raises:
        KafkaException: Kafka does not answer.
    """
    with _consumer(bootstrap_servers) as consumer:
        return str(consumer.list_topics(timeout=10).cluster_id)


def _headers(message: Message) -> list[tuple[str, bytes | None]]:
    return message.headers() or []  # type: ignore[return-value]  # confluent_kafka's type allows what producers take


@contextmanager
def _consumer(bootstrap_servers: str) -> Iterator[Consumer]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "heap-replay",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    try:
        yield consumer
    finally:
        consumer.close()
