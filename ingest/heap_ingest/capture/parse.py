"""Requests as messages: JSON read, checked field by field, given its ids and its corrected time, rid of secrets.

Whatever decides a row's key is fixed here, from the request alone wherever it says enough: the same request sent again
makes the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NoReturn

import msgspec

from heap_compiler.schema import EVENT_COLUMNS
from heap_extension.values import RefusedValueError, id_number, stored_json, stored_text, time_instant, user_number
from heap_ingest.capture.limits import Limits
from heap_ingest.capture.redact import is_card, is_of_page, is_secret, is_typed, redact_columns
from heap_ingest.messages import EventMessage, IdentifyMessage, Message, UserMessage, encode, message_key

__all__ = ["COLUMNS", "Origin", "Parsed", "RefusedError", "Rejection", "clock_correction", "parse_items", "parse_json"]

COLUMNS = frozenset(EVENT_COLUMNS) - {"user_id", "time", "event_id", "session_id", "type"}
"""Fields of an event that are columns of its table; a field that is none is kept in its properties."""

_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_RANK_SHIFT = 43


class RefusedError(Exception):
    """A request or an event that cannot be taken: where in it, and what is expected there."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """An item of a batch that was not taken, by its index, and why."""

    index: int
    error: str


@dataclass(frozen=True, slots=True)
class Origin:
    """What the server knows of a request beside its body.

    Attributes:
        app: of the write key.
        received_at: when it arrived.
        correction: added to the times in it, see `clock_correction`.
        ip, user_agent: of the client; None is not kept.
    """

    app: str
    received_at: datetime
    correction: timedelta = timedelta()
    ip: str | None = None
    user_agent: str | None = None


@dataclass(slots=True)
class Parsed:
    """A request's messages, encoded, each with its key; what was not taken; how many fields were taken out."""

    records: list[tuple[bytes, bytes]]
    rejected: list[Rejection]
    redacted: int = 0


def parse_json(body: bytes) -> Any:
    """The JSON of a body.

    Half of a surrogate pair becomes the replacement character: browsers spell it when text was cut inside an emoji.

    Raises:
        RefusedError: it is no JSON.
    """
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise RefusedError("the body is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise RefusedError(f"the body is no UTF-8: byte {error.start}") from None
    except msgspec.MsgspecError as error:
        if rb"\u" not in body:
            raise RefusedError(f"the body is no JSON: {error}") from None
    try:
        tolerated = json.loads(body, parse_constant=_no_constant)
        return msgspec.json.decode(json.dumps(tolerated, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body is no JSON: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def clock_correction(sent_at: Any, clock_offset: Any, received_at: datetime, limits: Limits) -> timedelta:
    """What to add to the times of a request so that they are those of our clock.

    `clock_offset`, seconds, is taken as it is. Else a difference between `sent_at` and our clock counts from
    `clock_tolerance` on, in whole minutes: below, it is mostly the time the request took, which would put events out of
    order and give those of a request that is sent again another time, and so another row.

    Raises:
        RefusedError: one of them is not what it should be.
    """
    if clock_offset is not None:
        if isinstance(clock_offset, bool) or not isinstance(clock_offset, (int, float)) or abs(clock_offset) > 4e9:
            raise RefusedError("clock_offset: a number of seconds is expected")
        return timedelta(seconds=clock_offset)
    if sent_at is None:
        return timedelta()
    try:
        difference = received_at - time_instant(sent_at, UTC)
    except RefusedValueError as error:
        raise RefusedError(f"sent_at: {error}; expected is ISO 8601, or a number since 1970") from None
    if abs(difference.total_seconds()) <= limits.clock_tolerance:
        return timedelta()
    return timedelta(minutes=round(difference.total_seconds() / 60))


def parse_items(
    kind: type[Message],
    items: Sequence[Any],
    shared: Mapping[str, Any],
    origin: Origin,
    limits: Limits,
    *,
    has_nul: bool,
) -> Parsed:
    """The messages of a batch.

    Args:
        kind: what they are.
        items: each an object, as JSON decoded it. They are changed.
        shared: fields of every item that does not have them itself.
        has_nul: the body spells a NUL character somewhere, which PostgreSQL cannot store.
    """
    reader = _READERS[kind](origin, limits)
    parsed = Parsed([], [])
    for index, item in enumerate(items):
        try:
            if type(item) is not dict:
                raise RefusedError("an object is expected")
            if shared:
                item = {**shared, **item}
            if has_nul:
                stored_json(item)
            message = reader.message(item)
            value = encode(message)
            if len(value) > limits.message_bytes:
                raise RefusedError(f"{len(value):,} bytes; at most {limits.message_bytes:,} are taken")
            parsed.records.append((message_key(message), value))
        except (RefusedError, RefusedValueError) as error:
            parsed.rejected.append(Rejection(index, str(error)))
    parsed.redacted = reader.redacted
    return parsed


class _Reader:
    """Reads the items of one request.

    Attributes:
        redacted: fields taken out so far.
    """

    def __init__(self, origin: Origin, limits: Limits) -> None:
        self.origin = origin
        self.limits = limits
        self.redacted = 0
        self._latest = origin.received_at + timedelta(seconds=limits.ahead)

    def message(self, item: dict[str, Any]) -> Message:
        """Raises RefusedError or RefusedValueError: the item cannot be taken."""
        raise NotImplementedError

    def user(self, item: dict[str, Any]) -> int:
        user = item.get("user_id")
        if user is None or user == "":
            user = item.pop("anonymous_id", None)
        if type(user) is str:
            if len(user) > self.limits.name_length:
                raise RefusedError(f"user_id: at most {self.limits.name_length} characters are taken")
            if user:
                return _text_user(user)
        elif type(user) is int:
            return user_number(user)[0]
        raise RefusedError("user_id or anonymous_id: a number or a text is expected")

    def time(self, value: Any) -> datetime:
        if value is None:
            return self.origin.received_at
        try:
            time = _instant(value) + self.origin.correction
            if time > self._latest:
                raise RefusedError(f"time: {time:%Y-%m-%d %H:%M} UTC is in the future")
        except (RefusedValueError, OverflowError):
            raise RefusedError(f"time: {_shown(value)} is none; expected is ISO 8601, or a number since 1970") from None
        if time < _EARLIEST:
            raise RefusedError(f"time: {_shown(value)} is before 1970")
        return time

    def properties(self, properties: dict[str, Any], *, of_page: bool) -> None:
        """Checks properties at any depth, and takes out of them what is never kept.

        Args:
            of_page: they were captured from a page, not made by its makers.
        """
        self._object("properties", properties, of_page, 1)

    def _object(self, place: str, values: dict[str, Any], of_page: bool, depth: int) -> None:
        limits = self.limits
        if len(values) > limits.properties:
            raise RefusedError(f"{place}: {len(values)} names; at most {limits.properties} are taken")
        dropped = []
        for name, value in values.items():
            if len(name) > limits.name_length:
                raise RefusedError(f"{place}: a name of {len(name)} characters; at most {limits.name_length} are taken")
            if is_secret(name) or (of_page and (is_typed(name) or is_card(value))):
                dropped.append(name)
            elif (kind := type(value)) is str:
                if len(value) > limits.text_length:
                    raise _too_long(f"{place}.{name}", value, limits)
            elif kind is dict or kind is list:
                self._inside(f"{place}.{name}", value, of_page, depth + 1)
        for name in dropped:
            del values[name]
        self.redacted += len(dropped)

    def _inside(self, place: str, value: Any, of_page: bool, depth: int) -> None:
        kind = type(value)
        if kind is str:
            if len(value) > self.limits.text_length:
                raise _too_long(place, value, self.limits)
        elif kind is dict or kind is list:
            if depth > self.limits.depth:
                raise RefusedError(f"{place}: nested more than {self.limits.depth} deep")
            if kind is dict:
                self._object(place, value, of_page, depth)
            else:
                for position, inner in enumerate(value):
                    if of_page and is_card(inner):
                        value[position] = None
                        self.redacted += 1
                    else:
                        self._inside(f"{place}[{position}]", inner, of_page, depth + 1)


class _EventReader(_Reader):
    """Events. Those without an id of their own get one from what they are and their place among the request's events
    of the same user and instant: alike ones stay apart, in their order."""

    def __init__(self, origin: Origin, limits: Limits) -> None:
        super().__init__(origin, limits)
        self._ranks: defaultdict[tuple[int, datetime], int] = defaultdict(int)

    def message(self, item: dict[str, Any]) -> EventMessage:
        limits = self.limits
        event_type = item.pop("type", None)
        if type(event_type) is not str or not 0 < len(event_type) <= limits.name_length:
            raise RefusedError(f"type: a text of 1 to {limits.name_length} characters is expected")
        user_id = self.user(item)
        given_time = item.pop("time", None)
        time = self.time(given_time)
        session_id = self._id("session", item.pop("session_id", None))
        event_id = self._id("event", item.pop("event_id", None))
        if event_id is not None and given_time is None:
            raise RefusedError("time: an event with an event_id needs one, since both together identify it")
        properties = item.pop("properties", None)
        item.pop("user_id", None)
        if properties is None:
            properties = {}
        elif type(properties) is not dict:
            raise RefusedError("properties: an object is expected")
        # What is left in the item is columns, and what is none becomes a property.
        if not item.keys() <= COLUMNS:
            properties = {name: item.pop(name) for name in list(item) if name not in COLUMNS} | properties
        for value in item.values():
            if type(value) is not str:
                item = {name: text for name, value in item.items() if (text := stored_text(value)) is not None}
                break
        for name, value in item.items():
            if len(value) > limits.text_length:
                raise _too_long(name, value, limits)
        self.redacted += redact_columns(item)
        if properties:
            self.properties(properties, of_page=is_of_page(event_type, item))
        if event_id is None:
            event_id = self._made_id(user_id, time, event_type, session_id, item, properties)
        origin = self.origin
        return EventMessage(
            origin.app,
            user_id,
            time,
            origin.received_at,
            event_id,
            event_type,
            session_id,
            item,
            properties,
            origin.ip,
            origin.user_agent,
        )

    def _id(self, what: str, value: Any) -> int | None:
        if type(value) is int:
            return value if -(2**63) <= value < 2**63 else id_number(value, what)
        if value is None or value == "":
            return None
        if type(value) is str and len(value) <= self.limits.name_length:
            return id_number(value, what)
        length = self.limits.name_length
        raise RefusedError(f"{what}_id: a number, or a text of at most {length} characters, is expected")

    def _made_id(
        self,
        user_id: int,
        time: datetime,
        event_type: str,
        session_id: int | None,
        columns: dict[str, str],
        properties: dict[str, Any],
    ) -> int:
        rank = self._ranks[user_id, time]
        self._ranks[user_id, time] = rank + 1
        content = msgspec.json.encode((event_type, session_id, columns, properties))
        digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
        return (rank << _RANK_SHIFT) | (digest & ((1 << _RANK_SHIFT) - 1))


class _UserReader(_Reader):
    """Properties of users."""

    def message(self, item: dict[str, Any]) -> UserMessage:
        user_id = self.user(item)
        time = self.time(item.get("time"))
        properties = item.get("properties")
        if type(properties) is not dict or not properties:
            raise RefusedError("properties: an object with at least one property is expected")
        self.properties(properties, of_page=False)
        return UserMessage(
            app=self.origin.app,
            user_id=user_id,
            time=time,
            received_at=self.origin.received_at,
            properties=properties,
        )


class _IdentifyReader(_Reader):
    """Who users are."""

    def message(self, item: dict[str, Any]) -> IdentifyMessage:
        identity = item.get("identity")
        if type(identity) is int:
            identity = str(identity)
        if type(identity) is not str or not 0 < len(identity) <= self.limits.name_length:
            raise RefusedError(f"identity: a text of 1 to {self.limits.name_length} characters is expected")
        return IdentifyMessage(
            app=self.origin.app,
            user_id=self.user(item),
            time=self.time(item.get("time")),
            received_at=self.origin.received_at,
            identity=identity,
        )


_READERS: dict[type[Message], type[_Reader]] = {
    EventMessage: _EventReader,
    UserMessage: _UserReader,
    IdentifyMessage: _IdentifyReader,
}


def _instant(value: Any) -> datetime:
    """As `time_instant` reads it, and faster what most clients send."""
    if type(value) is str and value[4:5] == "-":
        with suppress(ValueError):
            time = datetime.fromisoformat(value)
            return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return time_instant(value, UTC)


def _too_long(place: str, text: str, limits: Limits) -> RefusedError:
    return RefusedError(f"{place}: {len(text):,} characters; at most {limits.text_length:,} are taken")


@lru_cache(maxsize=8192)
def _text_user(text: str) -> int:
    return user_number(text)[0]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(text[:40])
