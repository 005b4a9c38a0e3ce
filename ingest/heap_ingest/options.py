"""Options that commands of `heap ingest` share, and what they stand for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heap_extension.command.connect import fail

if TYPE_CHECKING:
    from heap_ingest.broker import Broker
    from heap_ingest.enrich import AddressUse, Enrichment

__all__ = [
    "Address",
    "BootstrapServers",
    "DeadLettersTopic",
    "Places",
    "Topic",
    "embedded_broker",
    "enrichment",
    "find_bootstrap_servers",
]

BootstrapServers = Annotated[
    str | None,
    typer.Option(help="Kafka; default: HEAP_BOOTSTRAP_SERVERS, else `heap ingest broker`.", show_default=False),
]
Topic = Annotated[str, typer.Option(help="The topic of the log.")]
DeadLettersTopic = Annotated[str, typer.Option(help="The topic of messages that cannot be stored.")]
Places = Annotated[
    Path | None,
    typer.Option(help="MaxMind DB file: countries, regions and cities of addresses.", show_default=False),
]
Address = Annotated[
    str,
    typer.Option(help="What becomes of addresses: drop, hash (with the key in HEAP_ADDRESS_KEY) or keep."),
]


def embedded_broker(data: Path | None = None) -> Broker:
    """The broker of `heap ingest broker`."""
    from heap_ingest.broker import Broker, find_kafka

    return Broker(find_kafka(), (data or Path(".heap-kafka")).absolute())


def find_bootstrap_servers(given: str | None) -> str:
    """The Kafka given, else that of HEAP_BOOTSTRAP_SERVERS, else the embedded broker.

    Raises:
        BrokerError: none of them.
    """
    from heap_ingest.broker import BrokerError

    servers = given or os.environ.get("HEAP_BOOTSTRAP_SERVERS")
    if servers is None:
        broker = embedded_broker()
        if not broker.is_running():
            raise BrokerError(
                "no Kafka: give --bootstrap-servers, set HEAP_BOOTSTRAP_SERVERS, or run `heap ingest broker` here first"
            )
        servers = broker.bootstrap_servers
    return servers


def enrichment(places: Path | None, address: str) -> Enrichment:
    """What the options say is added to events."""
    from heap_ingest.enrich import Enrichment

    uses: dict[str, AddressUse] = {"drop": "drop", "hash": "hash", "keep": "keep"}
    if address not in uses:
        fail(f"error: --address {address!r} is none of {', '.join(uses)}")
    try:
        return Enrichment(places, uses[address], os.environ.get("HEAP_ADDRESS_KEY", "").encode())
    except ValueError as error:
        fail(f"error: {error}: set HEAP_ADDRESS_KEY")
