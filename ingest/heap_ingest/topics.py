"""The topics of the log, made explicitly: a topic that Kafka makes by itself has another number of partitions."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # not in its __all__
from confluent_kafka.cimpl import NewTopic

from heap_ingest.topic_names import DEAD_LETTERS, EVENTS

__all__ = ["create_topics", "delete_topics", "first_offsets", "reachable"]

_SILENT = logging.getLogger("heap_ingest.silent")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


def reachable(bootstrap_servers: str, timeout: float = 5.0) -> bool:
    """True when a broker answers within `timeout` seconds."""
    try:
        _admin(bootstrap_servers).list_topics(timeout=timeout)
    except KafkaException:
        return False
    return True


def create_topics(
    bootstrap_servers: str,
    *,
    events: str = EVENTS,
    dead_letters: str = DEAD_LETTERS,
    partitions: int = 8,
    replication: int = 1,
    timeout: float = 30.0,
) -> None:
    """Creates both topics unless they are there. They keep what they hold forever: replay needs it.

    Args:
        partitions: how many sinks can share the work, at most. Adding some later moves users to other partitions.
        replication: copies of each; 3 in production, with min.insync.replicas = 2.

    Raises:
        KafkaException: no broker answered in `timeout` seconds, or it refused.
    """
    config = {"retention.ms": "-1", "retention.bytes": "-1"}
    if replication > 1:
        config["min.insync.replicas"] = str(replication - 1)
    topics = [NewTopic(name, partitions, replication, config=config) for name in (events, dead_letters)]
    admin = _admin(bootstrap_servers)  # it has to live until the answers are there
    for made in admin.create_topics(topics, operation_timeout=timeout).values():
        try:
            made.result(timeout)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise


def delete_topics(bootstrap_servers: str, names: list[str], timeout: float = 30.0) -> None:
    """Deletes topics, with all they hold.

    Raises:
        KafkaException: no broker answered in `timeout` seconds, or it refused.
    """
    admin = _admin(bootstrap_servers)  # it has to live until the answers are there
    for deleted in admin.delete_topics(names, operation_timeout=timeout).values():
        deleted.result(timeout)


def first_offsets(
    bootstrap_servers: str, topic: str, partitions: Iterable[int], timeout: float = 10.0
) -> dict[int, int]:
    """By partition, the offset of the oldest message there is; of an empty one, that of the next to come.

    Nothing else is asked for: of the two answers to a question for both watermarks, librdkafka takes the smaller one
    for the first offset, and one that stands alone for both, which would leave out all there is.

    Raises:
        KafkaException: no broker answered in `timeout` seconds.
    """
    oldest = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(topic, partition): oldest for partition in partitions}
    admin = _admin(bootstrap_servers)  # it has to live until the answers are there
    answers = admin.list_offsets(asked, request_timeout=timeout)
    return {place.partition: answer.result().offset for place, answer in answers.items()}


def _admin(bootstrap_servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap_servers}, logger=_SILENT)
