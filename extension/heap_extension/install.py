"""Install the extension's files into PostgreSQL: control file, SQL scripts, and the Python packages they import.

The packages are copied, with the libraries they need, into a directory of PostgreSQL's own that carries the version.
The server's user can read it wherever this program lives, no session can point it elsewhere, and a database whose
extension is still an older version keeps finding that version's code.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from heap_compiler.bound import EVERY_EVENT_CONDITION
from heap_extension.postgres import Postgres, python_of_postgres

__all__ = ["VERSION", "InstallError", "extension_scripts", "install", "installed"]

VERSION = metadata.version("heap-analytics")
_SQL = Path(__file__).parent / "sql"
_SERVER_LIBRARIES = ("cssselect", "lark", "numpy", "sqlglot", "sqlglotc")
_SKIPPED = {"..", "__pycache__", "tests"}
_PACKAGES = ("heap_grammar", "heap_compiler", "heap_extension")


_LOAD_KERNELS = """\
if "kernels" not in GD:
    import sys
    sys.path.insert(0, "@python_path@")
    GD["kernels"] = "@version@"\
"""
"""What every kernel's body begins with: once in a session, where the packages are."""


class InstallError(Exception):
    """The files cannot be installed; the message says what to do."""


def extension_scripts(version: str, python_path: Path, sql: Path = _SQL) -> dict[str, str]:
    """The extension's files by name: control file, install script, and an upgrade script from every earlier version.

    `sql/incremental/<version>-<what>.sql` run once, in the order of their versions; `sql/idempotent/*.sql` run at every
    install and upgrade. An upgrade script is what an earlier version has not run yet, and all that is idempotent.
    """
    incremental = sorted(sql.glob("incremental/*.sql"), key=lambda file: (_release(file.name), file.name))
    idempotent = sorted(sql.glob("idempotent/*.sql"))

    def script(files: list[Path]) -> str:
        guard = '\\echo Use "CREATE EXTENSION heap CASCADE" to load this file. \\quit\n'
        joined = guard + "\n".join(file.read_text(encoding="utf-8") for file in files)
        loading = joined.replace("@load_kernels@", _LOAD_KERNELS).replace("@every_event@", EVERY_EVENT_CONDITION)
        return loading.replace("@python_path@", str(python_path)).replace("@version@", version)

    control = (sql.parent / "heap.control").read_text(encoding="utf-8").replace("@version@", version)
    scripts = {"heap.control": control, f"heap--{version}.sql": script([*incremental, *idempotent])}
    for earlier in sorted({_version(file.name) for file in incremental}, key=_release):
        if _release(earlier) < _release(version):
            newer = [file for file in incremental if _release(file.name) > _release(earlier)]
            scripts[f"heap--{earlier}--{version}.sql"] = script([*newer, *idempotent])
    return scripts


def _version(name: str) -> str:
    return name.split("-", 1)[0]


def _release(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", _version(name)))


def installed(postgres: Postgres) -> bool:
    """True when the files of this version are there."""
    return (postgres.extensions / f"heap--{VERSION}.sql").exists() and postgres.python_packages(VERSION).is_dir()


def install(postgres: Postgres, version: str = VERSION, sql: Path = _SQL) -> list[Path]:
    """Writes the files; what a running server has loaded stays as it is until its sessions end.

    Raises:
        InstallError: PL/Python or pageinspect is missing, PostgreSQL's directories are not writable, or plpython3 would
            not find libraries built for its Python.
    """
    if not postgres.has_extension("plpython3u"):
        raise InstallError(f"PL/Python is missing: apt-get install postgresql-plpython3-{postgres.version}")
    if not postgres.has_extension("pageinspect"):
        raise InstallError("pageinspect is missing: it comes with the package of PostgreSQL's contrib modules")
    for directory in (postgres.extensions, postgres.lib):
        if not os.access(directory, os.W_OK):
            raise InstallError(f"{directory} is not writable: run `heap install` once as root")
    target = postgres.python_packages(version)
    staging = Path(tempfile.mkdtemp(prefix=f".heap-{version}-", dir=postgres.lib))
    try:
        _copy_packages(staging)
        _prepare(staging)
        if target.exists():
            target.rename(staging.with_name(f"{staging.name}-old"))
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(staging.with_name(f"{staging.name}-old"), ignore_errors=True)
    written = []
    for name, text in extension_scripts(version, target, sql).items():
        path = postgres.extensions / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        written.append(path)
    return [*written, target]


def _copy_packages(target: Path) -> None:
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in _PACKAGES:
        package = __import__(name)
        shutil.copytree(Path(package.__path__[0]), target / name, ignore=skip)
    for library in _distributions(_SERVER_LIBRARIES):
        for file in library.files or ():
            source = Path(str(library.locate_file(file)))
            if not _SKIPPED.isdisjoint(file.parts) or not source.is_file():
                continue
            destination = target / file
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, destination)


def _distributions(names: tuple[str, ...]) -> Iterator[metadata.Distribution]:
    """The distributions of these names and all they require."""
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        distribution = metadata.distribution(name)
        yield distribution
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)


def _prepare(target: Path) -> None:
    """Compile to bytecode, which the server's user could not write, and generate the parser once for all sessions."""
    target.chmod(0o755)
    python = python_of_postgres()
    code = "import heap_compiler.parse as p; p.save_parser(); import heap_extension.server"
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(target), "LC_ALL": "C.UTF-8"}
    steps = [[python, "-s", "-c", code], [python, "-s", "-m", "compileall", "-q", target]]
    for step in steps:
        done = subprocess.run(
            [str(part) for part in step], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InstallError(
                f"PostgreSQL's Python ({python}) cannot load the packages: {last}\n"
                "The virtual environment must be of the same Python version: python3 -m venv with that interpreter"
            )
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
