"""Aggregates of windows: what a text like ``mean(price)`` means, its type, and how it takes one value after another.

Null and NaN are left out by all of them. Each gives the same result however the records were cut into batches: what
is kept between two batches is the accumulator itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import partial
from typing import Any, Final

import numpy as np

from dataflow.sdk import Batch, Column, ContractError, Fail, Field, FieldType, Schema, column_of, nearest

from ._window_sketches import Distinct, Quantile

INT64: Final = FieldType("int64")
FLOAT64: Final = FieldType("float64")
FUNCTIONS: Final = ("count", "sum", "mean", "min", "max", "first", "last", "quantile", "distinct")
_CALL: Final = re.compile(r"([a-z]+)(?:\(\s*([A-Za-z_]\w*)\s*(?:,\s*([0-9.eE+-]+)\s*)?\))?")
_INTEGERS: Final = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_FLOATS: Final = ("float16", "float32", "float64")
_ORDERED: Final = (*_INTEGERS, *_FLOATS, "decimal", "string", "enum", "bytes", "timestamp", "date")
_CARRIED: Final = (*_ORDERED, "bool")
_LARGEST: Final = (1 << 63) - 1
_MAX_DIGITS: Final = 38
_WIDE: Final = Context(prec=2 * _MAX_DIGITS)
_NULL: Final = {"timestamp": -(1 << 63), "date": -(1 << 63)}

Step = Callable[[Any, Any], Any]
Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class Parsed:
    """``function(field, number)`` as written."""

    function: str
    field: str = ""
    number: float | None = None


@dataclass(frozen=True)
class Aggregate:
    """One field of a window's result.

    column    the field that it takes values of; "" for none, "*" for whole records as dicts
    start     makes an empty accumulator; `add(accumulator, value)` and `merge(earlier, later)` give the new one
    result    the value of the field, None for none
    pack      the accumulator as state carries it, `unpack` back; None where it is that already
    fallible  `add` and `merge` may raise, and change nothing in place; the others never raise, and may
    """

    field: Field
    column: str
    start: Callable[[], Any]
    add: Step
    merge: Step
    result: Convert
    pack: Convert | None = None
    unpack: Convert | None = None
    fallible: bool = False


def parse(text: str) -> Parsed:
    """Read an aggregate. Raises ValueError."""
    match = _CALL.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is no aggregate: count, sum(FIELD), quantile(FIELD, 0.95)")
    function, field, number = match[1], match[2] or "", match[3]
    if function not in FUNCTIONS:
        raise ValueError(f"unknown aggregate '{function}' ({nearest(function, FUNCTIONS)})")
    if not field and function != "count":
        raise ValueError(f"'{function}' needs a field: {function}(FIELD)")
    if function != "quantile":
        if number is not None:
            raise ValueError(f"'{function}' takes one field: {function}({field})")
        return Parsed(function, field)
    try:
        share = float(number or "")
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"'{text}' needs a share between 0 and 1: quantile({field}, 0.95)")
    return Parsed(function, field, share)


def aggregate_of(name: str, parsed: Parsed, schema: Schema, path: tuple[str | int, ...]) -> Aggregate:
    """The aggregate over a contract. Raises ContractError at `path` for a field it lacks or whose type will not do."""
    if not parsed.field:
        return Aggregate(Field(name, INT64), "", _zero, _count, _plus, _same)
    if parsed.field not in schema:
        raise ContractError(
            f"{path[-1]}: no field '{parsed.field}' in the input",
            path=path,
            hint=nearest(parsed.field, schema.names),
        )
    kind = schema[parsed.field].type
    takes = {"sum": ("number",), "mean": ("number",), "quantile": ("number",)}.get(parsed.function)
    if parsed.function in ("min", "max"):
        good = kind.kind in _ORDERED
    elif takes:
        good = kind.kind in (*_INTEGERS, *_FLOATS, "decimal")
    else:
        good = kind.kind in _CARRIED or parsed.function == "count"
    if (kind.shape and parsed.function != "count") or not good:
        raise ContractError(
            f"{path[-1]}: {parsed.function} of '{parsed.field}', which is {kind.describe()}",
            path=path,
            hint="transform.select makes a scalar of it first",
        )
    return _made(name, parsed, schema[parsed.field])


def _made(name: str, parsed: Parsed, source: Field) -> Aggregate:
    kind, column = source.type, source.name
    optional = FieldType("float64", nullable=kind.nullable)
    match parsed.function:
        case "count":
            return Aggregate(Field(name, INT64), column, _zero, _count, _plus, _same)
        case "sum" if kind.kind in _FLOATS:
            return Aggregate(Field(name, FLOAT64), column, float, _plus, _plus, _same)
        case "sum" if kind.kind == "decimal":
            limit = 10**_MAX_DIGITS
            step, merge = partial(_plus_scaled, limit, kind.scale), partial(_plus_within, limit)
            wide = FieldType("decimal", precision=_MAX_DIGITS, scale=kind.scale)
            back = partial(_unscaled, kind.scale)
            return Aggregate(Field(name, wide), column, _zero, step, merge, back, str, int, True)
        case "sum":
            step = partial(_plus_within, _LARGEST)
            return Aggregate(Field(name, INT64), column, _zero, step, step, _same, fallible=True)
        case "mean":
            add = partial(_mean_scaled, kind.scale) if kind.kind == "decimal" else _mean
            return Aggregate(Field(name, optional), column, _nothing, add, _mean_merged, _mean_result)
        case "quantile":
            sketch = Quantile(parsed.number or 0.0)
            return Aggregate(
                Field(name, optional), column, sketch.start, sketch.add, sketch.merge, sketch.result
            )
        case "distinct":
            counted = Distinct()
            return Aggregate(
                Field(name, INT64), column, counted.start, counted.add, counted.merge, counted.result,
                counted.pack, counted.unpack,
            )  # fmt: skip
        case function:
            chosen = {"min": _smaller, "max": _larger, "first": _first, "last": _last}[function]
            same = Field(name, kind, unit=source.unit, privacy=source.privacy)
            pack, unpack = (_text, _decimal) if kind.kind == "decimal" else (None, None)
            return Aggregate(same, column, _none, chosen, chosen, _same, pack, unpack)


def cells(batch: Batch, column: str) -> Sequence[Any] | None:
    """The values of a column as aggregates take them, None for null and NaN; None for an aggregate without a column.

    Timestamps are microseconds and dates days, both as integers; so they order, and state can carry them.
    """
    if not column:
        return None
    if column == "*":
        return batch.to_dicts()
    found = batch[column]
    if found.dtype.kind == "M":
        numbers = found.astype(np.int64).tolist()
        return [None if v == _NULL["date"] else v for v in numbers] if np.isnat(found).any() else numbers
    values: list[Any] = list(found) if found.ndim > 1 else found.tolist()
    if found.ndim == 1 and batch.schema[column].type.kind in _FLOATS and _has_nan(found):
        return [None if v is None or math.isnan(v) else v for v in values]
    return values


def _has_nan(column: Column) -> bool:
    return bool(column.dtype.hasobject or np.isnan(column).any())


def column(kind: FieldType, values: Sequence[Any]) -> Column:
    """Results as a column of their type."""
    if kind.kind in _NULL:
        null = _NULL[kind.kind]
        numbers = np.array([null if v is None else v for v in values], dtype=np.int64)
        return numbers.view(kind.column_dtype)
    if not kind.nullable and kind.kind in _FLOATS:
        values = [math.nan if v is None else v for v in values]
    return column_of(kind, values)


# --- accumulators


def _zero() -> int:
    return 0


def _none() -> None:
    return None


def _nothing() -> tuple[float, int]:
    return (0.0, 0)


def _same(value: Any) -> Any:
    return value


def _count(total: int, _: Any) -> int:
    return total + 1


def _plus(total: Any, value: Any) -> Any:
    return total + value


def _plus_within(limit: int, total: int, value: int) -> int:
    made = total + value
    if not -limit <= made <= limit:
        raise Fail(f"the sum leaves its type at {made}")
    return made


def _plus_scaled(limit: int, scale: int, total: int, value: Decimal) -> int:
    return _plus_within(limit, total, int(_WIDE.scaleb(value, scale)))


def _unscaled(scale: int, total: int) -> Decimal:
    return _WIDE.scaleb(Decimal(total), -scale)


def _mean(state: Sequence[Any], value: float) -> tuple[float, int]:
    return (state[0] + value, state[1] + 1)


def _mean_scaled(_: int, state: Sequence[Any], value: Decimal) -> tuple[float, int]:
    return (state[0] + float(value), state[1] + 1)


def _mean_merged(one: Sequence[Any], other: Sequence[Any]) -> tuple[float, int]:
    return (one[0] + other[0], one[1] + other[1])


def _mean_result(state: Sequence[Any]) -> float | None:
    return float(state[0]) / int(state[1]) if state[1] else None


def _smaller(kept: Any, value: Any) -> Any:
    if kept is None:
        return value
    return value if value is not None and value < kept else kept


def _larger(kept: Any, value: Any) -> Any:
    if kept is None:
        return value
    return value if value is not None and value > kept else kept


def _first(kept: Any, value: Any) -> Any:
    return value if kept is None else kept


def _last(kept: Any, value: Any) -> Any:
    return kept if value is None else value


def _text(value: Decimal | None) -> str | None:
    return None if value is None else str(value)


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
