"""The passes, in the order they run: one module each, with one function of the same name.

| tuple | from and to | what its passes do |
|---|---|---|
| `PREDICATE_PASSES` | conjuncts of one predicate | shape the condition that index and query share |
| `SEQUENCE_PASSES` | a sequence of steps | decide ranges, frames and strategy before there is any SQL |
| `QUERY_PASSES` | a whole query | check what was built, where tables are distributed |
| `STORAGE_PASSES` | a whole query, the catalog | read what is stored now |
"""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp

from heap_compiler.catalog import Catalog
from heap_compiler.passes.choose_strategy import choose_strategy
from heap_compiler.passes.disjoint_steps import disjoint_steps
from heap_compiler.passes.gate_patterns import gate_patterns
from heap_compiler.passes.gate_predicates import gate_predicates
from heap_compiler.passes.order_conjuncts import order_conjuncts
from heap_compiler.passes.prune_time import prune_time
from heap_compiler.passes.read_merging_users import read_merging_users
from heap_compiler.passes.verify_pushdown import verify_pushdown
from heap_compiler.sequence import Sequence

__all__ = ["PREDICATE_PASSES", "QUERY_PASSES", "SEQUENCE_PASSES", "STORAGE_PASSES"]

PREDICATE_PASSES: tuple[Callable[[tuple[exp.Expr, ...]], tuple[exp.Expr, ...]], ...] = (
    gate_predicates,
    gate_patterns,
    order_conjuncts,
)

SEQUENCE_PASSES: tuple[Callable[[Sequence], Sequence], ...] = (
    prune_time,
    disjoint_steps,
    choose_strategy,
)

QUERY_PASSES: tuple[Callable[[exp.Query], exp.Query], ...] = (verify_pushdown,)

STORAGE_PASSES: tuple[Callable[[exp.Query, Catalog], exp.Query], ...] = (read_merging_users,)
