"""A request's events as messages: those that go to one partition of the log together, in their order."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from heap_ingest.capture.parse import Origin
from heap_ingest.log import ProducerRecord
from heap_ingest.messages import CapturedMessage, encode, message_key

__all__ = ["pack_events"]

_END = b"]}"


def pack_events(
    events: Sequence[tuple[int, bytes]], origin: Origin, partitions: int | None, message_bytes: int
) -> Iterator[ProducerRecord]:
    """Messages that hold these events. One user's have the user's key; several users' go to their partition without.

    Args:
        events: users, and what each did as an encoded event of a `CapturedMessage`.
        origin: what all events have.
        partitions: of the log; while that is not known, each user's events go alone.
        message_bytes: of the events of one message; an event that is larger has its own.
    """
    app = origin.app
    users = {user_id for user_id, _ in events}
    groups: defaultdict[int, list[bytes]] = defaultdict(list)
    together: Iterable[tuple[bytes | None, int, list[bytes]]]
    if len(users) == 1 or partitions is None:
        for user_id, event in events:
            groups[user_id].append(event)
        together = ((message_key(app, user_id), -1, found) for user_id, found in groups.items())
    else:
        start = zlib.crc32(f"{app}:".encode())  # `find_partition` of each user's key, without making that
        for user_id, event in events:
            groups[zlib.crc32(b"%d" % user_id, start) % partitions].append(event)
        together = ((None, partition, found) for partition, found in groups.items())
    message = CapturedMessage(
        app=app, received_at=origin.received_at, ip=origin.ip, user_agent=origin.user_agent, events=[]
    )
    head = encode(message).removesuffix(_END)
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
