"""Merges of users between shards, a batch of an app's users at a time.

No transaction moves rows between shards for all readers at one moment, but a change of the catalog does change what all
queries read (`heap_compiler.passes.read_merging_users`). So a batch goes this way, each step when no transaction is
left that began before the one before it was there:

| the catalog says | queries leave out | and `heap maintain` |
|---|---|---|
| batch 7 | copies, `merge_id = 7` | copies the events to whom the users are merged into, marks those copied with -7 |
| batch 7 is moved | originals, `merge_id = -7` | deletes them, and writes the rows of users |
| nothing | nothing | |

A copy or a mark is made at most once whoever makes it, so a maintainer that was killed at any moment is followed by one
that goes on from what is there. Events that somebody writes for a merged user later carry no mark: they are that user's
until the next batch moves them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from heap_compiler.passes.read_merging_users import MERGED_USERS
from heap_extension.copies import (
    COPY_ID,
    EVENT_CONTENTS,
    STORED_EVENT_COLUMNS,
    STORED_USER_COLUMNS,
    WRITE_MERGED_ROW,
    alias_commands,
    event_copies,
    merged_rows,
)
from heap_extension.maintain.nodes import APPLICATION, connect_node

__all__ = ["UserMerges"]

_BATCH_USERS = 500
"""Users merged together: their numbers are in every query meanwhile."""

_BATCH_EVENTS = 20_000
"""Events copied in one transaction."""

_LONGEST_STATEMENT = timedelta(minutes=1)
"""A statement on several nodes that takes longer waits for one that was cut off."""

_LATE = timedelta(days=1)
"""For so long after a merge, events written for the old user are looked for."""

_EVENTS = ", ".join(STORED_EVENT_COLUMNS)


class _NotVisibleError(psycopg.OperationalError):
    """Rows that were committed cannot be read: a node is between the two phases of a commit."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """The rows of heap.user_merge that are under way."""

    number: int
    is_moved: bool
    merged: list[int]
    into: list[int]


class UserMerges:
    """The merges of one app, as long as one maintainer leads.

    Args:
        dsn: of the database, or of the coordinator.
        app: the app's name.
        leader: the connection of the maintainer, in autocommit mode.
        patience: for how long to wait for locks and open transactions before giving up until later.
    """

    def __init__(self, dsn: str, app: str, leader: psycopg.Connection[Any], patience: timedelta) -> None:
        self.dsn = dsn
        self.app = app
        self.leader = leader
        self.patience = patience
        self.waits_for: str | None = None
        """Whose open transaction holds up the merges, for people to read."""
        self._began: dict[tuple[int, bool], datetime] = {}
        """When what the catalog says was first seen: batch, moved or not."""
        self._copies_seen: int | None = None
        """The batch whose marked events all have copies that were seen; None after another maintainer or an error."""
        self._is_owed = True
        """Whether a node may still have to commit what another has."""

    def advance(self) -> int | None:
        """Does what can be done now: how many users ended with it, or None when nothing is asked for.

        Raises:
            psycopg.Error: a node refused, is gone or did not let go of a lock; nothing is lost, try again.
        """
        try:
            return self._advance()
        except psycopg.Error:
            self._copies_seen, self._is_owed = None, True
            raise

    def _advance(self) -> int | None:
        batch = self._batch() or self._begin()
        if batch is None:
            return None
        # What this one commits is committed on every node before the leader changes the catalog.
        with connect_node(self.dsn, None) as work:
            work.execute("SET citus.max_cached_conns_per_worker = 1")
            work.execute(f"SET statement_timeout = {_milliseconds(_LONGEST_STATEMENT)}")
            if self._is_owed:
                work.execute("SELECT recover_prepared_transactions()")
                self._is_owed = False
            if not batch.is_moved and self._older_transactions_end(batch):
                self._copy(work, batch)
                self._move(work, batch)
                batch = self._batch() or batch
            if batch.is_moved and self._older_transactions_end(batch):
                return self._end(work, batch)
        return 0

    def merge_late_users(self) -> None:
        """Merges once more who has events or a row again: somebody wrote for the old user."""
        aliases: dict[int, int] = dict(
            self.leader.execute(
                "SELECT user_id, merged_into FROM heap.user_alias AS a WHERE app = %s AND merged_at > now() - %s"
                " AND NOT EXISTS (SELECT FROM heap.user_merge AS m WHERE m.app = a.app AND m.user_id = a.user_id)",
                (self.app, _LATE),
            ).fetchall()
        )
        if not aliases:
            return
        late: set[int] = set()
        for table in ("events", "users"):
            query = sql.SQL("SELECT DISTINCT user_id FROM {} WHERE user_id = ANY ({})")
            late |= {user for (user,) in self.leader.execute(query.format(self._table(table), _array(aliases)))}
        for user in sorted(late):
            with self._app_locked(self.leader, "NO KEY UPDATE"):
                self.leader.execute("SELECT set_config('heap.app', %s, true)", (self.app,))
                self.leader.execute("SELECT heap.merge_users(%s, %s)", (user, aliases[user]))

    def _table(self, name: str) -> sql.Identifier:
        return sql.Identifier(self.app, name)

    def _batch(self) -> _Batch | None:
        rows = self.leader.execute(
            "SELECT batch, is_moved, user_id, merged_into FROM heap.user_merge WHERE app = %s AND batch IS NOT NULL"
            " ORDER BY user_id",
            (self.app,),
        ).fetchall()
        if not rows:
            return None
        return _Batch(rows[0][0], rows[0][1], [row[2] for row in rows], sorted({row[3] for row in rows}))

    @contextmanager
    def _app_locked(self, connection: psycopg.Connection[Any], how: str) -> Iterator[None]:
        """A transaction in which nobody else changes the app (FOR NO KEY UPDATE), or who they are that are merged (FOR
        SHARE)."""
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = {_milliseconds(self.patience)}")
            connection.execute(f"SELECT FROM heap.app WHERE name = %s FOR {how}", (self.app,))
            yield

    def _new_version(self) -> int:
        row = self.leader.execute(
            "UPDATE heap.app SET version = nextval('heap.catalog_version') WHERE name = %s RETURNING version",
            (self.app,),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def _begin(self) -> _Batch | None:
        """Takes up the merges that were asked for first. The version the app gets is the batch's number: there is no
        other like it."""
        waiting = "SELECT FROM heap.user_merge WHERE app = %s LIMIT 1"
        if self.leader.execute(waiting, (self.app,)).fetchone() is None:
            return None
        with self._app_locked(self.leader, "NO KEY UPDATE"):
            self.leader.execute(
                "UPDATE heap.user_merge AS m SET batch = %s, merged_into = heap._final_user(m.app, m.merged_into)"
                " FROM (SELECT user_id FROM heap.user_merge WHERE app = %s ORDER BY requested_at, user_id LIMIT %s)"
                " AS first WHERE m.app = %s AND m.user_id = first.user_id",
                (self._new_version(), self.app, _BATCH_USERS, self.app),
            )
        return self._batch()

    def _older_transactions_end(self, batch: _Batch) -> bool:
        """Waits for those that may run a query compiled before the catalog said this; False when that takes long. Only
        those of roles that may read the app are waited for."""
        state = batch.number, batch.is_moved
        if state not in self._began:
            row = self.leader.execute("SELECT clock_timestamp()").fetchone()
            assert row is not None
            self._began = {state: row[0]}
        deadline = time.monotonic() + self.patience.total_seconds()
        while (oldest := self._oldest(self._began[state])) is not None:
            if time.monotonic() > deadline:
                self.waits_for = oldest
                return False
            time.sleep(0.01)
        self.waits_for = None
        return True

    def _oldest(self, than: datetime) -> str | None:
        """The oldest of the transactions that are older, in words."""
        row = self.leader.execute(
            "SELECT format('process %%s of %%s, %%s, whose transaction has been open since %%s', pid, usename, state,"
            " date_trunc('second', xact_start))"
            " FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
            " AND pid <> pg_backend_pid() AND application_name <> %s AND xact_start < %s"
            " AND has_schema_privilege(usesysid, to_regnamespace(quote_ident(%s)), 'USAGE')"
            " ORDER BY xact_start LIMIT 1",
            (APPLICATION, than, self.app),
        ).fetchone()
        return None if row is None else str(row[0])

    def _copy(self, work: psycopg.Connection[Any], batch: _Batch) -> None:
        """Copies all there is, in transactions of a bounded number of events."""
        if self._copies_seen != batch.number:  # what another maintainer copied, it may not have seen to be there
            self._unmark(work, batch)
            self._copies_seen = batch.number
        copied = _BATCH_EVENTS
        while copied == _BATCH_EVENTS:
            with self._app_locked(work, "SHARE"):
                copied = self._copy_some(work, batch)
            self._expect_copies(work, batch)

    def _unmark(self, work: psycopg.Connection[Any], batch: _Batch) -> None:
        """Lets all events be copied again, which copies only those whose copies are not there.

        Raises:
            _NotVisibleError: some are marked still.
        """
        marked = "user_id = ANY ({merged}) AND merge_id = {mark}"
        work.execute(sql.SQL("UPDATE {events} SET merge_id = NULL WHERE " + marked).format(**self._parts(batch)))
        left = sql.SQL("SELECT FROM {events} WHERE " + marked + " LIMIT 1").format(**self._parts(batch))
        if work.execute(left).fetchone() is not None:
            raise _NotVisibleError("marks of events are not to be seen to be gone yet")

    def _copy_some(self, work: psycopg.Connection[Any], batch: _Batch) -> int:
        """Copies events that are not marked, and marks them; how many."""
        work.execute("DROP TABLE IF EXISTS pg_temp.moving")
        work.execute(
            sql.SQL(
                "CREATE TEMP TABLE moving AS SELECT {columns}, {contents} AS contents, NULL::bigint AS merged_into"
                " FROM {events} WHERE user_id = ANY ({merged}) AND merge_id IS DISTINCT FROM {mark}"
                " LIMIT {limit}"
            ).format(**self._parts(batch), limit=sql.Literal(_BATCH_EVENTS))
        )
        work.execute(
            "UPDATE pg_temp.moving SET merged_into = m.merged_into FROM heap.user_merge AS m"
            " WHERE m.app = %s AND m.batch = %s AND m.user_id = moving.user_id",
            (self.app, batch.number),
        )
        work.execute("DELETE FROM pg_temp.moving WHERE merged_into IS NULL")  # of who was erased since
        self._find_copies(work, batch)
        work.execute(
            sql.SQL(
                "INSERT INTO {events} ({columns}, merge_id) SELECT {columns}, {number} FROM pg_temp.copies"
                " ON CONFLICT DO NOTHING"
            ).format(**self._parts(batch))
        )
        work.execute(
            sql.SQL(
                "UPDATE {events} SET merge_id = {mark} WHERE user_id = ANY ({merged})"
                " AND (user_id, time, event_id) IN (SELECT user_id, time, event_id FROM pg_temp.moving)"
            ).format(**self._parts(batch))
        )
        (copied,) = work.execute("SELECT count(*) FROM pg_temp.moving").fetchone() or (0,)
        return int(copied)

    def _find_copies(self, work: psycopg.Connection[Any], batch: _Batch) -> None:
        """The copies of `moving` that are not there, into the table `copies`."""
        work.execute("DROP TABLE IF EXISTS pg_temp.there, pg_temp.copies")
        work.execute(
            sql.SQL(
                "CREATE TEMP TABLE there AS SELECT user_id, time, event_id, {contents} AS contents FROM {events}"
                " WHERE user_id = ANY ({into}) AND (user_id, time, event_id) IN"
                " (SELECT merged_into, time, unnest(ARRAY[event_id, {copy_id}]) FROM pg_temp.moving)"
            ).format(**self._parts(batch), copy_id=sql.SQL(COPY_ID))
        )
        work.execute(("CREATE TEMP TABLE copies AS " + event_copies("pg_temp.moving", "pg_temp.there")).encode())

    def _expect_copies(self, work: psycopg.Connection[Any], batch: _Batch) -> None:
        """Looks whether the copies of the last transaction are there.

        Raises:
            _NotVisibleError: they are not: a commit on several nodes is seen on each at its own time.
        """
        self._find_copies(work, batch)
        if work.execute("SELECT FROM pg_temp.copies LIMIT 1").fetchone() is not None:
            raise _NotVisibleError("copies of events are not to be seen yet")

    def _parts(self, batch: _Batch) -> dict[str, sql.Composable]:
        return {
            "events": self._table("events"),
            "columns": sql.SQL(_EVENTS),
            "contents": sql.SQL(EVENT_CONTENTS),
            "merged": _array(batch.merged),
            "into": _array(batch.into),
            "number": sql.Literal(batch.number),
            "mark": sql.Literal(-batch.number),
        }

    def _move(self, work: psycopg.Connection[Any], batch: _Batch) -> None:
        """Copies what came in since, and turns all queries to the copies: one commit on the coordinator alone. While
        the app is locked, whoever resolves users in heap.user_alias writes no event."""
        work.execute(f"SET statement_timeout = {4 * _milliseconds(self.patience)}")
        with self._app_locked(self.leader, "NO KEY UPDATE"):
            if self._batch() != batch:
                return  # somebody of it was erased
            with work.transaction():
                copied = self._copy_some(work, batch)
            self._expect_copies(work, batch)
            if copied == _BATCH_EVENTS:
                return  # too many to hold others back for: they are copied without the lock, and this is tried again
            with work.transaction():
                self._find_merged_users(work, batch)
                work.execute(sql.SQL("DELETE FROM {}").format(self._table(MERGED_USERS)))
                work.execute(
                    sql.SQL("INSERT INTO {} SELECT * FROM pg_temp.merged_users").format(self._table(MERGED_USERS))
                )
            work.execute("DROP TABLE IF EXISTS pg_temp.written")
            work.execute(sql.SQL("CREATE TEMP TABLE written AS SELECT * FROM {}").format(self._table(MERGED_USERS)))
            if work.execute("TABLE pg_temp.merged_users EXCEPT TABLE pg_temp.written").fetchone() is not None:
                raise _NotVisibleError("rows of users are not to be seen yet")
            merged = "SELECT user_id, merged_into FROM heap.user_merge WHERE app = %(app)s AND batch = %(batch)s"
            values = {"app": self.app, "batch": batch.number}
            self.leader.execute(
                "UPDATE heap.user_merge SET is_moved = true WHERE app = %(app)s AND batch = %(batch)s", values
            )
            for command in alias_commands("%(app)s", merged):
                self.leader.execute(command.encode(), values)
            self._new_version()
        work.execute(f"SET statement_timeout = {_milliseconds(_LONGEST_STATEMENT)}")

    def _find_merged_users(self, work: psycopg.Connection[Any], batch: _Batch) -> None:
        """The users that others are merged into as they will be, into the table `merged_users`; the lists of segments
        that the merged ones are in, into `listed`."""
        work.execute("DROP TABLE IF EXISTS pg_temp.known, pg_temp.listed, pg_temp.merged_users")
        work.execute(
            sql.SQL(
                "CREATE TEMP TABLE known AS SELECT {columns}, user_id AS merged_into FROM {users}"
                " WHERE user_id = ANY ({merged} || {into})"
            ).format(
                **self._parts(batch) | {"columns": sql.SQL(", ".join(STORED_USER_COLUMNS))}, users=self._table("users")
            )
        )
        work.execute("CREATE TEMP TABLE listed (list text, merged_into bigint)")
        for name in self._lists():
            work.execute(
                sql.SQL("INSERT INTO pg_temp.listed SELECT {}, user_id FROM {} WHERE user_id = ANY ({})").format(
                    sql.Literal(name), self._table(name), _array(batch.merged)
                )
            )
        for table in ("known", "listed"):
            work.execute(
                sql.SQL(
                    "UPDATE pg_temp.{table} SET merged_into = m.merged_into FROM heap.user_merge AS m"
                    " WHERE m.app = {app} AND m.batch = {number} AND m.user_id = {table}.merged_into"
                ).format(table=sql.Identifier(table), app=sql.Literal(self.app), number=sql.Literal(batch.number))
            )
        work.execute(
            (
                "CREATE TEMP TABLE merged_users AS"
                " SELECT coalesce(r.user_id, l.user_id) AS user_id, r.identity, r.properties, r.property_times,"
                " r.user_id IS NOT NULL AS is_known, coalesce(l.lists, '{}') AS lists"
                f" FROM ({merged_rows('pg_temp.known')}) AS r FULL JOIN (SELECT merged_into AS user_id,"
                " array_agg(DISTINCT list ORDER BY list) AS lists FROM pg_temp.listed GROUP BY 1) AS l"
                " ON l.user_id = r.user_id"
            ).encode()
        )

    def _lists(self) -> list[str]:
        found = self.leader.execute(
            "SELECT list_table FROM heap.segment_definition WHERE app = %s AND list_table IS NOT NULL ORDER BY 1",
            (self.app,),
        )
        return [name for (name,) in found]

    def _end(self, work: psycopg.Connection[Any], batch: _Batch) -> int:
        """Deletes what nobody reads any longer and writes the rows of users and lists; then the batch is done."""
        users, merged = self._table("users"), _array(batch.merged)
        with self._app_locked(work, "SHARE"):
            if self._batch() != batch:
                return 0  # somebody of it was erased
            work.execute(
                sql.SQL("DELETE FROM {events} WHERE user_id = ANY ({merged}) AND merge_id = {mark}").format(
                    **self._parts(batch)
                )
            )
            self._find_merged_users(work, batch)
            work.execute(
                sql.SQL(
                    "INSERT INTO {} AS u (user_id, identity, properties, property_times)"
                    " SELECT user_id, identity, properties, property_times FROM pg_temp.merged_users WHERE is_known {}"
                ).format(users, sql.SQL(WRITE_MERGED_ROW))
            )
            lists = self._lists()
            for name in lists:
                work.execute(
                    sql.SQL(
                        "INSERT INTO {} SELECT DISTINCT merged_into FROM pg_temp.listed WHERE list = {}"
                        " ON CONFLICT DO NOTHING"
                    ).format(self._table(name), sql.Literal(name))
                )
            for name in ("users", *lists):
                work.execute(sql.SQL("DELETE FROM {} WHERE user_id = ANY ({})").format(self._table(name), merged))
        self._expect_end(work, batch, lists)
        with self._app_locked(self.leader, "NO KEY UPDATE"):
            self.leader.execute("DELETE FROM heap.user_merge WHERE app = %s AND batch = %s", (self.app, batch.number))
            self._new_version()
        return len(batch.merged)

    def _expect_end(self, work: psycopg.Connection[Any], batch: _Batch, lists: list[str]) -> None:
        """Looks whether nothing of the merged users is left, and the others are known.

        Raises:
            _NotVisibleError: something is.
        """
        marked = sql.SQL("SELECT FROM {events} WHERE user_id = ANY ({merged}) AND merge_id = {mark} LIMIT 1")
        left = [marked.format(**self._parts(batch))]
        for name in ("users", *lists):
            table = self._table(name)
            left.append(sql.SQL("SELECT FROM {} WHERE user_id = ANY ({}) LIMIT 1").format(table, _array(batch.merged)))
        known = [user for (user,) in work.execute("SELECT user_id FROM pg_temp.merged_users WHERE is_known")]
        (there,) = work.execute(
            sql.SQL("SELECT count(*) FROM {} WHERE user_id = ANY ({})").format(self._table("users"), _array(known))
        ).fetchone() or (0,)
        if there < len(known) or any(work.execute(query).fetchone() is not None for query in left):
            raise _NotVisibleError("the end of merged users is not to be seen yet")


def _milliseconds(time: timedelta) -> int:
    return max(1, int(time / timedelta(milliseconds=1)))


def _array(users: Iterable[int]) -> sql.Composable:
    """A bigint[] constant: Citus chooses shards by constants."""
    return sql.SQL("{}::bigint[]").format(sql.Literal("{" + ",".join(str(user) for user in users) + "}"))
