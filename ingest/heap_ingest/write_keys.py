"""Write keys: which app what comes with a key belongs to. Kept in heap.write_key, read by the capture server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row

__all__ = [
    "UnknownWriteKeyError",
    "WriteKey",
    "WriteKeys",
    "list_write_keys",
    "make_write_key",
    "revoke_write_key",
]

_LOG = logging.getLogger("heap_ingest.keys")
_PAUSE = 0.25
_COLUMNS = "key, app, note, keep_address, events_per_second, created_at, revoked_at"


@dataclass(frozen=True, slots=True)
class WriteKey:
    """A row of heap.write_key, whose columns say what these are."""

    key: str
    app: str
    note: str | None
    keep_address: bool
    events_per_second: int | None
    created_at: datetime
    revoked_at: datetime | None


class UnknownWriteKeyError(Exception):
    """There is no such key, or it was revoked before."""


def make_write_key(
    connection: psycopg.Connection[Any],
    app: str,
    *,
    note: str | None = None,
    keep_address: bool = True,
    events_per_second: int | None = None,
) -> str:
    """A new key of an app.

    Raises:
        psycopg.errors.ForeignKeyViolation: there is no such app.
    """
    key = secrets.token_urlsafe(24)
    connection.execute(
        "INSERT INTO heap.write_key (key, app, note, keep_address, events_per_second) VALUES (%s, %s, %s, %s, %s)",
        (key, app, note, keep_address, events_per_second),
    )
    return key


def revoke_write_key(connection: psycopg.Connection[Any], key: str) -> None:
    """Nothing is taken with the key from now on, or once capture servers have heard of it.

    Raises:
        UnknownWriteKeyError: there is none to revoke.
    """
    revoked = connection.execute(
        "UPDATE heap.write_key SET revoked_at = now() WHERE key = %s AND revoked_at IS NULL", (key,)
    )
    if revoked.rowcount == 0:
        raise UnknownWriteKeyError("there is no such write key, or it is revoked")


def list_write_keys(connection: psycopg.Connection[Any], app: str | None = None) -> list[WriteKey]:
    """All keys, or those of an app, in the order they were made."""
    with connection.cursor(row_factory=class_row(WriteKey)) as cursor:
        cursor.execute(
            f"SELECT {_COLUMNS} FROM heap.write_key WHERE app = coalesce(%s, app) ORDER BY app, created_at, key", (app,)
        )
        return cursor.fetchall()


class WriteKeys:
    """All valid keys, read again every `interval` seconds, so that no request waits for the database.

    While the database is away the keys last read go on being valid: an outage stops no events. A key that is not among
    them is looked for at once, a few times a second at most, so that new ones work and invented ones cost nothing.

    Args:
        dsn: of a login that may SELECT from heap.write_key, and needs no other right.
        interval: seconds; a revoked key is refused after so many.
    """

    def __init__(self, dsn: str, interval: float = 5.0) -> None:
        self.dsn = dsn
        self.interval = interval
        self._keys: dict[str, WriteKey] | None = None
        self._read_at = 0.0
        self._began_at = 0.0
        self._reading = asyncio.Lock()
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def loaded(self) -> bool:
        """True once the keys were read."""
        return self._keys is not None

    @property
    def age(self) -> float:
        """Seconds since the keys were read; infinite before."""
        return time.monotonic() - self._read_at if self.loaded else float("inf")

    async def start(self) -> None:
        """Reads the keys, if the database answers, and goes on doing so."""
        await self._read()
        self._reader = asyncio.create_task(self._keep_reading())

    async def stop(self) -> None:
        """Ends it."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        if self._connection is not None:
            await self._connection.close()

    async def find(self, key: str) -> WriteKey | None:
        """The key, if it is valid; None also when no keys could be read yet: see `loaded`."""
        found = (self._keys or {}).get(key)
        if found is None:
            await self._read(pause=_PAUSE)
            found = (self._keys or {}).get(key)
        return found

    async def _keep_reading(self) -> None:
        while True:
            await asyncio.sleep(self.interval if self.loaded else min(1.0, self.interval))
            await self._read()

    async def _read(self, pause: float = 0.0) -> None:
        """Reads the keys, not sooner than `pause` seconds after the last time; all who ask meanwhile share it."""
        asked_at = time.monotonic()
        async with self._reading:
            if self._began_at > asked_at:
                return
            await asyncio.sleep(self._began_at + pause - time.monotonic())
            self._began_at = time.monotonic()
            try:
                async with asyncio.timeout(5):
                    keys = await self._select()
            except (psycopg.Error, OSError, TimeoutError) as error:
                _LOG.warning("write keys cannot be read: %s", str(error).strip() or type(error).__name__)
                if self._connection is not None:
                    await self._connection.close()
                    self._connection = None
            else:
                self._keys = {key.key: key for key in keys}
                self._read_at = time.monotonic()

    async def _select(self) -> list[WriteKey]:
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(
                self.dsn, autocommit=True, application_name="heap capture", connect_timeout=3
            )
        async with self._connection.cursor(row_factory=class_row(WriteKey)) as cursor:
            await cursor.execute(f"SELECT {_COLUMNS} FROM heap.write_key WHERE revoked_at IS NULL")
            return await cursor.fetchall()
