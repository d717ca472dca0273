"""A node accounts for every row, once; what it says wrongly is refused on the spot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.batch import Batch, Row
from dataflow.core.errors import NodeError
from dataflow.core.outcomes import CONSUMED, DROPPED, EMITTED, FAILED, UNTOUCHED, Ending, Out
from dataflow.core.schema import Schema

SCHEMA = Schema.of(n="int64")


def out_of(count: int) -> Out:
    return Out(Batch.of(SCHEMA, [{"n": n} for n in range(count)]), ("out", "side"))


def emit(out: Out, rows: list[int], port: str = "out") -> None:
    out.emit({"n": np.zeros(len(rows), np.int64)}, rows=rows, port=port)


def test_each_outcome_marks_its_rows_and_settling_fails_the_rest() -> None:
    out = out_of(5)
    emit(out, [0])
    out.consume([1])
    out.drop([2], "no")
    out.fail([3], "bad", retryable=True)
    assert out.state.tolist() == [EMITTED, CONSUMED, DROPPED, FAILED, UNTOUCHED]
    out.settle()
    assert [(x.row, x.error, x.retryable) for x in out.failed] == [
        (3, "NodeError", True),
        (4, "Unaccounted", False),
    ]
    out.settle()
    assert len(out.failed) == 2


ENDINGS: list[Callable[[Out, list[int]], None]] = [
    lambda out, rows: out.consume(rows),
    lambda out, rows: out.drop(rows, "no"),
    lambda out, rows: out.fail(rows, "bad"),
]


@pytest.mark.parametrize("first", [emit, *ENDINGS])
@pytest.mark.parametrize("second", ENDINGS)
def test_a_row_does_not_end_twice(
    first: Callable[[Out, list[int]], None], second: Callable[[Out, list[int]], None]
) -> None:
    out = out_of(2)
    first(out, [1])
    before = (out.state.tolist(), len(out.dropped), len(out.failed))
    with pytest.raises(NodeError, match="row 1 was already"):
        second(out, [0, 1])
    assert (out.state.tolist(), len(out.dropped), len(out.failed)) == before


@pytest.mark.parametrize("ending", ENDINGS)
def test_nor_twice_in_one_call(ending: Callable[[Out, list[int]], None]) -> None:
    out = out_of(2)
    with pytest.raises(NodeError, match="row 1 is named twice"):
        ending(out, [1, 0, 1])
    out.settle()
    assert [x.row for x in out.failed] == [0, 1]


def test_a_row_may_go_out_on_several_ports_and_many_times() -> None:
    out = out_of(1)
    emit(out, [0, 0])
    emit(out, [0], "side")
    assert out.state.tolist() == [EMITTED]


def test_a_mask_is_not_taken_for_row_numbers() -> None:
    """[True, False] would be rows 1 and 0."""
    out = out_of(2)
    mask = np.array([True, False])
    with pytest.raises(NodeError, match="flatnonzero"):
        out.drop(mask, "no")
    with pytest.raises(NodeError, match="flatnonzero"):
        out.consume(mask)
    with pytest.raises(NodeError, match="flatnonzero"):
        out.emit({"n": np.zeros(2, np.int64)}, rows=mask)
    assert out.state.tolist() == [UNTOUCHED] * 2


@pytest.mark.parametrize(("rows", "named"), [([2], "2"), ([-1], "-1"), ([0, 7], "7"), ([-3, 1], "-3")])
def test_rows_outside_the_batch(rows: list[int], named: str) -> None:
    with pytest.raises(NodeError, match=f"row index {named} is outside the batch of 2 rows"):
        out_of(2).drop(rows, "no")


def test_an_unknown_port_has_a_hint() -> None:
    with pytest.raises(NodeError, match=r"no output port 'sde'.*did you mean 'side'"):
        emit(out_of(1), [0], "sde")


def test_nothing_may_be_said_of_no_rows() -> None:
    out = out_of(0)
    emit(out, [])
    out.drop([], "no")
    out.settle()
    assert out.failed == []


@given(st.lists(st.sampled_from(["emit", "consume", "drop", "fail", "nothing"]), max_size=30))
def test_every_row_ends_exactly_once(endings: list[str]) -> None:
    out = out_of(len(endings))
    rows = {e: [i for i, x in enumerate(endings) if x == e] for e in ("emit", "consume", "drop", "fail")}
    emit(out, rows["emit"])
    out.consume(rows["consume"])
    out.drop(rows["drop"], "no")
    out.fail(rows["fail"], "bad")
    out.settle()
    ended = [
        *(int(i) for e in out.emissions for i in e.parents), *rows["consume"], *(x.row for x in out.dropped),
        *(x.row for x in out.failed),
    ]  # fmt: skip
    assert sorted(ended) == list(range(len(endings)))
    assert UNTOUCHED not in out.state


def test_created_records_account_for_no_row_and_carry_their_own_identity() -> None:
    out = out_of(2)
    row = Row(b"i", b"k", reply=b"r")
    out.create({"n": np.zeros(1, np.int64)}, [row], after=[1])
    assert out.emissions[0].made == [row]
    assert out.emissions[0].parents.tolist() == [1]
    assert out.state.tolist() == [UNTOUCHED, UNTOUCHED]


def test_created_records_that_do_not_fit_are_refused() -> None:
    out = out_of(1)
    with pytest.raises(NodeError, match="2 rows where 1"):
        out.create({"n": np.zeros(2, np.int64)}, [Row(b"i")])
    with pytest.raises(NodeError, match="no output port 'sid'"):
        out.create({"n": np.zeros(1, np.int64)}, [Row(b"i")], port="sid")
    with pytest.raises(NodeError, match="names 1 rows for 1 records of a batch of 1"):
        out.create({"n": np.zeros(1, np.int64)}, [Row(b"i")], after=[1])


def test_held_rows_are_taken_in_and_told_apart_from_consumed_ones() -> None:
    out = out_of(3)
    out.hold([0, 2])
    out.consume([1])
    assert out.held == [0, 2]
    assert out.state.tolist() == [CONSUMED] * 3
    with pytest.raises(NodeError, match="already consumed"):
        out.hold([0])


def test_a_row_held_earlier_ends_with_what_its_letter_needs() -> None:
    out = out_of(0)
    row = Row(b"i")
    out.end(row, "nobody came", error="Lonely", record={"n": 1}, port="left")
    assert out.endings == [Ending(row, "nobody came", "Lonely", {"n": 1}, "left")]
