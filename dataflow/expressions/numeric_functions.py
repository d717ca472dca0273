"""Functions of numbers, and those of any type that are about null."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from dataflow.core.batch import Batch
from dataflow.expressions import arithmetic, tensor_functions
from dataflow.expressions.call import Arguments, Function
from dataflow.expressions.promotion import common, converted
from dataflow.expressions.typed import BOOL, FLOAT64, INT64, Array, Typed, Value, map_one, map_two, typed

_MAX_DIGITS: Final = 15


def _float_function(kernel: Callable[[Array], Array]) -> Callable[[Arguments], Typed]:
    return lambda arguments: map_one(FLOAT64, kernel, arguments.float(0))


def _whole(kernel: Callable[[Array], Array]) -> Callable[[Arguments], Typed]:
    """Floor and ceil: an integer is its own result."""

    def build(arguments: Arguments) -> Typed:
        if arguments.parts[0].is_integer:
            return arguments.parts[0]
        return map_one(FLOAT64, kernel, arguments.float(0))

    return build


def _absolute(arguments: Arguments) -> Typed:
    if arguments.parts[0].is_integer:
        return map_one(INT64, arithmetic.absolute, arguments.integer(0))
    return map_one(FLOAT64, np.abs, arguments.float(0))


def _round(arguments: Arguments) -> Typed:
    digits = arguments.constant_integer(1, 0, _MAX_DIGITS) if len(arguments) > 1 else 0
    if arguments.parts[0].is_integer:
        return arguments.parts[0]
    return map_one(FLOAT64, lambda values: np.round(values, digits), arguments.float(0))


def _power(arguments: Arguments) -> Typed:
    return map_two(FLOAT64, np.power, arguments.float(0), arguments.float(1))


def _is_nan(arguments: Arguments) -> Typed:
    return map_one(BOOL, np.isnan, arguments.float(0))


def _comparable(arguments: Arguments) -> tuple[Typed, ...]:
    """All arguments as one type that has an order: numbers, or timestamps and dates."""
    target = common(arguments.parts)
    if target is None or target.shape or not (target.is_number or target.kind in ("timestamp", "date")):
        shown = ", ".join(part.type.describe() for part in arguments.parts)
        arguments.fail(None, f"{arguments.name}() takes numbers, or timestamps and dates; these are {shown}")
    if target.kind == "decimal":
        target = FLOAT64
    return tuple(converted(part, target) for part in arguments.parts)


def _extreme(
    kernel: Callable[[Array, Array], Array], reduce: Callable[[Arguments], Typed]
) -> Callable[..., Typed]:
    def build(arguments: Arguments) -> Typed:
        if len(arguments) == 1:
            return reduce(arguments)
        first, *others = _comparable(arguments)
        for part in others:
            first = map_two(replace(first.type, nullable=False), kernel, first, part)
        return first

    return build


def _clip(arguments: Arguments) -> Typed:
    for index in range(3):
        arguments.number(index)
    value, low, high = _comparable(arguments)
    kind = replace(value.type, nullable=False)
    return map_two(kind, np.minimum, map_two(kind, np.maximum, value, low), high)


def _coalesce(arguments: Arguments) -> Typed:
    target = common(arguments.parts)
    if target is None:
        shown = ", ".join(part.type.describe() for part in arguments.parts)
        arguments.fail(None, f"coalesce() takes values of one type; these are {shown}")
    parts = tuple(converted(part, target) for part in arguments.parts)
    never_null = any(not part.type.nullable for part in parts)
    runs = tuple(part.run for part in parts)

    def run(batch: Batch) -> Value:
        values, valid = runs[0](batch)
        for inner in runs[1:]:
            if valid is None:
                break
            other, other_valid = inner(batch)
            chosen = valid.reshape((-1, *(1,) * (values.ndim - 1)))
            values = np.where(chosen, values, other)
            valid = None if other_valid is None else valid | other_valid
        return values, valid

    return typed(replace(target, nullable=not never_null), run, *parts)


FUNCTIONS: Final = (
    Function("abs", "abs(x)", "Without its sign.", 1, 1, _absolute),
    Function(
        "min", "min(a, b, ...)", "The least; NaN if one is NaN. Of one tensor or list: its least element.",
        1, None, _extreme(np.minimum, tensor_functions.least),
    ),
    Function(
        "max", "max(a, b, ...)", "The greatest; NaN if one is NaN. Of one tensor or list: its greatest element.",
        1, None, _extreme(np.maximum, tensor_functions.greatest),
    ),
    Function("clip", "clip(x, low, high)", "x, but not below low and not above high.", 3, 3, _clip),
    Function(
        "round", "round(x, digits)", "To the nearest with so many digits (0 if left out), halves to even.",
        1, 2, _round,
    ),
    Function("floor", "floor(x)", "The whole number not above x.", 1, 1, _whole(np.floor)),
    Function("ceil", "ceil(x)", "The whole number not below x.", 1, 1, _whole(np.ceil)),
    Function("sqrt", "sqrt(x)", "Square root; NaN below 0.", 1, 1, _float_function(np.sqrt)),
    Function("exp", "exp(x)", "e to the power x.", 1, 1, _float_function(np.exp)),
    Function("log", "log(x)", "Natural logarithm; -inf at 0, NaN below.", 1, 1, _float_function(np.log)),
    Function("pow", "pow(x, y)", "x to the power y, as float64.", 2, 2, _power),
    Function("isnan", "isnan(x)", "Whether x is NaN (which is not null).", 1, 1, _is_nan),
    Function("coalesce", "coalesce(a, b, ...)", "The first that is not null.", 1, None, _coalesce),
)  # fmt: skip
