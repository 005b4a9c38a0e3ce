"""Clusters for the tests: a plain PostgreSQL one, and one with Citus where Citus is installed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from heap_extension.cluster import Cluster
from heap_extension.install import install
from heap_extension.nodes import create_extension
from heap_extension.postgres import find_postgres
from heap_ingest.broker import Broker, BrokerError, find_kafka
from heap_ingest.topics import create_topics
from tests.semantics_app import ensure_app, settle
from tests.servers import QUICK, Lender, require_citus, server_folder
from tests.turns import turn

settings.register_profile(
    "heap", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True
)
settings.load_profile("heap")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="write what the compiler makes into the cases")
    parser.addoption("--sink-kills", type=int, default=15, help="how often the sink is killed, on each database")


def pytest_report_header() -> list[str]:
    postgres = find_postgres()
    citus = "found" if postgres.has_extension("citus") else "not found: its tests are skipped"
    try:
        kafka = f"found in {find_kafka()}"
    except BrokerError as error:
        kafka = f"not found, its tests are skipped: {error}"
    return [f"PostgreSQL {postgres.version} in {postgres.bin}", f"Citus: {citus}", f"Kafka: {kafka}"]


_RUN = pytest.StashKey[Path]()
"""The folder that all processes of this run share."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "alone: changes what all tests share on this machine, so no other runs beside it"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that start and kill servers come first: their files take longest, and would else be left for the end."""
    items.sort(key=lambda item: {"big_cluster", "broker"}.isdisjoint(getattr(item, "fixturenames", ())))


def pytest_sessionstart(session: pytest.Session) -> None:
    base: Path = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    session.config.stash[_RUN] = base.parent if hasattr(session.config, "workerinput") else base


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with turn(item.config.stash[_RUN], alone=item.get_closest_marker("alone") is not None):
        return (yield)


Measured = dict[str, float]
"""Seconds, by what took them."""
_measured: Measured = {}


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Iterator[Measured]:
    """What a test measures; printed after all of them."""
    seconds: Measured = {}
    yield seconds
    request.node.user_properties.append(("measured", seconds))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        for name, value in report.user_properties:
            if name == "measured" and isinstance(value, dict):
                _measured.update(value)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _measured:
        terminalreporter.section("measured")
        for what, seconds in _measured.items():
            terminalreporter.write_line(f"{seconds:6.2f} s  {what}")


@pytest.fixture(scope="session")
def installed(pytestconfig: pytest.Config) -> None:
    """The extension's files of this source tree, in this machine's PostgreSQL; one process of a run writes them."""
    (pytestconfig.stash[_RUN] / "install").mkdir(exist_ok=True)
    done = pytestconfig.stash[_RUN] / "install" / "done"
    with turn(done.parent, alone=True):
        if not done.exists():
            install(find_postgres())
            done.touch()


def _cluster(preload: str | None = None, settings: str = "") -> Iterator[Cluster]:
    with server_folder() as folder:
        cluster = Cluster(find_postgres(), folder / "cluster")
        cluster.up(preload=preload, settings=QUICK + settings)
        try:
            # The nodes of a Citus cluster, here one and the same, connect to each other without a password.
            (cluster.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 trust\nhost all all ::1/128 trust\n")
            with psycopg.connect(cluster.dsn, autocommit=True) as connection:
                connection.execute("SELECT pg_reload_conf()")
            yield cluster
        finally:
            cluster.down()


# Each new connection to the node's shards would have to load what kernels need.
_KEPT_CONNECTIONS = "citus.max_cached_conns_per_worker = 4\n"


@pytest.fixture(scope="session")
def postgres_cluster(installed: None) -> Iterator[Cluster]:
    yield from _cluster()


@pytest.fixture(scope="session")
def citus_cluster(installed: None) -> Iterator[Cluster]:
    require_citus()
    yield from _cluster("citus", _KEPT_CONNECTIONS)


def _distribute(dsn: str) -> None:
    """Citus with its shards on the one node, unless it is there: processes that take files in turn come back."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone():
            return
        connection.execute("CREATE EXTENSION citus")
        connection.execute("ALTER DATABASE heap SET citus.shard_count = 4")
        connection.execute("SELECT citus_set_coordinator_host('127.0.0.1', %s)", (connection.info.port,))
        connection.execute("SELECT citus_set_node_property('127.0.0.1', %s, 'shouldhaveshards', true)",
                           (connection.info.port,))  # fmt: skip


@pytest.fixture(scope="session", params=["postgres", "citus"])
def dsn(request: pytest.FixtureRequest) -> str:
    """A database with the extension: once on plain PostgreSQL, once on Citus."""
    cluster: Cluster = request.getfixturevalue(f"{request.param}_cluster")
    if request.param == "citus":
        _distribute(cluster.dsn)
    create_extension(cluster.dsn)
    return cluster.dsn


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A Kafka with the topics. Tests make their own topics where they need an empty log, and leave the broker running."""
    try:
        kafka = find_kafka()
    except BrokerError as error:
        pytest.skip(str(error))
    with server_folder() as folder:
        broker = Broker(kafka, folder / "kafka")
        try:
            broker.up()
            create_topics(broker.bootstrap_servers)
            yield broker
        finally:
            broker.kill()


@pytest.fixture(scope="session")
def lender() -> Iterator[Lender]:
    """Who lends connections to the tests of this process."""
    lender = Lender()
    yield lender
    lender.close()


@pytest.fixture
def connection(dsn: str, lender: Lender) -> Iterator[psycopg.Connection[Any]]:
    """A connection whose transaction is rolled back."""
    with lender.connection(dsn) as connection:
        yield connection


@pytest.fixture
def asked(dsn: str, connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A connection to the app of `semantics_app`. Tests insert events and roll back."""
    ensure_app(dsn)
    settle(connection)
    connection.commit()
    return connection


@pytest.fixture
def fresh_database(postgres_cluster: Cluster) -> str:
    """A database of its own on plain PostgreSQL, with nothing in it."""
    with psycopg.connect(postgres_cluster.dsn, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS fresh WITH (FORCE)")
        connection.execute("CREATE DATABASE fresh")
    return postgres_cluster.dsn.removesuffix("/heap") + "/fresh"
