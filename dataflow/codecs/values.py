"""Python and JSON records to columns and back, strictly, with a failure per row that names the field."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from dataflow.codecs.arrays import cast_numbers
from dataflow.codecs.base import (
    Decoded,
    RowErrors,
    good_rows,
    require_columns,
    row_error,
    sorted_failures,
)  # fmt: skip
from dataflow.codecs.cells import convert_cells
from dataflow.codecs.converters import Form, shown
from dataflow.core.errors import CodecError, nearest
from dataflow.core.schema import NUMBERS, Column, Field, FieldType, Schema

# What `datetime` and ISO 8601 can say: years 1..9999.
FIRST_TIME: Final = np.datetime64("0001-01-01T00:00:00.000000", "us")
LAST_TIME: Final = np.datetime64("9999-12-31T23:59:59.999999", "us")


def coerce_records(
    schema: Schema,
    records: Sequence[Any],
    *,
    form: Form = "json",
    ignore_unknown: bool = False,
) -> Decoded:
    """Columns of `records`, dicts of Python or JSON values (`form` "json") or of texts ("csv"); see `converters`.

    A nullable field may be left out. A field that the schema lacks fails the row unless `ignore_unknown`.
    """
    errors: RowErrors = {}
    for row, record in enumerate(records):
        if not isinstance(record, Mapping):
            errors[row] = CodecError(
                f"{shown(record)} ({type(record).__name__}) is not a record", row=row,
                hint="expected an object with fields " + ", ".join(schema.names),
            )  # fmt: skip
        elif not ignore_unknown:
            unknown = record.keys() - schema.names
            if unknown:
                name = min(unknown, key=str)
                errors[row] = CodecError(
                    f"unknown field '{name}'", row=row, hint=nearest(str(name), schema.names)
                )
    good = good_rows(len(records), errors)
    positions = good.tolist()
    kept = records if not errors else [records[i] for i in positions]
    # An absent field gets null's own message only where it is present and null.
    cells = {f.name: [record.get(f.name) for record in kept] for f in schema}
    result = coerce_columns(schema, cells, len(kept), form=form, ignore_unknown=ignore_unknown)
    for row, error in result.failed:
        at = positions[row]
        errors[at] = _absent(schema, kept[row], error, at)
    return Decoded(result.columns, good[result.good], sorted_failures(errors))


def _absent(schema: Schema, record: Mapping[str, Any], error: CodecError, row: int) -> CodecError:
    """The error of a row, saying "is missing" rather than "null" where the field is not there at all."""
    for name in schema.names:
        if name not in record and error.message.startswith(f"field '{name}': null"):
            expected = schema[name].type.describe()
            return CodecError(f"field '{name}' is missing, expected {expected}", row=row)
    return CodecError(error.message, row=row, hint=error.hint)


def coerce_columns(
    schema: Schema,
    cells: Mapping[str, Sequence[Any]],
    count: int,
    *,
    form: Form = "json",
    ignore_unknown: bool = False,
) -> Decoded:
    """Columns made from `count` cells per field; the first field that does not fit names the row's error."""
    columns: dict[str, Column] = {}
    errors: RowErrors = {}
    for declared in schema:
        column, failed = convert_cells(
            declared.type, cells[declared.name], form, ignore_unknown=ignore_unknown
        )
        if column is not None:
            columns[declared.name] = column
        for row, error in failed.items():
            errors.setdefault(row, row_error(row, declared.name, error))
    good = good_rows(count, errors)
    if errors:
        positions = good.tolist()
        kept = {n: [column[i] for i in positions] for n, column in cells.items()}
        columns = coerce_columns(
            schema, kept, len(positions), form=form, ignore_unknown=ignore_unknown
        ).columns
    return Decoded(columns, good, sorted_failures(errors))


def conform(schema: Schema, columns: Mapping[str, Column], count: int) -> Decoded:
    """Columns from a node, checked: exactly the dtype, shape and values that `schema` declares.

    Columns of the declared dtype pass at once; numbers of another width are cast where they fit; object columns
    are looked through. Raises CodecError when a column is missing or of another length.
    """
    require_columns(schema, columns, count)
    errors: RowErrors = {}
    made: dict[str, Column] = {}
    for declared in schema:
        column, failed = _conform_column(declared, columns[declared.name])
        made[declared.name] = column
        for row, error in failed.items():
            errors.setdefault(row, row_error(row, declared.name, error))
    good = good_rows(count, errors)
    if errors:
        made = conform(schema, {n: c[good] for n, c in columns.items() if n in schema}, len(good)).columns
    return Decoded(made, good, sorted_failures(errors))


def _conform_column(declared: Field, column: Column) -> tuple[Column, RowErrors]:
    field_type = declared.type
    dtype = field_type.column_dtype
    if dtype.kind == "M" and column.dtype.kind == "M":
        return _conform_times(field_type, column)
    if dtype.kind != "O" and column.dtype.kind != "O":
        if column.shape[1:] == field_type.shape:
            if column.dtype == dtype:
                return column, {}
            if field_type.kind in NUMBERS and column.dtype.kind in "iuf":
                cast, bad = cast_numbers(column, field_type.kind)
                if not bad.any():
                    return cast, {}
        elif len(column) and not field_type.shape:
            error = CodecError(
                f"an array of shape {list(column.shape[1:])} is not valid, expected {field_type.describe()}"
            )
            return column, dict.fromkeys(range(len(column)), error)
    cells = list(column) if column.ndim > 1 or column.dtype.kind == "M" else column.tolist()
    made, errors = convert_cells(field_type, cells, "python")
    return (column if made is None else made), errors


def _conform_times(field_type: FieldType, column: Column) -> tuple[Column, RowErrors]:
    times = column.astype(field_type.column_dtype, copy=False)
    if field_type.nullable:
        return times, {}
    nulls = np.flatnonzero(np.isnat(times)).tolist()
    error = CodecError(f"null (NaT) is not allowed, expected {field_type.describe()}")
    return times, dict.fromkeys(nulls, error)


def to_jsonable(schema: Schema, columns: Mapping[str, Column], count: int) -> list[dict[str, Any]]:
    """One dict per row of what JSON can say; `coerce_records` reads it back to the same columns.

    Timestamps and dates are ISO 8601 (UTC, ``Z``), decimals texts, bytes base64, tensors nested lists, NaN and the
    infinities texts. Times outside years 1..9999 cannot be said: they are given as null; codecs refuse them before.
    """
    names = schema.names
    if not names:
        return [{} for _ in range(count)]
    lists = [jsonable_cells(f.type, columns[f.name]) for f in schema]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*lists, strict=True)]


def jsonable_cells(field_type: FieldType, column: Column) -> list[Any]:
    """The cells of one column as JSON can say them."""
    if column.dtype.kind == "M":
        inside = ~np.isnat(column)
        inside &= (column >= FIRST_TIME) & (column <= LAST_TIME)
        if field_type.kind == "timestamp":
            texts = [text + "Z" for text in np.datetime_as_string(column, unit="us").tolist()]
        else:
            texts = np.datetime_as_string(column, unit="D").tolist()
        if inside.all():
            return texts
        return [text if ok else None for text, ok in zip(texts, inside.tolist(), strict=True)]
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        return [_say_floats(cell) for cell in column.tolist()]
    if column.dtype.kind != "O":
        return column.tolist()  # type: ignore[no-any-return]
    say = _sayer(field_type)
    cells: list[Any] = column.tolist()
    return cells if say is None else [None if cell is None else say(cell) for cell in cells]


def _say_floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_say_floats(item) for item in value]
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def say_time(value: datetime) -> str:
    plain = value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    return plain.isoformat() + "Z"


def _say_tensor(value: Column) -> Any:
    cells = value.tolist()
    return cells if value.dtype.kind != "f" or np.isfinite(value).all() else _say_floats(cells)


def _sayer(field_type: FieldType) -> Callable[[Any], Any] | None:
    """How one cell that is not null is said; None where it already is what JSON says."""
    if field_type.shape:
        return _say_tensor
    kind = field_type.kind
    simple: dict[str, Callable[[Any], Any]] = {
        "float16": _say_floats,
        "float32": _say_floats,
        "float64": _say_floats,
        "decimal": str,
        "bytes": lambda value: base64.b64encode(value).decode(),
        "timestamp": say_time,
        "date": lambda value: value.isoformat(),
    }
    if kind in simple:
        return simple[kind]
    if kind == "list":
        assert field_type.item is not None, "a list type has an item type"
        item = _sayer(field_type.item)
        if item is None:
            return None
        return lambda value: [None if v is None else item(v) for v in value]
    if kind == "record":
        members = {f.name: _sayer(f.type) for f in field_type.fields}
        return lambda value: {
            name: value[name] if say is None or value[name] is None else say(value[name])
            for name, say in members.items()
        }
    return None
