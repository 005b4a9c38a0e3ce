"""`heap import`: events from CSV, TSV, NDJSON and Parquet files, read as a stream.

A row that cannot be an event is written to a file with its line number and reason, and the import goes on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from zoneinfo import ZoneInfo

from heap_extension.load import LOADED_COLUMNS, LoadedEvent
from heap_extension.user_ids import hash_bigint
from heap_extension.values import (
    NUMBER,
    RefusedValueError,
    id_number,
    stored_json,
    stored_text,
    time_instant,
    user_number,
)

_Rows = Generator[tuple[int, Mapping[str, Any] | None, list[str]], None, None]
"""Line number, fields by name, and the row as written; for a row that is none, no fields, and the reason before it."""

__all__ = ["FileReader", "ImportMapping", "ImportRefusedError", "Rejections"]


class ImportRefusedError(Exception):
    """The file or the mapping cannot be used at all; the message says why."""


class _RejectedRowError(Exception):
    """One row cannot be an event."""


@dataclass(frozen=True)
class ImportMapping:
    """Which columns of the file are what.

    Attributes:
        user, time: columns of the user id and the time (ISO 8601, or a number since 1970).
        type: column of the event type; None takes `fixed_type` for every row.
        event_id, session_id: columns of ids, or None to have them made.
        columns: column of the file -> column of an event. Columns of the same name map by themselves, the rest become
            properties.
        text: columns that stay text even where they look like numbers.
        zone: the zone of times without an offset.
    """

    user: str
    time: str
    type: str | None = None
    fixed_type: str = "pageview"
    event_id: str | None = None
    session_id: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    text: frozenset[str] = frozenset()
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))

    def check(self, found: list[str]) -> None:
        """Raises ImportRefusedError: the file lacks a column, or an event does."""
        wanted = [self.user, self.time, self.type, self.event_id, self.session_id, *self.columns]
        for name in wanted:
            if name is not None and name not in found:
                raise ImportRefusedError(f"the file has no column {name!r}; it has {', '.join(found)}")
        for name in self.columns.values():
            if name not in LOADED_COLUMNS:
                raise ImportRefusedError(f"{name!r} is no column to map to; those are {', '.join(LOADED_COLUMNS)}")


class Rejections:
    """The rows that were refused: counted, and written to `path` once there is one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file: TextIO | None = None

    def add(self, line: int, reason: str, row: str) -> None:
        """Keeps one row. Its text is shortened to 1,000 characters."""
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace")
            self._file.write("line\treason\trow\n")
        shown = row[:1000].replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
        self._file.write(f"{line}\t{reason}\t{shown}\n")
        self.count += 1

    def close(self) -> None:
        """Ends the file."""
        if self._file is not None:
            self._file.close()


class FileReader:
    """The events of one file.

    Args:
        path: its ending says what it is: .csv, .tsv, .ndjson, .jsonl or .parquet.
        mapping: what its columns mean.
        rejections: where refused rows go.
        progress: called now and then with the number of bytes (of Parquet: rows) read so far.
    """

    def __init__(
        self, path: Path, mapping: ImportMapping, rejections: Rejections, progress: Callable[[int], None]
    ) -> None:
        self.path = path
        self.mapping = mapping
        self.rejections = rejections
        self.progress = progress
        special = (mapping.user, mapping.time, mapping.type, mapping.event_id, mapping.session_id)
        self._special = frozenset(name for name in special if name is not None)
        self._texts = self._special | mapping.text | set(mapping.columns) | set(LOADED_COLUMNS)

    def events(self) -> Iterator[LoadedEvent]:
        """Every row that can be an event, in the order of the file.

        Raises:
            ImportRefusedError: not a file of a known kind, or one without the mapped columns.
        """
        with closing(self._rows()) as rows:
            for line, row, written in rows:
                try:
                    if row is None:
                        raise _RejectedRowError(written[0])
                    yield self._event(row, written)
                except (_RejectedRowError, RefusedValueError) as rejected:
                    self.rejections.add(line, str(rejected), written[-1] if row is None else "\t".join(written))

    def _rows(self) -> _Rows:
        match self.path.suffix.lower():
            case ".csv":
                return self._separated(",")
            case ".tsv" | ".tab":
                return self._separated("\t")
            case ".ndjson" | ".jsonl" | ".json":
                return self._ndjson()
            case ".parquet":
                return self._parquet()
        raise ImportRefusedError(f"{self.path.name}: the ending should be .csv, .tsv, .ndjson, .jsonl or .parquet")

    def _separated(self, delimiter: str) -> _Rows:
        # Bytes that are no UTF-8 come in as escapes, so that one bad row cannot end the import.
        with self.path.open(encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
            quoting: Any = {"quoting": csv.QUOTE_NONE} if delimiter == "\t" else {}
            csv.field_size_limit(16 * 1024 * 1024)
            reader = csv.reader(self._counted(file), delimiter=delimiter, strict=False, **quoting)
            header = next(reader, [])
            self.mapping.check(header)
            while True:
                try:
                    values = next(reader, None)
                except csv.Error as error:
                    yield reader.line_num, None, [str(error)]
                    continue
                if values is None:
                    return
                if not values:
                    continue
                if len(values) != len(header):
                    reason = f"{len(values)} fields instead of {len(header)}"
                    yield reader.line_num, None, [reason, delimiter.join(values)]
                    continue
                typed = {name: self._typed(name, value) for name, value in zip(header, values, strict=True)}
                yield reader.line_num, typed, values

    def _counted(self, file: TextIO) -> Iterator[str]:
        read = 0
        for number, line in enumerate(file):
            read += len(line)
            if number % 5_000 == 0:
                self.progress(read)
            yield line

    def _typed(self, name: str, value: str) -> Any:
        """A field of a text file: null when empty; a property is a number where JSON would write it so."""
        if value == "":
            return None
        if name not in self._texts and NUMBER.fullmatch(value):
            return float(value) if "." in value else int(value)
        return value

    def _ndjson(self) -> _Rows:
        with self.path.open(encoding="utf-8-sig", errors="backslashreplace") as file:
            for line, text in enumerate(self._counted(file), start=1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except (ValueError, RecursionError) as error:
                    yield line, None, [f"not JSON: {str(error)[:200]}", text.rstrip("\n")]
                    continue
                if not isinstance(row, dict):
                    yield line, None, ["not a JSON object", text.rstrip("\n")]
                    continue
                yield line, row, [text.rstrip("\n")]

    def _parquet(self) -> _Rows:
        try:
            from pyarrow import parquet
        except ImportError:
            raise ImportRefusedError("Parquet needs pyarrow: pip install 'heap-analytics[parquet]'") from None
        with parquet.ParquetFile(self.path) as file:
            self.mapping.check(file.schema_arrow.names)
            line = 0
            for batch in file.iter_batches(batch_size=10_000):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row, [str(value) for value in row.values()]
                self.progress(line)

    def _event(self, row: Mapping[str, Any], written: list[str]) -> LoadedEvent:
        mapping = self.mapping
        user, identity = user_number(row.get(mapping.user))
        time = time_instant(row.get(mapping.time), mapping.zone)
        event_type = mapping.fixed_type if mapping.type is None else stored_text(row.get(mapping.type))
        if not event_type:
            raise _RejectedRowError("no event type")
        columns: dict[str, str | None] = {}
        properties: dict[str, Any] = {}
        for name, value in row.items():
            if name in self._special or value is None:
                continue
            target = mapping.columns.get(name, name if name in LOADED_COLUMNS else None)
            if target is not None:
                columns[target] = stored_text(value)
            elif name == "properties" and isinstance(value, dict):
                properties |= {key: stored_json(inner) for key, inner in value.items()}
            else:
                properties[name] = stored_json(value)
        return LoadedEvent(
            user,
            identity,
            time,
            id_number(row.get(mapping.event_id), "event") if mapping.event_id else None,
            id_number(row.get(mapping.session_id), "session") if mapping.session_id else None,
            event_type,
            tuple(columns.get(name) for name in LOADED_COLUMNS),
            properties,
            hash_bigint("\x1f".join(written)),
        )
