"""What one process of the capture server holds and waits for: without Kafka, with one that fails, without its database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from confluent_kafka import KafkaError

from heap_ingest.capture.acknowledge import Acknowledger, NotAcknowledgedError
from heap_ingest.capture.app import CaptureApp
from heap_ingest.capture.body import InFlight
from heap_ingest.capture.limits import Limits
from heap_ingest.capture.rate import Bucket
from heap_ingest.log import ProducerRecord
from heap_ingest.write_keys import WriteKey, WriteKeys, revoke_write_key
from tests.ingest.capture_server import ensure_key

_NOBODY = "127.0.0.1:1"
_MOCK = {"test.mock.num.brokers": 1, "log_level": 0}


class _OneKey(WriteKeys):
    """A valid key without a database."""

    loaded = True

    async def start(self) -> None:
        pass

    async def find(self, key: str) -> WriteKey | None:
        return WriteKey(key, "shop", None, True, None, datetime.now(UTC), None)


@asynccontextmanager
async def _app(servers: str, limits: Limits, timeout: float = 0.5, **kafka: Any) -> AsyncIterator[CaptureApp]:
    in_flight = InFlight(limits.in_flight_bytes)
    acknowledger = Acknowledger(servers, "heap-events", in_flight, timeout, options={"log_level": 0} | kafka)
    app = CaptureApp(_OneKey(""), acknowledger, in_flight, limits)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


class _Protocol:
    """What RSGI gives for a request, whose pieces come one by one, and takes as its answer."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.answer: tuple[int, dict[str, str]] | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece

    def response_bytes(self, status: int, headers: list[tuple[str, str]], _body: bytes) -> None:
        self.answer = status, dict(headers)


async def _post(app: CaptureApp, pieces: list[bytes]) -> tuple[int, dict[str, str]]:
    """One request; its pieces come one by one."""
    scope = SimpleNamespace(
        proto="http", method="POST", path="/capture", query_string="write_key=k", headers={}, client="127.0.0.1:1"
    )
    protocol = _Protocol(pieces)
    await app.__rsgi__(scope, protocol)
    assert protocol.answer is not None
    return protocol.answer


def _run(test: Callable[[], Awaitable[None]]) -> None:
    async def within_time() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(within_time())


_BODY = json.dumps({"events": [{"type": "x", "user_id": 1, "title": "t" * 1_000}] * 20}).encode()


def test_what_waits_for_kafka_is_bounded_and_the_rest_refused_at_once() -> None:
    async def test() -> None:
        limits = Limits(in_flight_bytes=200_000)
        async with _app(_NOBODY, limits) as app:
            waiting = [asyncio.create_task(_post(app, [_BODY])) for _ in range(20)]
            await asyncio.sleep(0.1)
            refused = [task for task in waiting if task.done()]
            assert 10 <= len(refused) < 20
            assert 100_000 < app.in_flight.bytes <= limits.in_flight_bytes
            answers = await asyncio.gather(*waiting)
            assert {status for status, _ in answers} == {503}
            assert {headers["retry-after"] for _, headers in answers} == {"5"}
            assert app.in_flight.bytes == 0

    _run(test)


def test_a_batch_counts_until_kafkas_client_has_ended_it_though_nobody_waits() -> None:
    async def test() -> None:
        async with _app(_NOBODY, Limits()) as app:
            task = asyncio.create_task(_post(app, [_BODY]))
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.sleep(0.05)
            assert app.in_flight.bytes > len(_BODY)
            await asyncio.sleep(1)
            assert app.in_flight.bytes == 0

    _run(test)


def test_a_body_in_many_pieces_is_one_and_is_given_back() -> None:
    async def test() -> None:
        async with _app("", Limits(), 10, **_MOCK) as app:
            assert (await _post(app, [_BODY[n : n + 1_000] for n in range(0, len(_BODY), 1_000)]))[0] == 200
            assert (await _post(app, [_BODY[:100]]))[0] == 400
            assert app.in_flight.bytes == 0

    _run(test)


def test_a_producer_that_cannot_go_on_is_replaced() -> None:
    async def test() -> None:
        in_flight = InFlight(1_000_000)
        acknowledger = Acknowledger("", "heap-events", in_flight, options=_MOCK)
        acknowledger.start()
        await acknowledger.send([ProducerRecord(b"k", b"1")])
        first = acknowledger._producer
        waiting = asyncio.create_task(acknowledger.send([ProducerRecord(b"k", b"2")]))
        await asyncio.sleep(0)
        acknowledger._failed(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "lost count", fatal=True))
        await acknowledger.send([ProducerRecord(b"k", b"3")])
        assert acknowledger._producer is not first
        with pytest.raises(NotAcknowledgedError):
            await waiting
        assert in_flight.bytes == 0
        await acknowledger.stop()

    _run(test)


def test_a_message_that_kafka_refuses_fails_its_batch_alone() -> None:
    async def test() -> None:
        acknowledger = Acknowledger(
            "", "heap-events", InFlight(10_000_000), options={**_MOCK, "message.max.bytes": 1_000}
        )
        acknowledger.start()
        small, large = ProducerRecord(b"k", b"small"), ProducerRecord(b"k", b"x" * 5_000)
        results = await asyncio.gather(
            acknowledger.send([small, large]),
            acknowledger.send([large]),
            acknowledger.send([small]),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [NotAcknowledgedError, NotAcknowledgedError, type(None)]
        assert acknowledger._in_flight.bytes == 0
        await acknowledger.stop()

    _run(test)


def test_keys_stay_valid_while_the_database_is_away_and_change_when_it_is_back(capture_dsn: str) -> None:
    async def test() -> None:
        kept, revoked = ensure_key(capture_dsn), ensure_key(capture_dsn)
        keys = WriteKeys(capture_dsn, interval=0.1)
        await keys.start()
        assert await keys.find(kept)
        assert await keys.find("invented") is None
        keys.dsn = "host=127.0.0.1 port=1"
        assert keys._connection is not None
        await keys._connection.close()
        await asyncio.sleep(0.4)
        assert keys.age > 0.3
        assert await keys.find(revoked)
        with psycopg.connect(capture_dsn) as connection:
            revoke_write_key(connection, revoked)
        made = ensure_key(capture_dsn)
        assert await keys.find(made) is None
        keys.dsn = capture_dsn
        await asyncio.sleep(0.4)
        assert await keys.find(made)
        assert await keys.find(revoked) is None
        assert await keys.find(kept)
        await keys.stop()

    _run(test)


def test_without_any_keys_read_nothing_is_said_to_be_unknown() -> None:
    async def test() -> None:
        keys = WriteKeys("host=127.0.0.1 port=1", interval=0.1)
        await keys.start()
        assert not keys.loaded
        assert await keys.find("any") is None
        await keys.stop()

    _run(test)


def test_a_bucket_fills_at_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("heap_ingest.capture.rate.time.monotonic", lambda: now[0])
    bucket = Bucket(10.0, seconds=2)
    assert bucket.take(15) == 0
    assert bucket.take(10) == pytest.approx(0.5)
    now[0] += 0.5
    assert bucket.take(10) == 0
    now[0] += 1_000
    assert bucket.take(50) == 0, "more than the bucket holds may come when it is full"
    assert bucket.take(1) == pytest.approx(3.1)
