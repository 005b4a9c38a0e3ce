"""Requests as messages: JSON read, checked field by field, given its ids and its corrected time, rid of secrets.

Whatever decides a row's key is fixed here, from the request alone wherever it says enough: the same request sent again
makes the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Annotated, Any, NoReturn

import msgspec

from heap_compiler.schema import EVENT_COLUMNS
from heap_extension.values import RefusedValueError, id_number, stored_json, stored_text, time_instant, user_number
from heap_ingest.capture.limits import Limits
from heap_ingest.capture.pack import Origin, pack_events
from heap_ingest.capture.redact import has_controls, has_secrets, is_card, is_dropped, is_of_page, redact_event
from heap_ingest.log import ProducerRecord
from heap_ingest.messages import EventMessage, IdentifyMessage, Message, UserMessage, encode, message_key

__all__ = [
    "COLUMNS",
    "Body",
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

_COLUMNS = tuple(name for name in EVENT_COLUMNS if name in COLUMNS)
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


@dataclass(slots=True)
class Parsed:
    """What a request says, ready for the log.

    Attributes:
        items: in the request, those rejected among them.
        rejected: what is not taken.
        records: the messages.
        redacted: fields taken out.
    """

    items: int
    rejected: list[Rejection] = field(default_factory=list)
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


_Number = Annotated[int, msgspec.Meta(ge=_SMALLEST, le=_LARGEST)]


def _event_type(text: Any, name: Any, identifier: Any) -> Any:
    """The type of an event as most clients send it: read from JSON without a detour, given its ids and its time, and so
    written as an event of a `CapturedMessage`.

    Args:
        text, name, identifier: of what types its columns, its type and its ids are.
    """
    fields = [
        ("type", name | None, None),
        ("user_id", identifier | None, None),
        ("anonymous_id", identifier | None, None),
        ("time", int | float | str | None, None),
        ("event_id", identifier | None, None),
        ("session_id", identifier | None, None),
        ("properties", dict[str, Any] | None, None),
        *((column, text | None, None) for column in _COLUMNS),
    ]
    return msgspec.defstruct("_Event", fields, omit_defaults=True, forbid_unknown_fields=True, gc=False)


_Event: Any = _event_type(str, str, int | str)
_NAMED = frozenset(_Event.__struct_fields__) - COLUMNS


@lru_cache(maxsize=16)
def _batch_decoder(text_length: int, name_length: int) -> msgspec.json.Decoder[Any]:
    """Reads a body whose events are all of known fields, none of them too long or out of bounds."""
    event: Any = _event_type(
        Annotated[str, msgspec.Meta(max_length=text_length)],
        Annotated[str, msgspec.Meta(min_length=1, max_length=name_length)],
        _Number | Annotated[str, msgspec.Meta(max_length=name_length)],
    )
    fields: list[Any] = [("events", list[event]), *((name, Any, None) for name in _ENVELOPE)]
    return msgspec.json.Decoder(msgspec.defstruct("_Batch", fields, forbid_unknown_fields=True))


_get_columns = attrgetter(*_COLUMNS)
_get_type, _get_anonymous, _get_properties = map(attrgetter, ("type", "anonymous_id", "properties"))
_RESOLVED = {name: attrgetter(name) for name in ("user_id", "time", "event_id", "session_id")}
"""What an event may have in several forms, and its message in one."""
_NOTHING, _INTEGERS, _TEXTS = {None}, {int}, {str}


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


def parse_body(body: bytes, listed: str | None, limits: Limits) -> Body:
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
            batch = _batch_decoder(limits.text_length, limits.name_length).decode(body)
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
    places: Sequence[int]
    if body.is_typed and isinstance(reader, _EventReader) and reader.together(body.items):
        places, events = range(len(body.items)), body.items
    else:
        places, events = _one_by_one(body, reader, parsed)
    if events:
        packed = pack_events(events, origin, limits.message_bytes)
        parsed.records = packed.records
        if packed.too_large:
            of_events = {id(event): place for place, event in zip(places, events, strict=True)}
            for event, size in packed.too_large:
                parsed.rejected.append(Rejection(of_events[id(event)], str(_too_large(size, limits))))
            parsed.rejected.sort(key=attrgetter("index"))
    parsed.redacted = reader.redacted
    return parsed


def _one_by_one(body: Body, reader: _Reader, parsed: Parsed) -> tuple[Sequence[int], Sequence[Any]]:
    """Reads the items of a body. What is rejected goes to `parsed`, and the messages that are none of events.

    Returns:
        Of the events, which item each was, and what it became.
    """
    places, events = [], []
    for index, item in enumerate(body.items):
        try:
            if not isinstance(item, msgspec.Struct):
                if type(item) is not dict:
                    raise RefusedError("an object is expected")
                item = {**body.shared, **item}
                if body.has_nul:
                    stored_json(item)
            message = reader.message(item)
            if isinstance(reader, _EventReader):
                places.append(index)
                events.append(message)
                continue
            value = encode(message)
            if len(value) > reader.limits.message_bytes:
                raise _too_large(len(value), reader.limits)
            parsed.records.append(ProducerRecord(message_key(message.app, message.user_id), value))
        except (RefusedError, RefusedValueError) as error:
            parsed.rejected.append(Rejection(index, str(error)))
    return places, events


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

    def together(self, events: Sequence[Any]) -> bool:
        """Makes all events of a request what `message` makes of them one by one. If it does not, they are as they were
        and have to be taken one by one: something is to be rejected, taken out or looked at more closely.

        What there is to ask of an event the decoder has asked, or it is asked of all of them at once, by functions that
        are compiled: asked one by one in Python it would cost several times what it costs to read the JSON.
        """
        if not events:
            return True
        types = set(map(_get_type, events))
        if None in types:
            return False
        try:
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
            return False
        if None in times and any(
            time is None and event_id is not None for time, event_id in zip(times, resolved[2], strict=True)
        ):
            return False
        controls = has_controls(events)
        if has_secrets(events, controls) or not self._are_plain(events, types, controls):
            return False
        _assign(events, given, resolved)
        if None in resolved[2]:
            for event in events:
                if event.event_id is None:
                    event.event_id = self._made_id(event)
        return True

    def _users(self, given: list[Any]) -> list[int]:
        if set(map(type, given)) == _INTEGERS:
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
        if set(map(type, given)) == _INTEGERS:
            return given
        return [None if value is None else self._id(what, value) for value in given]

    def _are_plain(self, events: Sequence[Any], types: Set[str], controls: bool) -> bool:
        """Whether `properties` has nothing to say about any of theirs. Objects and arrays in them it has to see."""
        if not controls:  # then the type says of which page, and most often the events are alike
            of_page = {event_type for event_type in types if is_of_page(event_type, None)}
            if not of_page or of_page == types:
                return self._are_plain_of(events, bool(of_page))
        kinds: dict[bool, list[Any]] = {True: [], False: []}
        for event in events:
            kinds[is_of_page(event.type, event.target_tag)].append(event)
        return all(self._are_plain_of(found, of_page) for of_page, found in kinds.items())

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
        if str not in kinds:
            return True
        texts = {text for text in values if type(text) is str}
        return max(map(len, texts)) <= limits.text_length and not (of_page and is_card("\n".join(texts)))

    def message(self, item: Any) -> Any:
        event: Any = item if isinstance(item, msgspec.Struct) else _typed(item)
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
        self._check_texts(event)
        return event

    def _check_texts(self, event: Any) -> None:
        texts = _get_columns(event)
        if max(map(len, filter(None, texts)), default=0) > self.limits.text_length:
            name, text = max(zip(_COLUMNS, texts, strict=True), key=lambda column: len(column[1] or ""))
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


def _too_large(size: int, limits: Limits) -> RefusedError:
    return RefusedError(f"{size:,} bytes; at most {limits.message_bytes:,} are taken")


def _too_long(place: str, text: str, limits: Limits) -> RefusedError:
    return RefusedError(f"{place}: {len(text):,} characters; at most {limits.text_length:,} are taken")


@lru_cache(maxsize=8192)
def _text_user(text: str) -> int:
    return user_number(text)[0]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(text[:40])
