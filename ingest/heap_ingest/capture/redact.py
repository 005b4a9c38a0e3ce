"""What is never kept: what somebody typed into a form, and passwords, cards and keys wherever they turn up.

Clients leave these out; here they are dropped once more, before Kafka, since the log is kept and replayed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

__all__ = ["has_controls", "has_secrets", "is_card", "is_dropped", "is_of_page", "redact_event"]

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

_ADDRESSES = ("path", "query", "hash", "href", "referrer", "landing_page")
"""Columns that may hold a URL's parameters."""

_get_hierarchy, _get_tag, _get_text = map(attrgetter, ("hierarchy", "target_tag", "target_text"))
_get_addresses = attrgetter(*_ADDRESSES)

_SECRET_PARTS = (
    "password", "passwd", "passphrase", "passcode", "creditcard", "cardnumber", "cardnum", "ccnumber", "ccnum",
    "cardcode", "securitycode", "socialsecurity", "accesstoken", "refreshtoken", "idtoken", "apikey", "clientsecret",
)  # fmt: skip
_SECRET_NAMES = frozenset({"pwd", "cvv", "cvv2", "cvc", "cvc2", "csc", "cccsc", "ccexp", "ssn", "hiddenvalue"})
_TYPED_NAMES = frozenset(
    {"value", "values", "targetvalue", "inputvalue", "fieldvalue", "hiddenvalue", "formvalues", "formdata", "typedtext"}
)


@lru_cache(maxsize=16_384)
def is_dropped(name: str, of_page: bool) -> bool:
    """Whether a field of this name is not kept: it holds a password, a card's data or a key, in whatever spelling, or
    was captured from a page (`of_page`) and holds what somebody typed.

    >>> [is_dropped(name, False) for name in ("new_password", "card-number", "CVV", "passport", "value")]
    [True, True, True, False, False]
    >>> is_dropped("value", True)
    True
    """
    plain = _NO_LETTERS.sub("", name.lower())
    return plain in _SECRET_NAMES or (of_page and plain in _TYPED_NAMES) or any(part in plain for part in _SECRET_PARTS)


def redact_event(event: Any) -> int:
    """Takes out of an event's columns, its attributes, what somebody typed and what a URL should not carry; how many
    were changed.

    The text of a form's field is what somebody typed into it, unless the field is a button; so is that of an element
    that can be edited. A URL keeps the names of its secret parameters.
    """
    changed = 0
    hierarchy, text = event.hierarchy, event.target_text
    if text is not None and (_is_typed_into(event.target_tag or "", hierarchy or "") or is_card(text)):
        event.target_text = None
        changed += 1
    if hierarchy is not None and "alue=" in hierarchy and (kept := _VALUE_ATTRIBUTE.sub("", hierarchy)) != hierarchy:
        event.hierarchy = kept
        changed += 1
    if "=" in f"{event.path}{event.query}{event.hash}{event.href}{event.referrer}{event.landing_page}":
        for name in _ADDRESSES:
            address = getattr(event, name)
            if address is not None and (kept := _PARAMETER.sub(_hide, address)) != address:
                setattr(event, name, kept)
                changed += 1
    return changed


def has_secrets(events: Sequence[Any], controls: bool) -> bool:
    """Whether `redact_event` might change any of these events; it is asked of their different values, which are few.

    Args:
        controls: what `has_controls` says of them.
    """
    texts = set(map(_get_text, events))
    texts.discard(None)
    if is_card("\n".join(texts)):
        return True
    hierarchies = set(map(_get_hierarchy, events))
    hierarchies.discard(None)
    if any("alue=" in hierarchy or "contenteditable" in hierarchy for hierarchy in hierarchies):
        return True
    if controls and any(event.target_text is not None and _is_control(event.target_tag) for event in events):
        return True
    addresses = set().union(*map(_get_addresses, events))
    addresses.discard(None)
    return any("=" in address and _PARAMETER.sub(_hide, address) != address for address in addresses)


def has_controls(events: Sequence[Any]) -> bool:
    """Whether any of these events names a form's field."""
    return any(map(_is_control, set(map(_get_tag, events))))


def _hide(parameter: re.Match[str]) -> str:
    return f"{parameter[1]}=" if is_dropped(parameter[1], False) else parameter[0]


def _is_typed_into(tag: str, hierarchy: str) -> bool:
    if _is_control(tag):
        return _BUTTON.search(hierarchy) is None
    return "contenteditable" in hierarchy and _EDITABLE.search(hierarchy) is not None


def _is_control(tag: str | None) -> bool:
    return tag is not None and tag.lower() in _CONTROLS


def is_of_page(event_type: str, target_tag: str | None) -> bool:
    """Whether an event was captured from a page, by its type or by the element it names."""
    return event_type in _INTERACTIONS or _is_control(target_tag)


def is_card(value: Any) -> bool:
    """Whether it is a text with the number of a payment card: 13 to 19 digits with the check digit of Luhn."""
    if type(value) is not str or len(value) < 13:
        return False
    return any(_luhn([int(digit) for digit in found if digit.isdigit()]) for found in _CARD.findall(value))


def _luhn(digits: list[int]) -> bool:
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0
