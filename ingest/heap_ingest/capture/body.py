"""The body of a request: read piece by piece, unpacked, and ended as soon as it is larger or slower than allowed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]  # it is documented there

from heap_ingest.capture.limits import Limits

__all__ = ["BodyRefusedError", "BodySource", "Headers", "InFlight", "read_body"]

_PIECE = 64 * 1024


class Headers(Protocol):
    """A request's headers, by their names in small letters. RSGI has no values that are not ASCII."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default."""


class BodySource(Protocol):
    """Where a body comes from, as RSGI has it: whole, or piece by piece."""

    async def __call__(self) -> bytes:
        """All of it."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Its pieces. When the client goes away they just end."""


class BodyRefusedError(Exception):
    """The body is not read to its end.

    Attributes:
        status: of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class InFlight:
    """The bytes that all requests of this process hold, never more than `limit`.

    A request adds what it holds as it grows, and takes it back at its end, however that comes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0

    def add(self, count: int) -> None:
        """Raises BodyRefusedError: there is no room; nothing is added."""
        if self.bytes + count > self.limit:
            raise BodyRefusedError(503, "too much is waiting for Kafka: send it again later")
        self.bytes += count

    def remove(self, count: int) -> None:
        """Takes back what was added."""
        self.bytes -= count


class Held:
    """What one request holds of `InFlight`."""

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self.bytes = 0

    def add(self, count: int) -> None:
        """Raises BodyRefusedError: there is no room."""
        self._in_flight.add(count)
        self.bytes += count

    def keep(self, count: int) -> None:
        """Holds no more than `count` from now on."""
        self._in_flight.remove(self.bytes - count)
        self.bytes = count

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(0)


async def read_body(source: BodySource, headers: Headers, limits: Limits, held: Held) -> bytes:
    """The whole body, unpacked.

    One that fits into the buffer that its connection has anyway is read at once, which costs half as much; all others
    count as held piece by piece.

    Raises:
        BodyRefusedError: it is too large, as sent or unpacked, comes too slowly, ends early, or is no gzip; or the
            process holds too much already.
    """
    length = headers.get("content-length", "")
    declared = int(length) if length.isdigit() else None
    if declared is not None and declared > limits.body_bytes:
        raise _too_large(limits.body_bytes)
    unpacker = _unpacker(headers.get("content-encoding", ""))
    try:
        async with asyncio.timeout(limits.body_seconds):
            if declared is None or declared > _PIECE or unpacker is not None:
                return await _read(source, declared, unpacker, limits, held)
            body = await source()
    except TimeoutError:
        raise BodyRefusedError(408, f"the body took longer than {limits.body_seconds:g} seconds") from None
    except ProtocolClosed:
        raise _gone() from None
    held.add(len(body))
    return body


async def _read(source: BodySource, declared: int | None, unpacker: Any, limits: Limits, held: Held) -> bytes:
    body = bytearray()
    sent = 0
    async for piece in source:
        sent += len(piece)
        if sent > limits.body_bytes:
            raise _too_large(limits.body_bytes)
        if unpacker is None:
            held.add(len(piece))
            body += piece
        else:
            _unpack(unpacker, piece, body, limits, held)
    if declared is not None and sent < declared:
        raise _gone()
    if unpacker is not None and not unpacker.eof:
        raise BodyRefusedError(400, "the gzip body ends too early")
    return bytes(body)


def _unpacker(encoding: str) -> Any:
    match encoding.lower().strip():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return zlib.decompressobj(wbits=31)
    raise BodyRefusedError(415, "content-encoding: gzip is expected, or none")


def _unpack(unpacker: Any, piece: bytes, body: bytearray, limits: Limits, held: Held) -> None:
    """Unpacks in pieces, so that a bomb is noticed before it is large."""
    rest = piece
    while rest and not unpacker.eof:
        try:
            unpacked = unpacker.decompress(rest, _PIECE)
        except zlib.error as error:
            raise BodyRefusedError(400, f"the body is no gzip: {error}") from None
        rest = unpacker.unconsumed_tail
        if len(body) + len(unpacked) > limits.unpacked_bytes:
            raise _too_large(limits.unpacked_bytes, " unpacked")
        held.add(len(unpacked))
        body += unpacked
    if unpacker.eof and (unpacker.unused_data or rest):
        raise BodyRefusedError(400, "bytes follow the end of the gzip body")


def _gone() -> BodyRefusedError:
    return BodyRefusedError(400, "the client went away")


def _too_large(limit: int, how: str = "") -> BodyRefusedError:
    return BodyRefusedError(413, f"the body is larger than {limit:,} bytes{how}")
