"""Compiles the analysis language to SQL for PostgreSQL and Citus. Pure: no I/O, no database.

`compile_statement` is the way in; `Catalog` is what it needs to know of an app; `HeapError` is what it raises.
"""

from heap_compiler.catalog import Catalog
from heap_compiler.compile import (
    Compiled,
    CompiledDefinition,
    CompiledDrop,
    CompiledDropSegment,
    CompiledQuery,
    CompiledSegment,
    compile_definition,
    compile_segment,
    compile_statement,
)
from heap_compiler.errors import HeapError

__all__ = [
    "Catalog",
    "Compiled",
    "CompiledDefinition",
    "CompiledDrop",
    "CompiledDropSegment",
    "CompiledQuery",
    "CompiledSegment",
    "HeapError",
    "compile_definition",
    "compile_segment",
    "compile_statement",
]
