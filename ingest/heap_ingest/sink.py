"""`heap ingest sink`: from the log into the tables, exactly once whatever dies when.

Where the log is stored up to is in the database, changed in the transaction that stores a batch. After every failure,
of whatever kind, the sink goes back to what is there: nothing else is remembered. Sinks of one group share the
partitions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from heap_ingest.dead_letters import Burial
from heap_ingest.enrich import Enrichment
from heap_ingest.gaps import Gaps
from heap_ingest.log import Record
from heap_ingest.metrics import SinkMetrics
from heap_ingest.store import Batch, FencedError, Store, Stored, read_batch
from heap_ingest.topic_names import DEAD_LETTERS, EVENTS
from heap_ingest.topics import first_offsets

__all__ = ["LogMissingError", "Sink"]

APPLICATION = "heap ingest sink"
_PIECE = 32
"""Messages that are read at once: how many events they hold is known afterwards."""
_LONGEST_PAUSE = 5.0
"""Seconds until a database that failed is tried again, at most."""
_EXPELLED_PAUSE = 1.0
"""Seconds until a sink joins its group again after it was expelled."""


class LogMissingError(Exception):
    """The log does not hold what should be stored next: messages are lost, or the topic is another one."""


class _ExpelledError(Exception):
    """Kafka's client has ended: the group has another member in this one's place, as after a sleep of the machine."""


class Sink:
    """Stores the log of one topic in one database.

    Args:
        dsn: of the database, or of the coordinator; the user owns the apps' tables.
        bootstrap_servers: of Kafka.
        topic, dead_letters: the log, and where messages go that cannot be stored.
        group: of the sinks that share the log.
        instance: a name of this sink that stays when it is started again, which then goes on at once; sinks without
            one wait for Kafka to notice that the one before has ended.
        batch: events and other items of one transaction; more by those of some messages that hold many.
        linger: seconds a batch waits to be filled.
        enrichment: what is added to events.
        report: called with a line for what an operator should know.
    """

    def __init__(
        self,
        dsn: str,
        bootstrap_servers: str,
        *,
        topic: str = EVENTS,
        dead_letters: str = DEAD_LETTERS,
        group: str = "heap-sink",
        instance: str | None = None,
        batch: int = 20_000,
        linger: float = 0.2,
        enrichment: Enrichment | None = None,
        report: Callable[[str], None] = lambda _line: None,
        kafka: Mapping[str, Any] | None = None,
    ) -> None:
        self.metrics = SinkMetrics()
        self._dsn = dsn
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._dead_letters = dead_letters
        self._batch = batch
        self._linger = linger
        self._enrichment = enrichment or Enrichment()
        self._report = report
        self._configuration = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": group,
            "client.id": instance or "heap-sink",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "partition.assignment.strategy": "roundrobin",
            "session.timeout.ms": 10_000,
            "heartbeat.interval.ms": 1_000,
            "queued.max.messages.kbytes": 32_768,
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 100,
            "reconnect.backoff.max.ms": 1_000,
            "log_level": 0,
            **({"group.instance.id": instance} if instance else {}),
            **(kafka or {}),
        }
        self._stop = threading.Event()
        self._assigned: list[int] = []
        self._positions: dict[int, int] | None = None
        """The next message of each partition; None when that is to be learned from the database."""
        self._gaps = Gaps()
        self._reads_again = False
        """Messages are missing: what comes next is asked for again when what came before is stored."""
        self._store: Store | None = None
        self._connection: psycopg.Connection[Any] | None = None
        self._is_warned = False
        """The database warned: a node may not have heard that what it prepared is committed."""
        self._burial: Burial | None = None
        self._pause = 0.0
        self._writer = ThreadPoolExecutor(1, "heap-sink-writer")
        self._storing: tuple[Batch, Future[tuple[Stored, float]]] | None = None
        """The batch that is being stored; nobody else uses the connection meanwhile."""

    def stop(self) -> None:
        """Ends `run` after the batch at hand."""
        self._stop.set()

    def run(self) -> None:
        """Stores until `stop`. Waits for a database or a Kafka that is away, as long as it takes.

        Raises:
            LogMissingError: Kafka no longer has what comes next.
        """
        try:
            while not self._stop.is_set():
                self._take_part()
        finally:
            self._writer.shutdown()
            self._disconnect()

    def _take_part(self) -> None:
        """Stores as a member of the group, until `stop` or until the group has another in its place."""
        consumer = Consumer(self._configuration)
        consumer.subscribe([self._topic], on_assign=self._take, on_revoke=self._give_up, on_lost=self._give_up)
        try:
            while not self._stop.is_set():
                self._turn(consumer)
            self._settle(consumer)
        except _ExpelledError as error:
            self._settle(consumer)
            self._give_up(consumer, [])
            self.metrics.failures.labels("expelled").inc()
            self._report(f"kafka: {error}: joining again")
            self._stop.wait(_EXPELLED_PAUSE)
        finally:
            consumer.close()

    def _turn(self, consumer: Consumer) -> None:
        """Reads one batch while the one before is stored, or makes one attempt at having the database back."""
        if self._positions is None:
            self._settle(consumer)
            if self._assigned:
                try:
                    self._begin(consumer)
                except (psycopg.Error, KafkaException) as error:
                    self._fail(consumer, error)
        before = dict(self._positions or {})
        batch = self._read(consumer)
        # Its offsets begin where those stored before end: none may lie between (see _follows).
        batch.offsets = {partition: (before[partition], after) for partition, (_, after) in batch.offsets.items()}
        self._settle(consumer)
        if batch.offsets and self._positions is not None:  # else what was read is not ours, or comes again
            self._storing = batch, self._writer.submit(self._write, batch)
        if self._reads_again:
            self._positions, self._reads_again = None, False

    def _read(self, consumer: Consumer) -> Batch:
        """What there is until a batch is full, or what comes until it has waited long enough."""
        batch = Batch()
        deadline = time.monotonic() + (self._pause or self._linger)
        while (room := self._batch - batch.size) > 0:
            wanted = min(room, _PIECE)
            messages = consumer.consume(wanted, max(deadline - time.monotonic(), 0))
            records = (record for message in messages if (record := self._record(message)) is not None)
            read_batch(records, self._enrichment, batch=batch)
            if len(messages) < wanted or self._reads_again:
                break
        return batch

    def _write(self, batch: Batch) -> tuple[Stored, float]:
        """Stores a batch, in a thread of its own; what it did, and the seconds it took."""
        began = time.monotonic()
        assert self._store is not None
        assert self._connection is not None
        stored = self._store.store(batch)
        if self._is_warned:
            self._is_warned = False
            _finish_prepared(self._connection)
        return stored, time.monotonic() - began

    def _settle(self, consumer: Consumer) -> None:
        """Waits for the batch that is being stored. When that fails, what was read since is forgotten with it."""
        if self._storing is None:
            return
        (batch, writing), self._storing = self._storing, None
        try:
            stored, seconds = writing.result()
        except (psycopg.Error, KafkaException, FencedError) as error:
            self._fail(consumer, error)
        else:
            self._count(consumer, batch, stored, seconds)

    def _record(self, message: Message) -> Record | None:
        """A message that comes next; None for those seen before a failure, and for troubles Kafka mends by itself."""
        error = message.error()
        if error is not None:
            if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                raise LogMissingError(
                    f"{self._topic} of {self._bootstrap_servers} does not hold what comes next ({error.str()}): it was"
                    " cut off or made anew. `heap ingest replay --from beginning` stores what it holds"
                )
            if error.fatal() or error.code() == KafkaError._FATAL:
                raise _ExpelledError(error.str())
            self._report(f"kafka: {error.str()}")
            return None
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        if self._positions is None or self._reads_again or offset < self._positions.get(partition, offset + 1):
            return None
        if not self._follows(partition, offset):
            self._reads_again = True
            return None
        self._positions[partition] = offset + 1
        key = message.key()
        return Record(self._topic, partition, offset, key, message.value() or b"")

    def _follows(self, partition: int, offset: int) -> bool:
        """Whether the message is the next of its partition; else it is to be asked for again."""
        assert self._positions is not None
        expected = self._positions[partition]
        if self._gaps.follows(partition, expected, offset):
            return True
        self.metrics.failures.labels("gap").inc()
        self._report(f"partition {partition}: {offset} came where {expected} comes next: reading again")
        return False

    def _take(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Kafka gave us partitions: nothing is read before the database said from where."""
        consumer.assign([])
        self._assigned = sorted(place.partition for place in partitions)
        self._positions = None
        self._report(f"partitions {', '.join(map(str, self._assigned)) or 'none'} of {self._topic}")

    def _give_up(self, consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        consumer.unassign()
        self._assigned = []
        self._positions = None
        self.metrics.lag.clear()

    def _begin(self, consumer: Consumer) -> None:
        """Goes to what the database has."""
        if self._connection is None or self._connection.closed:
            self._connect(consumer)
        assert self._store is not None
        positions = self._store.positions(
            self._assigned, lambda partitions: first_offsets(self._bootstrap_servers, self._topic, partitions)
        )
        places = [TopicPartition(self._topic, partition, offset) for partition, offset in positions.items()]
        consumer.assign(places)
        self._positions = positions
        self._gaps.forget_before(positions)
        self._pause = 0.0
        self.metrics.connected.set(1)

    def _connect(self, consumer: Consumer) -> None:
        cluster = consumer.list_topics(self._topic, timeout=10).cluster_id
        self._connection = psycopg.connect(self._dsn, autocommit=True, application_name=APPLICATION, connect_timeout=10)
        self._connection.add_notice_handler(self._hear)
        _finish_prepared(self._connection)
        if self._burial is None:
            self._burial = Burial(self._bootstrap_servers, self._dead_letters)
        self._store = Store(self._connection, (cluster, self._topic), self._burial.bury)

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._is_warned = True
            self._report(f"database: {notice.message_primary}")

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._store = None

    def _fail(self, consumer: Consumer, error: Exception) -> None:
        """Forgets what was read; the next turn begins with what the database has."""
        consumer.assign([])
        self._positions = None
        self._report(f"failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        if isinstance(error, FencedError):
            self.metrics.failures.labels("fenced").inc()
            return
        cause = (error.sqlstate or "connection") if isinstance(error, psycopg.Error) else "kafka"
        self.metrics.failures.labels(cause).inc()
        self._disconnect()
        self.metrics.connected.set(0)
        self._pause = min(max(2 * self._pause, 0.1), _LONGEST_PAUSE)

    def _count(self, consumer: Consumer, batch: Batch, stored: Stored, seconds: float) -> None:
        metrics = self.metrics
        metrics.messages.inc(sum(after - first for first, after in batch.offsets.values()))
        metrics.rejected.inc(len(stored.rejected))
        metrics.seconds.observe(seconds)
        for app, count in stored.events.items():
            metrics.events.labels(app).inc(count)
        if batch.oldest is not None:
            metrics.delay.observe(max((datetime.now(UTC) - batch.oldest).total_seconds(), 0))
        for record, reason in stored.rejected:
            self._report(f"dead letter {record.place}: {reason}")
        places = []
        for partition, (_, after) in batch.offsets.items():
            place = TopicPartition(self._topic, partition, after)
            places.append(place)
            _, high = consumer.get_watermark_offsets(place, cached=True)
            metrics.lag.labels(str(partition)).set(max(high - after, 0))
        with suppress(KafkaException):  # for Kafka's own tools: we go by the database
            consumer.commit(offsets=places, asynchronous=True)


def _finish_prepared(connection: psycopg.Connection[Any]) -> None:
    """With Citus: ends the transactions that a node's end left prepared, whose rows would be waited for. Citus does so
    itself, once a minute."""
    if connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone():
        connection.execute("SELECT recover_prepared_transactions()")
