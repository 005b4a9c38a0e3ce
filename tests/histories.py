"""Histories for hypothesis: few users, few instants (so that many events share one), odd values; and predicates, each as
text of the language and as Python."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from hypothesis import strategies as st

from tests.oracle import Event, Test

ZONE = ZoneInfo("Europe/Berlin")
NOW = "2025-11-05 12:00"
FORM = "@html;|@form;.signup;|@button;#go;.big;.primary;:nth-child(2);|"
NAV = "@html;|@nav;|@button;.primary;|"

DEFINITIONS: dict[str, tuple[str, Test]] = {
    "Viewed a": ("pageview where path = '/a'", lambda e: e.type == "pageview" and e.get("path") == "/a"),
    "Viewed": ("pageview", lambda e: e.type == "pageview"),
    "Signed up": (
        "click where target_text = 'Sign up' and element matches 'form.signup > button.primary'",
        lambda e: e.type == "click" and e.get("target_text") == "Sign up" and e.get("hierarchy") == FORM,
    ),
    "Purchase": ("purchase", lambda e: e.type == "purchase"),
    'It\'s "odd"': ("any where plan = 'it''s'", lambda e: e.get("plan") == "it's"),
    "Either": (
        '"Viewed a" or "Purchase"',
        lambda e: (e.type == "pageview" and e.get("path") == "/a") or e.type == "purchase",
    ),
}

# The last Sunday of October 2025 has 25 hours in Berlin; 02:30 comes twice.
TIMES = [
    datetime.fromisoformat(text).replace(tzinfo=UTC)
    for text in (
        "2025-10-25 21:59:59", "2025-10-25 22:00", "2025-10-26 00:30", "2025-10-26 01:30", "2025-10-26 01:30:00.000001",
        "2025-10-26 22:59:59.999999", "2025-10-26 23:00", "2025-10-27 23:00", "2025-10-31 12:00", "2025-11-01 00:00",
        "2025-11-02 01:30", "2025-11-04 12:00",
    )
]  # fmt: skip

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-50, 50) | st.sampled_from([0.5, 10, 10.25, "10", "pro", "it's", "", "é"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["amount", "x"]), inner, max_size=2),
    max_leaves=3,
)
_properties = st.fixed_dictionaries(
    {},
    optional={"amount": _json, "plan": st.sampled_from(["pro", "free", "it's", None, 5]), "odd key": _json},
)


@st.composite
def histories(draw: st.DrawFn, max_events: int = 14) -> list[Event]:
    count = draw(st.integers(0, max_events))
    ids = draw(st.lists(st.integers(1, 10_000), min_size=count, max_size=count, unique=True))
    return [
        Event(
            user_id=draw(st.integers(1, 3)),
            time=draw(st.sampled_from(TIMES)),
            event_id=event_id,
            type=draw(st.sampled_from(["pageview", "pageview", "click", "purchase"])),
            session_id=draw(st.none() | st.integers(1, 3)),
            columns={
                "path": draw(st.sampled_from(["/a", "/a", "/b", "/A_%", "", None])),
                "target_text": draw(st.sampled_from(["Sign up", None])),
                "hierarchy": draw(st.sampled_from([FORM, FORM, NAV, None])),
                "country": draw(st.sampled_from(["DE", "US", "other", None])),
            },
            properties=draw(_properties | _json),
        )
        for event_id in ids
    ]


def insert(connection: psycopg.Connection[Any], app: str, events: Sequence[Event]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {app}.events (user_id, time, event_id, session_id, type, path, target_text, hierarchy,"
            " country, properties) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (
                    event.user_id, event.time, event.event_id, event.session_id, event.type,
                    *(event.columns[name] for name in ("path", "target_text", "hierarchy", "country")),
                    json.dumps(event.properties),
                )
                for event in events
            ],
        )  # fmt: skip


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _on(name: str, test: Callable[[Any], bool]) -> Test:
    return lambda event: test(event.get(name))


def _text(name: str, test: Callable[[str], bool]) -> Test:
    return lambda event: isinstance(event.get(name), str) and test(event.get(name))


_ATOMS: list[tuple[str, Test]] = [
    ("amount > 10", _on("amount", lambda v: _number(v) and v > 10)),
    ("amount <= 10.25", _on("amount", lambda v: _number(v) and v <= 10.25)),
    ("amount = 10", _on("amount", lambda v: _number(v) and v == 10)),
    ("amount != 10", _on("amount", lambda v: not (_number(v) and v == 10))),
    ("amount = '10'", _on("amount", lambda v: v == "10")),
    ("amount between -5 and 10", _on("amount", lambda v: _number(v) and -5 <= v <= 10)),
    (
        "amount in (10, 'pro', true)",
        _on("amount", lambda v: (_number(v) and v == 10) or v == "pro" or v is True),
    ),
    ("amount = true", _on("amount", lambda v: v is True)),
    ("plan is set", _on("plan", lambda v: v is not None)),
    ("plan is not set", _on("plan", lambda v: v is None)),
    ("plan = 'it''s'", _on("plan", lambda v: v == "it's")),
    ("plan < 'g'", _text("plan", lambda v: v < "g")),
    ("plan not contains 'r'", _on("plan", lambda v: not (isinstance(v, str) and "r" in v))),
    ("property \"odd key\" = 'pro'", _on("odd key", lambda v: v == "pro")),
    ("path = '/a'", _on("path", lambda v: v == "/a")),
    ("path <> '/a'", _on("path", lambda v: v != "/a")),
    ("path = 5", lambda event: False),
    ("path not in ('/a', '')", _on("path", lambda v: v not in {"/a", ""})),
    ("path contains '_%'", _text("path", lambda v: "_%" in v)),
    ("path starts with '/a'", _text("path", lambda v: v.startswith("/a"))),
    ("path ends with 'b'", _text("path", lambda v: v.endswith("b"))),
    ("path like '/_'", _text("path", lambda v: re.fullmatch("/.", v) is not None)),
    ("path ilike '/a%'", _text("path", lambda v: v.lower().startswith("/a"))),
    ("path matches '^/[ab]$'", _text("path", lambda v: re.search("^/[ab]$", v) is not None)),
    ("path >= '/b'", _text("path", lambda v: v >= "/b")),
    ("session_id > 1.5", _on("session_id", lambda v: v is not None and v > 1.5)),
    ("session_id = 'x'", lambda event: False),
    ("time >= '2025-10-27'", lambda e: e.time >= datetime(2025, 10, 26, 23, tzinfo=UTC)),
    ("element matches '#go, nav > a'", _on("hierarchy", lambda v: v == FORM)),
    ("user.plan = 'pro'", lambda event: event.user_id == 1),
    ("user.plan != 'pro'", lambda event: event.user_id != 1),
    ("user.plan is not set", lambda event: event.user_id == 3),
]


def _both(kind: str, parts: list[tuple[str, Test]]) -> tuple[str, Test]:
    every = all if kind == "and" else any
    return "(" + f" {kind} ".join(text for text, _ in parts) + ")", lambda e: every(test(e) for _, test in parts)


def _negated(part: tuple[str, Test]) -> tuple[str, Test]:
    return f"not {part[0]}", lambda event: not part[1](event)


predicates: st.SearchStrategy[tuple[str, Test]] = st.recursive(
    st.sampled_from(_ATOMS),
    lambda inner: (
        st.builds(_both, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)) | inner.map(_negated)
    ),
    max_leaves=4,
)


def _filtered(event: tuple[str, Test], predicate: tuple[str, Test]) -> tuple[str, Test]:
    return f"{event[0]} where {predicate[0]}", lambda e: event[1](e) and predicate[1](e)


def _any_of(parts: list[tuple[str, Test]]) -> tuple[str, Test]:
    return "(" + " or ".join(f"({text})" for text, _ in parts) + ")", lambda e: any(test(e) for _, test in parts)


_names = st.sampled_from(
    [
        *(('"' + name.replace('"', '""') + '"', test) for name, (_, test) in DEFINITIONS.items()),
        ("pageview", lambda e: e.type == "pageview"),
        ("any", lambda e: True),
    ]
)

events_of_language: st.SearchStrategy[tuple[str, Test]] = st.one_of(
    _names,
    _names,
    st.builds(_filtered, _names, predicates),
    st.lists(st.one_of(_names, st.builds(_filtered, _names, predicates)), min_size=2, max_size=3).map(_any_of),
)
