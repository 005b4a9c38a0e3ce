"""What becomes of the events and rows of users that are merged into others: SQL that both ways of merging share, the
one inside a statement (`server.users`) and the one between shards (`maintain.merges`).

A copy keeps its event id, which orders a user's events of one instant. Where another event of the user has it already,
the same event is not copied again, and a different one gets an id made of its own and its contents: always the same.
"""

from __future__ import annotations

from heap_compiler.schema import EVENT_COLUMNS, USER_COLUMNS

__all__ = [
    "COPY_ID",
    "EVENT_CONTENTS",
    "STORED_EVENT_COLUMNS",
    "STORED_USER_COLUMNS",
    "WRITE_MERGED_ROW",
    "alias_commands",
    "event_copies",
    "merged_rows",
]

STORED_EVENT_COLUMNS = (*EVENT_COLUMNS, "properties")
STORED_USER_COLUMNS = (*USER_COLUMNS, "properties", "property_times")

_KEY = ("user_id", "time", "event_id")
_OTHERS = tuple(name for name in STORED_EVENT_COLUMNS if name not in _KEY)

EVENT_CONTENTS = f"pg_catalog.jsonb_build_array({', '.join(_OTHERS)})"
"""All of an event but its key, to compare events by."""

COPY_ID = "pg_catalog.hashint8extended(event_id, pg_catalog.jsonb_hash_extended(contents, 0))"
"""The id of a copy whose own id is another event's, over rows with `contents`: the same event has the same one,
whoever's it is."""


WRITE_MERGED_ROW = """
ON CONFLICT (user_id) DO UPDATE SET identity = coalesce(u.identity, excluded.identity), properties = CASE
    WHEN jsonb_typeof(u.properties) = 'object' AND jsonb_typeof(excluded.properties) = 'object'
    THEN heap._latest_properties(excluded.properties, excluded.property_times, u.properties, u.property_times)
    ELSE coalesce(u.properties, excluded.properties) END,
    property_times = heap._latest_times(u.property_times, excluded.property_times)"""
"""How `merged_rows` are inserted into users AS u: what was written there meanwhile wins, unless it was set earlier."""


def event_copies(moving: str, there: str) -> str:
    """The query of the copies that are still to be made.

    Args:
        moving: rows of events with `merged_into` and `contents`.
        there: `user_id, time, event_id, contents` of the events that the users they are merged into have at the keys
            of `moving`, and at those with `COPY_ID`.
    """
    return f"""
SELECT m.merged_into AS user_id, m.time,
    CASE WHEN m.place = 1 AND NOT EXISTS (
        SELECT FROM {there} AS t WHERE t.user_id = m.merged_into AND t.time = m.time AND t.event_id = m.event_id
    ) THEN m.event_id ELSE m.copy_id END AS event_id, {", ".join(f"m.{name}" for name in _OTHERS)}
FROM (
    SELECT *, {COPY_ID} AS copy_id,
        pg_catalog.row_number() OVER (PARTITION BY merged_into, time, event_id ORDER BY user_id) AS place
    FROM (
        SELECT DISTINCT ON (merged_into, time, event_id, contents) * FROM {moving}
        ORDER BY merged_into, time, event_id, contents, user_id
    ) AS different
) AS m
WHERE NOT EXISTS (
    SELECT FROM {there} AS t WHERE t.user_id = m.merged_into AND t.time = m.time
        AND t.event_id IN (m.event_id, m.copy_id) AND t.contents = m.contents
)"""


def merged_rows(known: str) -> str:
    """The query of the rows of users as they are after a merge. Of a property the one set last wins, as far as that is
    known; then, as for the identity, that of who is merged into, then that of the lowest number.

    Args:
        known: rows of users, both those merged and those merged into, with `merged_into` (of the latter, themselves).
    """
    return f"""
SELECT u.user_id, u.identity, CASE WHEN u.odd_properties IS NULL THEN coalesce((
    SELECT pg_catalog.jsonb_object_agg(p.key, p.value ORDER BY k.property_times -> p.key NULLS FIRST,
        CASE WHEN k.property_times ? p.key THEN p.value END, k.user_id = k.merged_into, k.user_id DESC)
    FROM {known} AS k
    CROSS JOIN LATERAL pg_catalog.jsonb_each(
        CASE WHEN pg_catalog.jsonb_typeof(k.properties) = 'object' THEN k.properties END) AS p
    WHERE k.merged_into = u.user_id
), '{{}}') ELSE u.odd_properties END AS properties, (
    SELECT pg_catalog.jsonb_object_agg(t.key, t.value ORDER BY t.value)
    FROM {known} AS k CROSS JOIN LATERAL pg_catalog.jsonb_each(k.property_times) AS t
    WHERE k.merged_into = u.user_id
) AS property_times
FROM (
    SELECT merged_into AS user_id,
        (pg_catalog.array_agg(identity ORDER BY user_id <> merged_into, user_id)
            FILTER (WHERE identity IS NOT NULL))[1] AS identity,
        (pg_catalog.array_agg(properties) FILTER (WHERE user_id = merged_into
            AND pg_catalog.jsonb_typeof(properties) <> 'object'))[1] AS odd_properties
    FROM {known}
    GROUP BY merged_into
) AS u"""


def alias_commands(app: str, merged: str) -> list[str]:
    """The commands that note who became whom, those merged before included.

    Args:
        app: the app, as a constant of SQL or its placeholder.
        merged: query of `user_id` and `merged_into`.
    """
    return [
        f"INSERT INTO heap.user_alias (app, user_id, merged_into) SELECT {app}, user_id, merged_into"
        f" FROM ({merged}) AS merged"
        " ON CONFLICT (app, user_id) DO UPDATE SET merged_into = excluded.merged_into, merged_at = excluded.merged_at",
        "UPDATE heap.user_alias AS a SET merged_into = merged.merged_into"
        f" FROM ({merged}) AS merged WHERE a.app = {app} AND a.merged_into = merged.user_id",
    ]
