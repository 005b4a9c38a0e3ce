"""Somebody who inserts all the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

__all__ = ["Inserter"]


class Inserter:
    """Runs an INSERT of one row over and over while its block does; connects again when the server is gone.

    Args:
        dsn: of the coordinator.
        statement: the INSERT.
        row: its arguments by the number of the row, from 1 on.
    """

    def __init__(self, dsn: str, statement: str, row: Callable[[int], tuple[Any, ...]]) -> None:
        self.dsn, self.statement, self.row = dsn, statement.encode(), row
        self.sent = self.acknowledged = 0
        self.longest = 0.0
        """Seconds of the longest pause."""
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        while not self._stop.wait(0.005):
            began = time.monotonic()
            try:
                if connection is None or connection.closed:
                    connection = psycopg.connect(self.dsn, autocommit=True)
                self.sent += 1
                connection.execute(self.statement, self.row(self.sent))
                self.acknowledged += 1
            except psycopg.Error as error:
                self.errors.append(str(error))
                time.sleep(0.05)
            self.longest = max(self.longest, time.monotonic() - began)
        if connection is not None:
            connection.close()

    def __enter__(self) -> Inserter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
