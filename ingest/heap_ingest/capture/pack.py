"""A request's events as messages: those that go to one partition of the log together, in their order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from heap_ingest.capture.parse import Origin
from heap_ingest.log import ProducerRecord
from heap_ingest.messages import EventsMessage, encode, find_partition, message_key

__all__ = ["pack_events"]

_END = b"]}"


def pack_events(
    events: Sequence[tuple[int, bytes]], origin: Origin, partitions: int | None, message_bytes: int
) -> Iterator[ProducerRecord]:
    """Messages that hold these events. One user's have the user's key; several users' go to their partition without.

    Args:
        events: users, and what each did as an encoded `Event`.
        origin: what all events have.
        partitions: of the log; while that is not known, each user's events go alone.
        message_bytes: of the events of one message; an event that is larger has its own.
    """
    by_user: defaultdict[int, list[bytes]] = defaultdict(list)
    for user_id, event in events:
        by_user[user_id].append(event)
    keyed = [(message_key(origin.app, user_id), found) for user_id, found in by_user.items()]
    together: list[tuple[bytes | None, int, list[bytes]]] = [(key, -1, found) for key, found in keyed]
    if partitions is not None and len(keyed) > 1:
        by_partition: defaultdict[int, list[bytes]] = defaultdict(list)
        for key, found in keyed:
            by_partition[find_partition(key, partitions)] += found
        together = [(None, partition, found) for partition, found in by_partition.items()]
    head = encode(
        EventsMessage(
            app=origin.app, received_at=origin.received_at, ip=origin.ip, user_agent=origin.user_agent, events=[]
        )
    ).removesuffix(_END)
    for maybe_key, partition, found in together:
        for part in _split(found, message_bytes):
            yield ProducerRecord(maybe_key, b"".join((head, b",".join(part), _END)), partition)


def _split(events: list[bytes], size: int) -> Iterator[list[bytes]]:
    """Stretches of at most so many bytes, with the commas between; an event that is larger is one by itself."""
    if sum(map(len, events)) + len(events) - 1 <= size:
        yield events
        return
    stretch: list[bytes] = []
    taken = 0
    for event in events:
        if stretch and taken + len(event) > size:
            yield stretch
            stretch, taken = [], 0
        stretch.append(event)
        taken += len(event) + 1
    yield stretch
