"""How a sequence of steps becomes SQL.

`merge` lowers a whole sequence; within it `choose_strategy` may have steps probed instead of read. Every strategy
gives the rows that `user_chains` describes, one per user who entered.
"""

from heap_compiler.strategies.merge import user_chains

__all__ = ["user_chains"]
