"""The README's way to many machines works as written, with nodes of this machine under the names of its machines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

from heap_extension import cluster
from heap_extension.citus_cluster import CitusCluster
from heap_extension.cluster import Cluster
from heap_extension.command import app as command_line
from heap_extension.postgres import find_postgres
from tests.servers import QUICK, require_citus, server_folder

_SECTION = (
    (Path(__file__).parents[2] / "README.md").read_text().split("\n## Grow to many machines\n")[1].split("\n## ")[0]
)
_SH = re.findall(r"```sh\n(.*?)```", _SECTION, re.S)
_SQL = re.findall(r"```sql\n(.*?)```", _SECTION, re.S)


@pytest.fixture
def folder(installed: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to be in, with a cluster in it in the end."""
    require_citus()
    monkeypatch.setattr("heap_extension.cluster._SETTINGS", cluster._SETTINGS + QUICK)
    monkeypatch.delenv("HEAP_DSN", raising=False)
    with server_folder() as folder:
        monkeypatch.chdir(folder)
        try:
            yield folder
        finally:
            CitusCluster(Cluster(find_postgres(), folder / ".heap")).down()


def _run(line: str) -> str:
    program, *arguments = shlex.split(line, comments=True)
    assert program == "heap"
    done = CliRunner().invoke(command_line, arguments)
    assert done.exit_code == 0, f"{line}: {done.output}"
    return done.stdout


def test_on_one_machine(folder: Path) -> None:
    lines = _SH[0].splitlines()
    assert [line.split()[1] for line in lines] == ["up", "demo", "up", "doctor", "down"]
    for line in lines:
        shown = _run(line.replace("heap demo", "heap demo --users 100"))
        if "doctor" in line:
            assert shown.count("extension heap") == 4
            assert "note    max_locks" not in shown
    assert not any(node.is_running() for node in CitusCluster(Cluster(find_postgres(), folder / ".heap")).workers)


def test_on_many_machines(folder: Path) -> None:
    cluster = CitusCluster(Cluster(find_postgres(), folder / ".heap"))
    cluster.up(3)
    machines = {"coordinator.internal": cluster.coordinator}
    machines |= {f"worker-{number}.internal": worker for number, worker in enumerate(cluster.workers, 1)}

    def here(text: str) -> str:
        for name, node in machines.items():
            text = text.replace(f"'{name}', 5432", f"'127.0.0.1', {node.port}")
            text = text.replace(f"{name}:5432", f"127.0.0.1:{node.port}")
        text = text.replace("shard_count => 32", "shard_count => 3")  # each takes seconds to move
        return text.replace('"$DSN"', dsn)

    for node in machines.values():
        with psycopg.connect(node.dsn, autocommit=True) as connection:
            connection.execute("CREATE DATABASE own")
        with psycopg.connect(node.dsn.removesuffix("/heap") + "/own", autocommit=True) as connection:
            connection.execute("CREATE EXTENSION citus")
    dsn = cluster.dsn.removesuffix("/heap") + "/own"
    nodes, app, grow, shrink = _SQL
    (install,) = _SH[1:]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(here(nodes))
        assert "heap 0." in _run(here(install.strip()))
        connection.execute(here(app))
        connection.execute("SELECT heap.define_event('Paid', 'purchase')")
        for statement in here(grow).strip().split("\n"):
            rows = connection.execute(statement).fetchall()
        assert [state for state, _ in rows] == ["valid"]
        for statement in here(shrink).strip().split("\n"):
            connection.execute(statement)
        _run(f"heap maintain --once --dsn {dsn}")
        assert connection.execute("SELECT DISTINCT state FROM heap.index_health('shop')").fetchall() == [("valid",)]
