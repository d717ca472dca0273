"""Record keys: the declared fields of a contract to bytes and back.

=================================  =====================================================================
key fields                         bytes
=================================  =====================================================================
one string or enum                 its UTF-8 text (Java: StringSerializer)
one bytes                          as they are
one int8..int64, uint8..uint64     8 bytes, big-endian, two's complement, whatever the width declared, so that
                                   an int32 and an int64 key of one value meet (Java: LongSerializer)
one timestamp                      the same, of the microseconds since 1970
one date, decimal, bool            its JSON text without quotes: 2024-05-01, 12.50, true
several                            compact UTF-8 JSON array of the fields in declared order: ``["N14228",7]``;
                                   ints as numbers, the rest as the plain JSON door says them
=================================  =====================================================================

A contract may declare another encoding than that of the table: ``string`` is the value's text for any type, ``int32``
and ``int64`` are 4 or 8 bytes, ``composite`` is a JSON array even of one field.

A single field that is null makes no key (None). Floats make none at all: equal keys must be equal bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson

from dataflow.codecs.cells import convert_cells
from dataflow.codecs.values import jsonable_cells
from dataflow.core.batch import to_list
from dataflow.core.errors import CodecError, ContractError
from dataflow.core.schema import FLOATS, INTEGERS, Column, FieldType, Schema

_LONG: Final = struct.Struct(">q")
_UNSIGNED: Final = struct.Struct(">Q")
_SHORT: Final = struct.Struct(">i")


def check_key(schema: Schema, key: Sequence[str]) -> None:
    """Raise ContractError where a field of `key` is missing or its type makes no key."""
    for name in key:
        field_type = schema[name].type
        if field_type.shape or field_type.kind in (*FLOATS, "list", "record"):
            raise ContractError(
                f"field '{name}' of type {field_type.describe()} cannot be part of a key",
                hint="valid: string, enum, bytes, integers, bool, timestamp, date, decimal",
            )


def encode_keys(
    schema: Schema, key: Sequence[str], columns: Mapping[str, Column], count: int, encoding: str = ""
) -> list[bytes | None]:
    """The key of each of `count` rows; all None when `key` is empty. `encoding` "" is that of the table above."""
    if not key:
        return [None] * count
    if len(key) > 1 or encoding == "composite":
        cells = [jsonable_cells(schema[name].type, columns[name]) for name in key]
        return [orjson.dumps(row) for row in zip(*cells, strict=True)]
    field_type, column = schema[key[0]].type, columns[key[0]]
    if field_type.kind in ("string", "enum"):
        return [None if cell is None else cell.encode() for cell in column.tolist()]
    if field_type.kind == "bytes":
        return column.tolist()  # type: ignore[no-any-return]
    if encoding == "int32":
        return [None if cell is None else _SHORT.pack(cell) for cell in column.tolist()]
    if encoding != "string" and (field_type.kind in INTEGERS or field_type.kind == "timestamp"):
        return _integer_keys(field_type, column)
    said = jsonable_cells(field_type, column)
    return [None if c is None else c.encode() if isinstance(c, str) else orjson.dumps(c) for c in said]


def _integer_keys(field_type: FieldType, column: Column) -> list[bytes | None]:
    if column.dtype == object or field_type.kind == "timestamp":
        pack = (_UNSIGNED if field_type.kind == "uint64" else _LONG).pack
        cells = column.tolist()
        if field_type.kind == "timestamp":
            nulls = np.isnat(column).tolist()
            micros = column.astype("datetime64[us]").view(np.int64).tolist()
            cells = [None if null else value for null, value in zip(nulls, micros, strict=True)]
        return [None if cell is None else pack(cell) for cell in cells]
    flat = column.astype(">u8" if field_type.kind == "uint64" else ">i8").tobytes()
    return [flat[at : at + 8] for at in range(0, len(flat), 8)]


def encode_key(
    schema: Schema, key: Sequence[str], record: Mapping[str, Any], encoding: str = ""
) -> bytes | None:
    """The key of one record of Python or JSON values. Raises CodecError for a value that its field cannot hold."""
    columns: dict[str, Column] = {}
    for name in key:
        column, errors = convert_cells(schema[name].type, [record.get(name)], "json")
        if column is None:
            raise CodecError(f"key field '{name}': {errors[0].message}", hint=errors[0].hint)
        columns[name] = column
    return encode_keys(schema, key, columns, 1, encoding)[0]


def decode_key(schema: Schema, key: Sequence[str], value: bytes | None, encoding: str = "") -> dict[str, Any]:
    """The key's fields as Python values; {} where there is no key. Raises CodecError for bytes that make none."""
    if value is None or not key:
        return {}
    types = [schema[name].type for name in key]
    try:
        cells = (
            orjson.loads(value)
            if len(key) > 1 or encoding == "composite"
            else [_single(types[0], value, encoding)]
        )
        if not isinstance(cells, list) or len(cells) != len(key):
            raise ValueError(cells)
    except (ValueError, struct.error):
        text = ", ".join(f"{n}: {t.describe()}" for n, t in zip(key, types, strict=True))
        raise CodecError(f"key {value[:80]!r} is not one of ({text})") from None
    made: dict[str, Any] = {}
    for name, field_type, cell in zip(key, types, cells, strict=True):
        column, errors = convert_cells(field_type, [cell], "json")
        if column is None:
            raise CodecError(f"key field '{name}': {errors[0].message}", hint=errors[0].hint)
        made[name] = to_list(column)[0]
    return made


def _single(field_type: FieldType, value: bytes, encoding: str) -> Any:
    kind = field_type.kind
    if encoding == "int32":
        return _SHORT.unpack(value)[0]
    if encoding == "string" and kind in INTEGERS:
        return int(value)
    if encoding == "string" and kind == "timestamp":
        return value.decode()
    if kind == "bytes":
        # Cells of the JSON form are base64; a memoryview is bytes in every form.
        return memoryview(value)
    if kind in INTEGERS:
        (number,) = (_UNSIGNED if kind == "uint64" else _LONG).unpack(value)
        return number
    if kind == "timestamp":
        return np.datetime64(_LONG.unpack(value)[0], "us")
    if kind == "bool":
        return orjson.loads(value)
    return value.decode()
