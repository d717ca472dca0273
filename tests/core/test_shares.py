"""Shares of a caller: parts that make the whole, each counted once."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.shares import WHOLE, address_of, merged, parted, read_share, share_of, union

CALLER = b"dataflow.replies/3/0190a0b0-0000-7000-8000-000000000000"


def size(reply: bytes) -> Fraction:
    return sum((high - low for low, high in read_share(share_of(reply))), Fraction(0))


def test_a_caller_in_two() -> None:
    first, second = parted(CALLER, 2)
    assert (first, second) == (CALLER + b";0/1-1/2", CALLER + b";1/2-1/1")
    assert address_of(first) == CALLER
    assert merged([first, second]) == CALLER
    assert merged([first, first]) == first
    assert (parted(CALLER, 1), merged([]), merged([b"", CALLER])) == ([CALLER], b"", CALLER)


@given(st.lists(st.integers(1, 4), max_size=3))
def test_all_parts_are_the_whole_and_all_but_one_are_not(counts: list[int]) -> None:
    replies = [CALLER]
    for count in counts:
        replies = [part for reply in replies for part in parted(reply, count)]
    assert merged(replies) == CALLER
    assert sum(map(size, replies)) == 1
    if len(replies) > 1:
        assert size(merged(replies[1:])) == 1 - size(replies[0])
        # What was put together is parted again.
        some = merged(replies[::2])
        assert merged(parted(some, 3)) == some
        assert len({size(part) for part in parted(some, 3)}) == 1


def test_what_strangers_write_is_the_whole() -> None:
    for text in (b"x", b"1/0-1/1", b"1/2", b"0/1-1/2,", b"9" * 50 + b"/1-1/1", b"0/1-1/2," * 9000):
        assert read_share(text) == WHOLE
    assert read_share(b"1/2-0/1") == ()
    assert union([]) == ()
