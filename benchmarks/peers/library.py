"""What the systems that are libraries have in common: an engine in a process of its own, data that are loaded once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from benchmarks.data import Dataset
from benchmarks.peers.engine_process import EngineProcess, Open
from benchmarks.peers.peer import once

__all__ = ["Library"]


class Library(ABC):
    """An engine that `opened` opens on a file or folder called `database` under `folder`."""

    def __init__(self, folder: Path, opened: Open, database: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._engine = EngineProcess(opened, str(folder / database))

    def start(self) -> None:
        self._engine.start()

    def stop(self) -> None:
        self._engine.stop()

    def load(self, dataset: Dataset) -> float:
        return once(self._folder / f"loaded-{dataset.events}-{dataset.digest}", lambda: self._load(dataset))

    @abstractmethod
    def _load(self, dataset: Dataset) -> None:
        """Takes the data, whatever is there of an earlier attempt."""
