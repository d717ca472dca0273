"""Column by column equals row by row: the same bytes, the same columns, the same failures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.codecs.avro import AvroCodec
from dataflow.codecs.avro_columns import decode_columns, encode_columns, pack_varints, steps_of
from dataflow.codecs.values import conform
from dataflow.core.schema import Column, Field, FieldType, Schema, column_of
from tests.codecs.strategies import NAMES, assert_same_columns, contracts_with_batches, scalar_types

SLOW = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
FLAT = st.lists(
    st.builds(Field, NAMES, scalar_types().filter(lambda t: not t.has_free_dimension)),
    min_size=1,
    max_size=6,
    unique_by=lambda f: f.name,
).map(lambda fields: Schema(tuple(fields)))
# Enough rows for any of these contracts to go by column.
MANY = 40
Case = tuple[Schema, dict[str, Column], int]


@given(case=contracts_with_batches(FLAT))
@SLOW
def test_both_ways_write_and_read_the_same(case: Case) -> None:
    schema, columns, count = case
    steps = steps_of(schema)
    assert steps is not None
    by_row = AvroCodec(schema, b"").encode_rows(conform(schema, columns, count), count).values
    assert encode_columns(steps, columns, count) == by_row
    decoded, well = decode_columns(steps, [value or b"" for value in by_row])
    assert well.all()
    assert_same_columns(columns, decoded)


@given(case=contracts_with_batches(FLAT), data=st.data())
@SLOW
def test_hostile_bytes_fail_the_same_rows_both_ways(case: Case, data: st.DataObject) -> None:
    schema, columns, count = case
    codec = AvroCodec(schema, b"")
    values: list[bytes | None] = codec.encode(columns, count).values
    for _ in range(data.draw(st.integers(1, 4))):
        whole = data.draw(st.sampled_from([v for v in values if v is not None])) if values else b""
        cut = data.draw(st.integers(0, len(whole)))
        junk = (
            whole[:cut] + data.draw(st.binary(max_size=12)) + data.draw(st.sampled_from([b"", whole[cut:]]))
        )
        values.insert(data.draw(st.integers(0, len(values))), junk)
    values.append(None)
    values *= MANY // len(values) + 1
    by_row, by_column = codec.decode_rows(values), codec.decode(values)
    assert by_column.good.tolist() == by_row.good.tolist()
    assert [(r, str(e), e.row) for r, e in by_column.failed] == [(r, str(e), e.row) for r, e in by_row.failed]
    assert_same_columns(by_row.columns, by_column.columns)


@given(numbers=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30))
def test_varints_are_those_of_the_specification(numbers: Sequence[int]) -> None:
    def one(number: int) -> bytes:
        rest = (number << 1) ^ (number >> 63)
        made = bytearray()
        while rest > 0x7F:
            made.append(rest & 0x7F | 0x80)
            rest >>= 7
        return bytes([*made, rest])

    assert pack_varints(np.array(numbers, dtype=np.int64)) == [one(n) for n in numbers]


def test_a_text_that_utf8_cannot_say_fails_its_row() -> None:
    schema = Schema.of(s="string")
    columns = {"s": column_of(FieldType("string"), ["a", "\ud800"] * MANY)}
    encoded = AvroCodec(schema, b"").encode(columns, 2 * MANY)
    assert [row for row, _ in encoded.failed] == list(range(1, 2 * MANY, 2))
    assert encoded.values[0] == b"\x02a"


@pytest.mark.parametrize("count", [0, 1, 9, 30, 500])
def test_every_batch_size_gives_the_same_bytes(count: int) -> None:
    schema = Schema.of(x="float32", t=FieldType("float32", (12,)), n="int64", s="string", b="bool")
    columns = {
        "x": np.arange(count, dtype=np.float32),
        "t": np.arange(count * 12, dtype=np.float32).reshape(count, 12),
        "n": np.arange(count, dtype=np.int64) ** 5,
        "s": column_of(FieldType("string"), [f"ü{i}" for i in range(count)]),
        "b": np.arange(count) % 2 == 0,
    }
    codec = AvroCodec(schema, b"")
    encoded = codec.encode(columns, count)
    assert encoded.values == codec.encode_rows(conform(schema, columns, count), count).values
    assert_same_columns(columns, codec.decode(encoded.values).columns)
