"""The passes of `heap maintain`: one leader per database, threads per node, an end when nothing is left to do."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import class_row

from heap_extension.maintain.execute import execute
from heap_extension.maintain.merges import UserMerges
from heap_extension.maintain.nodes import APPLICATION, connect_node
from heap_extension.maintain.work import (
    IndexRow,
    Kind,
    PackRow,
    PartitionRow,
    Placement,
    Wanted,
    Work,
    index_work,
    pack_work,
    partition_work,
)

__all__ = ["Maintainer", "Settings"]

_LONGEST_PAUSE = 60.0
"""Seconds until work that failed is tried again, at most."""

_BETWEEN_SWEEPS = 60.0
"""Seconds between looks for events of users that were merged, at least."""

_BETWEEN_PACKS = 60.0
"""Seconds between looks for packs to make or drop, at least."""

_SETTLED = 600.0
"""Seconds without a change, or since the last VACUUM, until a partition of which rows came or went is packed again."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The row of heap.settings, as far as it is read here."""

    builds_per_node: int
    max_active_queries: int
    lock_timeout: timedelta
    build_patience: timedelta
    months_ahead: int
    vacuum_below: float
    reindex_above: float
    drop_unused_after: timedelta | None
    pack_every: timedelta | None


@dataclass(slots=True)
class _Failure:
    count: int = 0
    retry_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Quiet:
    """How many rows were ever written to a partition, since or at which time, and whether it was vacuumed since."""

    written: int | None
    since: float
    is_vacuumed: bool = False


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
        self._asked: set[tuple[str, str]] = set()
        """Dormant events to wake: app and name."""
        self._used: set[tuple[str, str]] = set()
        """Other events that somebody asked about since the last pass: app and name."""
        self._merges: dict[str, UserMerges] = {}
        self._sweep_at = 0.0
        self._packs_at = 0.0
        self._quiet: dict[Placement, _Quiet] = {}
        self._settled_at: dict[Placement, _Quiet] = {}
        self._vacuumed: set[Work] = set()
        """What was vacuumed: once more is no step forward, but a sign that somebody still sees what was deleted."""
        self._stop = threading.Event()
        self._moved = time.monotonic()
        """When work was last done, here or by another."""

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
            except psycopg.Error as error:
                self.report(f"failed: {_first_line(error)}")
                self._stop.wait(min(interval, 5.0))

    def run_once(self, patience: float = 10.0) -> bool:
        """Passes until nothing is left to do; True when that came about, False when what is left cannot be done now.
        Partitions need not have been quiet for long to be packed.

        Args:
            patience: seconds to go on while nothing succeeds.

        Raises:
            psycopg.OperationalError: the database does not answer.
            TimeoutError: another `heap maintain` leads for longer than `patience`.
        """
        with connect_node(self.dsn, None) as leader:
            self._moved = time.monotonic()
            self._vacuumed.clear()
            self._settled_at.clear()
            while not self._leads(leader):
                if self._stands_still(patience):
                    raise TimeoutError("another heap maintain is at work on this database")
                time.sleep(0.1)
            while self.pass_over(leader, at_once=True):
                if self._stands_still(patience):
                    return False
                time.sleep(0.2)
        return True

    def pass_over(self, leader: psycopg.Connection[Any], *, at_once: bool = False) -> int:
        """One pass over all apps; how much was found to do, done or not.

        Args:
            at_once: does not wait until partitions have been quiet for a while.
        """
        settings = self._settings(leader)
        apps = [name for (name,) in leader.execute("SELECT name FROM heap.app ORDER BY 1").fetchall()]
        for app in apps:
            self._make_partitions(leader, app, settings)
        merging = self._merge_users(leader, apps, settings)
        with leader.cursor(row_factory=class_row(IndexRow)) as cursor:
            columns = ", ".join(IndexRow.__slots__)
            health = cursor.execute(f"SELECT {columns} FROM heap.index_health()").fetchall()
        asleep = self._note_use(leader, health, settings)
        work = index_work(health, reindex_above=settings.reindex_above)
        states = Counter(row.state for row in health)
        if states["building"]:
            self._moved = time.monotonic()
        with leader.cursor(row_factory=class_row(PartitionRow)) as rows:
            for app in apps:
                rows.execute(
                    "SELECT %s::text AS app, partition, node, shard, visible, changed FROM heap.partition_health(%s)",
                    (app, app),
                )
                work += partition_work(rows.fetchall(), vacuum_below=settings.vacuum_below)
        if at_once or time.monotonic() >= self._packs_at:
            work += self._pack_work(leader, settings, at_once=at_once)
            self._packs_at = time.monotonic() + _BETWEEN_PACKS
        self._do(leader, work, settings)
        if any(piece.kind in {Kind.freeze, Kind.settle} for piece in work):  # what they are for comes next
            self._packs_at = time.monotonic()
        return len(work) + states["building"] + states["unreachable"] + asleep + merging

    def _pack_work(self, leader: psycopg.Connection[Any], settings: Settings, *, at_once: bool) -> list[Work]:
        """What is to do about packs."""
        with leader.cursor(row_factory=class_row(PackRow)) as cursor:
            columns = ", ".join(PackRow.__slots__)
            rows = cursor.execute(f"SELECT {columns} FROM heap.pack_health()").fetchall()
        return pack_work(rows, self._settled(rows, at_once=at_once) | self._due(rows, settings))

    def _settled(self, rows: list[PackRow], *, at_once: bool) -> set[Placement]:
        """Where partitions wait for a VACUUM and have not changed for a while, or at once. One that does not help, as
        while somebody may still see what was deleted, is not tried again soon."""
        before, self._quiet = self._quiet, {}
        settled: set[Placement] = set()
        now = time.monotonic()
        for row in rows:
            if row.goes_on or row.state != "waiting" or row.placement in self._quiet:
                continue
            quiet = before.get(row.placement)
            if quiet is None or quiet.written != row.written:
                quiet = _Quiet(row.written, now)
            if now - quiet.since >= _SETTLED or (at_once and not quiet.is_vacuumed):
                quiet = _Quiet(row.written, now, is_vacuumed=True)
                settled.add(row.placement)
            self._quiet[row.placement] = quiet
        return settled

    def _due(self, rows: list[PackRow], settings: Settings) -> set[Placement]:
        """The partitions that go on and to which something was written since they were settled, if that was not just
        now."""
        due: set[Placement] = set()
        now = time.monotonic()
        for row in rows:
            if not row.goes_on or row.placement in due or settings.pack_every is None:
                continue
            before = self._settled_at.get(row.placement)
            if before is None or (
                before.written != row.written and now - before.since >= settings.pack_every.total_seconds()
            ):
                self._settled_at[row.placement] = _Quiet(row.written, now)
                due.add(row.placement)
        return due

    def _stands_still(self, patience: float) -> bool:
        return time.monotonic() - self._moved > patience

    def _leads(self, connection: psycopg.Connection[Any]) -> bool:
        """Takes the lock, if it is free. Whoever holds it without being a superuser keeps the indexes of nobody: any
        role can take an advisory lock."""
        ended = connection.execute(
            "SELECT usename, pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid = heap._maintainer(false)"
        ).fetchall()
        for role, _ in ended:
            self.report(f"ended a session of {role} that held the lock of heap maintain")
        row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended('heap maintain', 0))").fetchone()
        self._merges, self._sweep_at = {}, 0.0  # another may have led meanwhile
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
        except psycopg.Error as error:
            if leader.closed:
                raise
            self.report(f"failed: partitions of {app}: {_first_line(error)}")

    def _merge_users(self, leader: psycopg.Connection[Any], apps: list[str], settings: Settings) -> int:
        """Goes on with the merges of every app; of how many there may be more to do."""
        left = 0
        sweeps = time.monotonic() >= self._sweep_at
        began = time.monotonic()
        for app in apps:
            if app not in self._merges:
                self._merges[app] = UserMerges(self.dsn, app, leader, settings.lock_timeout)
            self._merges[app].patience = settings.lock_timeout
            try:
                if sweeps:
                    self._merges[app].merge_late_users()
                waited_for = self._merges[app].waits_for
                merged = self._merges[app].advance()
                if (waits_for := self._merges[app].waits_for) not in {None, waited_for}:
                    self.report(f"waiting: merges of users of {app} wait for {waits_for}")
            except psycopg.Error as error:
                if leader.closed:
                    raise
                left += 1
                self.report(f"failed: merge users of {app}: {_first_line(error)}")
                continue
            left += merged is not None
            if merged:
                self._moved = time.monotonic()
                self.report(f"merged users of {app}: {merged}")
        if sweeps:
            took = time.monotonic() - began
            self._sweep_at = time.monotonic() + max(_BETWEEN_SWEEPS, 100 * took)
        return left

    def _note_use(self, leader: psycopg.Connection[Any], health: list[IndexRow], settings: Settings) -> int:
        """Remembers when indexes were scanned or events asked about, and lets definitions sleep that nobody asks about;
        how many of these."""
        told, self._used = self._used, set()
        scans: defaultdict[tuple[str, str], int] = defaultdict(int)
        for row in health:
            if row.event is not None:
                scans[row.app, row.event] += row.scans or 0
        used: defaultdict[str, dict[str, int]] = defaultdict(dict)
        unused: defaultdict[str, list[str]] = defaultdict(list)
        for app, name, before, is_old in leader.execute(
            "SELECT app, name, scans, last_used < now() - %s::interval FROM heap.event_definition"
            " WHERE index_suffix IS NOT NULL AND NOT dormant",
            (settings.drop_unused_after,),
        ):
            if scans[app, name] != before or (app, name) in told:
                used[app][name] = scans[app, name]
            elif is_old:
                unused[app].append(name)
        asleep = 0
        for app in used.keys() | unused.keys():
            with _catalog(leader, app) as is_free:
                if is_free:
                    leader.execute(
                        "UPDATE heap.event_definition AS d SET scans = u.scans, last_used = now()"
                        " FROM unnest(%s::text[], %s::bigint[]) AS u (name, scans)"
                        " WHERE d.app = %s AND d.name = u.name",
                        (list(used[app]), list(used[app].values()), app),
                    )
                    asleep += _set_dormant(leader, app, unused[app], dormant=True)
                else:
                    self._used.update((app, name) for name in used[app] if (app, name) in told)
        return asleep

    def _listen(self, leader: psycopg.Connection[Any], seconds: float) -> None:
        """Waits for a change of a definition, or a question about a dormant one, which it wakes. What else was asked
        about is noted by the next pass. Any role may notify: the worst it can do is to keep an event awake."""
        ends = time.monotonic() + seconds
        is_called = False
        while not is_called and (left := ends - time.monotonic()) > 0:
            # A list, since the generator holds the connection until it ends.
            for notice in list(leader.notifies(timeout=left, stop_after=1)):
                question = _question(notice.payload)
                if question is not None and not question.dormant:
                    self._used.add((question.app, question.event))
                    continue
                is_called = True
                if question is not None:
                    self._asked.add((question.app, question.event))
        if self._asked:
            apps = {name for (name,) in leader.execute("SELECT name FROM heap.app")}
            self._asked = {(app, event) for app, event in self._asked if app in apps}
        for app, event in list(self._asked):
            with _catalog(leader, app) as is_free:
                if is_free:
                    _set_dormant(leader, app, [event], dormant=False)
                    self._asked.discard((app, event))

    def _do(self, leader: psycopg.Connection[Any], work: list[Work], settings: Settings) -> None:
        """Does the work whose time has come, on all nodes at once."""
        now = time.monotonic()
        due = [piece for piece in work if now >= self._failures[piece].retry_at]
        self._failures = defaultdict(_Failure, {piece: self._failures[piece] for piece in work})
        by_node: defaultdict[str | None, SimpleQueue[Work]] = defaultdict(SimpleQueue)
        for piece in due:
            by_node[piece.node].put(piece)
        wanted = {
            (app, name): Wanted(predicate, covering)
            for app, name, predicate, covering in leader.execute(
                "SELECT app, name, predicate, covering FROM heap.event_definition WHERE index_suffix IS NOT NULL"
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
                        self._do_one(connection, coordinator, piece, wanted, settings)
                        done[0] += 1
                        self.progress(done[0], total)
            except Empty:
                pass
            except psycopg.OperationalError as error:
                self.report(f"{node or 'the database'} does not answer: {_first_line(error)}")

        with ThreadPoolExecutor(max_workers=max(1, len(by_node) * settings.builds_per_node)) as threads:
            list(threads.map(work_off, [node for node in by_node for _ in range(settings.builds_per_node)]))

    def _do_one(
        self,
        connection: psycopg.Connection[Any],
        coordinator: psycopg.Connection[Any],
        piece: Work,
        wanted: dict[tuple[str, str], Wanted],
        settings: Settings,
    ) -> None:
        if piece.kind is Kind.drop and self._is_wanted(coordinator, piece):
            return
        event = wanted.get((piece.app, piece.event or ""))
        if event is None and piece.needs_definition:
            return  # dropped since the pass began
        where = f"{piece.app}.{piece.relation}" + (f" on {piece.node}" if piece.node else "")
        what = f"{piece.kind.name} {piece.event or piece.index_name or ''}".strip()
        started = time.monotonic()
        try:
            execute(connection, piece, event, settings.lock_timeout, settings.build_patience)
        except psycopg.Error as error:
            failure = self._failures[piece]
            failure.count += 1
            failure.retry_at = time.monotonic() + min(_LONGEST_PAUSE, 0.5 * 2**failure.count)
            self.report(f"failed: {what} on {where}: {_first_line(error)}")
            if connection.closed:
                raise
            return
        if piece not in self._vacuumed:
            self._moved = time.monotonic()
        if piece.kind is Kind.vacuum:
            self._vacuumed.add(piece)
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


@contextmanager
def _catalog(connection: psycopg.Connection[Any], app: str) -> Iterator[bool]:
    """A transaction to change an app's definitions in; False while somebody else changes them, or it is gone."""
    with connection.transaction():
        row = connection.execute(
            "SELECT FROM heap.app WHERE name = %s FOR NO KEY UPDATE SKIP LOCKED", (app,)
        ).fetchone()
        yield row is not None


def _set_dormant(connection: psycopg.Connection[Any], app: str, names: list[str], *, dormant: bool) -> int:
    """Lets definitions sleep or wakes them; how many that changed."""
    changed = connection.execute(
        "UPDATE heap.event_definition SET dormant = %(dormant)s,"
        " last_used = CASE WHEN %(dormant)s THEN last_used ELSE now() END"
        " WHERE app = %(app)s AND name = ANY(%(names)s) AND dormant <> %(dormant)s",
        {"app": app, "names": names, "dormant": dormant},
    ).rowcount
    if changed:
        connection.execute("UPDATE heap.app SET version = nextval('heap.catalog_version') WHERE name = %s", (app,))
    return changed


class _Question(NamedTuple):
    app: str
    event: str
    dormant: bool


def _question(payload: str) -> _Question | None:
    """The question about an event that a notice tells of; None for any other notice."""
    try:
        asked = json.loads(payload)
        return _Question(str(asked["app"]), str(asked["event"]), bool(asked["dormant"]))
    except (ValueError, TypeError, KeyError):
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
