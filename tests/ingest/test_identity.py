"""Who users are, and what is known of them, comes out the same in whatever order the log arrives, also in part twice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heap_extension.user_ids import hash_bigint
from heap_ingest.enrich import Enrichment
from heap_ingest.log import Record
from heap_ingest.messages import EventMessage, IdentifyMessage, Message, UserMessage, encode
from heap_ingest.store import Store, read_batch
from tests.ingest.log import APP, NOON, fresh_app
from tests.merges import finish_merges

_PEOPLE = ("ann", "bob")
_ANONYMOUS = {1: "ann", 2: "ann", 3: "bob", 4: None}
"""Who anonymous users turn out to be; the last one never says."""


def _messages() -> list[Message]:
    known = [hash_bigint(person) for person in _PEOPLE]
    messages: list[Message] = []
    for place, user in enumerate([*_ANONYMOUS, *known]):
        for number in range(2):
            time = NOON + timedelta(seconds=10 * place + number)
            messages.append(
                EventMessage(
                    app=APP, user_id=user, time=time, received_at=NOON, event_id=10 * place + number, type="click"
                )
            )
        at = NOON + timedelta(seconds=place % 3)
        plan = {"plan": f"plan {place}", f"of {place}": place}
        messages.append(UserMessage(app=APP, user_id=user, time=at, received_at=NOON, properties=plan))
    for user, person in _ANONYMOUS.items():
        if person is not None:
            messages.append(IdentifyMessage(app=APP, user_id=user, time=NOON, received_at=NOON, identity=person))
    return messages


def _expected(messages: list[Message]) -> tuple[set[Any], dict[int, tuple[str | None, dict[str, Any]]]]:
    """Naively: everybody is who they say; of each property the latest value, of one instant the greater text."""
    person = {user: hash_bigint(name) if name else user for user, name in _ANONYMOUS.items()}
    rows, latest = set(), dict[tuple[int, str], tuple[Any, Any]]()
    for message in messages:
        user = person.get(message.user_id, message.user_id)
        if isinstance(message, EventMessage):
            rows.add((user, message.time, message.event_id))
        elif isinstance(message, UserMessage):
            for key, value in message.properties.items():
                latest[user, key] = max(latest.get((user, key), (message.time, value)), (message.time, value))
    names = {hash_bigint(name): name for name in _PEOPLE}
    return rows, {
        user: (names.get(user), {key: value for (owner, key), (_, value) in latest.items() if owner == user})
        for user in {owner for owner, _ in latest}
    }


@pytest.fixture(scope="module")
def everybody(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        fresh_app(connection)
        yield connection
        connection.execute("SELECT heap.drop_app(%s)", (APP,))


@settings(max_examples=8)
@given(data=st.data())
def test_the_order_of_arrival_does_not_matter(everybody: psycopg.Connection[Any], data: st.DataObject) -> None:
    for table in ("events", "users"):
        everybody.execute(f"DELETE FROM {APP}.{table}")
    for table in ("user_alias", "user_merge"):
        everybody.execute(f"DELETE FROM heap.{table} WHERE app = %s", (APP,))
    messages = _messages()
    order = data.draw(st.permutations(messages))
    order += data.draw(st.lists(st.sampled_from(messages), max_size=6))
    size = data.draw(st.integers(1, len(order)))
    store = Store(everybody, None, lambda rejected: None)
    for first in range(0, len(order), size):
        records = [Record("log", 0, first + n, None, encode(m)) for n, m in enumerate(order[first : first + size])]
        assert store.store(read_batch(records, Enrichment())).rejected == []
    finish_merges(everybody, APP)  # between shards they are the work of `heap maintain`
    rows, users = _expected(messages)
    found = everybody.execute(f"SELECT user_id, time, event_id FROM {APP}.events").fetchall()
    assert sorted(found) == sorted(rows)
    known = everybody.execute(f"SELECT user_id, identity, properties FROM {APP}.users").fetchall()
    assert {user: (identity, properties) for user, identity, properties in known} == users


def test_a_user_known_by_another_identity_is_a_dead_letter(everybody: psycopg.Connection[Any]) -> None:
    store = Store(everybody, None, lambda rejected: None)
    ann = hash_bigint("ann")
    messages = [
        IdentifyMessage(app=APP, user_id=5, time=NOON, received_at=NOON, identity="ann"),
        IdentifyMessage(app=APP, user_id=ann, time=NOON, received_at=NOON, identity="bob"),
    ]
    records = [Record("log", 0, number, None, encode(message)) for number, message in enumerate(messages)]
    ((record, reason),) = store.store(read_batch(records, Enrichment())).rejected
    assert record.offset == 1
    assert "another identity" in reason or "ann" in reason
