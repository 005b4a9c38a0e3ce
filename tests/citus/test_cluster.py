"""Several nodes: who has what, shards that move and keep their indexes, nodes that come, go, fall and lag behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from heap_extension.citus_cluster import CitusCluster
from heap_extension.cluster import Cluster, ClusterError
from heap_extension.command import app as command_line
from heap_extension.install import VERSION, InstallError
from heap_extension.nodes import create_extension, nodes
from heap_extension.postgres import Postgres, find_postgres
from heap_extension.shop import DEFINITIONS
from tests.citus.inserter import Inserter
from tests.extension.shop_app import NOW, ensure_shop, settle
from tests.servers import require_citus

_SHARDS = 8
_STATEMENTS = (
    'funnel "Viewed pricing" -> "Clicked sign up" -> "Purchase" within 14 days over last 60 days',
    'funnel "Viewed pricing" -> "Signed up" within 7 days over last 60 days group by country',
    'trend users of "Viewed product" as visitors, sum(amount) of "Purchase" as revenue by week over last 6 weeks',
    'retention from "Viewed pricing" to "Purchase" by week over last 6 weeks',
    "paths of pageview by path from '/' for 4 steps over last 60 days",
)


@pytest.fixture
def shop(big_cluster: CitusCluster) -> Iterator[psycopg.Connection[Any]]:
    """The shop over both workers."""
    ensure_shop(big_cluster.dsn, users=600, shard_count=_SHARDS)
    with psycopg.connect(big_cluster.dsn, autocommit=True) as connection:
        settle(connection)
        yield connection


def _answers(connection: psycopg.Connection[Any]) -> dict[str, list[str]]:
    return {
        statement: sorted(row for (row,) in connection.execute("SELECT q::text FROM heap.query(%s) AS q", (statement,)))
        for statement in _STATEMENTS
    }


def _shards(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """The shards of events_default and users on each worker."""
    return dict(
        connection.execute(
            "SELECT nodename || ':' || nodeport, count(*) FROM citus_shards"
            " WHERE table_name IN ('shop.events_default'::regclass, 'shop.users'::regclass) GROUP BY 1"
        ).fetchall()
    )


def _indexes(connection: psycopg.Connection[Any]) -> dict[str | None, set[tuple[str | None, str]]]:
    """What heap.index_health says, per node: events and states."""
    found: dict[str | None, set[tuple[str | None, str]]] = {}
    for node, event, state in connection.execute("SELECT node, event, state FROM heap.index_health('shop')"):
        found.setdefault(node, set()).add((event, state))
    return found


def _all_valid(connection: psycopg.Connection[Any]) -> bool:
    """Every definition has its index on every placement, and nothing else is there."""
    wanted = {(name, "valid") for name in DEFINITIONS}
    found = _indexes(connection)
    return set(found) == {None, *_shards(connection)} and all(states == wanted for states in found.values())


def _name(worker: Cluster) -> str:
    return f"127.0.0.1:{worker.port}"


def test_answers_are_those_of_plain_postgresql(shop: psycopg.Connection[Any], postgres_cluster: Cluster) -> None:
    create_extension(postgres_cluster.dsn)
    dsn = postgres_cluster.dsn.removesuffix("/heap") + "/plain_shop"
    with psycopg.connect(postgres_cluster.dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE plain_shop")
    create_extension(dsn)
    ensure_shop(dsn, users=600)
    with psycopg.connect(dsn, autocommit=True) as plain:
        settle(plain)
        expected = _answers(plain)
    assert all(expected.values())
    assert _answers(shop) == expected


def test_shards_are_on_both_workers_and_a_users_events_with_the_user(
    shop: psycopg.Connection[Any], big_cluster: CitusCluster
) -> None:
    assert _shards(shop) == {_name(worker): _SHARDS for worker in big_cluster.workers}
    groups = shop.execute(
        "SELECT DISTINCT colocation_id, shard_count FROM citus_tables WHERE table_name::text LIKE 'shop.%'"
    ).fetchall()
    assert [shards for _, shards in groups] == [_SHARDS]
    assert _all_valid(shop)


@pytest.mark.parametrize("count", [0, -1, 64_001])
def test_a_number_of_shards_that_cannot_be(shop: psycopg.Connection[Any], count: int) -> None:
    with pytest.raises(psycopg.Error, match="shards cannot be made"):
        shop.execute("SELECT heap.create_app('many', shard_count => %s)", (count,))


def test_shards_without_citus_are_refused(fresh_database: str) -> None:
    create_extension(fresh_database)
    with (
        psycopg.connect(fresh_database) as connection,
        pytest.raises(psycopg.errors.FeatureNotSupported, match="without Citus"),
    ):
        connection.execute("SELECT heap.create_app('one', shard_count => 4)")


def _inserting(cluster: CitusCluster) -> Inserter:
    """Of many users, so on every shard."""
    return Inserter(
        cluster.dsn,
        "INSERT INTO shop.events (user_id, time, event_id, type, path) VALUES (%s, %s, %s, 'inserted', '/pricing')",
        lambda number: (1_000_000 + number % 97, NOW + timedelta(seconds=number), 10**15 + number),
    )


def _remove_inserted(connection: psycopg.Connection[Any], expected: int) -> None:
    (kept,) = connection.execute("SELECT count(*) FROM shop.events WHERE type = 'inserted'").fetchone() or (None,)
    connection.execute("DELETE FROM shop.events WHERE type = 'inserted'")
    assert kept == expected


def test_a_third_worker_takes_its_share_with_every_index_and_gives_it_back(
    shop: psycopg.Connection[Any], big_cluster: CitusCluster
) -> None:
    shop.execute("SET heap.strategy = 'vector'")  # whose sessions on the workers keep plans of shards
    before = _answers(shop)
    big_cluster.up(3)
    third = big_cluster.workers[2]
    try:
        assert [node.version for node in nodes(shop)] == [VERSION] * 4
        with _inserting(big_cluster) as inserts:
            shop.execute("SELECT citus_rebalance_start()")
            shop.execute("SELECT citus_rebalance_wait()")
        assert _shards(shop)[_name(third)] >= _SHARDS // 2
        assert _all_valid(shop), _indexes(shop)
        assert inserts.sent > 10
        assert inserts.errors == []
        _remove_inserted(shop, inserts.sent)
        assert _answers(shop) == before

        with _inserting(big_cluster) as inserts:
            shop.execute("SELECT citus_drain_node('127.0.0.1', %s)", (third.port,))
        assert inserts.errors == []
        _remove_inserted(shop, inserts.sent)
        assert _name(third) not in _shards(shop)
        assert _all_valid(shop), _indexes(shop)
        assert _answers(shop) == before
    finally:
        _remove(shop, third)
    assert _answers(shop) == before


def _remove(connection: psycopg.Connection[Any], worker: Cluster) -> None:
    connection.execute("CALL citus_cleanup_orphaned_resources()")
    connection.execute("SELECT citus_remove_node('127.0.0.1', %s)", (worker.port,))
    worker.down()
    shutil.rmtree(worker.directory)


def test_a_killed_node_comes_back_as_it_was(shop: psycopg.Connection[Any], big_cluster: CitusCluster) -> None:
    before = _answers(shop)
    worker = big_cluster.workers[0]
    worker.kill()
    assert not worker.is_running()
    with pytest.raises(psycopg.Error):
        shop.execute("SELECT count(*) FROM shop.events")
    (dead,) = (node for node in nodes(shop) if not node.answers)
    assert dead.lack == f"{_name(worker)} does not answer"
    with pytest.raises(InstallError, match=f"{_name(worker)} does not answer"):
        create_extension(big_cluster.dsn)
    big_cluster.up()
    assert _answers(shop) == before
    assert _all_valid(shop)


@pytest.fixture
def older_files(big_cluster: CitusCluster) -> Iterator[str]:
    """A version before this one, which can be updated, among the files of all nodes."""
    version = "0.0.1"
    folder = big_cluster.coordinator.postgres.extensions
    files = {
        f"heap--{version}.sql": "SELECT 1;",
        f"heap--{version}--{VERSION}.sql": (folder / f"heap--{VERSION}.sql").read_text(),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)
    yield version
    for name in files:
        (folder / name).unlink()


def test_a_node_with_another_version_is_named_and_mended(
    shop: psycopg.Connection[Any], big_cluster: CitusCluster, older_files: str
) -> None:
    worker = big_cluster.workers[1]
    with psycopg.connect(worker.dsn, autocommit=True) as connection:
        connection.execute("SET citus.enable_ddl_propagation = off")
        connection.execute("DROP EXTENSION heap")
        connection.execute(f"CREATE EXTENSION heap VERSION '{older_files}'")
    told = CliRunner().invoke(command_line, ["doctor", "--dsn", big_cluster.dsn])
    assert told.exit_code == 1
    assert f"missing extension heap {older_files} in {_name(worker)}" in told.stdout
    assert f"ok      extension heap {VERSION} in {_name(big_cluster.workers[0])}" in told.stdout
    create_extension(big_cluster.dsn)
    assert {node.version for node in nodes(shop)} == {VERSION}
    assert CliRunner().invoke(command_line, ["doctor", "--dsn", big_cluster.dsn]).exit_code == 0


def test_an_update_reaches_every_node(big_cluster: CitusCluster, older_files: str) -> None:
    """In a database of its own, which nodes are added to when the extension is there."""
    members = [big_cluster.coordinator, *big_cluster.workers]
    for node in members:
        with psycopg.connect(node.dsn, autocommit=True) as connection:
            connection.execute("CREATE DATABASE updated")
    dsns = [node.dsn.removesuffix("/heap") + "/updated" for node in members]
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION citus")
    with psycopg.connect(dsns[0], autocommit=True) as connection:
        connection.execute("SELECT citus_set_coordinator_host('127.0.0.1', %s)", (members[0].port,))
        connection.execute("CREATE EXTENSION plpython3u")
        connection.execute(f"CREATE EXTENSION heap VERSION '{older_files}'")
        for worker in members[1:]:
            connection.execute("SELECT citus_add_node('127.0.0.1', %s)", (worker.port,))
        assert {node.version for node in nodes(connection)} == {older_files}
        create_extension(dsns[0])
        assert [node.version for node in nodes(connection)] == [VERSION] * 3
        connection.execute("SELECT heap.create_app('one', shard_count => 2)")


def test_nodes_without_files_or_python_are_named(
    shop: psycopg.Connection[Any], big_cluster: CitusCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = """SELECT '{"answers": true, "has_python": true, "has_pageinspect": true}'::json"""
    monkeypatch.setattr("heap_extension.nodes._ASKED", answer)
    with pytest.raises(InstallError, match="not the files of heap") as raised:
        create_extension(big_cluster.dsn)
    assert all(_name(node) in str(raised.value) for node in [big_cluster.coordinator, *big_cluster.workers])
    assert {node.lack for node in nodes(shop)} == set(str(raised.value).split("; "))
    monkeypatch.setattr("heap_extension.nodes._ASKED", "SELECT '{\"answers\": true}'::json")
    with pytest.raises(InstallError, match="has no PL/Python"):
        create_extension(big_cluster.dsn)


def test_workers_without_citus_are_refused_with_where_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "extension").mkdir()
    found = find_postgres()
    bare = Postgres(found.version, found.bin, tmp_path, found.lib)
    with pytest.raises(ClusterError, match="package repository"):
        CitusCluster(Cluster(bare, tmp_path / "cluster")).up(2)


def test_a_cluster_made_to_be_alone_gets_no_workers(postgres_cluster: Cluster) -> None:
    require_citus()
    with pytest.raises(ClusterError, match="made without workers"):
        CitusCluster(postgres_cluster).up(1)
