"""What the sink adds to events: user agents, places, and what becomes of addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from heap_ingest.enrich import AddressUse, Enrichment
from heap_ingest.messages import EventMessage
from tests.ingest.log import APP, NOON


def _event(**fields: Any) -> EventMessage:
    return EventMessage(app=APP, user_id=1, time=NOON, received_at=NOON, event_id=1, type="a", **fields)


@pytest.mark.parametrize(
    ("agent", "columns"),
    [
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:127.0) Gecko/20100101 Firefox/127.0",
            {"browser": "Firefox", "os": "Windows", "device_type": "desktop"},
        ),
        (
            "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/125.0.0.0 Mobile"
            " Safari/537.36",
            {"browser": "Chrome Mobile", "os": "Android", "device": "Pixel 8", "device_type": "mobile"},
        ),
        (
            "Mozilla/5.0 (Linux; Android 13; SM-X700) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/125.0.0.0"
            " Safari/537.36",
            {"browser": "Chrome", "os": "Android", "device": "SM-X700", "device_type": "tablet"},
        ),
        (
            "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
            {"browser": "Googlebot", "device": "Spider", "device_type": "bot"},
        ),
        ("", {}),
        ("\0 nonsense \ud7ff", {}),
    ],
)
def test_user_agents(agent: str, columns: dict[str, str]) -> None:
    assert Enrichment().columns(_event(user_agent=agent)) == columns


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of two networks: a city, and one of which only the country is known."""
    writer = MMDBWriter(6, "Test-City", languages=["en"], description="for tests", ipv4_compatible=True)
    writer.insert_network(
        IPSet(["192.0.2.0/24"]),
        {
            "country": {"iso_code": "DE"},
            "subdivisions": [{"iso_code": "BE", "names": {"en": "Land Berlin"}}],
            "city": {"names": {"en": "Berlin", "de": "Berlin"}},
        },
    )
    writer.insert_network(IPSet(["2001:db8::/32"]), {"registered_country": {"iso_code": "FR"}})
    path = tmp_path_factory.mktemp("places") / "places.mmdb"
    writer.to_db_file(str(path))
    return path


@pytest.mark.parametrize(
    ("address", "columns"),
    [
        ("192.0.2.77", {"country": "DE", "region": "Land Berlin", "city": "Berlin"}),
        ("2001:db8::1", {"country": "FR"}),
        ("198.51.100.1", {}),
        ("no address", {}),
    ],
)
def test_places_of_addresses(places: Path, address: str, columns: dict[str, str]) -> None:
    assert Enrichment(places).columns(_event(ip=address)) == columns


def test_addresses_are_dropped_hashed_with_a_key_or_kept() -> None:
    def ip(use: AddressUse, key: bytes = b"") -> str | None:
        return Enrichment(None, use, key).columns(_event(ip="192.0.2.1")).get("ip")

    assert ip("drop") is None
    assert ip("keep") == "192.0.2.1"
    hashed = ip("hash", b"a key of 16 bytes")
    assert hashed is not None
    assert len(hashed) == 32
    assert hashed == ip("hash", b"a key of 16 bytes")
    assert hashed != ip("hash", b"another of 16 bytes")
    with pytest.raises(ValueError, match="16 bytes"):
        ip("hash", b"short")
