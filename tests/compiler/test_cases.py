"""Snapshots: what each statement of `cases/*.md` compiles to, SQL or error. `--update-snapshots` rewrites them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from heap_compiler import CompiledDefinition, CompiledQuery, HeapError, compile_statement
from tests.dictionary_catalog import DictionaryCatalog

_CASES = sorted(Path(__file__).parent.glob("cases/*.md"))
_CASE = re.compile(
    r"^```heap\n(?P<statement>.*?)\n```\n(?:\n```(?P<kind>sql|error)\n(?P<expected>.*?)\n```\n)?", re.M | re.S
)


def _compiled(statement: str) -> tuple[str, str]:
    sizes = {"Viewed pricing": 10, "Purchase": 100_000} if "-- rare first step" in statement else {}
    try:
        compiled = compile_statement(statement, DictionaryCatalog(sizes=sizes))
    except HeapError as error:
        return "error", str(error)
    if isinstance(compiled, CompiledQuery):
        return "sql", compiled.sql
    assert isinstance(compiled, CompiledDefinition)
    return "sql", compiled.predicate


@pytest.mark.parametrize("path", _CASES, ids=lambda path: path.stem)
def test_cases_compile_to_their_snapshots(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text(encoding="utf-8")
    assert _CASE.search(text), f"{path.name} has no case"

    def rewritten(case: re.Match[str]) -> str:
        kind, result = _compiled(case["statement"])
        return f"```heap\n{case['statement']}\n```\n\n```{kind}\n{result}\n```\n"

    now = _CASE.sub(rewritten, text)
    if request.config.getoption("--update-snapshots"):
        path.write_text(now, encoding="utf-8")
    assert now == path.read_text(encoding="utf-8")
