"""A request's events as messages: those that go to one partition of the log together, in their order."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from heap_ingest.log import ProducerRecord
from heap_ingest.messages import CapturedMessage, encode, message_key

__all__ = ["Origin", "Packed", "pack_events"]

_NO_EVENTS = b"[]}"
_BRACKETS = 2


class Origin(NamedTuple):
    """What the server knows of a request beside its body.

    Attributes:
        app: of the write key.
        received_at: when it arrived.
        correction: added to the times in it, see `clock_correction`.
        ip, user_agent: of the client; None is not kept.
        partitions: of the log, as far as known.
    """

    app: str
    received_at: datetime
    correction: timedelta = timedelta()
    ip: str | None = None
    user_agent: str | None = None
    partitions: int | None = None


@dataclass(slots=True)
class Packed:
    """Messages that hold events.

    Attributes:
        records: the messages.
        too_large: the events that no message may hold, each with its bytes.
    """

    records: list[ProducerRecord] = field(default_factory=list)
    too_large: list[tuple[Any, int]] = field(default_factory=list)


def pack_events(events: Sequence[Any], origin: Origin, message_bytes: int) -> Packed:
    """One user's events have the user's key; several users' go to their partition without. While nobody knows how many
    there are, each user's go alone.

    Args:
        events: what a `CapturedMessage` takes, or is written alike.
        origin: what all events have.
        message_bytes: of the events of one message.
    """
    app, partitions = origin.app, origin.partitions
    users = {event.user_id for event in events}
    together: Sequence[tuple[bytes | None, int, Sequence[Any]]]
    if len(users) == 1:
        together = [(message_key(app, *users), -1, events)]
    elif partitions is None:
        of_user: dict[int, list[Any]] = {user_id: [] for user_id in users}
        for event in events:
            of_user[event.user_id].append(event)
        together = [(message_key(app, user_id), -1, found) for user_id, found in of_user.items()]
    else:
        groups: list[list[Any]] = [[] for _ in range(partitions)]
        start = zlib.crc32(f"{app}:".encode())  # `find_partition` of each user's key, without making that
        for event in events:
            groups[zlib.crc32(b"%d" % event.user_id, start) % partitions].append(event)
        together = [(None, partition, found) for partition, found in enumerate(groups) if found]
    message = CapturedMessage(
        app=app, received_at=origin.received_at, ip=origin.ip, user_agent=origin.user_agent, events=[]
    )
    head = encode(message).removesuffix(_NO_EVENTS)
    packed = Packed()
    for key, partition, found in together:
        for value in _encoded(found, message_bytes, packed):
            packed.records.append(ProducerRecord(key, b"".join((head, value, b"}")), partition))
    return packed


def _encoded(events: Sequence[Any], size: int, packed: Packed) -> Iterator[bytes]:
    """JSON arrays of at most so many bytes between their brackets: all events, or those of each half."""
    value = encode(events)
    if len(value) <= size + _BRACKETS:
        yield value
    elif len(events) == 1:
        packed.too_large.append((events[0], len(value) - _BRACKETS))
    else:
        middle = len(events) // 2
        yield from _encoded(events[:middle], size, packed)
        yield from _encoded(events[middle:], size, packed)
