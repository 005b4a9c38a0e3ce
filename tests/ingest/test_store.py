"""Storing beside those who change an app, and after a user was erased."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from heap_extension.user_ids import hash_bigint
from heap_ingest.enrich import Enrichment
from heap_ingest.log import Record
from heap_ingest.messages import EventMessage, IdentifyMessage, Message, UserMessage, encode
from heap_ingest.store import Batch, Store, read_batch
from tests.ingest.log import APP, events, stored_ids
from tests.waiting import until


def _batch(messages: Iterable[Message]) -> Batch:
    records = [Record("log", 0, offset, None, encode(message)) for offset, message in enumerate(messages)]
    return read_batch(records, Enrichment())


def test_a_change_of_the_app_comes_before_later_batches(dsn: str, owner: psycopg.Connection[Any]) -> None:
    """While one sink stores, somebody defines an event; another sink's batch must wait for that, or the two take turns
    with the app's row and the definition never has it."""

    def define() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SELECT set_config('heap.app', %s, false)", (APP,))
            connection.execute("SELECT heap.define_event('Later', 'pageview')")

    def store() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            Store(connection, None, lambda _rejected: None).store(_batch(events(10)))

    threads = [threading.Thread(target=define), threading.Thread(target=store)]
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
    with psycopg.connect(dsn) as first:
        first.execute("SELECT FROM heap.app WHERE name = %s FOR SHARE", (APP,))
        threads[0].start()
        until(lambda: owner.execute(waiting).fetchone() == (1,))
        threads[1].start()
        threads[1].join(0.5)
        assert stored_ids(owner) == []
    for thread in threads:
        thread.join(30)
    assert stored_ids(owner) == list(range(1, 11))
    assert owner.execute("SELECT name FROM heap.event_definition WHERE app = %s", (APP,)).fetchall() == [("Later",)]


def test_of_an_erased_user_only_what_is_later_is_taken(owner: psycopg.Connection[Any]) -> None:
    """Events, properties and identities from before the erasure are dropped, also those of an anonymous user who turns
    out to be the erased person; what comes after it is of somebody new."""
    ann = hash_bigint("ann")
    store = Store(owner, None, lambda _rejected: None)

    def messages(at: datetime, first_id: int) -> list[Message]:
        return [
            EventMessage(APP, ann, at, at, first_id, "click"),
            EventMessage(APP, 7, at, at, first_id + 1, "click"),
            UserMessage(APP, ann, at, at, {"plan": f"plan {first_id}"}),
            IdentifyMessage(APP, 7, at, at, "ann"),
            EventMessage(APP, 8, at, at, first_id + 2, "click"),
        ]

    before = datetime.now(UTC) - timedelta(hours=1)
    owner.execute("SELECT * FROM heap.delete_user(%s)", (ann,))
    assert store.store(_batch(messages(before, 10))).rejected == []
    # Nobody may know any longer that 7 was the erased person: their events are an anonymous user's.
    assert stored_ids(owner) == [11, 12]
    assert owner.execute(f"SELECT count(*) FROM {APP}.users").fetchone() == (0,)
    assert owner.execute("SELECT count(*) FROM heap.user_alias WHERE app = %s", (APP,)).fetchone() == (0,)
    assert owner.execute("SELECT count(*) FROM heap.user_merge WHERE app = %s", (APP,)).fetchone() == (0,)
    assert store.store(_batch(messages(datetime.now(UTC) + timedelta(hours=1), 20))).rejected == []
    assert stored_ids(owner) == [11, 12, 20, 21, 22]
    assert owner.execute(f"SELECT identity, properties FROM {APP}.users WHERE user_id = %s", (ann,)).fetchall() == [
        ("ann", {"plan": "plan 20"})
    ]
