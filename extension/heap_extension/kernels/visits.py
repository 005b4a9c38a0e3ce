"""Paths over arrays: users' visits to nodes in, how many move from node to node out, step by step.

A path is a stretch of one array of visits, so that "the next node of the path" is the next place in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from heap_extension.kernels.events import Events, Int64, differs, in_order

__all__ = ["END", "Rule", "Transitions", "Visits", "transitions", "visits"]

END = -1
"""Stands for no node: where a path begins or ends."""


class Visits(NamedTuple):
    """Visits to nodes in the order (user, time, event id), each event once.

    Attributes:
        users: int64[n], rising.
        times: int64[n], microseconds.
        nodes: int64[n]: number of the node, from 0.
    """

    users: Int64
    times: Int64
    nodes: Int64


@dataclass(frozen=True, slots=True)
class Rule:
    """What a path is, and which part of it counts.

    Attributes:
        gap: microseconds between two visits of a path at most.
        start: where counting begins, or None for the beginning of the path.
        end: where it ends, or None for the end of the path. Without `start` steps are counted back from it.
        steps: how many are counted.
    """

    gap: int
    start: int | None
    end: int | None
    steps: int


class Transitions(NamedTuple):
    """What was counted per step, source and target.

    Attributes:
        steps: int64[c]: from 1, or from -1 back.
        sources, targets: int64[c]: nodes, or `END`.
        users: int64[c].
        paths: int64[c].
        durations: per row the microseconds from source to target, int64[...].
    """

    steps: Int64
    sources: Int64
    targets: Int64
    users: Int64
    paths: Int64
    durations: list[Int64]


def visits(events: Sequence[Events]) -> Visits:
    """The visits to the nodes of which these are the events: an event of several nodes visits the first of them."""
    order, users, times = in_order(events)
    nodes = np.repeat(np.arange(len(events), dtype=np.int64), [len(node.users) for node in events])
    tied = ~(differs(users) | differs(times))
    if tied.any():  # only there do event ids matter
        tied[:-1] |= tied[1:]
        at = np.flatnonzero(tied)
        ids = np.concatenate([node.ids for node in events])[order[at]]
        inside = np.lexsort((nodes[order[at]], ids, times[at], users[at]))
        order[at], ids = order[at][inside], ids[inside]
        kept = np.ones(len(order), np.bool_)
        kept[at] = differs(users[at]) | differs(times[at]) | differs(ids)
        order, users, times = order[kept], users[kept], times[kept]
    return Visits(users, times, nodes[order])


def transitions(visited: Visits, rule: Rule) -> Transitions:
    """The moves along all paths, counted."""
    users, times, nodes = visited
    begins = differs(users)
    begins[1:] |= np.diff(times) > rule.gap
    kept = np.flatnonzero(begins | differs(nodes))  # of a node that repeats itself the first visit stands
    users, times, nodes, begins = users[kept], times[kept], nodes[kept], begins[kept]
    firsts = np.flatnonzero(begins)
    ends = np.append(firsts, len(users))[1:]
    path = np.cumsum(begins) - 1
    first, last = _cut(path, nodes, firsts, ends - 1, rule)
    backward = rule.end is not None and rule.start is None
    if rule.start is not None and rule.end is not None:
        last = last - 1  # nothing leaves the end
    counts = np.clip(last - first + 1, 0, rule.steps)
    step = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    if backward:
        at = np.repeat(last, counts) - step
        source, target = np.where(at > np.repeat(firsts, counts), at - 1, END), at
    else:
        at = np.repeat(first, counts) + step
        source, target = at, np.where(at + 1 < np.repeat(ends, counts), at + 1, END)
    return _counted(users, times, nodes, (-1 - step if backward else 1 + step), source, target)


def _cut(path: Int64, nodes: Int64, firsts: Int64, lasts: Int64, rule: Rule) -> tuple[Int64, Int64]:
    """Where each path begins and ends to count; the end lies before the beginning where it does not count at all."""
    first, last = firsts, lasts
    if rule.start is not None:
        first = _first_of_each(path, np.flatnonzero(nodes == rule.start), len(firsts))
    if rule.end is not None:
        found = np.flatnonzero(nodes == rule.end)
        if rule.start is not None:
            found = found[found > first[path[found]]]
        last = _first_of_each(path, found, len(firsts))
    nowhere = (first == END) | (last == END)
    return np.where(nowhere, 1, first), np.where(nowhere, 0, last)


def _first_of_each(path: Int64, positions: Int64, count: int) -> Int64:
    """The first of the rising positions in each path, or `END`."""
    found = np.full(count, END, np.int64)
    kept = positions[differs(path[positions])]
    found[path[kept]] = kept
    return found


def _counted(users: Int64, times: Int64, nodes: Int64, step: Int64, source: Int64, target: Int64) -> Transitions:
    """The moves by step, source and target. They come in the order of users."""
    width = int(nodes.max(initial=END)) + 2
    here, there = (np.where(place == END, END, nodes[place]) + 1 for place in (source, target))
    codes, places = np.unique((np.abs(step) * width + here) * width + there, return_inverse=True)
    order = np.argsort(places, kind="stable")
    places, source, target = places[order], source[order], target[order]
    cells = differs(places)
    of_user = users[np.maximum(source, target)]
    size = len(codes)
    between = (source != END) & (target != END)
    durations = (times[target] - times[source])[between]
    pieces = np.split(durations, np.cumsum(np.bincount(places[between], minlength=size)))[:-1]
    sign = -1 if len(step) and step[0] < 0 else 1
    return Transitions(
        sign * (codes // (width * width)),
        codes // width % width - 1,
        codes % width - 1,
        np.bincount(places[cells | differs(of_user)], minlength=size),
        np.bincount(places, minlength=size),
        pieces,
    )
