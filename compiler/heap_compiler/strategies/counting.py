"""Lower trends, retention, lifecycle and stickiness, which count by bucket and group, to a kernel per shard.

The kernel reads events in the order of their index, where a user's next bucket is the next row's: nothing is hashed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from sqlglot import exp

from heap_compiler.bound import BoundEvent, Choice, GroupKey
from heap_compiler.groups import group_columns
from heap_compiler.ranges import TimeRange
from heap_compiler.sql import cast, column, named, select
from heap_compiler.strategies.kernels import SLICE, Reads, instants, kernel_column, kernel_query

__all__ = ["counted_by_kernels", "counting_kernel"]


def counting_kernel(
    analysis: Literal["trend", "lifecycle", "stickiness", "retention"],
    schema: str,
    events: Mapping[str, tuple[BoundEvent, TimeRange]],
    bounds: Sequence[datetime],
    *,
    choice: Choice,
    keys: Sequence[GroupKey] = (),
    users: exp.Query | None = None,
    follow: Mapping[str, object] | None = None,
) -> exp.Select:
    """Per shard, bucket and group the columns of heap._kernel_totals.

    Args:
        events: by the name of their scan, what is read; only the first have groups, and only their users count.
        bounds: where the buckets begin.
        keys: the groups.
        users: those who count; None for all.
        follow: of a retention, as in `heap_extension.kernels.counting`.
    """
    reads = Reads(schema, choice.shards)
    values = {name: key.value for name, key in zip(group_columns(keys), keys, strict=True) if not key.of_user}
    selections = []
    for alias, (event, read) in events.items():
        selections.append(reads.selection(event, read, alias, values=values))
        values = {}
    specification = {
        "schema": schema,
        "analysis": analysis,
        "events": selections,
        "bounds": instants(bounds),
        "follow": follow,
        **reads.population(keys, users),
        "slice": SLICE,
    }
    return kernel_query("heap._counting_kernel", specification, reads)


def counted_by_kernels(
    bucket: str, counts: Mapping[str, int], keys: Sequence[GroupKey], *, kernel: str = "kernel"
) -> exp.Select:
    """The totals of all shards: per bucket and group these counts.

    Args:
        bucket: the name of the bucket's number.
        counts: name -> which of the totals' counts it is, from 1.
        kernel: the name of the query that is a `counting_kernel`.
    """
    group_by = [named(kernel_column("bucket", kernel=kernel), bucket)]
    if keys:
        group_by.append(named(kernel_column("group_values", kernel=kernel), "group_values"))
    sums = [
        named(cast(exp.Sum(this=kernel_column("counts", index, kernel)), "bigint"), name)
        for name, index in counts.items()
    ]
    return select([*group_by, *sums], kernel, group_by=[column(key.alias_or_name) for key in group_by])
