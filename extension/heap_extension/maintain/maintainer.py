"""The passes of `heap maintain`: one leader per database, threads per node, an end when nothing is left to do."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any

import psycopg
from psycopg import errors
from psycopg.rows import class_row

from heap_extension.maintain.execute import execute
from heap_extension.maintain.nodes import APPLICATION, connect_node
from heap_extension.maintain.work import IndexRow, Kind, PartitionRow, Work, index_work, partition_work

__all__ = ["Maintainer", "Settings"]

_LONGEST_PAUSE = 60.0
"""Seconds until work that failed is tried again, at most."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The row of heap.settings, as far as it is read here."""

    builds_per_node: int
    max_active_queries: int
    lock_timeout: timedelta
    months_ahead: int
    vacuum_below: float
    reindex_above: float
    drop_unused_after: timedelta | None


@dataclass(slots=True)
class _Failure:
    count: int = 0
    retry_at: float = 0.0


class Maintainer:
    """Keeps one database, distributed or not.

    Args:
        dsn: of the database, or of the coordinator; the nodes of a cluster are reached with the same user and password.
        report: called with a line for every piece of work that was done or failed, from several threads.
        progress: called with the number of pieces of work done and in all of the current pass, from several threads.
    """

    def __init__(
        self,
        dsn: str,
        report: Callable[[str], None] = lambda _line: None,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        self.dsn = dsn
        self.report = report
        self.progress = progress
        self._failures: defaultdict[Work, _Failure] = defaultdict(_Failure)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ends `run` after the piece of work at hand."""
        self._stop.set()

    def run(self, interval: float = 10.0) -> None:
        """Passes, one at every change of a definition and every `interval` seconds, until `stop`. Survives the loss of
        the database: it waits until that is back."""
        while not self._stop.is_set():
            try:
                with connect_node(self.dsn, None) as leader:
                    if not self._leads(leader):
                        self._stop.wait(interval)
                        continue
                    leader.execute("LISTEN heap_maintain")
                    while not self._stop.is_set():
                        left = self.pass_over(leader)
                        self._listen(leader, 1.0 if left else interval)
            except psycopg.OperationalError as error:
                self.report(f"the database does not answer: {_first_line(error)}")
                self._stop.wait(min(interval, 5.0))

    def run_once(self, patience: float = 10.0) -> bool:
        """Passes until nothing is left to do; True when that came about, False when what is left cannot be done now.

        Args:
            patience: seconds to go on trying what fails.

        Raises:
            psycopg.OperationalError: the database does not answer.
            TimeoutError: another `heap maintain` leads for longer than `patience`.
        """
        until = time.monotonic() + patience
        with connect_node(self.dsn, None) as leader:
            while not self._leads(leader):
                if time.monotonic() > until:
                    raise TimeoutError("another heap maintain is at work on this database")
                time.sleep(0.1)
            while self.pass_over(leader):
                failing = any(failure.count for failure in self._failures.values())
                if failing and time.monotonic() > until:
                    return False
                if not failing:
                    until = time.monotonic() + patience
                time.sleep(0.2)
        return True

    def pass_over(self, leader: psycopg.Connection[Any]) -> int:
        """One pass over all apps; how much was found to do, done or not."""
        settings = self._settings(leader)
        apps = [name for (name,) in leader.execute("SELECT name FROM heap.app ORDER BY 1").fetchall()]
        for app in apps:
            self._make_partitions(leader, app, settings)
        self._note_use(leader, settings)
        with leader.cursor(row_factory=class_row(IndexRow)) as cursor:
            health = cursor.execute(
                "SELECT app, event, partition, node, shard, index_name, state, bytes, bloat FROM heap.index_health()"
            ).fetchall()
        distributed = leader.execute("SELECT heap._has_citus()").fetchone() == (True,)
        work = index_work(health, distributed=distributed, reindex_above=settings.reindex_above)
        waiting = sum(row.state in {"building", "unreachable"} for row in health)
        with leader.cursor(row_factory=class_row(PartitionRow)) as rows:
            for app in apps:
                rows.execute(
                    "SELECT %s::text AS app, partition, node, shard, visible, changed FROM heap.partition_health(%s)",
                    (app, app),
                )
                work += partition_work(rows.fetchall(), vacuum_below=settings.vacuum_below)
        self._do(leader, work, settings)
        return len(work) + waiting

    def _leads(self, connection: psycopg.Connection[Any]) -> bool:
        row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended('heap maintain', 0))").fetchone()
        return row == (True,)

    def _settings(self, leader: psycopg.Connection[Any]) -> Settings:
        columns = ", ".join(Settings.__slots__)
        with leader.cursor(row_factory=class_row(Settings)) as cursor:
            settings = cursor.execute(f"SELECT {columns} FROM heap.settings").fetchone()
        if settings is None:
            raise psycopg.DataError("heap.settings has no row: INSERT INTO heap.settings DEFAULT VALUES")
        return settings

    def _make_partitions(self, leader: psycopg.Connection[Any], app: str, settings: Settings) -> None:
        """Months ahead; what waits for its lock too long is left to a later pass."""
        try:
            with _brief(leader, settings.lock_timeout):
                leader.execute(
                    "SELECT heap.make_partitions(%s, now(), now() + make_interval(months => %s))",
                    (app, settings.months_ahead),
                )
        except (errors.LockNotAvailable, errors.QueryCanceled, errors.UndefinedObject) as error:
            self.report(f"partitions of {app}: {_first_line(error)}")

    def _note_use(self, leader: psycopg.Connection[Any], settings: Settings) -> None:
        """Remembers when indexes were scanned, and lets definitions sleep that nobody asks about."""
        leader.execute(
            "UPDATE heap.event_definition AS d SET scans = u.scans, last_used = now()"
            " FROM (SELECT app, event, sum(scans)::bigint AS scans FROM heap.index_health() GROUP BY 1, 2) AS u"
            " WHERE d.app = u.app AND d.name = u.event AND d.scans <> u.scans"
        )
        if settings.drop_unused_after is not None:
            leader.execute(
                "WITH unused AS (UPDATE heap.event_definition SET dormant = true"
                " WHERE NOT dormant AND index_suffix IS NOT NULL AND last_used < now() - %s RETURNING app)"
                " UPDATE heap.app SET version = nextval('heap.catalog_version') WHERE name IN (SELECT app FROM unused)",
                (settings.drop_unused_after,),
            )

    def _listen(self, leader: psycopg.Connection[Any], seconds: float) -> None:
        """Waits for a change of a definition, or a question about a dormant one, which it wakes."""
        notices = list(leader.notifies(timeout=seconds, stop_after=1))  # which holds the connection until it ends
        for asked in {notice.payload for notice in notices if notice.payload}:
            leader.execute(
                "WITH woken AS (UPDATE heap.event_definition SET dormant = false, last_used = now()"
                " WHERE app = %(app)s AND name = %(event)s AND dormant RETURNING app)"
                " UPDATE heap.app SET version = nextval('heap.catalog_version') WHERE name IN (TABLE woken)",
                json.loads(asked),
            )

    def _do(self, leader: psycopg.Connection[Any], work: list[Work], settings: Settings) -> None:
        """Does the work whose time has come: first on the tables here, then on all nodes at once."""
        now = time.monotonic()
        due = [piece for piece in work if now >= self._failures[piece].retry_at]
        self._failures = defaultdict(_Failure, {piece: self._failures[piece] for piece in work})
        by_node: defaultdict[str | None, SimpleQueue[Work]] = defaultdict(SimpleQueue)
        for piece in due:
            by_node[piece.node].put(piece)
        predicates = {
            (app, name): predicate
            for app, name, predicate in leader.execute(
                "SELECT app, name, predicate FROM heap.event_definition WHERE index_suffix IS NOT NULL"
            )
        }
        done, total = [0], len(due)
        self.progress(0, total)

        def work_off(node: str | None) -> None:
            try:
                with connect_node(self.dsn, node) as connection, connect_node(self.dsn, None) as coordinator:
                    while not self._stop.is_set() and not leader.closed:
                        piece = by_node[node].get_nowait()
                        self._wait_for_quiet(connection, settings)
                        self._do_one(connection, coordinator, piece, predicates, settings)
                        done[0] += 1
                        self.progress(done[0], total)
            except Empty:
                pass
            except psycopg.OperationalError as error:
                self.report(f"{node or 'the database'} does not answer: {_first_line(error)}")

        def work_off_all(nodes: list[str | None]) -> None:
            with ThreadPoolExecutor(max_workers=max(1, len(nodes) * settings.builds_per_node)) as threads:
                list(threads.map(work_off, [node for node in nodes for _ in range(settings.builds_per_node)]))

        nodes = list(by_node)
        if None in nodes:
            work_off_all([None])
        work_off_all([node for node in nodes if node is not None])

    def _do_one(
        self,
        connection: psycopg.Connection[Any],
        coordinator: psycopg.Connection[Any],
        piece: Work,
        predicates: dict[tuple[str, str], str],
        settings: Settings,
    ) -> None:
        if piece.kind is Kind.drop and self._is_wanted(coordinator, piece):
            return
        where = f"{piece.app}.{piece.relation}" + (f" on {piece.node}" if piece.node else "")
        what = f"{piece.kind.name} {piece.event or piece.index_name or ''}".strip()
        started = time.monotonic()
        try:
            execute(connection, piece, predicates.get((piece.app, piece.event or "")), settings.lock_timeout)
        except psycopg.Error as error:
            failure = self._failures[piece]
            failure.count += 1
            failure.retry_at = time.monotonic() + min(_LONGEST_PAUSE, 0.5 * 2**failure.count)
            self.report(f"failed: {what} on {where}: {_first_line(error)}")
            if connection.closed:
                raise
            return
        self.report(f"{what} on {where}: {time.monotonic() - started:.2f} s")

    def _is_wanted(self, coordinator: psycopg.Connection[Any], piece: Work) -> bool:
        """Whether an orphan has become a definition's since the pass began."""
        row = coordinator.execute(
            "SELECT FROM heap.event_definition WHERE app = %s AND NOT dormant"
            " AND %s ~ ('^' || %s || '_' || index_suffix || '(_[0-9]+)?$')",
            (piece.app, piece.index_name, piece.partition),
        ).fetchone()
        return row is not None

    def _wait_for_quiet(self, connection: psycopg.Connection[Any], settings: Settings) -> None:
        """Waits while the node runs more statements than maintenance should add to."""
        while not self._stop.is_set():
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend'"
                " AND application_name <> %s",
                (APPLICATION,),
            ).fetchone()
            if row is None or row[0] <= settings.max_active_queries:
                return
            self._stop.wait(0.5)


@contextmanager
def _brief(connection: psycopg.Connection[Any], lock_timeout: timedelta) -> Iterator[None]:
    """A transaction that gives up instead of waiting for locks for longer; on the nodes of a cluster, too."""
    milliseconds = max(1, int(lock_timeout.total_seconds() * 1000))
    with connection.transaction():
        if connection.execute("SELECT heap._has_citus()").fetchone() == (True,):
            connection.execute("SET LOCAL citus.enable_ddl_propagation = on")
            connection.execute("SET LOCAL citus.propagate_set_commands = 'local'")
        connection.execute(f"SET LOCAL lock_timeout = {milliseconds}")
        yield


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
