"""RESULTS.md and its plots. `python -m benchmarks.report results.json folder` writes them again from what was kept."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import quantiles

from benchmarks.goals import heap_median, verdicts
from benchmarks.results import Results
from benchmarks.work import EVENTS

__all__ = ["write_report"]

_HEAP = ("heap", "heap on Citus")
_SYSTEMS = (*_HEAP, "ClickHouse", "ClickHouse, JSON", "DuckDB", "PostgreSQL, GIN")
_TIERS = ("0.01 %", "0.1 %", "1 %", "10 %")
_SHARES = (0.01, 0.1, 1.0, 10.0)


def write_report(results: Results, folder: Path) -> Path:
    """RESULTS.md and three plots in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = _plot(results, folder)
    path = folder / "RESULTS.md"
    path.write_text(
        "\n".join([*_lines(results), *(f"\n![{name}]({name}.svg)" for name in plots)]) + "\n", encoding="utf-8"
    )
    return path


def _lines(results: Results) -> Iterator[str]:
    yield f"# Results on {results.events:,} events"
    yield ""
    yield "Written by `make bench`. Times are medians in milliseconds as the client sees them, warm unless said; after"
    yield "±, half the distance between the quartiles in per cent. Systems are asked in turns, after their answers were"
    yield "found equal. Each peer was asked in every way it knows, and its fastest counts."
    yield ""
    yield from (f"- {line}" for line in results.machine)
    yield from _goals(results)
    yield from _warm(results)
    yield from _cold(results)
    yield from _sizes(results)
    yield from _strategies(results)
    yield from _floor(results)
    yield from _inserts(results)
    yield from _rest(results)
    yield from _ways(results)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    names = list(header)
    yield "| " + " | ".join(names) + " |"
    yield "|" + "|".join("---" if position == 0 else "---:" for position in range(len(names))) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _goals(results: Results) -> Iterator[str]:
    yield from ("", "## Goals", "")
    rows = []
    for verdict in verdicts(results):
        goal = verdict.goal
        measured = "" if verdict.measured is None else f"{_short(verdict.measured)}{goal.unit}"
        bound = f"{'>=' if goal.at_least else '<='} {goal.bound:,g}{goal.unit}"
        rows.append((f"{goal.work}: {goal.text}", bound, measured, verdict.words))
    yield from _table(("work", "goal", "measured", "met"), rows)
    missed = [verdict.goal for verdict in verdicts(results) if verdict.met is False and verdict.goal.why]
    if missed:
        yield from ("", "Why goals are missed:", "")
        yield from (f"- {goal.work}, {goal.text}: {goal.why}" for goal in missed)


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _time(results: Results, experiment: str, subject: str, system: str) -> str:
    times = results.seconds.get(experiment, {}).get(subject, {}).get(system)
    middle = results.median(experiment, subject, system)
    if times is None or middle is None:
        stopped = results.stopped.get(subject, {}).get(system)
        return f"> {1000 * stopped:,.0f}" if stopped and experiment == "warm" else ""
    milliseconds = f"{1000 * middle:,.1f}" if middle < 1 else f"{1000 * middle:,.0f}"
    if len(times) < 3:
        return milliseconds
    low, _, high = quantiles(times, n=4)
    return f"{milliseconds} ±{50 * (high - low) / middle:.0f}"


def _warm(results: Results) -> Iterator[str]:
    yield from ("", "## Questions", "")
    asked = results.seconds.get("warm", {})
    systems = [name for name in _SYSTEMS if any(name in of for of in asked.values())]
    rows = []
    for title in asked:
        best = min(system for system in (results.median("warm", title, name) for name in systems) if system is not None)
        cells = []
        for name in systems:
            text = _time(results, "warm", title, name)
            cells.append(f"**{text}**" if text and results.median("warm", title, name) == best else text)
        rows.append((title, *cells))
    yield from _table(("question", *systems), rows)
    yield from ("", "Bold is fastest.")
    yield from _losses(results, systems)


def _losses(results: Results, systems: Iterable[str]) -> Iterator[str]:
    """Where a peer wins, by how much."""
    lost = []
    for title in results.seconds.get("warm", {}):
        ours = heap_median(results, "warm", title)
        peers = [(results.median("warm", title, name), name) for name in systems if name not in _HEAP]
        fastest = min(((seconds, name) for seconds, name in peers if seconds is not None), default=None)
        if ours is not None and fastest is not None and fastest[0] < ours:
            lost.append(f"- {title}: {fastest[1]} is {ours / fastest[0]:.1f} times as fast")
    if lost:
        yield from ("", "Where a peer wins:", "", *lost)


def _cold(results: Results) -> Iterator[str]:
    cold = results.seconds.get("cold", {})
    if not cold:
        return
    dropped = "the machine's file cache dropped" if results.numbers.get("caches dropped") else "the file cache kept"
    yield from (
        "",
        "## Cold",
        "",
        f"The first answer after a restart, {dropped}; heap's session loads its compiler in it.",
        "",
    )
    systems = [name for name in _SYSTEMS if any(name in of for of in cold.values())]
    yield from _table(
        ("question", *systems), ((title, *(_time(results, "cold", title, name) for name in systems)) for title in cold)
    )


def _sizes(results: Results) -> Iterator[str]:
    experiments = [name for name in results.seconds if name.startswith("size ")]
    if not experiments:
        return
    yield from (
        "",
        "## More and more events",
        "",
        "The fixed steps match the same number of events whatever the number of all.",
        "",
    )
    rows = []
    systems = [name for name in _SYSTEMS if any(name in of for e in experiments for of in results.seconds[e].values())]
    for experiment in experiments:
        for size in sorted(results.seconds[experiment], key=int):
            cells = (_time(results, experiment, size, name) for name in systems)
            rows.append((f"{experiment.removeprefix('size ')}, {int(size):,} events", *cells))
    yield from _table(("question", *systems), rows)


def _strategies(results: Results) -> Iterator[str]:
    grid = results.seconds.get("strategies", {})
    if not grid:
        return
    yield from ("", "## Strategies", "", "heap on PostgreSQL, with the setting heap.strategy.", "")
    names = list(next(iter(grid.values())))
    yield from _table(
        ("funnel", *names), ((title, *(_time(results, "strategies", title, n) for n in names)) for title in grid)
    )


def _floor(results: Results) -> Iterator[str]:
    floor = results.seconds.get("floor", {})
    if not floor:
        return
    yield from ("", "## Over reading the indexes", "")
    rows = []
    for title in floor:
        ours, count = (results.median("floor", title, name) for name in ("heap", "count(*)"))
        ratio = f"{ours / count:.1f}" if ours and count else ""
        rows.append((title, _time(results, "floor", title, "heap"), _time(results, "floor", title, "count(*)"), ratio))
    yield from _table(("funnel", "heap", "`count(*)` of each index", "ratio"), rows)


def _inserts(results: Results) -> Iterator[str]:
    for experiment, heading in (("inserts", "## Inserts"), ("inserts by JSON predicates", "")):
        found = results.seconds.get(experiment, {})
        if not found:
            continue
        if heading:
            yield from (
                "",
                heading,
                "",
                "One writer, COPY in batches: events a second, and what each definition adds to a row.",
                "",
            )
        else:
            yield from (
                "",
                "The same with partial indexes over properties as jsonb, as one would write them by hand:",
                "",
            )
        sizes = list(next(iter(found.values())))
        header = [part for size in sizes for part in (f"events/s, {size}", "ns per definition")]
        rows = []
        for subject in found:
            cells = []
            for size in sizes:
                per_row = results.median(experiment, subject, size)
                none = results.median(experiment, "0", size)
                count = int(subject.split(",")[0])
                cells.append("" if per_row is None else f"{1 / per_row:,.0f}")
                cells.append(
                    "" if per_row is None or none is None or not count else f"{(per_row - none) / count * 1e9:.1f}"
                )
            rows.append((subject, *cells))
        yield from _table(("definitions", *header), rows)


def _rest(results: Results) -> Iterator[str]:
    yield from ("", "## Definitions, calls, sizes", "")
    rows = []
    for experiment, name in (
        ("new definition", "a new definition on {} events"),
        ("define on an empty app", "one of {} definitions"),
    ):
        for subject, systems in results.seconds.get(experiment, {}).items():
            for system in systems:
                what = name.format(f"{int(subject):,}")
                rows.append(
                    (
                        f"{what}: {'defined' if system == 'heap' else system}",
                        _time(results, experiment, subject, system) + " ms",
                    )
                )
    for subject in results.seconds.get("calls", {}):
        rows.append((f"rarest funnel: {subject}", _time(results, "calls", subject, "heap") + " ms"))
    for subject in results.seconds.get("first reads", {}):
        rows.append((f"{subject}: first time in a session", _time(results, "first reads", subject, "heap") + " ms"))
    rows += [(name, f"{number:,.1f}") for name, number in results.numbers.items() if name != "caches dropped"]
    yield from _table(("what", "measured"), rows)


def _ways(results: Results) -> Iterator[str]:
    yield from ("", "## How peers were asked", "", "The fastest variant of each question.", "")
    systems = sorted({name for of in results.ways.values() for name, way in of.items() if way})
    yield from _table(
        ("question", *systems), ((title, *(of.get(name, "") for name in systems)) for title, of in results.ways.items())
    )
    yield from ("", f"Defined events: {sum(map(len, EVENTS.values()))}.")


def _plot(results: Results, folder: Path) -> list[str]:
    """Names of the plots that there was something to plot for."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "heap"
    from matplotlib.figure import Figure

    made = []

    def figure(
        name: str, x_label: str, y_label: str, lines: dict[str, list[tuple[float, float]]], *, y_log: bool = True
    ) -> None:
        drawn = {label: points for label, points in lines.items() if points}
        if not drawn:
            return
        canvas = Figure(figsize=(7, 4), layout="constrained")
        axes = canvas.subplots()
        for label, points in drawn.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
        axes.set_xscale("symlog" if x_label.startswith("definitions") else "log")
        axes.set_yscale("log" if y_log else "linear")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
        canvas.savefig(folder / f"{name}.svg", metadata={"Date": None})
        made.append(name)

    for tier, name in (("0.1 %", "time-by-events"), ("fixed", "time-by-events-same-matches")):
        experiment = f"size 3-step funnel, {tier}"
        sizes = sorted(results.seconds.get(experiment, {}), key=int)
        figure(
            name,
            f"events; 3-step funnel, {tier if tier != 'fixed' else 'always the same matches'}",
            "milliseconds",
            {s: _points((float(n), results.median(experiment, n, s)) for n in sizes) for s in _SYSTEMS},
        )
    shares = list(zip(_SHARES, _TIERS, strict=True))
    figure(
        "time-by-selectivity",
        "per cent of all events that match each of 3 steps",
        "milliseconds",
        {
            s: _points((share, results.median("warm", f"3-step funnel, {tier}", s)) for share, tier in shares)
            for s in _SYSTEMS
        },
    )
    inserts = results.seconds.get("inserts", {})
    batches = sorted(
        {size for of in inserts.values() for size in of}, key=lambda size: int(size.split()[-1].replace(",", ""))
    )
    plain = [subject for subject in inserts if subject.isdigit()]
    figure(
        "inserts-by-definitions",
        "definitions",
        "microseconds per inserted event",
        {size: _points(((float(n), results.median("inserts", n, size)) for n in plain), 1e6) for size in batches},
    )
    return made


def _points(pairs: Iterable[tuple[float, float | None]], factor: float = 1000) -> list[tuple[float, float]]:
    return [(x, seconds * factor) for x, seconds in pairs if seconds is not None]


if __name__ == "__main__":
    print(write_report(Results.read(Path(sys.argv[1])), Path(sys.argv[2])))
