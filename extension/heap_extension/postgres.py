"""The PostgreSQL installation of this machine: where its programs and directories are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Postgres", "PostgresMissingError", "find_postgres", "python_of_postgres"]

MIN_VERSION = 15
_NEWEST = 18


class PostgresMissingError(Exception):
    """No PostgreSQL server programs that heap can use."""


@dataclass(frozen=True, slots=True)
class Postgres:
    """Directories of one PostgreSQL installation."""

    version: int
    bin: Path
    share: Path
    lib: Path

    @property
    def extensions(self) -> Path:
        """Where control files and extension scripts are."""
        return self.share / "extension"

    def python_packages(self, version: str) -> Path:
        """Where the Python side of that version of the extension is installed."""
        return self.lib / f"heap-{version}"

    def has_extension(self, name: str) -> bool:
        """True when `CREATE EXTENSION name` would find its files."""
        return (self.extensions / f"{name}.control").exists()


@cache
def find_postgres() -> Postgres:
    """The installation of the pg_config in PG_CONFIG, else the newest of Debian's, else the one on PATH.

    Raises:
        PostgresMissingError: there is none of version 15 or later.
    """
    candidates = [Path(os.environ["PG_CONFIG"])] if "PG_CONFIG" in os.environ else []
    debian = Path("/usr/lib/postgresql")
    candidates += [debian / str(version) / "bin" / "pg_config" for version in range(_NEWEST, MIN_VERSION - 1, -1)]
    on_path = shutil.which("pg_config")
    candidates += [Path(on_path)] if on_path else []
    for candidate in candidates:
        postgres = _installation(candidate)
        if postgres is not None:
            return postgres
    raise PostgresMissingError(f"no PostgreSQL server of version {MIN_VERSION} or later found")


def _installation(pg_config: Path) -> Postgres | None:
    if pg_config.exists():
        printed = subprocess.run([pg_config], capture_output=True, text=True, check=True).stdout
        settings = dict(line.split(" = ", 1) for line in printed.splitlines() if " = " in line)
        version, bin_, share, lib = (settings[name] for name in ("VERSION", "BINDIR", "SHAREDIR", "PKGLIBDIR"))
    else:
        # Debian ships pg_config apart from the server: its directories are fixed.
        bin_ = str(pg_config.parent)
        if not (pg_config.parent / "postgres").exists():
            return None
        version = pg_config.parent.parent.name
        share, lib = f"/usr/share/postgresql/{version}", f"/usr/lib/postgresql/{version}/lib"
    number = re.search(r"\d+", version)
    found = Postgres(int(number[0]) if number else 0, Path(bin_), Path(share), Path(lib))
    return found if found.version >= MIN_VERSION and (found.bin / "postgres").exists() else None


def python_of_postgres() -> Path:
    """The interpreter whose library plpython3 loads: Debian's own, else the python3 on PATH."""
    debian = Path("/usr/bin/python3")
    return debian if debian.exists() else Path(shutil.which("python3") or "python3")
