"""What the capture server counts, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess, values

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counters of one process, or, with PROMETHEUS_MULTIPROC_DIR set, of all that share that folder."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._registry = own
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            process = os.getpid()  # asked for once: a system call at every count costs a seventh of a small request
            values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]

        def by(labels: list[str], name: str, documentation: str) -> Callable[..., Counter]:
            """The counter of some labels, which are found once: that takes longer than to count."""
            return lru_cache(maxsize=10_000)(Counter(name, documentation, labels, registry=own).labels)

        self.requests = by(["route", "status"], "heap_capture_requests", "Requests answered")
        self.accepted = by(["app", "kind"], "heap_capture_accepted", "Events and other items acknowledged by Kafka")
        self.messages = by(
            ["app"], "heap_capture_messages", "Messages acknowledged by Kafka; one may hold several events"
        )
        self.rejected = by(["app"], "heap_capture_rejected", "Events and other items of batches that were not taken")
        self.redacted = by(["app"], "heap_capture_redacted", "Fields dropped: passwords, cards, what was typed")
        self.bytes = Counter("heap_capture_bytes", "Bytes of request bodies, unpacked", registry=own)
        self.acknowledged = Histogram(
            "heap_capture_acknowledge_seconds", "From a whole request to Kafka's acknowledgement", buckets=_SECONDS,
            registry=own,
        )  # fmt: skip
        self.in_flight = Gauge(
            "heap_capture_in_flight_bytes", "Bytes of requests that wait for their bodies or for Kafka", registry=own,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.brokers = Gauge(
            "heap_capture_brokers_up", "Connections to brokers", registry=own, multiprocess_mode="livemin"
        )
        self.keys_age = Gauge(
            "heap_capture_keys_age_seconds", "Since write keys were read", registry=own, multiprocess_mode="livemax"
        )

    def page(self, refresh: Callable[[], None]) -> bytes:
        """The text that Prometheus reads; `refresh` sets the gauges first."""
        refresh()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)
