"""`grammar/FEATURES.md` is true: every feature is there once, its examples compile and its tests exist."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from heap_compiler import compile_statement
from heap_compiler.analyses import ANALYSES
from tests.dictionary_catalog import DictionaryCatalog

_ROOT = Path(__file__).parents[1]
_PAGE = (_ROOT / "grammar" / "FEATURES.md").read_text(encoding="utf-8")
_ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in _PAGE.splitlines() if re.match(r"\| \d", line)
]
_HEADS = {"define", "drop", "segment", *(analysis.keyword for analysis in ANALYSES)}
_STATEMENTS = [
    text for row in _ROWS for text in re.findall(r"`([^`]+)`", row[3]) if " " in text and text.split()[0] in _HEADS
]  # fmt: skip


@cache
def _tests_of(path: str) -> set[str]:
    tree = ast.parse((_ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_feature_is_there_once() -> None:
    assert [int(row[0]) for row in _ROWS] == list(range(1, 122))
    assert all(len(row) == 5 for row in _ROWS)


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row[0])
def test_what_there_is_has_its_proof(row: list[str]) -> None:
    _, _, state, how, proof = row
    named = re.findall(r"`([^`]+)`", proof)
    assert state in {"yes", "partly", "no"}
    assert bool(named) == (state != "no")
    assert "`" in how or state != "yes"
    for test in named:
        path, _, name = test.partition("::")
        assert name.startswith("test_")
        assert name in _tests_of(path), test


@pytest.mark.parametrize("statement", _STATEMENTS)
def test_every_example_compiles(statement: str) -> None:
    assert compile_statement(statement, DictionaryCatalog())


def test_the_numbers_add_up() -> None:
    count = Counter(row[2] for row in _ROWS)
    assert f"{count['yes']} yes, {count['partly']} partly, {count['no']} no: {len(_ROWS)} features." in _PAGE
