"""Strict conversion of one cell, or one column of cells, to what a field type holds.

Three forms of input: ``python`` (values a node made), ``json`` (Python values or what JSON can say: ISO 8601 texts,
base64, nested lists, "NaN"/"Infinity"/"-Infinity" for floats) and ``csv`` (texts; the empty one is null where null is
allowed; lists, records and tensors as JSON text). A naive time is UTC. Nothing is rounded but floats to their own
width; nothing is wrapped.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Context, Decimal, InvalidOperation
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import orjson

from dataflow.codecs.arrays import cast_numbers, number_array
from dataflow.core.errors import CodecError, nearest
from dataflow.core.schema import FLOATS, INTEGERS, Column, FieldType

Form = Literal["python", "json", "csv"]
Convert = Callable[[Any], Any]

# Digits of a decimal whose contract names none: what Arrow and most databases can hold.
DEFAULT_PRECISION: Final = 38
_SPECIAL_FLOATS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_WIDEST: Final = Context(prec=4096, Emin=-999999, Emax=999999)


def shown(value: object) -> str:
    """A value for a message: short, with its type where that is the point."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _wrong(value: object, expected: str, hint: str = "") -> CodecError:
    return CodecError(f"{shown(value)} ({type(value).__name__}) is not valid, expected {expected}", hint=hint)


def _bool(form: Form) -> Convert:
    def convert(value: Any) -> bool:
        if isinstance(value, bool | np.bool_):
            return bool(value)
        if form == "csv" and isinstance(value, str) and value.lower() in {"true", "false"}:
            return value.lower() == "true"
        raise _wrong(value, "bool", "true or false")

    return convert


def _integer(kind: str, form: Form) -> Convert:
    limits = np.iinfo(kind)
    low, high = int(limits.min), int(limits.max)

    def convert(value: Any) -> int:
        number: int
        if isinstance(value, bool | np.bool_):
            raise _wrong(value, kind)
        if isinstance(value, int | np.integer) or (
            isinstance(value, float | np.floating) and float(value).is_integer()
        ):
            number = int(value)
        elif form == "csv" and isinstance(value, str):
            try:
                number = int(value)
            except ValueError:
                raise _wrong(value, kind) from None
        else:
            raise _wrong(value, kind)
        if not low <= number <= high:
            raise CodecError(f"{number} does not fit {kind}", hint=f"valid: {low}..{high}")
        return number

    return convert


def _float(kind: str, form: Form) -> Convert:
    as_kind = np.dtype(kind).type

    def convert(value: Any) -> float:
        if isinstance(value, str) and form != "python":
            if value in _SPECIAL_FLOATS:
                return _SPECIAL_FLOATS[value]
            if form != "csv":
                raise _wrong(value, kind, 'as text only "NaN", "Infinity" or "-Infinity"')
            try:
                value = float(value)
            except ValueError:
                raise _wrong(value, kind) from None
        if isinstance(value, bool | np.bool_) or not isinstance(
            value, int | float | np.integer | np.floating
        ):
            raise _wrong(value, kind)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        with np.errstate(over="ignore"):
            result = float(as_kind(number))
        if math.isinf(result) and value not in {math.inf, -math.inf}:
            raise CodecError(
                f"{shown(value)} does not fit {kind}", hint=f"largest: {float(np.finfo(kind).max)}"
            )
        return result

    return convert


def _decimal(field_type: FieldType, form: Form) -> Convert:
    precision, scale = field_type.precision or DEFAULT_PRECISION, field_type.scale
    unit = Decimal(1).scaleb(-scale)
    expected = f"decimal({precision},{scale})"

    def convert(value: Any) -> Decimal:
        if isinstance(value, bool | np.bool_) or not isinstance(
            value, str | int | float | Decimal | np.number
        ):
            raise _wrong(value, expected, 'give it as text, e.g. "12.50"')
        if isinstance(value, str) and form == "python":
            raise _wrong(value, expected, "a node gives decimal.Decimal")
        try:
            # repr of a float is the shortest text that means it: what the sender wrote.
            text = repr(float(value)) if isinstance(value, float | np.floating) else str(value)
            number = Decimal(text)
            exact = number.quantize(unit, context=_WIDEST)
        except (InvalidOperation, ValueError):
            raise _wrong(value, expected) from None
        if exact != number:
            raise CodecError(f"{shown(value)} has more than {scale} digits after the point", hint=expected)
        if len(exact.as_tuple().digits) > precision:
            raise CodecError(f"{shown(value)} has more than {precision} digits", hint=expected)
        return exact

    return convert


def _string(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    raise _wrong(value, "string")


def _bytes(form: Form) -> Convert:
    def convert(value: Any) -> bytes:
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        if isinstance(value, str) and form != "python":
            try:
                return base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                raise _wrong(value, "bytes as base64 text") from None
        raise _wrong(value, "bytes")

    return convert


def utc_naive(value: datetime) -> datetime:
    """UTC without tzinfo, the form in which lists and records hold a timestamp; a naive one is UTC already."""
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def _timestamp(form: Form) -> Convert:
    hint = "e.g. 2024-05-01T12:00:00Z; without zone it is UTC"

    def convert(value: Any) -> datetime:
        if isinstance(value, np.datetime64):
            value = value.astype("datetime64[us]").item()
        if isinstance(value, str) and form != "python":
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise _wrong(value, "timestamp as ISO 8601 text", hint) from None
        if not isinstance(value, datetime):
            raise _wrong(value, "timestamp", hint)
        try:
            plain = utc_naive(value)
        except OverflowError:
            raise _wrong(value, "timestamp within years 1..9999", hint) from None
        # Subclasses (pandas) carry nanoseconds and their own arithmetic: keep the plain type.
        return plain if type(plain) is datetime else datetime.fromisoformat(plain.isoformat()[:26])

    return convert


def _date(form: Form) -> Convert:
    def convert(value: Any) -> date:
        if isinstance(value, np.datetime64):
            value = value.astype("datetime64[us]").item()
        if isinstance(value, str) and form != "python":
            try:
                value = date.fromisoformat(value)
            except ValueError:
                raise _wrong(value, "date as ISO 8601 text", "e.g. 2024-05-01") from None
        if isinstance(value, datetime) and value.time() == time():
            return value.date()
        if isinstance(value, datetime) or not isinstance(value, date):
            raise _wrong(value, "date", "e.g. 2024-05-01")
        return value

    return convert


def _enum(field_type: FieldType) -> Convert:
    symbols = frozenset(field_type.symbols)

    def convert(value: Any) -> str:
        if isinstance(value, str) and value in symbols:
            return str(value)
        raise CodecError(f"{shown(value)} is not a symbol of the enum", hint=nearest(str(value), symbols))

    return convert


def _from_text(value: Any, form: Form, expected: str) -> Any:
    """CSV writes what has structure as JSON text."""
    if form == "csv" and isinstance(value, str):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            raise _wrong(value, f"{expected} as JSON text") from None
    return value


def _tensor(field_type: FieldType, form: Form) -> Convert:
    expected = FieldType(field_type.kind, field_type.shape).describe()

    def convert(value: Any) -> Column:
        value = _from_text(value, form, expected)
        try:
            array = number_array(value, field_type.kind)
            if array.dtype.kind in "OU":
                array = np.asarray(
                    _special_floats(value), dtype=np.float64 if array.dtype.kind == "U" else None
                )
        except (ValueError, TypeError, OverflowError):
            raise _wrong(value, expected, "rows of unequal length or values that are not numbers") from None
        missing = len(field_type.shape) - array.ndim
        if array.size == 0 and 0 < missing < len(field_type.shape):
            # Nested lists cannot say the sizes inside an empty one: declared sizes hold, free ones are 0.
            array = array.reshape(*array.shape, *(max(size, 0) for size in field_type.shape[-missing:]))
        if len(array.shape) != len(field_type.shape) or any(
            want not in (-1, have) for want, have in zip(field_type.shape, array.shape, strict=True)
        ):
            raise CodecError(f"an array of shape {list(array.shape)} is not valid, expected {expected}")
        return _tensor_dtype(array, field_type, expected)

    return convert


def _special_floats(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_special_floats(item) for item in value]
    return _SPECIAL_FLOATS.get(value, value) if isinstance(value, str) else value


def _tensor_dtype(array: npt.NDArray[Any], field_type: FieldType, expected: str) -> Column:
    dtype = np.dtype(field_type.kind)
    if array.size == 0 and array.dtype.kind in "biuf":
        return array.astype(dtype)
    if array.dtype.kind not in ("b" if dtype.kind == "b" else "iuf"):
        raise CodecError(f"an array of {array.dtype} is not valid, expected {expected}")
    result, bad = cast_numbers(array.astype(array.dtype.newbyteorder("=")), field_type.kind)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise CodecError(f"element {list(place)} is {array[place]}, which does not fit {field_type.kind}")
    return result


def _list(field_type: FieldType, form: Form) -> Convert:
    assert field_type.item is not None, "a list type has an item type"
    item = cell_converter(field_type.item, "json" if form == "csv" else form)
    expected = FieldType("list", item=field_type.item).describe()

    def convert(value: Any) -> list[Any]:
        value = _from_text(value, form, expected)
        if isinstance(value, np.ndarray):
            value = list(value)
        if not isinstance(value, list | tuple):
            raise _wrong(value, expected)
        result = []
        for index, element in enumerate(value):
            try:
                result.append(item(element))
            except CodecError as error:
                raise _placed(f"[{index}]", error) from None
        return result

    return convert


def _record(field_type: FieldType, form: Form, ignore_unknown: bool) -> Convert:
    inner: Form = "json" if form == "csv" else form
    members = {f.name: cell_converter(f.type, inner, ignore_unknown) for f in field_type.fields}
    expected = FieldType("record", fields=field_type.fields).describe()

    def convert(value: Any) -> dict[str, Any]:
        value = _from_text(value, form, expected)
        if not isinstance(value, Mapping):
            raise _wrong(value, expected)
        result = {}
        for name, member in members.items():
            try:
                result[name] = member(value.get(name))
            except CodecError as error:
                raise _placed(f".{name}", error) from None
        if not ignore_unknown and not value.keys() <= members.keys():
            unknown = next(n for n in value if n not in members)
            raise CodecError(f"unknown field {unknown!r} in the record", hint=nearest(str(unknown), members))
        return result

    return convert


def _placed(place: str, error: CodecError) -> CodecError:
    separator = "" if error.message.startswith((".", "[")) else ": "
    return CodecError(f"{place}{separator}{error.message}", hint=error.hint)


def is_null(value: Any, field_type: FieldType, form: Form) -> bool:
    """Whether a cell of this form stands for null: None, NaT, and an empty text in CSV where no text is meant."""
    if value is None:
        return True
    if form == "csv" and isinstance(value, str) and value == "":
        return field_type.nullable or field_type.kind not in ("string", "enum", "bytes")
    if isinstance(value, np.datetime64):
        return bool(np.isnat(value))
    # pandas' NaT is a datetime that differs from itself.
    return isinstance(value, datetime) and value != value  # noqa: PLR0124


def cell_converter(field_type: FieldType, form: Form, ignore_unknown: bool = False) -> Convert:
    """A function that makes one cell canonical (see `core.schema`) or raises CodecError saying what is valid.

    Inside lists and records, timestamps are naive UTC datetimes and tensors arrays.
    """
    kind = field_type.kind
    inner: Convert
    if field_type.shape:
        inner = _tensor(field_type, form)
    elif kind in INTEGERS:
        inner = _integer(kind, form)
    elif kind in FLOATS:
        inner = _float(kind, form)
    else:
        makers: Mapping[str, Callable[[], Convert]] = {
            "bool": lambda: _bool(form),
            "decimal": lambda: _decimal(field_type, form),
            "string": lambda: _string,
            "bytes": lambda: _bytes(form),
            "timestamp": lambda: _timestamp(form),
            "date": lambda: _date(form),
            "enum": lambda: _enum(field_type),
            "list": lambda: _list(field_type, form),
            "record": lambda: _record(field_type, form, ignore_unknown),
        }
        inner = makers[kind]()

    def convert(value: Any) -> Any:
        if is_null(value, field_type, form):
            if field_type.nullable:
                return None
            raise CodecError(f"null is not allowed, expected {field_type.describe()}")
        return inner(value)

    return convert
