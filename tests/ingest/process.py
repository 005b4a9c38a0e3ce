"""Sinks as processes of their own, started in milliseconds: what can be killed."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess

from heap_ingest.sink import Sink
from tests.ingest.conftest import QUICK
from tests.ingest.log import Log

__all__ = ["sink_process", "start_sink"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.ingest.process", "ua_parser"])


def _run(dsn: str, servers: str, topic: str, dead_letters: str, instance: str, batch: int) -> None:
    sink = Sink(
        dsn,
        servers,
        topic=topic,
        dead_letters=dead_letters,
        group=topic,
        instance=instance,
        batch=batch,
        linger=0.02,
        kafka=QUICK,
    )
    signal.signal(signal.SIGTERM, lambda *_: sink.stop())
    sink.run()


def start_sink(dsn: str, log: Log, instance: str = "sink", batch: int = 100) -> ForkServerProcess:
    """A sink in a process; a second one of the same instance takes the place of the first."""
    arguments = (dsn, log.broker.bootstrap_servers, log.topic, log.dead_letters, instance, batch)
    process = _context.Process(target=_run, args=arguments)
    process.start()
    return process


@contextmanager
def sink_process(dsn: str, log: Log, instance: str = "sink", batch: int = 100) -> Iterator[ForkServerProcess]:
    """A sink that is there while the block is, unless it is killed."""
    process = start_sink(dsn, log, instance, batch)
    try:
        yield process
    finally:
        process.kill()
        process.join(30)
        process.close()
