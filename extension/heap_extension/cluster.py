"""An embedded PostgreSQL cluster in a local folder: loopback only, never run by root, there again after a restart."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from heap_extension.postgres import Postgres

__all__ = ["Cluster", "ClusterError", "default_data_directory", "free_port", "is_alive", "is_free"]

_ATTEMPTS = 3
"""To start at a port that was free: another process may take it first."""

_SETTINGS = """
# Written by `heap up`.
listen_addresses = '127.0.0.1'
shared_buffers = '512MB'
work_mem = '64MB'
maintenance_work_mem = '256MB'
max_wal_size = '4GB'
# Planning takes a lock on every index of the partitions it keeps: many definitions need many.
max_locks_per_transaction = 1024
# It looks at the size of each, too: files that stay open are a quarter of the time.
max_files_per_process = 16000
jit = off
"""

_HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Server processes ask for huge pages for what they allocate: an insert beside 1,000 definitions walks through the
states of their predicates for every row, and finds the pages of all of them in the processor's table of addresses."""


class ClusterError(Exception):
    """The cluster cannot be started or reached; the message says why."""


def _server_user() -> str | None:
    """Whom the server runs as when we are root, which PostgreSQL refuses; None when we are somebody already."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise ClusterError("PostgreSQL does not run as root, and there is no user postgres") from None


def default_data_directory() -> Path:
    """`.heap/` here, or, where the server's user could not enter it, a folder of its own under /var/lib."""
    here = Path.cwd() / ".heap"
    user = _server_user()
    if user is None or _can_enter(user, Path.cwd()):
        return here
    return Path("/var/lib/heap") / "-".join(Path.cwd().parts[1:])


def _can_enter(user: str, directory: Path) -> bool:
    return subprocess.run(["runuser", "-u", user, "--", "test", "-x", directory], check=False).returncode == 0


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster in `directory`, of the installation `postgres`."""

    postgres: Postgres
    directory: Path

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def password(self) -> str:
        """Of the role heap; in the folder, readable by its owner."""
        return (self.directory / "password").read_text().strip()

    @property
    def port(self) -> int:
        """On loopback; of the last start when it does not run."""
        return int((self.directory / "port").read_text())

    @property
    def dsn(self) -> str:
        """Where to connect, with the password."""
        return f"postgresql://heap:{self.password}@127.0.0.1:{self.port}/heap"

    @property
    def exists(self) -> bool:
        """True when it was created."""
        return (self.data / "PG_VERSION").exists()

    def setting(self, name: str) -> str:
        """A parameter as its configuration files set it."""
        return self._run("postgres", "-D", self.data, "-C", name).stdout.strip()

    def up(
        self,
        port: int | None = None,
        *,
        preload: str | None = None,
        settings: str = "",
        password: str | None = None,
    ) -> None:
        """Creates the cluster if need be, and starts it unless it runs.

        Args:
            port: None keeps the cluster's port, or takes a free one.
            preload: libraries of shared_preload_libraries, such as citus.
            settings: further lines of a new cluster's postgresql.conf.
            password: of a new cluster's role heap; None makes one up.

        Raises:
            ClusterError: the folder holds something else, or PostgreSQL did not start; the message ends with its log.
        """
        if not self.exists:
            self._create(preload, settings, password or secrets.token_hex(16))
        if self.is_running():
            if port is not None and port != self.port:
                raise ClusterError(f"the cluster runs on port {self.port}: `heap down` first")
            return
        known = self.directory / "port"
        kept = self.port if known.exists() and is_free(self.port) else None
        for attempt in range(_ATTEMPTS):
            chosen = port or (kept if kept and attempt == 0 else free_port())
            known.write_text(str(chosen))
            options = f"-p {chosen} -c unix_socket_directories=''"
            log = self.directory / "log"
            done = self._run("pg_ctl", "-D", self.data, "-l", log, "-o", options, "-w", "-t", "60", "start")
            if not done.returncode:
                break
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else ""
            if port or attempt == _ATTEMPTS - 1 or "could not create any TCP/IP sockets" not in tail:
                raise ClusterError(f"PostgreSQL did not start:\n{tail}")
        self._create_database()

    def down(self) -> bool:
        """Stops the server. False when it did not run."""
        if not self.is_running():
            return False
        done = self._run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")
        if done.returncode:
            raise ClusterError(f"PostgreSQL did not stop: {done.stderr.strip()}")
        return True

    def kill(self) -> None:
        """Ends every process of the server at once, as a loss of power would; `up` starts it again.

        Raises:
            ClusterError: processes are left after 10 seconds.
        """
        if not self.is_running():
            return
        postmaster = int((self.data / "postmaster.pid").read_text().split(maxsplit=1)[0])
        os.kill(postmaster, signal.SIGSTOP)  # it starts no more of them
        pids = [postmaster, *_children(postmaster)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while any(is_alive(pid) for pid in pids):
            if time.monotonic() > deadline:
                raise ClusterError("processes of PostgreSQL do not end")
            time.sleep(0.01)
        # Its process, though ended, is in the way of the next until somebody has taken note.
        (self.data / "postmaster.pid").unlink()

    def is_running(self) -> bool:
        """True when this cluster's server runs."""
        return self.exists and self._run("pg_ctl", "-D", self.data, "status").returncode == 0

    def _create(self, preload: str | None, settings: str, secret: str) -> None:
        user = _server_user()
        password, passfile = self.directory / "password", self.directory / "pgpass"
        if self.directory.exists() and any(self.directory.iterdir()) and not password.exists():
            raise ClusterError(f"{self.directory} is not empty and no cluster of heap's: choose another --data")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        for path, text in ((password, secret), (passfile, f"*:*:*:heap:{secret}\n")):
            path.touch(0o600)
            path.write_text(text)
        if user is not None:
            if not _can_enter(user, self.directory.parent):
                raise ClusterError(f"the user {user} cannot enter {self.directory.parent}: choose another --data")
            for path in (self.directory, password, passfile):
                shutil.chown(path, user)
        shutil.rmtree(self.data, ignore_errors=True)
        done = self._run(
            "initdb", "-D", self.data, "-U", "heap", "--encoding=UTF8", "--locale=C.UTF-8",
            "--auth=scram-sha-256", f"--pwfile={password}",
        )  # fmt: skip
        if done.returncode:
            raise ClusterError(f"initdb failed: {done.stderr.strip()}")
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS + settings)
            if preload:
                file.write(f"shared_preload_libraries = '{preload}'\n")

    def _create_database(self) -> None:
        import psycopg

        with psycopg.connect(self.dsn.removesuffix("/heap") + "/postgres", autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'heap'").fetchone():
                connection.execute("CREATE DATABASE heap")

    def _run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        user = _server_user()
        command = [str(self.postgres.bin / program), *(str(argument) for argument in arguments)]
        if "start" in arguments:  # with as many open files as the system lets the user have
            command = ["sh", "-c", 'ulimit -S -n "$(ulimit -H -n)"; exec "$@"', "sh", *command]
        if user is not None:
            command = ["runuser", "-u", user, "--", *command]
        # A server that inherits a pipe keeps it open: whoever reads it would wait for the server to end.
        output = subprocess.DEVNULL if "start" in arguments else subprocess.PIPE
        # The server's own connections, to itself or to other nodes with the same password.
        environment = {**os.environ, "PGPASSFILE": str(self.directory / "pgpass")}
        environment.setdefault("GLIBC_TUNABLES", _HUGE_PAGES)
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            check=False,
            cwd="/",
            env=environment,
        )


def _children(parent: int) -> list[int]:
    """The processes a process started."""
    listed = subprocess.run(["ps", "-A", "-o", "ppid=,pid="], capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in listed.splitlines()]
    return [int(pid) for ppid, pid in pairs if int(ppid) == parent]


def is_alive(pid: int) -> bool:
    """False for a process that ended, also when nobody has taken note of its end."""
    state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip() not in {"", "Z"}


def is_free(port: int) -> bool:
    """True when nobody listens on this port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    """A free port of loopback, below those of outgoing connections, which could otherwise take a stopped server's.

    Raises:
        ClusterError: none was found.
    """
    ports = (15_432 + secrets.randbelow(32_768 - 15_432) for _ in range(100))
    for port in ports:
        if is_free(port):
            return port
    raise ClusterError("no free port found on loopback")
