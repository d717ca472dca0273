"""Files as chunks of columns: CSV, Parquet and JSON lines, strictly by a contract."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from dataflow.sdk import (
    CodecError,
    Column,
    Decoded,
    NodeError,
    Schema,
    coerce_columns,
    coerce_records,
    columns_of,
    nearest,
)

FORMATS: Final = ("csv", "parquet", "jsonl")
CHUNK_RECORDS: Final = 4_096


@dataclass(frozen=True)
class Chunk:
    """Columns of `count` records; `skipped` records before or among them did not fit."""

    columns: Mapping[str, Column]
    count: int
    skipped: int


def read_chunks(path: Path, form: str, schema: Schema, on_error: str) -> Iterator[Chunk]:
    """The records of a file in order. Raises NodeError, when read, with the file and the line or record."""
    if not path.is_file():
        near = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise NodeError(f"no file '{path}'", hint=near)
    reader: Callable[[Path, Schema], Iterator[tuple[int, Decoded]]] = {
        "csv": _csv, "parquet": _parquet, "jsonl": _json_lines,
    }[form]  # fmt: skip
    return _judged(path, reader(path, schema), on_error)


def _judged(path: Path, parts: Iterator[tuple[int, Decoded]], on_error: str) -> Iterator[Chunk]:
    """Chunks of what fits; the first record that does not ends it all, unless they are skipped.

    A part comes with the number of its first record, from 1.
    """
    for first, decoded in parts:
        if decoded.failed and on_error == "stop":
            row, error = decoded.failed[0]
            raise NodeError(f"{path}: record {first + row:,}: {error}")
        yield Chunk(decoded.columns, len(decoded.good), len(decoded.failed))


def _require(path: Path, schema: Schema, present: Sequence[str]) -> None:
    for field in schema:
        if field.name not in present and not field.type.nullable:
            raise NodeError(f"{path} has no column '{field.name}'", hint=nearest(field.name, present))


def _csv(path: Path, schema: Schema) -> Iterator[tuple[int, Decoded]]:
    with path.open(newline="", encoding="utf-8-sig") as opened:
        reader = csv.reader(opened)
        first = 1
        try:
            header = next(reader, [])
            _require(path, schema, header)
            at = {name: header.index(name) for name in schema.names if name in header}
            while lines := list(islice(reader, CHUNK_RECORDS)):
                yield first, _csv_part(schema, lines, at, len(header))
                first += len(lines)
        except (csv.Error, UnicodeDecodeError) as error:
            raise NodeError(f"{path}: line {reader.line_num:,}: {error}") from error


def _csv_part(schema: Schema, lines: list[list[str]], at: Mapping[str, int], width: int) -> Decoded:
    short = {row: line for row, line in enumerate(lines) if len(line) != width}
    whole = [line for line in lines if len(line) == width] if short else lines
    cells: dict[str, list[Any]] = {
        name: [line[at[name]] for line in whole] if name in at else [None] * len(whole)
        for name in schema.names
    }
    decoded = coerce_columns(schema, cells, len(whole), form="csv")
    if not short:
        return decoded
    places = [row for row in range(len(lines)) if row not in short]
    failed = [(places[row], error) for row, error in decoded.failed]
    failed += [
        (row, CodecError(f"{len(line)} columns where the header has {width}", row=row))
        for row, line in short.items()
    ]
    good = np.array(places, dtype=np.intp)[decoded.good]
    return Decoded(decoded.columns, good, sorted(failed, key=lambda loss: loss[0]))


def _json_lines(path: Path, schema: Schema) -> Iterator[tuple[int, Decoded]]:
    with path.open(encoding="utf-8-sig") as opened:
        first = 1
        lines = (line for line in opened if not line.isspace())
        try:
            while part := list(islice(lines, CHUNK_RECORDS)):
                records = [_record(line) for line in part]
                yield first, coerce_records(schema, records, form="json", ignore_unknown=True)
                first += len(part)
        except UnicodeDecodeError as error:
            raise NodeError(f"{path}: after record {first:,}: {error}") from error


def _record(line: str) -> Any:
    """The record of a line; what is no JSON stays text, which is no record and fails as such."""
    try:
        return json.loads(line)
    except ValueError:
        return line.rstrip()


def _parquet(path: Path, schema: Schema) -> Iterator[tuple[int, Decoded]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as opened:
            present = opened.schema_arrow.names
            _require(path, schema, present)
            first = 1
            for batch in opened.iter_batches(
                CHUNK_RECORDS, columns=[n for n in schema.names if n in present]
            ):
                yield first, _parquet_part(schema, batch)
                first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise NodeError(f"{path}: {str(error).splitlines()[0]}") from error


def _parquet_part(schema: Schema, batch: Any) -> Decoded:
    """The columns of a batch; when one value does not fit, record by record."""
    count = batch.num_rows
    try:
        return Decoded(columns_of(schema, batch), np.arange(count), [])
    except CodecError as error:
        if count == 1:
            return Decoded({}, np.arange(0), [(0, error)])
    parts = [_parquet_part(schema, batch.slice(row, 1)) for row in range(count)]
    good = [row for row, part in enumerate(parts) if not part.failed]
    columns = (
        {n: np.concatenate([parts[row].columns[n] for row in good]) for n in schema.names} if good else {}
    )
    failed = [(row, part.failed[0][1]) for row, part in enumerate(parts) if part.failed]
    return Decoded(columns, np.array(good, dtype=np.intp), failed)
