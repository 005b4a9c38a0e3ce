"""The documents are tested: every example of the reference runs, every object and command has its place in them."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import heap_compiler
import heap_extension
import heap_grammar
import heap_ingest
from heap_compiler.analyses import ANALYSES
from heap_compiler.parse import parser
from heap_compiler.schema import EVENT_COLUMNS
from heap_extension.command import app as command_line
from heap_ingest.command import app as ingest_commands
from tests.extension.shop_app import ensure_shop, settle

_REFERENCE = heap_grammar.reference_text()
_EXAMPLES = re.findall(r"```heap\n(.*?)\n```", _REFERENCE, re.S)


def test_every_example_of_the_reference_runs(dsn: str, connection: Any) -> None:
    ensure_shop(dsn)
    settle(connection)
    assert len(_EXAMPLES) > 10
    for example in _EXAMPLES:
        assert connection.execute("SELECT heap.query(%s)", (example,)).fetchall(), example


def test_the_examples_in_docstrings_are_true() -> None:
    modules = [
        importlib.import_module(info.name)
        for package in (heap_compiler, heap_extension, heap_ingest)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    results = [doctest.testmod(module) for module in modules]
    assert sum(result.attempted for result in results) > 5
    assert sum(result.failed for result in results) == 0


def test_every_analysis_has_its_rule_its_section_its_function_and_its_cases(connection: Any) -> None:
    functions = {name for (name,) in connection.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'heap'::regnamespace")}  # fmt: skip
    rules = {rule.origin.name for rule in parser().rules}
    for analysis in ANALYSES:
        assert analysis.keyword in rules
        assert analysis.keyword in functions
        assert f"\n## {analysis.keyword}\n" in _REFERENCE
        for column in analysis.row:
            assert f"{column.name} {column.type}" in _REFERENCE.replace("`", "").replace("\n", " ")


def test_functions_return_the_columns_their_analyses_say(connection: Any) -> None:
    for analysis in ANALYSES:
        row = connection.execute(
            "SELECT pg_get_function_result(p.oid) FROM pg_proc AS p WHERE pronamespace = 'heap'::regnamespace"
            " AND proname = %s LIMIT 1", (analysis.keyword,)
        ).fetchone()  # fmt: skip
        types = {
            "int": "integer",
            "timestamptz": "timestamp with time zone",
            "timestamptz[]": "timestamp with time zone[]",
        }
        columns = ", ".join(f"{column.name} {types.get(column.type, column.type)}" for column in analysis.row)
        assert row == (f"TABLE({columns})",)


def test_every_public_function_is_in_the_reference(connection: Any) -> None:
    for (name,) in connection.execute(
        "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'heap'::regnamespace AND proname !~ '^_'"
    ):
        assert f"heap.{name}(" in _REFERENCE, name


def test_every_setting_is_in_the_reference() -> None:
    server = Path(heap_extension.__file__).parent / "server"
    settings = {
        name for file in server.glob("*.py") for name in re.findall(r"current_setting\('(heap\.\w+)'", file.read_text())
    }
    assert len(settings) >= 2
    assert [name for name in settings if name not in _REFERENCE] == []


def test_every_column_is_in_the_reference() -> None:
    assert [name for name in EVENT_COLUMNS if f"`{name}`" not in _REFERENCE] == []


def test_every_object_of_the_extension_has_a_comment(connection: Any) -> None:
    bare = connection.execute(
        "SELECT pg_describe_object(classid, objid, 0) FROM pg_depend"
        " WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'"
        " AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'heap')"
        " AND obj_description(objid, classid::regclass::name) IS NULL"
        " AND classid IN ('pg_proc'::regclass, 'pg_class'::regclass)"
        " UNION ALL SELECT attrelid::regclass || '.' || attname FROM pg_attribute WHERE false"
    ).fetchall()
    assert bare == []


@pytest.mark.parametrize("command", [info.name for info in command_line.registered_commands])
def test_every_command_says_what_it_does_and_is_in_the_readme(command: str) -> None:
    shown = CliRunner().invoke(command_line, [command, "--help"])
    assert shown.exit_code == 0
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert f"heap {command}" in readme or f"make {command}" in readme


def test_every_command_of_ingest_says_what_it_does_and_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    commands = [*ingest_commands.registered_commands, *ingest_commands.registered_groups]
    names = [info.name or info.callback.__name__ for info in commands if info.name or info.callback]
    assert {"broker", "sink", "replay", "status", "dead-letters"} <= set(names)
    for name in names:
        assert CliRunner().invoke(command_line, ["ingest", name, "--help"]).exit_code == 0
        assert f"heap ingest {name}" in readme, name
