"""Records in files and pipes: CSV, Parquet and JSON lines to columns of a contract and back, row by row accounted for."""

from __future__ import annotations

import csv
import io
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from dataflow.codecs.base import Decoded
from dataflow.codecs.tables import arrow_schema, columns_of, table_of
from dataflow.codecs.values import coerce_columns, coerce_records, to_jsonable
from dataflow.core.errors import CodecError, SpecError, nearest
from dataflow.core.schema import Column, Schema

FORMATS: Final = ("csv", "parquet", "jsonl")
STANDARD_STREAM: Final = "-"
_SUFFIXES: Final = {
    ".csv": "csv", ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
}  # fmt: skip
BATCH_RECORDS: Final = 1_000
_CHUNK_BYTES: Final = 256 * 1024


@dataclass(frozen=True)
class BadRow:
    """A row that does not fit the contract. `place` is file:line, or file:row for Parquet (from 1)."""

    place: str
    error: CodecError

    def __str__(self) -> str:
        return f"{self.place}: {self.error}"


@dataclass(frozen=True)
class FileBatch:
    """Columns of `count` good rows; `numbers` are their rows in the file, from 1, header not counted."""

    columns: dict[str, Column]
    count: int
    numbers: Sequence[int]
    failed: Sequence[BadRow] = ()


@dataclass
class Ignored:
    """Columns of a file that the contract lacks: told, not read."""

    names: list[str] = field(default_factory=list)


def format_of(path: str, given: str | None = None) -> str:
    """The format asked for, else what the name says; JSON lines on a standard stream. Raises SpecError."""
    if given is not None:
        if given not in FORMATS:
            raise SpecError(f"unknown format '{given}'", hint=nearest(given, FORMATS))
        return given
    if path == STANDARD_STREAM:
        return "jsonl"
    found = _SUFFIXES.get(Path(path).suffix.lower())
    if found is None:
        raise SpecError(f"'{path}': the name does not say the format", hint="--format csv, parquet or jsonl")
    return found


def read_file(
    path: str, schema: Schema, form: str | None = None, *, ignored: Ignored | None = None
) -> Iterator[FileBatch]:
    """The rows of a file, or of standard input ("-"), in batches; from a pipe as they come.

    Unknown columns of CSV and Parquet are noted in `ignored`; an unknown field of a JSON record fails its row.
    Raises SpecError for a file that cannot be read at all or lacks a column that the contract needs.
    """
    chosen = format_of(path, form)
    readers = {"csv": _read_csv, "parquet": _read_parquet, "jsonl": _read_json_lines}
    name = "stdin" if path == STANDARD_STREAM else path
    noted = ignored if ignored is not None else Ignored()
    with ExitStack() as stack:
        if path == STANDARD_STREAM:
            stream: BinaryIO = sys.stdin.buffer
        else:
            try:
                stream = stack.enter_context(Path(path).open("rb"))
            except OSError as error:
                near = ""
                if Path(path).parent.is_dir() and not Path(path).exists():
                    near = nearest(Path(path).name, (p.name for p in Path(path).parent.iterdir()))
                raise SpecError(f"cannot read '{path}': {error.strerror}", hint=near) from error
        yield from readers[chosen](name, stream, schema, noted)


class _Lines:
    """Lines of a stream with what is at hand known: from a pipe, nobody waits for a batch to fill."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._ready: deque[bytes] = deque()
        self._rest = b""
        self._over = False
        self.number = 0  # of the last line given, from 1

    @property
    def dry(self) -> bool:
        """Whether the next line has to be waited for."""
        return not self._ready

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._ready:
            if self._over:
                raise StopIteration
            self._fill()
        self.number += 1
        line = self._ready.popleft()
        return line.removeprefix(b"\xef\xbb\xbf") if self.number == 1 else line

    def _fill(self) -> None:
        read = getattr(self._stream, "read1", self._stream.read)
        chunk: bytes = read(_CHUNK_BYTES)
        if not chunk:
            self._over = True
            if self._rest:
                self._ready.append(self._rest)
            return
        lines = (
            (self._rest + chunk).splitlines(keepends=True) if self._rest else chunk.splitlines(keepends=True)
        )
        # A lone "\r" at the end may be half of a line end.
        self._rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        self._ready.extend(lines)


def _read_json_lines(name: str, stream: BinaryIO, schema: Schema, noted: Ignored) -> Iterator[FileBatch]:
    del noted
    lines = _Lines(stream)
    records: list[Any] = []
    places: list[int] = []
    broken: list[BadRow] = []
    row = 0
    numbers: list[int] = []
    for line in lines:
        if line.strip():
            row += 1
            try:
                records.append(orjson.loads(line))
                places.append(lines.number)
                numbers.append(row)
            except orjson.JSONDecodeError as error:
                broken.append(
                    BadRow(f"{name}:{lines.number}", CodecError(f"not JSON: {error.msg} at byte {error.pos}"))
                )
        if (records or broken) and (lines.dry or len(records) >= BATCH_RECORDS):
            yield _batch(name, coerce_records(schema, records), places, numbers, broken)
            records, places, numbers, broken = [], [], [], []
    if records or broken:
        yield _batch(name, coerce_records(schema, records), places, numbers, broken)


def _batch(
    name: str, decoded: Decoded, places: Sequence[int], numbers: Sequence[int], broken: Sequence[BadRow] = ()
) -> FileBatch:
    good = decoded.good.tolist()
    failed = [*broken, *(BadRow(f"{name}:{places[i]}", e) for i, e in decoded.failed)]
    failed.sort(key=lambda bad: int(bad.place.rpartition(":")[2]))
    return FileBatch(decoded.columns, len(good), [numbers[i] for i in good], failed)


def _read_csv(name: str, stream: BinaryIO, schema: Schema, noted: Ignored) -> Iterator[FileBatch]:
    lines = _Lines(stream)
    reader = csv.reader(_text(name, lines), strict=True)
    header: list[str] | None = None
    row = 0
    rows: list[list[str]] = []
    places: list[int] = []
    numbers: list[int] = []
    broken: list[BadRow] = []
    try:
        while True:
            place = lines.number + 1
            cells = next(reader, None)
            if cells is not None and header is None:
                header = [c.strip() for c in cells]
                _check_header(name, header, schema, noted)
                continue
            if cells:  # an empty line is no row
                assert header is not None, "the first row is the header"
                row += 1
                if len(cells) == len(header):
                    rows.append(cells)
                    places.append(place)
                    numbers.append(row)
                else:
                    error = CodecError(f"{len(cells)} columns where the header has {len(header)}")
                    broken.append(BadRow(f"{name}:{place}", error))
            if (rows or broken) and (cells is None or lines.dry or len(rows) >= BATCH_RECORDS):
                yield _batch(name, _csv_columns(schema, header or [], rows), places, numbers, broken)
                rows, places, numbers, broken = [], [], [], []
            if cells is None:
                break
    except csv.Error as error:
        raise SpecError(
            f"{name}:{lines.number}: {error}", hint="is it CSV with commas and double quotes?"
        ) from error
    if header is None:
        raise SpecError(f"{name}: no header: the first line names the columns", hint=", ".join(schema.names))


def _text(name: str, lines: _Lines) -> Iterator[str]:
    for line in lines:
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise SpecError(f"{name}:{lines.number}: not UTF-8 text (byte {error.start + 1})") from error


def _check_header(name: str, header: Sequence[str], schema: Schema, noted: Ignored) -> None:
    for declared in schema:
        if declared.name not in header and not declared.type.nullable:
            raise SpecError(f"{name} has no column '{declared.name}'", hint=nearest(declared.name, header))
    noted.names += [n for n in header if n not in schema]


def _csv_columns(schema: Schema, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Decoded:
    at = {n: header.index(n) for n in schema.names if n in header}
    cells: dict[str, list[Any]] = {
        n: [row[at[n]] for row in rows] if n in at else [None] * len(rows) for n in schema.names
    }
    return coerce_columns(schema, cells, len(rows), form="csv")


def _read_parquet(name: str, stream: BinaryIO, schema: Schema, noted: Ignored) -> Iterator[FileBatch]:
    if not stream.seekable():
        stream = io.BytesIO(stream.read())
    try:
        with pq.ParquetFile(stream) as opened:
            present = opened.schema_arrow.names
            _check_header(name, present, schema, noted)
            first = 1
            for part in opened.iter_batches(BATCH_RECORDS, columns=[n for n in schema.names if n in present]):
                decoded = _parquet_columns(schema, part)
                places = range(first, first + part.num_rows)
                yield _batch(name, decoded, places, places)
                first += part.num_rows
    except (pa.ArrowException, OSError) as error:
        raise SpecError(f"{name}: {str(error).splitlines()[0]}") from error


def _parquet_columns(schema: Schema, part: pa.RecordBatch) -> Decoded:
    """The columns of a batch; where a value does not fit, row by row, so that only its row fails."""
    try:
        return Decoded(columns_of(schema, part), np.arange(part.num_rows))
    except CodecError as error:
        if part.num_rows == 1:
            return Decoded(columns_of(schema, part.slice(0, 0)), np.arange(0), [(0, error)])
    middle = part.num_rows // 2
    left, right = (
        _parquet_columns(schema, part.slice(0, middle)),
        _parquet_columns(schema, part.slice(middle)),
    )
    columns = {n: np.concatenate([left.columns[n], right.columns[n]]) for n in schema.names}
    failed = [*left.failed, *((row + middle, error) for row, error in right.failed)]
    return Decoded(columns, np.concatenate([left.good, right.good + middle]), failed)


class FileWriter:
    """Writes columns of one schema to a file, or as text to standard output ("-"). A context manager.

    Raises SpecError for a place that cannot be written, and for Parquet on standard output.
    """

    def __init__(self, path: str, schema: Schema, form: str | None = None) -> None:
        self.form = format_of(path, form)
        self._schema = schema
        self._stack = ExitStack()
        self.rows = 0
        try:
            if path == STANDARD_STREAM:
                if self.form == "parquet":
                    raise SpecError(
                        "Parquet goes to a file, not to standard output", hint="--format jsonl or csv"
                    )
                self._stream: BinaryIO = sys.stdout.buffer
            else:
                self._stream = self._stack.enter_context(Path(path).open("wb"))  # noqa: SIM115  (closed by the stack)
        except OSError as error:
            raise SpecError(f"cannot write '{path}': {error.strerror}") from error
        if self.form == "parquet":
            self._parquet = self._stack.enter_context(pq.ParquetWriter(self._stream, arrow_schema(schema)))
        elif self.form == "csv":
            self._stream.write(_csv_text([schema.names]))

    def write(self, columns: Mapping[str, Column], count: int) -> None:
        """Rows of columns that meet the schema."""
        self.rows += count
        if self.form == "parquet":
            if count:
                self._parquet.write_table(table_of(self._schema, columns))
            return
        records = to_jsonable(self._schema, columns, count)
        if self.form == "csv":
            self._stream.write(_csv_text([[_cell(v) for v in r.values()] for r in records]))
        else:
            self._stream.write(b"".join(orjson.dumps(r) + b"\n" for r in records))
        self._stream.flush()

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _csv_text(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    """A JSON value as a CSV cell, as `read_file` takes it back: null is empty, what is nested is JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
