"""The capture server as an application of granian's interface RSGI: routes, write keys, answers.

A request's way: key, body, JSON, messages, Kafka, answer. 2xx is said after Kafka has acknowledged all of it, and what
is said otherwise can be done again without harm.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST

from heap_extension.values import NUMBER
from heap_ingest.capture.acknowledge import Acknowledger, NotAcknowledgedError
from heap_ingest.capture.body import BodyRefusedError, BodySource, Headers, Held, InFlight, read_body
from heap_ingest.capture.limits import Limits
from heap_ingest.capture.metrics import Metrics
from heap_ingest.capture.openapi import openapi_document
from heap_ingest.capture.pack import Origin
from heap_ingest.capture.parse import (
    COLUMNS,
    Body,
    Parsed,
    RefusedError,
    Rejection,
    clock_correction,
    parse_body,
    parse_identify,
    parse_items,
)
from heap_ingest.capture.rate import Bucket
from heap_ingest.messages import EventMessage, UserMessage
from heap_ingest.write_keys import WriteKey, WriteKeys

__all__ = ["CaptureApp"]

_GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
_JSON = ("content-type", "application/json")
_MEDIA_TYPES = frozenset({"", "application/json", "text/plain", "application/octet-stream"})
_PREFLIGHT = (
    ("access-control-allow-methods", "GET, POST, OPTIONS"),
    ("access-control-allow-headers", "authorization, content-encoding, content-type, x-write-key"),
    ("access-control-max-age", "86400"),
)
_ANY_ORIGIN = ("access-control-allow-origin", "*")
_EXPOSED = ("access-control-expose-headers", "retry-after")
_ENVELOPE = ("write_key", "sent_at", "clock_offset")
_RETRY_AFTER = 5
_MAX_BUCKETS = 10_000


class _Answer(NamedTuple):
    """What is sent back."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (_JSON,)


class _RefusedRequestError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, *, retry_after: float | None = None, headers: Any = ()) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.headers = tuple(headers)


class _Request(NamedTuple):
    """A request without its body."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Headers
    client: str | None
    received_at: datetime


class CaptureApp:
    """The application.

    Args:
        keys: the valid write keys.
        acknowledger: the way into Kafka.
        in_flight: what this process may hold; the acknowledger's.
        limits: what a request may hold.
        proxies: how many proxies stand in front, each of which adds to X-Forwarded-For.
        events_per_second: taken with one key that says nothing else, by this process.
    """

    def __init__(
        self,
        keys: WriteKeys,
        acknowledger: Acknowledger,
        in_flight: InFlight,
        limits: Limits,
        *,
        proxies: int = 0,
        events_per_second: float = 10_000,
    ) -> None:
        self.keys = keys
        self.acknowledger = acknowledger
        self.in_flight = in_flight
        self.limits = limits
        self.proxies = proxies
        self.events_per_second = events_per_second
        self.metrics = Metrics()
        self._buckets: dict[str, Bucket] = {}
        self._measuring: asyncio.Task[None] | None = None
        self._openapi = msgspec.json.format(msgspec.json.encode(openapi_document(limits)), indent=2)
        events, users = partial(parse_items, EventMessage), partial(parse_items, UserMessage)
        self._routes: dict[str, dict[str, Callable[[_Request, BodySource], Awaitable[_Answer]]]] = {
            "/capture": {"POST": partial(self._take, events, "events")},
            "/track": {"POST": partial(self._take, events, None)},
            "/identify": {"POST": partial(self._take, parse_identify, None)},
            "/users": {"POST": partial(self._take, users, "users")},
            "/pixel.gif": {"GET": self._pixel},
            "/healthz": {"GET": self._health},
            "/metrics": {"GET": self._show_metrics},
            "/openapi.json": {"GET": self._show_openapi},
        }

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """One request."""
        if scope.proto != "http":
            return
        answer, route = await self._answer(scope, protocol)
        self.metrics.requests(route, answer.status).inc()
        headers = [*answer.headers, _ANY_ORIGIN, _EXPOSED]
        if scope.method == "HEAD":
            headers.append(("content-length", str(len(answer.body))))
            protocol.response_empty(answer.status, headers)
        else:
            protocol.response_bytes(answer.status, headers, answer.body)

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Before the first request."""
        loop.run_until_complete(self.start())

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """After the last one was taken."""
        loop.run_until_complete(self.stop())

    async def start(self) -> None:
        """Reads the keys and connects to Kafka. Neither has to be there yet: until then requests are answered 503."""
        self.acknowledger.start()
        await self.keys.start()
        self._measuring = asyncio.create_task(self._measure())

    async def stop(self) -> None:
        """Waits for what is under way."""
        if self._measuring is not None:
            self._measuring.cancel()
        await self.acknowledger.stop()
        await self.keys.stop()

    async def _answer(self, scope: Any, source: BodySource) -> tuple[_Answer, str]:
        path: str = scope.path
        methods = self._routes.get(path)
        route = path if methods is not None else "other"
        try:
            if methods is None:
                raise _RefusedRequestError(404, f"there is no such path; those are {', '.join(self._routes)}")
            method: str = scope.method
            if method == "OPTIONS":
                return _Answer(204, b"", _PREFLIGHT), route
            respond = methods.get("GET" if method == "HEAD" else method)
            if respond is None:
                allowed = ", ".join([*methods, "OPTIONS"])
                raise _RefusedRequestError(405, f"expected is {allowed}", headers=[("allow", allowed)])
            return await respond(self._request(scope), source), route
        except _RefusedRequestError as error:
            headers = [_JSON, *error.headers]
            if error.retry_after is not None:
                headers.append(("retry-after", str(math.ceil(error.retry_after))))
            return _Answer(error.status, _error(str(error)), tuple(headers)), route
        except BodyRefusedError as error:
            headers = [_JSON]
            if error.status == 503:
                headers.append(("retry-after", str(_RETRY_AFTER)))
            if error.status in {408, 413, 503}:  # the rest of the body is not read
                headers.append(("connection", "close"))
            return _Answer(error.status, _error(str(error)), tuple(headers)), route
        except RefusedError as error:
            return _Answer(400, _error(str(error))), route
        except NotAcknowledgedError as error:
            message = f"Kafka has not acknowledged all of it ({error}): send the whole request again, which is harmless"
            return _Answer(503, _error(message), (_JSON, ("retry-after", str(_RETRY_AFTER)))), route

    def _request(self, scope: Any) -> _Request:
        query: dict[str, str] = {}
        if scope.query_string:
            try:
                query = dict(parse_qsl(scope.query_string, keep_blank_values=True, max_num_fields=500))
            except ValueError:
                raise _RefusedRequestError(400, "the query string cannot be read") from None
        return _Request(scope.method, scope.path, query, scope.headers, self._address(scope), datetime.now(UTC))

    def _address(self, scope: Any) -> str | None:
        """The client's address: the connection's, or what the outermost of our own proxies saw."""
        if self.proxies:
            forwarded = [part.strip() for part in scope.headers.get("x-forwarded-for", "").split(",")]
            seen = forwarded[-self.proxies] if len(forwarded) >= self.proxies else ""
            return seen[:45] or None
        address, _, _port = scope.client.rpartition(":")
        return address.strip("[]") or None

    async def _take(
        self,
        read: Callable[[Body, Origin, Limits], Parsed],
        listed: str | None,
        request: _Request,
        source: BodySource,
    ) -> _Answer:
        """A POST: what it says is in Kafka when this returns."""
        given = _given_key(request)
        key = await self._key(given) if given is not None else None
        media_type = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
        if media_type not in _MEDIA_TYPES:
            raise _RefusedRequestError(415, "content-type: application/json is expected, or text/plain with JSON in it")
        with Held(self.in_flight) as held:
            body = await read_body(source, request.headers, self.limits, held)
            self.metrics.bytes.inc(len(body))
            started = time.monotonic()
            content = parse_body(body, listed, self.limits)
            del body
            if key is None:
                if type(content.write_key) is not str:
                    raise _unauthorized("a write key is expected: as header, in the query or in the body")
                key = await self._key(content.write_key)
            count = len(content.items)
            if count > self.limits.events:
                raise _RefusedRequestError(413, f"{count:,} items; at most {self.limits.events:,} are taken at once")
            origin = self._origin(request, key, request.query.get("sent_at", content.sent_at), content.clock_offset)
            parsed = read(content, origin, self.limits)
            del content  # while it waits for Kafka a request holds nothing twice, and the next ones find memory warm
        return await self._deliver(request, key, origin, parsed, started)

    def _origin(self, request: _Request, key: WriteKey, sent_at: Any, clock_offset: Any) -> Origin:
        agent = request.headers.get("user-agent")
        return Origin(
            key.app,
            request.received_at,
            clock_correction(sent_at, clock_offset, request.received_at, self.limits),
            request.client if key.keep_address else None,
            agent[:512] if agent else None,
            self.acknowledger.partitions,
        )

    async def _deliver(
        self, request: _Request, key: WriteKey, origin: Origin, parsed: Parsed, started: float
    ) -> _Answer:
        wait = self._bucket(key).take(parsed.items)
        if wait:
            raise _RefusedRequestError(429, "more events than this write key may send", retry_after=wait)
        metrics = self.metrics
        if parsed.rejected:
            metrics.rejected(key.app).inc(len(parsed.rejected))
        if parsed.redacted:
            metrics.redacted(key.app).inc(parsed.redacted)
        accepted = parsed.items - len(parsed.rejected)
        if not accepted and parsed.rejected:
            return _Answer(400, _result(0, parsed.rejected, origin, "nothing of it can be taken"))
        if accepted:
            messages = len(parsed.records)
            await self.acknowledger.send(parsed.records)
            metrics.accepted(key.app, request.path.strip("/")).inc(accepted)
            metrics.messages(key.app).inc(messages)
            metrics.acknowledged.observe(time.monotonic() - started)
        return _Answer(200, _result(accepted, parsed.rejected, origin))

    async def _pixel(self, request: _Request, _source: BodySource) -> _Answer:
        """An event in the query of an image: what is neither id nor column and looks like a number is one."""
        given = _given_key(request)
        if given is None:
            raise _unauthorized("write_key is expected in the query")
        key = await self._key(given)
        started = time.monotonic()
        item: dict[str, Any] = {}
        for name, text in request.query.items():
            if name not in _ENVELOPE:
                is_property = name not in COLUMNS and not name.endswith("_id") and name not in {"type", "time"}
                item[name] = _number(text) if is_property and NUMBER.fullmatch(text) else text
        item.pop("properties", None)
        clock_offset: Any = request.query.get("clock_offset")
        if clock_offset is not None and NUMBER.fullmatch(clock_offset):
            clock_offset = _number(clock_offset)
        origin = self._origin(request, key, request.query.get("sent_at"), clock_offset)
        has_nul = any("\x00" in text for text in request.query.values())
        parsed = parse_items(EventMessage, Body([item], has_nul=has_nul), origin, self.limits)
        answer = await self._deliver(request, key, origin, parsed, started)
        if answer.status != 200:
            return answer
        return _Answer(200, _GIF, (("content-type", "image/gif"), ("cache-control", "no-store")))

    async def _key(self, text: str) -> WriteKey:
        key = await self.keys.find(text)
        if key is not None:
            return key
        if not self.keys.loaded:
            raise _RefusedRequestError(503, "write keys cannot be read yet", retry_after=_RETRY_AFTER)
        raise _unauthorized("the write key is unknown or revoked")

    def _bucket(self, key: WriteKey) -> Bucket:
        rate = key.events_per_second or self.events_per_second
        bucket = self._buckets.get(key.key)
        if bucket is None or bucket.rate != rate:
            if len(self._buckets) >= _MAX_BUCKETS:
                self._buckets.clear()
            bucket = self._buckets[key.key] = Bucket(rate)
        return bucket

    async def _health(self, _request: _Request, _source: BodySource) -> _Answer:
        """200 when events can be taken."""
        state = {"kafka": self.acknowledger.brokers_up > 0, "write_keys": self.keys.loaded}
        return _Answer(200 if all(state.values()) else 503, msgspec.json.encode(state))

    async def _show_metrics(self, _request: _Request, _source: BodySource) -> _Answer:
        return _Answer(200, self.metrics.page(self._set_gauges), (("content-type", CONTENT_TYPE_LATEST),))

    async def _show_openapi(self, _request: _Request, _source: BodySource) -> _Answer:
        return _Answer(200, self._openapi)

    def _set_gauges(self) -> None:
        self.metrics.in_flight.set(self.in_flight.bytes)
        self.metrics.brokers.set(self.acknowledger.brokers_up)
        self.metrics.keys_age.set(self.keys.age)

    async def _measure(self) -> None:
        """Keeps the gauges up to date for when another process is asked for them."""
        while True:
            self._set_gauges()
            await asyncio.sleep(1)


def _given_key(request: _Request) -> str | None:
    """The write key of a request, unless it is in its body."""
    if header := request.headers.get("x-write-key"):
        return str(header)
    if header := request.headers.get("authorization"):
        scheme, _, text = str(header).partition(" ")
        if scheme.lower() == "bearer":
            return text.strip()
        if scheme.lower() == "basic":  # the key as user, without a password
            with contextlib.suppress(binascii.Error, UnicodeDecodeError):
                return base64.b64decode(text.strip(), validate=True).decode().partition(":")[0]
        raise _unauthorized("authorization: Bearer with a write key is expected")
    return request.query.get("write_key")


def _unauthorized(message: str) -> _RefusedRequestError:
    return _RefusedRequestError(401, message, headers=[("www-authenticate", "Bearer")])


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _error(message: str) -> bytes:
    return msgspec.json.encode({"error": message})


def _result(accepted: int, rejected: list[Rejection], origin: Origin, error: str | None = None) -> bytes:
    result: dict[str, Any] = {} if error is None else {"error": error}
    result |= {"accepted": accepted, "rejected": rejected}
    if origin.correction:
        result["clock_offset"] = origin.correction.total_seconds()
    return msgspec.json.encode(result)
