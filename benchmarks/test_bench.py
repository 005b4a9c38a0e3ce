"""`make bench`: every experiment on every system, in the order in which they disturb each other least."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import Bench
from benchmarks.experiments import (
    compare,
    compare_cold,
    compare_sizes,
    compare_strategies,
    insert,
    insert_without_heap,
    measure_first_calls,
    measure_first_reads,
    measure_floor,
    measure_new_definition,
)
from benchmarks.results import Results
from benchmarks.work import GRID, QUESTIONS, Funnel, Question, funnel

_TIERS = ("0.01 %", "0.1 %", "1 %", "10 %")


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.title)
def test_question(question: Question, bench: Bench, results: Results, benchmark: BenchmarkFixture) -> None:
    compare(question, bench.peers, bench.dataset, results, benchmark)


@pytest.mark.parametrize("tier", ["fixed", *_TIERS])
def test_sizes(tier: str, bench: Bench, results: Results) -> None:
    compare_sizes(funnel(tier, 3), bench.named("heap", "ClickHouse", "DuckDB"), bench.datasets, results)


@pytest.mark.parametrize("tier", _TIERS)
def test_floor(tier: str, bench: Bench, results: Results) -> None:
    measure_floor(funnel(tier, 3), bench.heap, bench.dataset, results)


@pytest.mark.skipif(find_spec("heap_compiler.strategies.vector") is None, reason="strategies cannot be chosen yet")
@pytest.mark.parametrize("question", GRID, ids=lambda question: question.title)
def test_strategies(question: Funnel, bench: Bench, results: Results) -> None:
    compare_strategies(question, bench.heap, bench.dataset, results)


def test_first_calls(bench: Bench, results: Results) -> None:
    measure_first_calls(bench.heap, bench.dataset, results)
    measure_first_reads(bench.heap, bench.dataset, results, _TIERS)


def test_new_definition(bench: Bench, results: Results) -> None:
    measure_new_definition(bench.heap, bench.datasets[1], results)


def test_inserts(bench: Bench, results: Results) -> None:
    insert(bench.heap, bench.datasets[0], results)
    insert_without_heap(bench.heap, bench.datasets[0], results)


@pytest.mark.parametrize("tier", _TIERS)
def test_cold(tier: str, bench: Bench, results: Results) -> None:
    peers = bench.named("heap", "heap on Citus", "ClickHouse", "DuckDB")
    compare_cold(funnel(tier, 3), peers, bench.dataset, results)
