"""Conditions on users, segments, lists of users and events defined by sequences equal the oracle, on PostgreSQL and on
Citus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.histories import ZONE, events_of_language, histories, insert
from tests.oracle import Event, Test
from tests.semantics_app import APP

_END = datetime(2025, 11, 6, tzinfo=ZONE)
_EVER = (datetime(1, 1, 4, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
_LAST_30_DAYS = (datetime(2025, 10, 7, tzinfo=ZONE), _END)
_DURING = [
    ("", None),
    ("in last 9 days", (datetime(2025, 10, 28, tzinfo=ZONE), _END)),
    ("in previous 2 weeks", (datetime(2025, 10, 20, tzinfo=ZONE), datetime(2025, 11, 3, tzinfo=ZONE))),
    ("since '2025-10-27'", (datetime(2025, 10, 27, tzinfo=ZONE), _END)),
    ("from '2025-10-26' to '2025-10-26'", (datetime(2025, 10, 26, tzinfo=ZONE), datetime(2025, 10, 27, tzinfo=ZONE))),
]

Holds = Callable[[int, Sequence[Event], tuple[datetime, datetime]], bool]
"""user, the user's events, the range of facts that name none -> the condition holds."""


def _count(own: Sequence[Event], test: Test, during: tuple[datetime, datetime]) -> int:
    return sum(test(event) and during[0] <= event.time < during[1] for event in own)


@st.composite
def _facts(draw: st.DrawFn) -> tuple[str, Holds]:
    kind = draw(st.sampled_from(["did", "often", "not", "then", "plan"]))
    if kind == "plan":
        return "plan = 'pro'", lambda user, own, default: user == 1
    event, test = draw(events_of_language)
    text, during = draw(st.sampled_from(_DURING))
    match kind:
        case "did":
            return f"did ({event}) {text}", lambda user, own, default: _count(own, test, during or default) > 0
        case "not":
            return f"did not do ({event}) {text}", lambda user, own, default: _count(own, test, during or default) == 0
        case "often":
            times = draw(st.integers(1, 3))
            word, compare = draw(
                st.sampled_from(
                    [
                        ("at least", lambda count: count >= times),
                        ("at most", lambda count: count <= times),
                        ("exactly", lambda count: count == times),
                    ]
                )
            )
            return (
                f"did ({event}) {word} {times} times {text}",
                lambda user, own, default: compare(_count(own, test, during or default)),
            )
    then, next_test = draw(events_of_language)
    within, length = draw(
        st.sampled_from(
            [("", timedelta(days=3650)), ("within 1 day", timedelta(days=1)), ("within 1 second", timedelta(seconds=1))]
        )
    )

    def holds(user: int, own: Sequence[Event], default: tuple[datetime, datetime]) -> bool:
        start, end = during or default
        return any(
            test(one) and next_test(two) and start <= one.time < end and one.order < two.order
            and two.time - one.time <= length
            for one in own for two in own
        )  # fmt: skip

    return f"did ({event}) then ({then}) {within} {text}", holds


def _both(kind: str, parts: list[tuple[str, Holds]]) -> tuple[str, Holds]:
    every = all if kind == "and" else any
    text = "(" + f" {kind} ".join(text for text, _ in parts) + ")"
    return text, lambda user, own, default: every(holds(user, own, default) for _, holds in parts)


conditions: st.SearchStrategy[tuple[str, Holds]] = st.recursive(
    _facts(),
    lambda inner: (
        st.builds(_both, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3))
        | inner.map(lambda part: (f"not {part[0]}", lambda user, own, default: not part[1](user, own, default)))
    ),
    max_leaves=4,
)


def _members(events: Sequence[Event], holds: Holds, default: tuple[datetime, datetime]) -> list[int]:
    return [user for user in (1, 2, 3) if holds(user, [e for e in events if e.user_id == user], default)]


@settings(max_examples=150)
@given(data=st.data())
def test_conditions_on_users_equal_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    condition, holds = data.draw(conditions)
    try:
        insert(asked, APP, events)
        listed = asked.execute("SELECT user_id FROM heap.users(%s)", (f"where {condition}",)).fetchall()
        statement = f"trend count of any for users where {condition} over last 2 years"
        counted = asked.execute("SELECT value FROM heap.trend(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    assert [user for (user,) in listed] == _members(events, holds, _LAST_30_DAYS), condition
    members = _members(events, holds, _EVER)
    assert counted == [(len([event for event in events if event.user_id in members]),)], condition


@settings(max_examples=60)
@given(data=st.data())
def test_segments_equal_the_oracle_nested_and_listed(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    (inner, holds), (other, also) = data.draw(conditions), data.draw(conditions)
    is_listed = data.draw(st.booleans())
    try:
        insert(asked, APP, events)
        asked.execute("SELECT heap.query(%s)", (f'segment "Inner" as users where {inner}',))
        asked.execute("SELECT heap.define_segment(%s, %s)", ("Outer", f'users who not in "Inner" or {other}'))
        if is_listed:
            asked.execute("SELECT heap.list_segment('Inner')")
        found = asked.execute("SELECT user_id FROM heap.users('in \"Outer\"')").fetchall()
        counted = asked.execute("SELECT value FROM heap.trend('count of any for users in \"Inner\" over last 2 years')")
        value = counted.fetchall()
    finally:
        asked.rollback()
    inside, others = _members(events, holds, _EVER), _members(events, also, _EVER)
    assert [user for (user,) in found] == [user for user in (1, 2, 3) if user not in inside or user in others]
    assert value == [(len([event for event in events if event.user_id in inside]),)]


@settings(max_examples=80)
@given(data=st.data())
def test_users_of_a_funnel_come_with_the_events_that_prove_it(
    asked: psycopg.Connection[Any], data: st.DataObject
) -> None:
    events = data.draw(histories())
    steps = data.draw(st.lists(events_of_language, min_size=2, max_size=3))
    reaching = data.draw(st.integers(1, len(steps)))
    but_not = data.draw(st.none() | st.integers(reaching + 1, len(steps))) if reaching < len(steps) else None
    any_order = data.draw(st.booleans())
    head = " -> ".join(text for text, _ in steps)
    wanted = f"reaching step {reaching}" + (f" but not {but_not}" if but_not else "")
    statement = f"of funnel {head} {wanted} within 8 days {'in any order' if any_order else ''}"
    try:
        insert(asked, APP, events)
        rows = asked.execute("SELECT user_id, step, times, event_ids FROM heap.users(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    rules = oracle.Rules(timedelta(days=8), *_LAST_30_DAYS, any_order=any_order)
    expected = []
    for user in (1, 2, 3):
        own = [event for event in events if event.user_id == user]
        for level, chain in oracle.counted_chains(own, [test for _, test in steps], rules):
            if chain[reaching - 1] is not None and (but_not is None or chain[but_not - 1] is None):
                times = [None if event is None else event.time for event in chain]
                expected.append((user, level, times, [None if event is None else event.event_id for event in chain]))
    assert rows == expected, statement


@settings(max_examples=100)
@given(data=st.data())
def test_an_event_defined_by_a_sequence_equals_the_oracle(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    (event, test), (after, before) = data.draw(events_of_language), data.draw(events_of_language)
    within, length = data.draw(
        st.sampled_from([("", None), ("within 1 second", timedelta(seconds=1)), ("within 2 days", timedelta(days=2))])
    )
    start, end = datetime(2025, 10, 26, tzinfo=ZONE), _END
    try:
        insert(asked, APP, events)
        try:
            definition = f"the first ({event}) after ({after}) {within}"
            asked.execute("SELECT heap.define_event('Activated', %s)", (definition,))
        except psycopg.Error as error:
            assert "user propert" in str(error)  # what no definition may use
            return
        asked.execute("SELECT heap.define_event('Started', 'purchase or \"Activated\" where country = ''DE''')")
        counts = [
            asked.execute("SELECT value FROM heap.trend(%s)", (f"count of \"{name}\" since '2025-10-26'",)).fetchone()
            for name in ("Activated", "Started")
        ]
        funnel = asked.execute("SELECT users FROM heap.funnel('any -> \"Activated\" since ''2025-10-26''')").fetchall()
    finally:
        asked.rollback()
    activated = []
    for one in events:
        own = sorted((e for e in events if e.user_id == one.user_id), key=lambda e: e.order)
        firsts = [
            next((x for x in own if test(x) and x.order > y.order), None) for y in own if before(y)
            and (length is None or one.time - y.time <= length)
        ]  # fmt: skip
        if one in firsts and test(one):
            activated.append(one)
    inside = [e for e in activated if start <= e.time < end]
    started = [e for e in events if (e in activated and e.columns["country"] == "DE") or e.type == "purchase"]
    assert counts == [(len(inside),), (len([e for e in started if start <= e.time < end]),)], definition
    later = {
        e.user_id for e in activated for other in events
        if other.user_id == e.user_id and other.order < e.order and other.time >= start
        and e.time - other.time <= timedelta(days=30)
    }  # fmt: skip
    assert funnel[1] == (len(later),), definition


def test_no_index_holds_an_event_defined_by_a_sequence(asked: psycopg.Connection[Any]) -> None:
    asked.execute("SELECT heap.define_event('Activated', 'the first pageview after (purchase)')")
    asked.execute("SELECT heap.define_event('Started', 'purchase or \"Activated\" where country = ''DE''')")
    states = asked.execute("SELECT index_state FROM heap.events WHERE name IN ('Activated', 'Started')").fetchall()
    assert states == [("none",), ("none",)]


def test_segments_that_lead_back_to_themselves_are_refused(asked: psycopg.Connection[Any]) -> None:
    asked.execute("SELECT heap.define_segment('A', 'users where plan = ''pro''')")
    asked.execute("SELECT heap.define_segment('B', 'users who in \"A\" or did \"Purchase\"')")
    with pytest.raises(psycopg.Error, match='the segment "A" would contain itself') as refused:
        asked.execute("SELECT heap.define_segment('A', 'users where not in \"B\"')")
    assert 'a cycle: "A" in "B" in "A"' in str(refused.value)
    asked.rollback()


def test_what_a_segment_is_made_of_stays(asked: psycopg.Connection[Any]) -> None:
    asked.execute("SELECT heap.define_event('Bought', 'purchase')")
    asked.execute("SELECT heap.define_segment('A', 'users who did \"Bought\"')")
    asked.execute("SELECT heap.define_segment('B', 'users who in \"A\"')")
    for call, part_of in (("heap.drop_event('Bought')", "A"), ("heap.drop_segment('A')", "B")):
        with pytest.raises(psycopg.Error, match=f'is part of "{part_of}"'), asked.transaction():
            asked.execute(f"SELECT {call}")
    asked.execute("SELECT heap.query('drop segment \"B\"')")
    asked.execute("SELECT heap.drop_segment('A')")
    assert asked.execute("SELECT count(*) FROM heap.segments").fetchone() == (0,)
    asked.rollback()


def test_a_list_keeps_its_users_until_it_is_filled_again(asked: psycopg.Connection[Any]) -> None:
    nothing = {"path": None, "target_text": None, "hierarchy": None, "country": None}
    asked.execute("SELECT heap.define_segment('Buyers', 'users who did \"Purchase\"')")
    asked.execute("SELECT heap.list_segment('Buyers')")
    insert(asked, APP, [Event(1, datetime(2025, 11, 1, tzinfo=UTC), 1, "purchase", None, nothing)])

    def buyers() -> list[tuple[int]]:
        return asked.execute("SELECT user_id FROM heap.users('in \"Buyers\"')").fetchall()

    assert buyers() == []
    asked.execute("SELECT heap.list_segment('Buyers')")
    assert buyers() == [(1,)]
    asked.execute("DELETE FROM meaning.events")
    assert buyers() == [(1,)]
    asked.execute("SELECT heap.unlist_segment('Buyers')")
    assert buyers() == []
    asked.rollback()


def test_a_sample_is_the_same_users_everywhere(asked: psycopg.Connection[Any]) -> None:
    asked.execute(f"INSERT INTO {APP}.users (user_id) SELECT id FROM generate_series(100, 2099) AS id")
    insert_all = "SELECT id, '2025-11-01', 1, 'purchase' FROM generate_series(100, 2099) AS id"
    asked.execute(f"INSERT INTO {APP}.events (user_id, time, event_id, type) {insert_all}")
    tenth = {row[0] for row in asked.execute("SELECT user_id FROM heap.users('who did purchase sample 10%')")}
    fifth = {row[0] for row in asked.execute("SELECT user_id FROM heap.users('who did purchase sample 20%')")}
    whole = asked.execute("SELECT value FROM heap.trend('users of purchase sample 100%')").fetchone()
    counted = asked.execute("SELECT value FROM heap.trend('users of purchase sample 10%')").fetchone()
    assert tenth < fifth
    assert 140 < len(tenth) < 260
    assert counted == (len(tenth),)
    assert whole == (2000,)
    asked.rollback()
