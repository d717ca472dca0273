from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core import headers
from dataflow.core.batch import Row
from dataflow.core.visits import visits_of, with_visits

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,8}/[a-z][a-z0-9_-]{0,8}", fullmatch=True)


@given(st.dictionaries(NAMES, st.integers(1, 1_000_000), max_size=4))
def test_each_loop_has_a_count_of_its_own(counts: dict[str, int]) -> None:
    mine = [("mine", b"x"), ("traceparent", None)]
    row = Row(b"id", b"key", 3, mine, b"reply", 5, 1, (b"parent",))
    for name, count in counts.items():
        row = with_visits(row, name, count)
    assert {name: visits_of(row, name) for name in counts} == counts
    assert visits_of(row, "other/loop") == 0
    assert [h for h in row.carry if h[0] != headers.VISITS] == mine
    assert (row.id, row.key, row.source, row.reply, row.deadline_ms, row.attempt, row.parents) == (
        b"id", b"key", 3, b"reply", 5, 1, (b"parent",),
    )  # fmt: skip
    for name in counts:
        row = with_visits(row, name, 0)
    assert list(row.carry) == mine


def test_a_row_that_was_in_no_loop_stays_what_it_is() -> None:
    row = Row(b"id")
    assert with_visits(row, "p/n", 0) is row


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"p/n",
        b"p/n=",
        b"=3",
        b"p/n=x",
        b"p/n=-1",
        b"p/n=9999999999",
        "p/n=٣".encode(),
        b"\xff\xfe=1",
        None,
    ],
)
def test_what_strangers_write_there_counts_as_absent(value: bytes | None) -> None:
    row = Row(b"id", carry=[(headers.VISITS, value)])
    assert visits_of(row, "p/n") == 0
    assert visits_of(with_visits(row, "p/n", 2), "p/n") == 2
