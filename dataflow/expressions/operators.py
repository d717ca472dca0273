"""Operators on typed parts: comparison, membership, three-valued logic and choice. The checker has checked types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from dataflow.core.batch import Batch
from dataflow.core.schema import FieldType
from dataflow.expressions import arithmetic
from dataflow.expressions.promotion import as_float, as_int, as_timestamp, beside, decimals_to_float
from dataflow.expressions.typed import (
    BOOL,
    FLOAT64,
    INT64,
    Array,
    Mask,
    Typed,
    Value,
    from_python,
    map_one,
    map_partial,
    map_rows,
    map_two,
    nullable,
    typed,
)

COMPARE: Final[dict[str, Callable[[Array, Array], Array]]] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
_FLOATS: Final[dict[str, Callable[[Array, Array], Array]]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "//": np.floor_divide,
    "%": np.remainder,
}
_INTEGERS: Final[dict[str, Callable[[Array, Array], Array]]] = {
    "+": arithmetic.add,
    "-": arithmetic.subtract,
    "*": arithmetic.multiply,
    "//": arithmetic.floor_divide,
    "%": arithmetic.remainder,
}


def numbers(operator: str, left: Typed, right: Typed) -> Typed:
    """Arithmetic on two numbers: int64 if both are integers (save for /), else float64."""
    if operator == "/" or not (left.is_integer and right.is_integer):
        return map_two(FLOAT64, _FLOATS[operator], as_float(left), as_float(right))
    left, right = as_int(left), as_int(right)
    if operator not in ("//", "%") or (right.constant and right.single() not in (0, None)):
        return map_two(INT64, _INTEGERS[operator], left, right)
    partial = arithmetic.partial_floor_divide if operator == "//" else arithmetic.partial_remainder
    return map_partial(INT64, partial, left, right)


def negative(part: Typed) -> Typed:
    if part.is_integer:
        return map_one(INT64, arithmetic.negate, as_int(part))
    return map_one(FLOAT64, np.negative, as_float(part))


def compare(operator: str, left: Typed, right: Typed) -> Typed:
    """Two numbers, two texts, two times, or two values of one kind that is only equal or not."""
    if left.is_number:
        left, right = _comparable(left, right), _comparable(right, left)
    elif left.is_time and left.type.kind != right.type.kind:
        left, right = as_timestamp(left), as_timestamp(right)
    return map_two(BOOL, COMPARE[operator], left, right)


def _comparable(part: Typed, other: Typed) -> Typed:
    if part.type.kind == "decimal":
        return map_one(FLOAT64, decimals_to_float, part)
    return beside(part, other)


def within(operand: Typed, items: tuple[Typed, ...], negated: bool) -> Typed:
    """Whether a value equals one of some constants. A hash look-up per row: fast for one row and for a long list."""
    if operand.is_number:
        operand = _comparable(operand, operand)
        items = tuple(beside(item, operand) for item in items)
    if operand.is_time:
        operand = as_timestamp(operand)
        items = tuple(as_timestamp(item) for item in items)
    found = frozenset(item.single() for item in items)

    def kernel(values: Array) -> Array:
        made = np.fromiter((value in found for value in values.tolist()), np.bool_, len(values))
        return ~made if negated else made

    return map_one(BOOL, kernel, operand)


def like(operand: Typed, test: Callable[[Any], bool], negated: bool) -> Typed:
    return map_rows(BOOL, (lambda text: not test(text)) if negated else test, operand)


def is_null(part: Typed, negated: bool) -> Typed:
    inner = part.run

    def run(batch: Batch) -> Value:
        valid = inner(batch)[1]
        if valid is None:
            return np.full(1, negated), None
        return (valid if negated else ~valid), None

    return typed(BOOL, run, part)


def negation(part: Typed) -> Typed:
    """``not``: null stays null."""
    return map_one(BOOL, np.logical_not, part)


def logic(operator: str, parts: tuple[Typed, ...]) -> Typed:
    """``and``, ``or`` of three values (Kleene): false decides `and`, true decides `or`, whatever else is null."""
    runs = tuple(part.run for part in parts)
    conjunction = operator == "and"

    def run(batch: Batch) -> Value:
        values, valid = runs[0](batch)
        for inner in runs[1:]:
            others, others_valid = inner(batch)
            if valid is None and others_valid is None:
                values = values & others if conjunction else values | others
                continue
            values, valid = _kleene(conjunction, values, valid, others, others_valid)
        return values, valid

    return typed(nullable(BOOL, *parts), run, *parts)


def _kleene(conjunction: bool, a: Array, a_valid: Mask | None, b: Array, b_valid: Mask | None) -> Value:
    a_true, a_false = _certain(a, a_valid)
    b_true, b_false = _certain(b, b_valid)
    true = a_true & b_true if conjunction else a_true | b_true
    false = a_false | b_false if conjunction else a_false & b_false
    return true, true | false


def _certain(values: Array, valid: Mask | None) -> tuple[Array, Array]:
    """Rows that are true, and rows that are false."""
    return (values, ~values) if valid is None else (values & valid, ~values & valid)


def choice(condition: Typed, then: Typed, otherwise: Typed, result: FieldType) -> Typed:
    """``then if condition else otherwise``, both already of type `result`. A null condition chooses `otherwise`."""
    test, first, second = condition.run, then.run, otherwise.run

    def run(batch: Batch) -> Value:
        chosen, known = test(batch)
        if known is not None:
            chosen = chosen & known
        a, a_valid = first(batch)
        b, b_valid = second(batch)
        wide = chosen.reshape((-1, *(1,) * (a.ndim - 1)))
        values = np.where(wide, a, b)
        if a_valid is None and b_valid is None:
            return values, None
        return values, np.where(
            chosen, True if a_valid is None else a_valid, True if b_valid is None else b_valid
        )

    kept = then.type.nullable or otherwise.type.nullable
    return typed(replace(result, nullable=kept), run, condition, then, otherwise)


def member(part: Typed, name: str, result: FieldType) -> Typed:
    """``part.name`` of a nested record; null where the record is null or lacks the field."""
    inner = part.run
    target = replace(result, nullable=result.nullable or part.type.nullable)

    def run(batch: Batch) -> Value:
        values, _ = inner(batch)
        made = [None if value is None else value.get(name) for value in values.tolist()]
        return from_python(target, made)

    return typed(target, run, part)
