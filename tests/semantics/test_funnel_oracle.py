"""Funnels equal the oracle on generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.histories import ZONE, events_of_language, histories, insert
from tests.semantics_app import APP

_WINDOWS = [("1 second", timedelta(seconds=1)), ("1 hour", timedelta(hours=1)), ("1 day", timedelta(days=1)),
            ("8 days", timedelta(days=8))]  # fmt: skip
_RANGES = [
    ("over last 30 days", datetime(2025, 10, 7, tzinfo=ZONE), datetime(2025, 11, 6, tzinfo=ZONE)),
    (
        "from '2025-10-26' to '2025-10-26'",
        datetime(2025, 10, 26, tzinfo=ZONE),
        datetime(2025, 10, 27, tzinfo=ZONE),
    ),
    ("since '2025-10-31 13:00'", datetime(2025, 10, 31, 12, tzinfo=UTC), datetime(2025, 11, 6, tzinfo=ZONE)),
]
_GROUPS = [
    ("", lambda event: None),
    ("group by country", lambda event: event.columns["country"]),
    ("group by user.plan", lambda event: {1: "pro", 2: "7"}.get(event.user_id)),
    (
        "group by country, user.plan",
        lambda e: f"{e.columns['country'] or 'null'}, {({1: 'pro', 2: '7'}.get(e.user_id)) or 'null'}",
    ),
]


@settings(max_examples=120)
@given(data=st.data())
def test_funnel_equals_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    steps = data.draw(st.lists(events_of_language, min_size=2, max_size=4))
    window, length = data.draw(st.sampled_from(_WINDOWS))
    over, start, end = data.draw(st.sampled_from(_RANGES))
    grouped, group = data.draw(st.sampled_from(_GROUPS))
    statement = f"funnel {' -> '.join(text for text, _ in steps)} within {window} {over} {grouped}"
    try:
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.funnel(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    expected = oracle.funnel(events, [test for _, test in steps], length, start, end, group)
    if not grouped:
        for step in range(1, len(steps) + 1):
            expected.setdefault((None, step), (0, None, None))
    found = {(row[0], row[1]): (row[3], row[6], row[7]) for row in rows}
    assert found.keys() == expected.keys(), statement
    for key, (users, middle, average) in expected.items():
        assert found[key][0] == users, (statement, key)
        assert _near(found[key][1], middle), (statement, key)
        assert _near(found[key][2], average), (statement, key)


def _near(one: timedelta | None, two: timedelta | None) -> bool:
    if one is None or two is None:
        return one is two
    return abs(one - two) <= timedelta(microseconds=2)


def test_top_groups_fold_the_rest(asked: psycopg.Connection[Any]) -> None:
    """Three countries enter with 2, 1 and 1 users; top 1 keeps DE, and `other` adds up the rest."""
    at = datetime(2025, 11, 1, tzinfo=UTC)
    rows = [(1, "DE"), (2, "DE"), (3, "US"), (4, None)]
    events = [
        oracle.Event(user, at + timedelta(minutes=minute * user), user * 10 + minute, kind, None,
                     {"path": "/a", "target_text": None, "hierarchy": None, "country": country})
        for user, country in rows for minute, kind in ((0, "pageview"), (1, "purchase"))
    ]  # fmt: skip
    insert(asked, APP, events)
    found = asked.execute(
        "SELECT group_key, step, users, conversion, median_time FROM heap.funnel(%s)",
        ('"Viewed a" -> "Purchase" group by country top 1',),
    ).fetchall()
    assert found == [
        ("DE", 1, 2, 1, None),
        ("DE", 2, 2, 1, timedelta(seconds=90)),
        ("other", 1, 2, 1, None),
        ("other", 2, 2, 1, timedelta(seconds=210)),
    ]


def test_for_users_where_keeps_other_users_out(asked: psycopg.Connection[Any]) -> None:
    at = datetime(2025, 11, 1, tzinfo=UTC)
    nothing = {"path": None, "target_text": None, "hierarchy": None, "country": None}
    insert(asked, APP, [oracle.Event(user, at, user, "purchase", None, nothing) for user in (1, 2, 3, 9)])
    for condition, users in (
        ("plan = 'pro'", 1), ("user.plan = 'pro'", 1), ("plan is not set", 1), ("plan != 'pro'", 2), ("plan > 5", 1),
        ("not plan > 5", 2),
    ):  # fmt: skip
        found = asked.execute(
            "SELECT users FROM heap.funnel(%s)", (f'"Purchase" -> "Viewed" for users where {condition}',)
        ).fetchone()
        assert found == (users,), condition
