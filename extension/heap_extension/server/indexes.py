"""The partial indexes of definitions: their names, and the commands that build and drop them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from heap_extension.server.catalog import Database, rows
from heap_extension.server.quote import identifier, qualified

__all__ = [
    "WAKE_MAINTAIN",
    "create_index",
    "drop_index",
    "index_rows",
    "index_suffix",
    "indexed_partitions",
    "left_to_maintain",
    "partitions",
]

_SLUG_LENGTH = 24


def index_suffix(name: str, predicate: str, covering: Sequence[str] = ()) -> str:
    """What follows the partition in an index's name: the event, readable, and a digest of it, its predicate and what
    it covers. Another predicate makes another index, so that both can exist while one takes over.

    >>> index_suffix("Viewed pricing", "type = 'pageview'")
    'viewed_pricing_d01fd1f0'
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")[:_SLUG_LENGTH].rstrip("_") or "event"
    digest = hashlib.sha256("\0".join((name, predicate, *covering)).encode()).hexdigest()[:8]
    return f"{slug}_{digest}"


def partitions(database: Database, app: str) -> list[str]:
    """The app's partitions, by name."""
    found = rows(
        database,
        "SELECT c.relname AS name FROM pg_catalog.pg_inherits AS h JOIN pg_catalog.pg_class AS c ON c.oid = h.inhrelid"
        " WHERE h.inhparent = pg_catalog.to_regclass(pg_catalog.quote_ident($1) || '.events') ORDER BY 1",
        app=app,
    )
    return [row["name"] for row in found]


def indexed_partitions(database: Database, app: str, suffix: str) -> list[str]:
    """The partitions that have an index of that suffix, valid or not: of a definition that is dropped, what `heap
    maintain` was to drop and did not come to."""
    found = rows(
        database,
        "SELECT c.relname AS name FROM pg_catalog.pg_inherits AS h JOIN pg_catalog.pg_class AS c ON c.oid = h.inhrelid"
        " JOIN pg_catalog.pg_class AS i ON i.relnamespace = c.relnamespace AND i.relname = c.relname || '_' || $2"
        " WHERE h.inhparent = pg_catalog.to_regclass(pg_catalog.quote_ident($1) || '.events') ORDER BY 1",
        app=app,
        suffix=suffix,
    )
    return [row["name"] for row in found]


def index_rows(predicate: str, covering: Sequence[str] = ()) -> str:
    """What a definition's index holds: the user's matching events in order, each with the covered columns."""
    included = f" INCLUDE ({', '.join(map(identifier, covering))})" if covering else ""
    return f"(user_id, time, event_id){included} WHERE {predicate}"


def create_index(app: str, partition: str, suffix: str, predicate: str, covering: Sequence[str] = ()) -> str:
    """The command that builds a definition's index on one partition."""
    name = identifier(f"{partition}_{suffix}")
    return f"CREATE INDEX {name} ON {qualified(app, partition)} {index_rows(predicate, covering)}"


def drop_index(app: str, partition: str, suffix: str) -> str:
    """The command that drops it."""
    return f"DROP INDEX IF EXISTS {qualified(app, f'{partition}_{suffix}')}"


def left_to_maintain(database: Database) -> bool:
    """True when `heap maintain` builds and drops indexes, rather than the statement that defines or drops an event."""
    (row,) = rows(
        database,
        "SELECT CASE index_builds WHEN 'auto' THEN heap._maintainer() IS NOT NULL ELSE index_builds = 'maintain' END"
        " AS maintained FROM heap.settings",
    )
    return bool(row["maintained"])


WAKE_MAINTAIN = "SELECT pg_catalog.pg_notify('heap_maintain', '')"
"""The command that tells `heap maintain` of a change, when the transaction commits."""
