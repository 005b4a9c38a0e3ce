"""What one request may hold, checked before and while it is read: no client decides how much memory it takes."""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds.

    Attributes:
        body_bytes: of a request's body as it was sent.
        unpacked_bytes: of a gzip body, unpacked.
        body_seconds: within which the whole body has to be there.
        events: of one batch.
        message_bytes: of one event with all its fields, as Kafka keeps it.
        text_length: characters of a value.
        name_length: characters of a type, a property's name, or an id that is text.
        properties: of one object.
        depth: of objects and arrays in each other.
        in_flight_bytes: of all requests that wait for their bodies or for Kafka, in one process; a body of at most
            64 kB counts from when all of it is there.
        clock_tolerance: by which a client's clock may differ before its times are corrected.
        ahead: by which an event's time may lie in the future.
    """

    body_bytes: PositiveInt = 2 * 1024 * 1024
    unpacked_bytes: PositiveInt = 8 * 1024 * 1024
    body_seconds: PositiveFloat = 10.0
    events: PositiveInt = 2_000
    message_bytes: PositiveInt = 64 * 1024
    text_length: PositiveInt = 8_192
    name_length: PositiveInt = 200
    properties: PositiveInt = 250
    depth: PositiveInt = 8
    in_flight_bytes: PositiveInt = 64 * 1024 * 1024
    clock_tolerance: PositiveFloat = 300.0
    ahead: PositiveFloat = 86_400.0
