from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from dataflow.spec import units


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [("500ms", 500), ("2s", 2_000), ("1.5s", 1_500), ("1h30m", 5_400_000), ("7d", 604_800_000), ("0s", 0)],
)
def test_durations(text: str, expected_ms: int) -> None:
    assert units.parse_duration_ms(text) == expected_ms


@pytest.mark.parametrize("value", [2, "2", "2 s", "s", "-1s", "2S", "1h 30m", "", None, True, "forever"])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(PydanticCustomError, match="a duration is needed, not"):
        units.parse_duration_ms(value)


def test_retention_may_be_forever_and_never_zero() -> None:
    assert units.parse_retention_ms("forever") == -1
    with pytest.raises(PydanticCustomError, match="a duration of zero is not possible here, not '0s'"):
        units.parse_retention_ms("0s")


@given(st.integers(0, 10**12))
def test_a_duration_shown_reads_back(duration_ms: int) -> None:
    assert units.parse_duration_ms(units.format_duration_ms(duration_ms)) == duration_ms


@pytest.mark.parametrize(
    ("value", "expected_bytes"),
    [("1GB", 10**9), ("1GiB", 2**30), ("64kb", 64_000), ("1.5 MB", 1_500_000), ("7B", 7), (12, 12)],
)
def test_sizes(value: object, expected_bytes: int) -> None:
    assert units.parse_size_bytes(value) == expected_bytes


@pytest.mark.parametrize("value", ["1", "GB", "0MB", 0, -1, True, None, "1XB"])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(PydanticCustomError, match="size"):
        units.parse_size_bytes(value)


def test_rates() -> None:
    assert units.parse_rate("100/s") == 100
    assert units.parse_rate("30/m") == 0.5
    with pytest.raises(PydanticCustomError, match="a rate above zero is needed, not '0/s'"):
        units.parse_rate("0/s")
