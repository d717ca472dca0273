"""Batches: rows and columns stay together whatever is taken, put together or looked at."""

from __future__ import annotations

import datetime as dt

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.batch import (
    UNPACKED,
    Batch,
    Encoded,
    Row,
    concatenate,
    made_source,
    pack_row,
    read_order,
    unpack_row,
)
from dataflow.core.errors import ContractError
from dataflow.core.schema import FieldType, Schema

SCHEMA = Schema.of(
    n="int64",
    name=FieldType("string", nullable=True),
    x=FieldType("float32", (2,)),
    free=FieldType("float32", (-1,)),
    at="timestamp",
)
AT = dt.datetime(2024, 5, 1, 12, 30)  # noqa: DTZ001  (columns hold UTC without a zone)


def batch_of(count: int) -> Batch:
    records = [
        {"n": i, "name": None if i % 3 == 0 else f"r{i}", "x": [i, -i], "free": np.zeros(i % 4, np.float32),
         "at": AT if i % 2 else None}
        for i in range(count)
    ]  # fmt: skip
    batch = Batch.of(SCHEMA, records)
    batch.encoded = Encoded(b"f", [f"{i}".encode() for i in range(count)])
    return batch


def seen(batch: Batch) -> list[tuple[bytes, int, str | None, list[float], int, bytes | None]]:
    """All that belongs to each row, in one place."""
    wire = batch.encoded.values if batch.encoded is not None else [None] * len(batch)
    return [
        (row.id, value["n"], value["name"], value["x"].tolist(), len(value["free"]), w)
        for row, value, w in zip(batch.rows, batch.to_dicts(), wire, strict=True)
    ]


@given(
    st.integers(0, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.integers(0, max(n - 1, 0)), max_size=n))
    )
)
def test_take_keeps_rows_columns_and_wire_together(drawn: tuple[int, list[int]]) -> None:
    count, indices = drawn
    batch = batch_of(count)
    assert seen(batch.take(indices)) == [seen(batch)[i] for i in indices]


@given(st.integers(1, 12), st.data())
def test_what_is_cut_and_put_together_is_the_same(count: int, data: st.DataObject) -> None:
    batch = batch_of(count)
    cut = data.draw(st.integers(0, count))
    parts = [batch.take(range(cut)), batch.take(range(cut, count))]
    made = concatenate(SCHEMA, parts)
    assert [s[:5] for s in seen(made)] == [s[:5] for s in seen(batch)]


def test_one_batch_put_together_is_itself() -> None:
    batch = batch_of(3)
    assert concatenate(SCHEMA, [batch]) is batch


def test_replaced_keeps_the_rows_and_not_the_wire() -> None:
    batch = batch_of(2)
    other = batch.replaced(Schema.of(n="int64"), {"n": batch["n"]})
    assert other.rows is batch.rows
    assert other.encoded is None
    assert other.to_dicts() == [{"n": 0}, {"n": 1}]


def test_a_batch_without_fields_still_has_rows() -> None:
    assert Batch(Schema(()), {}, [Row(b"a"), Row(b"b")]).to_dicts() == [{}, {}]


def test_null_is_none_and_times_are_datetimes() -> None:
    first, second = batch_of(2).to_dicts()
    assert (first["name"], first["at"]) == (None, None)
    assert second["at"] == AT


def test_floats_have_nan_for_null() -> None:
    schema = Schema.of(v=FieldType("int32", nullable=True), w="int8")
    batch = Batch.of(schema, [{"v": None, "w": 1}, {"v": 3, "w": 2}])
    assert np.isnan(batch.floats("v")[0])
    assert batch.floats("v")[1] == 3.0
    assert batch.floats("w").tolist() == [1.0, 2.0]


def test_an_unknown_field_has_a_hint() -> None:
    with pytest.raises(ContractError, match=r"no field 'nam'.*did you mean 'name'"):
        batch_of(1)["nam"]


def test_a_field_without_its_column_says_so() -> None:
    with pytest.raises(ContractError, match="field 'n' has no column"):
        Batch(SCHEMA, {}, [])["n"]


def test_what_a_node_sees_of_its_rows() -> None:
    batch = Batch(Schema(()), {}, [Row(b"id", b"k", attempt=2)])
    assert (batch.ids, batch.keys, batch.attempts) == (["id"], [b"k"], [2])
    assert repr(batch.rows[0]) == "Row(id, key=b'k', source=0)"
    assert "n" not in batch


def test_a_row_packs_into_what_state_carries_and_back() -> None:
    row = Row(b"id", b"k", 7, [("trace", b"1"), ("none", None)], b"topic/0/r", 123, 2, (b"a", b"b"))
    back = unpack_row(msgspec.msgpack.decode(msgspec.msgpack.encode(pack_row(row))))
    for name in Row.__slots__:
        if name != "source":
            assert getattr(back, name) == getattr(row, name), name
    assert back.source == UNPACKED


def test_made_records_come_after_what_caused_them_and_in_the_order_of_making() -> None:
    timed, first, second = made_source(-1, 5), made_source(3, 6), made_source(3, 7)
    later = made_source(first, 8)  # made from a made one: caused by the same fetched record
    assert len({timed, first, second, later}) == 4
    assert max(timed, first, second, later) < UNPACKED
    sources = np.array([4, 3, first, second, later, timed])
    assert read_order(sources).tolist() == [4, 3, 3, 3, 3, -1]
    assert np.argsort(np.array([timed, first, second, later])).tolist() == [0, 1, 2, 3]
