"""The OpenAPI document is true: schemathesis sends what it allows and what it does not, and compares the answers."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.ingest.capture_server import CaptureServer

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    allow_header_conformance,
    unsupported_method,
]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_are_as_described(mode: GenerationMode, capture: CaptureServer, write_key: str) -> None:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{capture.port}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/capture", "/track", "/identify", "/users", "/pixel.gif"}
    for operation in operations:
        if operation.body:
            assert (200 if mode is GenerationMode.POSITIVE else 400) in _statuses(operation, mode, write_key)
        elif operation.query or mode is GenerationMode.POSITIVE:
            assert _statuses(operation, mode, write_key)


def _statuses(operation: Any, mode: GenerationMode, write_key: str) -> set[int]:
    """What was answered to some requests, each as the document says."""
    statuses: set[int] = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=12, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        statuses.add(case.call_and_validate(headers={"X-Write-Key": write_key}, checks=_CHECKS).status_code)

    ask()
    return statuses


def test_what_the_document_allows_is_taken(capture: CaptureServer, write_key: str) -> None:
    """Its examples are the requests of the reference; here its schemas name every column and every route."""
    from heap_ingest.capture.parse import COLUMNS

    document = capture.get("/openapi.json").json
    assert set(document["components"]["schemas"]["Event"]["properties"]) >= COLUMNS
    for path, operations in document["paths"].items():
        for method in operations:
            assert capture.get(path, {"X-Write-Key": write_key}, method.upper()).status not in {404, 405}
