"""Lines for COPY say what the messages say, whatever is in their texts. The oracle reads PostgreSQL's text format by its
manual: fields between tabs, \\N for null, a backslash before what is meant literally."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from heap_extension.load import LOADED_COLUMNS
from heap_ingest.lines import (
    EVENT_COLUMNS,
    USER_COLUMNS,
    captured_lines,
    decode_for_lines,
    event_line,
    is_plain,
    of_user,
    user_line,
)
from heap_ingest.messages import CapturedMessage, EventMessage, UserMessage, decode, encode
from tests.ingest.log import captured

_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "b": "\b", "f": "\f", "v": "\v"}
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["\\N", "\\.", "\\", "a\tb\nc\rd", "\\t", "", "ü\u2028"]
)
_BIGINT = st.integers(-(2**63), 2**63 - 1)
_TIMES = st.datetimes(
    datetime(1, 1, 3),
    datetime(9999, 12, 28),
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
_NAMES = st.sampled_from([*LOADED_COLUMNS[:6], "of_a_later_version"])
_EARLY = datetime(2026, 1, 1, tzinfo=UTC)
_PROPERTIES = st.dictionaries(_TEXT, _TEXT | _BIGINT | st.none() | st.lists(_TEXT, max_size=2), max_size=3)


def _fields(line: str, columns: str) -> dict[str, str | None]:
    fields: list[str | None] = []
    assert "\n" not in line
    assert "\r" not in line
    for text in line.split("\t"):
        said = re.sub(r"\\(.)", lambda match: _ESCAPED.get(match[1], match[1]), text, flags=re.DOTALL)
        fields.append(None if text == r"\N" else said)
    return dict(zip(columns.split(", "), fields, strict=True))


@given(
    user=_BIGINT, time=_TIMES, event_id=_BIGINT, session=st.none() | _BIGINT, kind=_TEXT,
    columns=st.dictionaries(_NAMES, _TEXT, max_size=4), properties=_PROPERTIES,
)  # fmt: skip
@example(
    1, datetime(2026, 1, 1, tzinfo=UTC), 2, None, "click", {"path": "\\N", "of_a_later_version": "\t"}, {"\\": "\n"}
)
def test_an_event_line_says_what_the_event_does(
    user: int,
    time: datetime,
    event_id: int,
    session: int | None,
    kind: str,
    columns: dict[str, str],
    properties: dict[str, Any],
) -> None:
    sent = encode(EventMessage("shop", user, time, time, event_id, kind, session, columns, properties))
    event = decode(sent)
    assert isinstance(event, EventMessage)
    added = {LOADED_COLUMNS[0]: "added", LOADED_COLUMNS[7]: "added, too"}
    fields = _fields(event_line(event, added, plain=is_plain(sent)), EVENT_COLUMNS)
    assert (fields.pop("user_id"), fields.pop("event_id")) == (str(user), str(event_id))
    assert fields.pop("session_id") == (None if session is None else str(session))
    assert datetime.fromisoformat(fields.pop("time") or "") == time
    assert fields.pop("type") == kind
    later = {name: text for name, text in columns.items() if name == "of_a_later_version"}
    assert json.loads(fields.pop("properties") or "") == {**later, **properties}
    known = {name: text for name, text in columns.items() if name not in later}
    assert {name: text for name, text in fields.items() if text is not None} == {**added, **known}


_ADDED = st.dictionaries(
    st.sampled_from([*LOADED_COLUMNS[:3], "ip"]), st.text(st.characters(categories=["L", "Zs"]), max_size=5), max_size=3
)
_CAPTURED = st.lists(
    st.builds(
        EventMessage,
        app=st.just("shop"),
        user_id=_BIGINT,
        time=_TIMES,
        received_at=st.just(_EARLY),
        event_id=_BIGINT,
        type=_TEXT | st.just("click"),
        session_id=st.none() | _BIGINT,
        columns=st.dictionaries(st.sampled_from(LOADED_COLUMNS[:6]), _TEXT | st.just("/a"), max_size=4),
        properties=_PROPERTIES | st.just({"plan": "pro"}),
    ),
    min_size=1,
    max_size=4,
)


@given(events=_CAPTURED, added=_ADDED)
@example([EventMessage("shop", 1, _EARLY, _EARLY, 2, "\\N", None, {"path": "\\N"}, {}, None, None)], {"path": "added"})
@example([EventMessage("shop", 1, _EARLY, _EARLY, 2, "click", None, {}, {}, None, None)], {"ip": "::1"})
def test_lines_of_captured_events_are_those_of_each_by_itself(
    events: list[EventMessage], added: dict[str, str]
) -> None:
    """`event_line` is held to its oracle above."""
    message = CapturedMessage(app="shop", received_at=_EARLY, events=[captured(event) for event in events])
    read = decode_for_lines(encode(message))
    assert isinstance(read, CapturedMessage)
    expected = [(event.user_id, event.time, event_line(event, added, plain=False)) for event in events]
    for found, line in zip(captured_lines(read, added), expected, strict=True):
        assert found[:2] == line[:2]
        assert _fields(found[2], EVENT_COLUMNS) == _fields(line[2], EVENT_COLUMNS)


@given(user=_BIGINT, other=_BIGINT, time=_TIMES, properties=_PROPERTIES)
def test_a_user_line_says_what_is_known_and_of_whom(
    user: int, other: int, time: datetime, properties: dict[str, Any]
) -> None:
    line = user_line(UserMessage("shop", user, time, time, properties))
    for whose, text in ((user, line), (other, of_user(line, other))):
        fields = _fields(text, USER_COLUMNS)
        assert fields["user_id"] == str(whose)
        assert datetime.fromisoformat(fields["time"] or "") == time
        assert json.loads(fields["properties"] or "") == properties
