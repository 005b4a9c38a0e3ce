"""The paths of one shard: reads the events that are nodes, and counts the moves from node to node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple, TypedDict

from heap_extension.kernels.population import Population, PopulationAsked, coded
from heap_extension.kernels.shard import Database, Selection, Shard
from heap_extension.kernels.totals import Totals, added_up
from heap_extension.kernels.visits import END, Rule, Visits, transitions, visits

__all__ = ["paths"]


class _PathAsked(TypedDict):
    """As `Rule`, with the names of nodes."""

    gap: int
    start: str | None
    end: str | None
    steps: int


class _Specification(PopulationAsked):
    """What `heap_compiler.analyses.paths` asks for. Durations are microseconds.

    Attributes:
        schema: the app's.
        events: what is read.
        nodes: the names of the nodes, one per selection; None when nodes are the values of the events of a single one.
        path: what a path is, and which part of it counts.
        slice: how many events are in memory at once, about.
    """

    schema: str
    events: list[Selection]
    nodes: list[str] | None
    path: _PathAsked
    slice: int


class _Named(NamedTuple):
    """Visits with the names of their nodes."""

    visits: Visits
    names: list[str | None]


def paths(database: Database, relation: int, specification: str) -> list[Totals]:
    """The totals of a shard: a step is a bucket, source and target are a group, users and paths are the counts.

    Args:
        database: PL/Python's `plpy`.
        relation: oid of the table of the row of `<app>.shards` that stands for the shard.
        specification: JSON of `_Specification`.
    """
    asked: _Specification = json.loads(specification)
    slices = _visits(Shard(database, relation, asked["schema"]), asked)
    return added_up(totals for visited, names in slices for totals in _moves(asked["path"], visited, names))


def _moves(path: _PathAsked, visited: Visits, names: list[str | None]) -> Iterator[Totals]:
    """The moves in the paths of a slice of users."""
    numbers = {name: number for number, name in enumerate(names)}
    start, end = (None if path[at] is None else numbers.get(path[at], len(names)) for at in ("start", "end"))
    moves = transitions(visited, Rule(path["gap"], start, end, path["steps"]))
    for step, source, target, users, count, durations in zip(
        *(column.tolist() for column in moves[:-1]), moves.durations, strict=True
    ):
        shown = [None if node == END else names[node] for node in (source, target)]
        yield Totals(step, shown, [users, count], durations.astype("<i8").tobytes())


def _visits(shard: Shard, asked: _Specification) -> Iterator[_Named]:
    """The visits, by slices of users that fit into memory."""
    population = Population(shard, asked)
    shard.expect(asked["events"])
    for users in shard.slices_of(asked["events"], asked["slice"]):
        events = [population.members(shard.events(selection, users)) for selection in asked["events"]]
        if asked["nodes"] is not None:
            yield _Named(visits(events), list(asked["nodes"]))
        else:
            (only,) = events
            nodes = coded(only.values[0])
            yield _Named(Visits(only.users, only.times, nodes.codes), [name for (name,) in nodes.labels])
