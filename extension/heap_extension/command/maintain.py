"""`heap maintain`: the process that keeps the indexes."""

from __future__ import annotations

import signal
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from heap_extension.command.connect import Dsn, fail, failing_clearly, find_dsn
from heap_extension.maintain import Maintainer

__all__ = ["maintain"]


def maintain(
    dsn: Dsn = None,
    once: Annotated[bool, typer.Option("--once", help="End when nothing is left to do.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between passes when nothing changes.")] = 10.0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print every piece of work.")] = False,
) -> None:
    """Build, repair and drop the indexes of defined events, on every node, without holding back writes.

    Several may run: one works, the others wait until it ends.
    """
    with failing_clearly():
        dsn = find_dsn(dsn)
        console = Console(stderr=True, highlight=False)

        def report(line: str) -> None:
            if verbose or not once or line.startswith(("failed", "waiting")):
                console.print(line, markup=False, soft_wrap=True)

        if not once:
            maintainer = Maintainer(dsn, report)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: maintainer.stop())
            maintainer.run(interval)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("indexes", total=None)
            maintainer = Maintainer(dsn, report, lambda done, total: bar.update(task, completed=done, total=total))
            try:
                converged = maintainer.run_once()
            except TimeoutError as error:
                fail(f"error: {error}")
        if not converged:
            fail("error: not everything could be done; heap.index_builds shows what is left")
