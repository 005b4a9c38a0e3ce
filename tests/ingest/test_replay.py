"""Replay: what is right stays, what is missing comes back; an app is built anew; dead letters are sent again."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, Message
from typer.testing import CliRunner

from heap_extension.command import app as command_line
from heap_extension.maintain import Maintainer
from heap_extension.user_ids import hash_bigint
from heap_ingest.broker import Broker
from heap_ingest.log import SpanError, find_span, parse_start
from heap_ingest.messages import IdentifyMessage
from heap_ingest.rebuild import RebuildError, rebuild
from heap_ingest.replay import replay
from tests.ingest.conftest import drained, running
from tests.ingest.log import APP, NOON, Log, events, stored_ids

_ROWS = f"SELECT * FROM {APP}.events ORDER BY user_id, time, event_id"


def _heap(log: Log, dsn: str, *arguments: str, exit_code: int = 0) -> str:
    """What a command of `heap ingest` prints."""
    servers = ["--dsn", dsn, "--bootstrap-servers", log.broker.bootstrap_servers, "--topic", log.topic]
    done = CliRunner().invoke(command_line, ["ingest", arguments[0], *servers, *arguments[1:]], env={"COLUMNS": "250"})
    assert done.exit_code == exit_code, done.output
    return done.output


def test_a_replay_changes_nothing_and_fills_what_is_missing(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    log.send(events(1_000))
    log.flush()
    with running(dsn, log):
        drained(owner, log)
    before = owner.execute(_ROWS).fetchall()
    assert "1,000 messages read, 1,000 items stored again, 0 cannot" in _heap(log, dsn, "replay", "--from", "beginning")
    assert owner.execute(_ROWS).fetchall() == before
    owner.execute(f"DELETE FROM {APP}.events WHERE mod(event_id, 3) = 0")
    assert len(stored_ids(owner)) == 667
    _heap(log, dsn, "replay", "--from", "beginning", "--app", APP)
    assert owner.execute(_ROWS).fetchall() == before
    assert owner.execute("SELECT sum(stored) FROM heap.ingest_offset WHERE topic = %s", (log.topic,)).fetchone() == (
        1_000,
    )


def test_a_replay_ends_at_what_was_there_when_it_began(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    log.send(events(300))
    log.flush()
    span = find_span(log.broker.bootstrap_servers, None, topic=log.topic)
    log.send(events(300, 301))
    log.flush()
    assert replay(dsn, log.broker.bootstrap_servers, span).read == span.length == 300
    assert stored_ids(owner) == list(range(1, 301))


def test_a_replay_reads_again_what_kafkas_client_skips(
    dsn: str, owner: psycopg.Connection[Any], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the beginning of a partition, within it, and at its end, where nothing comes after."""
    log.send(events(1_000))
    log.flush()
    span = find_span(log.broker.bootstrap_servers, None, topic=log.topic)
    skipped = {
        (partition, offset)
        for partition, (first, after) in span.offsets.items()
        for offset in (first, first + 1, first + 70, after - 2, after - 1)
    }
    left = set(skipped)

    class Losing(Consumer):
        def consume(self, *arguments: Any) -> list[Message]:
            kept = []
            for message in super().consume(*arguments):
                place = message.partition(), message.offset()
                if message.error() is None and place in left:
                    left.remove(place)
                else:
                    kept.append(message)
            return kept

    monkeypatch.setattr("heap_ingest.log.Consumer", Losing)
    assert len(skipped) == 5 * log.partitions
    assert replay(dsn, log.broker.bootstrap_servers, span).read == span.length == 1_000
    assert not left
    assert stored_ids(owner) == list(range(1, 1_001))


def test_a_replay_passes_over_the_markers_of_transactions(
    dsn: str, owner: psycopg.Connection[Any], broker: Broker
) -> None:
    """Between events, and as the last of the span: at the end of the log, or with more behind it."""
    log = Log(broker, partitions=1)
    servers = broker.bootstrap_servers
    sent = list(events(4))
    log.send_in_transactions(sent[:2])
    span = find_span(servers, None, topic=log.topic)
    assert span.offsets == {0: (0, 4)}
    assert replay(dsn, servers, span).read == 2
    log.send(sent[2:])
    log.flush()
    assert replay(dsn, servers, span).read == 2
    assert stored_ids(owner) == [1, 2]


def test_a_replay_of_some_time_and_of_some_offsets(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    log.send(events(100))
    log.flush()
    time.sleep(0.05)
    middle = datetime.now(UTC)
    time.sleep(0.05)
    log.send(events(100, 101))
    log.flush()
    servers = log.broker.bootstrap_servers
    replay(dsn, servers, find_span(servers, middle, topic=log.topic))
    assert stored_ids(owner) == list(range(101, 201))
    replay(dsn, servers, find_span(servers, None, middle, topic=log.topic))
    assert stored_ids(owner) == list(range(1, 201))
    owner.execute(f"DELETE FROM {APP}.events")
    first = find_span(servers, 0, 5, topic=log.topic)
    assert set(first.offsets.values()) == {(0, 5)}
    replay(dsn, servers, first)
    assert len(stored_ids(owner)) == 5 * log.partitions


def test_a_start_that_is_none_is_an_error_and_not_everything(
    dsn: str, owner: psycopg.Connection[Any], log: Log
) -> None:
    log.send(events(10))
    log.flush()
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    for start, said in ((tomorrow, "in the future"), ("999999", "no partition"), ("yesterday", "neither")):
        assert said in _heap(log, dsn, "replay", "--from", start, exit_code=1)
    assert "behind" in _heap(log, dsn, "replay", "--from", "2026-01-02", "--to", "2026-01-01", exit_code=1)
    with pytest.raises(SpanError):
        parse_start("")
    assert stored_ids(owner) == []


def _identify(user_id: int, identity: str) -> IdentifyMessage:
    return IdentifyMessage(app=APP, user_id=user_id, time=NOON, received_at=NOON, identity=identity)


def _merged(dsn: str) -> None:
    """Merges between shards are `heap maintain`'s work."""
    assert Maintainer(dsn).run_once(patience=30)


def test_a_replay_after_users_were_merged_changes_nothing(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    log.send(events(600, users=30))
    log.send([_identify(user, "ann") for user in range(5)])
    log.flush()
    with running(dsn, log):
        drained(owner, log)
        owner.execute("SELECT heap.merge_users(10, 11)")
        owner.execute("SELECT * FROM heap.delete_user(12)")
    _merged(dsn)
    ann = hash_bigint("ann")
    users = dict.fromkeys(range(5), ann) | {10: 11}
    expected = sorted((users.get(e.user_id, e.user_id), e.event_id) for e in events(600, users=30) if e.user_id != 12)
    rows = f"SELECT user_id, event_id FROM {APP}.events ORDER BY 1, 2"
    assert owner.execute(rows).fetchall() == expected
    owner.execute(f"DELETE FROM {APP}.events WHERE event_id <= 200")
    _heap(log, dsn, "replay", "--from", "beginning")
    _merged(dsn)
    assert owner.execute(rows).fetchall() == expected


def test_dead_letters_are_listed_shown_and_sent_again(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    later = next(events(1, 77, app="later"))
    log.send([later])
    log.send_raw(b"{no message")
    log.flush()
    letters = ("--dead-letters", log.dead_letters)
    with running(dsn, log):
        drained(owner, log)
        listed = _heap(log, dsn, "dead-letters", *letters)
        assert "2 dead letters" in listed
        assert "unknown app 'later'" in listed
        place = next(line.split()[1] for line in listed.splitlines() if "not a message" in line)
        assert _heap(log, dsn, "dead-letters", *letters, "--show", place) == "{no message\n"
        owner.execute("SELECT heap.create_app('later')")
        try:
            assert "2 sent again" in _heap(log, dsn, "dead-letters", *letters, "--resend")
            drained(owner, log)
            assert stored_ids(owner, "later") == [77]
            assert "1 dead letters" in _heap(log, dsn, "dead-letters", *letters)
            assert "3 dead letters" in _heap(log, dsn, "dead-letters", *letters, "--all")
        finally:
            owner.execute("SELECT heap.drop_app('later')")


def test_status_says_what_is_left(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    log.send(events(50))
    log.flush()
    assert "50 messages to be stored" in _heap(log, dsn, "status", "--seconds", "0.1", exit_code=1)
    with running(dsn, log):
        drained(owner, log)
    assert "0 messages to be stored" in _heap(log, dsn, "status", "--seconds", "0.1")


def test_an_app_is_built_anew_while_events_come_in(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    """Definitions, segments, merges and rights are those of before; what was wrong in the tables is gone."""
    keep_as = "ingested_before"
    owner.execute("SELECT heap.define_event('Seven', 'pageview where path = ''/0''')")
    owner.execute("SELECT heap.cover_event('Seven', 'path')")
    owner.execute("SELECT heap.define_event('All of it', '\"Seven\" or pageview')")
    owner.execute("SELECT heap.define_segment('Sevens', 'users who did \"Seven\" since ''2026-01-01''')")
    log.send(events(2_000, users=30))
    log.send([_identify(3, "ann"), _identify(4, "ann")])
    log.flush()
    stop = threading.Event()

    def produce() -> None:
        sent = 2_000
        while not stop.wait(0.02):
            log.send(events(10, sent + 1, seed=sent))
            sent += 10

    producer = threading.Thread(target=produce)
    with running(dsn, log):
        drained(owner, log)
        owner.execute("SELECT heap.merge_users(10, 11)")
        _merged(dsn)
        owner.execute(f"UPDATE {APP}.events SET path = '/wrong' WHERE event_id = 7")
        owner.execute(f"DELETE FROM {APP}.events WHERE event_id <= 5")
        producer.start()
        try:
            rebuild(dsn, log.broker.bootstrap_servers, log.topic, APP, keep_as=keep_as)
        finally:
            stop.set()
            producer.join(30)
        log.flush()
        drained(owner, log)
    assert stored_ids(owner) == sorted(log.acknowledged)
    assert owner.execute(f"SELECT path FROM {APP}.events WHERE event_id = 7").fetchone() == ("/0",)
    merged = owner.execute(f"SELECT count(*) FROM {APP}.events WHERE user_id IN (3, 4, 10)").fetchone()
    assert merged == (0,)
    (sevens,) = owner.execute("SELECT value FROM heap.trend('count of \"Seven\" since ''2026-01-01''')").fetchone() or (0,)  # fmt: skip
    assert sevens == sum(number % 7 == 0 for number in log.acknowledged)
    states = owner.execute("SELECT DISTINCT state FROM heap.index_health(%s)", (APP,)).fetchall()
    assert states == [("valid",)]
    covering = "SELECT covering FROM heap.event_definition WHERE app = %s AND name = 'Seven'"
    assert owner.execute(covering, (APP,)).fetchone() == (["path"],)
    for app in (APP, keep_as):
        for role, right in (("read", "SELECT"), ("write", "INSERT")):
            assert owner.execute(
                "SELECT has_table_privilege(%s, %s, %s)", (f"heap_{app}_{role}", f"{app}.events", right)
            ).fetchone() == (True,)
    assert owner.execute(
        "SELECT has_table_privilege(%s, %s, 'SELECT')", (f"heap_{keep_as}_read", f"{APP}.events")
    ).fetchone() == (False,)
    assert owner.execute(f"SELECT path FROM {keep_as}.events WHERE event_id = 7").fetchone() == ("/wrong",)
    owner.execute("SELECT heap.drop_app(%s)", (keep_as,))

    rebuild(dsn, log.broker.bootstrap_servers, log.topic, APP)  # and keeps nothing
    assert stored_ids(owner) == sorted(log.acknowledged)
    apps = {name for (name,) in owner.execute("SELECT name FROM heap.app WHERE name LIKE 'ingested%'").fetchall()}
    assert apps == {APP}


def test_what_cannot_be_rebuilt_stays(dsn: str, owner: psycopg.Connection[Any], log: Log) -> None:
    with pytest.raises(RebuildError, match="no app 'nobody'"):
        rebuild(dsn, log.broker.bootstrap_servers, log.topic, "nobody")
    with pytest.raises(RebuildError, match="already"):
        rebuild(dsn, log.broker.bootstrap_servers, log.topic, APP, keep_as=APP)
    assert stored_ids(owner) == []
