"""`heap ingest replay --rebuild`: an app made from nothing but the log, beside the one there is, and then in its place.

The new tables grow in an app of another name, with the definitions, segments, merges and erasures of the old one. When
they have caught up with the log, one transaction that holds back the app's writers exchanges the two schemas.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

from heap_ingest.enrich import Enrichment
from heap_ingest.log import Span, find_span
from heap_ingest.replay import Replayed, replay

__all__ = ["RebuildError", "rebuild"]

_CLOSE = 1_000
"""Messages that are stored while the app's writers wait, about: before that, it catches up."""
_CATCH_UPS = 10
"""So often the log is read on while the app is written to. Where it grows faster than that, more would not help."""

_PATIENCE = 60.0
"""Seconds to wait for merges of users that `heap maintain` has to do."""


class RebuildError(Exception):
    """The app cannot be rebuilt; it is as it was. The message says why."""


def rebuild(
    dsn: str,
    bootstrap_servers: str,
    topic: str,
    app: str,
    *,
    keep_as: str | None = None,
    enrichment: Enrichment | None = None,
    progress: Callable[[int], None] = lambda _read: None,
) -> Replayed:
    """Makes the app anew from the whole log. What never was in the log, such as imported events, is not in it.

    Args:
        dsn: of the database, or of the coordinator; the user owns the apps' tables.
        keep_as: the name of the app that keeps what was there; None drops it.
        enrichment: what is added to events.
        progress: called with the number of messages read so far.

    Raises:
        RebuildError: there is no such app, the other name is taken, or users are being merged for too long.
        psycopg.Error: the database failed.
        KafkaException: Kafka does not answer.
    """
    with psycopg.connect(dsn, autocommit=True, application_name="heap ingest replay") as connection:
        work = _Rebuild(connection, app, keep_as or f"{app}_rebuilt")
        work.create()
        try:
            span = find_span(bootstrap_servers, None, topic=topic)
            done = Replayed(0, 0, 0)

            def store(part: Span) -> None:
                nonlocal done
                before = done.read
                more = replay(
                    dsn,
                    bootstrap_servers,
                    part,
                    app=app,
                    enrichment=enrichment,
                    schemas={app: work.other},
                    progress=lambda read: progress(before + read),
                )
                done = Replayed(*(a + b for a, b in zip(done, more, strict=True)))

            def rest() -> Span:
                nonlocal span
                now = find_span(bootstrap_servers, None, topic=topic)
                ends = {partition: after for partition, (_, after) in span.offsets.items()}
                left = {n: (ends.get(n, first), after) for n, (first, after) in now.offsets.items()}
                span = now
                return Span(topic, {n: bounds for n, bounds in left.items() if bounds[0] < bounds[1]})

            store(span)
            for _ in range(_CATCH_UPS):
                part = rest()
                store(part)
                if part.length <= _CLOSE:
                    break
            deadline = time.monotonic() + _PATIENCE
            while not work.exchange(lambda: store(rest())):
                if time.monotonic() > deadline:
                    raise RebuildError("users are being merged: `heap maintain` has to finish that first")
                time.sleep(0.5)
        except BaseException:
            work.drop()
            raise
        if keep_as is None:
            work.drop()
    return done


class _Rebuild:
    """The app, and the other one of the same definitions in which it is made anew."""

    def __init__(self, connection: psycopg.Connection[Any], app: str, other: str) -> None:
        self._connection = connection
        self._app = app
        self.other = other

    def create(self) -> None:
        """Makes the other app, empty."""
        names = {name for (name,) in self._connection.execute("SELECT name FROM heap.app").fetchall()}
        if self._app not in names:
            raise RebuildError(f"there is no app {self._app!r}")
        if self.other in names:
            raise RebuildError(f"there is an app {self.other!r} already: drop it, or --keep-as another name")
        self._connection.execute(
            "SELECT heap.create_app(%s, time_zone, %s) FROM heap.app WHERE name = %s",
            (self.other, self._shards(), self._app),
        )
        months = self._connection.execute(
            "SELECT min(relname), max(relname) FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%s))"
            " AND relkind = 'r' AND relname ~ '^events_[0-9]{4}_[0-9]{2}$'",
            (self._app,),
        ).fetchone()
        if months and months[0]:
            first, last = (f"{month[7:11]}-{month[12:14]}-01 00:00+00" for month in months)
            self._connection.execute("SELECT heap.make_partitions(%s, %s, %s)", (self.other, first, last))
        self._format("INSERT INTO {other}.users (user_id, identity) SELECT user_id, identity FROM {app}.users"
                     " WHERE identity IS NOT NULL")  # fmt: skip
        for table, columns in (
            ("user_alias", "user_id, merged_into, merged_at"),
            ("erased_user", "user_id, erased_at"),
        ):
            self._connection.execute(
                f"INSERT INTO heap.{table} (app, {columns}) SELECT %s, {columns} FROM heap.{table} WHERE app = %s",
                (self.other, self._app),
            )
        self._define()

    def drop(self) -> None:
        """Drops the other app."""
        self._connection.execute("SELECT heap.drop_app(name) FROM heap.app WHERE name = %s", (self.other,))

    def exchange(self, catch_up: Callable[[], None]) -> bool:
        """Puts the new tables in the place of the old ones. False when merges of users are under way.

        Args:
            catch_up: stores the rest of the log; meanwhile nothing is written to the app.
        """
        self._follow()
        with self._connection.transaction() as transaction:
            self._connection.execute("SELECT FROM heap.app WHERE name = %s FOR UPDATE", (self._app,))
            catch_up()
            self._connection.execute("SELECT FROM heap.app WHERE name = %s FOR UPDATE", (self.other,))
            if self._differs():
                raise psycopg.Rollback(transaction)
            self._rename()
            return True
        return False

    def _shards(self) -> int | None:
        if not self._connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone():
            return None
        row = self._connection.execute(
            "SELECT shard_count FROM citus_tables WHERE table_name = to_regclass(quote_ident(%s) || '.events')",
            (self._app,),
        ).fetchone()
        return None if row is None else int(row[0])

    def _follow(self) -> None:
        """What was defined, merged and erased since."""
        self._define()
        with self._connection.transaction():
            self._choose()
            self._connection.execute(
                "SELECT heap.merge_users(user_id, merged_into) FROM heap.user_alias AS a"
                " WHERE app = %s AND NOT EXISTS ("
                "SELECT FROM heap.user_alias AS o WHERE o.app = %s AND o.user_id = a.user_id)",
                (self._app, self.other),
            )
            self._connection.execute(
                "SELECT heap.delete_user(user_id) FROM heap.erased_user AS e WHERE app = %s AND NOT EXISTS ("
                "SELECT FROM heap.erased_user AS o"
                " WHERE o.app = %s AND (o.user_id, o.erased_at) = (e.user_id, e.erased_at))",
                (self._app, self.other),
            )
            self._connection.execute(
                "UPDATE heap.erased_user AS o SET erased_at = e.erased_at FROM heap.erased_user AS e"
                " WHERE o.app = %s AND e.app = %s AND o.user_id = e.user_id",
                (self.other, self._app),
            )

    def _differs(self) -> bool:
        """Whether something was defined, merged or erased since `_follow`, or is being merged."""
        pending = "SELECT 1 FROM heap.user_merge WHERE app IN (%s, %s)"
        if self._connection.execute(pending, (self._app, self.other)).fetchone():
            return True
        for table, columns in (
            ("event_definition", "name, definition, covering"),
            ("segment_definition", "name, definition"),
            ("user_alias", "user_id, merged_into"),
            ("erased_user", "user_id, erased_at"),
        ):
            difference = (
                f"(SELECT {columns} FROM heap.{table} WHERE app = %s"
                f" EXCEPT SELECT {columns} FROM heap.{table} WHERE app = %s)"
            )
            both = f"{difference} UNION ALL {difference}"
            if self._connection.execute(both.encode(), (self._app, self.other, self.other, self._app)).fetchone():
                return True
        return False

    def _choose(self) -> None:
        self._connection.execute("SELECT set_config('heap.app', %s, true)", (self.other,))

    def _define(self) -> None:
        """The definitions and segments of the app, those that others are made of first."""
        with self._connection.transaction():
            self._choose()
            self._define_all("event", "uses")
            self._connection.execute(
                "SELECT heap.cover_event(d.name, VARIADIC d.covering) FROM heap.event_definition AS d"
                " JOIN heap.event_definition AS o USING (name)"
                " WHERE d.app = %s AND o.app = %s AND o.covering <> d.covering",
                (self._app, self.other),
            )
            self._define_all("segment", "segments")
            self._connection.execute(
                "SELECT heap.list_segment(name) FROM heap.segment_definition"
                " WHERE app = %s AND list_table IS NOT NULL ORDER BY name",
                (self._app,),
            )

    def _define_all(self, kind: str, parts: str) -> None:
        query = f"SELECT name, definition, {parts} FROM heap.{kind}_definition WHERE app = %s ORDER BY name"
        wanted = {name: (definition, uses) for name, definition, uses in self._connection.execute(
            query.encode(), (self._app,)).fetchall()}  # fmt: skip
        there = {name: definition for name, definition, _ in self._connection.execute(
            query.encode(), (self.other,)).fetchall()}  # fmt: skip
        for name in there.keys() - wanted.keys():
            self._connection.execute(f"SELECT heap.drop_{kind}(%s)".encode(), (name,))
        done: set[str] = set()

        def define(name: str) -> None:
            if name in done or name not in wanted:
                return
            done.add(name)
            definition, uses = wanted[name]
            for part in uses:
                define(part)
            if there.get(name) != definition:
                self._connection.execute(f"SELECT heap.define_{kind}(%s, %s)".encode(), (name, definition))

        for name in wanted:
            define(name)

    def _rename(self) -> None:
        aside = f"{self.other}_aside"
        for old, new in ((self._app, aside), (self.other, self._app), (aside, self.other)):
            self._connection.execute(
                sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new))
            )
        # The conditions of the new tables' indexes are those the compiler makes now.
        self._connection.execute(
            "UPDATE heap.event_definition AS d SET predicate = o.predicate, index_suffix = o.index_suffix,"
            " gates_patterns = o.gates_patterns, covering = o.covering, dormant = o.dormant"
            " FROM heap.event_definition AS o WHERE d.app = %s AND o.app = %s AND d.name = o.name",
            (self._app, self.other),
        )
        for schema, stranger in ((self._app, self.other), (self.other, self._app)):
            for role in (f"heap_{stranger}_read", f"heap_{stranger}_write"):
                for what in ("ALL TABLES IN SCHEMA", "SCHEMA"):
                    self._connection.execute(
                        sql.SQL("REVOKE ALL ON {} {} FROM {}").format(
                            sql.SQL(what), sql.Identifier(schema), sql.Identifier(role)
                        )
                    )
            self._connection.execute(
                sql.SQL("COMMENT ON SCHEMA {} IS {}").format(
                    sql.Identifier(schema), sql.Literal(f"Events and users of the app {schema}")
                )
            )
            self._connection.execute("SELECT heap.grant_roles(%s)", (schema,))
        self._connection.execute(
            "UPDATE heap.app SET version = nextval('heap.catalog_version') WHERE name IN (%s, %s)",
            (self._app, self.other),
        )

    def _format(self, text: str) -> None:
        self._connection.execute(sql.SQL(text).format(app=sql.Identifier(self._app), other=sql.Identifier(self.other)))
