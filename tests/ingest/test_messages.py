"""Events of a request in few messages: nothing is lost, doubled or out of order by it, and each is still by itself where
something is wrong with it alone."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg
from confluent_kafka import Consumer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from heap_extension.command import app as command_line
from heap_ingest.capture.pack import Origin, pack_events
from heap_ingest.messages import (
    CapturedEvent,
    CapturedMessage,
    Event,
    EventMessage,
    EventsMessage,
    decode,
    encode,
    find_partition,
    message_key,
)
from tests.ingest.conftest import drained, running
from tests.ingest.log import APP, NOON, Log, events, stored_ids
from tests.waiting import until

_ORIGIN = Origin("shop", NOON, ip="192.0.2.1", user_agent='a "browser"')
_EVENTS = st.lists(
    st.builds(
        CapturedEvent,
        user_id=st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3),
        time=st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)),
        event_id=st.integers(-(2**63), 2**63 - 1),
        type=st.text(max_size=5),
        session_id=st.none() | st.integers(0, 9),
        path=st.none() | st.text(max_size=5),
        title=st.none() | st.text(max_size=5),
        properties=st.dictionaries(
            st.text(max_size=3), st.none() | st.integers(0, 9) | st.text(max_size=3), max_size=2
        ),
    ),
    min_size=1,
    max_size=20,
)

_COMMON = ("user_id", "time", "event_id", "type", "session_id")


@given(given_events=_EVENTS, partitions=st.none() | st.integers(1, 9), size=st.integers(1, 2_000) | st.just(1_000_000))
def test_what_is_packed_is_what_is_read(given_events: list[CapturedEvent], partitions: int | None, size: int) -> None:
    packed = pack_events(given_events, _ORIGIN._replace(partitions=partitions), size)
    large = [event for event, _ in packed.too_large]
    assert [number for _, number in packed.too_large] == [len(encode(event)) for event in large]
    assert sorted(map(id, large)) == sorted(id(event) for event in given_events if len(encode(event)) > size)
    of_user: defaultdict[int, list[CapturedEvent]] = defaultdict(list)
    places: defaultdict[int, set[tuple[bytes | None, int]]] = defaultdict(set)
    for key, value, partition in packed.records:
        message = decode(value)
        assert isinstance(message, CapturedMessage)
        assert message == CapturedMessage(
            app="shop", received_at=NOON, ip="192.0.2.1", user_agent='a "browser"', events=message.events
        )
        assert len(msgspec.json.encode(message.events)) - 2 <= size
        for event in message.events:
            of_user[event.user_id].append(event)
            places[event.user_id].add((key, partition))
    users = len({event.user_id for event in given_events})
    for user_id, found in of_user.items():
        rest = [event for event in given_events if event.user_id == user_id and len(encode(event)) <= size]
        assert found == rest, "in their order"
        own = message_key("shop", user_id)
        expected = (own, -1) if partitions is None or users == 1 else (None, find_partition(own, partitions))
        assert places[user_id] == {expected}
    assert sum(map(len, of_user.values())) + len(large) == len(given_events)
    if size == 1_000_000:
        assert len(packed.records) <= (partitions or len(of_user))


@given(given_events=_EVENTS)
def test_an_event_by_itself_says_what_it_said_among_others(given_events: list[CapturedEvent]) -> None:
    """Also among those of a server of before, which wrote columns as an object."""
    columns = [{name: getattr(event, name) for name in ("path", "title")} for event in given_events]
    columns = [{name: text for name, text in texts.items() if text is not None} for texts in columns]
    common = [{name: getattr(event, name) for name in _COMMON} for event in given_events]
    of_before = [
        Event(**fields, columns=texts, properties=event.properties or {})
        for fields, texts, event in zip(common, columns, given_events, strict=True)
    ]
    for message in (
        CapturedMessage(app="shop", received_at=NOON, ip="::1", events=given_events),
        EventsMessage(app="shop", received_at=NOON, ip="::1", events=of_before),
    ):
        read = decode(encode(message))
        assert isinstance(read, CapturedMessage | EventsMessage)
        for position, event in enumerate(given_events):
            single = decode(encode(read.single(position)))
            assert single == EventMessage(
                app="shop", received_at=NOON, ip="::1", **common[position], columns=columns[position],
                properties=event.properties or {},
            )  # fmt: skip


def test_a_message_of_several_users_goes_where_each_of_them_has_theirs(log: Log) -> None:
    """Kafka's client finds the partition of a key as we do."""
    sent = list(events(200, users=10**9))
    log.send(sent)
    log.flush()
    consumer = Consumer({"bootstrap.servers": log.broker.bootstrap_servers, "group.id": "tests", "log_level": 0})
    try:
        consumer.assign([TopicPartition(log.topic, partition, 0) for partition in range(log.partitions)])
        found: dict[bytes, int] = {}
        while len(found) < len({event.user_id for event in sent}):
            for record in consumer.consume(200, 10):
                key, partition = record.key(), record.partition()
                assert key is not None
                assert partition is not None
                found[key] = partition
    finally:
        consumer.close()
    assert found == {key: find_partition(key, log.partitions) for key in found}
    assert len(set(found.values())) == log.partitions


def test_events_sent_again_alone_and_together_in_any_order_are_stored_once(
    dsn: str, owner: psycopg.Connection[Any], log: Log
) -> None:
    chance = random.Random(7)
    sent = list(events(900, users=20))
    for _ in range(3):
        chance.shuffle(sent)
        log.send_together(sent[:600])
        log.send(sent[500:700])
        log.send_together(sent[600:])
        log.flush()
    assert log.length() < 3 * 200 + 3 * 100
    with running(dsn, log, batch=150):
        drained(owner, log)
    assert stored_ids(owner) == sorted(log.acknowledged) == list(range(1, 901))
    query = f"SELECT user_id, time, event_id, path, properties FROM {APP}.events ORDER BY event_id"
    expected = [(e.user_id, e.time, e.event_id, e.columns["path"], e.properties) for e in events(900, users=20)]
    assert owner.execute(query).fetchall() == expected


_OF_0_4 = (
    b'{"kind":"event","app":"ingested","user_id":7,"time":"2026-01-15T12:00:00.25Z","received_at":'
    b'"2026-01-15T12:00:01Z","event_id":11,"type":"click","session_id":3,"columns":{"path":"/a"},"properties":{"n":[1]},'
    b'"ip":"192.0.2.1","user_agent":"Mozilla/5.0"}'
)
_OF_0_5 = (
    b'{"kind":"events","app":"ingested","received_at":"2026-01-15T12:00:01Z","ip":"192.0.2.1","user_agent":"Mozilla/5.0"'
    b',"events":[{"user_id":7,"time":"2026-01-15T12:00:00.25Z","event_id":12,"type":"click","session_id":3,"columns":'
    b'{"path":"/a"},"properties":{"n":[1]}},{"user_id":8,"time":"2026-01-15T12:00:00Z","event_id":13,"type":"view"}]}'
)


def test_messages_of_before_are_read_as_ever_and_those_of_later_kept(
    dsn: str, owner: psycopg.Connection[Any], log: Log
) -> None:
    """What only a server of another version could have made is buried whole, and what follows is stored."""
    of_later = b'{"kind":"captured","app":"ingested","received_at":"2026-01-15T12:00:01Z","events":[{"user_id":1}]}'
    log.send_raw(_OF_0_4, b"ingested:7")
    log.send_raw(_OF_0_5)
    log.send_raw(of_later)
    log.send_together(events(3))
    log.flush()
    with running(dsn, log):
        drained(owner, log)
    assert stored_ids(owner) == [1, 2, 3, 11, 12, 13]
    columns = "event_id, user_id, time, session_id, type, path, properties"
    rows = owner.execute(f"SELECT {columns} FROM {APP}.events WHERE event_id > 10 ORDER BY event_id").fetchall()
    same = (7, NOON.replace(microsecond=250_000), 3, "click", "/a", {"n": [1]})
    assert rows == [(11, *same), (12, *same), (13, 8, NOON, None, "view", None, {})]
    ((buried, headers),) = log.buried()
    assert buried == of_later
    assert "position" not in headers
    assert "missing required field" in headers["reason"]


def test_an_event_that_cannot_be_stored_costs_none_of_its_message(
    dsn: str, owner: psycopg.Connection[Any], log: Log
) -> None:
    """It is buried alone, told from others of the message, and stored once when it is sent again and can be."""
    sent = list(events(40, users=1))
    for bad in (5, 9):
        sent[bad] = msgspec.structs.replace(sent[bad], type="too long" * 10, received_at=sent[0].received_at)
    owner.execute(f"ALTER TABLE {APP}.events ADD CONSTRAINT brief CHECK (length(type) < 50)")
    log.send_together(sent)
    log.flush()
    assert log.length() < 10
    lines: list[str] = []
    with running(dsn, log, lines):
        drained(owner, log)
        assert stored_ids(owner) == [number for number in range(1, 41) if number not in (6, 10)]
        dead = owner.execute("SELECT sum(dead) FROM heap.ingest_offset WHERE topic = %s", (log.topic,))
        assert dead.fetchone() == (2,)
        until(lambda: len({line.partition(": ")[0] for line in lines if "dead letter" in line}) == 2)
        buried = log.buried()
        assert {value for value, _ in buried} == {encode(sent[5]), encode(sent[9])}
        options = ["--dsn", dsn, "--bootstrap-servers", log.broker.bootstrap_servers, "--topic", log.topic]
        letters = ["ingest", "dead-letters", *options, "--dead-letters", log.dead_letters]
        listed = CliRunner().invoke(command_line, letters, env={"COLUMNS": "250"}).output
        assert "2 dead letters" in listed
        for _, headers in buried:
            source = ":".join(headers[name] for name in ("topic", "partition", "offset", "position"))
            assert f" {source} " in listed
        owner.execute(f"ALTER TABLE {APP}.events DROP CONSTRAINT brief")
        assert "2 sent again" in CliRunner().invoke(command_line, [*letters, "--resend"]).output
        drained(owner, log)
    assert stored_ids(owner) == list(range(1, 41))
