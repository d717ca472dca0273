"""Number arrays to another width without losing a value unnoticed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dataflow.core.schema import Column


def cast_numbers(array: npt.NDArray[Any], kind: str) -> tuple[Column, npt.NDArray[np.bool_]]:
    """`array` as dtype `kind`, and a mask of the elements that do not fit (whose result is meaningless).

    Fits: integers within range, whole floats for integers, any integer for floats, floats that do not overflow.
    """
    dtype = np.dtype(kind)
    if array.dtype == dtype:
        return array, np.zeros(array.shape, dtype=bool)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.dtype.kind == "f":
            # 2**63 and 2**64 are exact as floats while the limits below them are not: compare with `<`.
            low, high = float(limits.min), float(int(limits.max) + 1)
            with np.errstate(invalid="ignore"):
                bad = ~((array >= low) & (array < high) & (np.floor(array) == array))
                return np.where(bad, 0, array).astype(dtype), bad
        have = np.iinfo(array.dtype)
        bad = np.zeros(array.shape, dtype=bool)
        if have.min < limits.min:
            bad |= array < max(limits.min, have.min)
        if have.max > limits.max:
            bad |= array > limits.max
        return array.astype(dtype), bad
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(dtype)
    if array.dtype.kind == "f":
        return result, np.isinf(result) & ~np.isinf(array)
    return result, np.isinf(result)


def number_array(value: Any, kind: str) -> npt.NDArray[Any]:
    """`np.asarray` but for integers beyond int64, which numpy takes for floats as soon as smaller ones are beside."""
    array = np.asarray(value)
    if kind != "uint64" or array.dtype.kind != "f" or isinstance(value, np.ndarray):
        return array
    exact = np.asarray(value, dtype=object)
    if set(map(type, exact.ravel().tolist())) != {int}:
        return array
    try:
        return exact.astype(np.uint64)
    except OverflowError:
        return array
