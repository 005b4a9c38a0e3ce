"""The experiments: systems asked in turns, sizes, cold starts, strategies, new definitions, inserts, first calls.

Each puts its times into `Results`. Systems are asked in turns, so that whatever else the machine does meets all alike.
"""

from __future__ import annotations

import io
import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.data import Dataset
from benchmarks.peers.heap import Heap, app_of, plain_table
from benchmarks.peers.peer import Peer, TookTooLongError
from benchmarks.results import Results
from benchmarks.work import EVENTS, RANGE, Funnel, Question, Row

__all__ = [
    "COUNTS",
    "STRATEGIES",
    "compare",
    "compare_cold",
    "compare_sizes",
    "compare_strategies",
    "insert",
    "insert_without_heap",
    "machine",
    "measure_first_calls",
    "measure_first_reads",
    "measure_floor",
    "measure_new_definition",
    "say",
    "take_turns",
]

_BUDGET = 2.0
"""Seconds that a system gets for its rounds of one question."""
_ROUNDS = 9
_SLOW = 4.0
"""A system slower than this is asked once: the run that checks its answer counts."""
COUNTS = (0, 10, 100, 1_000, 3_000)
"""Definitions that inserts are measured with."""
STRATEGIES = ("auto", "vector", "merge", "probe")


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def take_turns(
    runs: Mapping[str, Callable[[], float]], benchmark: Any = None, known: Mapping[str, float] | None = None
) -> dict[str, list[float]]:
    """Times of each, taken in turns after a warm-up: fewer rounds where one takes long.

    The order is another one in each round: who follows one that goes through much memory finds every cache cold, and
    would do so each time.

    Args:
        runs: what to run, by name; each returns the seconds it took.
        benchmark: pytest-benchmark's fixture, which then shows the times of the first.
        known: seconds of a warm-up that there was.
    """
    took: dict[str, list[float]] = {name: [] for name in runs}
    warm = {name: (known or {}).get(name) or run() for name, run in runs.items()}
    rounds = {
        name: 0 if seconds > _SLOW else max(3, min(_ROUNDS, int(_BUDGET / seconds))) for name, seconds in warm.items()
    }
    first, *others = runs
    chance = random.Random(1)

    def turn(names: Sequence[str]) -> None:
        for name in chance.sample(names, len(names)):
            if len(took[name]) < rounds[name]:
                took[name].append(runs[name]())

    for name in runs:
        if rounds[name] == 0:
            took[name].append(warm[name])
    most = max(rounds.values())
    if benchmark is not None:
        benchmark.pedantic(lambda: turn([first]), setup=lambda: turn(others), rounds=max(rounds[first], 1))
    for _ in range(most):
        turn(list(runs))
    return took


def compare(
    question: Question, peers: Sequence[Peer], dataset: Dataset, results: Results, benchmark: Any = None
) -> None:
    """Asserts that all give the same answer, finds the fastest variant of each, and times these in turns."""
    expected: set[Row] | None = None
    runs: dict[str, Callable[[], float]] = {}
    warm: dict[str, float] = {}
    for peer in peers:
        best: tuple[float, str] | None = None
        for variant in peer.variants(question):
            try:
                asked = peer.ask(dataset, question, variant)
                if expected is None:
                    expected = asked.rows
                    assert expected, f"{question.title}: nothing found"
                assert asked.rows == expected, f"{question.title}: {peer.name} ({variant}) gives another answer"
                again = asked.seconds if asked.seconds > _SLOW else peer.ask(dataset, question, variant).seconds
            except TookTooLongError as error:
                results.stopped.setdefault(question.title, {})[peer.name] = error.seconds
                continue
            if best is None or again < best[0]:
                best = again, variant
        if best is not None:
            results.stopped.get(question.title, {}).pop(peer.name, None)
            warm[peer.name], variant = best
            results.ways.setdefault(question.title, {})[peer.name] = variant
            runs[peer.name] = partial(_seconds, peer, dataset, question, variant)
    for name, times in take_turns(runs, benchmark, warm).items():
        results.add("warm", question.title, name, times)
    _said(results, "warm", question.title)


def _seconds(peer: Peer, dataset: Dataset, question: Question, variant: str) -> float:
    return peer.ask(dataset, question, variant).seconds


def _said(results: Results, experiment: str, subject: str) -> None:
    of = results.seconds[experiment][subject]
    say(f"{experiment}: {subject}: " + ", ".join(f"{name} {1000 * median(t):.1f} ms" for name, t in of.items()))


def compare_cold(question: Question, peers: Sequence[Peer], dataset: Dataset, results: Results) -> None:
    """The first answer after every system was stopped, the machine's caches were dropped, if that is allowed, and the
    system was started again."""
    for peer in peers:
        peer.stop()
    dropped = _drop_caches()
    for peer in peers:
        peer.start()
        variant = results.ways.get(question.title, {}).get(peer.name) or peer.variants(question)[0]
        results.add("cold", question.title, peer.name, [peer.ask(dataset, question, variant).seconds])
    results.numbers["caches dropped"] = float(dropped)
    _said(results, "cold", question.title)


def _drop_caches() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def compare_sizes(question: Question, peers: Sequence[Peer], datasets: Sequence[Dataset], results: Results) -> None:
    """The same question about more and more events."""
    for dataset in datasets:
        runs = {}
        for peer in peers:
            variant = results.ways.get(question.title, {}).get(peer.name) or peer.variants(question)[0]
            runs[peer.name] = partial(_seconds, peer, dataset, question, variant)
        for name, times in take_turns(runs).items():
            results.add(f"size {question.title}", str(dataset.events), name, times)
        _said(results, f"size {question.title}", str(dataset.events))


def measure_floor(funnel: Funnel, heap: Heap, dataset: Dataset, results: Results) -> None:
    """A funnel in turns with what it cannot undercut: `count(*)` over the index of each of its steps."""
    connection = heap.asked(dataset)
    counts = []
    for step in funnel.steps:
        (predicate,) = connection.execute(
            "SELECT predicate FROM heap.event_definition WHERE app = %s AND name = %s", (app_of(dataset), step.name)
        ).fetchone() or ("",)
        counts.append(f"SELECT count(*) FROM {app_of(dataset)}.events WHERE {predicate}")

    def count() -> float:
        began = time.perf_counter()
        for one in counts:
            connection.execute(one).fetchall()  # type: ignore[call-overload]
        return time.perf_counter() - began

    for name, times in take_turns({"heap": lambda: heap.ask(dataset, funnel, "").seconds, "count(*)": count}).items():
        results.add("floor", funnel.title, name, times)
    _said(results, "floor", funnel.title)


def compare_strategies(funnel: Funnel, heap: Heap, dataset: Dataset, results: Results) -> None:
    """The strategies that can be forced with the setting heap.strategy, and what is chosen without it."""
    connection = heap.asked(dataset)
    expected = heap.ask(dataset, funnel, "").rows

    def forced(strategy: str) -> float:
        connection.execute("SELECT set_config('heap.strategy', %s, false)", (strategy,))
        try:
            asked = heap.ask(dataset, funnel, "")
        finally:
            connection.execute("SELECT set_config('heap.strategy', 'auto', false)")
        assert asked.rows == expected, (funnel.title, strategy)
        return asked.seconds

    runs = {strategy: partial(forced, strategy) for strategy in STRATEGIES}
    for name, times in take_turns(runs).items():
        results.add("strategies", funnel.title, name, times)
    _said(results, "strategies", funnel.title)


def measure_new_definition(heap: Heap, dataset: Dataset, results: Results) -> None:
    """A definition nobody made before: the time until its first right answer, without an index, where indexes are left
    to `heap maintain`; and until the statement that defines it has built them."""
    app = app_of(dataset)
    subject = f"{dataset.events}"
    trend = f'trend count of "New" {RANGE}'
    (expected,) = _one(heap, app, "SELECT count(*) FROM {app}.events WHERE type = 'click' AND path = '/checkout'")
    first, indexed = [], []
    for _ in range(3):
        with heap.connect(app) as connection:  # a session keeps what it read
            connection.execute(
                "SELECT * FROM heap.trend(%s)", ("trend count of any over last 1 day",)
            )  # loads the compiler
            with suppress(psycopg.errors.Error):
                connection.execute("SELECT heap.drop_event('New')")
            definition = "click where path = '/checkout'"
            connection.execute("UPDATE heap.settings SET index_builds = 'maintain'")
            began = time.perf_counter()
            connection.execute("SELECT heap.define_event('New', %s)", (definition,))
            (value,) = connection.execute("SELECT value FROM heap.trend(%s)", (trend,)).fetchone() or (None,)
            first.append(time.perf_counter() - began)
            assert int(value) == expected
            connection.execute("SELECT heap.drop_event('New')")
            connection.execute("UPDATE heap.settings SET index_builds = 'statement'")
            began = time.perf_counter()
            connection.execute("SELECT heap.define_event('New', %s)", (definition,))
            indexed.append(time.perf_counter() - began)
            (value,) = connection.execute("SELECT value FROM heap.trend(%s)", (trend,)).fetchone() or (None,)
            assert int(value) == expected
            connection.execute("SELECT heap.drop_event('New')")
            connection.execute("UPDATE heap.settings SET index_builds = 'auto'")
    results.add("new definition", subject, "first answer", first)
    results.add("new definition", subject, "indexed", indexed)
    _said(results, "new definition", subject)


def _one(heap: Heap, app: str, sql: str) -> Any:
    with heap.connect(app) as connection:
        return connection.execute(sql.format(app=app)).fetchone()  # type: ignore[call-overload]


def measure_first_calls(heap: Heap, dataset: Dataset, results: Results, rounds: int = 9, tier: str = "0.01 %") -> None:
    """What an analyst waits for before anything is read: a funnel of the rarest steps on a new connection, asked again,
    its SQL alone, and a statement that was not asked before, compiled only."""
    app = app_of(dataset)
    steps = " -> ".join(step.quoted for step in EVENTS[tier][:3])
    statement = f"funnel {steps} within 7 days {RANGE}"
    ask = "SELECT * FROM heap.funnel(%s)"
    took: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], Any]) -> None:
        began = time.perf_counter()
        run()
        took.setdefault(name, []).append(time.perf_counter() - began)

    for number in range(rounds):
        with heap.connect(app) as connection:
            timed("first call on a new connection", lambda c=connection: c.execute(ask, (statement,)).fetchall())
            timed("the second call", lambda c=connection: c.execute(ask, (statement,)).fetchall())
            for _ in range(5):
                timed("asked again", lambda c=connection: c.execute(ask, (statement,)).fetchall())
            (sql,) = connection.execute("SELECT heap.sql(%s)", (statement,)).fetchone() or ("",)
            for _ in range(5):
                timed("its SQL alone", lambda c=connection, sql=sql: c.execute(sql).fetchall())
                timed("compiled before", lambda c=connection: c.execute("SELECT heap.sql(%s)", (statement,)).fetchone())
            for hour in range(5):
                new = statement.replace("7 days", f"{24 * 7 + 5 * number + hour} hours")
                timed(
                    "a new statement, compiled",
                    lambda c=connection, new=new: c.execute("SELECT heap.sql(%s)", (new,)).fetchone(),
                )
            for _ in range(3):
                timed("planned", lambda c=connection, sql=sql: c.execute("EXPLAIN " + sql).fetchall())
    for name, times in took.items():
        results.add("calls", name, "heap", times)
    say("calls: " + ", ".join(f"{name} {1000 * median(t):.1f} ms" for name, t in took.items()))


def measure_first_reads(
    heap: Heap, dataset: Dataset, results: Results, tiers: Sequence[str], rounds: int = 5, loads: str = "fixed"
) -> None:
    """Funnels of events that the session has not read before, and so keeps nothing of; what computes them it has loaded
    for a funnel of `loads`."""
    app = app_of(dataset)

    def ask(connection: psycopg.Connection[Any], tier: str) -> float:
        steps = " -> ".join(step.quoted for step in EVENTS[tier][:3])
        began = time.perf_counter()
        connection.execute("SELECT * FROM heap.funnel(%s)", (f"funnel {steps} within 7 days {RANGE}",)).fetchall()
        return time.perf_counter() - began

    took: dict[str, list[float]] = {tier: [] for tier in tiers}
    for _ in range(rounds):
        with heap.connect(app) as connection:
            ask(connection, loads)
            for tier, times in took.items():
                times.append(ask(connection, tier))
    for tier, times in took.items():
        results.add("first reads", f"3-step funnel, {tier}", "heap", times)
    say("first in a session: " + ", ".join(f"{tier} {1000 * median(times):.1f} ms" for tier, times in took.items()))


class _Batches:
    """Rows of the dataset's last month, over and over, with event ids that no row had before. Those of a batch are in
    the order of users, as from the sink: neighbours in the primary key."""

    def __init__(self, dataset: Dataset, rows: int) -> None:
        self._table = plain_table(pq.read_table(dataset.files[-1]).slice(0, rows))
        self.columns = ", ".join(self._table.column_names)
        self.rows = self._table.num_rows
        self._next = 1 << 40

    def draw(self, rows: int) -> bytes:
        """So many rows as CSV."""
        table = self._table.slice(0, rows).sort_by([("user_id", "ascending"), ("time", "ascending")])
        ids = pa.array(np.arange(self._next, self._next + table.num_rows))
        self._next += table.num_rows
        sink = io.BytesIO()
        named = table.set_column(table.column_names.index("event_id"), "event_id", ids)
        pyarrow.csv.write_csv(named, sink, pyarrow.csv.WriteOptions(include_header=False))
        return sink.getvalue()


def insert(
    heap: Heap,
    dataset: Dataset,
    results: Results,
    counts: Sequence[int] = COUNTS,
    batches: Sequence[int] = (500, 5_000),
    seconds: float = 2 * _BUDGET,
    with_selectors: int = 1_000,
) -> None:
    """One writer that copies batches into an app with more and more definitions, equalities of pages and texts; with
    `with_selectors` definitions once more, a tenth of them CSS selectors. Times are per row."""
    app = "inserts"
    with heap.connect(app) as connection:
        if connection.execute("SELECT 1 FROM heap.app WHERE name = %s", (app,)).fetchone():
            connection.execute("SELECT heap.drop_app(%s)", (app,))
        connection.execute("SELECT heap.create_app(%s)", (app,))
        connection.execute("SELECT heap.make_partitions(%s, '2026-06-01', '2026-06-01')", (app,))
        others = connection.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'inserts.events'::regclass"
            " AND inhrelid::regclass::text !~ '2026_06|default'"
        ).fetchall()
        for (partition,) in others:  # an index of every definition on each would only take time to make
            connection.execute(f"DROP TABLE {partition}")
        rows = _Batches(dataset, max(batches))
        made = 0
        for count in counts:
            took = []
            connection.execute("TRUNCATE inserts.events")  # an index of many events would only take time to make
            for number in range(made, count):
                began = time.perf_counter()
                connection.execute("SELECT heap.define_event(%s, %s)", (f"Watched {number}", _watched(number)))
                took.append(time.perf_counter() - began)
            made = max(made, count)
            if took:
                results.add("define on an empty app", str(count), "heap", took[-50:])
            _copy_batches(connection, f"{app}.events", rows, batches, results, "inserts", str(count), seconds)
            if count == with_selectors:
                connection.execute("TRUNCATE inserts.events")
                for number in range(0, count, 10):
                    selector = f"click where element matches 'form.checkout button.watched-{number}'"
                    connection.execute("SELECT heap.define_event(%s, %s)", (f"Watched {number}", selector))
                subject = f"{count}, a tenth of them CSS"
                _copy_batches(connection, f"{app}.events", rows, batches, results, "inserts", subject, seconds)
                connection.execute("TRUNCATE inserts.events")
                for number in range(0, count, 10):
                    connection.execute("SELECT heap.define_event(%s, %s)", (f"Watched {number}", _watched(number)))
        size = (
            "SELECT sum(pg_relation_size(indexrelid)) FROM pg_index"
            " WHERE indrelid = 'inserts.events_2026_06'::regclass AND indpred IS NOT NULL"
        )
        (total,) = connection.execute(size).fetchone() or (0,)
        results.numbers["bytes of an index that nothing matches"] = float(total or 0) / max(made, 1)
        connection.execute("SELECT heap.drop_app(%s)", (app,))


def insert_without_heap(
    heap: Heap,
    dataset: Dataset,
    results: Results,
    counts: Sequence[int] = (0, 1_000),
    batches: Sequence[int] = (5_000,),
) -> None:
    """The same with partial indexes as one would write them by hand: predicates over jsonb, no integer first."""
    rows = _Batches(dataset, max(batches))
    with heap.connect("inserts") as connection:
        connection.execute("DROP TABLE IF EXISTS public.naive")
        columns = ", ".join(f"{name} text" for name in rows.columns.split(", ")[4:-1])
        connection.execute(
            "CREATE TABLE public.naive (user_id bigint, time timestamptz, event_id bigint, session_id bigint,"
            f" {columns}, properties jsonb, PRIMARY KEY (user_id, time, event_id))"
        )
        made = 0
        for count in counts:
            for number in range(made, count):
                connection.execute(
                    "CREATE INDEX ON public.naive (user_id, time, event_id)"
                    f" WHERE properties->>'path' = '/watched/{number}'"
                )
            made = max(made, count)
            _copy_batches(connection, "public.naive", rows, batches, results, "inserts by JSON predicates", str(count))
        connection.execute("DROP TABLE public.naive")


def _copy_batches(
    connection: psycopg.Connection[Any],
    table: str,
    rows: _Batches,
    sizes: Sequence[int],
    results: Results,
    experiment: str,
    subject: str,
    seconds: float = 2 * _BUDGET,
) -> None:
    with connection.cursor() as cursor:
        for size in sizes:
            took: list[float] = []
            deadline = time.perf_counter() + seconds
            while len(took) < 4 or (len(took) < 30 and time.perf_counter() < deadline):
                batch = rows.draw(size)
                began = time.perf_counter()
                with cursor.copy(f"COPY {table} ({rows.columns}) FROM STDIN (FORMAT csv)") as copy:
                    copy.write(batch)
                took.append((time.perf_counter() - began) / min(size, rows.rows))
            results.add(experiment, subject, f"batches of {size:,}", took[1:])
            rate = 1 / median(took[1:])
            say(f"{experiment}: {subject} definitions, batches of {size:,}: {rate:,.0f} rows/s")


def _watched(number: int) -> str:
    if number % 2:
        return f"pageview where path = '/watched/{number}'"
    return f"click where target_text = 'Watched {number}'"


def machine() -> list[str]:
    """What the times depend on, as far as the machine knows it."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return [
        f"{os.cpu_count()} x {cpu[1] if cpu else 'unknown processor'},"
        f" {int(memory[1]) / 2**20 if memory else 0:.0f} GB; load average at the start {os.getloadavg()[0]:.1f}",
        f"commit {commit.stdout.strip() or 'unknown'}, {time.strftime('%Y-%m-%d')}",
    ]
