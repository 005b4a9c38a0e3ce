"""The body of a request: read piece by piece, unpacked, and ended as soon as it is larger or slower than allowed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from heap_ingest.capture.limits import Limits

__all__ = ["BodyRefusedError", "InFlight", "Receive", "read_body"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_PIECE = 64 * 1024


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


async def read_body(receive: Receive, headers: dict[bytes, bytes], limits: Limits, held: Held) -> bytes:
    """The whole body, unpacked.

    Raises:
        BodyRefusedError: it is too large, as sent or unpacked, comes too slowly, ends early, or is no gzip; or the
            process holds too much already.
    """
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        raise _too_large(limits.body_bytes)
    unpacker = _unpacker(headers.get(b"content-encoding", b""))
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await _read(receive, unpacker, limits, held)
    except TimeoutError:
        raise BodyRefusedError(408, f"the body took longer than {limits.body_seconds:g} seconds") from None


async def _read(receive: Receive, unpacker: Any, limits: Limits, held: Held) -> bytes:
    body = bytearray()
    sent = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BodyRefusedError(400, "the client went away")
        piece: bytes = message.get("body", b"")
        sent += len(piece)
        if sent > limits.body_bytes:
            raise _too_large(limits.body_bytes)
        if unpacker is None:
            held.add(len(piece))
            if not body and not message.get("more_body", False):
                return piece
            body += piece
        else:
            _unpack(unpacker, piece, body, limits, held)
        if not message.get("more_body", False):
            break
    if unpacker is not None and not unpacker.eof:
        raise BodyRefusedError(400, "the gzip body ends too early")
    return bytes(body)


def _unpacker(encoding: bytes) -> Any:
    match encoding.lower().strip():
        case b"" | b"identity":
            return None
        case b"gzip" | b"x-gzip":
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


def _too_large(limit: int, how: str = "") -> BodyRefusedError:
    return BodyRefusedError(413, f"the body is larger than {limit:,} bytes{how}")
