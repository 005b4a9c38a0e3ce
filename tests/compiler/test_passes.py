"""Each predicate pass by pairs of lines, before and after, in fixtures/passes/<pass>.sql; and the other passes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlglot import exp, parse_one

import heap_compiler.compile
import heap_compiler.passes
from heap_compiler import CompiledDefinition, CompiledQuery, compile_statement
from heap_compiler.bind import Binder
from heap_compiler.bound import EVERY_EVENT_CONDITION
from heap_compiler.catalog import MergingUsers, Strategy
from heap_compiler.parse import parse_event
from heap_compiler.passes import PREDICATE_PASSES, QUERY_PASSES, SEQUENCE_PASSES, STORAGE_PASSES
from heap_compiler.passes.verify_pushdown import verify_pushdown
from heap_compiler.ranges import TimeRange
from heap_compiler.sequence import Sequence, SequenceStep, counted
from heap_compiler.sql import all_of, conjuncts, generate
from tests.dictionary_catalog import DictionaryCatalog

_FIXTURES = Path(__file__).parents[1] / "fixtures" / "passes"
_PAIRS = [
    (predicate_pass, before, after)
    for predicate_pass in PREDICATE_PASSES
    for lines in [(_FIXTURES / f"{predicate_pass.__name__}.sql").read_text().splitlines()]
    for before, after in zip(lines[::3], lines[1::3], strict=True)
]


@pytest.mark.parametrize(("predicate_pass", "before", "after"), _PAIRS)
def test_predicate_pass(predicate_pass: object, before: str, after: str) -> None:
    condition = parse_one(before, dialect="postgres")
    passed = predicate_pass(tuple(conjuncts(condition)))  # type: ignore[operator]
    assert " AND ".join(part.sql("postgres", normalize_functions=False) for part in passed) == after


def test_every_module_of_the_passes_is_in_one_tuple() -> None:
    modules = {path.stem for path in Path(heap_compiler.passes.__file__).parent.glob("*.py")} - {"__init__"}
    listed = [one.__name__ for one in (*PREDICATE_PASSES, *SEQUENCE_PASSES, *QUERY_PASSES, *STORAGE_PASSES)]
    assert sorted(listed) == sorted(modules)


def _sequence(*events: str, sizes: dict[str, int] | None = None, asked: Strategy = "auto", shards: int = 0) -> Sequence:
    catalog = DictionaryCatalog(sizes=sizes)
    binder = Binder("", catalog, (), ())
    steps = tuple(SequenceStep(counted(binder.event(parse_event(event), event), catalog)) for event in events)
    entry = TimeRange(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 8, tzinfo=UTC))
    sequence = Sequence("shop", steps, timedelta(days=7), entry, asked=asked, shards=shards)
    for sequence_pass in SEQUENCE_PASSES:
        sequence = sequence_pass(sequence)
    return sequence


def test_prune_time_reads_one_window_beyond_the_range_for_later_steps() -> None:
    first, second = _sequence("pageview", "purchase").steps
    assert first.read == TimeRange(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 8, tzinfo=UTC))
    assert second.read is not None
    assert second.read.end == datetime(2026, 6, 15, 0, 0, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ("pageview", "click", True),
        ("pageview", "pageview", False),
        ("pageview where path = '/a'", "pageview where path in ('/b', '/c')", True),
        ("pageview where path = '/a'", "any where path in ('/a', '/c')", False),
        ("pageview where path = '/a' or path = '/b'", "pageview where path = '/c'", True),
        ("any", "click", False),
        ('"Viewed pricing"', '"Sign up"', True),
        ("pageview or click", "click", False),
        ("pageview where path != '/a'", "pageview where path = '/a'", False),
    ],
)
def test_disjoint_steps(one: str, other: str, apart: bool) -> None:
    assert _sequence(one, other).steps[1].apart is apart


def test_choose_strategy_probes_from_the_rarest_earlier_step_and_only_with_known_sizes() -> None:
    sizes = {"Viewed pricing": 5_000, "Sign up": 10, "Purchase": 9_000}
    steps = _sequence('"Viewed pricing"', '"Sign up"', '"Purchase"', sizes=sizes).steps
    assert [step.driver for step in steps] == [None, None, 1]
    assert all(step.driver is None for step in _sequence('"Viewed pricing"', '"Purchase"').steps)


@pytest.mark.parametrize(
    ("sizes", "asked", "shards", "vector"),
    [
        ({}, "auto", 4, True),
        ({}, "auto", 0, False),
        ({"Sign up": 700, "Purchase": 700}, "auto", 1, True),
        ({"Sign up": 100, "Purchase": 100}, "auto", 1, False),
        ({"Sign up": 250, "Purchase": 250}, "auto", 4, True),
        ({"Sign up": 150, "Purchase": 150}, "auto", 4, False),
        ({"Sign up": 100, "Purchase": 2_000_000}, "auto", 1, False),
        ({"Sign up": 1_000, "Purchase": 2_000_000}, "auto", 1, True),
        ({"Sign up": 1_000, "Purchase": 2_000}, "vector", 4, True),
        ({"Sign up": 1_000, "Purchase": 2_000}, "vector", 0, False),
        ({"Sign up": 900_000, "Purchase": 2_000_000}, "merge", 4, False),
    ],
)
def test_choose_strategy_takes_kernels_where_there_are_some_and_enough_to_do(
    sizes: dict[str, int], asked: Strategy, shards: int, vector: bool
) -> None:
    sequence = _sequence('"Sign up"', '"Purchase"', sizes=sizes, asked=asked, shards=shards)
    assert sequence.vector is vector
    assert sequence.reason


_COUNTED = 'trend users of "Sign up", count of "Sign up" as \'all\', count of "Purchase" as \'other\' by day'


@pytest.mark.parametrize(
    ("statement", "sizes", "asked", "shards", "scans"),
    [
        (_COUNTED, {"Sign up": 200}, "auto", 1, 1),
        (_COUNTED, {"Sign up": 200}, "auto", 2, 0),
        (_COUNTED, {"Sign up": 200}, "auto", 0, 0),
        (_COUNTED, {"Sign up": 2}, "vector", 4, 1),
        (_COUNTED, {"Sign up": 2_000_000}, "merge", 1, 0),
        (_COUNTED + " group by user.plan", {}, "auto", 1, 1),
        (_COUNTED + " group by country", {}, "vector", 1, 0),
        (_COUNTED + " rolling 7 days", {}, "vector", 1, 0),
        ("trend count of any", {}, "vector", 1, 0),
        ('lifecycle of "Sign up" group by country', {}, "auto", 1, 1),
        ('stickiness of "Sign up"', {}, "auto", 1, 1),
        ('retention from "Sign up" to "Purchase"', {"Sign up": 10, "Purchase": 200}, "auto", 1, 2),
        ('paths across "Sign up", "Purchase"', {}, "auto", 1, 2),
        ('paths across "Sign up", "Purchase" top 3', {}, "vector", 1, 0),
    ],
)
def test_kernels_count_what_they_know_and_read_it_once(
    statement: str, sizes: dict[str, int], asked: Strategy, shards: int, scans: int
) -> None:
    catalog = DictionaryCatalog(sizes=sizes)
    catalog.strategy, catalog.shards = asked, shards
    query = compile_statement(statement, catalog)
    assert isinstance(query, CompiledQuery)
    assert len(query.kernel_reads) == scans + ("user.plan" in statement)
    assert (query.strategy or "").startswith("vector: " if scans else "sql: ")
    assert query.sources.keys() == {scan.alias for scan in query.scans}


def test_choose_strategy_probes_or_merges_as_it_is_asked() -> None:
    sizes = {"Viewed pricing": 5_000, "Sign up": 6_000, "Purchase": 900_000}
    names = ('"Viewed pricing"', '"Sign up"', '"Purchase"')
    for asked, drivers in (("auto", [None, None, 0]), ("merge", [None, None, None]), ("probe", [None, 0, 0])):
        assert [step.driver for step in _sequence(*names, sizes=sizes, asked=asked).steps] == drivers


def test_verify_pushdown_leaves_windows_over_aggregates_to_the_coordinator() -> None:
    counted = "WITH c AS (SELECT path, count(*) AS n FROM shop.events GROUP BY path)"
    query = parse_one(f"{counted} SELECT sum(n) OVER (PARTITION BY path) FROM c", dialect="postgres")
    assert isinstance(query, exp.Query)
    assert verify_pushdown(query) is query


@pytest.mark.parametrize(
    ("query", "refused"),
    [
        (
            "SELECT count(*) FROM (SELECT user_id FROM shop.events LIMIT 5) AS e",
            "LIMIT over rows of users: SELECT user_id",
        ),
        (
            "WITH c AS (SELECT user_id, path FROM shop.events) SELECT max(path) OVER (PARTITION BY path) FROM c",
            r"window not partitioned by user_id: MAX\(path\)",
        ),
        ("SELECT DISTINCT path FROM shop.events", "DISTINCT without user_id: SELECT DISTINCT path"),
        ("SELECT 1 FROM shop.events JOIN shop.users ON path = identity", "join not on user_id: JOIN shop.users"),
        (
            "WITH c AS MATERIALIZED (SELECT user_id FROM shop.events) SELECT count(*) FROM c",
            "computed beforehand, .*: c AS",
        ),
        ("SELECT count(*) FROM shop.events WHERE user_id NOT IN (SELECT user_id FROM shop.users)", "not on user_id: "),
        (
            "SELECT count(*) FROM shop.events WHERE path IN (SELECT identity FROM shop.users)",
            "membership not of user_id: path",
        ),
        (
            "SELECT count(*) FROM (SELECT path FROM shop.events UNION ALL SELECT path FROM shop.events) AS e",
            "UNION without",
        ),
        (
            "SELECT count(*) FROM (SELECT user_id FROM shop.events EXCEPT SELECT user_id FROM shop.users) AS e",
            "EXCEPT of",
        ),
        ("SELECT array_agg(path ORDER BY time) FROM shop.events", "ordered aggregate of all users: ARRAY_AGG"),
        ("SELECT string_agg(path, ',') FROM shop.events", "aggregate that shards give no part of: STRING_AGG"),
        ("SELECT count(DISTINCT path) FROM shop.events", "distinct values, not of user_id, of all users: COUNT"),
        ("SELECT session_id, count(*) FROM shop.events GROUP BY session_id", "totals of every user, .*: session_id"),
        ("SELECT count(*) FROM shop.events GROUP BY ROLLUP (path)", "grouping sets: .*ROLLUP"),
        (
            "SELECT count(*) FROM (SELECT event_id AS user_id FROM shop.events) AS e JOIN shop.users AS u"
            " ON e.user_id = u.user_id",
            "join not on user_id: JOIN shop.users AS u",
        ),
        (
            "SELECT count(*) FROM shop.users AS u CROSS JOIN LATERAL (SELECT time FROM shop.events AS e"
            " WHERE e.path = u.identity) AS l",
            "join not on user_id: CROSS JOIN LATERAL",
        ),
    ],
)
def test_verify_pushdown_names_what_citus_could_not_send(query: str, refused: str) -> None:
    parsed = parse_one(query, dialect="postgres")
    assert isinstance(parsed, exp.Query)
    with pytest.raises(AssertionError, match=refused):
        verify_pushdown(parsed)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT user_id FROM shop.events LIMIT 5",
        "SELECT count(*) FROM shop.events AS e WHERE NOT EXISTS (SELECT 1 FROM shop.users AS u WHERE u.user_id = e.user_id)",
        "SELECT n, count(*) FROM (SELECT user_id, count(*) AS n FROM shop.events GROUP BY user_id) AS e GROUP BY n",
        "SELECT count(*) FROM shop.events WHERE path IN (SELECT path FROM shop.events GROUP BY path LIMIT 3)",
        "SELECT count(*) FROM shop.users AS u CROSS JOIN LATERAL"
        " (SELECT time FROM shop.events AS e WHERE e.user_id = u.user_id ORDER BY time LIMIT 1) AS l",
    ],
)
def test_verify_pushdown_accepts_what_stays_with_its_users(query: str) -> None:
    parsed = parse_one(query, dialect="postgres")
    assert isinstance(parsed, exp.Query)
    assert verify_pushdown(parsed) is parsed


@pytest.mark.parametrize("is_distributed", [True, False])
def test_statements_are_verified_where_there_are_shards_they_must_be_sent_to(
    is_distributed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[exp.Query] = []

    def note(query: exp.Query) -> exp.Query:
        verified.append(query)
        return query

    monkeypatch.setattr(heap_compiler.compile, "QUERY_PASSES", (note,))
    catalog = DictionaryCatalog()
    catalog.is_distributed = is_distributed
    compile_statement("trend count of pageview", catalog)
    compile_statement('segment "Viewers" as users who did pageview', catalog)
    assert len(verified) == (2 if is_distributed else 0)


def test_an_event_whose_indexes_have_no_gates_is_read_by_what_its_indexes_say() -> None:
    catalog = DictionaryCatalog()
    with_gates = compile_statement('trend count of "Clicked sign up"', catalog)
    catalog.without_gates = frozenset({"Clicked sign up"})
    without = compile_statement('trend count of "Clicked sign up"', catalog)
    assert isinstance(with_gates, CompiledQuery)
    assert isinstance(without, CompiledQuery)
    kept = [line for line in with_gates.sql.splitlines() if "strpos" not in line]
    assert kept == without.sql.splitlines() != with_gates.sql.splitlines()
    defined = compile_statement("define \"Again\" as click where element matches 'form.signup'", catalog)
    assert isinstance(defined, CompiledDefinition)
    assert "strpos(hierarchy, '.signup;')" in str(defined.predicate), "a redefinition has them"


@pytest.mark.parametrize(("is_moved", "touched", "hidden"), [(False, "{1000}", "7"), (True, "{1,2}", "-7")])
def test_read_merging_users_leaves_out_copies_until_the_batch_moves_and_then_originals(
    is_moved: bool, touched: str, hidden: str
) -> None:
    catalog = DictionaryCatalog()
    statement = 'funnel "Purchase" -> click group by user.plan for users in "Listed"'
    before = compile_statement(statement, catalog)
    catalog.merging = MergingUsers(7, (2, 1), (1000,), is_moved)
    merging = compile_statement(statement, catalog)
    assert isinstance(before, CompiledQuery)
    assert isinstance(merging, CompiledQuery)
    assert merging.scans == before.scans
    sql = parse_one(merging.sql, dialect="postgres")
    reads = [
        select
        for select in sql.find_all(exp.Select)
        if (source := select.args.get("from_")) and source.this.name == "events"
    ]
    conditions = [read.args["where"].sql("postgres") for read in reads]
    assert len(reads) == 2 * parse_one(before.sql, dialect="postgres").sql().count('"events"')
    alone = [condition for condition in conditions if "merge_id" not in condition]
    assert len(alone) == len(reads) / 2
    assert all(f"NOT {alias}" in condition for alias, condition in zip(("step_1", "step_2"), alone, strict=True))
    assert all(touched in condition for condition in conditions)
    assert all(f"merge_id IS DISTINCT FROM {hidden}" in one for one in conditions if one not in alone)
    assert ("merged_users" in merging.sql) == is_moved
    assert "merge" not in before.sql


def test_what_has_no_condition_is_written_as_the_packs_of_any_event_are() -> None:
    assert generate(all_of(())) == EVERY_EVENT_CONDITION
