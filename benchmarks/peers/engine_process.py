"""An engine that is a library, in a process of its own: started cold, stopped at will, its memory apart.

Times are taken beside the engine, so that they hold no word of what passes between the processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.peers.peer import TookTooLongError

__all__ = ["EngineError", "EngineProcess"]

Run = Callable[[str], list[tuple[Any, ...]]]
Open = Callable[[str], Run]
"""Opens the engine on a path; what it returns runs SQL and returns all rows."""


class EngineError(Exception):
    """The engine refused a statement."""


class EngineProcess:
    """The engine that `opened` (a function of a module) opens on `path`, from `start` to `stop`."""

    def __init__(self, opened: Open, path: str) -> None:
        self._open = opened
        self._path = path
        self._process: Any = None
        self._pipe: Connection[Any, Any] | None = None

    def start(self) -> None:
        """Returns when the engine is open."""
        if self._process is not None:
            return
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._open, self._path, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._answer(120)

    def stop(self) -> None:
        """Ends the process, in the middle of a statement if need be."""
        if self._process is None:
            return
        assert self._pipe is not None
        try:
            self._pipe.send(None)
            self._process.join(10)
        except (BrokenPipeError, OSError):
            pass
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()
        self._process = self._pipe = None

    def run(self, sql: str, seconds: float = 1800) -> tuple[float, list[tuple[Any, ...]]]:
        """Seconds taken, and rows.

        Raises:
            EngineError: the engine refused it.
            TookTooLongError: it was stopped after `seconds`.
        """
        self.start()
        assert self._pipe is not None
        self._pipe.send(sql)
        return self._answer(seconds)

    def _answer(self, seconds: float) -> tuple[float, list[tuple[Any, ...]]]:
        assert self._pipe is not None
        if not self._pipe.poll(seconds):
            self._process.kill()
            self.stop()
            raise TookTooLongError(seconds)
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise EngineError(answer)
        took, rows = answer
        return took, rows


def _serve(opened: Open, path: str, pipe: Connection[Any, Any]) -> None:
    run = opened(path)
    pipe.send((0.0, []))
    while (sql := pipe.recv()) is not None:
        began = time.perf_counter()
        try:
            rows = run(sql)
        except Exception as error:
            pipe.send(str(error))
        else:
            pipe.send((time.perf_counter() - began, rows))
