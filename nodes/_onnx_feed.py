"""Columns to model inputs and model outputs to columns, without copies where dtypes and shapes already agree."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from dataflow.sdk import Batch, Column, Field, FieldType, ModelError

from ._onnx_binding import FLOAT_KINDS, INTEGER_KINDS, Binding

Feeder = Callable[[Batch], Column]


def feeder(binding: Binding, rank: int) -> Feeder:
    """A function from a batch (of rows of equal shape) to the array for one input, of `rank` axes with the batch axis.

    It raises ValueError when a value does not survive the cast; the array may share memory with the batch.
    """
    port = binding.input
    if port.type.kind == "string":
        name = binding.fields[0].name
        return (
            (lambda batch: batch.columns[name].reshape(-1, 1))
            if rank == 2
            else lambda batch: batch.columns[name]
        )
    dtype = np.dtype(port.type.kind)
    if len(binding.fields) > 1:
        return _stacked(binding.fields, dtype)
    field = binding.fields[0]
    name, plain = field.name, field.type.column_dtype == dtype
    one = rank - 1 != len(field.type.shape)  # a scalar field for an input of [N, 1], or [1] for [N]
    if plain and not one:
        return lambda batch: batch.columns[name]
    shape = (-1,) if rank == 1 else (-1, 1)
    if plain:
        return lambda batch: batch.columns[name].reshape(shape)

    def converted(batch: Batch) -> Column:
        values = cast_column(_dense(batch, field), dtype)
        return values.reshape(shape) if one else values

    return converted


def _stacked(fields: Sequence[Field], dtype: np.dtype[Any]) -> Feeder:
    """Scalars and vectors side by side, in the order given."""
    parts: list[tuple[Field, slice | int]] = []
    width = 0
    for field in fields:
        size = field.type.shape[0] if field.type.shape else 1
        parts.append((field, slice(width, width + size) if field.type.shape else width))
        width += size

    def stack(batch: Batch) -> Column:
        values = np.empty((len(batch), width), dtype)
        for field, columns in parts:
            values[:, columns] = cast_column(_dense(batch, field), dtype)
        return values

    return stack


def _dense(batch: Batch, field: Field) -> Column:
    """The column as one array: nulls as NaN, decimals as floats, rows of equal free shape stacked."""
    column = batch.columns[field.name]
    if not column.dtype.hasobject:
        return column
    if field.type.is_tensor:
        return np.stack(list(column)) if len(column) else np.empty((0,), field.type.kind)
    return batch.floats(field.name)


def cast_column(values: Column, dtype: np.dtype[Any]) -> Column:
    """`values` as `dtype`. Raises ValueError when an integer or bool result does not equal its source."""
    if values.dtype == dtype:
        return values
    if dtype.name in FLOAT_KINDS:
        with np.errstate(over="ignore"):  # beyond the range is infinity, as everywhere with floats
            return values.astype(dtype)
    with np.errstate(invalid="ignore"):
        made = values.astype(dtype)
    survives = made == values
    if values.dtype.name in INTEGER_KINDS and dtype.name in INTEGER_KINDS:
        survives &= (made < 0) == (values < 0)  # uint64 against int64 compares as floats
    if not survives.all():
        value = values[~survives].flat[0]
        raise ValueError(f"value {value} of {values.dtype} does not fit {dtype}")
    return made


def shapes_of(batch: Batch, names: Sequence[str]) -> list[Hashable]:
    """For each row the shapes of its free tensors: rows with equal ones can run together."""
    columns = [batch.columns[name] for name in names]
    return [tuple(np.shape(value) for value in row) for row in zip(*columns, strict=True)]


def output_column(name: str, values: Any, wanted: FieldType, rows: int) -> Column:
    """One model output as the column of type `wanted`. Raises ModelError when it does not give one value per row."""
    if not isinstance(values, np.ndarray) or values.ndim == 0 or len(values) != rows:
        shape = list(np.shape(values)) if isinstance(values, np.ndarray) else type(values).__name__
        raise ModelError(f"output '{name}' is {shape} for {rows} rows: not one value per row")
    if values.ndim == 2 and values.shape[1] == 1 and not wanted.shape:
        values = values.reshape(rows)
    if values.ndim != len(wanted.shape) + 1 or any(
        w not in {-1, h} for w, h in zip(wanted.shape, values.shape[1:], strict=True)
    ):
        raise ModelError(f"output '{name}' is {list(values.shape[1:])} per row, not {wanted.describe()}")
    made: Column = values if values.dtype.hasobject else values.astype(wanted.kind, copy=False)
    if made.dtype.hasobject or not wanted.column_dtype.hasobject:
        return made
    column: Column = np.empty(rows, dtype=object)
    for row in range(rows):
        column[row] = made[row] if wanted.is_tensor else made[row].item()
    return column


def scatter(
    parts: Sequence[tuple[Sequence[int], Mapping[str, Column]]],
) -> tuple[list[int], dict[str, Column]]:
    """Results of several runs in the order of their rows: the rows (ascending) and the columns."""
    rows = [row for part, _ in parts for row in part]
    order = np.argsort(rows, kind="stable")
    names = parts[0][1]
    columns = {name: np.concatenate([made[name] for _, made in parts])[order] for name in names}
    return [rows[i] for i in order.tolist()], columns
