"""Whether a message of the log is the next of its partition: Kafka's client is not taken at its word."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Gaps"]


class Gaps:
    """Where messages were missing. They are asked for once more: what is missing again is not in the log (offsets of
    markers, and of what was compacted), what is not was skipped by Kafka's client."""

    def __init__(self) -> None:
        self._found: set[tuple[int, int, int]] = set()
        """In which partition, from which offset on, and which came instead."""

    def follows(self, partition: int, expected: int, offset: int) -> bool:
        """Whether the offset comes next. Where it does not, the reader goes back to what it expected and asks again;
        to the same offset at the same place the answer is yes then."""
        gap = partition, expected, offset
        if offset == expected or gap in self._found:
            return True
        self._found.add(gap)
        return False

    def forget_before(self, positions: Mapping[int, int]) -> None:
        """Forgets what lies before the position of its partition, which nobody will read again."""
        self._found = {gap for gap in self._found if positions.get(gap[0], 0) <= gap[1]}
