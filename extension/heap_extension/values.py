"""Values from outside as an app's tables keep them: users, ids, times, text and JSON, alike in files and requests."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from heap_extension.user_ids import hash_bigint

__all__ = ["NUMBER", "RefusedValueError", "id_number", "stored_json", "stored_text", "time_instant", "user_number"]

NUMBER = re.compile(r"-?(0|[1-9]\d{0,30})(\.\d{1,30})?")
"""Text that JSON would write as a number."""

_INTEGER = re.compile(r"0|-?[1-9]\d{0,18}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_INT = 2**63


class RefusedValueError(ValueError):
    """A value that cannot be kept; the message says why."""


def user_number(value: Any) -> tuple[int, str | None]:
    """A user's id, and their identity: numbers as they are, any other text by its hash, with the text as identity.

    Raises:
        RefusedValueError: there is none, or it is a number beyond 64 bits.
    """
    if value is None or value == "":
        raise RefusedValueError("no user")
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not -_MAX_INT <= value < _MAX_INT:
            raise RefusedValueError("the user id is out of bounds")
        return value, None
    identity = stored_text(value)
    assert identity is not None
    return hash_bigint(identity), identity


def id_number(value: Any, what: str) -> int:
    """An id of an event or a session: numbers as they are, anything else by the hash of its text.

    Raises:
        RefusedValueError: there is none.
    """
    if value is None or value == "":
        raise RefusedValueError(f"no {what} id")
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, int) and -_MAX_INT <= value < _MAX_INT:
        return value
    return hash_bigint(str(value))


def time_instant(value: Any, zone: tzinfo) -> datetime:
    """ISO 8601, in `zone` where it has no offset, or a number of seconds, milliseconds or microseconds since 1970, told
    apart by its size.

    Raises:
        RefusedValueError: it is neither, or lies beyond the years 1 to 9999.
    """
    try:
        if isinstance(value, datetime):
            time = value
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            unit = 1 if abs(value) < 1e11 else 1_000 if abs(value) < 1e14 else 1_000_000
            time = _EPOCH + (timedelta(microseconds=value * (1_000_000 // unit)))
        elif isinstance(value, str) and NUMBER.fullmatch(value):
            return time_instant(float(value) if "." in value else int(value), zone)
        elif isinstance(value, str):
            time = datetime.fromisoformat(value.strip())
        else:
            raise RefusedValueError("no time")
        return (time if time.tzinfo else time.replace(tzinfo=zone)).astimezone(UTC)
    except RefusedValueError:
        raise
    except (ValueError, OverflowError):
        raise RefusedValueError(f"not a time: {str(value)[:50]}") from None


def stored_text(value: Any) -> str | None:
    """A value as text that PostgreSQL can store; anything but text as JSON.

    Raises:
        RefusedValueError: it has a NUL character.
    """
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if "\x00" in text:
        raise RefusedValueError("a NUL character, which PostgreSQL cannot store")
    return _whole(text)


def _whole(text: str) -> str:
    """Half of a surrogate pair, which JSON can spell and UTF-8 cannot, becomes the replacement character."""
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text


def stored_json(value: Any) -> Any:
    """A value as jsonb takes it: no NUL, no half characters, no NaN, times and bytes as text.

    Raises:
        RefusedValueError: a text in it has a NUL character.
    """
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if value == value and abs(value) != float("inf") else None
        case str():
            return stored_text(value)
        case dict():
            return {stored_text(str(key)): stored_json(inner) for key, inner in value.items()}
        case list() | tuple():
            return [stored_json(inner) for inner in value]
    return str(value)
