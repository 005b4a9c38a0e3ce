"""Sessions equal a naive evaluator on generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from statistics import median
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.histories import ZONE, histories, insert, predicates
from tests.oracle import Event, local_bucket
from tests.semantics_app import APP

_RANGES = [
    ("from '2025-10-24' to '2025-11-02'", datetime(2025, 10, 24, tzinfo=ZONE), datetime(2025, 11, 3, tzinfo=ZONE)),
    ("from '2025-10-26' to '2025-10-26'", datetime(2025, 10, 26, tzinfo=ZONE), datetime(2025, 10, 27, tzinfo=ZONE)),
]
_Session = list[Event]


def _page(session: _Session, name: str, index: int) -> str | None:
    views = [event for event in session if event.type == "pageview"]
    value = views[index].get(name) if views else None
    return None if value is None else str(value)


_PLANS = {1: "pro", 2: "7"}
_GROUPS: list[tuple[str, Callable[[_Session], Any]]] = [
    ("", lambda session: None),
    ("group by country", lambda session: session[0].columns["country"]),
    ("group by user.plan", lambda session: _PLANS.get(session[0].user_id)),
    ("group by entry path", lambda session: _page(session, "path", 0)),
    ("group by exit path", lambda session: _page(session, "path", -1)),
    (
        "group by exit country, path, user.plan, entry property \"plan\"",
        lambda s: ", ".join(
            value if value is not None else "null"
            for value in (
                _page(s, "country", -1), s[0].columns["path"], _PLANS.get(s[0].user_id), _page(s, "plan", 0),
            )
        ),
    ),
]  # fmt: skip


def naive_sessions(events: Sequence[Event]) -> list[_Session]:
    """The sessions of the events, each in order."""
    found: dict[tuple[int, int], _Session] = {}
    for event in sorted(events, key=lambda event: event.order):
        if event.session_id is not None:
            found.setdefault((event.user_id, event.session_id), []).append(event)
    return list(found.values())


def described(members: list[_Session]) -> tuple[Any, ...]:
    """sessions, users, events per session, average and median seconds, bounce rate."""
    if not members:
        return 0, 0, None, None, None, None
    lasting = [(session[-1].time - session[0].time).total_seconds() for session in members]
    bounces = [s for s in members if len(s) == 1 or len([e for e in s if e.type == "pageview"]) == 1]
    return (
        len(members),
        len({session[0].user_id for session in members}),
        sum(map(len, members)) / len(members),
        sum(lasting) / len(lasting),
        median(lasting),
        len(bounces) / len(members),
    )


def _plain(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _near(one: Any, two: Any) -> bool:
    if one is None or two is None:
        return one is two
    return abs(float(one) - float(two)) < 1e-5


@settings(max_examples=100)
@given(data=st.data())
def test_sessions_equal_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories(max_events=20))
    where, keeps = data.draw(st.just(("", lambda event: True)) | predicates.map(lambda p: (f"where {p[0]}", p[1])))
    unit = data.draw(st.sampled_from([None, "hour", "day", "week", "month"]))
    over, start, end = data.draw(st.sampled_from(_RANGES))
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    statement = f"sessions {over} {where} {f'by {unit}' if unit else ''} {grouped}"
    try:
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.sessions(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    found = naive_sessions([event for event in events if keeps(event) and start <= event.time < end])
    groups = {group(session) for session in found} if grouped else {None}
    buckets = {row[0] for row in rows}
    assert len(rows) == len(groups) * len(buckets), statement
    assert {row[1] for row in rows} == groups, statement
    counted = 0
    for bucket, key, *values in rows:
        inside = [session for session in found if group(session) == key]
        if unit is not None:
            local = local_bucket(bucket, unit, ZONE)
            inside = [session for session in inside if local_bucket(session[0].time, unit, ZONE) == local]
        counted += len(inside)
        for one, two in zip(map(_plain, values), described(inside), strict=True):
            assert _near(one, two), (statement, bucket, key, values, described(inside))
    assert counted == len(found)


def test_top_folds_the_rest_and_counts_its_users_anew(asked: psycopg.Connection[Any]) -> None:
    at = datetime(2025, 11, 1, 12, tzinfo=ZONE)
    nothing = {"path": "/a", "target_text": None, "hierarchy": None}
    visits = [(1, 1, "DE"), (1, 2, "DE"), (1, 3, "US"), (1, 4, "FR"), (2, 1, None)]
    events = [
        Event(user, at, number, "pageview", session, {**nothing, "country": country})
        for number, (user, session, country) in enumerate(visits, start=1)
    ]
    insert(asked, APP, events)
    statement = "group by country top 1"
    rows = asked.execute("SELECT group_key, sessions, users FROM heap.sessions(%s)", (statement,)).fetchall()
    assert rows == [("DE", 2, 1), ("other", 3, 2)]
    statement = "for users where plan = 7"
    rows = asked.execute("SELECT group_key, sessions, users FROM heap.sessions(%s)", (statement,)).fetchall()
    assert rows == [(None, 1, 1)]
    assert len(asked.execute("SELECT * FROM heap.sessions('')").fetchall()) == 1
