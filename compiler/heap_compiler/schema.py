"""The columns of an app's tables: the one list that `heap.create_app` builds and the compiler reads by."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["EVENT_COLUMNS", "KEYED_COLUMNS", "USER_COLUMNS", "Column", "ColumnType", "key_column"]

ColumnType = Literal["text", "bigint", "timestamptz"]


class Column(NamedTuple):
    """A typed column: `name`, its PostgreSQL `type`, and what it holds."""

    name: str
    type: ColumnType
    comment: str


_IDENTITY: tuple[Column, ...] = (
    Column("user_id", "bigint", "The user; every table of an app is distributed by it"),
    Column("time", "timestamptz", "When the event happened"),
    Column(
        "event_id",
        "bigint",
        "Orders a user's events of one instant, and makes sending an event twice harmless",
    ),
    Column("session_id", "bigint", "The visit the event belongs to; unique within its user"),
    Column("type", "text", "What was captured: pageview, click, submit, change, or a custom type"),
)

_AUTOCAPTURED: tuple[tuple[str, str], ...] = (
    ("library", "What captured the event: web, ios, android, server"),
    ("platform", "Operating environment: web, ios, android"),
    ("device_type", "desktop, mobile, tablet"),
    ("device", "Device model"),
    ("os", "Operating system"),
    ("browser", "Browser, or null outside one"),
    ("language", "BCP 47 language of the browser or device"),
    ("app_version", "Version of the instrumented app"),
    ("country", "ISO 3166 alpha-2 code"),
    ("region", "State or province"),
    ("city", "City"),
    ("referrer", "URL that led to the session"),
    ("landing_page", "First path of the session"),
    ("utm_source", "Campaign source of the session"),
    ("utm_medium", "Campaign medium of the session"),
    ("utm_campaign", "Campaign name of the session"),
    ("utm_term", "Campaign term of the session"),
    ("utm_content", "Campaign content of the session"),
    ("domain", "Host of the page"),
    ("path", "Path of the page"),
    ("query", "Query string of the page"),
    ("hash", "Fragment of the page"),
    ("title", "Title of the page"),
    ("href", "Where the clicked link leads"),
    ("target_text", "Visible text of the clicked element"),
    ("target_tag", "Tag of the clicked element"),
    ("target_id", "id attribute of the clicked element"),
    ("target_class", "class attribute of the clicked element"),
    ("hierarchy", "The clicked element and its ancestors, see heap_compiler.hierarchy"),
)

EVENT_COLUMNS: dict[str, Column] = {
    column.name: column for column in (*_IDENTITY, *(Column(name, "text", comment) for name, comment in _AUTOCAPTURED))
}
"""Columns of `<app>.events` that analyses can name. Whatever else an event carries is in `properties jsonb`."""

USER_COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column("user_id", "bigint", "The user"),
        Column("identity", "text", "The id the app knows the user by"),
    )
}
"""Columns of `<app>.users` that analyses can name. Whatever else is known of a user is in `properties jsonb`."""

KEYED_COLUMNS: tuple[str, ...] = ("path", "href", "target_text", "target_id", "type")
"""Columns with a generated integer twin, `<column>_key = hashtext(<column>)`. Every insert tests every definition's
predicate: one integer comparison first makes that several times cheaper than comparing text. The type comes last: half
of all events pass its test, and so read more of the predicate from memory, which is what inserts wait for."""


def key_column(column: str) -> str:
    """The generated integer twin of a keyed column.

    >>> key_column("path")
    'path_key'
    """
    return f"{column}_key"
