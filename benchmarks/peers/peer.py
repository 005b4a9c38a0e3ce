"""What a system under test must do: take the data, answer a question, start cold, tell its size."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from benchmarks.data import Dataset
from benchmarks.work import Question, Row

__all__ = ["Asked", "Peer", "TookTooLongError", "once"]


class Asked(NamedTuple):
    """One answer: how long it took as its client saw it, and its rows."""

    seconds: float
    rows: set[Row]


def once(mark: Path, load: Callable[[], None]) -> float:
    """Seconds that `load` took, now or in the earlier run that left `mark`."""
    if mark.exists():
        return float(mark.read_text())
    began = time.perf_counter()
    load()
    took = time.perf_counter() - began
    mark.write_text(str(took))
    return took


class TookTooLongError(Exception):
    """The system was stopped: it took longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"longer than {seconds:.0f} s")
        self.seconds = seconds


class Peer(Protocol):
    """A system with its data in a folder of its own, kept from run to run.

    `variants` are ways to ask the same question; each is tried and the fastest counts.
    """

    name: str

    def start(self) -> None:
        """Runs the system."""

    def stop(self) -> None:
        """Ends it; the data stay."""

    def load(self, dataset: Dataset) -> float:
        """Takes the data unless it has them. Seconds it took when they were loaded, also in an earlier run."""

    def variants(self, question: Question) -> tuple[str, ...]:
        """The ways to ask it, by name."""

    def ask(self, dataset: Dataset, question: Question, variant: str) -> Asked:
        """Raises TookTooLongError: it was stopped."""

    def bytes_per_event(self, dataset: Dataset) -> float:
        """What it keeps on disk for the events and to answer about them."""

    def settings(self) -> str:
        """Version and settings, in a line."""
