"""`heap import`, through the command line, and the README's web log against the oracle."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from heap_extension.command import app as command_line
from tests import oracle

_LOG = Path(os.environ.get("HEAP_TEST_LOG", Path(__file__).parents[3] / "shared" / "data" / "nasa_19950801.tsv"))


def _heap(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(command_line, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def imported(dsn: str) -> Iterator[str]:
    """The name of an app that the test may fill, dropped afterwards."""
    name = "imported"
    yield name
    with psycopg.connect(dsn) as connection:
        if connection.execute("SELECT 1 FROM heap.app WHERE name = %s", (name,)).fetchone():
            connection.execute("SELECT heap.drop_app(%s)", (name,))


def _rows(dsn: str, columns: str) -> list[Any]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(f"SELECT {columns} FROM imported.events ORDER BY user_id, time, event_id").fetchall()


def test_importing_twice_changes_nothing(dsn: str, imported: str, tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text(
        "who,at,url,amount,code\n"
        'ann,2024-02-29T12:00:00Z,/a,5,007\nann,2024-02-29T12:00:00Z,/b,1e5,"x, ""y"""\n'
        "ann,2024-02-29T12:00:00Z,/a,5,007\n42,1709208001,,0.5,\n"
    )
    arguments = ["import", "--dsn", dsn, "--app", imported, "--user-column", "who", "--time-column", "at", "--map",
                 "url=path", file]  # fmt: skip
    assert "4 events imported, 0 were there already, 1 new users" in _heap(*arguments).output
    before = _rows(dsn, "user_id, time, event_id, session_id, path, properties")
    assert "0 events imported, 4 were there already" in _heap(*arguments).output
    assert _rows(dsn, "user_id, time, event_id, session_id, path, properties") == before
    ann = [row for row in before if row[0] != 42]
    assert [row[4] for row in ann] == ["/a", "/b", "/a"], "the file's order within one instant"
    assert [row[5] for row in ann] == [{"amount": 5, "code": "007"}, {"amount": "1e5", "code": 'x, "y"'},
                                       {"amount": 5, "code": "007"}]  # fmt: skip
    assert [(row[1], row[5]) for row in before if row[0] == 42] == [
        (datetime(2024, 2, 29, 12, 0, 1, tzinfo=UTC), {"amount": 0.5})
    ]
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT identity FROM imported.users").fetchall() == [("ann",)]


def test_rejected_rows_are_reported_with_line_and_reason_and_the_rest_goes_in(
    dsn: str, imported: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.ndjson"
    rows = ['{"u": "a", "t": "2024-01-01", "k": "x"}', "{not json", "[1]", '{"t": "2024-01-01", "k": "x"}',
            '{"u": "a", "t": "yesterday", "k": "x"}', '{"u": "a", "t": 1e300, "k": "x"}', '{"u": "a", "t": 5}',
            '{"u": "a\\u0000", "t": 5, "k": "x"}', "", '{"u": "b", "t": 1704067200000, "k": "\\ud800", "d": {"x": [1, null]}}',
            '{"u": 99999999999999999999, "t": 5, "k": "x"}']  # fmt: skip
    file.write_text("\n".join(rows))
    rejected = tmp_path / "bad.tsv"
    result = _heap("import", "--dsn", dsn, "--app", imported, "--user-column", "u", "--time-column", "t", "--type-column",
                   "k", "--rejected", rejected, file)  # fmt: skip
    assert "2 events imported" in result.output
    lines = [line.split("\t")[:2] for line in rejected.read_text().splitlines()[1:]]
    assert [(int(line), reason.split(":")[0]) for line, reason in lines] == [
        (2, "not JSON"), (3, "not a JSON object"), (4, "no user"), (5, "not a time"), (6, "not a time"),
        (7, "no event type"), (8, "a NUL character, which PostgreSQL cannot store"), (11, "the user id is out of bounds"),
    ]  # fmt: skip
    assert _rows(dsn, "time, properties")[0][0] == datetime(2024, 1, 1, tzinfo=UTC)


def test_csv_rows_of_the_wrong_width_and_bad_bytes(dsn: str, imported: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.tsv"
    file.write_bytes(b'u\tt\tpath\na\t5\t/x\na\t5\na\t6\t/\xff"q\nb\t7\t/y\n')
    result = _heap("import", "--dsn", dsn, "--app", imported, "--user-column", "u", "--time-column", "t", file)
    assert "3 events imported" in result.output
    assert (tmp_path / "rows.tsv.rejected.tsv").read_text().splitlines()[1] == "3\t2 fields instead of 3\ta\\t5"
    assert sorted(row[0] for row in _rows(dsn, "path")) == ['/\\xff"q', "/x", "/y"]


def test_parquet(dsn: str, imported: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "rows.parquet"
    times = [datetime(2024, 3, 31, hour, tzinfo=UTC) for hour in range(3)]
    table = pyarrow.table(
        {"u": ["a", "b", None], "t": times, "country": ["DE", None, "US"], "n": [1.5, float("nan"), 2.0]}
    )
    parquet.write_table(table, file)
    result = _heap("import", "--dsn", dsn, "--app", imported, "--user-column", "u", "--time-column", "t", file)
    assert "2 events imported" in result.output
    assert sorted(_rows(dsn, "time, country, properties")) == [
        (times[0], "DE", {"n": 1.5}), (times[1], None, {"n": None})]  # fmt: skip


def test_sessions_end_after_thirty_minutes_of_silence(dsn: str, imported: str, tmp_path: Path) -> None:
    file = tmp_path / "visits.csv"
    minutes = [0, 30, 61, 62]
    file.write_text("u,t\n" + "".join(f"a,{1_700_000_000 + 60 * minute}\n" for minute in minutes))
    _heap("import", "--dsn", dsn, "--app", imported, "--user-column", "u", "--time-column", "t", file)
    sessions = [row[0] for row in _rows(dsn, "session_id")]
    assert sessions[0] == sessions[1] != sessions[2] == sessions[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user-column", "nobody", "--time-column", "t"], "the file has no column 'nobody'"),
        (["--user-column", "u", "--time-column", "t", "--map", "u"], "--map takes file_column=event_column"),
        (["--user-column", "u", "--time-column", "t", "--map", "u=nothing"], "'nothing' is no column to map to"),
    ],
)
def test_a_wrong_mapping_is_said_and_nothing_is_made(
    dsn: str, imported: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("u,t\na,5\n")
    result = CliRunner().invoke(command_line, ["import", "--dsn", dsn, "--app", imported, *arguments, str(file)])
    assert result.exit_code == 1
    assert message in result.output
    with psycopg.connect(dsn) as connection:
        assert not connection.execute("SELECT 1 FROM heap.app WHERE name = %s", (imported,)).fetchone()


def _log_events() -> list[oracle.Event]:
    """The web log, read without any of the project's code; the line number orders a visitor's equal seconds."""
    numbers: dict[str, int] = {}
    with _LOG.open(newline="") as file:
        return [
            oracle.Event(
                user_id=numbers.setdefault(row["host"], len(numbers)),
                time=datetime.fromtimestamp(int(row["time"]), UTC),
                event_id=line,
                type="pageview",
                columns={"path": row["url"]},
            )
            for line, row in enumerate(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        ]


@pytest.mark.skipif(not _LOG.exists(), reason=f"the web log is not here: {_LOG} (HEAP_TEST_LOG names it)")
def test_the_web_log_of_the_readme_answers_as_the_oracle(dsn: str, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme[readme.index("## Your own data") :]
    (commands,) = re.findall(r"```sh\n(.*?)```", section, re.S)[:1]
    outputs = []
    try:
        for line in commands.strip().splitlines():
            words = [str(_LOG) if word == "$LOG" else word for word in shlex.split(line)[1:]]
            options = ["--dsn", dsn] + (
                ["--rejected", str(tmp_path / "r")] if words[0] == "import" else ["--format", "json"]
            )
            outputs.append(_heap(words[0], *options, *words[1:]).stdout)
        with psycopg.connect(dsn) as connection:
            stored = connection.execute("SELECT count(*) FROM nasa.events").fetchone()
    finally:
        with psycopg.connect(dsn) as connection:
            if connection.execute("SELECT 1 FROM heap.app WHERE name = 'nasa'").fetchone():
                connection.execute("SELECT heap.drop_app('nasa')")
    events = _log_events()
    assert stored == (len(events),)
    funnel = [json.loads(line) for line in outputs[-2].splitlines()]
    trend = [json.loads(line) for line in outputs[-1].splitlines()]
    tests: list[oracle.Test] = [
        lambda e: e.columns["path"] in {"/", "/ksc.html"},
        lambda e: (e.columns["path"] or "").startswith("/shuttle/countdown/"),
        lambda e: (
            (e.columns["path"] or "").startswith("/shuttle/missions/") and (e.columns["path"] or "").endswith(".html")
        ),
    ]
    start = datetime(1995, 8, 1, tzinfo=UTC)
    rules = oracle.Rules(timedelta(hours=1), start, start + timedelta(days=1))
    expected = oracle.funnel(events, tests, rules, now=start + timedelta(days=30))
    assert expected[None, 3].users > 0
    for row in funnel:
        wanted = expected[None, row["step"]]
        assert row["users"] == wanted.users
        for name, value in (("median_time", wanted.median), ("average_time", wanted.average)):
            assert row[name] == (None if value is None else pytest.approx(value.total_seconds(), abs=1e-5))
    assert len(trend) == 48
    for row in trend:
        hour = datetime.fromisoformat(row["bucket"])
        test = tests[0] if row["series"] == 'users of "Home"' else tests[2]
        inside = [e for e in events if test(e) and hour <= e.time < hour + timedelta(hours=1)]
        assert row["value"] == (len({e.user_id for e in inside}) if "users" in row["series"] else len(inside))
