"""Columns to Arrow tables and back: the arrow codec, Parquet in and out, taps to pandas.

Tensors of fixed shape are FixedSizeList of the flat elements in C order; with one free dimension a List (its size
follows from the others); with several a struct {shape, data}. Field metadata says ``shape``, ``doc``, ``unit``,
``privacy``, ``type``. Timestamps are microseconds UTC, enums strings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa

from dataflow.codecs.arrays import cast_numbers, number_array
from dataflow.codecs.base import row_error, scalar_column
from dataflow.codecs.cells import convert_cells
from dataflow.codecs.converters import DEFAULT_PRECISION
from dataflow.codecs.values import conform
from dataflow.core.errors import CodecError, nearest
from dataflow.core.schema import NUMBERS, Column, Field, FieldType, Schema

# The stubs of pyarrow know few of an array's methods.
Array = Any

_PLAIN: Final[Mapping[str, Any]] = {
    "bool": pa.bool_(), "int8": pa.int8(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(),
    "uint8": pa.uint8(), "uint16": pa.uint16(), "uint32": pa.uint32(), "uint64": pa.uint64(),
    "float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(),
    "string": pa.string(), "enum": pa.string(), "bytes": pa.binary(),
    "timestamp": pa.timestamp("us", tz="UTC"), "date": pa.date32(),
}  # fmt: skip


def arrow_type(field_type: FieldType) -> Any:
    """The Arrow data type that holds `field_type` (nullability is the field's)."""
    kind = field_type.kind
    if field_type.shape:
        free = field_type.shape.count(-1)
        if free == 0:
            return pa.list_(_PLAIN[kind], math.prod(field_type.shape))
        flat = pa.list_(_PLAIN[kind])
        return flat if free == 1 else pa.struct([("shape", pa.list_(pa.int32())), ("data", flat)])
    if kind == "decimal":
        precision = field_type.precision or DEFAULT_PRECISION
        return (pa.decimal128 if precision <= 38 else pa.decimal256)(precision, field_type.scale)
    if kind == "list":
        assert field_type.item is not None, "a list type has an item type"
        return pa.list_(pa.field("item", arrow_type(field_type.item), field_type.item.nullable))
    if kind == "record":
        return pa.struct([arrow_field(f) for f in field_type.fields])
    return _PLAIN[kind]


def arrow_field(declared: Field) -> Any:
    metadata = {"type": declared.type.describe()}
    if declared.type.shape:
        metadata["shape"] = ",".join(map(str, declared.type.shape))
    for key in ("doc", "unit", "privacy"):
        if getattr(declared, key):
            metadata[key] = getattr(declared, key)
    return pa.field(declared.name, arrow_type(declared.type), declared.type.nullable, metadata)


def arrow_schema(schema: Schema) -> pa.Schema:
    return pa.schema([arrow_field(f) for f in schema])


def table_of(schema: Schema, columns: Mapping[str, Column]) -> pa.Table:
    """The columns as an Arrow table. Raises CodecError (with its row) for a value that `schema` refuses."""
    count = len(next(iter(columns.values()))) if columns else 0
    checked = conform(schema, columns, count)
    if checked.failed:
        raise checked.failed[0][1]
    return pa.Table.from_batches([record_batch(schema, checked.columns)])


def record_batch(schema: Schema, columns: Mapping[str, Column]) -> pa.RecordBatch:
    """As `table_of`, of columns that conform already."""
    made = arrow_schema(schema)
    arrays = [_array(f.type, columns[f.name]) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=made)


def _array(field_type: FieldType, column: Column) -> Array:
    made = arrow_type(field_type)
    if column.dtype.kind == "M":
        # Arrow's casts refuse times near the ends of their range: hand over the integers, NaT as null.
        nulls = np.isnat(column)
        width = "int64" if field_type.kind == "timestamp" else "int32"
        numbers = pa.array(np.where(nulls, 0, column.astype(np.int64)).astype(width), mask=nulls)
        return numbers.view(made)
    if field_type.shape and column.dtype.kind != "O":
        flat = pa.array(np.ascontiguousarray(column).reshape(-1), type=_PLAIN[field_type.kind])
        return pa.FixedSizeListArray.from_arrays(flat, type=made)
    if column.dtype.kind != "O":
        return pa.array(column, type=made)
    say = _to_arrow(field_type)
    cells = column.tolist()
    return pa.array([None if c is None else say(c) for c in cells], type=made)


def _to_arrow(field_type: FieldType) -> Any:
    """How one cell that is not null is handed to pyarrow."""
    if field_type.shape:
        if field_type.shape.count(-1) > 1:
            return lambda value: {"shape": list(value.shape), "data": np.ascontiguousarray(value).reshape(-1)}
        return lambda value: np.ascontiguousarray(value).reshape(-1)
    if field_type.kind == "float16":
        return np.float16
    if field_type.kind == "list":
        assert field_type.item is not None, "a list type has an item type"
        item = _to_arrow(field_type.item)
        return lambda value: [None if v is None else item(v) for v in value]
    if field_type.kind == "record":
        members = {f.name: _to_arrow(f.type) for f in field_type.fields}
        return lambda value: {n: None if value[n] is None else say(value[n]) for n, say in members.items()}
    return lambda value: value


def columns_of(schema: Schema, table: pa.Table | pa.RecordBatch) -> dict[str, Column]:
    """The columns of `schema` from a table that holds at least its fields, numbers of any width that fit.

    A nullable field may lack. Timestamps of any unit and zone become UTC, naive ones are UTC already; what Arrow
    has no type for may be text as in JSON. Raises CodecError naming the field, the value and the row.
    """
    columns: dict[str, Column] = {}
    present = set(table.schema.names)
    for declared in schema:
        name = declared.name
        if name not in present:
            if not declared.type.nullable:
                raise CodecError(f"field '{name}' is not in the table", hint=nearest(name, present))
            column, _ = convert_cells(declared.type, [None] * table.num_rows, "json")
            assert column is not None, "nulls fit a nullable field"
        else:
            array = table.column(name)
            column = _column(
                declared, array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
            )
        columns[name] = column
    return columns


def _column(declared: Field, array: Array) -> Column:
    field_type = declared.type
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    made = _fast_column(field_type, array)
    if made is not None:
        return made
    column, errors = convert_cells(field_type, _cells(field_type, array), "json")
    if column is None:
        row = min(errors)
        raise row_error(row, declared.name, errors[row])
    return column


def _fast_column(field_type: FieldType, array: Array) -> Column | None:
    """The column without a Python value per cell, or None where one is needed."""
    kind, given = field_type.kind, array.type
    if kind == "timestamp" and pa.types.is_timestamp(given):
        if array.null_count and not field_type.nullable:
            return None
        return _times(array, given.unit)
    if kind == "date" and pa.types.is_date32(given) and (field_type.nullable or not array.null_count):
        days = array.view(pa.int32()).to_numpy(zero_copy_only=False) if not array.null_count else None
        return None if days is None else days.astype(np.int64).view("M8[D]")
    if field_type.column_dtype.kind == "O":
        if (
            kind in ("string", "bytes")
            and not field_type.shape
            and (field_type.nullable or not array.null_count)
        ):
            same = pa.types.is_string if kind == "string" else pa.types.is_binary
            return scalar_column(array.to_pylist()) if same(given) else None
        return None
    if array.null_count:
        return None
    if field_type.shape:
        return _fixed_tensors(field_type, array)
    if kind == "bool":
        return array.to_numpy(zero_copy_only=False) if pa.types.is_boolean(given) else None
    if kind in NUMBERS and (pa.types.is_integer(given) or pa.types.is_floating(given)):
        cast, bad = cast_numbers(array.to_numpy(zero_copy_only=False), kind)
        return None if bad.any() else cast
    return None


def _times(array: Array, unit: str) -> Column:
    nulls = array.is_null().to_numpy(zero_copy_only=False)
    numbers = array.view(pa.int64())
    if array.null_count:
        numbers = numbers.fill_null(0)
    times = numbers.to_numpy(zero_copy_only=False).view(f"M8[{unit}]").astype("M8[us]")
    if array.null_count:
        times = times.copy()
        times[nulls] = np.datetime64("NaT")
    made: Column = times
    return made


def _fixed_tensors(field_type: FieldType, array: Array) -> Column | None:
    size, count = math.prod(field_type.shape), len(array)
    if pa.types.is_fixed_size_list(array.type):
        right = array.type.list_size == size
    else:
        right = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
        right = right and all(n == size for n in array.value_lengths().to_pylist())
    if not right:
        return None
    flat = array.flatten()
    if flat.null_count or not (
        pa.types.is_boolean(flat.type) if field_type.kind == "bool" else _is_number(flat.type)
    ):
        return None
    cast, bad = _cast(flat.to_numpy(zero_copy_only=False), field_type.kind)
    return None if bad else cast.reshape(count, *field_type.shape)


def _cast(array: Any, kind: str) -> tuple[Column, bool]:
    if kind == "bool":
        return array, False
    cast, bad = cast_numbers(array, kind)
    return cast, bool(bad.any())


def _is_number(given: pa.DataType) -> bool:
    return bool(pa.types.is_integer(given) or pa.types.is_floating(given))


def _cells(field_type: FieldType, array: Array) -> list[Any]:
    """Python cells as `converters` takes them: nested lists for tensors, times no finer than microseconds."""
    if pa.types.is_timestamp(array.type) and array.type.unit == "ns":
        array = array.cast(pa.timestamp("us", tz=array.type.tz), safe=False)
    restore = _from_arrow(field_type)
    cells = array.to_pylist()
    return cells if restore is None else [None if c is None else restore(c) for c in cells]


def _from_arrow(field_type: FieldType) -> Any:
    """How a Python cell that pyarrow gave gets the nested shape that its type declares; None is identity."""
    if field_type.shape:
        return lambda value: _tensor_cell(field_type, value)
    if field_type.kind == "list":
        assert field_type.item is not None, "a list type has an item type"
        item = _from_arrow(field_type.item)
        return None if item is None else lambda value: [None if v is None else item(v) for v in value]
    if field_type.kind == "record":
        members = {f.name: _from_arrow(f.type) for f in field_type.fields}
        members = {n: say for n, say in members.items() if say is not None}
        if not members:
            return None
        return lambda value: (
            value | {n: say(value[n]) for n, say in members.items() if value.get(n) is not None}
        )
    return None


def _tensor_cell(field_type: FieldType, value: Any) -> Any:
    """The array of a flat cell; anything that is not flat as declared goes on as it is and is judged there."""
    shape = field_type.shape
    if isinstance(value, dict):
        shape, value = tuple(value.get("shape") or ()), value.get("data")
    if value is None or any(isinstance(v, list | None.__class__) for v in value):
        return value
    known = math.prod(s for s in shape if s != -1)
    if shape.count(-1) == 1:
        shape = tuple(len(value) // known if s == -1 else s for s in shape)
    if math.prod(shape) != len(value):
        return value
    flat = number_array(value, field_type.kind) if value else np.array(value, dtype=field_type.kind)
    return flat.reshape(shape)
