"""`heap ingest status`: how far the log is stored, how far it goes, and how fast the two move."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from heap_ingest.log import cluster_id, find_span

__all__ = ["PartitionStatus", "read_status"]


class PartitionStatus(NamedTuple):
    """One partition of the log.

    Attributes:
        next_offset: the next message to be stored; None when no sink has begun.
        end: where the log ends now.
        lag: messages not stored yet.
        stored: messages read from the log so far; one may hold several events.
        dead: events and whole messages that went to the dead letters.
        incoming, storing: messages a second that were added to the log and read from it, while this was measured.
        stored_at: when the last batch was stored.
    """

    partition: int
    next_offset: int | None
    end: int
    lag: int
    stored: int
    dead: int
    incoming: float
    storing: float
    stored_at: datetime | None


def read_status(
    connection: psycopg.Connection[Any], bootstrap_servers: str, topic: str, seconds: float = 1.0
) -> list[PartitionStatus]:
    """The partitions of a topic, measured for so many seconds.

    Args:
        connection: in autocommit mode.

    Raises:
        SpanError: there is no such topic.
        KafkaException: Kafka does not answer.
    """
    cluster = cluster_id(bootstrap_servers)

    def rows() -> dict[int, tuple[Any, ...]]:
        found = connection.execute(
            "SELECT partition, next_offset, stored, dead, stored_at FROM heap.ingest_offset"
            " WHERE (cluster, topic) = (%s, %s)",
            (cluster, topic),
        )
        return {row[0]: row[1:] for row in found}

    began, ends, stored = time.monotonic(), find_span(bootstrap_servers, None, topic=topic).offsets, rows()
    time.sleep(seconds)
    later_ends, later = find_span(bootstrap_servers, None, topic=topic).offsets, rows()
    took = time.monotonic() - began
    status = []
    for partition in sorted({*later_ends, *later}):
        low, end = later_ends.get(partition, (0, 0))
        next_offset, count, dead, stored_at = later.get(partition, (None, 0, 0, None))
        end = max(end, next_offset or 0)
        before_end = ends.get(partition, (0, 0))[1]
        before_stored = stored.get(partition, (None, 0))[1]
        status.append(
            PartitionStatus(
                partition, next_offset, end, end - (low if next_offset is None else next_offset), count, dead,
                max(end - before_end, 0) / took, (count - before_stored) / took, stored_at,
            )
        )  # fmt: skip
    return status
