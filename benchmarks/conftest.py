"""Options of the benchmarks."""

from __future__ import annotations

import pytest

from benchmarks.million_events import EVENTS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--events", type=int, default=EVENTS, help="how many events the analyses are measured on")
