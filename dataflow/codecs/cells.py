"""One column of cells at once: a C loop where all cells already are of the plain type, else cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np

from dataflow.codecs.arrays import cast_numbers, number_array
from dataflow.codecs.base import RowErrors, scalar_column
from dataflow.codecs.converters import Form, cell_converter, is_null, utc_naive
from dataflow.core.errors import CodecError
from dataflow.core.schema import FLOATS, INTEGERS, NUMBERS, Column, FieldType, column_of


def convert_cells(
    field_type: FieldType, cells: Sequence[Any], form: Form, *, ignore_unknown: bool = False
) -> tuple[Column | None, RowErrors]:
    """The column that holds `cells`, or None and the errors of the cells that do not fit, by row."""
    if form == "csv":
        cells = [None if is_null(cell, field_type, form) else cell for cell in cells]
    column = _common_case(field_type, cells, form)
    if column is not None:
        return column, {}
    convert = cell_converter(field_type, form, ignore_unknown)
    good: list[Any] = []
    errors: RowErrors = {}
    for row, cell in enumerate(cells):
        try:
            good.append(convert(cell))
        except CodecError as error:
            errors[row] = error
    return (None, errors) if errors else (column_of(field_type, good), {})


_NONE: Final = {type(None)}
_FEW: Final = 256
_MOST_FLOAT32: Final = float(np.finfo(np.float32).max)


def _common_case(field_type: FieldType, cells: Sequence[Any], form: Form) -> Column | None:
    """The column in one C loop where all cells already are of the plain type; None when in doubt."""
    kind = field_type.kind
    if field_type.shape:
        return None if field_type.column_dtype.kind == "O" else _tensor_column(field_type, cells)
    types = set(map(type, cells))
    if field_type.nullable:
        types -= _NONE
    if kind in NUMBERS:
        return _number_column(field_type, cells, types)
    if kind == "bool" and types <= {bool}:
        return scalar_column(cells) if field_type.nullable else np.array(cells, dtype=bool)
    if kind == "string" and types <= {str}:
        return scalar_column(cells)
    if kind == "bytes" and types <= {bytes}:
        return scalar_column(cells)
    if kind == "timestamp" and types == {str} and form != "python":
        return _time_column(cells)
    if kind == "enum" and types <= {str} and set(cells) <= {*field_type.symbols, None}:
        return scalar_column(cells)
    return None


def _time_column(cells: Sequence[Any]) -> Column | None:
    try:
        times = [None if c is None else utc_naive(datetime.fromisoformat(c)) for c in cells]
    except (ValueError, OverflowError):
        return None
    return np.array(times, dtype="M8[us]")


def _number_column(field_type: FieldType, cells: Sequence[Any], types: set[type]) -> Column | None:
    kind = field_type.kind
    if not types <= ({int} if kind in INTEGERS else {int, float}):
        return None
    wide = np.float64 if kind in FLOATS else np.uint64 if kind == "uint64" else np.int64
    present = [c for c in cells if c is not None] if field_type.nullable else cells
    if kind == "uint64" and present and min(present) < 0:
        return None
    few = kind == "float32" and not field_type.nullable and 0 < len(cells) <= _FEW
    if few and min(cells) >= -_MOST_FLOAT32 and max(cells) <= _MOST_FLOAT32:
        # The usual request: numpy's guards against an overflow cost several times as much as the numbers.
        return np.array(cells, dtype=np.float32)
    try:
        array, bad = cast_numbers(np.array(present, dtype=wide), kind)
    except OverflowError:
        return None
    if bad.any():
        return None
    if not field_type.nullable:
        return array
    column: Column = np.empty(len(cells), dtype=object)
    column[[i for i, c in enumerate(cells) if c is not None]] = array.tolist()
    return column


def _tensor_column(field_type: FieldType, cells: Sequence[Any]) -> Column | None:
    try:
        array = number_array(cells, field_type.kind)
    except (ValueError, OverflowError):
        return None
    if array.shape != (len(cells), *field_type.shape):
        return column_of(field_type, []) if not cells else None
    if array.dtype.kind not in ("b" if field_type.kind == "bool" else "iuf"):
        return None
    if field_type.kind == "bool":
        return array
    result, bad = cast_numbers(array, field_type.kind)
    return None if bad.any() else result
