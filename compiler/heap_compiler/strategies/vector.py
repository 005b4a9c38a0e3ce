"""Lower a sequence to a call of the kernel per shard: there numpy finds the chains in arrays read from the indexes.

The kernel gives one row per bucket and group, which the query adds up. What comes back are totals, as from the other
strategies: everything above them is the same.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from datetime import datetime

from sqlglot import exp

from heap_compiler.bound import EVERY_EVENT, GroupKey
from heap_compiler.groups import group_columns
from heap_compiler.passes.choose_strategy import PROBE_COST
from heap_compiler.scan import EVENT_ORDER, scans
from heap_compiler.sequence import Sequence
from heap_compiler.sql import cast, column, number, union_all
from heap_compiler.strategies.any_order import entangled_steps
from heap_compiler.strategies.kernels import SLICE, Reads, instants, kernel_query, microseconds
from heap_compiler.strategies.reading import unit_values

__all__ = ["kernel_totals", "sequence_specification"]


def kernel_totals(
    sequence: Sequence,
    *,
    now: datetime,
    keys: Items[GroupKey] = (),
    group_step: int = 1,
    users: exp.Query | None = None,
    buckets: Items[datetime] = (),
    effort: bool = False,
) -> list[tuple[str, exp.Query]]:
    """The named queries that end in `kernel`: per shard, bucket and group the columns of
    heap._funnel_totals.

    Args:
        sequence: one for which `choose_strategy` chose vectors.
        now: chains that began less than a window before may still go on.
        keys: what the chains are grouped by.
        group_step: number of the step whose event has the groups.
        users: the users that count; None for all.
        buckets: the first instants of the buckets of the entries; none without buckets.
        effort: the events between steps are counted, too: behind the durations of all steps, in millionths.
    """
    reads = Reads(sequence.schema, sequence.shards)
    specification = {
        **sequence_specification(sequence, reads, keys=keys, group_step=group_step, users=users),
        "effort": effort,
        "now": instants([now])[0],
        "buckets": instants(buckets),
    }
    if effort:
        reads.shown.append(lambda: _lookup(sequence))
    return [("kernel", kernel_query("heap._funnel_kernel", specification, reads))]


def _lookup(sequence: Sequence) -> exp.Query:
    """What an effort reads of each chain's user, here of one: `Shard.events_of_spans` does so."""
    read = sequence.steps[-1].read
    assert read is not None
    columns = {name: column(name) for name in EVENT_ORDER}
    of_user = [exp.EQ(this=column("user_id", "every"), expression=number(0))]
    return union_all(scans(sequence.schema, EVERY_EVENT, read, columns, alias="every", extra=of_user, ordered=True))


def sequence_specification(
    sequence: Sequence, reads: Reads, *, keys: Items[GroupKey], users: exp.Query | None, group_step: int = 1
) -> dict[str, object]:
    """What kernels need to find the chains: `SequenceAsked` of `heap_extension.kernels.sequences`.

    Args:
        sequence, keys, group_step, users: as for `kernel_totals`.
        reads: where what is read is noted.
    """
    values = {name: key.value for name, key in zip(group_columns(keys), keys, strict=True) if not key.of_user}
    shared = {name: cast(value, "text") for name, value in unit_values(sequence).items()}
    # The k-th step done in any order can be any of them.
    of_step = {
        index: shared | (values if sequence.any_order or index == group_step else {})
        for index in range(1, len(sequence.steps) + 1)
    }
    return {
        "schema": sequence.schema,
        "steps": [
            {
                "events": _selection(sequence, index, of_step[index], reads),
                "within": None if step.within is None else microseconds(step.within),
                "before": [] if index == 1 or sequence.any_order else [before - 1 for before in sequence.before(index)],
            }
            for index, step in enumerate(sequence.steps, start=1)
        ],
        "window": microseconds(sequence.window),
        "rules": None if sequence.is_linear else _rules(sequence, reads),
        **reads.population(keys, users),
        "group_step": group_step - 1,
        "slice": SLICE,
        "probe_cost": PROBE_COST,
    }


def _rules(sequence: Sequence, reads: Reads) -> dict[str, object]:
    """What decides besides order and time: `Rules` of `heap_extension.kernels.sequences`."""
    exclusions = []
    for index, exclusion in enumerate(sequence.exclusions, start=1):
        event, read = exclusion.event.event, exclusion.event.read
        assert read is not None
        selection = reads.selection(event, read, f"{sequence.alias}_without_{index}")
        exclusions.append({"events": selection, "first": exclusion.first - 1, "last": exclusion.last - 1})
    return {
        "unit": sequence.unit,
        "shared": len(unit_values(sequence)),
        "exclusions": exclusions,
        "any_order": entangled_steps(sequence.steps) if sequence.any_order else None,
        "entry_end": instants([sequence.entry.end])[0],
    }


def _selection(sequence: Sequence, index: int, values: dict[str, exp.Expr], reads: Reads) -> dict[str, object]:
    """The events of a step, with the values."""
    step = sequence.steps[index - 1]
    assert step.read is not None
    since = sequence.entry.start if sequence.first_time and index == 1 else None
    alias = f"{sequence.alias}_{index}"
    return reads.selection(step.event, step.read, alias, values=values, first_since=since)
