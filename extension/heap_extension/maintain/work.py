"""What is to be done, by comparing the wanted with the present: pure, in the order it is worth doing."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

__all__ = [
    "IndexRow",
    "Kind",
    "PackRow",
    "PartitionRow",
    "Placement",
    "Work",
    "index_work",
    "pack_work",
    "partition_work",
]

_REINDEX_BYTES = 1_000_000
"""A smaller index is read whole anyway: its bloat costs nothing."""


class Kind(IntEnum):
    """Kinds of work, the most urgent first."""

    build = 1
    rebuild = 2
    drop = 3
    vacuum = 4
    reindex = 5
    unpack = 6
    freeze = 7
    settle = 8
    pack = 9


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A row of heap.index_health."""

    app: str
    event: str | None
    partition: str
    node: str | None
    shard: int | None
    index_name: str
    state: str
    bytes: int | None
    bloat: float | None
    scans: int | None


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """A row of heap.partition_health."""

    app: str
    partition: str
    node: str | None
    shard: int | None
    visible: float
    changed: int


@dataclass(frozen=True, slots=True)
class PackRow:
    """A row of heap.pack_health."""

    app: str
    event: str | None
    partition: str | None
    node: str | None
    relation: str
    packs: str
    condition: str
    place: int | None
    state: str
    written: int | None
    goes_on: bool

    @property
    def placement(self) -> Placement:
        """The partition, or the shard of it on a node."""
        return self.app, self.relation, self.node


Placement = tuple[str, str, str | None]
"""App, table and node."""


@dataclass(frozen=True, slots=True)
class Work:
    """One command's worth of work on one node.

    Attributes:
        node: host:port of the node; None for the database itself.
        relation: the table: a partition, or a shard of it.
        index_name: the index; None for a VACUUM, and for packs.
        event: the definition an index or pack is made for; None for packs of any event.
        packs: the table of the pack.
        condition: what names the pack there.
        place: the number of its shard; None for one to drop.
        goes_on: the partition of the pack is still written to.
    """

    kind: Kind
    app: str
    node: str | None
    partition: str
    relation: str
    index_name: str | None = None
    event: str | None = None
    packs: str = ""
    condition: str = ""
    place: int | None = None
    goes_on: bool = False

    @property
    def needs_definition(self) -> bool:
        """Whether it cannot be done any more when the definition is dropped."""
        return self.event is not None and self.kind in (Kind.build, Kind.rebuild, Kind.pack)


class Wanted(NamedTuple):
    """What heap.event_definition says about the index of an event: its condition, and the columns it has besides."""

    predicate: str
    covering: Sequence[str]


def index_work(rows: Iterable[IndexRow], *, reindex_above: float) -> list[Work]:
    """Builds of what is missing or invalid, newest partition first; then what is nobody's, and what is bloated."""
    found = [work for row in rows for work in _of_index(row, reindex_above)]
    found.sort(key=lambda work: work.partition, reverse=True)  # events_default, which only late events fill, is first
    return sorted(found, key=lambda work: max(work.kind, Kind.rebuild))


def _of_index(row: IndexRow, reindex_above: float) -> Iterator[Work]:
    relation = row.partition if row.shard is None else f"{row.partition}_{row.shard}"
    kinds = {"missing": Kind.build, "invalid": Kind.rebuild, "orphan": Kind.drop}
    kind = kinds.get(row.state)
    if row.state == "valid" and (row.bloat or 0) > reindex_above and (row.bytes or 0) > _REINDEX_BYTES:
        kind = Kind.reindex
    if kind is not None:
        yield Work(kind, row.app, row.node, row.partition, relation, row.index_name, row.event)


def partition_work(rows: Iterable[PartitionRow], *, vacuum_below: float) -> list[Work]:
    """VACUUM of partitions that changed and whose index-only scans would visit the table; the newest first. Empty
    partitions are not among them: the planner would read them without an index, and sort."""
    return [
        Work(
            Kind.vacuum,
            row.app,
            row.node,
            row.partition,
            row.partition if row.shard is None else f"{row.partition}_{row.shard}",
        )
        for row in sorted(rows, key=lambda row: row.partition, reverse=True)
        if row.visible < vacuum_below and row.changed > 0
    ]


def pack_work(rows: Iterable[PackRow], settled: Container[Placement]) -> list[Work]:
    """Packs that are of no use any more go first, those of erased users among them; then VACUUM where rows came or went
    since the last one, and packs, the newest partition first. In a partition that goes on, new packs take the place of
    those that a VACUUM made stale.

    Args:
        settled: what changes no longer, or goes on and is due.
    """
    kinds = {"stale": Kind.unpack, "orphan": Kind.unpack, "waiting": Kind.freeze, "missing": Kind.pack}
    found: dict[Work, None] = {}  # one VACUUM for all packs of a partition
    for row in sorted(rows, key=lambda row: row.partition or "", reverse=True):
        kind = kinds.get(row.state)
        if row.goes_on:
            kind = Kind.pack if row.state in {"missing", "stale"} else None
            if row.placement in settled:
                found[Work(Kind.settle, row.app, row.node, row.partition or "", row.relation)] = None
                continue
        work = Work(kind or Kind.freeze, row.app, row.node, row.partition or "", row.relation)
        if kind in {Kind.pack, Kind.unpack}:
            pack = replace(work, event=row.event, packs=row.packs, condition=row.condition, place=row.place)
            pack = replace(pack, goes_on=row.goes_on)
            found[pack] = None
        elif kind is Kind.freeze and row.placement in settled:
            found[work] = None
    return sorted(found, key=lambda work: work.kind)
