"""Read a step's events in the order of its index: all of them, or those of the users who took a rarer step."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Several

from sqlglot import exp

from heap_compiler.scan import EVENT_ORDER, scans
from heap_compiler.sequence import Sequence, SequenceStep
from heap_compiler.sql import column, elapsed, is_set, join, named, select, subquery, table_alias, timestamp, union_all

__all__ = ["step_events", "unit_values"]


def unit_values(sequence: Sequence) -> dict[str, exp.Expr]:
    """What the events of a chain share besides their user, over the events table: a session, the values held."""
    session: dict[str, exp.Expr] = {"session_id": column("session_id")} if sequence.unit == "sessions" else {}
    return session | {f"held_{index}": value.copy() for index, value in enumerate(sequence.held, start=1)}


def step_events(
    sequence: Sequence,
    step: SequenceStep,
    columns: Mapping[str, exp.Expr],
    *,
    alias: str,
    present: Several[str] = (),
) -> list[exp.Select]:
    """SELECTs of `EVENT_ORDER` and `columns`.

    Args:
        step: one of the sequence's steps or exclusions.
        columns: further output names -> values over the events table.
        alias: name of the events table in the query.
        present: those of `columns` that must not be null.
    """
    assert step.read is not None
    every = {**{name: column(name) for name in EVENT_ORDER}, **columns}
    if sequence.first_time and step is sequence.steps[0]:
        reads = scans(sequence.schema, step.event, step.read, every, alias=alias, ordered=True)
        return [_first_of_each_user(sequence, reads, every, present)]
    extra = [is_set(columns[name].copy()) for name in present]
    if step.driver is not None:
        return [_probe(sequence, step, sequence.steps[step.driver], every, alias, extra)]
    return scans(sequence.schema, step.event, step.read, every, alias=alias, extra=extra, ordered=True)


def _first_of_each_user(
    sequence: Sequence, reads: list[exp.Select], every: Mapping[str, exp.Expr], present: Several[str]
) -> exp.Select:
    names = [column(name) for name in every]
    first = select(
        names,
        subquery(union_all(reads), "ever"),
        distinct_on=[column("user_id")],
        order_by=[column(name) for name in EVENT_ORDER],
    )
    in_range = exp.GTE(this=column("time"), expression=timestamp(sequence.entry.start))
    order = [column(name) for name in EVENT_ORDER]
    where = [in_range, *(is_set(column(name)) for name in present)]
    return select([name.copy() for name in names], subquery(first, "first_ever"), where=where, order_by=order)


def _probe(
    sequence: Sequence,
    step: SequenceStep,
    driver: SequenceStep,
    every: Mapping[str, exp.Expr],
    alias: str,
    extra: Several[exp.Expr],
) -> exp.Select:
    """The step's events of those users only who took the driver's step, within reach of it."""
    assert step.read is not None
    assert driver.read is not None
    times = {"user_id": column("user_id"), "time": column("time")}
    taken = union_all(scans(sequence.schema, driver.event, driver.read, times, alias=f"{alias}_users"))
    users = select(
        [
            column("user_id"),
            named(exp.Min(this=column("time")), "first_time"),
            named(exp.Max(this=column("time")), "last_time"),
        ],
        subquery(taken, "taken"),
        group_by=[column("user_id")],
    )
    reach = exp.Add(this=column("last_time", "driver"), expression=elapsed(sequence.window))
    near: list[exp.Expr] = [
        exp.EQ(this=column("user_id", alias), expression=column("user_id", "driver")),
        exp.GTE(this=column("time", alias), expression=column("first_time", "driver")),
        exp.LTE(this=column("time", alias), expression=reach),
        *extra,
    ]
    probe = union_all(scans(sequence.schema, step.event, step.read, every, alias=alias, extra=near, ordered=True))
    lateral = exp.Lateral(this=exp.Subquery(this=probe), alias=table_alias("probe"))
    return select(
        [column(name, "probe") for name in every],
        subquery(users, "driver"),
        joins=[join(lateral, kind="CROSS")],
        order_by=[column(name, "probe") for name in EVENT_ORDER],
    )
