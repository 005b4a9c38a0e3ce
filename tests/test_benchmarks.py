"""The benchmarks on a few thousand events: every system gives the same answers, and the report has its every part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import server_folder

for package in ("numpy", "pyarrow", "duckdb", "matplotlib", "chdb"):
    pytest.importorskip(package, reason="the peers are not installed: pip install --editable '.[clickhouse,bench]'")

from benchmarks import experiments, goals  # noqa: E402 - they need what was asked for above
from benchmarks.data import Dataset, ensure_dataset  # noqa: E402
from benchmarks.peers.clickhouse import ClickHouse  # noqa: E402
from benchmarks.peers.duckdb import DuckDB  # noqa: E402
from benchmarks.peers.heap import Heap  # noqa: E402
from benchmarks.peers.postgres import Postgres  # noqa: E402
from benchmarks.report import write_report  # noqa: E402
from benchmarks.results import Results  # noqa: E402
from benchmarks.work import QUESTIONS, Question  # noqa: E402

_TIERS = ("1 %", "10 %", "custom types", "css", "regex")
_LEFT_OUT = ("2-step", "8-step", "0.01 %", "3-step funnel, 0.1 %", "all events", "week, 10 %")
_ASKED = [question for question in QUESTIONS if not any(part in question.title for part in _LEFT_OUT)]


class _Running(Heap):
    """In a database of the tests."""

    def __init__(self, dsn: str, folder: Path) -> None:
        super().__init__(folder, tiers=_TIERS)
        self._dsn = dsn

    @property
    def dsn(self) -> str:
        return self._dsn

    def start(self) -> None:
        """It runs."""

    def stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with server_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return ensure_dataset(folder / "data", 5_000)


@pytest.fixture(scope="module")
def heap(postgres_cluster: object, folder: Path, dataset: Dataset) -> Iterator[Heap]:
    import psycopg

    from heap_extension.nodes import create_extension

    dsn = postgres_cluster.dsn  # type: ignore[attr-defined]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS benchmarks WITH (FORCE)")
        connection.execute("CREATE DATABASE benchmarks")
    dsn = dsn.removesuffix("/heap") + "/benchmarks"
    create_extension(dsn)
    heap = _Running(dsn, folder / "heap")
    heap.load(dataset)
    yield heap
    heap.stop()


def test_a_dataset_is_drawn_the_same_twice(dataset: Dataset, folder: Path) -> None:
    import pyarrow.parquet as pq

    again = ensure_dataset(folder / "again", dataset.events)
    assert [pq.read_table(file) for file in again.files] == [pq.read_table(file) for file in dataset.files]


def test_every_system_answers_alike_and_all_is_reported(heap: Heap, dataset: Dataset, folder: Path) -> None:
    files = [ClickHouse(folder / "ch", "typed"), ClickHouse(folder / "ch-json", "json"), DuckDB(folder / "duckdb")]
    peers = [heap, Postgres(heap), *files]
    results = Results(dataset.events, experiments.machine())
    try:
        for peer in peers:
            peer.start()
            peer.load(dataset)
            results.machine.append(f"{peer.name}: {peer.settings()}")
        for question in _ASKED:
            experiments.compare(question, peers, dataset, results)
        experiments.compare_sizes(_ASKED[0], peers, [dataset], results)
        experiments.measure_new_definition(heap, dataset, results)
        experiments.measure_first_calls(heap, dataset, results, rounds=1, tier="1 %")
        experiments.measure_first_reads(heap, dataset, results, ("1 %",), rounds=1, loads="10 %")
        experiments.insert(heap, dataset, results, counts=(0, 10), batches=(100,), seconds=0.1, with_selectors=10)
        experiments.measure_floor(_ASKED[0], heap, dataset, results)
    finally:
        for peer in reversed(peers):
            peer.stop()
    for question in _ASKED:
        assert set(results.seconds["warm"][question.title]) == {peer.name for peer in peers}
    text = write_report(results, folder / "report").read_text(encoding="utf-8")
    for part in (*(q.title for q in _ASKED), *(goal.work for goal in goals.GOALS), *(peer.name for peer in peers)):
        assert part in text
    assert (folder / "report" / "time-by-selectivity.svg").exists()


def test_an_answer_that_differs_is_no_result(heap: Heap, dataset: Dataset) -> None:
    class Wrong(_Running):
        name = "wrong"

        def ask(self, dataset: Dataset, question: Question, variant: str) -> object:
            asked = heap.ask(dataset, question, variant)
            return asked._replace(rows={*asked.rows, ("more", 1, 1)})

    wrong = object.__new__(Wrong)
    with pytest.raises(AssertionError, match="gives another answer"):
        experiments.compare(_ASKED[0], [heap, wrong], dataset, Results(dataset.events))


def test_goals_say_by_how_much_they_are_missed() -> None:
    results = Results(1)
    for name, seconds in (("heap", 0.002), ("ClickHouse", 0.060)):
        results.add("warm", "3-step funnel, 0.01 %", name, [seconds])
    found = {(v.goal.work, v.goal.text): v for v in goals.verdicts(results)}
    verdict = found["3-step funnel, steps of 0.01 %", "faster than ClickHouse"]
    assert (verdict.measured, verdict.met) == (pytest.approx(30), False)
    assert verdict.words == "missed by a factor of 2.00"
    assert found["3-step funnel, steps of 0.01 %", "faster than DuckDB"].words == "not measured"
