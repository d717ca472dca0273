"""Casts: functions named after the type they make. What does not fit becomes null; float64 to float32 rounds."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from dataflow.core.batch import Batch
from dataflow.core.schema import FLOATS, INTEGERS, NUMBERS, FieldType
from dataflow.expressions.call import Arguments, Function
from dataflow.expressions.promotion import decimals_to_float
from dataflow.expressions.typed import (
    BOOL,
    FLOAT64,
    STRING,
    Array,
    Mask,
    Typed,
    Value,
    both,
    constant,
    map_one,
    map_partial,
    map_rows,
    objects,
    typed,
)

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_FLOAT: Final = re.compile(
    r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE
)
_TRUTH: Final = {"true": True, "false": False}


def _read_float(text: str) -> float | None:
    text = text.strip()
    return float(text) if _FLOAT.fullmatch(text) else None


def _integers_of(kind: str) -> Callable[[str], int | None]:
    limits = np.iinfo(kind)
    low, high = int(limits.min), int(limits.max)

    def read(text: str) -> int | None:
        text = text.strip()
        value = int(text) if _INTEGER.fullmatch(text) else None
        return value if value is not None and low <= value <= high else None

    return read


def _narrow(kind: str) -> Callable[[Array], tuple[Array, Mask]]:
    """Numbers to an integer type, cut towards zero; no answer where they do not fit (NaN does not)."""
    limits = np.iinfo(kind)
    low, high = int(limits.min), int(limits.max)

    def kernel(values: Array) -> tuple[Array, Mask]:
        if values.dtype.kind == "f":
            whole = np.trunc(values.astype(np.float64, copy=False))
            # float(high) may round up to high + 1, which does not fit: hence < high + 1.
            fine = (whole >= float(low)) & (whole < float(high + 1))
            return np.where(fine, whole, 0.0).astype(kind), fine
        own = np.iinfo(values.dtype)
        fine = np.ones(values.shape, dtype=np.bool_)
        if int(own.min) < low:
            fine &= values >= values.dtype.type(low)
        if int(own.max) > high:
            fine &= values <= values.dtype.type(high)
        return np.where(fine, values, 0).astype(kind), fine

    return kernel


def _per_row(kernel: Callable[[Array], tuple[Array, Mask]]) -> Callable[[Array], tuple[Array, Mask]]:
    """A tensor has an answer where all its elements have."""

    def of_tensors(values: Array) -> tuple[Array, Mask]:
        made, fine = kernel(values)
        return made, np.all(fine, axis=tuple(range(1, fine.ndim)))

    return of_tensors


def _number(kind: str) -> Callable[[Arguments], Typed]:
    target = FieldType(kind)

    def build(arguments: Arguments) -> Typed:
        part = arguments.parts[0]
        source = part.type.kind
        if part.untyped:
            return constant(target, None)
        if part.type.has_free_dimension:
            return _free_tensor(arguments, kind)
        shaped = FieldType(kind, part.type.shape)
        if source == kind:
            return part
        if source == "decimal":
            part, source = map_one(FLOAT64, decimals_to_float, part), "float64"
        if source == "bool" or (source in NUMBERS and np.can_cast(source, kind, "safe")):
            return map_one(shaped, lambda values: values.astype(kind), part)
        if source in NUMBERS:
            if kind in FLOATS:
                return map_one(shaped, lambda values: values.astype(kind), part)
            return map_partial(shaped, _per_row(_narrow(kind)), part)
        if not part.is_text:
            hint = "seconds between times: ts - timestamp('1970-01-01')" if part.is_time else ""
            shown = part.type.describe()
            arguments.fail(0, f"{arguments.name}() takes a number, a bool or a text; this is {shown}", hint)
        read: Callable[[str], Any] = _read_float if kind in FLOATS else _integers_of(kind)
        return map_rows(target, read, part, partial=True)

    return build


def _free_tensor(arguments: Arguments, kind: str) -> Typed:
    """A tensor with a free dimension: row by row, for the rows differ in shape."""
    part = arguments.parts[0]
    target = FieldType(kind, part.type.shape)
    if kind in FLOATS or np.can_cast(part.type.kind, kind, "safe"):
        return map_rows(target, lambda values: values.astype(kind), part)
    narrow = _narrow(kind)

    def of_row(values: Array) -> Array | None:
        made, fine = narrow(values)
        return made if fine.all() else None

    return map_rows(target, of_row, part, partial=True)


def _bool(arguments: Arguments) -> Typed:
    part = arguments.parts[0]
    if part.untyped:
        return constant(BOOL, None)
    if part.is_bool:
        return part
    if part.type.kind == "decimal":
        part = map_one(FLOAT64, decimals_to_float, part)
    if part.is_number and part.type.kind in FLOATS:
        return map_partial(BOOL, lambda values: (values != 0, ~np.isnan(values)), part)
    if part.is_number:
        return map_one(BOOL, lambda values: values != 0, part)
    if not part.is_text:
        arguments.fail(0, f"bool() takes a number or a text; this is {part.type.describe()}")
    return map_rows(BOOL, lambda text: _TRUTH.get(text.strip().lower()), part, partial=True)


def _string(arguments: Arguments) -> Typed:
    part = arguments.parts[0]
    kind = part.type.kind
    if part.untyped:
        return constant(STRING, None)
    if kind in ("string", "enum"):
        return replace(part, type=replace(STRING, nullable=part.type.nullable))
    if part.type.shape or kind in ("bytes", "list", "record"):
        arguments.fail(
            0, f"string() takes a number, a bool, a timestamp or a date; this is {part.type.describe()}"
        )
    if kind == "timestamp":
        return _texts(part, lambda value: value.isoformat() + "Z")
    if kind == "date":
        return _texts(part, lambda value: value.isoformat())
    if kind == "bool":
        return _texts(part, lambda value: "true" if value else "false")
    if kind in ("float16", "float32"):
        return _short_floats(part)
    return _texts(part, repr if kind == "float64" else str)


def _texts(part: Typed, write: Callable[[Any], str]) -> Typed:
    return map_rows(STRING, write, part)


def _short_floats(part: Typed) -> Typed:
    """As many digits as tell a float32 from its neighbours: as a Python float it would show twice as many."""
    inner = part.run

    def run(batch: Batch) -> Value:
        values, valid = inner(batch)
        return objects([str(value) for value in values]), both(valid, None)

    return typed(replace(STRING, nullable=part.type.nullable), run, part)


def _cast(name: str, kind: str) -> Function:
    if kind in INTEGERS:
        doc = "Cut towards zero; also of a text or bool. Null where it does not fit."
    else:
        doc = "Also of a text or bool. Null for a text that is no number."
    return Function(name, f"{name}(x)", f"As {kind}. {doc}", 1, 1, _number(kind))


FUNCTIONS: Final = (
    _cast("int", "int64"),
    _cast("float", "float64"),
    *(_cast(kind, kind) for kind in NUMBERS),
    Function(
        "bool", "bool(x)", "Whether a number is not 0; of a text: 'true' or 'false', else null.", 1, 1, _bool
    ),
    Function("string", "string(x)", "As a text; times in ISO 8601, UTC.", 1, 1, _string),
)
