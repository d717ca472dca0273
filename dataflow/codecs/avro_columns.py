"""Avro binary of many records, one column at a time: numpy walks all records in step with a cursor for each.

An optimisation of the per-row path in `avro`, which stays the authority: a record that looks odd in any way is only
reported as doubtful here, and a contract with lists, records or free tensors is not handled at all. Runs of
neighbouring fields of fixed width (bool, float, fixed tensors with their constant length) are one structured dtype.
The encoding is the Avro specification's "Binary Encoding": zigzag varints of at most 10 bytes, little-endian floats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dataflow.codecs.arrays import cast_numbers
from dataflow.codecs.avro_schema import from_wire, is_avro_enum, little, to_wire
from dataflow.codecs.base import object_column, scalar_column
from dataflow.core.errors import CodecError
from dataflow.core.schema import FLOATS, INTEGERS, Column, Field, FieldType, Schema

# A step costs numpy's calls however few the rows: with fewer rows per step, one by one is faster. [measured: ten
# mixed fields, nine steps, break even at about 50 rows decoding and 12 encoding] Records of one width have no cursors,
# and pay from the first on.
ROWS_PER_STEP_DECODED: Final = 6
ROWS_PER_STEP_ENCODED: Final = 2
_MOST_VARINT_BYTES: Final = 10
_SHIFTS: Final = np.arange(0, 7 * _MOST_VARINT_BYTES, 7, dtype=np.uint64)
_ONE_BYTE: Final = tuple(bytes([number]) for number in range(128))
_NULL, _PRESENT = 0, 2  # zigzag of union index 0 and 1

Offsets = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
# A run of neighbouring fixed-width fields, or one field of another kind.
Step = tuple[Field, ...]


def steps_of(schema: Schema) -> list[Step] | None:
    """How to walk a record, or None where the contract has kinds that are not walked by column."""
    steps: list[Step] = []
    for declared in schema:
        field_type = declared.type
        if field_type.kind in ("list", "record") or field_type.has_free_dimension:
            return None
        if steps and _is_fixed(field_type) and _is_fixed(steps[-1][-1].type):
            steps[-1] = (*steps[-1], declared)
        else:
            steps.append((declared,))
    return steps or None


def is_flat(steps: Sequence[Step]) -> bool:
    """Whether every record has the same width: the contract is one run."""
    return len(steps) == 1 and _is_fixed(steps[0][0].type)


def _is_fixed(field_type: FieldType) -> bool:
    plain = bool(field_type.shape) or field_type.kind == "bool" or field_type.kind in FLOATS
    return plain and not field_type.nullable


def _run_dtype(run: Step) -> np.dtype[Any]:
    return _layout(tuple([(declared.type.kind, declared.type.shape) for declared in run]))


@lru_cache(maxsize=1024)
def _layout(kinds: tuple[tuple[str, tuple[int, ...]], ...]) -> np.dtype[Any]:
    """Fields by position: `p0` is a tensor's constant length prefix, `v0` the value."""
    members: list[Any] = []
    for index, (kind, shape) in enumerate(kinds):
        if shape:
            members.append((f"p{index}", "u1", (len(_prefix(kind, shape)),)))
        members.append((f"v{index}", _wire_dtype(kind, shape), shape))
    return np.dtype(members)


def _wire_dtype(kind: str, shape: tuple[int, ...]) -> np.dtype[Any]:
    """A bool is read as its byte, to see that it is 0 or 1; a scalar float16 travels as a float."""
    if kind == "bool":
        return np.dtype("u1")
    return little("float32" if kind == "float16" and not shape else kind)


@lru_cache(maxsize=1024)
def _prefix(kind: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The length that stands before a tensor's bytes. Shared: nobody writes into it."""
    made = np.frombuffer(pack_varints(np.array([little(kind).itemsize * math.prod(shape)]))[0], np.uint8)
    made.flags.writeable = False
    return made


# ---------------------------------------------------------------- decoding


class _Walk:
    """The joined records and, for each of them, where it ends and whether all has been well so far."""

    def __init__(self, values: Sequence[bytes]) -> None:
        sizes = np.fromiter(map(len, values), np.int64, len(values))
        # Padding: a cursor that ran past the last record still points at bytes.
        self.data = b"".join([*values, bytes(_MOST_VARINT_BYTES)])
        self.bytes = np.frombuffer(self.data, np.uint8)
        self.ends = np.cumsum(sizes)
        self.starts = self.ends - sizes
        self.sizes = sizes
        self.well = np.ones(len(values), dtype=bool)
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The bytes as a text of one character each: slices of it are right where they are ASCII."""
        if self._text is None:
            self._text = self.data.decode("latin-1")
        return self._text

    def stop(self, rows: Offsets, bad: Mask, cursor: Offsets) -> None:
        """Mark `rows[bad]` doubtful and keep their cursors inside the data."""
        if bad.any():
            self.well[rows[bad]] = False
            cursor[bad] = self.starts[rows[bad]]

    def varints(self, rows: Offsets, cursor: Offsets) -> tuple[npt.NDArray[np.int64], Offsets]:
        first = self.bytes[cursor]
        if not (first >= 0x80).any():
            number = first.astype(np.int64)
            moved = cursor + 1
        else:
            length = len(self.bytes) - _MOST_VARINT_BYTES + 1
            windows = np.ndarray((length, _MOST_VARINT_BYTES), np.uint8, self.data, strides=(1, 1))
            window = windows[cursor]
            ended = window < 0x80
            used = ended.argmax(axis=1)
            keep = np.arange(_MOST_VARINT_BYTES) <= used[:, None]
            wide = np.where(keep, window & 0x7F, 0).astype(np.uint64) << _SHIFTS
            number = np.bitwise_or.reduce(wide, axis=1).view(np.int64)
            moved = cursor + used + 1
            # No end within ten bytes, or more than 64 bits.
            self.stop(rows, ~ended.any(axis=1) | ((used == 9) & (window[:, 9] > 1)), moved)
        self.stop(rows, moved > self.ends[rows], moved)
        return ((number >> 1) & np.int64(2**63 - 1)) ^ -(number & 1), moved

    def spans(self, rows: Offsets, cursor: Offsets) -> tuple[Offsets, Offsets]:
        """Begin and end of the bytes behind a length."""
        lengths, begin = self.varints(rows, cursor)
        bad = (lengths < 0) | (lengths > self.ends[rows] - begin)
        end = begin + np.where(bad, 0, lengths)
        self.stop(rows, bad, end)
        return np.minimum(begin, end), end


def decode_columns(steps: Sequence[Step], values: Sequence[bytes]) -> tuple[dict[str, Column], Mask]:
    """Columns of all `values`, and which rows are well; the cells of the others mean nothing."""
    if is_flat(steps):
        size = _run_dtype(steps[0]).itemsize
        if set(map(len, values)) == {size}:
            well = np.ones(len(values), dtype=bool)
            return _run_columns(steps[0], np.frombuffer(b"".join(values), _run_dtype(steps[0])), well), well
    walk = _Walk(values)
    rows = np.arange(len(values))
    cursor = walk.starts.copy()
    # An empty record holds no byte to stand on.
    walk.well &= walk.sizes > 0
    columns: dict[str, Column] = {}
    for step in steps:
        if _is_fixed(step[0].type):
            cursor = _read_run(walk, step, rows, cursor, columns)
        else:
            columns[step[0].name], cursor = _read_field(walk, step[0].type, rows, cursor)
    walk.well &= cursor == walk.ends
    return columns, walk.well


def _read_run(walk: _Walk, run: Step, rows: Offsets, cursor: Offsets, columns: dict[str, Column]) -> Offsets:
    dtype = _run_dtype(run)
    end = cursor + dtype.itemsize
    bad = end > walk.ends
    if bad.any() or len(walk.data) - _MOST_VARINT_BYTES != dtype.itemsize * len(rows):
        blank = bytes(dtype.itemsize)
        data, well = walk.data, (~bad).tolist()
        pieces = zip(cursor.tolist(), end.tolist(), well, strict=True)
        joined = b"".join([data[a:b] if ok else blank for a, b, ok in pieces])
        walk.stop(rows, bad, end)
        records = np.frombuffer(joined, dtype)
    else:
        records = np.frombuffer(walk.data, dtype, len(rows))
    well_rows = np.ones(len(rows), dtype=bool)
    columns |= _run_columns(run, records, well_rows)
    walk.well[rows] &= well_rows
    return end


def _run_columns(run: Step, records: npt.NDArray[Any], well: Mask) -> dict[str, Column]:
    """The columns of a run whose records lie in `records`; `well` is cleared where one of them is odd."""
    columns: dict[str, Column] = {}
    for index, declared in enumerate(run):
        field_type = declared.type
        if field_type.shape:
            expected = _prefix(field_type.kind, field_type.shape)
            well &= (records[f"p{index}"] == expected).all(axis=1)
        column = np.ascontiguousarray(records[f"v{index}"])
        if field_type.kind == "bool":
            well &= (column <= 1).reshape(len(records), math.prod(field_type.shape)).all(axis=1)
            column = (column != 0) if column.size == 0 or column.max() > 1 else column.view(bool)
        if column.dtype != field_type.kind:  # float16 from a float
            column, overflown = cast_numbers(column, field_type.kind)
            well &= ~overflown
        columns[declared.name] = column
    return columns


def _read_field(walk: _Walk, field_type: FieldType, rows: Offsets, cursor: Offsets) -> tuple[Column, Offsets]:
    if not field_type.nullable:
        return _read_present(walk, field_type, rows, cursor)
    branch = walk.bytes[cursor]
    moved = cursor + 1
    walk.stop(rows, (moved > walk.ends[rows]) | ((branch != _NULL) & (branch != _PRESENT)), moved)
    present = np.flatnonzero(branch == _PRESENT)
    inner, moved_present = _read_present(walk, field_type, rows[present], moved[present])
    moved[present] = moved_present
    if field_type.column_dtype.kind == "M":
        column: Column = np.full(len(rows), np.datetime64("NaT"), dtype=field_type.column_dtype)
        column[present] = inner
        return column, moved
    column = np.empty(len(rows), dtype=object)
    if field_type.shape:
        for index, cell in zip(present.tolist(), inner, strict=True):
            column[index] = cell
    else:
        column[present] = inner.tolist()
    return column, moved


def _read_present(
    walk: _Walk, field_type: FieldType, rows: Offsets, cursor: Offsets
) -> tuple[Column, Offsets]:
    """One field that is not null, of the records `rows`."""
    kind = field_type.kind
    if field_type.shape or kind == "bool" or kind in FLOATS:
        return _read_fixed(walk, field_type, rows, cursor)
    if kind in ("timestamp", "date"):
        numbers, moved = walk.varints(rows, cursor)
        return numbers.view("M8[us]" if kind == "timestamp" else "M8[D]"), moved
    if kind in INTEGERS and kind != "uint64":
        numbers, moved = walk.varints(rows, cursor)
        limits = np.iinfo(kind)
        walk.well[rows] &= (numbers >= limits.min) & (numbers <= limits.max)
        return numbers.astype(kind), moved
    if kind == "enum" and is_avro_enum(field_type.symbols):
        numbers, moved = walk.varints(rows, cursor)
        bad = (numbers < 0) | (numbers >= len(field_type.symbols))
        walk.stop(rows, bad, moved)
        return scalar_column(field_type.symbols)[np.where(bad, 0, numbers)], moved
    begin, end = walk.spans(rows, cursor)
    if kind in ("string", "enum"):
        texts = _texts(walk, rows, begin, end)
        if kind == "enum":
            known = frozenset(field_type.symbols)
            walk.well[rows] &= np.fromiter((text in known for text in texts), bool, len(texts))
        return scalar_column(texts), end
    data = walk.data
    cells = [data[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)]
    return _converted(walk, field_type, rows, cells), end


def _read_fixed(walk: _Walk, field_type: FieldType, rows: Offsets, cursor: Offsets) -> tuple[Column, Offsets]:
    """A nullable field of fixed width, where it is present."""
    run = (Field("", FieldType(field_type.kind, field_type.shape)),)
    size = _run_dtype(run).itemsize
    bad = cursor + size > walk.ends[rows]
    data, blank = walk.data, bytes(size)
    pieces = [
        blank if no else data[a : a + size] for a, no in zip(cursor.tolist(), bad.tolist(), strict=True)
    ]
    inner = _Walk(pieces)
    columns: dict[str, Column] = {}
    _read_run(inner, run, np.arange(len(pieces)), inner.starts.copy(), columns)
    walk.well[rows] &= inner.well
    moved = cursor + size
    walk.stop(rows, bad, moved)
    return columns[""], moved


def _texts(walk: _Walk, rows: Offsets, begin: Offsets, end: Offsets) -> list[str]:
    pairs = list(zip(begin.tolist(), end.tolist(), strict=True))
    text = walk.text
    texts = [text[a:b] for a, b in pairs]
    if "".join(texts).isascii():
        return texts
    for index, (a, b) in enumerate(pairs):
        try:
            texts[index] = walk.data[a:b].decode()
        except UnicodeDecodeError:
            walk.well[rows[index]] = False
    return texts


def _converted(walk: _Walk, field_type: FieldType, rows: Offsets, cells: list[Any]) -> Column:
    """Cells of bytes, decimal and uint64."""
    convert = from_wire(FieldType(field_type.kind, precision=field_type.precision, scale=field_type.scale))
    if convert is not None:
        for index, cell in enumerate(cells):
            try:
                cells[index] = convert(cell)
            except CodecError:
                walk.well[rows[index]] = False
                cells[index] = convert(b"\x00")
    if field_type.kind == "uint64":
        return np.array(cells, dtype=np.uint64)
    return object_column(cells)


# ---------------------------------------------------------------- encoding


def pack_varints(numbers: npt.NDArray[np.integer[Any]]) -> list[bytes]:
    """Zigzag varints of int64 numbers."""
    wide = numbers.astype(np.int64)
    zigzag = ((wide << 1) ^ (wide >> 63)).view(np.uint64)
    most = int(zigzag.max()) if len(zigzag) else 0
    if most < 0x80:
        return [_ONE_BYTE[number] for number in zigzag.tolist()]
    width = (most.bit_length() + 6) // 7
    parts = zigzag[:, None] >> _SHIFTS[:width]
    lengths = np.maximum((parts != 0).sum(axis=1), 1)
    packed = (parts & np.uint64(0x7F)).astype(np.uint8)
    packed[np.arange(width) < (lengths - 1)[:, None]] |= 0x80
    data = packed.tobytes()
    ends = np.arange(0, len(data), width) + lengths
    return [data[a:b] for a, b in zip(range(0, len(data), width), ends.tolist(), strict=True)]


def encode_columns(steps: Sequence[Step], columns: Mapping[str, Column], count: int) -> list[bytes]:
    """The records of conforming columns. Raises UnicodeEncodeError for a text that UTF-8 cannot say."""
    parts: list[Sequence[bytes]] = []
    for step in steps:
        if _is_fixed(step[0].type):
            parts.append(_write_run(step, [columns[f.name] for f in step], count))
        else:
            parts += _write_field(step[0].type, columns[step[0].name])
    if len(parts) == 1:
        return list(parts[0])
    return list(map(b"".join, zip(*parts, strict=True)))


def _write_run(run: Step, columns: Sequence[Column], count: int) -> list[bytes]:
    dtype = _run_dtype(run)
    records = np.empty(count, dtype)
    for index, (declared, column) in enumerate(zip(run, columns, strict=True)):
        if declared.type.shape:
            records[f"p{index}"] = _prefix(declared.type.kind, declared.type.shape)
        records[f"v{index}"] = column
    data, size = records.tobytes(), dtype.itemsize
    return [data[start : start + size] for start in range(0, len(data), size)]


def _write_field(field_type: FieldType, column: Column) -> list[Sequence[bytes]]:
    """The pieces of one field, each a list with a value for each row."""
    if not field_type.nullable:
        return _write_present(field_type, column)
    if column.dtype.kind == "M":
        absent = np.isnat(column)
    else:
        absent = np.fromiter((cell is None for cell in column.tolist()), bool, len(column))
    present = np.flatnonzero(~absent)
    if len(present) == 0:
        return [[b"\x00"] * len(column)]
    inner = _write_present(field_type, column[present])
    written = [b"\x00"] * len(column)
    for index, pieces in zip(present.tolist(), zip(*inner, strict=True), strict=True):
        written[index] = b"\x02" + b"".join(pieces)
    return [written]


def _write_present(field_type: FieldType, column: Column) -> list[Sequence[bytes]]:
    kind = field_type.kind
    if field_type.shape or kind == "bool" or kind in FLOATS:
        run = (Field("", FieldType(kind, field_type.shape)),)
        cells = column.tolist() if column.dtype.kind == "O" else column
        return [_write_run(run, [np.array(cells, dtype=kind)], len(column))]
    if kind in ("timestamp", "date") or (kind in INTEGERS and kind != "uint64"):
        return [pack_varints(column.astype(np.int64))]
    if kind == "enum" and is_avro_enum(field_type.symbols):
        numbers = pack_varints(np.arange(len(field_type.symbols)))
        table = dict(zip(field_type.symbols, numbers, strict=True))
        return [[table[symbol] for symbol in column.tolist()]]
    if kind in ("string", "enum"):
        bodies = [text.encode() for text in column.tolist()]
    else:
        convert = to_wire(FieldType(kind, precision=field_type.precision, scale=field_type.scale))
        cells = column.tolist()
        bodies = cells if convert is None else [convert(cell) for cell in cells]
    return [pack_varints(np.fromiter(map(len, bodies), np.int64, len(bodies))), bodies]
