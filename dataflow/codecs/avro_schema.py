"""The Avro schema of a contract, and the way cells go over the wire in it.

=========================  ============================================================================
field type                 Avro
=========================  ============================================================================
bool, int32, int64         boolean, int, long
int8/16, uint8/16          int with property ``dtype``
uint32                     long with property ``dtype``
uint64                     bytes, logical type decimal(20, 0), property ``dtype`` (a long is too small)
float16, float32, float64  float with property ``dtype``, float, double
decimal                    bytes, logical type decimal
string, bytes              string, bytes
timestamp, date            long timestamp-micros, int date
enum                       enum; string with property ``symbols`` where a symbol is not an Avro name
nullable                   union of null and the type, default null
list, record               array, record
tensor of fixed shape      bytes with properties ``dtype``, ``shape``, ``byteorder``: the elements in C order
tensor, free dimensions    record {shape: array of int, data: bytes}, both properties on ``data``
=========================  ============================================================================

A reader that ignores unknown properties, as the Avro specification asks, reads every record.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from typing import Any, Final

import numpy as np

from dataflow.codecs.converters import DEFAULT_PRECISION
from dataflow.core.errors import CodecError, ContractError
from dataflow.core.schema import INTEGERS, Column, Field, FieldType, Schema

AVRO_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A decimal of any declared precision, exactly.
_EXACT: Final = Context(prec=4096, Emin=-999999, Emax=999999)
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - naive is UTC in a column
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_MICROSECOND: Final = timedelta(microseconds=1)
_PLAIN: Final = {
    "bool": "boolean", "int32": "int", "int64": "long", "float32": "float", "float64": "double",
    "string": "string", "bytes": "bytes",
}  # fmt: skip
_WITH_DTYPE: Final = {
    "int8": "int", "int16": "int", "uint8": "int", "uint16": "int", "uint32": "long", "float16": "float",
}  # fmt: skip


def is_avro_enum(symbols: tuple[str, ...]) -> bool:
    return bool(symbols) and all(AVRO_NAME.fullmatch(symbol) for symbol in symbols)


def little(kind: str) -> np.dtype[Any]:
    return np.dtype(kind).newbyteorder("<")


def avro_schema(schema: Schema, name: str, doc: str = "", *, bare: bool = False) -> dict[str, Any]:
    """The Avro schema of a contract, without the parsed mark of any library.

    `bare` gives the same bytes without logical types, so that a reader gets plain integers: what our codec uses.
    Raises ContractError where a field name is no Avro name.
    """
    if not all(AVRO_NAME.fullmatch(part) for part in name.split(".")):
        raise ContractError(f"'{name}' is not an Avro record name", hint="letters, digits and _")
    made = _record(schema.fields, name, {name}, bare)
    if doc and not bare:
        made["doc"] = doc
    return made


def _record(fields: tuple[Field, ...], name: str, taken: set[str], bare: bool) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [_field(f, name, taken, bare) for f in fields]}


def _field(declared: Field, parent: str, taken: set[str], bare: bool) -> dict[str, Any]:
    if not AVRO_NAME.fullmatch(declared.name):
        raise ContractError(
            f"field '{declared.name}' is not an Avro name",
            hint="use letters, digits and _, not first a digit; or codec json",
        )
    made: dict[str, Any] = {
        "name": declared.name,
        "type": _type(declared.type, f"{parent}_{declared.name}", taken, bare),
    }
    if declared.type.nullable:
        made["default"] = None
    if not bare:
        for key in ("doc", "unit", "privacy"):
            if getattr(declared, key):
                made[key] = getattr(declared, key)
        if declared.event_time:
            made["event_time"] = True
    return made


def _type(field_type: FieldType, path: str, taken: set[str], bare: bool) -> Any:
    made = _present(field_type, path, taken, bare)
    return ["null", made] if field_type.nullable else made


def _present(field_type: FieldType, path: str, taken: set[str], bare: bool) -> Any:
    kind = field_type.kind
    if field_type.shape:
        elements = {
            "type": "bytes", "dtype": kind, "shape": list(field_type.shape), "byteorder": "little",
        }  # fmt: skip
        if not field_type.has_free_dimension:
            return elements
        members = [
            {"name": "shape", "type": {"type": "array", "items": "int"}},
            {"name": "data", "type": elements},
        ]
        return {"type": "record", "name": _unique(path, taken), "fields": members}
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _WITH_DTYPE:
        return {"type": _WITH_DTYPE[kind], "dtype": kind}
    if kind == "enum":
        if is_avro_enum(field_type.symbols):
            return {"type": "enum", "name": _unique(path, taken), "symbols": list(field_type.symbols)}
        return {"type": "string", "symbols": list(field_type.symbols)}
    if kind == "list":
        assert field_type.item is not None, "a list type has an item type"
        return {"type": "array", "items": _type(field_type.item, f"{path}_item", taken, bare)}
    if kind == "record":
        return _record(field_type.fields, _unique(path, taken), taken, bare)
    return _logical(field_type, bare)


def _logical(field_type: FieldType, bare: bool) -> dict[str, Any]:
    kind = field_type.kind
    made: dict[str, Any]
    if kind in ("timestamp", "date"):
        made = {"type": "long", "logicalType": "timestamp-micros"}
        if kind == "date":
            made = {"type": "int", "logicalType": "date"}
    elif kind == "uint64":
        made = {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 0, "dtype": "uint64"}
    else:
        made = {"type": "bytes", "logicalType": "decimal"}
        made |= {"precision": field_type.precision or DEFAULT_PRECISION, "scale": field_type.scale}
    if bare:
        del made["logicalType"]
    return made


def _unique(name: str, taken: set[str]) -> str:
    """Avro names are one space: ``a_b`` + ``c`` must not meet ``a`` + ``b_c``."""
    made, number = name, 2
    while made in taken:
        made, number = f"{name}_{number}", number + 1
    taken.add(made)
    return made


# ---------------------------------------------------------------- cells

Convert = Callable[[Any], Any]


def pack_integer(value: int) -> bytes:
    """Big-endian two's complement of the fewest bytes, as Avro's decimal asks."""
    return value.to_bytes((value if value >= 0 else ~value).bit_length() // 8 + 1, "big", signed=True)


def unpack_tensor(data: bytes, field_type: FieldType, shape: tuple[int, ...]) -> Column:
    """A read-only view of `data`; raises CodecError where it has not the size that the shape asks for."""
    dtype = little(field_type.kind)
    size = dtype.itemsize
    for length in shape:
        size *= length
    if len(data) != size:
        raise CodecError(
            f"{len(data)} bytes of elements, expected {size} for {field_type.kind}{list(shape)}",
            hint="the writer's contract may differ",
        )
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    if field_type.kind == "bool" and array.size and array.view(np.uint8).max() > 1:
        raise CodecError("a byte of a bool tensor is neither 0 nor 1")
    return array.astype(field_type.kind, copy=False)


def _unpack_free(value: Any, field_type: FieldType) -> Column:
    shape = tuple(value["shape"])
    want = field_type.shape
    if len(shape) != len(want) or any(
        have < 0 or declared not in (-1, have) for declared, have in zip(want, shape, strict=True)
    ):
        raise CodecError(f"an array of shape {list(shape)} is not valid, expected {field_type.describe()}")
    return unpack_tensor(value["data"], field_type, shape)


def pack_tensor(value: Column, kind: str) -> bytes:
    return np.ascontiguousarray(value, dtype=little(kind)).tobytes()


def to_wire(field_type: FieldType) -> Convert | None:
    """How one canonical cell (see `core.schema`) becomes what the bare Avro schema takes; None is identity."""
    inner = _to_wire(field_type)
    if inner is None or not field_type.nullable:
        return inner
    return lambda value: None if value is None else inner(value)


def _to_wire(field_type: FieldType) -> Convert | None:
    kind, scale = field_type.kind, field_type.scale
    if field_type.has_free_dimension:
        return lambda value: {"shape": list(value.shape), "data": pack_tensor(value, kind)}
    if field_type.shape:
        return lambda value: pack_tensor(value, kind)
    if kind == "uint64":
        return pack_integer
    if kind == "decimal":
        return lambda value: pack_integer(int(_EXACT.scaleb(value, scale)))
    if kind == "timestamp":
        return lambda value: (_naive(value) - _EPOCH) // _MICROSECOND
    if kind == "date":
        return lambda value: value.toordinal() - _EPOCH_DAY
    if kind == "list":
        assert field_type.item is not None, "a list type has an item type"
        item = to_wire(field_type.item)
        return None if item is None else lambda value: [item(v) for v in value]
    if kind == "record":
        return _members({f.name: to_wire(f.type) for f in field_type.fields})
    return None


def _naive(value: datetime) -> datetime:
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def from_wire(field_type: FieldType) -> Convert | None:
    """How a cell of the bare Avro schema becomes canonical; None is identity. Raises CodecError or ValueError.

    Checks what Avro does not: the range of narrow integers, sizes of tensors, symbols, digits.
    """
    inner = _from_wire(field_type)
    if inner is None or not field_type.nullable:
        return inner
    return lambda value: None if value is None else inner(value)


def _from_wire(field_type: FieldType) -> Convert | None:
    kind = field_type.kind
    if field_type.has_free_dimension:
        return lambda value: _unpack_free(value, field_type)
    if field_type.shape:
        return lambda value: unpack_tensor(value, field_type, field_type.shape)
    if kind == "uint64":
        ranged = _ranged(kind)
        return lambda value: ranged(int.from_bytes(value, "big", signed=True))
    if kind in INTEGERS:
        return _ranged(kind)
    if kind == "float16":
        return _half
    if kind == "decimal":
        return _decimal(field_type)
    if kind == "timestamp":
        return _timestamp
    if kind == "date":
        return _date
    if kind == "enum" and not is_avro_enum(field_type.symbols):
        return _symbol(field_type)
    if kind == "list":
        assert field_type.item is not None, "a list type has an item type"
        item = from_wire(field_type.item)
        return None if item is None else lambda value: [item(v) for v in value]
    if kind == "record":
        return _members({f.name: from_wire(f.type) for f in field_type.fields})
    return None


def _ranged(kind: str) -> Convert:
    limits = np.iinfo(kind)
    low, high = int(limits.min), int(limits.max)

    def check(value: int) -> int:
        if low <= value <= high:
            return value
        raise CodecError(f"{value} does not fit {kind}", hint=f"valid: {low}..{high}")

    return check


def _half(value: float) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = float(np.float16(value))
    if math.isinf(rounded) and not math.isinf(value):
        raise CodecError(f"{value} does not fit float16", hint="largest: 65504.0")
    return rounded


def _decimal(field_type: FieldType) -> Convert:
    precision, scale = field_type.precision or DEFAULT_PRECISION, field_type.scale

    def convert(value: bytes) -> Decimal:
        unscaled = int.from_bytes(value, "big", signed=True)
        if abs(unscaled) >= 10**precision:
            raise CodecError(f"a decimal of more than {precision} digits", hint=field_type.describe())
        return _EXACT.scaleb(Decimal(unscaled), -scale)

    return convert


def _timestamp(value: int) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=value)
    except OverflowError:
        raise CodecError(f"{value} us is outside years 1..9999") from None


def _date(value: int) -> date:
    try:
        return date.fromordinal(value + _EPOCH_DAY)
    except (OverflowError, ValueError):
        raise CodecError(f"day {value} is outside years 1..9999") from None


def _symbol(field_type: FieldType) -> Convert:
    symbols = frozenset(field_type.symbols)

    def check(value: str) -> str:
        if value in symbols:
            return value
        raise CodecError(f"{value!r} is not a symbol of the enum", hint=field_type.describe())

    return check


def _members(converts: dict[str, Convert | None]) -> Convert | None:
    if not any(converts.values()):
        return None
    items = tuple(converts.items())

    def convert(value: Any) -> dict[str, Any]:
        return {n: value[n] if inner is None else inner(value[n]) for n, inner in items}

    return convert
