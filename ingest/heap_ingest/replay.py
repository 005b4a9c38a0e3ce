"""`heap ingest replay`: the log once more into the same tables. What is right there stays, what is missing comes back.

It reads from a start that is given to an end that is noted before it begins, beside the sinks and without their
offsets. Rows have their keys from the log, so that storing a message again changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import psycopg

from heap_ingest.enrich import Enrichment
from heap_ingest.log import Span, read_span
from heap_ingest.store import Store, read_batch

__all__ = ["Replayed", "replay"]


class Replayed(NamedTuple):
    """What a replay did: messages read; events, properties and identities of the wanted app given to the tables; those
    that cannot be stored (they are dead letters since they were read first)."""

    read: int
    stored: int
    rejected: int


def replay(
    dsn: str,
    bootstrap_servers: str,
    span: Span,
    *,
    app: str | None = None,
    enrichment: Enrichment | None = None,
    schemas: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda _read: None,
) -> Replayed:
    """Stores the span again.

    Args:
        dsn: of the database, or of the coordinator; the user owns the apps' tables.
        app: only this app's messages; None takes all.
        enrichment: what is added to events that are missing.
        schemas: where an app's rows go when it is not the schema of its name.
        progress: called with the number of messages read so far.

    Raises:
        psycopg.Error: the database failed. What was stored stays; the replay can be done again.
        KafkaException: Kafka does not answer.
    """
    read = stored = rejected = 0
    with psycopg.connect(dsn, autocommit=True, application_name="heap ingest replay") as connection:
        store = Store(connection, None, lambda _rejected: None, schemas)
        for found in read_span(bootstrap_servers, span):
            records = [record for record, _ in found]
            batch = read_batch(
                records, enrichment or Enrichment(), None if app is None else lambda message: message.app == app
            )
            done = store.store(batch)
            read += len(records)
            stored += batch.size - len(done.rejected)
            rejected += len(done.rejected)
            progress(read)
    return Replayed(read, stored, rejected)
