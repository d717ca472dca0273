from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dataflow.core.errors import StateError
from dataflow.state.api import TimerClock
from dataflow.state.changelog import (
    EXPIRING,
    FOREVER,
    TIMER,
    VALUE,
    WATERMARK,
    Entry,
    check_record,
    decode_key,
    decode_time,
    decode_timer,
    encode_key,
    encode_timer,
    expires_of,
    head_of,
    pack_time,
    packed_of,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
entries = st.one_of(
    st.builds(Entry, st.sampled_from((VALUE, TIMER)), texts, st.binary(max_size=20), texts),
    st.builds(Entry, st.just(WATERMARK), texts, st.just(b""), st.just("")),
)
times = st.integers(-(1 << 63), (1 << 63) - 1)
clocks: st.SearchStrategy[TimerClock] = st.sampled_from(("processing", "event"))


@given(entries)
def test_a_key_comes_back(entry: Entry) -> None:
    assert decode_key(encode_key(entry)) == entry


@given(entries, entries)
def test_different_entries_have_different_keys(one: Entry, other: Entry) -> None:
    assert (encode_key(one) == encode_key(other)) == (one == other)


@given(texts, st.binary(max_size=20), texts, texts)
def test_names_of_a_record_key_lie_together_and_in_order(node: str, key: bytes, one: str, other: str) -> None:
    first, second = (encode_key(Entry(VALUE, node, key, name)) for name in (one, other))
    assert (first < second) == (one < other)
    assert first.startswith(head_of(VALUE, node))


@given(clocks, times)
def test_a_timer_comes_back(clock: TimerClock, at_ms: int) -> None:
    assert decode_timer(encode_timer(clock, at_ms)) == (clock, at_ms)
    assert decode_time(pack_time(at_ms)) == at_ms


def test_the_bytes_are_those_of_the_page() -> None:
    assert encode_key(Entry(VALUE, "sum", b"k1", "n")) == b"v\x00\x03sum\x00\x00\x00\x02k1n"
    assert encode_key(Entry(WATERMARK, "sum", b"", "")) == b"w\x00\x03sum"
    assert encode_timer("event", 258) == b"\x01\0\0\0\0\0\0\x01\x02"
    lasting, passing = FOREVER + b"\x05", EXPIRING + pack_time(7) + b"\x05"
    assert (expires_of(lasting), packed_of(lasting)) == (0, b"\x05")
    assert (expires_of(passing), packed_of(passing)) == (7, b"\x05")


KEY = encode_key(Entry(VALUE, "sum", b"k", "n"))
AT = encode_key(Entry(TIMER, "sum", b"k", "n"))
MARK = encode_key(Entry(WATERMARK, "sum", b"", ""))


@pytest.mark.parametrize(("key", "value"), [(KEY, FOREVER + b"\x05"), (KEY, None), (AT, encode_timer("event", 1)),
                                            (MARK, pack_time(1)), (MARK, None)])  # fmt: skip
def test_what_we_write_is_taken(key: bytes, value: bytes | None) -> None:
    check_record("somewhere", 1, key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, b"\0\x05"), (b"", b"\0\x05"), (b"x" + KEY[1:], b"\0\x05"), (KEY[:4], b"\0\x05"), (KEY[:8], b"\0\x05"),
        (KEY[:-1] + b"\xff", b"\0\x05"), (MARK + b"x", pack_time(1)), (b"v\xff\xff", None),
        (KEY, b""), (KEY, b"\0"), (KEY, b"\2\x05"), (KEY, b"\1" + bytes(8)),
        (AT, b""), (AT, b"\2" + bytes(8)), (AT, b"\1" + bytes(9)), (MARK, b"1"),
    ],
)  # fmt: skip
def test_what_is_none_of_ours_is_told_with_its_place(key: bytes | None, value: bytes | None) -> None:
    with pytest.raises(StateError, match=r"record at log \[3\] offset 7 is not one of a changelog"):
        check_record("log [3]", 7, key, value)
