"""The sink: each acknowledged event once, in its columns, whatever else is in the log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, Message

from heap_ingest.broker import Broker
from heap_ingest.messages import EventMessage, UserMessage
from heap_ingest.sink import LogMissingError, Sink
from tests.ingest.conftest import QUICK, drained, running
from tests.ingest.log import APP, NOON, Log, events, stored_ids
from tests.waiting import until


def test_every_acknowledged_event_is_stored_once(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    log.send(events(3_000))
    log.flush()
    with running(dsn, log, batch=700):
        drained(owner, log)
    assert stored_ids(owner) == sorted(log.acknowledged) == list(range(1, 3_001))


def test_an_event_sent_again_and_again_is_stored_once(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    """Within a batch, in batches of their own, in another order, and after others."""
    sent = list(events(200))
    for messages in (sent, sent, sent[::-1], events(50, 201), sent[50:150]):
        log.send(messages)
        log.flush()
    with running(dsn, log, batch=120):
        drained(owner, log)
    assert stored_ids(owner) == list(range(1, 251))


def test_fields_become_columns_and_the_rest_properties(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    log.send(
        [
            EventMessage(
                app=APP,
                user_id=-7,
                time=NOON,
                received_at=datetime.now(UTC),
                event_id=2**63 - 1,
                type="click",
                session_id=9,
                columns={"path": "/a\tb\\c\n'\"", "browser": "Lynx", "of_a_later_version": "x"},
                properties={"nested": {"a": [1, None, "ü"]}, "n": 1.5},
                user_agent="Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like"
                " Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
                ip="192.0.2.1",
            )
        ]
    )
    log.flush()
    with running(dsn, log):
        drained(owner, log)
    row = owner.execute(
        f"SELECT user_id, time, event_id, type, session_id, path, browser, os, device, device_type, properties"
        f" FROM {APP}.events"
    ).fetchone()
    properties = {"nested": {"a": [1, None, "ü"]}, "n": 1.5, "of_a_later_version": "x"}
    assert row == (
        -7, NOON, 2**63 - 1, "click", 9, "/a\tb\\c\n'\"", "Lynx", "iOS", "iPhone", "mobile", properties,
    )  # fmt: skip


def test_poison_is_buried_with_its_reason_and_the_rest_is_stored(
    dsn: str, owner: psycopg.Connection[Any], log: Log
) -> None:
    """No JSON, no message, an app nobody knows, text and JSON that PostgreSQL cannot hold: among good events."""
    good = list(events(300))
    nul = EventMessage(app=APP, user_id=1, time=NOON, received_at=NOON, event_id=1_001, type="a\0b")
    nul_in_json = EventMessage(
        app=APP, user_id=1, time=NOON, received_at=NOON, event_id=1_002, type="a", properties={"a": "\0"}
    )
    stranger = next(events(1, 1_003, app="nobody"))
    log.send(good[:150])
    log.send_raw(b"{")
    log.send_raw(b'{"kind": "event"}', b"k")
    log.send([nul, nul_in_json, stranger, *good[150:]])
    log.send_raw(b"\xff\xfe")
    log.flush()
    with running(dsn, log, batch=1_000):
        drained(owner, log)
    assert stored_ids(owner) == list(range(1, 301))
    buried = log.buried()
    assert len(buried) == 6
    reasons = {value: headers["reason"] for value, headers in buried}
    assert "not a message" in reasons[b"{"]
    assert "missing required field" in reasons[b'{"kind": "event"}']
    assert "unknown app 'nobody'" in "".join(reasons.values())
    assert sum("0x00" in reason or "22P05" in reason for reason in reasons.values()) == 2
    for _, headers in buried:
        assert headers["topic"] == log.topic
        assert int(headers["partition"]) in range(log.partitions)
        assert int(headers["offset"]) < 310
        assert datetime.fromisoformat(headers["time"]) <= datetime.now(UTC)
    assert owner.execute(
        "SELECT sum(stored), sum(dead) FROM heap.ingest_offset WHERE topic = %s", (log.topic,)
    ).fetchone() == (306, 6)


def test_what_kafkas_client_skips_is_read_again(
    dsn: str, owner: psycopg.Connection[Any], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that loses messages, at the beginning of a partition and later, loses none of them for good."""
    lost: set[tuple[int | None, int | None]] = set()

    class Losing(Consumer):
        def consume(self, *arguments: Any) -> list[Message]:
            messages = super().consume(*arguments)
            if len(lost) < 3 and len(messages) > 20:
                place = messages[0].partition(), messages[0].offset()
                if place not in lost:
                    lost.add(place)
                    del messages[:3]
            return messages

    monkeypatch.setattr("heap_ingest.sink.Consumer", Losing)
    lines: list[str] = []
    log.send(events(2_000))
    log.flush()
    with running(dsn, log, lines, batch=300) as sink:
        drained(owner, log)
    assert len(lost) == 3
    assert 0 in {offset for _, offset in lost}
    assert stored_ids(owner) == list(range(1, 2_001))
    assert sum("reading again" in line for line in lines) == 3
    assert sink.metrics.registry.get_sample_value("heap_sink_failures_total", {"cause": "gap"}) == 3


def test_offsets_of_a_producers_transactions_are_no_gap(
    dsn: str, owner: psycopg.Connection[Any], broker: Broker
) -> None:
    """Of markers: here behind the first event and behind the second."""
    log = Log(broker, partitions=1)
    sent = list(events(4))
    log.send_in_transactions(sent[:2])
    log.send(sent[2:])
    log.flush()
    with running(dsn, log):
        drained(owner, log)
    assert log.length() == 6
    assert stored_ids(owner) == [1, 2, 3, 4]


def test_the_latest_value_of_a_property_stays_whatever_arrives_last(
    dsn: str, owner: psycopg.Connection[Any], log: Log
) -> None:
    def set_at(second: int, **properties: Any) -> UserMessage:
        return UserMessage(
            app=APP, user_id=5, time=NOON + timedelta(seconds=second), received_at=NOON, properties=properties
        )

    for messages in ([set_at(3, plan="pro")], [set_at(1, plan="free", age=1), set_at(2, age=2)], [set_at(2, plan="x")]):
        log.send(messages)
        log.flush()
        with running(dsn, log):
            drained(owner, log)
    query = f"SELECT properties, property_times FROM {APP}.users WHERE user_id = 5"
    noon = int(NOON.timestamp()) * 1_000_000
    assert owner.execute(query).fetchall() == [
        ({"plan": "pro", "age": 2}, {"plan": noon + 3_000_000, "age": noon + 2_000_000})
    ]


def test_two_sinks_at_one_partition_store_nothing_twice(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    """In two groups both own every partition: one stores a batch, the other is fenced off and goes on behind it."""
    lines: list[str] = []
    with (
        running(dsn, log, lines, batch=50) as one,
        running(dsn, log, lines, batch=50, group=f"{log.topic}-other") as other,
    ):
        until(lambda: all(_has_begun(sink) for sink in (one, other)))  # else one may do all before the other begins
        log.send(events(4_000))
        log.flush()
        drained(owner, log)
        until(lambda: any("stored by another sink" in line for line in lines))  # the slower may still be fetching
    assert stored_ids(owner) == list(range(1, 4_001))
    row = owner.execute("SELECT sum(stored) FROM heap.ingest_offset WHERE topic = %s", (log.topic,)).fetchone()
    assert row == (4_000,)
    assert not any("dead letter" in line for line in lines)


def test_sinks_join_and_leave(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    """Both work while both are there, and what one was given another takes over when it leaves."""
    shared = sent = 0
    lines: list[str] = []
    with running(dsn, log, batch=100) as first:
        for _ in range(3):
            with running(dsn, log, lines, batch=100) as second:
                until(lambda: lines and "none" not in lines[-1])
                log.send(events(700, sent + 1))
                sent += 700
                log.flush()
                drained(owner, log)
            shared += _messages(second)
            lines.clear()
            log.send(events(100, sent + 1))
            sent += 100
            log.flush()
            drained(owner, log)
        assert shared > 0
        until(lambda: shared + _messages(first) >= sent)
    assert stored_ids(owner) == list(range(1, sent + 1))


def _messages(sink: Sink) -> int:
    return int(sink.metrics.registry.get_sample_value("heap_sink_messages_total") or 0)


def _has_begun(sink: Sink) -> bool:
    """Whether it has read from the database where to go on."""
    return sink.metrics.registry.get_sample_value("heap_sink_database_up") == 1


def test_a_log_that_was_cut_off_is_said_and_not_skipped(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    log.send(events(10))
    log.flush()
    with running(dsn, log):
        drained(owner, log)
    owner.execute("UPDATE heap.ingest_offset SET next_offset = 1000 WHERE topic = %s", (log.topic,))
    with pytest.raises(LogMissingError, match="does not hold what comes next"):
        Sink(dsn, log.broker.bootstrap_servers, topic=log.topic, group=log.topic, kafka=QUICK).run()
