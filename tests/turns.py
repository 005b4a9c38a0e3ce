"""Turns that the processes of one test run take on this machine: most tests beside each other, some alone."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["turn"]


@contextmanager
def turn(folder: Path, *, alone: bool = False) -> Iterator[None]:
    """Waits until nobody else has the folder's turn alone, or, `alone`, until nobody else has it at all. Whoever waits
    keeps the gate, so that those who come later do not overtake."""
    with (folder / "gate").open("w") as gate, (folder / "turn").open("w") as own:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(own, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield
