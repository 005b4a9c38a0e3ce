"""What every test that starts servers of its own needs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from heap_extension.postgres import find_postgres

__all__ = ["require_citus", "server_folder"]


def require_citus() -> None:
    """Skips the test where Citus is not installed."""
    if not find_postgres().has_extension("citus"):
        pytest.skip("Citus is not installed in this machine's PostgreSQL")


@contextmanager
def server_folder() -> Iterator[Path]:
    """A folder for clusters, which the server's user can enter; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="heap-tests-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
