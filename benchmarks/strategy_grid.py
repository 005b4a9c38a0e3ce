"""The strategies against each other over a grid of step sizes: `python -m benchmarks.strategy_grid [events]`.

Every funnel of two and three steps out of four sizes runs with each strategy in turn, a few rounds. The table has the
medians of the processor time of the connection's process, which other processes on the machine disturb less than time
on the clock, and what `auto` takes over the best of the others. The answers must be the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from benchmarks.million_events import APP, EVENTS, NOW, RANGE, ensure_events

_STEPS = {
    "19 %": ("Clicked", "click"),
    "1 %": ("Purchase", "purchase"),
    "0.1 %": ("Signed up", "submit where path = '/signup'"),
    "0.005 %": ("Bought little", "purchase where amount < 0.5"),
}
_STRATEGIES = ("auto", "vector", "merge", "probe")
_ROUNDS = 5


def _processor_time(connection: psycopg.Connection[Any]) -> float:
    """Milliseconds that the connection's process has computed for."""
    schedule = Path(f"/proc/{connection.info.backend_pid}/schedstat").read_text()
    return int(schedule.split()[0]) / 1e6


def _times(connection: psycopg.Connection[Any], statement: str) -> dict[str, float]:
    """Median milliseconds per strategy.

    Raises:
        AssertionError: two strategies count differently.
    """
    taken: dict[str, list[float]] = {strategy: [] for strategy in _STRATEGIES}
    answers = set()
    for _ in range(_ROUNDS):
        for strategy in _STRATEGIES:
            connection.execute("SELECT set_config('heap.strategy', %s, false)", (strategy,))
            before = _processor_time(connection)
            found = connection.execute("SELECT step, users, immature FROM heap.funnel(%s)", (statement,)).fetchall()
            taken[strategy].append(_processor_time(connection) - before)
            answers.add(tuple(found))
    assert len(answers) == 1, statement
    return {strategy: median(times) for strategy, times in taken.items()}


def _funnels() -> Iterator[tuple[str, str]]:
    """The sizes of the steps, and the funnel."""
    for count in (2, 3):
        for sizes in product(_STEPS, repeat=count):
            steps = " -> ".join(f'"{_STEPS[size][0]}"' for size in sizes)
            yield " -> ".join(sizes), f"funnel {steps} within 7 days {RANGE}"


def main(count: int) -> None:
    """Prints the table."""
    cluster = ensure_events(count)
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        connection.execute("SELECT set_config('heap.app', %s, false), set_config('heap.now', %s, false)", (APP, NOW))
        for name, definition in _STEPS.values():
            connection.execute("SELECT heap.define_event(%s, %s)", (name, definition))
        print("| steps | auto | vector | merge | probe | auto / best |\n|---|---|---|---|---|---|")
        for sizes, statement in _funnels():
            times = _times(connection, statement)
            best = min(times[strategy] for strategy in _STRATEGIES[1:])
            shown = " | ".join(f"{times[strategy]:.1f}" for strategy in _STRATEGIES)
            print(f"| {sizes} | {shown} | {times['auto'] / best:.2f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS)
