"""What travels through Kafka between the capture server and the sink: one JSON object per message.

Whatever decides a row's key, `user_id`, `time` and `event_id`, is in the message, fixed before Kafka: sending or
reading a message again makes the same row. The server adds what only it knows, the address and the user agent, raw;
the sink makes columns of them.
"""

from __future__ import annotations

import zlib
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from heap_extension.load import LOADED_COLUMNS

__all__ = [
    "CapturedEvent",
    "CapturedMessage",
    "Event",
    "EventMessage",
    "EventsMessage",
    "IdentifyMessage",
    "Message",
    "UserMessage",
    "captured_event",
    "decode",
    "encode",
    "find_partition",
    "message_key",
]

Bigint = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Message(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", forbid_unknown_fields=True):
    """What every message has.

    Attributes:
        app: the app whose write key it came with.
        user_id: the user as the client knew them: merged users are resolved by the sink, not here.
        time: when it happened, with a zone, corrected by the client's clock skew.
        received_at: when the server took it; for lag only, never part of a key.
    """

    app: str
    user_id: Bigint
    time: datetime
    received_at: datetime


class EventMessage(_Message, frozen=True, tag="event"):
    """A captured or custom event by itself.

    Attributes:
        columns: typed columns of `events` by name, beyond those named here: path, href, target_text, ...
        properties: whatever else it carries.
        ip, user_agent: as the server saw them, for enrichment; absent where the app's settings forbid it.
    """

    event_id: Bigint
    type: str
    session_id: Bigint | None = None
    columns: dict[str, str] = msgspec.field(default_factory=dict)
    properties: dict[str, Any] = msgspec.field(default_factory=dict)
    ip: str | None = None
    user_agent: str | None = None


class Event(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """An event among others: what an `EventMessage` has that is not alike for all events of a request."""

    user_id: Bigint
    time: datetime
    event_id: Bigint
    type: str
    session_id: Bigint | None = None
    columns: dict[str, str] = msgspec.field(default_factory=dict)
    properties: dict[str, Any] = msgspec.field(default_factory=dict)


def captured_event(absent: str | None) -> Any:
    """The type of a `CapturedMessage`'s events, whose columns are `absent` where an event has none.

    Messages are kept: a column that a table no longer has stays here.
    """
    columns = [(name, str, absent) for name in LOADED_COLUMNS]
    return msgspec.defstruct(
        "CapturedEvent",
        [
            ("user_id", Bigint),
            ("time", datetime),
            ("event_id", Bigint),
            ("type", str),
            ("session_id", Bigint | None, None),
            ("properties", dict[str, Any] | None, None),
            *columns,
        ],
        omit_defaults=True,
        forbid_unknown_fields=True,
        gc=False,
    )


if TYPE_CHECKING:
    CapturedEvent = Any
else:
    CapturedEvent = captured_event(None)


class _Together(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", forbid_unknown_fields=True
):
    """Events of one request that go to one partition, in their order: as one message they cost Kafka and its clients
    a fraction of what they cost one by one.

    Attributes:
        app, received_at, ip, user_agent: as of an `EventMessage`, of all of them.
        events: each with what an `EventMessage` has that is not alike for all.
    """

    app: str
    received_at: datetime
    ip: str | None = None
    user_agent: str | None = None
    events: list[Any]

    def single(self, position: int) -> EventMessage:
        """The event at this position as a message of its own."""
        event = self.events[position]
        return EventMessage(
            self.app,
            event.user_id,
            event.time,
            self.received_at,
            event.event_id,
            event.type,
            event.session_id,
            self._columns(event),
            event.properties or {},
            self.ip,
            self.user_agent,
        )

    def _columns(self, event: Any) -> dict[str, str]:
        """The columns that an event has, by name."""
        columns: dict[str, str] = event.columns
        return columns


class CapturedMessage(_Together, frozen=True, kw_only=True, tag="captured"):
    """As the capture server writes them since 0.6: columns stand beside what else an event has, as clients send them,
    so that an event that was read is written without being taken apart."""

    events: list[CapturedEvent]

    def _columns(self, event: Any) -> dict[str, str]:
        texts = {name: getattr(event, name) for name in LOADED_COLUMNS}
        return {name: text for name, text in texts.items() if text is not None}


class EventsMessage(_Together, frozen=True, kw_only=True, tag="events"):
    """As the capture server wrote them in 0.5, with columns in an object of their own."""

    events: list[Event]


class UserMessage(_Message, frozen=True, tag="user"):
    """Properties of a user; those named replace, the others stay. The latest `time` wins, whatever arrives last."""

    properties: dict[str, Any]


class IdentifyMessage(_Message, frozen=True, tag="identify"):
    """`user_id` is the person the app knows as `identity`."""

    identity: str


Message = EventMessage | EventsMessage | CapturedMessage | UserMessage | IdentifyMessage

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)

encode = _encoder.encode
"""A message, or an event for one, as JSON."""


def decode(data: bytes) -> Message:
    """The message of a Kafka record.

    Raises:
        msgspec.DecodeError: it is no JSON, or not of this form.
    """
    return _decoder.decode(data)


def message_key(app: str, user_id: int) -> bytes:
    """The Kafka key of a user's messages: all of them are in one partition, in order."""
    return f"{app}:{user_id}".encode()


def find_partition(key: bytes, partitions: int) -> int:
    """Where Kafka's client puts messages of this key, of so many partitions (librdkafka's `consistent_random`): a
    message of several users' events goes to where each of them has their messages."""
    return zlib.crc32(key) % partitions
