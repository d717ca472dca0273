"""`like` against regular expressions on small inputs, and that nasty patterns cost little."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.expressions.text_functions import like


def as_regex(pattern: str) -> str:
    parts = []
    characters = iter(pattern)
    for character in characters:
        if character == "%":
            parts.append("(?s:.*)")
        elif character == "_":
            parts.append("(?s:.)")
        else:
            parts.append(re.escape(next(characters, "\\") if character == "\\" else character))
    return "".join(parts)


@given(st.text(alphabet="ab%_\\", max_size=8), st.text(alphabet="ab%_\\\n", max_size=8))
def test_like_is_the_regular_expression(pattern: str, text: str) -> None:
    assert like(pattern)(text) is (re.fullmatch(as_regex(pattern), text) is not None)


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("N1%", "N14228", True),
        ("N_", "N14228", False),
        ("%", "", True),
        ("", "", True),
        ("", "a", False),
        ("a%a", "a", False),
        ("100\\%", "100%", True),
        ("100\\%", "1000", False),
        ("n1%", "N1", False),
    ],
)
def test_examples(pattern: str, text: str, fits: bool) -> None:
    assert like(pattern)(text) is fits


def test_a_pattern_that_makes_regular_expressions_explode() -> None:
    assert not like("%a" * 100 + "%b")("a" * 10_000)
    assert not like("%a_" * 80 + "%b")("a" * 2_000)
