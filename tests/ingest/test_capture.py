"""The capture server over HTTP: what it answers, and what is then in Kafka."""

from __future__ import annotations

import base64
import gzip
import json
import time
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from heap_extension.command import app as command_line
from heap_ingest.broker import Broker
from heap_ingest.capture.limits import Limits
from heap_ingest.messages import EventMessage, IdentifyMessage, Message, UserMessage
from tests.ingest.capture_server import APP, Answer, CaptureServer, ask, ensure_key, read_topic, topic_ends
from tests.waiting import until

_LIMITS = Limits()


class _Taken:
    """Answers, and the messages that are in Kafka since."""

    def __init__(self, server: CaptureServer, key: str) -> None:
        self.server = server
        self.headers = {"X-Write-Key": key}
        self._since = topic_ends(server.broker, server.topic)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        return self.server.post(path, body, self.headers | (headers or {}))

    def messages(self) -> list[Message]:
        return read_topic(self.server.broker, self.server.topic, self._since)

    def types(self) -> list[str]:
        return sorted(message.type for message in self.messages() if isinstance(message, EventMessage))


@pytest.fixture
def taken(capture: CaptureServer, write_key: str) -> _Taken:
    return _Taken(capture, write_key)


def _events(*types: str) -> dict[str, Any]:
    return {"events": [{"type": event_type, "user_id": 1} for event_type in types]}


def test_a_batch_that_was_answered_is_in_kafka(taken: _Taken) -> None:
    now = datetime.now(UTC)
    event = {"type": "click", "user_id": "ann", "event_id": 5, "time": "2026-01-02T03:04:05.678Z", "path": "/",
             "properties": {"plan": "pro"}}  # fmt: skip
    answer = taken.post("/capture", {"events": [event]}, {"User-Agent": "Mozilla/5.0"})
    assert (answer.status, answer.json) == (200, {"accepted": 1, "rejected": []})
    (message,) = taken.messages()
    assert isinstance(message, EventMessage)
    assert (message.app, message.event_id, message.columns, message.properties) == (
        APP,
        5,
        {"path": "/"},
        {"plan": "pro"},
    )
    assert message.time == datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    assert (message.ip, message.user_agent) == ("127.0.0.1", "Mozilla/5.0")
    assert timedelta(0) <= message.received_at - now < timedelta(seconds=30)


def test_many_users_events_are_a_message_per_partition(taken: _Taken) -> None:
    """Once the server has heard how many partitions there are, a second after the first message."""
    users = set(range(100, 140))
    batch = {"events": [{"type": "many", "user_id": user} for user in users]}

    def few() -> bool:
        before = topic_ends(taken.server.broker, taken.server.topic)
        assert taken.post("/capture", batch).json["accepted"] == len(users)
        after = topic_ends(taken.server.broker, taken.server.topic)
        return sum(after) - sum(before) == len(after)

    until(few)
    found = [message.user_id for message in taken.messages() if isinstance(message, EventMessage)]
    assert {found.count(user) for user in users} == {len(found) // len(users)}
    assert set(found) == users


def test_the_good_are_taken_and_the_bad_told(taken: _Taken) -> None:
    answer = taken.post(
        "/capture", {"events": [{"type": "a", "user_id": 1}, {"type": "b"}, {"type": "c", "user_id": 1}]}
    )
    assert answer.status == 200
    assert answer.json == {
        "accepted": 2,
        "rejected": [{"index": 1, "error": "user_id or anonymous_id: a number or a text is expected"}],
    }
    nothing = taken.post("/capture", {"events": [{"type": "b"}]})
    assert (nothing.status, nothing.json["error"]) == (400, "nothing of it can be taken")
    assert taken.post("/capture", {"events": []}).json == {"accepted": 0, "rejected": []}
    assert taken.types() == ["a", "c"]


def test_a_request_sent_again_makes_the_same_rows(taken: _Taken) -> None:
    event = {"type": "click", "user_id": 1, "time": "2026-01-02T03:04:05Z"}
    for _ in range(2):
        assert taken.post("/capture", {"events": [event, event]}).status == 200
    messages = taken.messages()
    keys = [(m.user_id, m.time, m.event_id) for m in messages if isinstance(m, EventMessage)]
    assert (len(keys), len(set(keys))) == (4, 2)


def test_the_other_ways_to_say_something(taken: _Taken) -> None:
    assert taken.post("/track", {"type": "purchase", "user_id": 1, "amount": 9.5}).json["accepted"] == 1
    assert taken.post("/identify", {"anonymous_id": "x", "identity": "ann"}).json["accepted"] == 1
    assert taken.post("/users", {"user_id": "ann", "properties": {"plan": "pro"}}).json["accepted"] == 1
    several = [{"user_id": number, "properties": {"n": number}} for number in range(3)]
    assert taken.post("/users", {"users": several}).json["accepted"] == 3
    kinds = [type(message) for message in taken.messages()]
    assert [kinds.count(kind) for kind in (EventMessage, IdentifyMessage, UserMessage)] == [1, 2, 4]


def test_a_beacon_is_text_with_its_key_inside(capture: CaptureServer, write_key: str, taken: _Taken) -> None:
    body = json.dumps({"write_key": write_key, **_events("unload")}).encode()
    answer = capture.post(
        "/capture", body, {"Content-Type": "text/plain;charset=UTF-8", "Origin": "https://shop.example"}
    )
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")
    assert taken.types() == ["unload"]


def test_the_write_key_in_every_place(capture: CaptureServer, write_key: str, taken: _Taken) -> None:
    basic = base64.b64encode(f"{write_key}:".encode()).decode()
    for headers in (
        {"Authorization": f"Bearer {write_key}"},
        {"Authorization": f"Basic {basic}"},
        {"X-Write-Key": write_key},
    ):
        assert capture.post("/capture", _events("h"), headers).status == 200
    assert capture.post(f"/capture?write_key={write_key}", _events("q")).status == 200
    assert taken.types() == ["h", "h", "h", "q"]


def test_without_a_valid_key_nothing_is_taken(capture: CaptureServer, taken: _Taken) -> None:
    for headers in (
        {},
        {"X-Write-Key": "invented"},
        {"Authorization": "Bearer invented"},
        {"Authorization": "Digest x"},
    ):
        answer = capture.post("/capture", _events("x"), headers)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert capture.post("/capture", {"write_key": 5, **_events("x")}).status == 401
    assert capture.get("/pixel.gif?type=x&user_id=1").status == 401
    assert taken.messages() == []


def test_keys_are_made_listed_and_revoked(capture: CaptureServer, capture_dsn: str) -> None:
    def heap(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(command_line, ["ingest", "keys", *arguments, "--dsn", capture_dsn])
        assert result.exit_code == code, result.output
        return result.output

    key = heap("make", "--app", APP, "--note", "the test's", "--no-address").strip()
    assert f"{key}\t{APP}\tvalid\tthe test's\n" in heap("list", "--app", APP)
    since = topic_ends(capture.broker, capture.topic)
    assert capture.post("/capture", _events("x"), {"X-Write-Key": key}).status == 200
    (message,) = read_topic(capture.broker, capture.topic, since)
    assert isinstance(message, EventMessage)
    assert message.ip is None
    heap("revoke", key)
    assert f"{key}\t{APP}\trevoked " in heap("list")
    deadline = time.monotonic() + 2  # keys are read every second
    while capture.post("/capture", _events("x"), {"X-Write-Key": key}).status != 401:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert heap("revoke", key, code=1) == "error: there is no such write key, or it is revoked\n"
    assert heap("make", "--app", "nobodys", code=1) == "error: unknown app 'nobodys'\n"


def test_browsers_of_any_origin_may_ask(capture: CaptureServer) -> None:
    headers = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST",
               "Access-Control-Request-Headers": "content-type,x-write-key"}  # fmt: skip
    answer = capture.get("/capture", headers, "OPTIONS")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-write-key" in answer.headers["access-control-allow-headers"]


def test_gzip_is_unpacked(taken: _Taken) -> None:
    packed = gzip.compress(json.dumps(_events("packed")).encode())
    assert taken.post("/capture", packed, {"Content-Encoding": "gzip"}).status == 200
    for body, error in (
        (b"not gzip", "the body is no gzip"),
        (packed[:-5], "the gzip body ends too early"),
        (packed + b"more", "bytes follow the end of the gzip body"),
    ):
        answer = taken.post("/capture", body, {"Content-Encoding": "gzip"})
        assert answer.status == 400
        assert answer.json["error"].startswith(error)
    assert taken.post("/capture", b"{}", {"Content-Encoding": "br"}).status == 415
    assert taken.types() == ["packed"]


def test_a_pixel_is_an_event(capture: CaptureServer, write_key: str, taken: _Taken) -> None:
    query = "type=open&user_id=0042&campaign=march&amount=2.5&count=3&title=Hello%20%C3%BC"
    answer = capture.get(f"/pixel.gif?write_key={write_key}&{query}")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/gif")
    assert answer.body.startswith(b"GIF89a")
    assert answer.headers["cache-control"] == "no-store"
    (message,) = taken.messages()
    assert isinstance(message, EventMessage)
    assert message.columns == {"title": "Hello ü"}
    assert message.properties == {"campaign": "march", "amount": 2.5, "count": 3}
    assert capture.get(f"/pixel.gif?write_key={write_key}&type=open").status == 400
    assert capture.get("/pixel.gif?" + "a=1&" * 501).status == 400


def test_a_wrong_clock_is_told_and_corrected(taken: _Taken) -> None:
    event = {"type": "late", "user_id": 1, "time": (datetime.now(UTC) - timedelta(hours=3)).isoformat()}
    sent_at = (datetime.now(UTC) - timedelta(hours=3)).isoformat()
    answer = taken.post("/capture", {"sent_at": sent_at, "events": [event]})
    assert answer.json == {"accepted": 1, "rejected": [], "clock_offset": 10_800.0}
    (message,) = taken.messages()
    assert message.time == datetime.fromisoformat(event["time"]) + timedelta(hours=3)


@pytest.mark.parametrize("how", ["declared", "chunked", "bomb"])
def test_a_large_body_is_refused_before_it_is_held(how: str, capture: CaptureServer, taken: _Taken) -> None:
    headers = dict(taken.headers)
    with capture.connection() as connection:
        if how == "declared":
            connection.putrequest("POST", "/capture")
            for name, value in (headers | {"Content-Length": str(_LIMITS.body_bytes + 1)}).items():
                connection.putheader(name, value)
            connection.endheaders()  # and not one byte of it
            answer = connection.getresponse()
            status, text = answer.status, answer.read()
        elif how == "chunked":
            pieces = (b" " * 65_536 for _ in range(_LIMITS.body_bytes // 65_536 + 1))
            connection.request("POST", "/capture", pieces, headers, encode_chunked=True)
            answer = connection.getresponse()
            status, text = answer.status, answer.read()
        else:
            bomb = zlib.compressobj(9, wbits=31)
            body = bomb.compress(b" " * (_LIMITS.unpacked_bytes + 1)) + bomb.flush()
            assert len(body) < _LIMITS.body_bytes / 100
            status, _, text = ask(connection, "POST", "/capture", body, headers | {"Content-Encoding": "gzip"})
    assert (status, text[:25]) == (413, b'{"error":"the body is lar')


def test_a_batch_has_so_many_events(taken: _Taken) -> None:
    assert taken.post("/capture", _events(*["x"] * (_LIMITS.events + 1))).status == 413
    assert taken.post("/capture", _events(*["x"] * _LIMITS.events)).json["accepted"] == _LIMITS.events
    assert len(taken.messages()) == _LIMITS.events


def test_a_key_may_send_so_many_events_a_second(capture: CaptureServer, capture_dsn: str) -> None:
    headers = {"X-Write-Key": ensure_key(capture_dsn, events_per_second=1)}
    assert capture.post("/capture", _events(*["x"] * 10), headers).status == 200
    answer = capture.post("/capture", _events("x"), headers)
    assert (answer.status, int(answer.headers["retry-after"])) == (429, 1)


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/capture", 405), ("PUT", "/track", 405), ("POST", "/pixel.gif", 405), ("GET", "/", 404), ("HEAD", "/healthz", 200),
])  # fmt: skip
def test_paths_and_methods(method: str, path: str, status: int, capture: CaptureServer) -> None:
    answer = capture.get(path, method=method)
    assert answer.status == status
    assert ("allow" in answer.headers) == (status == 405)


def test_other_media_types_are_refused(taken: _Taken) -> None:
    assert taken.post("/capture", b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}).status == 415


def test_metrics_count_what_was_done(capture: CaptureServer, taken: _Taken) -> None:
    names = ("heap_capture_accepted_total", "heap_capture_rejected_total", "heap_capture_redacted_total",
             "heap_capture_acknowledge_seconds_count")  # fmt: skip
    before = [capture.metric(name) for name in names]
    event = {"type": "x", "user_id": 1, "properties": {"password": "x"}}
    taken.post("/capture", {"events": [event, event, {}]})
    assert [capture.metric(name) - was for name, was in zip(names, before, strict=True)] == [2, 1, 2, 1]
    assert capture.metric("heap_capture_brokers_up") == 1
    assert capture.metric("heap_capture_in_flight_bytes") == 0


def test_several_processes_behind_a_proxy(capture_dsn: str, broker: Broker, write_key: str) -> None:
    """Any of them is asked for the metrics of all; the client's address is what our own proxy saw."""
    server = CaptureServer(capture_dsn, broker, "several", "--workers", "2", "--proxies", "1")
    server.start()
    try:
        for number in range(20):
            headers = {"X-Write-Key": write_key, "X-Forwarded-For": f"6.6.6.6, 10.0.0.{number}"}
            assert server.post("/track", {"type": "x", "user_id": 1}, headers).status == 200
        assert {server.metric("heap_capture_messages_total") for _ in range(5)} == {20}
        addresses = {message.ip for message in read_topic(broker, "several") if isinstance(message, EventMessage)}
        assert addresses == {f"10.0.0.{number}" for number in range(20)}
    finally:
        server.stop()


def test_a_setting_of_no_sense_is_an_error_that_names_it() -> None:
    arguments = ["--dsn", "postgresql:///x", "--bootstrap-servers", "localhost:1", "--port", "70000"]
    result = CliRunner().invoke(command_line, ["ingest", "serve", *arguments])
    assert result.exit_code == 1
    assert result.output.startswith("error: port: ")
