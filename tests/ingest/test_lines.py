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
from heap_ingest.lines import EVENT_COLUMNS, USER_COLUMNS, event_line, is_plain, of_user, user_line
from heap_ingest.messages import EventMessage, UserMessage, decode, encode

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
