"""The Avro codec: schemaless Avro binary, one datum per record, readable by any Avro library with the `.avsc`.

Rows go through fastavro, columns through numpy: a cell is never a numpy scalar. Bytes left over behind a datum are
an error, so that a wrong schema does not pass by accident.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Final

import fastavro
import numpy as np

from dataflow.codecs.avro_columns import (
    ROWS_PER_STEP_DECODED,
    ROWS_PER_STEP_ENCODED,
    decode_columns,
    encode_columns,
    is_flat,
    steps_of,
)
from dataflow.codecs.avro_schema import avro_schema, from_wire, little, to_wire
from dataflow.codecs.base import (
    Decoded,
    EncodedRows,
    RowErrors,
    good_rows,
    no_value,
    object_column,
    row_error,
    scalar_column,
    sorted_failures,
)  # fmt: skip
from dataflow.codecs.compatibility import unreadable
from dataflow.codecs.converters import shown
from dataflow.codecs.values import conform
from dataflow.core.errors import CodecError, ContractError
from dataflow.core.schema import TENSOR_KINDS, Column, FieldType, Schema, column_of, empty_column

# Longest excerpt of bytes in a message.
_SHOWN_BYTES: Final = 24


class AvroCodec:
    name = "avro"

    def __init__(
        self, schema: Schema, fingerprint: bytes, record_name: str = "Record", writer: Schema | None = None
    ) -> None:
        self.schema = schema
        self.fingerprint = fingerprint
        self._reader_schema = fastavro.parse_schema(avro_schema(schema, record_name, bare=True))
        same = writer is None or writer == schema
        if writer is not None and not same:
            for field, why, allowed in unreadable(writer, schema, "avro"):
                raise ContractError(f"field '{field}': {why}", hint=f"allowed: {allowed}")
        self._writer_schema = (
            self._reader_schema
            if same or writer is None
            else fastavro.parse_schema(avro_schema(writer, record_name, bare=True))
        )
        self._resolve = None if same else self._reader_schema
        self._steps = steps_of(schema)
        steps = 0 if self._steps is None or is_flat(self._steps) else len(self._steps)
        self._fewest_decoded = ROWS_PER_STEP_DECODED * steps
        self._fewest_encoded = ROWS_PER_STEP_ENCODED * steps

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        if self._steps is None or self._resolve is not None or len(values) < self._fewest_decoded:
            return self.decode_rows(values)
        columns, well = decode_columns(self._steps, [value or b"" for value in values])
        if well.all():
            return Decoded(columns, np.arange(len(values)))
        # Rows are the authority: what looked odd by column may still be right, and else has its message there.
        doubtful = np.flatnonzero(~well)
        second = self.decode_rows([values[row] for row in doubtful.tolist()])
        sound = np.flatnonzero(well)
        good = np.concatenate([sound, doubtful[second.good]])
        order = np.argsort(good)
        merged = {n: np.concatenate([c[sound], second.columns[n]])[order] for n, c in columns.items()}
        failed = []
        for index, error in second.failed:
            row = int(doubtful[index])
            failed.append((row, CodecError(error.message, row=row, hint=error.hint)))
        return Decoded(merged, good[order], failed)

    def decode_rows(self, values: Sequence[bytes | None]) -> Decoded:
        """As `decode`, record by record through fastavro."""
        errors: RowErrors = {}
        rows: list[dict[str, Any]] = []
        for row, value in enumerate(values):
            try:
                rows.append(self._read(value))
            except CodecError as error:
                errors[row] = CodecError(error.message, row=row, hint=error.hint)
        good = good_rows(len(values), errors)
        columns: dict[str, Column] = {}
        bad: RowErrors = {}
        for declared in self.schema:
            name = declared.name
            column, failed = column_from_wire(declared.type, [r[name] for r in rows])
            columns[name] = column
            for row, cause in failed.items():
                bad.setdefault(row, row_error(int(good[row]), name, cause))
        if bad:
            kept = good_rows(len(rows), bad)
            columns = {
                f.name: column_from_wire(f.type, [rows[i][f.name] for i in kept.tolist()])[0]
                for f in self.schema
            }
            errors |= {int(good[row]): cause for row, cause in bad.items()}
            good = good[kept]
        return Decoded(columns, good, sorted_failures(errors))

    def _read(self, value: bytes | None) -> dict[str, Any]:
        """One datum. Raises CodecError saying what is wrong with the bytes."""
        if value is None:
            raise no_value(0)
        stream = BytesIO(value)
        try:
            record: dict[str, Any] = fastavro.schemaless_reader(stream, self._writer_schema, self._resolve)
        except EOFError:
            raise _not_avro(value, "they end too early") from None
        except Exception as error:  # noqa: BLE001 - hostile bytes raise anything, from EOFError to MemoryError
            raise _not_avro(value, str(error) or type(error).__name__) from None
        if stream.tell() != len(value):
            raise _not_avro(value, f"{len(value) - stream.tell()} bytes are left over")
        return record

    def encode(self, columns: Mapping[str, Column], count: int) -> EncodedRows:
        checked = conform(self.schema, columns, count)
        if self._steps is None or len(checked.good) < self._fewest_encoded:
            return self.encode_rows(checked, count)
        try:
            written = encode_columns(self._steps, checked.columns, len(checked.good))
        except UnicodeEncodeError:
            return self.encode_rows(checked, count)
        if len(written) == count:
            return EncodedRows([*written])
        values: list[bytes | None] = [None] * count
        for row, value in zip(checked.good.tolist(), written, strict=True):
            values[row] = value
        return EncodedRows(values, checked.failed)

    def encode_rows(self, checked: Decoded, count: int) -> EncodedRows:
        """As `encode`, record by record through fastavro, of columns that conform."""
        errors: RowErrors = dict(checked.failed)
        values: list[bytes | None] = [None] * count
        names = self.schema.names
        lists = [cells_to_wire(f.type, checked.columns[f.name]) for f in self.schema]
        cells = zip(*lists, strict=True) if names else (() for _ in checked.good)
        for row, record in zip(checked.good.tolist(), cells, strict=True):
            stream = BytesIO()
            try:
                fastavro.schemaless_writer(stream, self._reader_schema, dict(zip(names, record, strict=True)))
            except (ValueError, TypeError, OverflowError, KeyError, AttributeError) as error:
                errors[row] = CodecError(f"encoding Avro: {error}", row=row)
                continue
            values[row] = stream.getvalue()
        return EncodedRows(values, sorted_failures(errors))


def _not_avro(value: bytes, why: str) -> CodecError:
    excerpt = shown(value[:_SHOWN_BYTES]) + ("..." if len(value) > _SHOWN_BYTES else "")
    return CodecError(
        f"{len(value)} bytes {excerpt} are not Avro of this contract: {why}",
        hint="compare the record's df-schema header with the contract's fingerprint",
    )


def cells_to_wire(field_type: FieldType, column: Column) -> list[Any]:
    """The cells of a conforming column as the bare Avro schema takes them."""
    if column.dtype.kind == "M":
        numbers: list[Any] = column.astype(np.int64).tolist()
        return [None if n == _NAT else n for n in numbers] if field_type.nullable else numbers
    if field_type.shape and column.dtype.kind != "O":
        data = np.ascontiguousarray(column, dtype=little(field_type.kind)).tobytes()
        size = len(data) // len(column) if len(column) else 0
        return [data[start : start + size] for start in range(0, len(data), size or 1)]
    convert = to_wire(field_type)
    cells: list[Any] = column.tolist()
    return cells if convert is None else [convert(cell) for cell in cells]


_NAT: Final = np.iinfo(np.int64).min


def column_from_wire(field_type: FieldType, cells: list[Any]) -> tuple[Column, RowErrors]:
    """The column of cells that fastavro read, and errors of those that the contract refuses.

    With errors the column is of no use.
    """
    try:
        return _whole_column(field_type, cells), {}
    except (CodecError, ValueError, TypeError, OverflowError):
        pass
    convert = from_wire(field_type) or (lambda cell: cell)
    errors: RowErrors = {}
    good: list[Any] = []
    for row, cell in enumerate(cells):
        try:
            good.append(_whole_column(field_type, [cell])[0] if field_type.shape else convert(cell))
        except CodecError as error:
            errors[row] = error
    if not errors:
        return column_of(field_type, good), {}
    return empty_column(field_type), errors


def _whole_column(field_type: FieldType, cells: list[Any]) -> Column:
    kind, dtype = field_type.kind, field_type.column_dtype
    if dtype.kind == "M":
        if field_type.nullable:
            cells = [_NAT if cell is None else cell for cell in cells]
        return np.array(cells, dtype=np.int64).view(f"{'M8[us]' if kind == 'timestamp' else 'M8[D]'}")
    if field_type.shape and dtype.kind != "O":
        size = dtype.itemsize * int(np.prod(field_type.shape))
        if any(len(cell) != size for cell in cells):
            raise CodecError(f"expected {size} bytes of elements for {field_type.describe()}")
        array = np.frombuffer(b"".join(cells), dtype=little(kind))
        if kind == "bool" and array.size and array.view(np.uint8).max() > 1:
            raise CodecError("a byte of a bool tensor is neither 0 nor 1")
        return array.astype(dtype, copy=False).reshape(len(cells), *field_type.shape)
    if kind in TENSOR_KINDS and dtype.kind != "O" and kind not in ("uint64", "float16"):
        return np.array(cells, dtype=dtype)
    convert = from_wire(field_type)
    if convert is not None:
        return column_of(field_type, [convert(cell) for cell in cells])
    return object_column(cells) if kind in ("list", "record") else scalar_column(cells)
