"""Requests as messages: JSON read, checked field by field, given its ids and its corrected time, rid of secrets.

Whatever decides a row's key is fixed here, from the request alone wherever it says enough: the same request sent again
makes the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, NoReturn

import msgspec

from heap_compiler.schema import EVENT_COLUMNS
from heap_extension.values import RefusedValueError, id_number, stored_json, stored_text, time_instant, user_number
from heap_ingest.capture.limits import Limits
from heap_ingest.capture.redact import has_secrets, is_card, is_dropped, is_of_page, redact_event
from heap_ingest.log import ProducerRecord
from heap_ingest.messages import EventMessage, IdentifyMessage, Message, UserMessage, encode, message_key

__all__ = [
    "COLUMNS",
    "Body",
    "Origin",
    "Parsed",
    "RefusedError",
    "Rejection",
    "clock_correction",
    "parse_body",
    "parse_identify",
    "parse_items",
    "parse_json",
]

COLUMNS = frozenset(EVENT_COLUMNS) - {"user_id", "time", "event_id", "session_id", "type"}
"""Fields of an event that are columns of its table; a field that is none is kept in its properties."""

_ENVELOPE = ("write_key", "sent_at", "clock_offset")
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
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
    """What a request says, ready for the log.

    Attributes:
        items: in the request, those rejected among them.
        rejected: what is not taken.
        events: users, and what each did as an encoded event of a `CapturedMessage`.
        records: all other messages.
        redacted: fields taken out.
    """

    items: int
    rejected: list[Rejection] = field(default_factory=list)
    events: list[tuple[int, bytes]] = field(default_factory=list)
    records: list[ProducerRecord] = field(default_factory=list)
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


class _Named(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """What an event has beside the columns of its table."""

    type: str | None = None
    user_id: int | str | None = None
    anonymous_id: int | str | None = None
    time: int | float | str | None = None
    event_id: int | str | None = None
    session_id: int | str | None = None
    properties: dict[str, Any] | None = None


_NAMED = frozenset(_Named.__struct_fields__)

_Event: Any = msgspec.defstruct(
    "_Event",
    [(name, str | None, None) for name in EVENT_COLUMNS if name in COLUMNS],
    bases=(_Named,),
    omit_defaults=True,
    forbid_unknown_fields=True,
    gc=False,
)
"""An event as most clients send it: read from JSON without a detour, given its ids and its time, and so written as an
event of a `CapturedMessage`."""

_get_type, _get_anonymous, _get_properties = map(attrgetter, ("type", "anonymous_id", "properties"))
_get_kind = attrgetter("type", "target_tag")
_RESOLVED = {name: attrgetter(name) for name in ("user_id", "time", "event_id", "session_id")}
"""What an event may have in several forms, and its message in one."""
_NOTHING, _INTEGERS, _TEXTS = {None}, {int}, {str}

_Batch: Any = msgspec.defstruct(
    "_Batch",
    [("events", list[_Event]), *((name, Any, None) for name in _ENVELOPE)],
    forbid_unknown_fields=True,
)
_batch_decoder = msgspec.json.Decoder(_Batch)


@dataclass(slots=True)
class Body:
    """What a body says.

    Attributes:
        items: the events, users or identifies, each an object as decoded or an event that was read already.
        shared: fields of every item that does not have them itself.
        write_key, sent_at, clock_offset: as in the body.
        has_nul: it spells a NUL character somewhere, which PostgreSQL cannot store.
        is_typed: its items are all events that were read already.
    """

    items: Sequence[Any]
    shared: dict[str, Any] = field(default_factory=dict)
    write_key: Any = None
    sent_at: Any = None
    clock_offset: Any = None
    has_nul: bool = False
    is_typed: bool = False


def parse_body(body: bytes, listed: str | None) -> Body:
    """Reads a body's JSON.

    Args:
        listed: name of the array whose items are the body's; without such a name, or such an array where there may be
            one item only, the body is the one item.

    Raises:
        RefusedError: it is no JSON, or not of this form.
    """
    has_nul = b"\\" in body and rb"\u0000" in body  # to look for one byte is much faster
    if listed == "events" and not has_nul:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # what is wrong is found out below
            batch = _batch_decoder.decode(body)
            return Body(batch.events, {}, batch.write_key, batch.sent_at, batch.clock_offset, is_typed=True)
    content = parse_json(body)
    if type(content) is list and listed is not None:
        return Body(content, has_nul=has_nul)
    if type(content) is not dict:
        raise RefusedError("an object is expected")
    envelope = {name: content.pop(name, None) for name in _ENVELOPE}
    items: Any = [content]
    shared: dict[str, Any] = {}
    if listed is not None and (listed in content or listed == "events"):
        items, shared = content.pop(listed, None), content
        if type(items) is not list:
            raise RefusedError(f"{listed}: an array of objects is expected")
    return Body(items, shared, has_nul=has_nul, **envelope)


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


def parse_items(kind: type[Message], body: Body, origin: Origin, limits: Limits) -> Parsed:
    """The messages of a body, which is used up.

    Args:
        kind: what its items are.
    """
    reader = _READERS[kind](origin, limits)
    parsed = Parsed(len(body.items))
    if body.is_typed and isinstance(reader, _EventReader):
        together = reader.together(body.items)
        if together is not None:
            parsed.events = together
            return parsed
    for index, item in enumerate(body.items):
        try:
            if type(item) is not _Event:
                if type(item) is not dict:
                    raise RefusedError("an object is expected")
                item = {**body.shared, **item}
                if body.has_nul:
                    stored_json(item)
            message = reader.message(item)
            value = encode(message)
            if len(value) > limits.text_length:
                reader.check_texts(message)
                if len(value) > limits.message_bytes:
                    raise RefusedError(f"{len(value):,} bytes; at most {limits.message_bytes:,} are taken")
            if type(message) is _Event:
                parsed.events.append((message.user_id, value))
            else:
                parsed.records.append(ProducerRecord(message_key(message.app, message.user_id), value))
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
        self._correction = origin.correction
        self._latest = origin.received_at + timedelta(seconds=limits.ahead)

    def message(self, item: Any) -> Any:
        """Raises RefusedError or RefusedValueError: the item cannot be taken."""
        raise NotImplementedError

    def check_texts(self, message: Any) -> None:
        """Raises RefusedError: a text of a message that is not small is too long."""

    def user(self, user: Any, anonymous: Any) -> int:
        if user is None or user == "":
            user = anonymous
        if type(user) is int and _SMALLEST <= user <= _LARGEST:
            return user
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
            time = _instant(value)
            if self._correction:
                time += self._correction
            if time > self._latest:
                raise RefusedError(f"time: {time:%Y-%m-%d %H:%M} UTC is in the future")
        except (RefusedValueError, OverflowError):
            raise RefusedError(f"time: {_shown(value)} is none; expected is ISO 8601, or a number since 1970") from None
        if time < _EARLIEST:
            raise RefusedError(f"time: {_shown(value)} is before 1970")
        return time

    def properties(self, place: str, values: dict[str, Any], of_page: bool, depth: int = 1) -> None:
        """Checks properties and what is inside of them, and takes out what is never kept.

        Args:
            place: what they are called in an error.
            of_page: they were captured from a page, not made by its makers.
            depth: of the objects and arrays around them, and them.
        """
        limits = self.limits
        if len(values) > limits.properties:
            raise RefusedError(f"{place}: {len(values)} names; at most {limits.properties} are taken")
        dropped = []
        for name, value in values.items():
            if len(name) > limits.name_length:
                raise RefusedError(f"{place}: a name of {len(name)} characters; at most {limits.name_length} are taken")
            kind = type(value)
            if is_dropped(name, of_page):
                dropped.append(name)
            elif kind is str:
                if of_page and is_card(value):
                    dropped.append(name)
                elif len(value) > limits.text_length:
                    raise _too_long(f"{place}.{name}", value, limits)
            elif kind is dict or kind is list:
                self._inside(f"{place}.{name}", value, of_page, depth + 1)
        if dropped:
            for name in dropped:
                del values[name]
            self.redacted += len(dropped)

    def _inside(self, place: str, value: Any, of_page: bool, depth: int) -> None:
        """Likewise for an object or an array in them."""
        if depth > self.limits.depth:
            raise RefusedError(f"{place}: nested more than {self.limits.depth} deep")
        if type(value) is dict:
            self.properties(place, value, of_page, depth)
            return
        for position, inner in enumerate(value):
            kind = type(inner)
            if kind is dict or kind is list:
                self._inside(f"{place}[{position}]", inner, of_page, depth + 1)
            elif kind is str:
                if of_page and is_card(inner):
                    value[position] = None
                    self.redacted += 1
                elif len(inner) > self.limits.text_length:
                    raise _too_long(f"{place}[{position}]", inner, self.limits)


class _EventReader(_Reader):
    """Events. Those without an id of their own get one from what they are and their place among the request's events
    of the same user and instant: alike ones stay apart, in their order."""

    def __init__(self, origin: Origin, limits: Limits) -> None:
        super().__init__(origin, limits)
        self._ranks: defaultdict[tuple[int, datetime], int] = defaultdict(int)

    def together(self, events: Sequence[Any]) -> list[tuple[int, bytes]] | None:
        """All events of a request, just as `message` and `encode` give them one by one; None when they have to be taken
        one by one, since something is to be rejected, taken out or looked at more closely.

        What there is to ask of an event is asked of all of them at once, by functions that are compiled: asked one by
        one in Python it would cost several times what it costs to read the JSON.
        """
        if not events:
            return []
        limits = self.limits
        try:
            if not all(0 < len(event_type) <= limits.name_length for event_type in set(map(_get_type, events))):
                return None
            if set(map(_get_anonymous, events)) != _NOTHING:
                for event in events:
                    _settle_anonymous(event)
            given = [list(map(get, events)) for get in _RESOLVED.values()]
            users, times, ids, sessions = given
            resolved: list[list[Any]] = [
                self._users(users),
                self._times(times),
                self._ids("event", ids),
                self._ids("session", sessions),
            ]
        except (RefusedError, RefusedValueError, TypeError):
            return None
        if None in times and any(
            time is None and event_id is not None for time, event_id in zip(times, resolved[2], strict=True)
        ):
            return None
        if has_secrets(events) or not self._are_plain(events):
            return None
        _assign(events, given, resolved)
        if None in resolved[2]:
            for event in events:
                if event.event_id is None:
                    event.event_id = self._made_id(event)
        values = list(map(encode, events))
        if max(map(len, values)) > limits.text_length:  # only then a text in one of them can be too long
            _assign(events, [None] * len(given), given)
            self._ranks.clear()
            return None
        return list(zip(resolved[0], values, strict=True))

    def _users(self, given: list[Any]) -> list[int]:
        if set(map(type, given)) == _INTEGERS and min(given) >= _SMALLEST and max(given) <= _LARGEST:
            return given
        return [self.user(user, None) for user in given]

    def _times(self, given: list[Any]) -> list[datetime]:
        if set(map(type, given)) == _TEXTS:
            # Else each is looked at. One without an offset, which cannot be compared, is among those.
            with suppress(ValueError, TypeError, OverflowError):
                times = list(map(datetime.fromisoformat, given))
                if self._correction:
                    times = [time + self._correction for time in times]
                if min(times) >= _EARLIEST and max(times) <= self._latest:
                    return times
        return [self.time(time) for time in given]

    def _ids(self, what: str, given: list[Any]) -> list[Any]:
        if set(map(type, given)) == _INTEGERS and min(given) >= _SMALLEST and max(given) <= _LARGEST:
            return given
        return [None if value is None else self._id(what, value) for value in given]

    def _are_plain(self, events: Sequence[Any]) -> bool:
        """Whether `properties` has nothing to say about any of theirs. Objects and arrays in them it has to see."""
        kinds = set(map(_get_kind, events))
        of_page = {kind for kind in kinds if is_of_page(*kind)}
        if not of_page or of_page == kinds:
            return self._are_plain_of(events, bool(of_page))
        return self._are_plain_of([event for event in events if _get_kind(event) in of_page], True) and (
            self._are_plain_of([event for event in events if _get_kind(event) not in of_page], False)
        )

    def _are_plain_of(self, events: Sequence[Any], of_page: bool) -> bool:
        limits = self.limits
        given = list(filter(None, map(_get_properties, events)))
        if not given:
            return True
        names = set().union(*given)
        if max(map(len, given)) > limits.properties or max(map(len, names)) > limits.name_length:
            return False
        if any(is_dropped(name, of_page) for name in names):
            return False
        values = list(chain.from_iterable(map(dict.values, given)))  # a set can be made slow: equal hashes of numbers
        kinds = set(map(type, values))
        if dict in kinds or list in kinds:
            return False
        return not (of_page and str in kinds and is_card("\n".join([text for text in values if type(text) is str])))

    def message(self, item: Any) -> Any:
        event = item if type(item) is _Event else _typed(item)
        limits = self.limits
        event_type, time = event.type, event.time
        if event_type is None or not 0 < len(event_type) <= limits.name_length:
            raise RefusedError(f"type: a text of 1 to {limits.name_length} characters is expected")
        _settle_anonymous(event)
        event.user_id = self.user(event.user_id, None)
        event.time = self.time(time)
        if event.session_id is not None:
            event.session_id = self._id("session", event.session_id)
        if event.event_id is not None:
            event.event_id = self._id("event", event.event_id)
        if event.event_id is not None and time is None:
            raise RefusedError("time: an event with an event_id needs one, since both together identify it")
        self.redacted += redact_event(event)
        if event.properties:
            self.properties("properties", event.properties, is_of_page(event_type, event.target_tag))
        if event.event_id is None:
            event.event_id = self._made_id(event)
        return event

    def check_texts(self, message: Any) -> None:
        for name in COLUMNS:
            text = getattr(message, name)
            if text is not None and len(text) > self.limits.text_length:
                raise _too_long(name, text, self.limits)

    def _id(self, what: str, value: Any) -> int | None:
        if type(value) is int:
            return value if _SMALLEST <= value <= _LARGEST else id_number(value, what)
        if value is None or value == "":
            return None
        if type(value) is str and len(value) <= self.limits.name_length:
            return id_number(value, what)
        length = self.limits.name_length
        raise RefusedError(f"{what}_id: a number, or a text of at most {length} characters, is expected")

    def _made_id(self, event: Any) -> int:
        user_id, time, event_type = event.user_id, event.time, event.type
        session_id, properties = event.session_id, event.properties
        rank = self._ranks[user_id, time]
        self._ranks[user_id, time] = rank + 1
        event.user_id = event.time = event.type = event.session_id = event.properties = None  # it is its columns now
        content = encode((event_type, session_id, event, properties or {}))
        event.user_id, event.time, event.type = user_id, time, event_type
        event.session_id, event.properties = session_id, properties
        digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
        return (rank << _RANK_SHIFT) | (digest & ((1 << _RANK_SHIFT) - 1))


class _UserReader(_Reader):
    """Properties of users."""

    def message(self, item: Any) -> UserMessage:
        user_id = self.user(item.get("user_id"), item.get("anonymous_id"))
        time = self.time(item.get("time"))
        properties = item.get("properties")
        if type(properties) is not dict or not properties:
            raise RefusedError("properties: an object with at least one property is expected")
        self.properties("properties", properties, False)
        origin = self.origin
        return UserMessage(origin.app, user_id, time, origin.received_at, properties)


class _IdentifyReader(_Reader):
    """Who users are."""

    def message(self, item: Any) -> IdentifyMessage:
        identity = _identity(item, self.limits)
        user_id = self.user(item.get("user_id"), item.get("anonymous_id"))
        origin = self.origin
        return IdentifyMessage(origin.app, user_id, self.time(item.get("time")), origin.received_at, identity)


def parse_identify(body: Body, origin: Origin, limits: Limits) -> Parsed:
    """The messages of a body that says who a user is, and what is known of them: all of them or none.

    Events may name the person by the identity, too: so whoever it numbers is that person as well.
    """
    parsed = parse_items(IdentifyMessage, body, origin, limits)
    if parsed.rejected:
        return parsed
    (item,) = body.items
    person = user_number(_identity(item, limits))[0]
    properties = item.get("properties")
    named = {**item, "user_id": person}
    also = parse_items(IdentifyMessage, Body([named]), origin, limits)
    if properties is not None:
        known = parse_items(UserMessage, Body([named], has_nul=body.has_nul), origin, limits)
        if known.rejected:
            return known
        also.records += known.records
        parsed.redacted += known.redacted
    parsed.records += (record for record in also.records if record not in parsed.records)
    return parsed


def _identity(item: dict[str, Any], limits: Limits) -> str:
    identity = item.get("identity")
    if type(identity) is int:
        identity = str(identity)
    if type(identity) is not str or not 0 < len(identity) <= limits.name_length:
        raise RefusedError(f"identity: a text of 1 to {limits.name_length} characters is expected")
    return identity


_READERS: dict[type[Message], type[_Reader]] = {
    EventMessage: _EventReader,
    UserMessage: _UserReader,
    IdentifyMessage: _IdentifyReader,
}


def _settle_anonymous(event: Any) -> None:
    """An `anonymous_id` is the user where there is no other, else a property."""
    anonymous = event.anonymous_id
    if anonymous is None:
        return
    if event.user_id in (None, ""):
        event.user_id = anonymous
    else:
        if event.properties is None:
            event.properties = {}
        event.properties.setdefault("anonymous_id", anonymous)
    event.anonymous_id = None


def _assign(events: Sequence[Any], before: list[Any], values: list[Any]) -> None:
    """Gives events these users, times, ids and sessions, where those are not the ones from before."""
    for name, old, new in zip(_RESOLVED, before, values, strict=True):
        if new is not old:
            for event, value in zip(events, new, strict=True):
                setattr(event, name, value)


def _typed(item: dict[str, Any]) -> Any:
    """An event of any JSON object: fields that it does not know are properties, columns are text.

    Raises:
        RefusedError: a field it knows is of another type.
        RefusedValueError: a column has a NUL character.
    """
    known: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in item.items():
        if name in COLUMNS:
            known[name] = value if type(value) is str else stored_text(value)
        else:
            (known if name in _NAMED else others)[name] = value
    if others:
        properties = known.get("properties")
        if properties is not None and type(properties) is not dict:
            raise RefusedError("properties: an object is expected")
        known["properties"] = others | (properties or {})
    try:
        return msgspec.convert(known, _Event)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        raise RefusedError(f"{place.rstrip('`')}: {what}" if place else what) from None


def _instant(value: Any) -> datetime:
    """As `time_instant` reads it, and faster what most clients send."""
    if type(value) is str and value[4:5] == "-":
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            pass
        else:
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
