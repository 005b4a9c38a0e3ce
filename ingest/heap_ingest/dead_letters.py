"""Records that cannot be stored: kept in a topic of their own, as they were, with the reason and their place."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

__all__ = ["Burial", "Record", "Rejected"]


class Record(NamedTuple):
    """A record of the log: where it is and what it holds."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes


class Rejected(NamedTuple):
    """A record that cannot be stored, and why."""

    record: Record
    reason: str


class Burial:
    """Puts rejected records into the topic of dead letters.

    One may be put there twice, when the database fails before its batch is stored; its place in the log tells that it
    is the same.
    """

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._topic = topic
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

    def bury(self, rejected: Iterable[Rejected], timeout: float = 30.0) -> None:
        """Returns when Kafka has acknowledged them all.

        Raises:
            KafkaException: it did not within `timeout` seconds.
        """
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        for record, reason in rejected:
            headers = {
                "reason": reason[:1000],
                "topic": record.topic,
                "partition": str(record.partition),
                "offset": str(record.offset),
                "time": datetime.now(UTC).isoformat(),
            }
            self._producer.produce(
                self._topic,
                record.value,
                record.key,
                headers={name: text.encode("utf-8", "replace") for name, text in headers.items()},
                on_delivery=delivered,
            )
            self._producer.poll(0)
        if left := self._producer.flush(timeout):
            self._producer.purge()
            self._producer.flush(1.0)
            raise KafkaException(f"{left} dead letters were not acknowledged in {timeout:.0f} s")
        if failed:
            raise KafkaException(failed[0])
