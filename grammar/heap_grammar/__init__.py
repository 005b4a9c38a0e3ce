"""The analysis language: its Lark grammar (`heap.lark`) and its reference (`reference.md`), as package data.

Text leaves here for `heap_compiler.parse`; nothing comes in.
"""

from importlib.resources import files

__all__ = ["grammar_text", "reference_text"]


def grammar_text() -> str:
    """The Lark grammar of the whole language, UTF-8."""
    return (files(__name__) / "heap.lark").read_text(encoding="utf-8")


def reference_text() -> str:
    """The language reference, Markdown; its examples are compiled and run by the tests."""
    return (files(__name__) / "reference.md").read_text(encoding="utf-8")
