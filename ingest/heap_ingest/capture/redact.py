"""What is never kept: what somebody typed into a form, and passwords, cards and keys wherever they turn up.

Clients leave these out; here they are dropped once more, before Kafka, since the log is kept and replayed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

__all__ = ["is_card", "is_of_page", "is_secret", "is_typed", "redact_columns"]

_INTERACTIONS = frozenset(
    {"click", "change", "submit", "input", "focus", "blur", "keydown", "keyup", "keypress", "paste"}
)
"""Types of autocaptured events, whose properties come from the page and not from its makers."""

_CONTROLS = frozenset({"input", "textarea", "select", "option"})
_BUTTON = re.compile(r"\[type=(?:submit|button|reset|image)\];[^|]*\|$", re.IGNORECASE)
_EDITABLE = re.compile(r"\[contenteditable=(?!false)[^\]]*\];", re.IGNORECASE)
_VALUE_ATTRIBUTE = re.compile(r"\[(?:data%2D|data-)?value=[^\]]*\];", re.IGNORECASE)
_PARAMETER = re.compile(r"([^?&#;=]+)=[^&#;]*")
_CARD = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")
_NO_LETTERS = re.compile(r"[^a-z0-9]+")
_ADDRESSES = ("query", "href", "referrer", "hash", "landing_page", "path")
"""Columns that may hold a URL's parameters."""

_SECRET_PARTS = (
    "password", "passwd", "passphrase", "passcode", "creditcard", "cardnumber", "cardnum", "ccnumber", "ccnum",
    "cardcode", "securitycode", "socialsecurity", "accesstoken", "refreshtoken", "idtoken", "apikey", "clientsecret",
)  # fmt: skip
_SECRET_NAMES = frozenset({"pwd", "cvv", "cvv2", "cvc", "cvc2", "csc", "cccsc", "ccexp", "ssn", "hiddenvalue"})
_TYPED_NAMES = frozenset(
    {"value", "values", "targetvalue", "inputvalue", "fieldvalue", "hiddenvalue", "formvalues", "formdata", "typedtext"}
)


@lru_cache(maxsize=8192)
def is_secret(name: str) -> bool:
    """Whether a field of this name holds a password, a card's data or a key, in whatever spelling.

    >>> [is_secret(name) for name in ("new_password", "card-number", "CVV", "passport", "value")]
    [True, True, True, False, False]
    """
    plain = _plain(name)
    return plain in _SECRET_NAMES or any(part in plain for part in _SECRET_PARTS)


@lru_cache(maxsize=8192)
def is_typed(name: str) -> bool:
    """Whether a field of this name, captured from a page, holds what somebody typed."""
    return _plain(name) in _TYPED_NAMES


def _plain(name: str) -> str:
    return _NO_LETTERS.sub("", name.lower())


def redact_columns(columns: dict[str, str]) -> int:
    """Takes out of an event's columns what a user typed and what a URL should not carry; how many were changed.

    The text of a form's field is what somebody typed into it, unless the field is a button; so is that of an element
    that can be edited. A URL keeps the names of its secret parameters.
    """
    changed = 0
    hierarchy = columns.get("hierarchy", "")
    text = columns.get("target_text")
    if text is not None and (
        _is_typed_into(columns.get("target_tag", ""), hierarchy) or (len(text) > 12 and is_card(text))
    ):
        del columns["target_text"]
        changed += 1
    if "alue=" in hierarchy and (kept := _VALUE_ATTRIBUTE.sub("", hierarchy)) != hierarchy:
        columns["hierarchy"] = kept
        changed += 1
    for name in _ADDRESSES:
        if (
            (address := columns.get(name)) is not None
            and "=" in address
            and (kept := _PARAMETER.sub(_hide, address)) != address
        ):
            columns[name] = kept
            changed += 1
    return changed


def _hide(parameter: re.Match[str]) -> str:
    return f"{parameter[1]}=" if is_secret(parameter[1]) else parameter[0]


def _is_typed_into(tag: str, hierarchy: str) -> bool:
    if tag.lower() in _CONTROLS:
        return _BUTTON.search(hierarchy) is None
    return "contenteditable" in hierarchy and _EDITABLE.search(hierarchy) is not None


def is_of_page(event_type: str, columns: dict[str, str]) -> bool:
    """Whether an event was captured from a page, by its type or by the element it names."""
    return event_type in _INTERACTIONS or columns.get("target_tag", "").lower() in _CONTROLS


def is_card(value: Any) -> bool:
    """Whether it is a text with the number of a payment card: 13 to 19 digits with the check digit of Luhn."""
    if type(value) is not str or len(value) < 13:
        return False
    return any(_luhn([int(digit) for digit in found if digit.isdigit()]) for found in _CARD.findall(value))


def _luhn(digits: list[int]) -> bool:
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0
