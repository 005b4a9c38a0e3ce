"""`heap maintain`: keeps every definition's index on every placement, from outside: CONCURRENTLY runs in no function.

A pass compares what definitions want (`heap.index_health`) with what the nodes have, makes a list of `work`, and does
it over connections to the `nodes` themselves. Nothing is remembered between passes but in the indexes: killed at any
moment and started again, it goes on from what is there.
"""

from heap_extension.maintain.maintainer import Maintainer

__all__ = ["Maintainer"]
