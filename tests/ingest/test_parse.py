"""Requests as messages: ids and times that a retry gives again, errors with their place, nothing kept that should not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from time import process_time
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_extension.importer import FileReader, ImportMapping, Rejections
from heap_extension.load import LOADED_COLUMNS
from heap_extension.user_ids import hash_bigint
from heap_ingest.capture.limits import Limits
from heap_ingest.capture.pack import Origin
from heap_ingest.capture.parse import (
    COLUMNS,
    Body,
    Parsed,
    RefusedError,
    _EventReader,
    clock_correction,
    parse_body,
    parse_identify,
    parse_items,
)
from heap_ingest.messages import EventMessage, IdentifyMessage, Message, UserMessage, decode
from tests.ingest.log import unpacked

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOON = "2026-03-01T11:59:00Z"


def _parse(content: Any, kind: type[Message] = EventMessage, **origin: Any) -> Parsed:
    listed = {EventMessage: "events", UserMessage: "users"}.get(kind)
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return parse_items(
        kind, parse_body(body, listed, Limits()), Origin("shop", NOW, **{"partitions": 1, **origin}), Limits()
    )


def _taken(parsed: Parsed) -> list[EventMessage]:
    """The events as the sink reads them, in their order."""
    messages = [message for record in parsed.records for message in unpacked(record.value)]
    return [message for message in messages if isinstance(message, EventMessage)]


def _events(*events: dict[str, Any], **origin: Any) -> list[EventMessage]:
    parsed = _parse({"events": list(events)}, **origin)
    assert parsed.rejected == []
    return _taken(parsed)


def _event(**fields: Any) -> EventMessage:
    (event,) = _events({"type": "click", "user_id": 1, "time": NOON, **fields})
    return event


def _error(**fields: Any) -> str:
    parsed = _parse({"events": [{"type": "click", "user_id": 1, "time": NOON, **fields}]})
    assert parsed.records == []
    (rejection,) = parsed.rejected
    return rejection.error


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20)
_FIELDS = st.fixed_dictionaries(
    {
        "type": _TEXT,
        "user_id": st.integers(-(2**63), 2**63 - 1) | _TEXT,
        "time": st.datetimes(datetime(1990, 1, 1), datetime(2026, 2, 1)).map(lambda time: time.isoformat() + "Z")
        | st.integers(10**9, 1_700_000_000) | st.integers(10**12, 1_700_000_000_000),
        "event_id": st.integers(0, 2**63 - 1) | _TEXT,
    },
    optional={
        "session_id": st.integers(-(2**63), 2**63 - 1) | _TEXT,
        "title": _TEXT,
        "domain": _TEXT,
        "browser": st.integers() | _TEXT,
        "properties": st.dictionaries(st.sampled_from(["a", "b"]), st.integers() | _TEXT | st.none(), max_size=2),
        "plan": _TEXT | st.booleans() | st.lists(st.integers(), max_size=2),
    },
)  # fmt: skip


@given(events=st.lists(_FIELDS, min_size=1, max_size=4))
def test_users_ids_times_and_fields_are_those_of_heap_import(
    events: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("import") / "events.ndjson"
    path.write_text("\n".join(json.dumps(event) for event in events))
    mapping = ImportMapping(
        "user_id", "time", "type", event_id="event_id", session_id="session_id", zone=ZoneInfo("UTC")
    )
    for event in events:
        event.setdefault("session_id", 5)
    path.write_text("\n".join(json.dumps(event) for event in events))
    imported = list(FileReader(path, mapping, Rejections(path.with_suffix(".rejected")), lambda _: None).events())
    assert len(imported) == len(events)
    for row, event in zip(imported, _events(*events), strict=True):
        assert (event.user_id, event.event_id, event.session_id) == (row.user_id, row.event_id, row.session_id)
        assert (event.time, event.type) == (row.time, row.type)
        columns = dict(zip(LOADED_COLUMNS, row.columns, strict=True))
        assert event.columns == {name: text for name, text in columns.items() if text is not None}
        kept = {name: value for name, value in event.properties.items() if value is not None}
        assert kept == {name: value for name, value in row.properties.items() if value is not None}


_USUAL = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["click", "change", "purchase"]),
        "user_id": st.integers(0, 3) | st.sampled_from(["ann", "7"]),
        "time": st.sampled_from([NOON, "2026-01-02T03:04:05.25+01:00"]),
    },
    optional={
        "event_id": st.integers(0, 9) | st.just("order-7"),
        "anonymous_id": st.just("b1946"),
        "session_id": st.integers(0, 9) | st.just("s-1"),
        "target_tag": st.sampled_from(["button", "INPUT", "a"]),
        "path": st.just("/a"),
        "properties": st.dictionaries(st.sampled_from(["plan", "n"]), st.integers() | _TEXT | st.none(), max_size=2),
    },
)
_ODD: list[dict[str, Any]] = [
    *({"type": value} for value in (None, "", "x" * 201)),
    *({"user_id": value} for value in (None, "", 2**63, -(2**63) - 1, "x" * 201)),
    *({"anonymous_id": value} for value in ("", 7, "4111111111111111")),
    *({"user_id": None, "anonymous_id": value} for value in ("", 7, "x" * 201)),
    *({"time": value} for value in (
        None, "soon", "x", "2026-03-02T12:00:01Z", "2026-03-02T13:00:01+01:00", "1969-12-31T23:59:59Z", "20260102",
        "0001-01-01T00:00:00Z", "2026-01-02T03:04:05", "2026-01-02", "1767323045", 1767323045, 1767323045000.5,
        "2026-01-02T03:04:05.1234567Z", "9999-12-31T23:59:59Z",
    )),
    *({"time": None, "event_id": value} for value in (1, "", None)),
    *({"event_id": value} for value in (None, "", 2**63, "x" * 201)),
    *({"session_id": value} for value in (None, "", 2**63, "x" * 201)),
    *({"target_text": value} for value in ("4111 1111 1111 1111", "4111 1111 1111 1112", "4111\n1111 1111 1111")),
    *({"hierarchy": value} for value in ("@a;[name=x];|", "@input;[value=x];|", "@div;[contenteditable=true];|")),
    {"target_tag": "div", "target_text": "typed", "hierarchy": "@div;[contenteditable=true];|"},
    {"target_tag": "INPUT", "target_text": "typed"},
    {"target_tag": "INPUT", "target_text": "Go", "hierarchy": "@input;[type=submit];|"},
    *({"href": value} for value in ("/?q=1", "/?password=1", "x" * 8_193)),
    *({"properties": {name: 1}} for name in ("value", "password", "x" * 201)),
    *({"type": "purchase", "target_tag": None, "properties": {name: 1}} for name in ("value", "password")),
    *({"properties": {"plan": value}} for value in (
        "4111111111111111", "x" * 8_193, 1.5, True, {"cvv": 1}, {"n": 1}, ["4111111111111111"], [[[[[[[[1]]]]]]]],
    )),
    {"type": "purchase", "target_tag": None, "properties": {"plan": "4111111111111111"}},
    *({"properties": {str(number): number for number in range(count)}} for count in (250, 251)),
    {"anonymous_id": "b", "properties": {str(number): number for number in range(250)}},
    {"properties": {str(number): "x" * 8_000 for number in range(9)}},
    {"title": "\\N\t\n"}, {"path": None}, {"plan": "pro"},
]  # fmt: skip
"""What makes an event another one than the usual, each by itself."""


def _alike_together_and_alone(events: list[dict[str, Any]], correction: timedelta = timedelta()) -> None:
    """An array without an object around it is read by the tolerant decoder, and its events are taken one by one."""
    together, alone = _parse({"events": events}, correction=correction), _parse(events, correction=correction)
    assert together.rejected == alone.rejected
    assert _taken(together) == _taken(alone)
    assert together.redacted == alone.redacted


@pytest.mark.parametrize("odd", _ODD)
def test_an_odd_event_is_taken_together_with_others_as_alone(odd: dict[str, Any]) -> None:
    usual = {"type": "click", "user_id": 1, "time": NOON, "event_id": 1, "properties": {"plan": "pro"}}
    other = {**usual, "type": "purchase", "event_id": 2, "properties": {"value": 10}}
    for batch in ([{**usual, **odd}], [usual, {**usual, **odd}, usual], [other, {**usual, **odd}, {**other, **odd}]):
        _alike_together_and_alone(batch)
    for correction in (timedelta(days=2), timedelta(minutes=-7)):
        _alike_together_and_alone([usual, {**usual, **odd}], correction)
    _alike_together_and_alone([{**usual, "event_id": None}] * 2 + [{**usual, **odd}])


@given(
    events=st.lists(
        _FIELDS | _USUAL | st.tuples(_USUAL, st.sampled_from(_ODD)).map(lambda both: both[0] | both[1]), max_size=5
    ),
    correction=st.sampled_from([timedelta(), timedelta(minutes=7), -timedelta(days=800_000)]),
)
@settings(max_examples=300)
def test_events_taken_together_are_those_taken_one_by_one(events: list[dict[str, Any]], correction: timedelta) -> None:
    _alike_together_and_alone(events, correction)


def test_numbers_of_one_hash_cost_no_more_than_others() -> None:
    """Python's hash of an integer is its rest by 2**61 - 1."""
    chosen = [{str(n): (n + 250 * event + 9) * (2**61 - 1) for n in range(250)} for event in range(80)]
    events = [{"type": "click", "user_id": 1, "time": NOON, "properties": properties} for properties in chosen]
    started = process_time()
    assert len(_taken(_parse({"events": events}))) == 80
    assert process_time() - started < 1


@given(events=st.lists(_USUAL.filter(lambda event: event.get("properties") != {}), min_size=1, max_size=5))
def test_usual_events_are_taken_together(events: list[dict[str, Any]]) -> None:
    """What would be right one by one, too, only slower: nothing of them may need that."""
    body = parse_body(json.dumps({"events": events}).encode(), "events", Limits())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_EventReader, "message", None)
        assert len(_taken(parse_items(EventMessage, body, Origin("shop", NOW), Limits()))) == len(events)


@given(events=st.lists(_FIELDS.map(lambda event: {**event, "event_id": None}), min_size=1, max_size=6))
def test_the_same_request_makes_the_same_ids(events: list[dict[str, Any]]) -> None:
    later = Origin("shop", NOW + timedelta(minutes=3), ip="10.0.0.1", partitions=1)
    first = _events(*events, *events)
    body = parse_body(json.dumps({"events": events * 2}).encode(), "events", Limits())
    again = parse_items(EventMessage, body, later, Limits())
    keys = [(event.user_id, event.time, event.event_id) for event in first]
    assert keys == [(event.user_id, event.time, event.event_id) for event in _taken(again)]
    assert len(set(keys)) == 2 * len(events), "equal events of one batch are different events"


def test_ids_are_made_as_ever() -> None:
    """Else a request that is sent again after an upgrade makes other rows. Taken together, and one by one."""
    viewed = {"type": "view", "user_id": 5, "time": 1767323045, "hierarchy": "@a;|"}
    clicked = {"type": "click", "user_id": "ann", "time": "2026-01-02T03:04:05.123Z", "title": "x", "path": "/a"}
    clicked |= {"session_id": 4, "properties": {"a": 1, "b": "é"}}
    for content in ({"events": [viewed, clicked]}, [viewed, clicked]):
        assert [event.event_id for event in _taken(_parse(content))] == [8_279_480_896_388, 2_513_402_679_908]


def test_events_of_one_instant_keep_their_order() -> None:
    same = {"type": "click", "user_id": 1, "time": NOON}
    ids = [event.event_id for event in _events(*({**same, "title": title} for title in "cab"), {**same, "user_id": 2})]
    assert ids[:3] == sorted(ids[:3])
    assert [number >> 43 for number in ids] == [0, 1, 2, 0]


def test_the_request_says_which_app_and_when_and_the_address_is_kept_where_it_may_be() -> None:
    origin = Origin("shop", NOW, ip="10.1.2.3", user_agent="Mozilla/5.0")
    body = parse_body(b'{"events": [{"type": "x", "anonymous_id": "me"}]}', "events", Limits())
    (record,) = parse_items(EventMessage, body, origin, Limits()).records
    (event,) = unpacked(record.value)
    assert isinstance(event, EventMessage)
    assert event == EventMessage(
        app="shop", user_id=hash_bigint("me"), time=NOW, received_at=NOW, event_id=event.event_id, type="x",
        ip="10.1.2.3", user_agent="Mozilla/5.0",
    )  # fmt: skip
    assert record.key == b"shop:%d" % hash_bigint("me")


def test_unknown_fields_are_properties_and_properties_win() -> None:
    event = _event(plan="pro", path="/a", app_version=3.5, properties={"plan": "max", "path": "mine"}, href=None)
    assert event.columns == {"path": "/a", "app_version": "3.5"}
    assert event.properties == {"plan": "max", "path": "mine"}
    assert _event(anonymous_id="me").properties == {"anonymous_id": "me"}


def test_what_stands_beside_the_events_is_every_events() -> None:
    batch = {"library": "web", "user_id": 5, "lab": 1, "events": [{"type": "a"}, {"type": "b", "user_id": 6, "lab": 2}]}
    first, second = _taken(_parse(batch))
    assert (first.user_id, first.columns, first.properties) == (5, {"library": "web"}, {"lab": 1})
    assert (second.user_id, second.columns, second.properties) == (6, {"library": "web"}, {"lab": 2})


@pytest.mark.parametrize(("fields", "error"), [
    ({"type": ""}, "type: a text of 1 to 200 characters is expected"),
    ({"type": 3}, "type: Expected `str | null`, got `int`"),
    ({"user_id": None}, "user_id or anonymous_id: a number or a text is expected"),
    ({"user_id": True}, "user_id: Expected `int | str | null`, got `bool`"),
    ({"user_id": 2**63}, "the user id is out of bounds"),
    ({"time": "soon"}, "time: 'soon' is none; expected is ISO 8601, or a number since 1970"),
    ({"time": "2026-03-02T12:00:01Z"}, "time: 2026-03-02 12:00 UTC is in the future"),
    ({"time": "1969-12-31T23:59:59Z"}, "time: '1969-12-31T23:59:59Z' is before 1970"),
    ({"time": None, "event_id": 1}, "time: an event with an event_id needs one, since both together identify it"),
    ({"event_id": 1.5}, "event_id: Expected `int | str | null`, got `float`"),
    ({"session_id": "x" * 201}, "session_id: a number, or a text of at most 200 characters, is expected"),
    ({"properties": [1]}, "properties: Expected `object | null`, got `array`"),
    ({"properties": {"a": "x" * 8_193}}, "properties.a: 8,193 characters; at most 8,192 are taken"),
    ({"title": "x" * 8_193}, "title: 8,193 characters; at most 8,192 are taken"),
    ({"properties": {str(n): n for n in range(251)}}, "properties: 251 names; at most 250 are taken"),
    ({"properties": {"a": [{"b": ["x" * 9_000]}]}}, "properties.a[0].b[0]: 9,000 characters; at most 8,192 are taken"),
    ({"properties": {"x" * 201: 1}}, "properties: a name of 201 characters; at most 200 are taken"),
    ({"properties": {"a": [[[[[[[[1]]]]]]]]}}, "properties.a[0][0][0][0][0][0][0]: nested more than 8 deep"),
    ({"title": "a\x00b"}, "a NUL character, which PostgreSQL cannot store"),
])  # fmt: skip
def test_errors_say_where_and_what_is_expected(fields: dict[str, Any], error: str) -> None:
    assert _error(**fields) == error


def test_an_event_that_is_large_in_all_is_refused() -> None:
    large = {"properties": {str(n): "x" * 8_000 for n in range(10)}}
    assert _error(**large).endswith("bytes; at most 65,536 are taken")
    events = [{"type": "x", "user_id": n % 5, "time": NOON, **(large if n in {2, 3, 7, 10} else {})} for n in range(12)]
    for partitions in (None, 1, 3):
        parsed = _parse({"events": events}, partitions=partitions)
        assert [rejection.index for rejection in parsed.rejected] == [2, 3, 7, 10]
        assert len(_taken(parsed)) == 8


def test_the_good_events_of_a_batch_are_taken_and_the_bad_told_by_index() -> None:
    good = {"type": "x", "user_id": 1, "time": NOON}
    parsed = _parse({"events": [good, 5, {"type": "x"}, good, {}]})
    assert [rejection.index for rejection in parsed.rejected] == [1, 2, 4]
    assert (len(_taken(parsed)), parsed.items) == (2, 5)


@pytest.mark.parametrize(("body", "error"), [
    (b"", "the body is no JSON"),
    (b"{", "the body is no JSON"),
    (b'{"events": [NaN]}', "the body is no JSON"),
    (b'{"events": [1e999]}', "the body is no JSON"),
    (b'{"events": "\xff"}', "the body is no UTF-8: byte"),
    (b"[" * 100_000, "nested too deeply"),
    (b"5", "an object is expected"),
    (b"{}", "events: an array of objects is expected"),
    (b'{"events": {}}', "events: an array of objects is expected"),
    (b'{"a": "\\ud800", "b": NaN}', "NaN is no number in JSON"),
])  # fmt: skip
def test_what_is_no_batch_is_refused_whole(body: bytes, error: str) -> None:
    with pytest.raises(RefusedError, match=error):
        parse_body(body, "events", Limits())


def test_half_of_an_emoji_does_not_cost_the_batch() -> None:
    """Browsers write it when a text is cut, and PostgreSQL cannot store it."""
    (event,) = _taken(_parse(b'{"events": [{"type": "click", "user_id": 1, "target_text": "Hi \\ud83d"}]}'))
    assert event.columns == {"target_text": "Hi ?"}


@pytest.mark.parametrize("time", ["2026-01-02T03:04:05Z", "2026-01-02T04:04:05+01:00", "2026-01-02T03:04:05",
                                  " 2026-01-02 03:04:05 ", 1767323045, 1767323045000, "1767323045"])  # fmt: skip
def test_times_in_every_form(time: Any) -> None:
    assert _event(time=time).time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(("behind", "minutes"), [
    (timedelta(0), 0), (timedelta(minutes=5), 0), (-timedelta(minutes=5), 0),
    (timedelta(minutes=5, seconds=1), 5), (timedelta(hours=2, seconds=29), 120), (timedelta(hours=2, seconds=31), 121),
    (-timedelta(days=400, seconds=1), -400 * 1440),
])  # fmt: skip
def test_a_wrong_clock_is_corrected_in_whole_minutes_and_a_slow_network_is_none(
    behind: timedelta, minutes: int
) -> None:
    assert clock_correction((NOW - behind).isoformat(), None, NOW, Limits()) == timedelta(minutes=minutes)


def test_a_known_offset_is_taken_as_it_is() -> None:
    correction = clock_correction("2020-01-01", -7.25, NOW, Limits())
    assert correction == timedelta(seconds=-7.25)
    assert (
        _event(time="2026-03-01T12:00:10Z").time - timedelta(seconds=7.25)
        == _events({"type": "click", "user_id": 1, "time": "2026-03-01T12:00:10Z"}, correction=correction)[0].time
    )
    for sent_at, offset in (("soon", None), (None, "1"), (None, True), (None, 1e12)):
        with pytest.raises(RefusedError, match=r"sent_at|clock_offset"):
            clock_correction(sent_at, offset, NOW, Limits())


_FIELD = "@html;|@form;#pay;|@input;[name=card];[type=text];[value=4111%201111];|"


@pytest.mark.parametrize(("fields", "kept"), [
    ({"target_tag": "INPUT", "target_text": "hunter2"}, {"target_tag": "INPUT"}),
    ({"target_tag": "textarea", "target_text": "dear"}, {"target_tag": "textarea"}),
    ({"target_tag": "input", "target_text": "Go", "hierarchy": "@input;[type=submit];|"},
     {"target_tag": "input", "target_text": "Go", "hierarchy": "@input;[type=submit];|"}),
    ({"target_tag": "div", "target_text": "typed", "hierarchy": "@div;[contenteditable=true];|"},
     {"target_tag": "div", "hierarchy": "@div;[contenteditable=true];|"}),
    ({"target_tag": "button", "target_text": "Sign up"}, {"target_tag": "button", "target_text": "Sign up"}),
    ({"target_tag": "input", "hierarchy": _FIELD}, {"target_tag": "input",
     "hierarchy": "@html;|@form;#pay;|@input;[name=card];[type=text];|"}),
    ({"target_tag": "span", "target_text": "4111 1111 1111 1111"}, {"target_tag": "span"}),
    ({"target_tag": "span", "target_text": "4111 1111 1111 1112"},
     {"target_tag": "span", "target_text": "4111 1111 1111 1112"}),
    ({"query": "q=1&Password=a%20b&x=2"}, {"query": "q=1&Password=&x=2"}),
    ({"href": "https://a.b/c?user_password=x#access_token=abc"}, {"href": "https://a.b/c?user_password=#access_token="}),
    ({"referrer": "https://a.b/?cvv=1"}, {"referrer": "https://a.b/?cvv="}),
])  # fmt: skip
def test_what_was_typed_and_secrets_in_urls_are_not_kept(fields: dict[str, str], kept: dict[str, str]) -> None:
    for form in (lambda event: {"events": [event]}, lambda event: [event]):
        (event,) = _taken(_parse(form({"type": "click", "user_id": 1, **fields})))
        assert event.columns == kept


@pytest.mark.parametrize(("event_type", "properties", "kept"), [
    ("change", {"value": "hunter2", "field": "name", "targetValue": "x"}, {"field": "name"}),
    ("purchase", {"value": 10, "currency": "EUR"}, {"value": 10, "currency": "EUR"}),
    ("purchase", {"password": "x", "Credit-Card": "y", "card_number": 1, "user": {"newPassword": 2, "age": 3}},
     {"user": {"age": 3}}),
    ("purchase", {"forms": [{"cvv": 1, "n": 2}, [{"pwd": 3}]]}, {"forms": [{"n": 2}, [{}]]}),
    ("submit", {"note": "card 4111-1111-1111-1111 please", "order": "4111"}, {"order": "4111"}),
    ("submit", {"notes": ["4111111111111111", "ok"]}, {"notes": [None, "ok"]}),
    ("purchase", {"order": "4111111111111111"}, {"order": "4111111111111111"}),
])  # fmt: skip
def test_secret_properties_are_dropped_at_any_depth(
    event_type: str, properties: dict[str, Any], kept: dict[str, Any]
) -> None:
    parsed = _parse({"events": [{"type": event_type, "user_id": 1, "properties": properties}]})
    assert [event.properties for event in _taken(parsed)] == [kept]
    assert (parsed.redacted > 0) == (kept != properties)


def test_a_made_id_says_nothing_of_what_was_dropped() -> None:
    """43 bits of a hash would be enough to try passwords against."""
    assert _event(properties={"password": "a"}).event_id == _event(properties={"password": "b"}).event_id


def test_properties_of_users_need_some() -> None:
    parsed = _parse({"users": [{"user_id": "ann", "time": NOON, "properties": {"plan": "pro", "password": "x"}},
                               {"user_id": 2, "properties": {}}]}, UserMessage)  # fmt: skip
    assert decode(parsed.records[0].value) == UserMessage(
        "shop", hash_bigint("ann"), datetime(2026, 3, 1, 11, 59, tzinfo=UTC), NOW, {"plan": "pro"}
    )
    assert [rejection.index for rejection in parsed.rejected] == [1]


@pytest.mark.parametrize(("identity", "person"), [("ann@example.com", hash_bigint("ann@example.com")), ("42", 42)])
def test_whoever_an_identity_numbers_is_that_person_too(identity: str, person: int) -> None:
    item = {"anonymous_id": "me", "identity": identity, "properties": {"plan": "pro"}, "time": NOON}
    parsed = parse_identify(parse_body(json.dumps(item).encode(), None, Limits()), Origin("shop", NOW), Limits())
    messages = [decode(record.value) for record in parsed.records]
    time = datetime(2026, 3, 1, 11, 59, tzinfo=UTC)
    assert messages == [
        IdentifyMessage("shop", hash_bigint("me"), time, NOW, identity),
        IdentifyMessage("shop", person, time, NOW, identity),
        UserMessage("shop", person, time, NOW, {"plan": "pro"}),
    ]


@pytest.mark.parametrize("item", [{"user_id": 1}, {"identity": ""}, {"identity": "a"},
                                  {"identity": "a", "user_id": 1, "properties": {}}])  # fmt: skip
def test_an_identify_is_taken_whole_or_not(item: dict[str, Any]) -> None:
    parsed = parse_identify(Body([item]), Origin("shop", NOW), Limits())
    assert (parsed.records, len(parsed.rejected)) == ([], 1)


def test_columns_are_those_of_the_table() -> None:
    assert set(LOADED_COLUMNS) == COLUMNS
