"""Every example of the language's first page runs on the demo's shop, and its numbers are those of naive evaluators."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from heap_compiler.analyses import ANALYSES
from heap_extension.load import LOADED_COLUMNS, LoadedEvent, Loader
from heap_extension.shop import DEFINITIONS, shop_events
from tests import oracle
from tests.extension.shop_app import NOW
from tests.histories import ZONE
from tests.oracle import Event, local_bucket
from tests.semantics.test_paths_oracle import naive_paths
from tests.semantics.test_sessions_oracle import described, naive_sessions

_EXAMPLES = (Path(__file__).parents[1] / "language_page.heap").read_text().splitlines()
_APP = "language_page"
_DEFINITIONS = DEFINITIONS | {
    "Engaged": '"Viewed pricing" or "Clicked sign up"',
    "A": '"Viewed product"',
    "B": "click where target_text = 'Add to cart'",
    "C": '"Purchase" where items <= 2',
    "D": "pageview where path = '/'",
    "Cancelled": "click where path = '/'",
    "Used search": "pageview where path = '/search'",
    "Clicked help": "pageview where path = '/about'",
}
_DONE = {"define": "define", "segment": "define", "drop": "drop event"}
_SEGMENTS = {"Lapsed": 'users who did "Purchase" and did not do any in last 30 days'}


def _visits() -> Iterator[LoadedEvent]:
    """The shop of few visitors, with a product id on all that is about a product."""
    for event in shop_events(NOW, users=400):
        path = event.columns[LOADED_COLUMNS.index("path")] or ""
        product = event.properties.get("product") or (path if path.startswith("/product/") else None)
        yield event._replace(properties=event.properties | ({"product_id": product} if product else {}))


@pytest.fixture(scope="module")
def page(dsn: str) -> Iterator[str]:
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT heap.create_app(%s, 'Europe/Berlin')", (_APP,))
        Loader(connection, _APP).load(_visits())
        _settle(connection)
        for name, definition in _DEFINITIONS.items():
            connection.execute("SELECT heap.define_event(%s, %s)", (name, definition))
        for name, definition in _SEGMENTS.items():
            connection.execute("SELECT heap.define_segment(%s, %s)", (name, definition))
    yield dsn
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT heap.drop_app(%s)", (_APP,))


@pytest.fixture
def shop(page: str, connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    _settle(connection)
    return connection


def _settle(connection: psycopg.Connection[Any]) -> None:
    connection.execute("SELECT set_config('heap.app', %s, false), set_config('heap.now', %s, false)", (_APP, str(NOW)))


@pytest.mark.parametrize("example", _EXAMPLES)
def test_every_example_of_the_page_runs(shop: psycopg.Connection[Any], example: str) -> None:
    answer = [row for (row,) in shop.execute("SELECT heap.query(%s)", (example,))]
    done = _DONE.get(example.split()[0])
    assert answer == [{"done": done}] if done else answer


def test_a_funnel_of_names_is_a_table(shop: psycopg.Connection[Any]) -> None:
    named = shop.execute("SELECT * FROM heap.funnel('Viewed pricing', 'Clicked sign up', 'Purchase')").fetchall()
    written = shop.execute(
        "SELECT * FROM heap.funnel(%s)", ('"Viewed pricing" -> "Clicked sign up" -> "Purchase"',)
    ).fetchall()
    assert named == written
    assert len(named) == 3


def test_a_misspelled_event_has_the_error_of_the_page(shop: psycopg.Connection[Any]) -> None:
    shop.execute("SELECT heap.define_event('Sign up', 'submit')")
    with pytest.raises(psycopg.Error) as raised:
        shop.execute("SELECT heap.query(%s)", ('funnel pageview -> "Sign upp" within 7 days',))
    assert raised.value.diag.message_primary == (
        'error at line 1, column 20: unknown event "Sign upp"\n'
        '  funnel pageview -> "Sign upp" within 7 days\n'
        '                     ^^^^^^^^^^ did you mean "Sign up"?'
    )


# The same questions in Python, over the events as they were generated.

_TESTS: dict[str, oracle.Test] = {
    "any": lambda e: True,
    "pageview": lambda e: e.type == "pageview",
    "Viewed pricing": lambda e: e.type == "pageview" and e.get("path") == "/pricing",
    "Clicked sign up": lambda e: (
        e.type == "click" and e.get("target_text") == "Sign up" and e.get("target_tag") == "button"
    ),
    "Signed up": lambda e: e.type == "submit" and e.get("path") == "/signup",
    "Purchase": lambda e: e.type == "purchase",
    "Purchase over 10": lambda e: e.type == "purchase" and e.get("amount") > 10,
    "A": lambda e: e.type == "pageview" and e.get("path").startswith("/product/"),
    "B": lambda e: e.type == "click" and e.get("target_text") == "Add to cart",
    "C": lambda e: e.type == "purchase" and e.get("items") <= 2,
    "D": lambda e: e.type == "pageview" and e.get("path") == "/",
    "Cancelled": lambda e: e.type == "click" and e.get("path") == "/",
    "Used search": lambda e: e.type == "pageview" and e.get("path") == "/search",
}
_EVENTS = [
    Event(e.user_id, e.time, e.event_id or 0, e.type, e.session_id, dict(zip(LOADED_COLUMNS, e.columns, strict=True)),
          e.properties)
    for e in _visits()
]  # fmt: skip
_END = datetime(2026, 6, 21, tzinfo=ZONE)
_START = datetime(2026, 5, 22, tzinfo=ZONE)
_RECENT = [event for event in _EVENTS if _START <= event.time < _END]
_WEEK = timedelta(days=7)


def _ask(shop: psycopg.Connection[Any], beginning: str) -> list[dict[str, Any]]:
    """The answer to the page's example that begins so."""
    (example,) = [example for example in _EXAMPLES if example.startswith(beginning)]
    return [row for (row,) in shop.execute("SELECT heap.query(%s)", (example,))]


def _day(bucket: str) -> datetime:
    return datetime.fromisoformat(bucket).astimezone(ZONE).replace(tzinfo=None)


def _of(name: str, events: list[Event] = _RECENT) -> list[Event]:
    return [event for event in events if _TESTS[name](event)]


_Value = Callable[[list[Event]], Any]


def _ratio(events: list[Event]) -> float | None:
    views = oracle.measure("users", _of("pageview", events))
    return oracle.measure("users", _of("Purchase", events)) / views if views else None


@pytest.mark.parametrize(
    ("beginning", "unit", "values"),
    [
        (
            "trend users of pageview, count",
            "week",
            {
                "users of pageview": lambda events: oracle.measure("users", _of("pageview", events)),
                "signups": lambda events: len(_of("Signed up", events)),
            },
        ),
        (
            "trend sum(amount)",
            "month",
            {
                "sum(amount) of purchase": lambda events: oracle.measure("sum", _of("Purchase", events), "amount"),
                "p90(amount) of purchase": lambda events: oracle.measure("p90", _of("Purchase", events), "amount"),
            },
        ),
    ],
)
def test_trends_of_the_page(
    shop: psycopg.Connection[Any], beginning: str, unit: str, values: dict[str, _Value]
) -> None:
    answer = _ask(shop, beginning)
    assert {row["series"] for row in answer} == set(values)
    for row in answer:
        bucket = local_bucket(datetime.fromisoformat(row["bucket"]), unit, ZONE)
        inside = [event for event in _RECENT if local_bucket(event.time, unit, ZONE) == bucket]
        assert row["value"] == pytest.approx(values[row["series"]](inside), abs=1e-6), row


def test_the_trend_by_country_of_the_page(shop: psycopg.Connection[Any]) -> None:
    answer = _ask(shop, "trend count of")
    found = {(f"{_day(row['bucket']):%Y-%m-%d}", row["group_key"]): row["value"] for row in answer}
    expected: dict[Any, int] = {}
    for event in _of("Purchase"):
        key = local_bucket(event.time, "day", ZONE), event.get("country")
        expected[key] = expected.get(key, 0) + 1
    assert {key: value for key, value in found.items() if value} == expected
    assert len(found) == 30 * len({country for _, country in expected})


def test_the_ratio_and_its_previous_period_of_the_page(shop: psycopg.Connection[Any]) -> None:
    answer = _ask(shop, 'trend users of "Purchase" /')
    assert len({row["bucket"] for row in answer}) == 5
    for series, start, end in (
        ("conversion", _START, _END),
        ("conversion (previous period)", _START - timedelta(30), _START),
    ):
        values = [row["value"] for row in answer if row["series"] == series]
        weeks: dict[str, list[Event]] = {}
        for event in _EVENTS:
            if start <= event.time < end:
                weeks.setdefault(local_bucket(event.time, "week", ZONE), []).append(event)
        expected = [_ratio(weeks[week]) for week in sorted(weeks)]
        assert values == [pytest.approx(value, abs=1e-8) for value in expected]


def test_the_rolling_trend_of_the_page(shop: psycopg.Connection[Any]) -> None:
    answer = _ask(shop, "trend users of any by day rolling")
    assert len(answer) == 30
    for row in answer:
        end = (_day(row["bucket"]) + timedelta(days=1)).replace(tzinfo=ZONE)
        assert row["value"] == len({e.user_id for e in _EVENTS if end - _WEEK <= e.time < end}), row


def _funnel_rows(answer: list[dict[str, Any]], unit: str | None = None) -> dict[Any, Any]:
    return {
        (local_bucket(datetime.fromisoformat(row["bucket"]), unit, ZONE) if unit else None, row["step"]):
            (row["users"], row["immature"])
        for row in answer if row["users"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("beginning", "steps", "rules", "unit"),
    [
        (
            'funnel "Viewed pricing"',
            ["Viewed pricing", "Clicked sign up", "Purchase over 10"],
            oracle.Rules(_WEEK, _START, _END),
            None,
        ),
        (
            'funnel "A" -> "B"',
            ["A", "B", "C"],
            oracle.Rules(
                timedelta(days=30), _START, _END, strictly=True, exclusions=((_TESTS["Cancelled"], 1, 3),),
                hold=lambda e: e.get("product_id"), first_time=True,
            ),
            None,
        ),
        (
            'funnel "A" ->[',
            ["A", "B", "C", "D"],
            oracle.Rules(_WEEK, _START, _END, within={2: timedelta(hours=1)}, optional=frozenset({3})),
            None,
        ),
        (
            "funnel pageview",
            ["pageview", "A or B", "C"],
            oracle.Rules(timedelta(days=30), _START, _END, any_order=True, unit="sessions"),
            "week",
        ),
    ],
)  # fmt: skip
def test_funnels_of_the_page(
    shop: psycopg.Connection[Any], beginning: str, steps: list[str], rules: oracle.Rules, unit: str | None
) -> None:
    tests = [
        (lambda e: _TESTS["A"](e) or _TESTS["B"](e)) if step == "A or B" else _TESTS[step] for step in steps
    ]  # fmt: skip
    expected = oracle.funnel(
        _EVENTS, tests, rules, NOW,
        lambda user, chain: local_bucket(next(e for e in chain if e).time, unit, ZONE) if unit else None,
    )  # fmt: skip
    answer = _ask(shop, beginning)
    found = _funnel_rows(answer, unit)
    entered = {row["bucket"]: row["users"] for row in answer if row["step"] == 1}
    for row in answer:
        share = row["users"] / entered[row["bucket"]] if entered[row["bucket"]] else None
        assert row["conversion"] == (share if share is None else pytest.approx(share, abs=1e-7)), row
    assert found == {place: (row.users, row.immature) for place, row in expected.items() if row.users}
    assert any(step == len(steps) for _, step in found), "the funnel has no conversion: it proves little"


@pytest.mark.parametrize(
    ("beginning", "starts", "returns", "unit", "periods", "start", "rolling"),
    [
        ('retention from "Signed up" to pageview', "Signed up", "pageview", "week", 12, datetime(2026, 3, 30, tzinfo=ZONE), False),
        ("retention from any to any", "any", "any", "day", 14, _START, True),
    ],
)  # fmt: skip
def test_retention_of_the_page(
    shop: psycopg.Connection[Any], beginning: str, starts: str, returns: str, unit: str, periods: int, start: datetime,
    rolling: bool,
) -> None:  # fmt: skip
    found = {
        (_day(row["cohort"]), row["group_key"], row["period"]): (row["size"], row["users"])
        for row in _ask(shop, beginning) if row["size"]
    }  # fmt: skip
    expected = oracle.retention(
        _EVENTS, _TESTS[starts], _TESTS[returns], unit, periods, start, _END, NOW, ZONE, rolling=rolling
    )
    assert found == expected


def test_retention_in_brackets_of_the_page(shop: psycopg.Connection[Any]) -> None:
    found = {
        (_day(row["cohort"]), row["period"]): (row["size"], row["users"])
        for row in _ask(shop, 'retention from "Signed up" to any') if row["size"]
    }  # fmt: skip
    expected: dict[Any, tuple[int, int]] = {}
    today = datetime(2026, 6, 20)
    for user in {event.user_id for event in _of("Signed up")}:
        own = [event for event in _EVENTS if event.user_id == user]
        first = min(event.time for event in own if _TESTS["Signed up"](event) and _START <= event.time < _END)
        cohort = datetime.fromisoformat(local_bucket(first, "day", ZONE))
        after = [(datetime.fromisoformat(local_bucket(event.time, "day", ZONE)) - cohort).days for event in own]
        for low, high in ((0, 0), (1, 1), (2, 3), (4, 7), (8, 14), (15, 30)):
            if cohort + timedelta(days=low) <= today:
                size, users = expected.get((cohort, high), (0, 0))
                came = high == 0 or len([days for days in after if low <= days <= high]) >= 3
                expected[cohort, high] = size + 1, users + came
    assert found == expected


def test_lifecycle_of_the_page(shop: psycopg.Connection[Any]) -> None:
    answer = _ask(shop, "lifecycle")
    buckets = sorted({_day(row["bucket"]) for row in answer})
    assert buckets[0] == datetime(2026, 5, 18)
    expected = oracle.lifecycle(_EVENTS, _TESTS["any"], "week", buckets, _END, ZONE)
    assert {(_day(row["bucket"]), row["status"]): row["users"] for row in answer} == expected


def test_stickiness_of_the_page(shop: psycopg.Connection[Any]) -> None:
    answer = _ask(shop, "stickiness")
    start = datetime(2026, 5, 24, tzinfo=ZONE)
    expected = oracle.stickiness(_EVENTS, _TESTS["Used search"], "day", start, _END, ZONE)
    assert {row["intervals"]: row["users"] for row in answer if row["users"]} == expected
    assert len(answer) == 28


def _paths_rows(answer: list[dict[str, Any]]) -> dict[Any, tuple[int, int]]:
    return {(row["step"], row["source"], row["target"]): (row["users"], row["paths"]) for row in answer}


def test_paths_of_the_page(shop: psycopg.Connection[Any]) -> None:
    gap = timedelta(minutes=30)
    expected = naive_paths(
        _RECENT, lambda e: e.get("path") if e.type == "pageview" else None, gap, "/", None, 5, None
    )  # fmt: skip
    assert _paths_rows(_ask(shop, "paths of")) == {key: row[:2] for key, row in expected.items()}
    names = ["Viewed pricing", "Clicked sign up", "Purchase"]
    expected = naive_paths(
        _RECENT, lambda e: next((name for name in names if _TESTS[name](e)), None), gap, None, "Purchase", 5, None
    )
    assert _paths_rows(_ask(shop, "paths across")) == {key: row[:2] for key, row in expected.items()}


def test_sessions_of_the_page(shop: psycopg.Connection[Any]) -> None:
    expected: dict[Any, Any] = {}
    for session in naive_sessions(_RECENT):
        key = local_bucket(session[0].time, "day", ZONE), session[0].get("landing_page")
        expected.setdefault(key, []).append(session)
    found = {(local_bucket(datetime.fromisoformat(row["bucket"]), "day", ZONE), row["group_key"]): row
             for row in _ask(shop, "sessions by day")}  # fmt: skip
    for key, row in found.items():
        count, users, events, *_, bounces = described(expected.get(key, []))
        assert (row["sessions"], row["users"]) == (count, users)
        if count:
            assert row["events_per_session"] == pytest.approx(float(events), abs=1e-6)
            assert row["bounce_rate"] == pytest.approx(float(bounces), abs=1e-6)
    assert expected.keys() <= found.keys()


def test_distribution_and_time_of_the_page(shop: psycopg.Connection[Any]) -> None:
    counts: dict[int, int] = {}
    for event in _of("Purchase"):
        counts[event.user_id] = counts.get(event.user_id, 0) + 1
    found = {row["low"]: row["users"] for row in _ask(shop, "distribution") if row["users"]}
    assert found == {count: list(counts.values()).count(count) for count in set(counts.values())}
    rules = oracle.Rules(timedelta(days=30), _START, _END)
    expected = oracle.funnel(_EVENTS, [_TESTS["Signed up"], _TESTS["Purchase"]], rules, NOW)[None, 2]
    answer = _ask(shop, "time from")
    assert sum(row["users"] for row in answer) == expected.users == answer[0]["converted"]
    median, average = (
        shop.execute("SELECT %s::interval", (answer[0][name],)).fetchone() for name in ("median_time", "average_time")
    )
    assert median is not None
    assert average is not None
    assert expected.median is not None
    assert expected.average is not None
    assert abs(median[0] - expected.median) < timedelta(milliseconds=1)
    assert abs(average[0] - expected.average) < timedelta(milliseconds=1)


def test_attribution_of_the_page(shop: psycopg.Connection[Any]) -> None:
    """A session has one source, so a touch is a session's: the first of the last 30 days that has a source."""
    credit: dict[str | None, int] = {}
    for event in _of("Purchase"):
        touches = [
            e for e in _EVENTS
            if e.user_id == event.user_id and e.get("utm_source") is not None and e.order <= event.order
            and event.time - e.time <= timedelta(days=30)
        ]  # fmt: skip
        source = min(touches, key=lambda e: e.order).get("utm_source") if touches else None
        credit[source] = credit.get(source, 0) + 1
    assert {row["group_key"]: row["conversions"] for row in _ask(shop, "attribution")} == credit


def test_users_of_the_page(shop: psycopg.Connection[Any]) -> None:
    buyers = [event.user_id for event in _of("Purchase")]
    answer = _ask(shop, "users who")
    assert [row["user_id"] for row in answer] == sorted(u for u in set(buyers) if buyers.count(u) >= 2)[:100]
    rules = oracle.Rules(timedelta(days=30), _START, _END)
    stopped = []
    for user in sorted({event.user_id for event in _EVENTS}):
        own = [event for event in _EVENTS if event.user_id == user]
        chains = oracle.counted_chains(own, [_TESTS["Viewed pricing"], _TESTS["Clicked sign up"]], rules)
        stopped += [(user, chain[0].event_id) for level, chain in chains if level == 1 and chain[0] is not None]
    assert [(row["user_id"], row["event_ids"][0]) for row in _ask(shop, "users of")] == stopped


def test_the_page_has_every_analysis() -> None:
    heads = {re.split(r"\s", example)[0] for example in _EXAMPLES}
    assert {analysis.keyword for analysis in ANALYSES} <= heads
