"""`ingest/API.md` is true: its examples are answered as it says, and it leaves out no path, limit or status."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from heap_ingest.capture.limits import Limits
from tests.ingest.capture_server import CaptureServer

_PAGE = (Path(__file__).parents[2] / "ingest" / "API.md").read_text(encoding="utf-8")
_EXAMPLES = re.findall(r"```http\n(GET|POST) (\S+)\n(.*?)\n\n?(\d+)\n(.*?)```", _PAGE, re.S)


@pytest.mark.parametrize("example", _EXAMPLES, ids=lambda example: example[1])
def test_every_example_is_answered_as_it_says(example: tuple[str, ...], capture: CaptureServer, write_key: str) -> None:
    method, path, body, status, expected = example
    headers = {"Authorization": f"Bearer {write_key}"}
    answer = capture.post(path, body.encode(), headers) if method == "POST" else capture.get(path, headers)
    assert answer.status == int(status)
    if expected.strip():
        wanted = json.loads(expected)
        assert answer.json == {name: answer.json[name] if value == "*" else value for name, value in wanted.items()}


def test_it_has_the_examples() -> None:
    assert len(_EXAMPLES) == _PAGE.count("```http") == 6


def test_every_path_and_status_is_in_it(capture: CaptureServer) -> None:
    for path, operations in capture.get("/openapi.json").json["paths"].items():
        for method, operation in operations.items():
            assert f"| `{method.upper()} {path}` |" in _PAGE
            assert [
                status for status in operation["responses"] if not re.search(rf"\| .*\b{status}\b.* \|", _PAGE)
            ] == []


def test_every_limit_of_a_request_is_in_it() -> None:
    elsewhere = {"in_flight_bytes", "body_seconds", "clock_tolerance", "ahead"}
    for name, value in dataclasses.asdict(Limits()).items():
        assert name in elsewhere or re.search(rf"\| {value:,}( \w+)? \|", _PAGE), name
    assert Limits().body_seconds == 10
    assert Limits().clock_tolerance == 5 * 60
    assert Limits().ahead == 24 * 60 * 60
