"""Batches into Kafka: sent at once, and waited for until every message is acknowledged by all replicas."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from heap_ingest.capture.body import InFlight
from heap_ingest.log import ProducerRecord

__all__ = ["Acknowledger", "NotAcknowledgedError", "producer_settings"]

_SILENT = logging.getLogger("heap_ingest.kafka")
_PAUSE = 0.002
"""Seconds between looks for acknowledgements while some are awaited: well below what Kafka takes for one."""
_IDLE = 0.25
_OVERHEAD = 256
"""Bytes that Kafka's client and Python keep beside a message's own, about."""


def producer_settings(bootstrap_servers: str, timeout: float) -> dict[str, Any]:
    """The settings of librdkafka with which messages are acknowledged for good, each once.

    Args:
        timeout: seconds until a message that is not acknowledged fails.
    """
    return {
        "bootstrap.servers": bootstrap_servers,
        "client.id": "heap-capture",
        "acks": "all",
        "enable.idempotence": True,
        "linger.ms": 10,
        "compression.type": "zstd",
        "message.timeout.ms": int(timeout * 1000),
        "socket.keepalive.enable": True,
        "reconnect.backoff.max.ms": 1000,
        # Callers bound the bytes; these only have to be beyond.
        "queue.buffering.max.messages": 2_000_000,
        "queue.buffering.max.kbytes": 1_048_576,
        "log_level": 3,
    }


class NotAcknowledgedError(Exception):
    """Not every message of a batch was acknowledged. Some may have been: sending all again is harmless."""


class _Batch:
    """Counts the acknowledgements of one batch, and calls `done` at the last. Kafka's client calls it per message."""

    __slots__ = ("done", "error", "future", "left", "size")

    def __init__(self, left: int, size: int, future: asyncio.Future[None], done: Callable[[_Batch], None]) -> None:
        self.left = left
        self.size = size
        self.future = future
        self.done = done
        self.error: KafkaError | None = None

    def __call__(self, error: KafkaError | None, _message: object) -> None:
        if error is not None:
            self.error = error
        self.left -= 1
        if self.left == 0:
            self.done(self)


class Acknowledger:
    """An idempotent producer on the event loop: no thread of ours, no queue but Kafka's client's, which is bounded by
    what its callers hold.

    Args:
        bootstrap_servers: where Kafka is.
        topic: where messages go.
        in_flight: what this process may hold; a batch counts until its last message has ended.
        timeout: seconds until a message that is not acknowledged fails.
        options: further settings of librdkafka, which override those made here.

    Attributes:
        brokers_up: to how many brokers there is a connection, as of about a second ago.
        partitions: of the topic, likewise; None until something was sent.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        in_flight: InFlight,
        timeout: float = 10.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.topic = topic
        self.timeout = timeout
        self.brokers_up = 0
        self.partitions: int | None = None
        self._in_flight = in_flight
        self._config = {
            **producer_settings(bootstrap_servers, timeout),
            "statistics.interval.ms": 1000,
            "stats_cb": self._state,
            "error_cb": self._failed,
            **(options or {}),
        }
        self._fatal = False
        self._waiting = 0
        self._producer = self._connect()
        self._poller: asyncio.Task[None] | None = None
        self._work = asyncio.Event()

    def start(self) -> None:
        """Begins to look for acknowledgements, on the running event loop."""
        self._poller = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Waits for what is under way, at most until it fails, and ends."""
        deadline = time.monotonic() + self.timeout + 1
        while self._waiting and time.monotonic() < deadline:
            await asyncio.sleep(_PAUSE)
        if self._poller is not None:
            self._poller.cancel()
        self._producer.flush(1)

    async def send(self, records: list[ProducerRecord]) -> None:
        """Sends records, and returns when all are acknowledged. They are used up: from then on Kafka's client has them.

        Raises:
            BodyRefusedError: this process holds too much already; nothing was sent.
            NotAcknowledgedError: one is not, for whatever reason.
        """
        if self._fatal:
            self._renew()
        size = sum(len(record.value) for record in records) + _OVERHEAD * len(records)
        self._in_flight.add(size)
        batch = _Batch(len(records), size, asyncio.get_running_loop().create_future(), self._done)
        self._waiting += 1
        self._work.set()
        produce, topic, unsent = self._producer.produce, self.topic, len(records)
        try:
            for key, value, partition in records:
                produce(topic, value, key, partition, on_delivery=batch)
                unsent -= 1
        except (BufferError, KafkaException) as error:
            first = error.args[0]
            batch.error = first if isinstance(first, KafkaError) else KafkaError(KafkaError._QUEUE_FULL)
            batch.left -= unsent
            if batch.left == 0:
                self._done(batch)
        records.clear()
        # Kafka's client ends every message in time, and the batch counts until then, also when the caller is gone.
        await batch.future

    def _done(self, batch: _Batch) -> None:
        self._waiting -= 1
        self._in_flight.remove(batch.size)
        if batch.future.done():  # cancelled: nobody waits for it any more
            return
        if batch.error is None:
            batch.future.set_result(None)
        else:
            batch.future.set_exception(NotAcknowledgedError(batch.error.str()))
            batch.future.exception()  # noted, also when nobody waits for it any more

    async def _poll(self) -> None:
        while True:
            self._producer.poll(0)
            if self._waiting:
                await asyncio.sleep(_PAUSE)
            else:
                self._work.clear()
                try:
                    async with asyncio.timeout(_IDLE):
                        await self._work.wait()
                except TimeoutError:
                    pass

    def _connect(self) -> Producer:
        return Producer(self._config, logger=_SILENT)

    def _renew(self) -> None:
        """Another producer in place of one that cannot go on. What it had not sent has failed, and is sent again."""
        self._fatal = False
        self._producer.purge()
        self._producer.poll(0.1)
        self._producer = self._connect()

    def _failed(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = True
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.brokers_up = 0
        _SILENT.warning("%s", error)

    def _state(self, text: str) -> None:
        state = json.loads(text)
        self.brokers_up = sum(
            broker["state"] == "UP" and broker["nodeid"] >= 0 for broker in state.get("brokers", {}).values()
        )
        if (topic := state.get("topics", {}).get(self.topic)) is not None:
            self.partitions = sum(int(number) >= 0 for number in topic["partitions"]) or None
