"""Common types: what `a if c else b`, coalesce, min, max and comparisons make of parts of different types."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import numpy as np

from dataflow.core.schema import FLOATS, INTEGERS, FieldType
from dataflow.expressions.typed import (
    FLOAT64,
    INT64,
    STRING,
    TIMESTAMP,
    Array,
    Typed,
    constant,
    map_one,
)

_INT64: Final = np.iinfo(np.int64)


def to_int64(values: Array) -> Array:
    """Integers as int64; a uint64 beyond it becomes the largest int64 (arithmetic saturates)."""
    if values.dtype == np.uint64:
        return np.minimum(values, np.uint64(_INT64.max)).astype(np.int64)
    return values.astype(np.int64, copy=False)


def decimals_to_float(values: Array) -> Array:
    return np.array([0.0 if value is None else float(value) for value in values.tolist()], dtype=np.float64)


def converted(part: Typed, target: FieldType) -> Typed:
    """`part` as `target` (nullability aside), by a conversion that has an answer for every value."""
    if part.untyped:
        return constant(target, None)
    target = replace(target, nullable=False)
    kind, wanted = part.type.kind, target.kind
    if kind == wanted or {kind, wanted} == {"string", "enum"}:
        return replace(part, type=replace(target, nullable=part.type.nullable))
    if kind == "decimal":
        as_float = map_one(FLOAT64, decimals_to_float, part)
        return converted(as_float, target)
    if wanted == "int64":
        return map_one(INT64, to_int64, part)
    dtype = target.column_dtype if wanted == "timestamp" else np.dtype(wanted)
    return map_one(target, lambda values: values.astype(dtype), part)


def as_float(part: Typed) -> Typed:
    return converted(part, FLOAT64)


def as_int(part: Typed) -> Typed:
    return converted(part, INT64)


def as_timestamp(part: Typed) -> Typed:
    return converted(part, TIMESTAMP)


def common(parts: tuple[Typed, ...]) -> FieldType | None:
    """The type that all `parts` can be converted to (nullable where one is), or None if there is none.

    A number written in the text takes the type of what it stands beside where it fits: ``coalesce(seats, 0)`` is
    as wide as `seats`.
    """
    found: FieldType | None = None
    for part in sorted(parts, key=_is_adaptable):  # those that adapt come last
        if part.untyped:
            continue
        found = part.type if found is None else _pair(found, part)
        if found is None:
            return None
    if found is None:
        return None
    return replace(found, nullable=any(part.type.nullable for part in parts))


def _is_adaptable(part: Typed) -> bool:
    return (
        part.constant and part.type.kind in ("int64", "uint64", "float64", "string") and not part.type.shape
    )


def _pair(left: FieldType, part: Typed) -> FieldType | None:
    right = part.type
    if left.shape or right.shape:
        return left if (left.kind, left.shape) == (right.kind, right.shape) else None
    if left.is_number and right.is_number:
        return _numbers(left, part)
    if {left.kind, right.kind} <= {"string", "enum"}:
        if left.kind == "enum" and (left.symbols == right.symbols or _is_symbol(part, left)):
            return left
        return STRING
    if {left.kind, right.kind} == {"timestamp", "date"}:
        return TIMESTAMP
    return left if replace(left, nullable=False) == replace(right, nullable=False) else None


def _is_symbol(part: Typed, enum: FieldType) -> bool:
    return part.constant and part.single() in enum.symbols


def _numbers(left: FieldType, part: Typed) -> FieldType:
    right = part.type
    if left.kind == "decimal" or right.kind == "decimal":
        same = left.kind == right.kind and (left.precision, left.scale) == (right.precision, right.scale)
        return left if same else FLOAT64
    if _is_adaptable(part) and _fits(part.single(), left.kind, right.kind):
        return left
    if {left.kind, right.kind} <= set(INTEGERS) and "uint64" in (left.kind, right.kind):
        return FieldType("uint64") if left.kind[0] == right.kind[0] else INT64
    return FieldType(np.promote_types(left.kind, right.kind).name)


def _fits(value: Any, kind: str, written_as: str) -> bool:
    """Whether the constant can be of `kind`: an integer in its range, a float in any float."""
    if value is None:
        return False
    if kind in FLOATS:
        return rounded(float(value), kind) is not None
    limits = np.iinfo(kind)
    return written_as in INTEGERS and int(limits.min) <= value <= int(limits.max)


def rounded(value: float, kind: str) -> float | None:
    """`value` in the precision of `kind`; None where it is beyond its range."""
    with np.errstate(over="ignore"):
        made = float(np.dtype(kind).type(value))
    return None if math.isinf(made) and not math.isinf(value) else made


def beside(part: Typed, other: Typed) -> Typed:
    """For comparisons: a number written beside a float32 or float16 takes its precision.

    Else ``confidence >= 0.9`` would be false for the float32 0.9, which is a little less than the float64 0.9.
    """
    if not _is_adaptable(part) or other.constant or not other.is_float or not part.is_number:
        return part
    value = part.single()
    near = None if value is None else rounded(float(value), other.type.kind)
    return part if near is None else constant(FieldType(other.type.kind), near)
