"""Arithmetic kernels: int64 that saturates instead of wrapping, float64 as IEEE 754 has it.

An integer result beyond int64 becomes the nearest int64: unlike a wrapped one it stays on the right side of any
comparison, and unlike null it leaves the type not nullable.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from dataflow.expressions.typed import Array, Mask

_LOW: Final = np.iinfo(np.int64).min
_HIGH: Final = np.iinfo(np.int64).max


def add(a: Array, b: Array) -> Array:
    """Overflow shows where both operands have one sign and the sum the other (Warren, Hacker's Delight, 2-13)."""
    total: Array = a + b
    over = ((a ^ total) & (b ^ total)) < 0
    return np.where(over, np.where(a < 0, _LOW, _HIGH), total) if over.any() else total


def subtract(a: Array, b: Array) -> Array:
    difference: Array = a - b
    over = ((a ^ b) & (a ^ difference)) < 0
    return np.where(over, np.where(a < 0, _LOW, _HIGH), difference) if over.any() else difference


def multiply(a: Array, b: Array) -> Array:
    """Products whose float64 estimate comes near the limit are done again in Python's unbounded integers."""
    product: Array = a * b
    near = np.abs(a.astype(np.float64) * b) >= 2.0**62
    if near.any():
        wide_a, wide_b = np.broadcast_arrays(a, b)
        product = product.copy()
        exact = [x * y for x, y in zip(wide_a[near].tolist(), wide_b[near].tolist(), strict=True)]
        product[near] = [min(max(value, _LOW), _HIGH) for value in exact]
    return product


def negate(a: Array) -> Array:
    return np.where(a == _LOW, _HIGH, -a)


def absolute(a: Array) -> Array:
    return np.where(a == _LOW, _HIGH, np.abs(a))


def floor_divide(a: Array, b: Array) -> Array:
    """Rounded down. Where `b` is 0 the result means nothing: the caller makes it null."""
    quotient = a // b
    over = (a == _LOW) & (b == -1)
    return np.where(over, _HIGH, quotient) if over.any() else quotient


def remainder(a: Array, b: Array) -> Array:
    """Of the sign of `b`, as in Python. Where `b` is 0 the result means nothing."""
    # numpy divides the lowest integer by -1 in C, where that is undefined.
    return a % np.where(b == -1, 1, b)


def partial_floor_divide(a: Array, b: Array) -> tuple[Array, Mask]:
    return floor_divide(a, b), b != 0


def partial_remainder(a: Array, b: Array) -> tuple[Array, Mask]:
    return remainder(a, b), b != 0


def saturated_sum(a: Array, axes: tuple[int, ...]) -> Array:
    """Sums over `axes`, exact, and the nearest int64 where the true sum is beyond it."""
    total: Array = a.sum(axis=axes, dtype=np.int64)
    near = np.abs(a.astype(np.float64)).sum(axis=axes) >= 2.0**62
    for row in np.flatnonzero(near):
        exact = sum(int(value) for value in a[row].ravel().tolist())
        total[row] = min(max(exact, _LOW), _HIGH)
    return total
