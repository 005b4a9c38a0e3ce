"""`python -m heap_grammar`: writes the views of the grammar beside this package. A test says when they are due."""

from __future__ import annotations

from pathlib import Path

from heap_grammar.ebnf import ebnf
from heap_grammar.railroad_page import railroad_page
from heap_grammar.textmate import textmate

__all__ = ["VIEWS", "main"]

VIEWS = {"GRAMMAR.md": ebnf, "railroad.html": railroad_page, "heap.tmLanguage.json": textmate}
"""File -> what makes it."""


def main(folder: Path = Path(__file__).parents[1]) -> None:
    """Writes all views into the folder."""
    for name, view in VIEWS.items():
        (folder / name).write_text(view(), encoding="utf-8")


if __name__ == "__main__":
    main()
