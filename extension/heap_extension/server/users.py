"""Commands that merge, identify and erase users.

Without shards a merge is one transaction. Between shards it is a request, which `heap maintain` carries out.
"""

from __future__ import annotations

from heap_compiler import HeapError
from heap_compiler.passes.read_merging_users import MERGED_USERS
from heap_extension.copies import (
    EVENT_CONTENTS,
    STORED_EVENT_COLUMNS,
    STORED_USER_COLUMNS,
    WRITE_MERGED_ROW,
    alias_commands,
    event_copies,
    merged_rows,
)
from heap_extension.server.catalog import DatabaseCatalog, rows
from heap_extension.server.indexes import WAKE_MAINTAIN
from heap_extension.server.quote import literal, qualified
from heap_extension.server.versions import new_version
from heap_extension.user_ids import hash_bigint

__all__ = ["delete", "identify", "known_user", "merge", "traces"]


def merge(catalog: DatabaseCatalog, user: str | None, into: str | None) -> list[str]:
    """All that is and will be `user`'s becomes `into`'s, or that of whom they became. Who is the same already stays so;
    events that were written for `user` since then move over.

    Raises:
        HeapError: one of the two is missing.
    """
    if user is None or into is None:
        raise HeapError("two users, not null, are expected")
    return _merge(catalog, int(user), _final(catalog, int(into)))


def identify(catalog: DatabaseCatalog, user: str | None, identity: str | None) -> list[str]:
    """The user becomes the one of that identity, who is made known if nobody has it.

    Raises:
        HeapError: something is missing, or the user is known by another identity.
    """
    if user is None or not identity:
        raise HeapError("a user and an identity, not null or empty, are expected")
    known, who = _known(catalog, identity), _final(catalog, int(user))
    other = _identity(catalog, who)
    if who != known and other not in {None, identity}:
        raise HeapError(
            f"the user {user} is known as '{other}'",
            hint=f"if both are one person: SELECT heap.merge_users({who}, {known});",
            sqlstate="23505",
        )
    users = qualified(catalog.app.name, "users")
    commands = [] if who == known else _merge(catalog, who, known)
    if _identity(catalog, known) is None:
        commands.insert(
            0,
            f"INSERT INTO {users} AS u (user_id, identity) VALUES ({known}, {literal(identity)})"
            " ON CONFLICT (user_id) DO UPDATE SET identity = coalesce(u.identity, excluded.identity)",
        )
    return commands


def known_user(catalog: DatabaseCatalog, identity: str | None) -> list[str]:
    """The number of the user of that identity, as text."""
    return [str(_known(catalog, str(identity)))]


def delete(catalog: DatabaseCatalog, user: str | None) -> list[str]:
    """Every row of the person goes, whichever of their numbers it has; the numbers are kept as erased.

    Raises:
        HeapError: the user is missing.
    """
    ids = _person(catalog, user)
    app = literal(catalog.app.name)
    return [
        *_drop_packs(catalog, ids),
        *(f"DELETE FROM {table} WHERE {condition}" for table, condition in _traces(catalog, ids).items()),
        "INSERT INTO heap.erased_user (app, user_id)"
        f" SELECT {app}, erased FROM unnest({_array(ids)}) AS erased"
        " ON CONFLICT (app, user_id) DO UPDATE SET erased_at = excluded.erased_at",
        new_version(catalog.app.name),
    ]


def traces(catalog: DatabaseCatalog, user: str | None) -> list[str]:
    """The query that counts a person's rows, per table that has some.

    Raises:
        HeapError: the user is missing.
    """
    ids = _person(catalog, user)
    counts = [
        f"SELECT '{table}'::regclass::text AS relation, count(*) AS deleted FROM {table} WHERE {condition}"
        for table, condition in _traces(catalog, ids).items()
    ]
    return [f"SELECT relation, deleted FROM ({' UNION ALL '.join(counts)}) AS found WHERE deleted > 0"]


def _drop_packs(catalog: DatabaseCatalog, ids: list[int]) -> list[str]:
    """Nobody reads packs that a person's events are in once those are deleted; but they are in them."""
    app = catalog.app.name
    months = rows(
        catalog.database,
        "SELECT DISTINCT pg_catalog.to_char(time AT TIME ZONE 'UTC', 'YYYY_MM') AS month"
        f" FROM {qualified(app, 'events')} WHERE user_id = ANY ({_array(ids)}) ORDER BY 1",
    )
    found = rows(
        catalog.database,
        "SELECT heap._places($1, $2::bigint[]) AS places"
        " WHERE pg_catalog.to_regclass(pg_catalog.quote_ident($1) || '.packs') IS NOT NULL",
        app=app,
        users=_users(ids),
    )
    if not months or not found:
        return []
    pattern = f"^events_({'|'.join(row['month'] for row in months)})(_|$)"
    return [
        f"DELETE FROM {qualified(app, 'packs')} WHERE place = ANY ({_array(found[0]['places'])})"
        f" AND relation ~ {literal(pattern)}"
    ]


def _traces(catalog: DatabaseCatalog, ids: list[int]) -> dict[str, str]:
    """Where a person's rows are: every table of the app and of the catalog with a column user_id, and the condition."""
    found = rows(
        catalog.database,
        "SELECT n.nspname AS schema, c.relname AS name, pg_catalog.bool_or(a.attname = 'merged_into') AS is_merge"
        " FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
        " JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND NOT a.attisdropped"
        " WHERE n.nspname IN ($1, 'heap') AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
        " AND c.oid <> 'heap.erased_user'::regclass"
        " GROUP BY 1, 2 HAVING pg_catalog.bool_or(a.attname = 'user_id') ORDER BY n.nspname = 'heap', 2",
        app=catalog.app.name,
    )
    conditions: dict[str, str] = {}
    for row in found:
        condition = f"user_id = ANY ({_array(ids)})"
        if row["is_merge"]:
            condition = f"({condition} OR merged_into = ANY ({_array(ids)}))"
        if row["schema"] == "heap":
            condition = f"app = {literal(catalog.app.name)} AND {condition}"
        conditions[qualified(row["schema"], row["name"])] = condition
    return conditions


def _merge(catalog: DatabaseCatalog, user: int, into: int) -> list[str]:
    who = _final(catalog, user)
    ending = {user, who}
    if who == into:
        ending = {user} if user != into and _has_rows(catalog, user) else set()
    else:
        identity = _identity(catalog, who)
        if identity is not None:  # they may be identified again, under the number of that identity
            number = hash_bigint(identity)
            ending |= {number} if _final(catalog, number) in {who, number} else set()
    ending -= {into}
    if not ending:
        return []
    if catalog.is_distributed:
        return [
            "INSERT INTO heap.user_merge (app, user_id, merged_into)"
            f" SELECT {literal(catalog.app.name)}, merged, {into} FROM unnest({_array(sorted(ending))}) AS merged"
            " ON CONFLICT (app, user_id) DO NOTHING",
            WAKE_MAINTAIN,
        ]
    return _merge_here(catalog, sorted(ending), into)


def _merge_here(catalog: DatabaseCatalog, ending: list[int], into: int) -> list[str]:
    """The whole merge, in the transaction of the statement."""
    app = catalog.app.name
    events, users, old = qualified(app, "events"), qualified(app, "users"), _array(ending)
    columns = ", ".join(STORED_EVENT_COLUMNS)
    user_columns = ", ".join(STORED_USER_COLUMNS)
    commands = [
        *alias_commands(literal(app), f"SELECT merged AS user_id, {into} AS merged_into FROM unnest({old}) AS merged"),
        f"WITH gone AS (DELETE FROM {events} WHERE user_id = ANY ({old}) RETURNING {columns}),"
        f" moving AS (SELECT *, {into}::bigint AS merged_into, {EVENT_CONTENTS} AS contents FROM gone),"
        f" there AS (SELECT user_id, time, event_id, {EVENT_CONTENTS} AS contents FROM {events}"
        f" WHERE user_id = {into} AND time IN (SELECT time FROM gone))"
        f" INSERT INTO {events} ({columns}) {event_copies('moving', 'there')}",
        f"WITH known AS (SELECT *, {into}::bigint AS merged_into FROM {users}"
        f" WHERE user_id = ANY ({old} || {into}::bigint))"
        f" INSERT INTO {users} AS u ({user_columns}) {merged_rows('known')} {WRITE_MERGED_ROW}",
        f"DELETE FROM {users} WHERE user_id = ANY ({old})",
    ]
    for segment in catalog.segments.values():
        if segment.list_table is not None:
            table = qualified(app, segment.list_table)
            commands += [
                f"INSERT INTO {table} (user_id) SELECT {into} WHERE EXISTS (SELECT FROM {table}"
                f" WHERE user_id = ANY ({old})) ON CONFLICT DO NOTHING",
                f"DELETE FROM {table} WHERE user_id = ANY ({old})",
            ]
    return commands


def merging_tables(app: str, *, distributed: bool) -> list[str]:
    """The commands that make what merges need beyond events and users: how to find a user by identity, and where the
    rows of users who are merged between shards wait."""
    users = qualified(app, "users")
    commands = [f"CREATE INDEX users_identity ON {users} (identity) WHERE identity IS NOT NULL"]
    if distributed:
        merged = qualified(app, MERGED_USERS)
        commands += [
            f"CREATE TABLE {merged} (user_id bigint PRIMARY KEY, identity text, properties jsonb,"
            " property_times jsonb, is_known boolean NOT NULL, lists text[] NOT NULL)",
            f"COMMENT ON TABLE {merged} IS 'Users that others are merged into, as they will be'",
            f"SELECT create_distributed_table({literal(merged)}, 'user_id', colocate_with => {literal(users)})",
        ]
    return commands


def upgrade(catalog: DatabaseCatalog) -> list[str]:
    """The commands that bring the tables of an app of an earlier version to this one: those that are still to do."""
    app = catalog.app.name
    (row,) = rows(
        catalog.database,
        "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attname = 'merge_id' AND NOT attisdropped"
        " AND attrelid = pg_catalog.to_regclass(pg_catalog.quote_ident($1) || '.events')) AS is_old",
        app=app,
    )
    if not row["is_old"]:
        return []
    return [
        f"ALTER TABLE {qualified(app, 'events')} ADD COLUMN merge_id bigint",
        f"ALTER TABLE {qualified(app, 'users')} ADD COLUMN property_times jsonb",
        *merging_tables(app, distributed=catalog.is_distributed),
    ]


def _person(catalog: DatabaseCatalog, user: str | None) -> list[int]:
    """All numbers of the person that has this one."""
    if user is None:
        raise HeapError("a user, not null, is expected")
    final = _final(catalog, int(user))
    found = rows(
        catalog.database,
        "WITH RECURSIVE person (user_id) AS (SELECT $2::bigint UNION SELECT m.user_id FROM person AS p JOIN ("
        "SELECT user_id, merged_into FROM heap.user_alias WHERE app = $1 UNION ALL"
        " SELECT user_id, merged_into FROM heap.user_merge WHERE app = $1) AS m ON m.merged_into = p.user_id)"
        " SELECT user_id FROM person ORDER BY 1",
        app=catalog.app.name,
        user=str(final),
    )
    return [int(row["user_id"]) for row in found]


def _final(catalog: DatabaseCatalog, user: int) -> int:
    """Who the user is, once every merge asked for is done."""
    (row,) = rows(
        catalog.database,
        "SELECT heap._final_user($1, $2::bigint) AS user_id",
        app=catalog.app.name,
        user=str(user),
    )
    return int(row["user_id"])


def _known(catalog: DatabaseCatalog, identity: str) -> int:
    """The user whose identity that is; if there is none, the one with the number of the identity."""
    number = hash_bigint(identity)
    found = rows(
        catalog.database,
        f"SELECT user_id FROM {qualified(catalog.app.name, 'users')} WHERE identity = $1"
        " ORDER BY user_id <> $2::bigint, user_id LIMIT 1",
        identity=identity,
        number=str(number),
    )
    return _final(catalog, int(found[0]["user_id"]) if found else number)


def _identity(catalog: DatabaseCatalog, user: int) -> str | None:
    """What the app knows the user by, or will once the merges asked for are done."""
    found = rows(
        catalog.database,
        f"SELECT identity FROM {qualified(catalog.app.name, 'users')} WHERE identity IS NOT NULL"
        " AND user_id = ANY ($1::bigint[]) ORDER BY user_id <> $2::bigint, user_id LIMIT 1",
        person=_users(_person(catalog, str(user))),
        user=str(user),
    )
    return found[0]["identity"] if found else None


def _has_rows(catalog: DatabaseCatalog, user: int) -> bool:
    """Whether there are events or a row of the user, such as written after a merge."""
    return any(
        rows(
            catalog.database,
            f"SELECT 1 AS found FROM {qualified(catalog.app.name, table)} WHERE user_id = $1::bigint LIMIT 1",
            user=str(user),
        )
        for table in ("events", "users")
    )


def _array(users: list[int]) -> str:
    return f"'{_users(users)}'::bigint[]"


def _users(users: list[int]) -> str:
    """A bigint[] as text."""
    return "{" + ",".join(str(user) for user in users) + "}"
