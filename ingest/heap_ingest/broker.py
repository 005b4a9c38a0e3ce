"""Apache Kafka on this machine, for development and tests: one node, loopback only, its data in a folder.

Kafka comes from its Maven artifacts, once, into a cache folder. Production points at a Kafka of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from heap_extension.cluster import ClusterError, free_port, is_alive, is_free
from heap_ingest.topics import reachable

__all__ = ["KAFKA_VERSION", "Broker", "BrokerError", "find_kafka"]

KAFKA_VERSION = "4.3.1"
_SLF4J_VERSION = "1.7.36"  # of the line of Kafka's own slf4j-api
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>heap</groupId>
  <artifactId>broker</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>{_SLF4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

# One node is broker and controller. Kafka leaves writing to the disk to the kernel: a killed process loses nothing, a
# loss of power may, which production avoids with three replicas and min.insync.replicas = 2.
_PROPERTIES = """# Written by `heap ingest broker`.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=250
group.min.session.timeout.ms=1000
message.max.bytes=8388608
"""

# Started often and used little: compiling everything well would take most of its time.
_JVM = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")


class BrokerError(ClusterError):
    """Kafka cannot be fetched, started or stopped; the message says why."""


def find_kafka(cache: Path | None = None) -> Path:
    """The folder of Kafka's jars: fetched with Maven when it is not in the cache.

    Args:
        cache: a folder for heap's caches; None is `heap/` in the user's.

    Raises:
        BrokerError: there is no Java, or no Maven to fetch Kafka with, or Maven could not.
    """
    if shutil.which("java") is None:
        raise BrokerError("Kafka needs Java 17 or later: on Debian, `apt-get install openjdk-17-jre-headless`")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heap"
    jars = (cache or caches) / f"kafka-{KAFKA_VERSION}"
    if jars.exists():
        return jars
    if shutil.which("mvn") is None:
        raise BrokerError("Kafka is fetched with Maven: on Debian, `apt-get install maven`")
    jars.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jars.parent, prefix="fetching-") as name:
        folder = Path(name)
        (folder / "pom.xml").write_text(_POM)
        command = ["mvn", "--batch-mode", "--quiet", _COPY, "-DincludeScope=runtime", "-DoutputDirectory=jars"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
            raise BrokerError(f"Maven could not fetch Kafka {KAFKA_VERSION}:\n{tail}")
        with suppress(OSError):  # whoever was faster fetched the same
            (folder / "jars").rename(jars)
    return jars


@dataclass(frozen=True, slots=True)
class Broker:
    """A Kafka node with everything of it in `directory`, of the installation `kafka` (a folder of jars)."""

    kafka: Path
    directory: Path

    @property
    def port(self) -> int:
        """On loopback; of the last start when it does not run."""
        return int((self.directory / "port").read_text())

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.port}"

    @property
    def exists(self) -> bool:
        """True when it was created."""
        return (self._data / "meta.properties").exists()

    def up(self, port: int | None = None) -> None:
        """Creates the node if need be, and starts it unless it runs.

        Args:
            port: None keeps the node's port, or takes a free one.

        Raises:
            BrokerError: Kafka did not start; the message ends with its log.
        """
        if self.is_running():
            if port is not None and port != self.port:
                raise BrokerError(f"the broker runs on port {self.port}: stop it first")
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        known = self.directory / "port"
        chosen = port or (self.port if known.exists() and is_free(self.port) else free_port())
        known.write_text(str(chosen))
        self._properties.write_text(_PROPERTIES.format(port=chosen, controller=free_port(), data=self._data))
        if not self.exists:
            self._format()
        pid = self._spawn()
        (self.directory / "pid").write_text(str(pid))
        deadline = time.monotonic() + 60
        while not reachable(self.bootstrap_servers, timeout=1.0):
            if not is_alive(pid) or time.monotonic() > deadline:
                self.kill()
                raise BrokerError(f"Kafka did not start:\n{self._tail()}")

    def down(self) -> bool:
        """Stops the node. False when it did not run."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the node at once; `up` starts it again with all that was acknowledged."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stops the node's process where it is: connections stay, nobody answers. `resume` lets it go on."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused node go on."""
        self._signal(signal.SIGCONT)

    def is_running(self) -> bool:
        """True when this node's process runs."""
        return self._pid() is not None

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _properties(self) -> Path:
        return self.directory / "server.properties"

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    def _spawn(self) -> int:
        """Starts the process, which goes on when we end."""
        java = shutil.which("java") or "java"
        command = ["java", *_JVM, "-cp", f"{self.kafka}/*", "kafka.Kafka", str(self._properties)]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        files += [(os.POSIX_SPAWN_OPEN, number, str(self._log), flags, 0o644) for number in (1, 2)]
        return os.posix_spawn(java, command, os.environ, file_actions=files, setsid=True)

    def _format(self) -> None:
        """Makes an empty log folder."""
        self._tool("format", "--cluster-id", self._tool("random-uuid"), "--config", str(self._properties))

    def _tool(self, *arguments: str) -> str:
        command = ["java", "-Xmx128m", *_JVM[1:], "-cp", f"{self.kafka}/*", "kafka.tools.StorageTool", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BrokerError(f"Kafka's storage tool failed: {(done.stdout + done.stderr).strip()}")
        return done.stdout.strip()

    def _pid(self) -> int | None:
        """Of the node's process; a process that has its number by chance is told apart by its command."""
        with suppress(FileNotFoundError, ValueError):
            pid = int((self.directory / "pid").read_text())
            command = ["ps", "-ww", "-o", "args=", "-p", str(pid)]
            listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            if str(self._properties) in listed and is_alive(pid):
                return pid
        return None

    def _signal(self, number: Literal[signal.Signals.SIGSTOP, signal.Signals.SIGCONT]) -> None:
        pid = self._pid()
        if pid is None:
            raise BrokerError("the broker does not run")
        os.kill(pid, number)

    def _end(self, number: Literal[signal.Signals.SIGTERM, signal.Signals.SIGKILL]) -> bool:
        pid = self._pid()
        if pid is None:
            return False
        os.kill(pid, number)
        deadline = time.monotonic() + 30
        while is_alive(pid) or not is_free(self.port):  # its threads may outlive the first of them
            if time.monotonic() > deadline:
                raise BrokerError("the process of Kafka does not end")
            time.sleep(0.02)
        with suppress(ChildProcessError):  # it is a child only of who started it
            os.waitpid(pid, os.WNOHANG)
        return True

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])
