"""The capture server's processes: granian reads HTTP outside Python and calls the application."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Mapping
from dataclasses import field
from functools import partial
from typing import Annotated, Any

from granian.constants import Interfaces, RuntimeModes
from granian.http import HTTP1Settings
from granian.server import Server
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from heap_ingest.capture.limits import Limits

__all__ = ["CaptureSettings", "make_app", "serve"]


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """How `heap ingest serve` runs. Values of no sense raise `pydantic.ValidationError`.

    Attributes:
        dsn: of a login that may read heap.write_key.
        bootstrap_servers, topic: of Kafka.
        host, port: where requests come in.
        workers: processes that take them.
        connections: that one process serves at once; further ones wait in the kernel.
        acknowledge_seconds: until a request that Kafka does not acknowledge is answered 503.
        header_seconds: within which a client has to send its headers.
        key_seconds: until a revoked key is refused.
        proxies, events_per_second, limits: see `CaptureApp`.
        kafka: further settings of librdkafka.
    """

    dsn: str
    bootstrap_servers: str
    topic: str
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)] = 8080
    workers: PositiveInt = 1
    connections: PositiveInt = 1_000
    header_seconds: PositiveFloat = 10.0
    acknowledge_seconds: PositiveFloat = 10.0
    key_seconds: PositiveFloat = 5.0
    proxies: NonNegativeInt = 0
    events_per_second: PositiveFloat = 10_000
    limits: Limits = field(default_factory=Limits)
    kafka: Mapping[str, Any] = field(default_factory=dict)


def make_app(settings: CaptureSettings) -> Any:
    """The application of one process.

    A batch is many objects and no cycles: that these are looked for every 700 objects, as usual, costs a tenth.
    """
    gc.set_threshold(50_000, 20, 100)
    from heap_ingest.capture.acknowledge import Acknowledger
    from heap_ingest.capture.app import CaptureApp
    from heap_ingest.capture.body import InFlight
    from heap_ingest.write_keys import WriteKeys

    in_flight = InFlight(settings.limits.in_flight_bytes)
    return CaptureApp(
        WriteKeys(settings.dsn, settings.key_seconds),
        Acknowledger(
            settings.bootstrap_servers, settings.topic, in_flight, settings.acknowledge_seconds, settings.kafka
        ),
        in_flight,
        settings.limits,
        proxies=settings.proxies,
        events_per_second=settings.events_per_second,
    )


def serve(settings: CaptureSettings) -> None:
    """Serves until a signal says to end; then takes no more, and ends when what was taken is acknowledged."""
    server = Server(
        "heap_ingest.capture.serve:make_app",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.RSGI,
        workers=settings.workers,
        runtime_mode=RuntimeModes.mt,  # which takes a third of the kernel's time that st takes
        websockets=False,
        backpressure=settings.connections,
        http1_settings=HTTP1Settings(
            header_read_timeout=int(settings.header_seconds * 1000), max_buffer_size=64 * 1024
        ),
        workers_kill_timeout=int(settings.acknowledge_seconds) + 5,
        respawn_failed_workers=True,
    )
    with tempfile.TemporaryDirectory(prefix="heap-capture-") as folder:
        if settings.workers > 1:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        server.serve(target_loader=partial(make_app, settings), wrap_loader=False)
