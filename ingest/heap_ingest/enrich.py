"""What the sink adds to an event: browser, operating system and device of its user agent, the place of its address.

What the client said itself stays. The address goes no further than its settings allow.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from heap_ingest.messages import CapturedMessage, EventMessage, EventsMessage

if TYPE_CHECKING:
    import maxminddb

__all__ = ["AddressUse", "Enrichment"]

AddressUse = Literal["drop", "hash", "keep"]
"""What becomes of an event's address: nothing, a keyed hash as property `ip`, or the property `ip`."""

_DESKTOPS = ("Windows", "Mac OS X", "Linux", "Ubuntu", "Debian", "Fedora", "Chrome OS", "FreeBSD", "OpenBSD")
_UNKNOWN = (None, "Other")


class Enrichment:
    """Adds columns to events.

    Args:
        places: a MaxMind DB file of countries or cities; None adds no places.
        address: what becomes of the address.
        key: of the hash of addresses, at least 16 bytes. Without it the four billion addresses are soon tried.

    Raises:
        ValueError: addresses are to be hashed without such a key.
        OSError: the file of places cannot be read.
    """

    def __init__(self, places: Path | None = None, address: AddressUse = "drop", key: bytes = b"") -> None:
        if address == "hash" and len(key) < 16:
            raise ValueError("hashing addresses needs a key of at least 16 bytes")
        self._address = address
        self._key = key
        self._places: maxminddb.Reader | None = None
        if places is not None:
            import maxminddb

            self._places = maxminddb.open_database(places)
        self._place = lru_cache(maxsize=100_000)(self._look_up)

    def columns(self, message: EventMessage | EventsMessage | CapturedMessage) -> Mapping[str, str]:
        """Columns its events may lack, by name; `ip` is a property. Not to be changed: it is kept for the next ones."""
        ip, user_agent = message.ip, message.user_agent
        agent = _agent(user_agent) if user_agent is not None else {}
        if ip is None or (self._places is None and self._address == "drop"):
            return agent
        added = {**agent, **self._place(ip)}
        if self._address == "keep":
            added["ip"] = ip
        elif self._address == "hash":
            added["ip"] = hmac.digest(self._key, ip.encode(), "sha256")[:16].hex()
        return added

    def _look_up(self, address: str) -> dict[str, str]:
        if self._places is None:
            return {}
        try:
            found: Any = self._places.get(address)
        except ValueError:  # it is no address
            return {}
        return dict(_place(found)) if isinstance(found, dict) else {}


def _place(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    country = found.get("country") or found.get("registered_country") or {}
    if isinstance(code := country.get("iso_code"), str) and _is_plain(code):
        yield "country", code
    for column, place in (("region", (found.get("subdivisions") or [{}])[0]), ("city", found.get("city") or {})):
        if isinstance(name := place.get("names", {}).get("en"), str) and _is_plain(name):
            yield column, name


def _is_plain(name: str) -> bool:
    """What no name of a place is without: `lines` looks at the message for what needs escapes, not at what is added."""
    return name.isprintable() and "\\" not in name


@lru_cache(maxsize=100_000)
def _agent(user_agent: str) -> dict[str, str]:
    """Columns of a user agent. There are far fewer of them than events."""
    from ua_parser import parse

    found = parse(user_agent[:1024])
    columns: dict[str, str] = {}
    if found.user_agent is not None and found.user_agent.family not in _UNKNOWN:
        columns["browser"] = found.user_agent.family
    if found.os is not None and found.os.family not in _UNKNOWN:
        columns["os"] = found.os.family
    if found.device is not None and found.device.family not in _UNKNOWN:
        columns["device"] = found.device.family
    if (kind := _device_type(user_agent, columns)) is not None:
        columns["device_type"] = kind
    return columns


def _device_type(user_agent: str, columns: dict[str, str]) -> str | None:
    """desktop, mobile, tablet or bot. Android's browsers write Mobile on telephones only."""
    if columns.get("device") == "Spider":
        return "bot"
    if "iPad" in user_agent or "Tablet" in user_agent or "Kindle" in user_agent:
        return "tablet"
    if columns.get("os") == "Android":
        return "mobile" if "Mobile" in user_agent else "tablet"
    if "Mobile" in user_agent or columns.get("os") == "iOS":
        return "mobile"
    return "desktop" if columns.get("os") in _DESKTOPS else None
