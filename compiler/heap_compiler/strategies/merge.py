"""Lower a sequence by merging the index scans of its steps into one timeline per user.

Each step is an index-only scan of its definition's partial index, already in the order (user_id, time, event_id), so
that PostgreSQL merges them without a sort. Over the merged rows one window per step carries along, for every event,
the latest chain of earlier steps that can end there: the latest entry is the one most likely to be inside the
conversion window, and, since everything only moves forward in time, `max` over the rows before finds it. A GROUP BY
per user then keeps the first event that completes each step. What is O(n log n) elsewhere is linear here.

A step with a driver is probed: an index lookup per user who took the driver's step, instead of a scan of every event.
"""

from __future__ import annotations

from datetime import timedelta

from sqlglot import exp

from heap_compiler.sequence import Sequence
from heap_compiler.sql import (
    all_of,
    column,
    copied,
    elapsed,
    function,
    identifier,
    is_set,
    named,
    number,
    select,
    union_all,
)
from heap_compiler.strategies.reading import step_events

__all__ = ["merged_chains"]


def merged_chains(sequence: Sequence, *, entries: bool = False) -> list[tuple[str, exp.Query]]:
    """The named queries that end in `chains`, for a plain sequence; see `strategies.user_chains`.

    Args:
        sequence: after `SEQUENCE_PASSES`.
        entries: also give `entry`, the ordinal of the chain's first event among the user's events of step 1.
    """
    ctes: list[tuple[str, exp.Query]] = [("matched", _matched(sequence))]
    for index in range(2, len(sequence.steps) + 1):
        ctes.append((f"reached_{index}", _reached(sequence, index, ctes[-1][0], entries=entries)))
    ctes.append(("completed", _completed(sequence, ctes[-1][0], entries=entries)))
    ctes.append(("chains", _furthest(len(sequence.steps), entries=entries)))
    return ctes


def _matched(sequence: Sequence) -> exp.Query:
    """All steps' events in one timeline, each row labelled with its step."""
    parts: list[exp.Select] = []
    for index, step in enumerate(sequence.steps, start=1):
        parts += step_events(sequence, step, {"step": number(index)}, alias=f"{sequence.alias}_{index}")
    return union_all(parts)


def _reached(sequence: Sequence, index: int, source: str, *, entries: bool) -> exp.Select:
    """For every event of step `index`, the chain of earlier steps that enters latest: `time_k_j` for j < k."""
    before = index - 1
    carried: dict[str, exp.Expr] = {f"time_{index}_{before}": exp.Max(this=column("time"))}
    for step in range(before - 1, 0, -1):
        carried[f"time_{index}_{step}"] = exp.Max(this=column(f"time_{before}_{step}"))
    if entries:
        entry = exp.Count(this=exp.Star()) if before == 1 else exp.Max(this=column(f"entry_{before}"))
        carried[f"entry_{index}"] = entry
    is_before = exp.EQ(this=column("step"), expression=number(before))
    columns = [
        named(
            exp.Window(this=_filter(aggregate, is_before), alias=identifier("earlier"), over="OVER"),
            name,
        )
        for name, aggregate in carried.items()
    ]
    window = _earlier(exclude_peers=not sequence.steps[index - 1].apart)
    return select([exp.Star(), *columns], source, windows=[window])


def _earlier(*, exclude_peers: bool) -> exp.Window:
    """The rows of the user before the current one. Where an event may match both steps it stands there twice, as
    peers: a frame of groups that ends before the current one keeps it from following itself."""
    end = {"end": number(1), "end_side": "PRECEDING"} if exclude_peers else {"end": "CURRENT ROW"}
    spec = exp.WindowSpec(kind="GROUPS" if exclude_peers else "ROWS", start="UNBOUNDED", start_side="PRECEDING", **end)
    return exp.Window(
        this=identifier("earlier"),
        partition_by=[column("user_id")],
        order=exp.Order(expressions=[column("time"), column("event_id")]),
        spec=spec,
    )


def _completed(sequence: Sequence, source: str, *, entries: bool) -> exp.Select:
    """Per user, the first event that completes each step inside the window, and the chain that leads to it. Chains
    that end later began no earlier, so the least of every column belongs to that first one."""
    columns: list[exp.Expr] = [column("user_id")]
    for index in range(1, len(sequence.steps) + 1):
        completes = _completes(index, sequence.window)
        chain = {f"time_{index}_{step}": column(f"time_{index}_{step}") for step in range(1, index)}
        chain[f"time_{index}_{index}"] = column("time")
        if entries and index > 1:
            chain[f"entry_{index}"] = column(f"entry_{index}")
        columns += [named(_filter(exp.Min(this=value), completes), name) for name, value in chain.items()]
    entered = exp.EQ(this=column("step"), expression=number(1))
    return select(columns, source, group_by=[column("user_id")], having=function("bool_or", entered))


def _furthest(steps: int, *, entries: bool) -> exp.Select:
    """Of each user's completions the one of the furthest step."""
    columns: list[exp.Expr] = [column("user_id")]
    for index in range(1, steps + 1):
        *further, nearest = [
            exp.If(this=is_set(column(f"time_{reached}_{reached}")), true=column(f"time_{reached}_{index}"))
            for reached in range(steps, index - 1, -1)
        ]
        time = exp.Case(ifs=further, default=nearest.args["true"]) if further else nearest.args["true"]
        columns.append(named(time, f"time_{index}"))
    if entries:  # those who only took the first step did so first at 1
        ordinals = [column(f"entry_{reached}") for reached in range(steps, 1, -1)]
        columns.append(named(exp.Coalesce(this=ordinals[0], expressions=[*ordinals[1:], number(1)]), "entry"))
    return select(columns, "completed")


def _completes(index: int, window: timedelta) -> exp.Expr:
    is_step = exp.EQ(this=column("step"), expression=number(index))
    if index == 1:
        return is_step
    reach = exp.Add(this=column(f"time_{index}_1"), expression=elapsed(window))
    return all_of([is_step, exp.LTE(this=column("time"), expression=reach)])


def _filter(aggregate: exp.Expr, condition: exp.Expr) -> exp.Filter:
    return exp.Filter(this=aggregate, expression=exp.Where(this=copied(condition)))
