"""Attribution equals a naive evaluator on generated histories, on PostgreSQL and on Citus."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.histories import ZONE, events_of_language, histories, insert
from tests.oracle import Event, Test
from tests.semantics_app import APP

_WINDOWS = [("", timedelta(days=30)), ("within 1 second", timedelta(seconds=1)), ("within 1 hour", timedelta(hours=1)),
            ("within 8 days", timedelta(days=8))]  # fmt: skip
_RANGES = [
    ("", datetime(2025, 10, 7, tzinfo=ZONE), datetime(2025, 11, 6, tzinfo=ZONE)),
    ("from '2025-10-27' to '2025-11-01'", datetime(2025, 10, 27, tzinfo=ZONE), datetime(2025, 11, 2, tzinfo=ZONE)),
]
_MODELS = ["first", "last", "linear", "position"]

Values = tuple[str | None, ...]


def naive_touches(events: Sequence[Event], conversion: Event, window: timedelta, names: Sequence[str]) -> list[Values]:
    """The touches of a conversion in order: neighbouring events of one session with the same values are one."""
    found: list[tuple[int | None, Values]] = []
    for event in sorted(events, key=lambda event: event.order):
        values = tuple(event.get(name) for name in names)
        if event.user_id != conversion.user_id or all(value is None for value in values):
            continue
        if event.order > conversion.order or conversion.time - event.time > window:
            continue
        if not found or event.session_id is None or found[-1] != (event.session_id, values):
            found.append((event.session_id, values))
    return [values for _, values in found]


def _weights(model: str, count: int) -> list[Fraction]:
    match model:
        case "first":
            return [Fraction(place == 0) for place in range(count)]
        case "last":
            return [Fraction(place == count - 1) for place in range(count)]
        case "linear":
            return [Fraction(1, count)] * count
    if count <= 2:
        return [Fraction(1, count)] * count
    return [Fraction(2, 5), *[Fraction(1, 5) / (count - 2)] * (count - 2), Fraction(2, 5)]


def naive_attribution(
    events: Sequence[Event], converts: Test, touches: Test, names: Sequence[str], model: str, window: timedelta,
    begin: datetime, end: datetime,
) -> dict[Values | None, tuple[Fraction, set[int], Fraction]]:  # fmt: skip
    """Values of the touches -> conversions, users, amounts."""
    rows: dict[Values | None, tuple[Fraction, set[int], Fraction]] = {}
    for conversion in events:
        if not converts(conversion) or not begin <= conversion.time < end:
            continue
        amount = conversion.get("amount")
        is_number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
        found: list[Values | None] = [*naive_touches([e for e in events if touches(e)], conversion, window, names)] or [
            None
        ]
        for values, weight in zip(found, _weights(model, len(found)), strict=True):
            if weight:
                credit, users, value = rows.get(values, (Fraction(0), set(), Fraction(0)))
                amounts = value + weight * Fraction(amount if is_number else 0)
                rows[values] = (credit + weight, users | {conversion.user_id}, amounts)
    return rows


def _shown(values: Values | None) -> str | None:
    if values is None or len(values) == 1:
        return None if values is None else values[0]
    return ", ".join("null" if value is None else value for value in values)


def _near(shown: Decimal | None, exact: Fraction) -> bool:
    return shown is not None and abs(Fraction(shown) - exact) <= Fraction(1, 10**8)


@settings(max_examples=150)
@given(data=st.data())
def test_attribution_equals_the_naive_one(asked: psycopg.Connection[Any], data: st.DataObject) -> None:
    events = data.draw(histories())
    conversion, converts = data.draw(events_of_language)
    names = data.draw(st.sampled_from([["path"], ["country"], ["country", "path"]]))
    model = data.draw(st.sampled_from(_MODELS))
    within, window = data.draw(st.sampled_from(_WINDOWS))
    over, begin, end = data.draw(st.sampled_from(_RANGES))
    touch, touches = data.draw(st.just((None, lambda event: True)) | events_of_language)
    summed = data.draw(st.booleans())
    clauses = [f"by {model}{' touch' * data.draw(st.booleans())}", within, over, *([f"from {touch}"] if touch else [])]
    statement = (
        f"attribution of {'sum(amount) of ' * summed}{conversion} to {', '.join(names)}"
        f" {' '.join(data.draw(st.permutations(clauses)))}"
    )
    try:
        insert(asked, APP, events)
        rows = asked.execute("SELECT * FROM heap.attribution(%s)", (statement,)).fetchall()
    finally:
        asked.rollback()
    expected = naive_attribution(events, converts, touches, names, model, window, begin, end)
    found = {row[0]: row[1:] for row in rows}
    assert len(found) == len(rows)
    assert found.keys() == {_shown(values) for values in expected}, statement
    whole = sum((amounts if summed else credit) for credit, _, amounts in expected.values())
    for values, (credit, users, amounts) in expected.items():
        conversions, count, share, value = found[_shown(values)]
        assert _near(conversions, credit), statement
        assert count == len(users), statement
        assert _near(value, amounts) if summed else value is None, statement
        assert _near(share, (amounts if summed else credit) / whole) if whole else share is None, statement


def test_touches_of_a_journey(asked: psycopg.Connection[Any]) -> None:
    """Ads in three sessions, the second seen twice, then a purchase, and one nobody led to."""
    at = datetime(2025, 11, 1, tzinfo=UTC)
    nothing = {"target_text": None, "hierarchy": None}
    visits = [(0, 1, "/a"), (1, 2, "/b"), (2, 2, "/b"), (3, 3, "/a")]
    insert(asked, APP, [
        *(Event(1, at + timedelta(hours=hour), hour, "pageview", session, {"path": path, "country": None, **nothing})
          for hour, session, path in visits),
        Event(1, at + timedelta(hours=4), 5, "purchase", 3, {"path": None, "country": None, **nothing}, {"amount": 100}),
        Event(2, at, 6, "purchase", None, {"path": None, "country": None, **nothing}, {"amount": 10}),
    ])  # fmt: skip
    for model, expected in {
        "first": [("/a", 1), (None, 1)],
        "last": [("/a", 1), (None, 1)],
        "linear": [(None, 1), ("/a", Decimal("0.66666667")), ("/b", Decimal("0.33333333"))],
        "position": [(None, 1), ("/a", Decimal("0.8")), ("/b", Decimal("0.2"))],
    }.items():
        statement = f'of "Purchase" to path by {model} touch'
        rows = asked.execute("SELECT group_key, conversions FROM heap.attribution(%s)", (statement,)).fetchall()
        assert rows == expected, model
    statement = 'of sum(amount) of "Purchase" to path by linear within 2 hours'
    rows = asked.execute("SELECT * FROM heap.attribution(%s)", (statement,)).fetchall()
    half, share = Decimal("0.5"), Decimal("0.45454545")
    assert rows == [("/a", half, 1, share, 50), ("/b", half, 1, share, 50), (None, 1, 1, Decimal("0.09090909"), 10)]


def test_amounts_of_any_size_add_up_exactly(asked: psycopg.Connection[Any]) -> None:
    at = datetime(2025, 11, 1, tzinfo=UTC)
    columns = {"target_text": None, "hierarchy": None, "path": "/a", "country": None}
    for amounts in ([10**40 + 1, 10.25, -3], [2**62, 2**62, 2**62], [0.5, 0.25, 1000]):
        insert(asked, APP, [
            Event(user, at, user, "purchase", 1, columns, {"amount": amount})
            for user, amount in enumerate(amounts, start=1)
        ])  # fmt: skip
        rows = asked.execute("SELECT * FROM heap.attribution('of sum(amount) of \"Purchase\" to path')").fetchall()
        assert [(*row[:4], Fraction(row[4])) for row in rows] == [("/a", 3, 3, 1, sum(map(Fraction, amounts)))]
        asked.rollback()
