"""Installing, upgrading, and who may do what."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import psycopg
import pytest

import heap_extension.install
from heap_compiler.analyses import ANALYSES
from heap_extension.install import VERSION, extension_scripts, install
from heap_extension.nodes import create_extension
from heap_extension.postgres import find_postgres

_FUNNEL = "SELECT * FROM heap.funnel('\"A\" -> purchase since ''2026-01-01''')"
_NEXT = "999.1.0"


def _fill(connection: psycopg.Connection[Any]) -> None:
    connection.execute("SELECT heap.create_app('one')")
    connection.execute("SELECT heap.define_event('A', 'pageview where path = ''/a''')")
    connection.execute(
        "INSERT INTO one.events (user_id, time, event_id, type, path) SELECT u, now() - i * interval '1 minute', i,"
        " CASE WHEN i % 2 = 0 THEN 'pageview' ELSE 'purchase' END, '/a' FROM generate_series(1, 5) AS u,"
        " generate_series(1, u) AS i"
    )


@pytest.mark.alone
def test_an_upgrade_keeps_every_answer_and_runs_each_increment_once(
    fresh_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_extension(fresh_database)
    with psycopg.connect(fresh_database) as connection:
        _fill(connection)
        before = connection.execute(_FUNNEL).fetchall()
    assert before[0][3] == 4
    sources = tmp_path / "sql"
    shutil.copytree(Path(heap_extension.install.__file__).parent / "sql", sources)
    (sources / "incremental" / f"{_NEXT}-note.sql").write_text(
        "ALTER TABLE heap.app ADD COLUMN note text DEFAULT 'new';\n"
    )
    shutil.copy(Path(heap_extension.install.__file__).with_name("heap.control"), tmp_path)
    postgres = find_postgres()
    try:
        written = install(postgres, _NEXT, sources)
        assert postgres.extensions / f"heap--{VERSION}--{_NEXT}.sql" in written
        with psycopg.connect(fresh_database) as connection:
            assert connection.execute(_FUNNEL).fetchall() == before, "the old version answers beside the new files"
            connection.execute("ALTER EXTENSION heap UPDATE")
            assert connection.execute(_FUNNEL).fetchall() == before
            assert connection.execute("SELECT name, note FROM heap.app").fetchall() == [("one", "new")]
        with psycopg.connect(fresh_database) as connection:
            assert connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'heap'").fetchone() == (
                _NEXT,
            )
            assert connection.execute(_FUNNEL).fetchall() == before
            connection.execute("SELECT heap.define_event('B', '\"A\" or purchase')")
    finally:
        for path in postgres.extensions.glob(f"heap--*{_NEXT}*.sql"):
            path.unlink()
        shutil.rmtree(postgres.python_packages(_NEXT), ignore_errors=True)
        install(postgres)


def test_upgrade_scripts_hold_only_what_is_newer(tmp_path: Path) -> None:
    for folder in ("sql/incremental", "sql/idempotent"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "heap.control").write_text("default_version = '@version@'")
    for name in ("0.1.0-a", "0.2.0-b", "0.10.0-c"):
        (tmp_path / f"sql/incremental/{name}.sql").write_text(f"-- increment {name}\n")
    (tmp_path / "sql/idempotent/10-f.sql").write_text("-- function\n")
    scripts = extension_scripts("0.10.0", Path("/x"), tmp_path / "sql")
    assert set(scripts) == {"heap.control", "heap--0.10.0.sql", "heap--0.1.0--0.10.0.sql", "heap--0.2.0--0.10.0.sql"}
    assert "increment 0.2.0-b" not in scripts["heap--0.2.0--0.10.0.sql"]
    assert "increment 0.10.0-c" in scripts["heap--0.2.0--0.10.0.sql"]
    assert scripts["heap--0.10.0.sql"].index("0.2.0-b") < scripts["heap--0.10.0.sql"].index("0.10.0-c")


def test_an_analyst_sees_one_app_and_nothing_of_the_others(fresh_database: str) -> None:
    create_extension(fresh_database)
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        connection.execute("SET heap.app = 'one'")
        _fill(connection)
        connection.execute("SELECT heap.create_app('two')")
        connection.execute("DROP ROLE IF EXISTS ann")
        connection.execute("CREATE ROLE ann")
        connection.execute("SET ROLE ann")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(_FUNNEL)
        connection.execute("RESET ROLE")
        connection.execute("SELECT heap.grant_analyst('one', 'ann')")
        try:
            connection.execute("RESET heap.app")
            connection.execute("SET ROLE ann")
            assert connection.execute(_FUNNEL).fetchall()[0][3] == 4
            assert connection.execute("SELECT name FROM heap.app").fetchall() == [("one",)]
            assert connection.execute("SELECT app, name FROM heap.events").fetchall() == [("one", "A")]
            connection.execute("SET heap.app = 'two'")
            with pytest.raises(psycopg.Error, match="unknown app 'two'"):
                connection.execute("SELECT heap.query('trend count of any')")
            connection.execute("SET heap.app = 'one'")
            for analysis in ANALYSES:
                call = f"heap.{analysis.keyword}(text)"
                assert connection.execute("SELECT has_function_privilege(%s, 'EXECUTE')", (call,)).fetchone() == (True,)
            for forbidden in ("heap.define_event('B', 'x')", "heap.drop_app('one')", "heap.create_app('three')"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(f"SELECT {forbidden}")
        finally:
            connection.execute("RESET ROLE")
            connection.execute("DROP OWNED BY ann")
            connection.execute("DROP ROLE ann")


def test_a_dump_restores_definitions_and_answers(fresh_database: str) -> None:
    """The catalog tables are part of pg_dump's output, though the extension owns them."""
    import subprocess

    create_extension(fresh_database)
    with psycopg.connect(fresh_database) as connection:
        _fill(connection)
    pg_dump = find_postgres().bin / "pg_dump"
    dumped = subprocess.run([pg_dump, fresh_database], capture_output=True, text=True, check=True).stdout
    assert "pageview where path = '/a'" in dumped
    assert "COPY heap.app " in dumped
