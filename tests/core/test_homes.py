"""Where a record came from, as its headers say it."""

from __future__ import annotations

import pytest

from dataflow.core import headers
from dataflow.core.homes import home_of, home_said, with_home


def test_what_is_noted_is_read() -> None:
    carry = with_home([("a", b"1")], "p.x", 3)
    assert carry == [("a", b"1"), (headers.HOME, b"p.x=3")]
    assert home_of(carry, ("p.x", "p.y")) == 3
    assert home_of(carry, ("p.y",)) is None
    assert home_of([("a", b"1")], ("p.x",)) is None


def test_a_topic_further_on_takes_its_place() -> None:
    assert with_home(with_home([], "p.x", 3), "p.y", 1) == [(headers.HOME, b"p.y=1")]


@pytest.mark.parametrize("value", [b"", b"p.x", b"p.x=", b"p.x=-1", b"p.x=1234567", b"\xff=1", None])
def test_a_strangers_bytes_are_no_home(value: bytes | None) -> None:
    assert home_of([(headers.HOME, value)], ("p.x",)) is None


def test_what_is_said_of_a_record_goes_back_only_where_it_left() -> None:
    carry = [("a", b"1"), (headers.HOME, b"p.x=3")]
    assert home_said(carry, ("p.x",)) == ((headers.HOME, b"p.x=3"),)
    note = home_said(carry, ())
    assert home_of(note, ("p.x",)) is None
    assert home_of(home_said(note, ("p.x",)), ("p.x",)) == 3
    assert home_said([("a", b"1")], ("p.x",)) == ()
