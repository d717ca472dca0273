"""`sink.parquet`: write records to Parquet files in a folder."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting

from dataflow.sdk import (
    Batch,
    Column,
    ContractContext,
    ContractError,
    NodeContext,
    NodeError,
    Out,
    Schema,
    Settings,
    node,
    table_of,
)

EXAMPLE = """
kind: Topic
name: readings
fields: {sensor: string, value: float32}
---
kind: Pipeline
name: archive
inputs: {readings: readings}
nodes:
  store:
    use: sink.parquet
    from: readings
    with: {path: archive, rows_per_file: 100000, compression: zstd}
"""


class ParquetSink(Settings):
    """Where the files go and how big they get."""

    path: str = Setting(
        min_length=1, description="A folder, made if it is not there; relative to the pipeline's folder."
    )
    rows_per_file: int = Setting(default=100_000, ge=1, description="Most records of one file.")
    bytes_per_file: int = Setting(
        default=64 * 1024 * 1024,
        ge=1,
        description="A file is also written when so many bytes wait in memory (before compression).",
    )
    compression: Literal["zstd", "snappy", "lz4", "gzip", "none"] = Setting(
        default="zstd", description="Compression of the columns."
    )
    id_column: str = Setting(
        default="",
        description="Add the record's id under this name: a record written twice after a crash is then recognised.",
    )


@node("sink.parquet", settings=ParquetSink, outputs=(), example=EXAMPLE, pure=False)
class SinkParquet:
    """Write records to Parquet files.

    A file appears whole (written beside, synced, renamed) when `rows_per_file` is reached, and at the latest every
    `commit_every_ms`, before the records' offsets are committed. So nothing is lost; after a crash the records since
    the last commit are written again, into another file. Names sort by time and are unique across workers.
    Readers take ``*.parquet``; a file that a crash left half written begins with a dot.
    """

    commit_every_ms: ClassVar[int] = 5_000

    def __init__(self, settings: ParquetSink, context: NodeContext) -> None:
        self._settings = settings
        self._folder = context.folder / settings.path
        self._schema = _file_schema(settings, context.input)
        self._worker = secrets.token_hex(4)
        self._files = 0
        self._parts: list[dict[str, Column]] = []
        self._rows = 0
        self._bytes = 0

    @staticmethod
    def contract(settings: ParquetSink, context: ContractContext) -> dict[str, Schema]:
        if settings.id_column in context.input:
            raise ContractError(
                f"id_column: the input has a field '{settings.id_column}'",
                path=("with", "id_column"),
                hint="rename it",
            )
        return {}

    def open(self) -> None:
        """Make the folder. Raises NodeError where that cannot be."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NodeError(
                f"sink.parquet: cannot make the folder '{self._folder}': {error.strerror}"
            ) from error

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        """Take the batch in; write a file first where it would get too long, so that what cannot be written fails here."""
        del port
        columns = {name: batch[name] for name in batch.schema.names}
        if self._settings.id_column:
            ids: Column = np.empty(len(batch), dtype=object)
            ids[:] = batch.ids
            columns[self._settings.id_column] = ids
        size = sum(map(_bytes_of, columns.values()))
        limits = self._settings
        if self._rows and (
            self._rows + len(batch) > limits.rows_per_file or self._bytes + size > limits.bytes_per_file
        ):
            try:
                self.flush()
            except NodeError as error:
                out.fail(range(len(batch)), str(error), error="OSError", retryable=True)
                return
        self._parts.append(columns)
        self._rows += len(batch)
        self._bytes += size
        out.consume()

    def flush(self) -> None:
        """Write what was taken in: when it returns, all of it is on disk.

        Raises NodeError where that cannot be; what is not written stays in hand for the next call.
        """
        while self._rows:
            count = min(self._rows, self._settings.rows_per_file)
            columns = {
                name: np.concatenate([part[name] for part in self._parts]) if len(self._parts) > 1 else column
                for name, column in self._parts[0].items()
            }
            self._write({name: column[:count] for name, column in columns.items()})
            self._rows -= count
            self._parts = [{name: column[count:] for name, column in columns.items()}] if self._rows else []
        self._bytes = 0

    def _write(self, columns: dict[str, Column]) -> None:
        import pyarrow.parquet as pq

        name = f"{time.time_ns() // 1_000_000:013d}-{self._worker}-{self._files:06d}.parquet"
        self._files += 1
        hidden = self._folder / f".{name}.part"
        table = table_of(self._schema, columns)
        try:
            pq.write_table(table, hidden, compression=self._settings.compression)
            _sync(hidden)
            hidden.replace(self._folder / name)
            if os.name == "posix":
                _sync(self._folder)  # the name, too
        except OSError as error:
            raise NodeError(f"sink.parquet: cannot write in '{self._folder}': {error}") from error
        finally:
            with suppress(OSError):
                hidden.unlink(missing_ok=True)


def _file_schema(settings: ParquetSink, schema: Schema) -> Schema:
    return schema.merged(Schema.of(**{settings.id_column: "string"})) if settings.id_column else schema


def _bytes_of(column: Column) -> int:
    """Memory of a column; of objects a guess, but of the arrays among them what they take."""
    if column.dtype != object:
        return int(column.nbytes)
    return int(column.nbytes) + sum(_cell_bytes(cell) for cell in column)


def _cell_bytes(cell: Any) -> int:
    if isinstance(cell, np.ndarray):
        return int(cell.nbytes)
    return len(cell) if isinstance(cell, str | bytes | list | dict) else 16


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
