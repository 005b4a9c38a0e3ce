"""Laws that hold between analyses, whatever the data: what one of them says, another must not deny."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.histories import events_of_language, histories, insert
from tests.semantics_app import APP

Asked = psycopg.Connection[Any]
_steps = st.lists(events_of_language.map(lambda event: f"({event[0]})"), min_size=2, max_size=3)


def _users(asked: Asked, steps: Sequence[str], clauses: str = "", arrow: str = "->") -> list[int]:
    statement = f" {arrow} ".join(steps) + f" {clauses}"
    return [users for (users,) in asked.execute("SELECT users FROM heap.funnel(%s)", (statement,)).fetchall()]


def _value(asked: Asked, statement: str) -> Any:
    (value,) = asked.execute("SELECT value FROM heap.trend(%s)", (statement,)).fetchone() or (None,)
    return value


def _at_most(few: Sequence[int], many: Sequence[int]) -> bool:
    return all(one <= other for one, other in zip(few, many, strict=True))


@settings(max_examples=60)
@given(data=st.data())
def test_a_rule_more_never_counts_more(asked: Asked, data: st.DataObject) -> None:
    steps, events = data.draw(_steps), data.draw(histories())
    other, _ = data.draw(events_of_language)
    try:
        insert(asked, APP, events)
        ordered = _users(asked, steps, "within 1 day")
        assert _at_most(_users(asked, steps, "within 1 day strictly in order"), ordered)
        assert _at_most(_users(asked, steps, f"within 1 day without ({other})"), ordered)
        assert _at_most(_users(asked, steps, "within 1 day holding path"), ordered)
        assert _at_most(_users(asked, steps, "within 1 day first time"), ordered)
        assert _at_most(_users(asked, steps, "within 1 day", arrow="->[within 1 hour]"), ordered)
        assert _at_most(ordered, _users(asked, steps, "within 1 day in any order"))
        assert _at_most(ordered, _users(asked, steps, "within 2 days"))
        assert _at_most(ordered, _users(asked, steps, "within 1 day counting conversions"))
        skipping = _users(asked, [*steps[:1], *(f"optional {step}" for step in steps[1:-1]), steps[-1]], "within 1 day")
        assert ordered[-1] <= skipping[-1]
    finally:
        asked.rollback()


@settings(max_examples=60)
@given(data=st.data())
def test_parts_add_up_to_the_whole(asked: Asked, data: st.DataObject) -> None:
    steps, events = data.draw(_steps), data.draw(histories())
    try:
        insert(asked, APP, events)
        whole = _users(asked, steps, "within 1 day")
        for clause in (
            "by day",
            "group by country",
            "group by user.plan",
            "group by country top 1",
            "by week group by path",
        ):
            parts = asked.execute(
                "SELECT step, sum(users) FROM heap.funnel(%s) GROUP BY step ORDER BY step",
                (f"{' -> '.join(steps)} within 1 day {clause}",),
            ).fetchall()
            assert [users for _, users in parts] == (whole if parts else []), clause
            assert parts or not any(whole)
        listed = asked.execute(
            "SELECT count(DISTINCT user_id) FROM heap.users(%s)",
            (f"of funnel {' -> '.join(steps)} reaching step 1 within 1 day",),
        ).fetchone()
        assert listed == (whole[0],)
    finally:
        asked.rollback()


@settings(max_examples=60)
@given(data=st.data())
def test_the_same_question_has_one_answer(asked: Asked, data: st.DataObject) -> None:
    (event, _), events = data.draw(events_of_language), data.draw(histories())
    try:
        insert(asked, APP, events)
        users = _value(asked, f"users of ({event})")
        assert _users(asked, [f"({event})", "any"])[0] == users
        assert len(asked.execute("SELECT FROM heap.users(%s)", (f"who did ({event})",)).fetchall()) == users
        assert _users(asked, [f"({event})", "any"], "counting conversions")[0] == _value(asked, f"count of ({event})")
        sticky = asked.execute("SELECT sum(users) FROM heap.stickiness(%s)", (f"of ({event})",)).fetchone()
        assert sticky == (users,)
        kept = asked.execute("SELECT sum(size) FROM heap.retention(%s) WHERE period = 0", (f"from ({event}) to any",))
        assert kept.fetchone() == (users,)
    finally:
        asked.rollback()


@settings(max_examples=60)
@given(data=st.data())
def test_who_came_back_later_never_grows(asked: Asked, data: st.DataObject) -> None:
    """Rolling retention falls from period to period, and is never below that of the period itself."""
    events = data.draw(histories())
    (start, _), (back, _) = data.draw(events_of_language), data.draw(events_of_language)
    statement = f"from ({start}) to ({back}) by day for 6 days from '2025-10-25' to '2025-10-31'"
    try:
        insert(asked, APP, events)
        query = "SELECT cohort, period, users FROM heap.retention(%s) ORDER BY cohort, period"
        on = asked.execute(query, (statement,)).fetchall()
        rolling = asked.execute(query, (f"{statement} rolling",)).fetchall()
    finally:
        asked.rollback()
    assert [row[:2] for row in on] == [row[:2] for row in rolling]
    assert all(one[2] <= other[2] for one, other in zip(on, rolling, strict=True))
    for before, after in pairwise(rolling):
        if after[1] > 0:
            assert after[2] <= before[2], statement
