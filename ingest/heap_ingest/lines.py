"""Messages as lines of COPY's text format, each put together at once: value by value it takes psycopg twice as long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from heap_extension.load import LOADED_COLUMNS
from heap_ingest.messages import (
    CapturedMessage,
    Event,
    EventMessage,
    EventsMessage,
    IdentifyMessage,
    Message,
    UserMessage,
    captured_event,
    decode,
)

__all__ = [
    "EVENT_COLUMNS",
    "USER_COLUMNS",
    "captured_lines",
    "decode_for_lines",
    "event_line",
    "is_plain",
    "of_user",
    "user_line",
]

EVENT_COLUMNS = ", ".join(["user_id", "time", "event_id", "session_id", "type", *LOADED_COLUMNS, "properties"])
"""The columns of `event_line`."""

USER_COLUMNS = "user_id, time, properties"
"""The columns of `user_line`."""

_NULL = r"\N"
_ABSENT = dict.fromkeys(LOADED_COLUMNS, _NULL)
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})

_encode = msgspec.json.Encoder().encode
_columns = attrgetter(*LOADED_COLUMNS)

if TYPE_CHECKING:
    _PlainEvent = Any
else:
    _PlainEvent = captured_event(_NULL)


class _PlainMessage(CapturedMessage, frozen=True, kw_only=True, tag="captured"):
    """A `CapturedMessage` that `is_plain`. No text in it is a backslash and an N: that is how its absent columns are
    written, which saves a look at each of them."""

    events: list[_PlainEvent]


_plain_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(
    EventMessage | EventsMessage | _PlainMessage | UserMessage | IdentifyMessage
)


def is_plain(message: bytes) -> bool:
    """Whether nothing in a message needs escapes: JSON writes what does, and what it may not hold raw, with a
    backslash.

    >>> is_plain(b'{"path": "/a"}'), is_plain(b'{"path": "/a\\\\tb"}')
    (True, False)
    """
    return b"\\" not in message


def decode_for_lines(data: bytes) -> Message:
    """The message of a Kafka record, in the form of which lines are made fastest.

    Raises:
        msgspec.DecodeError: it is no JSON, or not of this form.
    """
    return _plain_decoder.decode(data) if is_plain(data) else decode(data)


def captured_lines(message: CapturedMessage, added: Mapping[str, str]) -> Iterator[tuple[int, datetime, str]]:
    """Users, times and lines of a message's events, as `event_line` makes them.

    Args:
        message: of `decode_for_lines`.
        added: as of `event_line`.
    """
    plain = type(message) is _PlainMessage
    absent = _NULL if plain else None
    given = [(name, text) for name, text in added.items() if name in _ABSENT]
    others = {name: text for name, text in added.items() if name not in _ABSENT}
    for position, event in enumerate(message.events):
        user_id, time, kind, properties = event.user_id, event.time, event.type, event.properties
        encoded = _encode({**others, **(properties or {})}).decode() if properties or others else "{}"
        if not plain and ("\\" in encoded or _needs_escapes("".join([kind, *filter(None, _columns(event))]))):
            yield user_id, time, event_line(message.single(position), added, plain=False)
            continue
        for name, text in given:
            if getattr(event, name) is absent:
                setattr(event, name, text)
        columns = _columns(event)
        texts = "\t".join(columns if plain else [_NULL if text is None else text for text in columns])
        session = _NULL if event.session_id is None else event.session_id
        yield (
            user_id,
            time,
            f"{user_id}\t{_text(time)}\t{event.event_id}\t{session}\t{kind}\t{texts}\t{encoded}",
        )


def event_line(event: Event | EventMessage, added: Mapping[str, str], *, plain: bool) -> str:
    """The event's line.

    Args:
        added: columns it may lack, and properties (`Enrichment.columns`).
        plain: whether its message `is_plain`, so that nothing is searched for what needs escapes.
    """
    columns, properties, kind = {**_ABSENT, **added, **event.columns}, event.properties, event.type
    if len(columns) > len(_ABSENT):  # the address, and columns of another version
        properties = {**{name: text for name, text in columns.items() if name not in _ABSENT}, **properties}
        columns = {name: columns[name] for name in _ABSENT}
    encoded = _encode(properties).decode() if properties else "{}"
    if not plain:
        given = {**added, **event.columns}
        columns |= {name: text.translate(_ESCAPES) for name, text in given.items() if name in _ABSENT}
        kind, encoded = kind.translate(_ESCAPES), encoded.translate(_ESCAPES)
    session = _NULL if event.session_id is None else event.session_id
    first = f"{event.user_id}\t{_text(event.time)}\t{event.event_id}\t{session}\t{kind}"
    return "\t".join([first, *columns.values(), encoded])


def user_line(message: UserMessage) -> str:
    """The line of a user's properties."""
    properties = _encode(message.properties).decode().translate(_ESCAPES)
    return f"{message.user_id}\t{_text(message.time)}\t{properties}"


def of_user(line: str, user_id: int) -> str:
    """The line for another user.

    >>> of_user("7\\tclick", 8)
    '8\\tclick'
    """
    return f"{user_id}\t{line.partition(chr(9))[2]}"


def _needs_escapes(text: str) -> bool:
    return "\\" in text or "\t" in text or "\n" in text or "\r" in text


def _text(time: datetime) -> str:
    """ISO 8601, five times as fast as by the datetime itself."""
    return _encode(time)[1:-1].decode()
