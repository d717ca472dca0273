"""One table: how every field type of a contract looks through the Open Inference Protocol v2, both ways.

docs/reference/v2-types.md explains the table to users. N is the number of rows of the request.

=============================  ==========  ==================  ==========================================================
field type                     datatype    shape               elements
=============================  ==========  ==================  ==========================================================
bool, int*, uint*, float*      BOOL, ...   [N] ([N, 1] taken)  numbers; FP16 has no JSON form; BF16 (binary) is taken for float32, float64
the same with a shape          BOOL, ...   [N, *shape]         row-major
the same with free dimensions  BOOL, ...   [N, *dimensions]    ragged rows padded, parameter ``row_shapes`` says how
timestamp                      INT64       [N]                 microseconds since 1970, UTC (BYTES: ISO 8601 taken too)
string, enum                   BYTES       [N]                 UTF-8 text
date, decimal                  BYTES       [N]                 text: 2024-05-01, 12.50
bytes                          BYTES       [N]                 as they are; JSON: text, or base64 if parameter
                                                               ``content_type`` is "base64"
list, record                   BYTES       [N]                 JSON text
nullable                       as above    as above            null in JSON ``data`` is taken; in answers a filler, and
                                                               parameter ``null_rows`` names the rows: "0,5"
=============================  ==========  ==================  ==========================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
import orjson

from dataflow.codecs.base import RowErrors, object_column
from dataflow.codecs.cells import convert_cells
from dataflow.codecs.values import jsonable_cells
from dataflow.core.errors import CodecError, GatewayError
from dataflow.core.limits import MAX_BODY_BYTES
from dataflow.core.schema import TENSOR_KINDS, Column, Field, FieldType

DATATYPE_OF: Final = {
    "bool": "BOOL",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "timestamp": "INT64",
}
KIND_OF: Final = {datatype: kind for kind, datatype in DATATYPE_OF.items() if kind != "timestamp"}
DATATYPES: Final = (*KIND_OF, "BF16", "BYTES")
# BF16 is no type of a contract: it is taken for float32 and float64, which hold all of it.
NO_JSON: Final = ("FP16", "BF16")
_JSON_TEXT: Final = ("list", "record")

Parameters = Mapping[str, Any]
NULL_ROWS: Final = "null_rows"
ROW_SHAPES: Final = "row_shapes"
CONTENT_TYPE: Final = "content_type"


@dataclass(slots=True)
class InputTensor:
    """One tensor of a request, its form checked, its values not.

    elements    flat, prod(shape) of them: an array of the datatype (binary), a list of JSON values, or a list of
                `bytes` (binary BYTES)
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Parameters
    elements: Column | list[Any]


@dataclass(slots=True)
class OutputTensor:
    """One tensor of an answer: an array of `shape`, or one text or bytes per row for BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Column | list[str] | list[bytes]
    parameters: dict[str, str] = field(default_factory=dict)


def datatype_of(field_type: FieldType) -> str:
    return DATATYPE_OF.get(field_type.kind, "BYTES")


def shape_of(field_type: FieldType) -> tuple[int, ...]:
    """The shape as metadata shows it: -1 for the rows and for each free dimension."""
    return (-1, *field_type.shape)


def expected(declared: Field) -> str:
    """What a field wants, for messages."""
    return f"datatype {datatype_of(declared.type)}, shape {list(shape_of(declared.type))}"


def fits(field_type: FieldType, datatype: str) -> bool:
    """Whether values of `datatype` can be taken for the field: its own datatype, or a narrower one without loss."""
    own = datatype_of(field_type)
    if datatype == own:
        return True
    if field_type.kind == "timestamp":
        return datatype == "BYTES"
    if datatype == "BF16":
        return own in ("FP32", "FP64")
    if "BYTES" in {own, datatype} or "BOOL" in {own, datatype} or datatype not in KIND_OF:
        return False
    return bool(np.can_cast(np.dtype(KIND_OF[datatype]), np.dtype(KIND_OF[own]), "safe"))


def shape_fits(field_type: FieldType, shape: tuple[int, ...]) -> bool:
    wanted = field_type.shape
    if not wanted:
        return len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    return len(shape) == len(wanted) + 1 and all(
        want in (-1, have) for want, have in zip(wanted, shape[1:], strict=True)
    )


def input_column(declared: Field, tensor: InputTensor) -> Column:
    """The column of one field of a request. Raises GatewayError 400 naming the field, the row, what is expected."""
    kind = declared.type.kind
    if not fits(declared.type, tensor.datatype) or not shape_fits(declared.type, tensor.shape):
        raise GatewayError(
            400,
            f"input '{declared.name}': datatype {tensor.datatype}, shape {list(tensor.shape)} where "
            f"{expected(declared)} is expected",
        )
    nulls = _null_rows(declared, tensor)
    if kind in TENSOR_KINDS:
        return _number_column(declared, tensor, nulls)
    if kind == "timestamp" and tensor.datatype != "BYTES":
        return _time_column(declared, tensor, nulls)
    return _text_column(declared, tensor, nulls)


def _number_column(declared: Field, tensor: InputTensor, nulls: list[int]) -> Column:
    field_type, kind, count = declared.type, declared.type.kind, tensor.shape[0]
    elements = tensor.elements
    flat: Column
    if isinstance(elements, np.ndarray):
        flat = elements.astype(kind, copy=False)
    else:
        nullable = field_type.nullable and not field_type.shape
        flat = _converted(declared, tensor, _element(kind, nullable), elements)
        if nullable:
            flat[nulls] = None
            return flat
    array = flat.reshape((count, *tensor.shape[1:]) if field_type.shape else (count,))
    if field_type.column_dtype.kind != "O":
        return array
    if not field_type.shape:
        column = object_column(array.tolist())
    else:
        column = object_column(_cut(declared, tensor, array))
    column[nulls] = None
    return column


@cache
def _element(kind: str, nullable: bool) -> FieldType:
    """One number of a tensor. Kept: to make one takes as long as to read a small tensor's numbers."""
    return FieldType(kind, nullable=nullable)


def _cut(declared: Field, tensor: InputTensor, array: Column) -> list[Column]:
    """The rows of a tensor, cut to the shapes that parameter ``row_shapes`` gives where it is there."""
    text = tensor.parameters.get(ROW_SHAPES)
    if text is None:
        return list(array)
    try:
        shapes = orjson.loads(text)
        parts = [tuple(slice(0, size) for size in shape) for shape in shapes]
        rows = [row[part] for row, part in zip(array, parts, strict=True)]
        good = [list(row.shape) for row in rows] == shapes
    except (ValueError, TypeError, IndexError):
        good = False
    if not good or not all(shape_fits(declared.type, (1, *row.shape)) for row in rows):
        raise GatewayError(
            400,
            f"input '{declared.name}': parameter '{ROW_SHAPES}' must be JSON text with one shape per row, each "
            f"within {list(tensor.shape[1:])}, such as '[[3], [5]]'",
        )
    return rows


def _time_column(declared: Field, tensor: InputTensor, nulls: list[int]) -> Column:
    elements = tensor.elements
    if isinstance(elements, np.ndarray):
        micros = elements.astype(np.int64).reshape(-1)
    else:
        absent = [i for i, e in enumerate(elements) if e is None]
        filled = [0 if e is None else e for e in elements] if absent else elements
        micros = _converted(declared, tensor, FieldType("int64"), filled).copy()
        nulls = nulls + absent
    column = micros.view("datetime64[us]")
    column[nulls] = np.datetime64("NaT")
    missing = np.flatnonzero(np.isnat(column))
    if len(missing) and not declared.type.nullable:
        raise _row_error(declared, int(missing[0]), "null is not allowed", "")
    return column


def _text_column(declared: Field, tensor: InputTensor, nulls: list[int]) -> Column:
    kind = declared.type.kind
    elements: list[Any] = list(tensor.elements)
    base64 = tensor.parameters.get(CONTENT_TYPE) == "base64"
    row = 0
    try:
        if kind == "bytes" and not base64:  # V2's JSON form of BYTES is text
            elements = [e.encode() if type(e) is str else e for e in elements]
        elif kind != "bytes" or base64:
            for row, element in enumerate(elements):
                if type(element) is bytes:
                    elements[row] = element.decode()
    except UnicodeError:
        raise _row_error(declared, row, "the text is not UTF-8", expected(declared)) from None
    for row in nulls:
        elements[row] = None
    if kind in _JSON_TEXT:
        for row, element in enumerate(elements):
            try:
                elements[row] = None if element is None else orjson.loads(element)
            except (ValueError, TypeError):
                cause = f"no JSON text of {declared.type.describe()}"
                raise _row_error(declared, row, cause, expected(declared)) from None
    return _converted(declared, tensor, declared.type, elements)


def _converted(declared: Field, tensor: InputTensor, as_type: FieldType, elements: Sequence[Any]) -> Column:
    errors: RowErrors
    column, errors = convert_cells(as_type, elements, "json")
    if column is None:
        position = min(errors)
        cause: CodecError = errors[position]
        row = position // max(math.prod(tensor.shape[1:]), 1)
        raise _row_error(declared, row, cause.message, cause.hint or expected(declared))
    return column


def _row_error(declared: Field, row: int, cause: str, hint: str) -> GatewayError:
    separator = "" if cause.startswith((".", "[")) else ": "
    return GatewayError(400, f"input '{declared.name}', row {row}{separator}{cause}", hint=hint)


def _null_rows(declared: Field, tensor: InputTensor) -> list[int]:
    text = tensor.parameters.get(NULL_ROWS)
    if text is None or text == "":
        return []
    try:
        rows = [int(part) for part in text.split(",")]
    except (ValueError, AttributeError):
        rows = [-1]
    if min(rows) < 0 or max(rows) >= tensor.shape[0]:
        raise GatewayError(
            400,
            f"input '{declared.name}': parameter '{NULL_ROWS}' is {text!r:.80}, expected row numbers below "
            f"{tensor.shape[0]} such as '0,5'",
        )
    if not declared.type.nullable:
        raise _row_error(declared, rows[0], "null is not allowed", expected(declared))
    return rows


def output_tensor(declared: Field, column: Column) -> OutputTensor:
    """The tensor of one field of an answer; null rows get a filler (0, false, "") and are named."""
    field_type, kind, count = declared.type, declared.type.kind, len(column)
    datatype = datatype_of(field_type)
    nulls: list[int] = []
    parameters: dict[str, str] = {}
    values: Column | list[Any]
    if kind == "timestamp":
        times = column.astype("datetime64[us]")
        nulls = np.flatnonzero(np.isnat(times)).tolist()
        values = times.view(np.int64)
        values[nulls] = 0
    elif kind in TENSOR_KINDS:
        values = column
        if column.dtype == object:
            nulls = [i for i, v in enumerate(column) if v is None]
            values, parameters = _dense(declared, column)
    else:
        cells = _said(field_type, column)
        nulls = [i for i, cell in enumerate(cells) if cell is None]
        filler = b"" if kind == "bytes" else ""
        values = [filler if cell is None else cell for cell in cells] if nulls else cells
    if nulls:
        parameters[NULL_ROWS] = ",".join(map(str, nulls))
    shape = values.shape if isinstance(values, np.ndarray) else (count,)
    return OutputTensor(declared.name, datatype, shape, values, parameters)


def _said(field_type: FieldType, column: Column) -> list[Any]:
    if field_type.kind in ("string", "enum", "bytes"):
        return column.tolist()  # type: ignore[no-any-return]
    cells = jsonable_cells(field_type, column)
    if field_type.kind in _JSON_TEXT:
        return [None if cell is None else orjson.dumps(cell).decode() for cell in cells]
    return cells


def _dense(declared: Field, column: Column) -> tuple[Column, dict[str, str]]:
    """An object column of scalars or tensors as one array; ragged rows are padded with 0 and their shapes told."""
    field_type = declared.type
    dtype = np.dtype(field_type.kind)
    if not field_type.shape:
        return np.array([0 if v is None else v for v in column], dtype=dtype), {}
    shapes = [None if v is None else v.shape for v in column]
    known = [shape for shape in shapes if shape is not None]
    # Without a row to show it, a free dimension is 0 long.
    sizes = [max(s) for s in zip(*known, strict=True)] if known else [max(s, 0) for s in field_type.shape]
    if len(column) * math.prod(sizes) * dtype.itemsize > MAX_BODY_BYTES:
        raise GatewayError(
            500,
            f"output '{declared.name}' has rows of very different shapes: padded it is over {MAX_BODY_BYTES} bytes",
            hint="send fewer rows at once",
        )
    array = np.zeros((len(column), *sizes), dtype=dtype)
    for index, value in enumerate(column):
        if value is not None:
            array[index][tuple(slice(0, size) for size in value.shape)] = value
    if all(shape == tuple(sizes) for shape in known):
        return array, {}
    return array, {ROW_SHAPES: orjson.dumps([shape or sizes for shape in shapes]).decode()}
