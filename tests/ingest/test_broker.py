"""The development broker: what it acknowledged is there after kill -9."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from typer.testing import CliRunner

from heap_extension.command import app
from heap_ingest import broker as broker_module
from heap_ingest.broker import Broker, BrokerError, find_kafka
from heap_ingest.topics import create_topics, reachable


def test_what_was_acknowledged_survives_kill_9(broker: Broker) -> None:
    create_topics(broker.bootstrap_servers, events="kept", dead_letters="kept-dead", partitions=1)
    acknowledged: list[bytes] = []
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "acks": "all", "log_level": 0})
    for number in range(1000):
        value = str(number).encode()
        producer.produce("kept", value, callback=lambda error, _, value=value: error or acknowledged.append(value))
    while len(acknowledged) < 500:
        producer.poll(0.1)
    broker.kill()
    assert not broker.is_running()
    assert not reachable(broker.bootstrap_servers, 0.2)
    broker.up()
    assert producer.flush(30) == 0
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "kept", "log_level": 0})
    consumer.assign([TopicPartition("kept", 0, 0)])
    try:
        found = {message.value() for message in consumer.consume(1000, 10)}
    finally:
        consumer.close()
    assert len(acknowledged) == 1000
    assert found == set(acknowledged)


def test_it_is_one_message_when_java_or_maven_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(broker_module.shutil, "which", lambda name: None)
    with pytest.raises(BrokerError, match="Java 17"):
        find_kafka(tmp_path)
    monkeypatch.setattr(broker_module.shutil, "which", lambda name: name if name == "java" else None)
    with pytest.raises(BrokerError, match="Maven"):
        find_kafka(tmp_path)


def test_no_kafka_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broker: Broker) -> None:
    monkeypatch.delenv("HEAP_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["ingest", "broker", "--down"])
    assert (shown.exit_code, shown.stderr) == (0, "it was not running\n")
