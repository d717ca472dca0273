"""Integer kernels against Python's unbounded integers, at the limits of int64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.expressions import arithmetic
from dataflow.expressions.typed import Array

LOW, HIGH = -(2**63), 2**63 - 1
edges = st.sampled_from([LOW, LOW + 1, -(2**62), -(2**32), -1, 0, 1, 2**31, 2**32, 2**62, HIGH - 1, HIGH])
integers = edges | st.integers(LOW, HIGH) | st.integers(-3, 3) | st.integers(-(2**32), 2**32)
pairs = st.lists(st.tuples(integers, integers), min_size=1, max_size=6)


def clamp(value: int) -> int:
    return min(max(value, LOW), HIGH)


def column(values: list[int]) -> Array:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("kernel", "exact"),
    [
        (arithmetic.add, lambda a, b: a + b),
        (arithmetic.subtract, lambda a, b: a - b),
        (arithmetic.multiply, lambda a, b: a * b),
    ],
)
@given(rows=pairs)
def test_a_result_beyond_int64_is_its_nearest_limit(
    kernel: Callable[[Array, Array], Array], exact: Callable[[int, int], int], rows: list[tuple[int, int]]
) -> None:
    found = kernel(column([a for a, _ in rows]), column([b for _, b in rows]))
    assert found.dtype == np.int64
    assert found.tolist() == [clamp(exact(a, b)) for a, b in rows]


@given(rows=st.lists(st.tuples(integers, integers.filter(bool)), min_size=1, max_size=6))
def test_division_rounds_down_as_in_python(rows: list[tuple[int, int]]) -> None:
    a, b = column([a for a, _ in rows]), column([b for _, b in rows])
    with np.errstate(all="ignore"):
        quotients, remainders = arithmetic.floor_divide(a, b), arithmetic.remainder(a, b)
    assert quotients.tolist() == [clamp(x // y) for x, y in rows]
    assert remainders.tolist() == [x % y for x, y in rows]


@given(rows=st.lists(integers, min_size=1))
def test_signs(rows: list[int]) -> None:
    values = column(rows)
    with np.errstate(all="ignore"):
        assert arithmetic.negate(values).tolist() == [clamp(-x) for x in rows]
        assert arithmetic.absolute(values).tolist() == [clamp(abs(x)) for x in rows]


@given(row=st.lists(integers, min_size=1, max_size=5))
def test_sums_are_exact(row: list[int]) -> None:
    assert arithmetic.saturated_sum(column(row).reshape(1, -1), (1,)).tolist() == [clamp(sum(row))]
