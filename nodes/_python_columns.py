"""What array-wise functions returned or emitted, checked against the contract and emitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dataflow.sdk import CONSUMED, Batch, Column, Out, conform, nearest

from ._python_rows import RETURNED_NONE, Shape, shown


def settle_columns(shape: Shape, batch: Batch, result: Any, out: Out) -> None:
    """Account for every row by the columns returned for the batch: one to one, in order."""
    if result is None and shape.silent:
        if shape.kept:
            out.emit(shape.kept_columns(batch))
        else:
            out.consume()
        return
    if result is None:
        out.drop(range(len(batch)), RETURNED_NONE)
        return
    columns, wrong = _columns(shape, result, len(batch))
    if wrong:
        out.fail(range(len(batch)), wrong, error="ContractError")
        return
    checked = conform(shape.produced, columns, len(batch))
    if not checked.failed:
        out.emit({**checked.columns, **shape.kept_columns(batch)})
        return
    for row, error in checked.failed:
        out.fail([row], f"{shape.call} returned {error}", error="ContractError")
    rows = checked.good.tolist()
    out.emit({**checked.columns, **shape.kept_columns(batch, rows)}, rows=rows)


def settle_own(shape: Shape, batch: Batch, own: Out, out: Out) -> None:
    """Pass on what the function did with an `Out` of its own, each emission checked.

    A row with one record that does not fit fails with all its records: it cannot be emitted and failed.
    """
    failed: dict[int, str] = {}
    emissions = []
    for emission in own.emissions:
        columns, wrong = _columns(shape, emission.columns, len(emission.parents))
        if wrong:
            failed.update(dict.fromkeys(emission.parents.tolist(), wrong))
            continue
        checked = conform(shape.produced, columns, len(emission.parents))
        for index, error in checked.failed:
            failed[int(emission.parents[index])] = f"{shape.call} emitted {error}"
        emissions.append((emission, checked.columns, emission.parents[checked.good]))
    for row, reason in failed.items():
        out.fail([row], reason, error="ContractError")
    for emission, columns, parents in emissions:
        keep = np.array([parent not in failed for parent in parents.tolist()], dtype=bool)
        rows = parents[keep]
        made = columns if keep.all() else {name: column[keep] for name, column in columns.items()}
        out.emit({**made, **shape.kept_columns(batch, rows)}, rows=rows, children=emission.children)
    for loss in own.dropped:
        out.drop([loss.row], loss.reason)
    for loss in own.failed:
        out.fail([loss.row], loss.reason, error=loss.error, retryable=loss.retryable)
    out.consume(np.flatnonzero(own.state == CONSUMED))


def _columns(shape: Shape, result: Any, count: int) -> tuple[dict[str, Column], str]:
    """The columns as arrays, or what is wrong with all of them."""
    if isinstance(result, Batch):
        result = result.columns
    if not isinstance(result, Mapping):
        return {}, f"{shape.call} returned {shown(result)}, expected a dict of columns"
    extra = next((name for name in result if name not in shape.produced), None)
    if extra is not None:
        hint = nearest(str(extra), shape.produced.names)
        return {}, f"{shape.call} returned the column '{extra}', which its contract lacks ({hint})"
    columns: dict[str, Column] = {}
    for field in shape.produced:
        if field.name not in result:
            return {}, f"{shape.call} returned no column '{field.name}', expected {field.type.describe()}"
        column = _array(result[field.name])
        if column is None or column.ndim == 0 or len(column) != count:
            found = shown(result[field.name]) if column is None or column.ndim == 0 else f"{len(column)} rows"
            return {}, f"{shape.call} returned column '{field.name}' with {found}, expected {count} rows"
        columns[field.name] = column
    return columns, ""


def _array(value: Any) -> Column | None:
    """An array as it is; a list element by element (numpy would guess a type); anything else by its own conversion."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        column: Column = np.empty(len(value), dtype=object)
        for index, cell in enumerate(value):
            column[index] = cell
        return column
    try:
        return np.asarray(value)
    except (TypeError, ValueError):
        return None
