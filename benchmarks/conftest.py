"""Options of the benchmarks, and the loaded systems they share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.data import Dataset, ensure_dataset
from benchmarks.experiments import machine, say
from benchmarks.peers.clickhouse import ClickHouse
from benchmarks.peers.duckdb import DuckDB
from benchmarks.peers.heap import Heap
from benchmarks.peers.peer import Peer
from benchmarks.peers.postgres import Postgres
from benchmarks.report import write_report
from benchmarks.results import Results
from heap_extension.cluster import default_data_directory
from heap_extension.install import install
from heap_extension.postgres import find_postgres

EVENTS = 10_000_000
"""What RESULTS.md and ANALYSES.md are about."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--events", type=int, default=EVENTS, help="how many events most is measured on")
    parser.addoption("--folder", type=Path, help="where data and systems are kept from run to run")
    parser.addoption(
        "--results", type=Path, help="where RESULTS.md goes; here for 10 million events, else into --folder"
    )


@dataclass
class Bench:
    """The systems, all loaded.

    Attributes:
        peers: all systems, heap first.
        datasets: a tenth of the events, half of them, and all.
    """

    heap: Heap
    peers: list[Peer]
    datasets: list[Dataset]

    @property
    def dataset(self) -> Dataset:
        return self.datasets[-1]

    def named(self, *names: str) -> list[Peer]:
        return [peer for peer in self.peers if peer.name in names]


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest) -> Path:
    """Clusters and files, where PostgreSQL's user can enter."""
    here = default_data_directory()
    chosen: Path = request.config.getoption("--folder") or here.with_name(f"{here.name}-bench")
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest, folder: Path) -> Iterator[Results]:
    """Written down at the end, also when something failed on the way."""
    events = request.config.getoption("--events")
    found = Results(events, machine())
    yield found
    if not found.seconds:
        return
    chosen = request.config.getoption("--results")
    default = Path(__file__).parent if events == EVENTS else folder
    found.save(folder / "results.json")
    path = write_report(found, chosen or default)
    print(path.read_text(encoding="utf-8"))
    say(f"written to {path}; data and systems are kept in {folder}")


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest, folder: Path, results: Results) -> Iterator[Bench]:
    postgres = find_postgres()
    install(postgres)
    events = request.config.getoption("--events")
    datasets = [ensure_dataset(folder / "data", size) for size in (events // 10, events // 2, events)]
    say("the data are there")
    heap = Heap(folder / "heap")
    citus = [Heap(folder / "citus", workers=2)] if postgres.has_extension("citus") else []
    plain = Postgres(heap)
    files: list[Peer] = [
        ClickHouse(folder / "clickhouse", "typed"),
        ClickHouse(folder / "clickhouse-json", "json"),
        DuckDB(folder / "duckdb"),
    ]
    peers: list[Peer] = [heap, *citus, *files, plain]
    for peer in peers:
        peer.start()
    several = {"heap", "ClickHouse", "DuckDB"}

    def load(some: list[Peer]) -> None:
        for peer in some:
            for dataset in datasets if peer.name in several else datasets[-1:]:
                say(f"{peer.name}: {dataset.events:,} events loaded in {peer.load(dataset):.0f} s")

    # Two at a time: each loads with about one core.
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(load, [[heap, plain], [*citus, *files]]))
    for peer in peers:
        results.machine.append(f"{peer.name}: {peer.settings()}")
        results.numbers[f"bytes per event, {peer.name}"] = peer.bytes_per_event(datasets[-1])
    results.numbers.update(heap.bytes_of_definitions(datasets[-1]))
    try:
        yield Bench(heap, peers, datasets)
    finally:
        for peer in reversed(peers):
            peer.stop()
