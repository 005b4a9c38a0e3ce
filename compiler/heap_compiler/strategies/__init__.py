"""How a sequence of steps becomes SQL.

| strategy | for |
|---|---|
| `merge` | plain sequences: order and window; within it `choose_strategy` may have steps probed instead of read |
| `timeline` | every other rule of a chain in order |
| `any_order` | steps in any order |
| `vector` | any sequence, for analyses that need no more than totals of the chains |
"""

from __future__ import annotations

from sqlglot import exp

from heap_compiler.sequence import Sequence
from heap_compiler.strategies.any_order import any_order_chains
from heap_compiler.strategies.merge import merged_chains
from heap_compiler.strategies.timeline import timeline_chains
from heap_compiler.strategies.vector import kernel_totals, sequence_specification

__all__ = ["kernel_totals", "sequence_specification", "user_chains"]


def user_chains(sequence: Sequence, *, entries: bool = False, event_ids: bool = False) -> list[tuple[str, exp.Query]]:
    """The named queries that end in `chains`: one row per user, session or conversion that took the first step.

    `chains` has `user_id` and `time_1`, `time_2`, ...: when the steps of the chain happened, null for steps not reached
    or skipped. The chain that counts is the one that reaches furthest; among those the one that ends first, with the
    latest beginning it can have; among those, going back from its end, each step is taken if it can be and as late as
    it can be. Unless the sequence is plain, also `event_id_1`, `event_id_2`, ..., and `reached`, the step that the
    chain ends with; with conversions there are chains that end with each step, apart from each other.

    Args:
        sequence: after `SEQUENCE_PASSES`.
        entries: of a plain sequence also `entry`, the ordinal of the chain's first event among the user's events of
            step 1.
        event_ids: `event_id_1`, ... and `reached` of a plain sequence, too, instead of `entry`.
    """
    if sequence.any_order:
        return any_order_chains(sequence)
    if sequence.is_plain and not event_ids:
        return merged_chains(sequence, entries=entries)
    return timeline_chains(sequence)
