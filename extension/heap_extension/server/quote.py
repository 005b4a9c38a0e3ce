"""Names and constants as they stand in the commands of this package, printed by sqlglot."""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

__all__ = ["identifier", "literal", "literal_array", "qualified"]


def identifier(name: str) -> str:
    """A name, always quoted."""
    return exp.to_identifier(name, quoted=True).sql(dialect="postgres")


def qualified(schema: str, name: str) -> str:
    """schema.name, both quoted."""
    return f"{identifier(schema)}.{identifier(name)}"


def literal(value: str) -> str:
    """A string constant; it needs standard_conforming_strings, which the functions that run commands pin."""
    return exp.Literal.string(value).sql(dialect="postgres")


def literal_array(values: Sequence[str]) -> str:
    """A text[] constant."""
    return f"ARRAY[{', '.join(literal(value) for value in values)}]::text[]"
