"""What PostgreSQL does with the compiled SQL, read from EXPLAIN as JSON."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

import heap_grammar
from heap_compiler import CompiledQuery, compile_statement
from heap_compiler.analyses import ANALYSES
from heap_compiler.catalog import Strategy
from heap_extension.server.plans import plan_nodes
from heap_extension.shop import DEFINITIONS
from tests.dictionary_catalog import DictionaryCatalog
from tests.extension.shop_app import NOW, ensure_shop, settle

_FUNNEL = 'funnel "Viewed pricing" -> "Clicked sign up" -> "Purchase" within 7 days over last 30 days'


@pytest.fixture
def shop(dsn: str, connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """The shop, its sequences in SQL: what kernels read is no part of a query's plan."""
    ensure_shop(dsn)
    settle(connection)
    connection.execute("SET citus.explain_all_tasks = on")
    connection.execute("SET heap.strategy = 'merge'")
    return connection


def _plan(connection: psycopg.Connection[Any], statement: str) -> list[dict[str, Any]]:
    (sql,) = connection.execute("SELECT heap.sql(%s)", (statement,)).fetchone() or ("",)
    (plan,) = connection.execute("EXPLAIN (FORMAT JSON) " + sql).fetchone() or ("",)
    return list(plan_nodes(plan))


def _scans(nodes: list[dict[str, Any]], alias: str) -> list[dict[str, Any]]:
    return [node for node in nodes if "Scan" in node.get("Node Type", "") and node.get("Alias", "").startswith(alias)]


def test_every_step_is_an_index_only_scan_of_its_own_index_and_nothing_sorts(
    shop: psycopg.Connection[Any],
) -> None:
    nodes = _plan(shop, _FUNNEL)
    for step, slug in ((1, "viewed_pricing"), (2, "clicked_sign_up"), (3, "purchase")):
        scans = _scans(nodes, f"step_{step}")
        assert scans
        assert {scan["Node Type"] for scan in scans} == {"Index Only Scan"}, step
        assert all(slug in scan["Index Name"] or "user_id_time_event_id" in scan["Index Name"] for scan in scans)
    sorts = [node for node in nodes if node.get("Node Type") in {"Sort", "Incremental Sort"}]
    assert not [key for node in sorts for key in node["Sort Key"] if "event_id" in key]


# Citus would explain over other connections, which wait for the index made in this transaction.
@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_an_index_of_earlier_versions_whose_predicate_tests_the_type_first_serves_the_step(
    shop: psycopg.Connection[Any],
) -> None:
    (suffix, predicate) = shop.execute(
        "SELECT index_suffix, predicate FROM heap.event_definition WHERE app = 'shop' AND name = 'Viewed pricing'"
    ).fetchone() or ("", "")
    conjuncts = predicate.split(" AND ")
    assert conjuncts.index("type_key = hashtext('pageview')") > 0
    earlier = " AND ".join(sorted(conjuncts, key=lambda conjunct: not conjunct.startswith("type_key")))
    shop.execute(f"DROP INDEX shop.events_2026_06_{suffix}")
    shop.execute(f"CREATE INDEX earlier ON shop.events_2026_06 (user_id, time, event_id) WHERE {earlier}")
    scans = _scans(_plan(shop, _FUNNEL), "step_1")
    assert any(scan["Index Name"].startswith("earlier") for scan in scans)


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_an_index_of_earlier_versions_without_gates_before_its_regular_expression_serves_the_step_alone(
    shop: psycopg.Connection[Any],
) -> None:
    (suffix, predicate) = shop.execute(
        "SELECT index_suffix, predicate FROM heap.event_definition WHERE app = 'shop' AND name = 'Clicked sign up'"
    ).fetchone() or ("", "")
    conjuncts = predicate.split(" AND ")
    earlier = " AND ".join(conjunct for conjunct in conjuncts if not conjunct.startswith("strpos"))
    assert earlier != predicate
    shop.execute(f"DROP INDEX shop.events_2026_06_{suffix}")
    shop.execute(f"CREATE INDEX earlier ON shop.events_2026_06 (user_id, time, event_id) WHERE {earlier}")
    shop.execute("UPDATE heap.event_definition SET gates_patterns = false WHERE name = 'Clicked sign up'")
    shop.execute("UPDATE heap.app SET version = nextval('heap.catalog_version')")
    scans = [scan for scan in _scans(_plan(shop, _FUNNEL), "step_2") if scan["Relation Name"] == "events_2026_06"]
    assert [(scan["Node Type"], scan["Index Name"]) for scan in scans] == [("Index Only Scan", "earlier")]


def test_steps_stay_index_only_when_the_funnel_is_grouped(shop: psycopg.Connection[Any]) -> None:
    nodes = _plan(shop, _FUNNEL + " group by country")
    for step in (1, 2, 3):
        assert {scan["Node Type"] for scan in _scans(nodes, f"step_{step}")} == {"Index Only Scan"}


def test_a_trend_grouped_by_a_covered_column_reads_only_the_index(shop: psycopg.Connection[Any]) -> None:
    statement = 'trend count of "Purchase" by day over last 30 days group by country'
    assert {scan["Node Type"] for scan in _scans(_plan(shop, statement), "series_1_events")} != {"Index Only Scan"}
    with shop.transaction(force_rollback=True):
        shop.execute("SELECT heap.cover_event('Purchase', 'country')")
        scans = _scans(_plan(shop, statement), "series_1_events")
    assert {scan["Node Type"] for scan in scans} == {"Index Only Scan"}


def test_partitions_outside_the_range_are_not_read(shop: psycopg.Connection[Any]) -> None:
    relations = {node.get("Relation Name", "") for node in _plan(shop, _FUNNEL)}
    assert not [name for name in relations if name.startswith(("events_2026_04", "events_2026_12"))]


def test_a_trend_of_users_reads_only_the_index(shop: psycopg.Connection[Any]) -> None:
    nodes = _plan(shop, 'trend users of "Viewed product", count of "Signed up" by day')
    for series in (1, 2):
        assert {scan["Node Type"] for scan in _scans(nodes, f"series_{series}_events")} == {"Index Only Scan"}


def test_a_rolling_trend_reads_only_the_index_and_sends_one_row_per_bucket(shop: psycopg.Connection[Any]) -> None:
    nodes = _plan(shop, 'trend users of "Viewed product" by day rolling 7 days')
    assert {scan["Node Type"] for scan in _scans(nodes, "series_1_events")} == {"Index Only Scan"}
    for distributed in (node for node in nodes if node.get("Task Count") == 4):
        for top in (next(plan_nodes(task["Remote Plan"])) for task in distributed["Tasks"]):
            assert top["Plan"]["Node Type"] == "Aggregate"
            assert len(top["Plan"]["Group Key"]) == 1


@pytest.mark.parametrize(
    ("statement", "alias"),
    [
        ('distribution of count of "Viewed product" per user group by user.plan', "measured_events"),
        ('time from "Viewed pricing" to "Signed up" group by user.plan', "step_1"),
        ('time from "Viewed pricing" to "Signed up" group by country', "step_2"),
    ],
)
def test_what_needs_no_more_than_the_index_reads_no_more(
    shop: psycopg.Connection[Any], statement: str, alias: str
) -> None:
    assert {scan["Node Type"] for scan in _scans(_plan(shop, statement), alias)} == {"Index Only Scan"}


@pytest.mark.parametrize("statement", [
    "sessions by week group by landing_page, exit path, user.plan",
    'distribution of sum(amount) of "Purchase" per user in bins of 10 group by country',
    'time from "Viewed pricing" to "Signed up" group by country top 2',
])  # fmt: skip
def test_citus_gets_one_distributed_query_of_aggregates(shop: psycopg.Connection[Any], statement: str) -> None:
    if not shop.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone():
        pytest.skip("plain PostgreSQL")
    distributed = [node for node in _plan(shop, statement) if node.get("Task Count") == 4]
    assert len(distributed) == 1
    for task in distributed[0]["Tasks"]:
        assert next(plan_nodes(task["Remote Plan"]))["Plan"]["Node Type"] == "Aggregate"


@pytest.mark.parametrize("statement", [
    _FUNNEL,
    _FUNNEL + " by week group by country compared to previous period",
    'trend users of "Viewed pricing" by day',
    "sessions by day over last 7 days group by landing_page top 3",
])  # fmt: skip
def test_citus_has_no_part_in_the_query_that_asks_kernels(shop: psycopg.Connection[Any], statement: str) -> None:
    """It has the totals of a single query to each kernel: nothing of them lies in files or is planned anew."""
    if not shop.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone():
        pytest.skip("plain PostgreSQL")
    shop.execute("SET heap.strategy = 'vector'")
    nodes = list(_plan(shop, statement))
    functions = {node["Function Name"] for node in nodes if "Function Name" in node}
    assert any(name.endswith("_kernels") for name in functions)
    assert "read_intermediate_result" not in functions
    assert not [node for node in nodes if "Task Count" in node]


def test_one_sort_serves_everything_a_session_is_grouped_by(shop: psycopg.Connection[Any]) -> None:
    nodes = _plan(shop, "sessions by week group by landing_page, entry path, exit path")
    tasks = max((node["Task Count"] for node in nodes if "Task Count" in node), default=1)
    sorts = [node["Sort Key"] for node in nodes if node.get("Node Type") in {"Sort", "Incremental Sort"}]
    assert len([keys for keys in sorts if any("session_id" in key for key in keys)]) == tasks


def test_explain_says_which_index_serves_each_step(shop: psycopg.Connection[Any]) -> None:
    lines = [line for (line,) in shop.execute("SELECT heap.explain(%s)", (_FUNNEL,))]
    assert lines[0].startswith("step 1 (Viewed pricing): index only scan of ")
    assert "timeline: merged from the indexes, no sort" in lines
    shop.execute("SET heap.strategy = 'vector'")
    lines = [line for (line,) in shop.execute("SELECT heap.explain(%s)", (_FUNNEL,))]
    assert lines[0].startswith("step 1 (Viewed pricing): index only scan of ")
    assert "timeline: merged by the kernels" in lines


def test_explain_says_which_strategy_runs_and_why(shop: psycopg.Connection[Any]) -> None:
    counted = r"strategy: vector: (about [\d,]+ matching events|events that nobody has counted)"
    for statement, strategy, line in (
        (_FUNNEL, "vector", "strategy: vector: asked for by heap.strategy"),
        (_FUNNEL, "merge", "strategy: merge: asked for by heap.strategy"),
        (_FUNNEL + " in any order", "merge", "strategy: any order: asked for by heap.strategy"),
        (_FUNNEL + " counting sessions", "merge", "strategy: timeline: asked for by heap.strategy"),
        (_FUNNEL + " in any order holding path", "auto", counted),
        (_FUNNEL.replace("funnel", "effort"), "auto", counted),
        (
            _FUNNEL.replace("funnel", "correlate") + " with country",
            "vector",
            "strategy: vector: asked for by heap.strategy",
        ),
        (_FUNNEL + " by day", "auto", counted),
        ('time from "Viewed pricing" to "Purchase"', "vector", "strategy: vector: asked for by heap.strategy"),
        ('retention from "Viewed pricing" to "Purchase"', "merge", "strategy: sql: asked for by heap.strategy"),
        ("lifecycle of any group by country", "auto", "strategy: vector: events that nobody has counted"),
        ("trend users of any by day group by country", "vector", "strategy: sql: kernels know no such rule"),
        ("paths of pageview by path top 3", "vector", "strategy: sql: kernels know no such rule"),
    ):
        shop.execute(f"SET heap.strategy = '{strategy}'")
        assert [shown for shown in _explained(shop, statement, analyze=False) if re.fullmatch(line, shown)], line
    shop.execute("SET heap.strategy = 'fast'")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="no strategy 'fast'"):
        shop.execute("SELECT heap.sql(%s)", (_FUNNEL,))


_EXAMPLES = re.findall(r"```heap\n(.*?)\n```", heap_grammar.reference_text(), re.S)
_ANALYSES = [example for example in _EXAMPLES if example.split()[0] in {analysis.keyword for analysis in ANALYSES}]
_SEGMENTS = [example for example in _EXAMPLES if example.startswith("segment ")]


def _explained(connection: psycopg.Connection[Any], statement: str, *, analyze: bool) -> list[str]:
    lines = [line for (line,) in connection.execute("SELECT heap.explain(%s, %s)", (statement, analyze))]
    return lines[: lines.index("")]


def test_the_reference_has_an_example_of_every_analysis() -> None:
    assert {example.split()[0] for example in _ANALYSES} == {analysis.keyword for analysis in ANALYSES}


@pytest.mark.parametrize("example", _ANALYSES)
def test_explain_tells_index_rows_and_place_of_every_scan(shop: psycopg.Connection[Any], example: str) -> None:
    for segment in _SEGMENTS:
        shop.execute("SELECT heap.query(%s)", (segment,))
    on_citus = shop.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone()
    catalog = DictionaryCatalog(dict(DEFINITIONS))
    catalog.now, catalog.shards = NOW, 1
    strategies: tuple[Strategy, ...] = ("merge", "vector")
    for strategy in strategies:
        catalog.strategy = strategy
        query = compile_statement(example, catalog)
        assert isinstance(query, CompiledQuery)
        assert query.sources.keys() == {scan.alias for scan in query.scans}
        if strategy == "vector" and not query.kernel_reads:
            continue
        shop.execute(f"SET heap.strategy = '{strategy}'")
        for analyze in (False, True):
            lines = _explained(shop, example, analyze=analyze)
            for line in lines[: len(query.sources)]:
                assert re.search(r" scan( of the (index of|primary key)|[,;])", line), line
                assert re.search(r"about [\d,]+ rows?", line), line
                assert bool(re.search(r"[\d,]+ read", line)) == analyze, line
                assert bool(on_citus) == ("pushed down, " in line), line


@pytest.mark.parametrize(
    ("statement", "counted"),
    [
        ('trend count of "Purchase"', 'trend count of "Purchase"'),
        ("trend count of any over last 90 days", "trend count of any over last 90 days"),
        ('lifecycle of "Purchase"', 'trend count of "Purchase" over last 999 days'),
        ("trend count of click where country = 'DE'", "trend count of click where country = 'DE'"),
    ],
)
def test_explain_adds_up_rows_of_partitions_and_shards(
    shop: psycopg.Connection[Any], statement: str, counted: str
) -> None:
    line = _explained(shop, statement, analyze=True)[0]
    read, dropped = re.search(r"([\d,]+) read(?:, ([\d,]+))?", line).groups()  # type: ignore[union-attr]
    passed = int(read.replace(",", "")) - int((dropped or "0").replace(",", ""))
    assert shop.execute("SELECT value FROM heap.trend(%s)", (counted,)).fetchone() == (passed,), line


def test_explain_says_when_a_definition_would_help(shop: psycopg.Connection[Any]) -> None:
    assert "seq scan, 1 partition; a definition would have an index" in _explained(
        shop, "trend count of click where title like '%x%' over last 2 days", analyze=False)[0]  # fmt: skip
    shop.execute("SET citus.propagate_set_commands = 'local'")
    shop.execute(
        "SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off"
    )
    line = _explained(shop, 'trend count of "Purchase"', analyze=False)[0]
    assert 'the index of "Purchase" is not used' in line


def test_citus_pushes_the_funnel_down_in_one_piece(shop: psycopg.Connection[Any]) -> None:
    nodes = _plan(shop, _FUNNEL + " group by country, user.plan")
    tasks = [node["Task Count"] for node in nodes if "Task Count" in node]
    if not shop.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone():
        assert tasks == []
        return
    assert tasks.count(4) == 1, "one distributed query over the four shards"
    (distributed,) = [node for node in nodes if node.get("Task Count") == 4]
    tops = [task["Remote Plan"] for task in distributed["Tasks"]]
    assert len(tops) == 4
    assert all(
        next(plan_nodes(top))["Plan"]["Node Type"] == "Aggregate" if isinstance(top, dict) else True for top in tops
    )


def test_paths_across_events_merge_their_indexes(shop: psycopg.Connection[Any]) -> None:
    nodes = _plan(shop, 'paths across "Viewed pricing", "Clicked sign up", "Purchase" to "Purchase"')
    for index in (1, 2, 3):
        assert {scan["Node Type"] for scan in _scans(nodes, f"node_{index}")} == {"Index Only Scan"}
    sorts = [node for node in nodes if node.get("Node Type") == "Sort"]
    assert not [key for node in sorts for key in node["Sort Key"] if "event_id" in key]


def test_touches_are_read_for_users_who_converted(shop: psycopg.Connection[Any]) -> None:
    nodes = _plan(shop, 'attribution of "Purchase" to utm_source by linear touch')
    for alias in ("conversion_events", "converting_users"):
        assert {scan["Node Type"] for scan in _scans(nodes, alias)} == {"Index Only Scan"}
    sorts = [key for node in nodes if node.get("Node Type") == "Sort" for key in node["Sort Key"]]
    assert not [key for key in sorts if "event_id" in key and "touch" not in key], "touches and conversions are merged"


@pytest.mark.parametrize(
    "statement",
    [
        "paths of pageview by path from '/' to '/pricing'",
        'paths across "Viewed pricing", ("Signed up" or any where path = \'/\') as home, "Purchase"',
        'attribution of sum(amount) of "Purchase" to utm_source, utm_medium from ("Viewed product" or pageview)',
        'correlate "Viewed pricing" -> "Purchase" with country, user.identity, "Signed up", ("Viewed product" or click) as x',
        'correlate "Viewed pricing" -> "Purchase" with country, "Signed up" first time',
    ],
)
def test_citus_pushes_down_in_one_piece(shop: psycopg.Connection[Any], statement: str) -> None:
    tasks = [node["Task Count"] for node in _plan(shop, statement) if "Task Count" in node]
    if shop.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone():
        assert tasks.count(4) == 1, "one distributed query over the four shards"
