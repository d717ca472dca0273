"""Elements of tensors and lists, and functions that make one number of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from dataflow.core.schema import FLOATS, FieldType
from dataflow.expressions.arithmetic import saturated_sum
from dataflow.expressions.call import Arguments, Function
from dataflow.expressions.promotion import to_int64
from dataflow.expressions.typed import FLOAT64, INT64, Array, Typed, map_one, map_rows

# Takes an array of rows and the axes to reduce; gives one number per row.
Reduce = Callable[[Array, tuple[int, ...]], Array]


def element(part: Typed, position: int) -> Typed:
    """``part[position]``; null where a row is too short. The caller has checked a fixed size."""
    if part.type.kind == "list":
        assert part.type.item is not None
        return map_rows(part.type.item, lambda items: _at(items, position), part, partial=True)
    kept = replace(part.type, shape=part.type.shape[1:], nullable=False)
    if part.type.has_free_dimension:
        if not kept.shape:
            return map_rows(kept, lambda items: _scalar_at(items, position), part, partial=True)
        partial = part.type.shape[0] == -1
        return map_rows(kept, lambda items: _at(items, position), part, partial=partial)
    return map_one(kept, lambda values: values[:, position], part)


def _at(items: Any, position: int) -> Any:
    return items[position] if -len(items) <= position < len(items) else None


def _scalar_at(items: Any, position: int) -> Any:
    found = _at(items, position)
    return None if found is None else found.item()


def _reduction(part: Typed, result: FieldType, reduce: Reduce, empty: Any = None) -> Typed:
    """One number per row; of a row without elements it is `empty`, None for null."""
    if part.type.shape and not part.type.has_free_dimension:
        axes = tuple(range(1, 1 + len(part.type.shape)))
        return map_one(result, lambda values: reduce(values, axes), part)
    kind = part.type.kind if part.type.shape or part.type.item is None else part.type.item.kind

    def of_row(items: Any) -> Any:
        values = np.asarray(items, dtype=kind).reshape(1, -1)
        return reduce(values, (1,)).tolist()[0] if values.size else empty

    return map_rows(result, of_row, part, partial=empty is None)


def _element_type(part: Typed) -> FieldType:
    return (
        FieldType(part.type.kind)
        if part.type.shape or part.type.item is None
        else FieldType(part.type.item.kind)
    )


def least(arguments: Arguments) -> Typed:
    part = arguments.numbers(0)
    return _reduction(part, _element_type(part), lambda values, axes: values.min(axis=axes))


def greatest(arguments: Arguments) -> Typed:
    part = arguments.numbers(0)
    return _reduction(part, _element_type(part), lambda values, axes: values.max(axis=axes))


def _sum(arguments: Arguments) -> Typed:
    part = arguments.numbers(0)
    if _element_type(part).kind in FLOATS:
        return _reduction(
            part, FLOAT64, lambda values, axes: values.sum(axis=axes, dtype=np.float64), empty=0.0
        )
    return _reduction(part, INT64, lambda values, axes: saturated_sum(to_int64(values), axes), empty=0)


def _mean(arguments: Arguments) -> Typed:
    part = arguments.numbers(0)
    return _reduction(part, FLOAT64, lambda values, axes: values.mean(axis=axes, dtype=np.float64))


def _argmax(arguments: Arguments) -> Typed:
    def first(values: Array, axes: tuple[int, ...]) -> Array:
        del axes
        size = int(np.prod(values.shape[1:]))
        places: Array = values.reshape((len(values), size)).argmax(axis=1)
        return places.astype(np.int64)

    return _reduction(arguments.numbers(0), INT64, first)


FUNCTIONS: Final = (
    Function("sum", "sum(x)", "Of all elements of a tensor or list; 0 of none.", 1, 1, _sum),
    Function("mean", "mean(x)", "Of all elements of a tensor or list; null of none.", 1, 1, _mean),
    Function(
        "argmax", "argmax(x)",
        "Where the greatest element of a tensor or list is, counted from 0 (row by row where it has several "
        "dimensions); the first of equals; null of none.", 1, 1, _argmax,
    ),
)  # fmt: skip
