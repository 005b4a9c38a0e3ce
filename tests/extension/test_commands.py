"""The command line: cluster, analyses, doctor, demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from heap_extension.command import app as command_line
from heap_extension.nodes import asks_for_huge_pages
from tests.extension.shop_app import ensure_shop


def _heap(*arguments: str | Path, stdin: str | None = None, exit_code: int = 0) -> str:
    result = CliRunner().invoke(command_line, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == exit_code, result.output
    return result.output


def test_a_cluster_goes_up_down_and_up_again_with_its_data(
    installed: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="heap-up-"))
    folder.chmod(0o755)
    data = folder / "cluster"
    try:
        first = _heap("up", "--data", data).strip()
        assert first.startswith("postgresql://heap:")
        assert "\n" not in first
        with psycopg.connect(first) as connection:
            connection.execute("SELECT heap.create_app('kept')")
            assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
        assert _heap("up", "--data", data).strip() == first
        _heap("down", "--data", data)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(first)
        assert _heap("up", "--data", data).strip() == first
        with psycopg.connect(first) as connection:
            assert connection.execute("SELECT name FROM heap.app").fetchall() == [("kept",)]
    finally:
        _heap("down", "--data", data)
        import shutil

        shutil.rmtree(folder)


def test_a_folder_with_other_things_in_it_is_left_alone(installed: None, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("mine")
    assert "is not empty" in _heap("up", "--data", tmp_path, exit_code=1)
    assert (tmp_path / "data" / "precious").read_text() == "mine"


def test_query_prints_tables_csv_and_json_and_reads_stdin(dsn: str) -> None:
    ensure_shop(dsn)
    statement = "trend count of \"Purchase\" as n, users of \"Purchase\" from '2026-01-01' to '2026-12-31'"
    options = ["--dsn", dsn, "--app", "shop"]
    assert "series" in _heap("query", *options, statement)
    header, first, _ = _heap("query", *options, "--format", "csv", "-", stdin=statement).splitlines()
    assert header == "bucket,series,group_key,value"
    row = json.loads(_heap("query", *options, "--format", "json", statement).splitlines()[0])
    assert row["series"] == "n"
    assert first == f",n,,{row['value']}"
    assert row["value"] > 100


def test_sql_and_explain_print_text(dsn: str) -> None:
    ensure_shop(dsn)
    options = ["--dsn", dsn, "--app", "shop", 'funnel "Viewed pricing" -> "Purchase"']
    assert "AS steps(step, event, users, " in _heap("sql", *options)
    assert 'index of "Viewed pricing"' in _heap("explain", *options)


def test_errors_are_one_message_with_the_place(dsn: str) -> None:
    ensure_shop(dsn)
    shown = _heap("query", "--dsn", dsn, "--app", "shop", 'funnel "Viewed pricng" -> "Purchase"', exit_code=1)
    assert shown == (
        'error at line 1, column 8: unknown event "Viewed pricng"\n'
        '  funnel "Viewed pricng" -> "Purchase"\n'
        '         ^^^^^^^^^^^^^^^ did you mean "Viewed pricing"?\n'
    )
    assert "did you mean 'shop'?" in _heap("query", "--dsn", dsn, "--app", "shp", "trend count of any", exit_code=1)


def test_no_database_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HEAP_DSN", raising=False)
    monkeypatch.chdir(tmp_path)
    assert "heap up" in _heap("query", "trend count of any", exit_code=1)


def test_doctor_finds_a_good_database_well_and_says_what_another_lacks(dsn: str, fresh_database: str) -> None:
    well = _heap("doctor", "--dsn", dsn)
    assert "missing" not in well
    assert "ok      pageinspect" in well
    assert "ok      server processes ask for huge pages" in well
    shown = _heap("doctor", "--dsn", fresh_database, exit_code=1)
    assert "mend: heap install --dsn ..." in shown


def test_the_demo_runs_on_any_cluster(fresh_database: str) -> None:
    shown = _heap("demo", "--dsn", fresh_database, "--users", "400")
    for part in ('define "Viewed pricing"', "plan: step 1 (Viewed pricing): index only scan", "group_key", "revenue"):
        assert part in shown


def test_server_processes_of_a_cluster_ask_for_huge_pages_and_say_so(
    connection: psycopg.Connection[Any], dsn: str
) -> None:
    connection.execute(
        "DO LANGUAGE plpython3u $$ import os; plpy.execute(plpy.prepare("
        "\"SELECT set_config('test.tunables', $1, true)\", ['text']), [os.environ.get('GLIBC_TUNABLES')]) $$"
    )
    assert connection.execute("SELECT current_setting('test.tunables')").fetchone() == ("glibc.malloc.hugetlb=1",)
    connection.execute(
        "DO LANGUAGE plpython3u $$ import os; os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=0' $$"
    )
    assert connection.execute("SELECT heap._asks_for_huge_pages()").fetchone() == (False,)
    with psycopg.connect(dsn) as other:
        assert set(asks_for_huge_pages(other).values()) == {True}
