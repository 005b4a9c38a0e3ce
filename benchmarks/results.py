"""What was measured: seconds by experiment, subject and system, kept as JSON so that a report can be written again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

__all__ = ["Results"]


@dataclass
class Results:
    """Everything a report needs.

    Attributes:
        events: how many events most of it is about.
        machine: lines about machine, versions and settings.
        seconds: experiment, subject, system: each time taken.
        ways: question, system: the variant that was fastest, and counts.
        stopped: question, system: how long it ran when it was stopped.
        numbers: whatever is no time, by name: sizes, counts of rows.
    """

    events: int
    machine: list[str] = field(default_factory=list)
    seconds: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    ways: dict[str, dict[str, str]] = field(default_factory=dict)
    stopped: dict[str, dict[str, float]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)

    def add(self, experiment: str, subject: str, system: str, seconds: Sequence[float]) -> None:
        """Times of one system; those of an earlier call are replaced."""
        self.seconds.setdefault(experiment, {}).setdefault(subject, {})[system] = list(seconds)

    def median(self, experiment: str, subject: str, system: str) -> float | None:
        """Seconds; None where it was not measured."""
        times = self.seconds.get(experiment, {}).get(subject, {}).get(system)
        return median(times) if times else None

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Results:
        return cls(**json.loads(path.read_text(encoding="utf-8")))
