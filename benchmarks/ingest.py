"""The log's way into the tables, measured: how fast the sink stores against a plain COPY of the same rows, and a soak.

    python -m benchmarks.ingest sink --workers 2
    python -m benchmarks.ingest soak --seconds 90 --clients 4

Everything runs on this machine: Kafka, PostgreSQL, capture server, sink and the client. Ratios of one run mean
something, the numbers are this machine's.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psycopg
import typer

from heap_extension.citus_cluster import CitusCluster
from heap_extension.cluster import Cluster, free_port
from heap_extension.install import install
from heap_extension.nodes import create_extension
from heap_extension.postgres import find_postgres
from heap_ingest.broker import Broker, find_kafka
from heap_ingest.capture.limits import Limits
from heap_ingest.capture.pack import Origin, pack_events
from heap_ingest.demo import is_ready
from heap_ingest.log import ProducerRecord, Sender
from heap_ingest.messages import EventMessage, encode, message_key
from heap_ingest.topics import create_topics
from heap_ingest.write_keys import make_write_key
from tests.ingest.log import captured

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

_APP = "soaked"
_TOPIC = "soak"
_PARTITIONS = 8
_UNSEEN = 50_000
"""Events that were sent and are not seen by a query, at most, where no rate is given: what can go on for ever."""
_AGENTS = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
    f" Chrome/{version}.0.0.0 Safari/537.36"
    for version in range(90, 140)
]
Definitions = Annotated[int, typer.Option(help="Defined events, each an index on every partition.")]
Workers = Annotated[int, typer.Option(help="Workers of Citus; 0 is plain PostgreSQL.")]


@contextmanager
def _machinery(workers: int, definitions: int) -> Iterator[tuple[str, Broker]]:
    """A database with the app and its definitions, and a broker; gone afterwards."""
    postgres = find_postgres()
    install(postgres)
    with tempfile.TemporaryDirectory(prefix="heap-soak-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        cluster = Cluster(postgres, folder / "cluster")
        if workers:
            distributed = CitusCluster(cluster)
            distributed.up(workers)
            stack.callback(distributed.down)
        else:
            cluster.up()
            stack.callback(cluster.down)
        create_extension(cluster.dsn)
        broker = Broker(find_kafka(), folder / "kafka")
        broker.up()
        stack.callback(broker.kill)
        create_topics(broker.bootstrap_servers, events=_TOPIC, partitions=_PARTITIONS)
        with psycopg.connect(cluster.dsn, autocommit=True) as connection:
            connection.execute("SELECT heap.create_app(%s, shard_count => %s)", (_APP, 8 if workers else None))
            connection.execute("SELECT set_config('heap.app', %s, false)", (_APP,))
            for number in range(definitions):
                connection.execute(
                    "SELECT heap.define_event(%s, %s)", (f"Page {number}", f"pageview where path = '/page/{number}'")
                )
        yield cluster.dsn, broker


def _fields(number: int, chance: random.Random, now: datetime) -> dict[str, Any]:
    return {
        "user_id": chance.getrandbits(40),
        "time": now - timedelta(seconds=chance.random() * 86_400),
        "event_id": number,
        "session_id": number // 10,
        "type": "pageview",
        "columns": {
            "path": f"/page/{number % 500}",
            "domain": "shop.example",
            "title": "A page of the shop",
            "language": "en-GB",
            "referrer": "https://search.example/",
            "library": "web",
            "utm_source": "newsletter",
        },
        "properties": {"amount": number % 100, "plan": "pro"},
    }


@contextmanager
def _heap(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([Path(sys.executable).with_name("heap"), "ingest", *arguments])
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@app.command()
def sink(
    rows: Annotated[int, typer.Option(help="Events.")] = 300_000,
    definitions: Definitions = 50,
    workers: Workers = 0,
    sinks: Annotated[int, typer.Option(help="Sinks that share the log.")] = 1,
    rounds: Annotated[int, typer.Option(help="How often both are measured, by turns.")] = 3,
    request: Annotated[
        int, typer.Option(help="Events of a request, which travel together; 1 makes messages of one.")
    ] = 100,
) -> None:
    """Rows a second of the sink, and of psql's COPY of the same rows into the same indexed table."""
    with _machinery(workers, definitions) as (dsn, broker), psycopg.connect(dsn, autocommit=True) as connection:
        messages = _send(broker, rows, request)
        ratios = []
        for turn in range(rounds):
            connection.execute(f"TRUNCATE {_APP}.events")
            connection.execute("DELETE FROM heap.ingest_offset")
            by_sink, spent = _measure_sink(connection, dsn, broker, rows, messages, sinks, turn)
            by_copy, copying = _measure_copy(connection, dsn)
            ratios.append(by_sink / by_copy)
            typer.echo(f"sink {by_sink:,.0f} rows/s, COPY {by_copy:,.0f} rows/s: {ratios[-1]:.0%}")
            for name, seconds in (("sink", spent), ("COPY", copying)):
                parts = ", ".join(f"{what} {1e6 * cpu:.1f}" for what, cpu in seconds.items())
                typer.echo(f"    CPU of {name}, microseconds a row: {parts}")
        typer.echo(f"median {statistics.median(ratios):.0%}")


def _send(broker: Broker, rows: int, request: int) -> int:
    """Fills the log; how many messages that made, in which the events of a request travel as the capture server packs
    them."""
    chance, now = random.Random(1), datetime.now(UTC)
    sender, sent = Sender(broker.bootstrap_servers), 0
    for first in range(0, rows, request):
        agent = _AGENTS[first // request % 50]
        events = [
            EventMessage(app=_APP, received_at=now, ip="192.0.2.1", user_agent=agent, **_fields(number, chance, now))
            for number in range(first, min(first + request, rows))
        ]
        if request == 1:
            records = [ProducerRecord(message_key(_APP, event.user_id), encode(event)) for event in events]
        else:
            origin = Origin(_APP, now, ip="192.0.2.1", user_agent=agent, partitions=_PARTITIONS)
            records = pack_events([captured(event) for event in events], origin, Limits().message_bytes).records
        for record in records:
            sender.send(_TOPIC, record.value, record.key)  # in which partition, makes no difference here
        sent += len(records)
    sender.finish(120)
    return sent


def _servers(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """The postmasters of the database: the coordinator's, and its workers'."""
    query = "SELECT pg_read_file(current_setting('data_directory') || '/postmaster.pid')"
    files = {"coordinator": connection.execute(query).fetchall()}
    if connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetchone():
        answers = connection.execute("SELECT result FROM run_command_on_workers(%s)", (query,)).fetchall()
        files |= {f"worker {number}": [answer] for number, answer in enumerate(answers, 1)}
    return {name: int(file.split()[0]) for name, [(file,)] in files.items()}


def _cpu(pids: dict[str, int]) -> dict[str, float]:
    """Seconds of CPU of each of the processes, with all that they started, ended or not."""
    ticks, parents = dict[int, float](), dict[int, int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        ticks[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    spent = dict.fromkeys(pids, 0.0)
    names = {pid: name for name, pid in pids.items()}
    for pid, seconds in ticks.items():
        above: int | None = pid
        while above is not None and above not in names:
            above = parents.get(above)
        if above is not None:
            spent[names[above]] += seconds
    return spent


@contextmanager
def _spending(pids: dict[str, int]) -> Iterator[dict[str, float]]:
    """The CPU that is spent meanwhile, in seconds, afterwards."""
    spent: dict[str, float] = {}
    before = _cpu(pids)
    yield spent
    spent.update({name: seconds - before[name] for name, seconds in _cpu(pids).items()})


def _measure_sink(
    connection: psycopg.Connection[Any], dsn: str, broker: Broker, rows: int, messages: int, sinks: int, turn: int
) -> tuple[float, dict[str, float]]:
    """Rows a second and CPU of each, from the first batch stored to the last. All messages hold about as many rows."""
    query = "SELECT coalesce(sum(stored), 0), clock_timestamp() FROM heap.ingest_offset"
    common = ["sink", "--dsn", dsn, "--bootstrap-servers", broker.bootstrap_servers, "--topic", _TOPIC]
    with ExitStack() as stack:
        pids = _servers(connection)
        for number in range(sinks):
            process = stack.enter_context(_heap(*common, "--group", f"soak-{turn}", "--instance", f"{turn}-{number}"))
            pids[f"sink {number + 1}"] = process.pid
        while not (first := connection.execute(query).fetchone() or (0,))[0]:
            time.sleep(0.02)
        with _spending(pids) as spent:
            while (last := connection.execute(query).fetchone() or (0,))[0] < messages:
                time.sleep(0.02)
        count, seconds = rows * float(last[0] - first[0]) / messages, (last[1] - first[1]).total_seconds()
        return count / seconds, {name: cpu / count for name, cpu in spent.items()}


def _measure_copy(connection: psycopg.Connection[Any], dsn: str) -> tuple[float, dict[str, float]]:
    found = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        " AND attgenerated = '' ORDER BY attnum",
        (f"{_APP}.events",),
    )
    columns = ", ".join(f'"{name}"' for (name,) in found)
    psql = [str(find_postgres().bin / "psql"), dsn, "--quiet", "--command"]
    with tempfile.NamedTemporaryFile() as file:
        source = f"(SELECT {columns} FROM {_APP}.events ORDER BY event_id)"
        subprocess.run([*psql, f"\\copy {source} TO '{file.name}'"], check=True)
        (rows,) = connection.execute(f"SELECT count(*) FROM {_APP}.events").fetchone() or (0,)
        connection.execute(f"TRUNCATE {_APP}.events")
        began = time.monotonic()
        with _spending(_servers(connection)) as spent:
            subprocess.run([*psql, f"\\copy {_APP}.events ({columns}) FROM '{file.name}'"], check=True)
        return int(rows) / (time.monotonic() - began), {name: cpu / rows for name, cpu in spent.items()}


@dataclass(frozen=True)
class _Load:
    """Events that come in at a rate, from several processes that send one request after the other.

    Attributes:
        rate: events a second of all together; 0 is as many as are seen by queries, with `_UNSEEN` under way.
        first_id: the events' ids count on from here, by requests.
    """

    port: int
    key: str
    clients: int
    batch: int
    rate: int
    seconds: int
    first_id: int

    def send(self, client: int, answered: SimpleQueue[_Answer | None], unseen: Semaphore) -> None:
        """What one of the processes does: each answer is told, and None is at the end.

        Args:
            unseen: how many more requests may be sent before a query has seen what those before held.
        """
        chance = random.Random(self.first_id + client)
        fields = _fields(0, chance, datetime.now(UTC))
        rest = json.dumps(fields["columns"] | {"type": fields["type"], "properties": fields["properties"]})[1:]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Content-Type": "application/json", "X-Write-Key": self.key, "User-Agent": _AGENTS[client % 50]}
        began, request = time.monotonic(), client
        while (now := time.monotonic() - began) < self.seconds:
            if not self.rate:
                unseen.acquire()
            elif (due := request * self.batch / self.rate) > now:
                time.sleep(due - now)
            ids = range(self.first_id + request * self.batch, self.first_id + (request + 1) * self.batch)
            at = datetime.now(UTC).isoformat()
            events = (f'{{"event_id":{n},"user_id":{chance.getrandbits(40)},"time":"{at}",{rest}' for n in ids)
            body = f'{{"events":[{",".join(events)}]}}'
            sent = time.monotonic()
            connection.request("POST", "/capture", body, headers)
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 200, answer
            done = time.monotonic()
            answered.put(_Answer(ids, done, done - sent))
            request += self.clients
        answered.put(None)


class _Answer(NamedTuple):
    """The ids of a request that was acknowledged, when (of the monotonic clock), and after how many seconds."""

    ids: range
    at: float
    seconds: float


@app.command()
def soak(
    seconds: Annotated[int, typer.Option(help="How long, at each of both rates.")] = 90,
    rate: Annotated[int, typer.Option(help="Events a second that come in; 0 is as many as get through.")] = 0,
    clients: Annotated[int, typer.Option(help="Processes that send, each one request after the other.")] = 4,
    definitions: Definitions = 50,
    workers: Workers = 0,
    batch: Annotated[int, typer.Option(help="Events of a request.")] = 500,
) -> None:
    """HTTP -> Kafka -> table at a steady rate, and at half of it: how long until acknowledged, how long until a query
    sees it, memory; and whether what is stored is what was acknowledged, id by id."""
    with _machinery(workers, definitions) as (dsn, broker), psycopg.connect(dsn, autocommit=True) as connection:
        key, port = make_write_key(connection, _APP, events_per_second=1_000_000), free_port()
        common = ["--dsn", dsn, "--bootstrap-servers", broker.bootstrap_servers, "--topic", _TOPIC]
        connection.execute(f"CREATE INDEX ON {_APP}.events (event_id)")  # by which the watch asks
        with (
            _heap("serve", *common, "--port", str(port)) as server,
            _heap("sink", *common, "--instance", "soak") as store,
        ):
            while not is_ready(port) or not connection.execute("SELECT 1 FROM heap.ingest_offset").fetchone():
                time.sleep(0.1)
            expected: list[int] = []
            for part in (1.0, 0.5):
                load = _Load(port, key, clients, batch, int(part * rate), seconds, len(expected) and expected[-1] + 1)
                answers, table = _put_under(load, dsn, {"capture": server.pid, "sink": store.pid})
                expected = sorted([*expected, *(number for answer in answers for number in answer.ids)])
                rate = rate or int(len(expected) / seconds)
                typer.echo("\n".join(f"{what:24} {found}" for what, found in table.items()))
            query = f"SELECT event_id FROM {_APP}.events ORDER BY event_id"
            stored = [number for (number,) in connection.execute(query).fetchall()]
            is_same = "id by id the same" if stored == expected else "NOT the same"
            typer.echo(f"{len(stored):,} stored, {len(expected):,} acknowledged: {is_same}")


def _put_under(load: _Load, dsn: str, pids: dict[str, int]) -> tuple[list[_Answer], dict[str, str]]:
    """The answers to a load, and what is to be said of it."""
    spawning = multiprocessing.get_context("spawn")
    unseen, answered = spawning.Semaphore(max(_UNSEEN // load.batch, 1)), spawning.SimpleQueue()
    watch, answers = _Watch(dsn, unseen), list[_Answer]()
    memory: dict[str, list[int]] = {name: [] for name in pids}
    senders = [spawning.Process(target=load.send, args=(client, answered, unseen)) for client in range(load.clients)]
    for sender in senders:
        sender.start()
    sending, next_look = load.clients, 0.0
    while sending:
        answer = answered.get()
        if answer is None:
            sending -= 1
            continue
        answers.append(answer)
        watch.expect(answer.ids[-1], answer.at)
        if answer.at > next_look:
            for name, pid in pids.items():
                memory[name].append(_memory(pid))
            next_look = answer.at + 5
    for sender in senders:
        sender.join()
    delays = watch.finish()
    took = max(answer.at for answer in answers) - min(answer.at - answer.seconds for answer in answers)
    return answers, {
        "events/s acknowledged": f"{len(answers) * load.batch / took:,.0f} for {took:.0f} s",
        "acknowledged after": _quantiles([answer.seconds for answer in answers]),
        "seen by a query after": _quantiles(delays) + f"; {len(answers) - len(delays)} never",
        **{f"memory of {name}": _growth(sizes) for name, sizes in memory.items()},
    }


def _growth(sizes: list[int]) -> str:
    """Of memory that was looked at every 5 seconds: begin, end and most, and the slope of its second half."""
    half = [size / 1e6 for size in sizes[len(sizes) // 2 :]]
    slope = statistics.linear_regression(range(len(half)), half).slope * 12 if len(half) > 1 else 0.0
    return (
        f"{sizes[0] / 1e6:.0f} MB at first, {sizes[-1] / 1e6:.0f} at last, {max(sizes) / 1e6:.0f} at most;"
        f" {slope:+.1f} MB a minute in the second half"
    )


class _Watch:
    """Asks for events by id from the moment they were acknowledged; the delays until they are seen."""

    def __init__(self, dsn: str, unseen: Semaphore) -> None:
        self._dsn = dsn
        self._unseen = unseen
        self._wanted: dict[int, float] = {}
        self._delays: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def expect(self, event_id: int, since: float) -> None:
        self._wanted[event_id] = since

    def finish(self) -> list[float]:
        deadline = time.monotonic() + 60
        while self._wanted and time.monotonic() < deadline:
            time.sleep(0.1)
        self._stop.set()
        self._thread.join()
        return self._delays

    def _run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._stop.wait(0.05):
                wanted = list(self._wanted)
                seen = connection.execute(
                    f"SELECT event_id FROM {_APP}.events WHERE event_id = ANY(%s)", (wanted,)
                ).fetchall()
                now = time.monotonic()
                self._delays += [now - self._wanted.pop(event_id) for (event_id,) in seen]
                for _ in seen:
                    self._unseen.release()


def _quantiles(values: list[float]) -> str:
    cuts = statistics.quantiles(values, n=100)
    return " / ".join(f"{1000 * cuts[cut - 1]:.0f}" for cut in (50, 95, 99)) + " ms (p50 / p95 / p99)"


def _memory(pid: int) -> int:
    """Bytes that the process and those it started keep."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,rss="], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return sum(1024 * rss for own, parent, rss in rows if pid in (own, parent) and own != os.getpid())


if __name__ == "__main__":
    app()
