"""p-values and odds ratios computed in SQL equal those of Python's own arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlglot import exp

from heap_compiler.significance import COMPUTED_ONCE, odds_ratio, p_values
from heap_compiler.sql import column, generate, named, number, select, table_alias, with_ctes
from heap_extension.cluster import Cluster
from tests import significance as exact

Table = tuple[int, int, int, int]


def _ask(connection: psycopg.Connection[object], tables: Sequence[Table]) -> list[tuple[float, float | None]]:
    cells = ["converted", "not_converted", "others_converted", "others_not_converted"]
    rows = [exp.Tuple(expressions=[number(index), *map(number, cells)]) for index, cells in enumerate(tables)]
    values = exp.Values(expressions=rows, alias=table_alias("given", "id", *cells))
    columns = [column("id"), *(named(exp.cast(column(name), "bigint"), name) for name in cells)]
    query = select(
        [column("p_value"), named(odds_ratio(), "odds_ratio")],
        "tested",
        order_by=[column("id")],
    )
    found = connection.execute(
        generate(with_ctes(query, [("given", select(columns, values)), *p_values("given")], materialized=COMPUTED_ONCE))
    ).fetchall()  # type: ignore[arg-type]
    return [(p, None if odds is None else float(odds)) for p, odds in found]  # type: ignore[misc]


@pytest.fixture(scope="module")
def plain(postgres_cluster: Cluster) -> Iterator[psycopg.Connection[object]]:
    with psycopg.connect(postgres_cluster.dsn, autocommit=True) as connection:
        yield connection


_small, _large = st.integers(0, 12), st.integers(0, 3_000)
_tables = (
    st.tuples(_small, _small, _small, _small) | st.tuples(_large, _large, _small, _large) | st.tuples(*[_large] * 4)
)


@settings(max_examples=100)
@given(st.lists(_tables.filter(lambda cells: sum(cells[:2]) > 0), min_size=1, max_size=10))
@example([(30, 0, 0, 30), (1, 29, 0, 0), (0, 1, 0, 0), (3_000, 0, 0, 3_000), (4, 4, 4, 4), (10, 10, 10, 10)])
def test_p_values_and_odds_ratios(plain: psycopg.Connection[object], tables: list[Table]) -> None:
    for table, (found, odds) in zip(tables, _ask(plain, tables), strict=True):
        assert found == pytest.approx(exact.p_value(*table), rel=2e-7, abs=1e-300), table
        expected = exact.odds_ratio(*table)
        assert odds == (None if expected is None else pytest.approx(expected, abs=1e-8)), table


def test_large_tables_take_no_time_and_raise_no_error(plain: psycopg.Connection[object]) -> None:
    tables = [(10**9, 10**9, 10**9, 10**9), (10**9, 0, 0, 10**9), (30, 10**6, 10**5, 10**9), (0, 30, 1, 10**9)]
    found = [p for p, _ in _ask(plain, tables)]
    assert found[0] == pytest.approx(1, abs=1e-4)
    assert found[1] < 1e-300
    assert 0 < found[2] < 1e-5
    assert found[3] == pytest.approx(1)
