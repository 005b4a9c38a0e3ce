"""What the sink counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["SinkMetrics"]


class SinkMetrics:
    """The metrics of one sink, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.messages = Counter(
            "heap_sink_messages", "Messages stored or rejected; one may hold several events", registry=self.registry
        )
        self.events = Counter(
            "heap_sink_events", "Events given to the tables, known ones among them", ["app"], registry=self.registry
        )
        self.rejected = Counter(
            "heap_sink_dead_letters", "Events and whole messages sent to the dead letters", registry=self.registry
        )
        self.failures = Counter(
            "heap_sink_failures",
            "Batches that failed as a whole and are tried again",
            ["cause"],
            registry=self.registry,
        )
        self.seconds = Histogram("heap_sink_batch_seconds", "Storing a batch", registry=self.registry)
        self.delay = Histogram(
            "heap_sink_delay_seconds",
            "From a batch's oldest message taken by the capture server to its commit",
            buckets=(0.1, 0.25, 0.5, 1, 2, 5, 15, 60, 300, 3600),
            registry=self.registry,
        )
        self.lag = Gauge("heap_sink_lag", "Messages not stored yet", ["partition"], registry=self.registry)
        self.connected = Gauge("heap_sink_database_up", "1 when the database answers", registry=self.registry)
