"""How many events a write key may send: a bucket that fills at its rate and holds the events of some seconds."""

from __future__ import annotations

import time

__all__ = ["Bucket"]


class Bucket:
    """Takes as many events as have come in time.

    Args:
        rate: events a second.
        seconds: how much of it may be saved up.
    """

    __slots__ = ("_at", "_room", "rate", "size")

    def __init__(self, rate: float, seconds: float = 10.0) -> None:
        self.rate = rate
        self.size = rate * seconds
        self._room = self.size
        self._at = time.monotonic()

    def take(self, count: int) -> float:
        """0 when `count` events may come now, else the seconds until they may, and nothing is taken.

        A batch larger than the bucket may come when that is full, and is paid off afterwards.
        """
        now = time.monotonic()
        self._room = min(self.size, self._room + (now - self._at) * self.rate)
        self._at = now
        missing = min(count, self.size) - self._room
        if missing > 0:
            return missing / self.rate
        self._room -= count
        return 0.0
