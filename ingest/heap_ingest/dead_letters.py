"""Records that cannot be stored: kept in a topic of their own, as they were, with the reason and their place.

An event that cannot be stored though those of its message can is kept alone, as a message of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import psycopg

from heap_ingest.log import Record, Sender, Span, cluster_id, find_span, read_span
from heap_ingest.messages import CapturedMessage, EventsMessage, decode, encode, message_key

__all__ = ["Burial", "DeadLetter", "DeadLetters", "Rejected"]


class Rejected(NamedTuple):
    """A record that cannot be stored, or the event at its position, and why."""

    record: Record
    reason: str


class Burial:
    """Puts rejected records into the topic of dead letters.

    One may be put there twice, when the database fails before its batch is stored: its source tells.
    """

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._topic = topic
        self._sender = Sender(bootstrap_servers)

    def bury(self, rejected: Iterable[Rejected]) -> None:
        """Returns when Kafka has acknowledged them all.

        Raises:
            KafkaException: it did not.
        """
        for record, reason in rejected:
            headers = {
                "reason": reason[:1000],
                "topic": record.topic,
                "partition": str(record.partition),
                "offset": str(record.offset),
                "time": datetime.now(UTC).isoformat(),
            }
            key, value = record.key, record.value
            if record.position is not None:
                headers["position"] = str(record.position)
                event = _events(value).single(record.position)
                key, value = message_key(event.app, event.user_id), encode(event)
            encoded = {name: text.encode("utf-8", "replace") for name, text in headers.items()}
            self._sender.send(self._topic, value, key, encoded)
        self._sender.finish()


@lru_cache(maxsize=2)
def _events(value: bytes) -> CapturedMessage | EventsMessage:
    """The message of several events, which was read before. Those rejected come message by message."""
    message = decode(value)
    assert isinstance(message, CapturedMessage | EventsMessage)
    return message


class DeadLetter(NamedTuple):
    """A record that could not be stored.

    Attributes:
        partition, offset: its place among the dead letters.
        source: topic, partition and offset it came from, and the position in a message of several events.
        time: when it was put there.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes
    reason: str
    source: tuple[str | int, ...]
    time: datetime


class DeadLetters:
    """The topic of dead letters, and how far it was sent again, which is in heap.ingest_offset.

    Args:
        connection: in autocommit mode, of an owner of heap's tables.
    """

    def __init__(self, connection: psycopg.Connection[Any], bootstrap_servers: str, topic: str) -> None:
        self._connection = connection
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic

    def span(self, *, all_of_them: bool = False) -> Span:
        """Where those are that were not sent again yet, or all of them."""
        whole = find_span(self._bootstrap_servers, None, topic=self._topic)
        if all_of_them:
            return whole
        done = dict(
            self._connection.execute(
                "SELECT partition, next_offset FROM heap.ingest_offset WHERE (cluster, topic) = (%s, %s)",
                (cluster_id(self._bootstrap_servers), self._topic),
            ).fetchall()
        )
        left = {n: (max(first, done.get(n, 0)), after) for n, (first, after) in whole.offsets.items()}
        return Span(self._topic, {n: (first, after) for n, (first, after) in left.items() if first < after})

    def read(self, span: Span) -> Iterator[DeadLetter]:
        """Those in a span, each once: one that was buried twice has the same source."""
        seen: set[tuple[str | int, ...]] = set()
        for found in read_span(self._bootstrap_servers, span):
            for record, headers in found:
                letter = _dead_letter(record, headers)
                if letter.source not in seen:
                    seen.add(letter.source)
                    yield letter

    def resend(self, topic: str) -> int:
        """Sends all that were not sent again yet to the log, as they were; how many. Those that cannot be stored now
        either come back as dead letters.

        Raises:
            KafkaException: they were not acknowledged; they stay to be sent again, which is harmless.
        """
        span = self.span()
        sender = Sender(self._bootstrap_servers)
        count = 0
        for letter in self.read(span):
            sender.send(topic, letter.value, letter.key)
            count += 1
        sender.finish()
        cluster = cluster_id(self._bootstrap_servers)
        with self._connection.transaction():
            for partition, (_, after) in span.offsets.items():
                self._connection.execute(
                    "INSERT INTO heap.ingest_offset (cluster, topic, partition, next_offset) VALUES (%s, %s, %s, %s)"
                    " ON CONFLICT (cluster, topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
                    (cluster, self._topic, partition, after),
                )
        return count


def _dead_letter(record: Record, headers: Mapping[str, bytes]) -> DeadLetter:
    texts = {name: value.decode("utf-8", "replace") for name, value in headers.items()}
    numbers = (int(texts[name]) for name in ("partition", "offset", "position") if name in texts)
    source: tuple[str | int, ...] = (texts["topic"], *numbers)
    time = datetime.fromisoformat(texts["time"])
    return DeadLetter(record.partition, record.offset, record.key, record.value, texts["reason"], source, time)
