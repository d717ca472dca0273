"""One bad row never takes its batch along, and says what is wrong."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.codecs import codec_for
from dataflow.codecs.tables import arrow_schema, columns_of
from dataflow.codecs.values import coerce_records, conform
from dataflow.core.errors import CodecError, ContractError
from dataflow.core.schema import FieldType, Schema, column_of
from tests.codecs.strategies import assert_same_columns, contracts_with_batches

SLOW = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
FLIGHT = Schema.of(
    carrier=FieldType("enum", symbols=("UA", "AA")),
    delay="int16",
    x=FieldType("float32", (2,)),
    at="timestamp",
    note=FieldType("string", nullable=True),
    fare=FieldType("decimal", precision=5, scale=2),
    tags=FieldType("list", item=FieldType("uint8")),
    data="bytes",
    day="date",
)
GOOD: dict[str, Any] = {
    "carrier": "UA", "delay": 3, "x": [1, 2.5], "at": "2024-05-01T12:00:00Z", "note": None, "fare": "1.25",
    "tags": [1, 2], "data": "AAE=", "day": "2024-05-01",
}  # fmt: skip


def test_python_and_json_values_become_columns() -> None:
    other = GOOD | {
        "at": datetime(2024, 5, 1, 14, tzinfo=timezone(timedelta(hours=2))),
        "x": np.array([1, 2.5]), "fare": Decimal("1.25"), "data": b"\x00\x01", "day": date(2024, 5, 1),
        "tags": np.array([1, 2]), "delay": 3.0,
    }  # fmt: skip
    result = coerce_records(FLIGHT, [GOOD, other])
    assert result.failed == []
    one, two = ({n: c[i : i + 1] for n, c in result.columns.items()} for i in (0, 1))
    assert_same_columns(one, two)
    assert result.columns["at"][0] == np.datetime64("2024-05-01T12:00:00", "us")


def test_texts_of_csv_become_columns() -> None:
    texts = {
        n: "" if v is None else v if isinstance(v, str) else orjson.dumps(v).decode() for n, v in GOOD.items()
    }
    result = coerce_records(FLIGHT, [texts], form="csv")
    assert result.failed == []
    assert_same_columns(result.columns, coerce_records(FLIGHT, [GOOD]).columns)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"carrier": "UX"}, ["'carrier'", "'UX'", "UA"]),
        ({"delay": 70_000}, ["'delay'", "70000", "int16", "-32768..32767"]),
        ({"delay": True}, ["'delay'", "True", "int16"]),
        ({"delay": 1.5}, ["'delay'", "1.5", "int16"]),
        ({"delay": None}, ["'delay'", "null is not allowed", "int16"]),
        ({"x": [1, 2, 3]}, ["'x'", "[3]", "float32[2]"]),
        ({"x": [1, "a"]}, ["'x'", "float32[2]"]),
        ({"x": [1e300, 0]}, ["'x'", "1e+300", "float32"]),
        ({"at": "yesterday"}, ["'at'", "'yesterday'", "ISO 8601", "2024-05-01T12:00:00Z"]),
        ({"at": 1714564800}, ["'at'", "1714564800", "timestamp"]),
        ({"note": 5}, ["'note'", "5 (int)", "string"]),
        ({"fare": "1.255"}, ["'fare'", "1.255", "2 digits"]),
        ({"fare": "12345.00"}, ["'fare'", "5 digits"]),
        ({"fare": "NaN"}, ["'fare'", "decimal(5,2)"]),
        ({"tags": [1, 256]}, ["'tags'[1]", "256", "0..255"]),
        ({"tags": "ab"}, ["'tags'", "list<uint8>"]),
        ({"data": "@"}, ["'data'", "base64"]),
        ({"day": "2024-13-01"}, ["'day'", "2024-13-01"]),
        ({"dely": 1}, ["unknown field 'dely'", "did you mean 'delay'"]),
    ],
)
def test_a_bad_value_fails_its_row_with_place_value_and_what_is_valid(
    change: dict[str, Any], parts: list[str]
) -> None:
    result = coerce_records(FLIGHT, [GOOD, GOOD | change, GOOD])
    assert result.good.tolist() == [0, 2]
    ((row, error),) = result.failed
    assert (row, error.row) == (1, 1)
    for part in parts:
        assert part in str(error)
    assert all(len(column) == 2 for column in result.columns.values())


def test_a_missing_field_and_a_record_that_is_none() -> None:
    result = coerce_records(FLIGHT, [{k: v for k, v in GOOD.items() if k != "x"}, [1], GOOD])
    assert [(row, error.row) for row, error in result.failed] == [(0, 0), (1, 1)]
    assert "field 'x' is missing, expected float32[2]" in str(result.failed[0][1])
    assert "[1] (list) is not a record" in str(result.failed[1][1])


@pytest.mark.parametrize("name", ["avro", "arrow", "json"])
def test_bad_bytes_fail_alone(name: str) -> None:
    schema = Schema.of(carrier="string", x=FieldType("float32", (3,)), delay="int8")
    codec = codec_for(name, schema)
    columns = {
        "carrier": column_of(FieldType("string"), ["UA"] * 40),
        "x": np.arange(120, dtype=np.float32).reshape(40, 3),
        "delay": np.arange(40, dtype=np.int8),
    }
    values = codec.encode(columns, 40).values
    whole = values[0]
    assert whole is not None
    bad = {3: None, 7: b"", 11: whole[: len(whole) // 2], 12: b"\xff" * 30, 39: whole[:-9]}
    for row, value in bad.items():
        values[row] = value
    decoded = codec.decode(values)
    assert [row for row, _ in decoded.failed] == sorted(bad)
    assert all(isinstance(e, CodecError) and e.row == row for row, e in decoded.failed)
    kept = [i for i in range(40) if i not in bad]
    assert decoded.good.tolist() == kept
    assert_same_columns({n: c[kept] for n, c in columns.items()}, decoded.columns)


def test_avro_bytes_left_over_and_out_of_range_are_refused() -> None:
    narrow, wide = Schema.of(x="int8"), Schema.of(x="int32")
    values = codec_for("avro", wide).encode({"x": np.array([1, 300], np.int32)}, 2).values
    decoded = codec_for("avro", narrow).decode([values[0], values[1], (values[0] or b"") + b"\x00"])
    assert decoded.columns["x"].tolist() == [1]
    assert "field 'x': 300 does not fit int8" in str(decoded.failed[0][1])
    assert "1 bytes are left over" in str(decoded.failed[1][1])


@pytest.mark.parametrize("name", ["avro", "arrow", "json"])
@given(data=st.data())
@SLOW
def test_hostile_bytes_never_raise_and_never_touch_their_neighbours(name: str, data: st.DataObject) -> None:
    schema, columns, count = data.draw(contracts_with_batches())
    codec = codec_for(name, schema)
    values = codec.encode(columns, count).values
    if not values or values[0] is None:
        return
    whole = values[0]
    cut = data.draw(st.integers(0, len(whole)))
    junk = whole[:cut] + data.draw(st.binary(max_size=12))
    decoded = codec.decode([junk, *values, junk])
    assert set(range(1, count + 1)) <= set(decoded.good.tolist())
    start = decoded.good.tolist().index(1)
    assert_same_columns(columns, {n: c[start : start + count] for n, c in decoded.columns.items()})


@pytest.mark.parametrize("name", ["avro", "arrow", "json"])
def test_values_that_a_contract_refuses_fail_their_row_on_encode(name: str) -> None:
    schema = Schema.of(name="string", at="timestamp", n=FieldType("int8", nullable=True))
    columns = {
        "name": column_of(FieldType("string"), ["a", 5, "c", "d"]),
        "at": np.array(["2024-01-01", "2024-01-01", "NaT", "2024-01-01"], "M8[us]"),
        "n": column_of(FieldType("int8", nullable=True), [None, 1, 1, 1000]),
    }
    codec = codec_for(name, schema)
    encoded = codec.encode(columns, 4)
    assert [row for row, _ in encoded.failed] == [1, 2, 3]
    assert [value is None for value in encoded.values] == [False, True, True, True]
    assert "field 'name': 5 (int) is not valid, expected string" in str(encoded.failed[0][1])
    assert "field 'at': null" in str(encoded.failed[1][1])
    assert "field 'n': 1000 does not fit int8" in str(encoded.failed[2][1])
    with pytest.raises(CodecError, match="'at' has no column"):
        codec.encode({"name": columns["name"]}, 4)
    with pytest.raises(CodecError, match="4 rows where 3"):
        codec.encode(columns, 3)


def test_numbers_of_another_width_are_cast_where_they_fit() -> None:
    schema = Schema.of(x="float32", n="int8", t=FieldType("uint8", (2,)))
    made = conform(
        schema,
        {"x": np.array([1, 2]), "n": np.array([1.0, 200.0]), "t": np.array([[1, 2], [3, 4]])},
        2,
    )
    assert [row for row, _ in made.failed] == [1]
    assert {n: c.dtype.name for n, c in made.columns.items()} == {"x": "float32", "n": "int8", "t": "uint8"}


def test_json_is_lenient_on_fields_it_does_not_know_and_strict_on_time() -> None:
    schema = Schema.of(at="timestamp")
    codec = codec_for("json", schema)
    assert codec.decode([b'{"at":"2024-05-01T12:00:00","more":1}']).failed == []
    encoded = codec.encode({"at": np.array([2**62], np.int64).view("M8[us]")}, 1)
    assert "years 1..9999" in str(encoded.failed[0][1])


def test_an_arrow_record_of_two_rows_is_refused() -> None:
    schema = Schema.of(x="int32")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, arrow_schema(schema)) as writer:
        writer.write_table(pa.table({"x": pa.array([1, 2], pa.int32())}, schema=arrow_schema(schema)))
    decoded = codec_for("arrow", schema).decode([sink.getvalue().to_pybytes()])
    assert "carries 2 rows, expected exactly one" in str(decoded.failed[0][1])


def test_tables_of_others_are_read_where_they_fit() -> None:
    schema = Schema.of(
        n="int32",
        at="timestamp",
        x=FieldType("float32", (2,)),
        s="string",
        more=FieldType("int8", nullable=True),
    )
    table = pa.table({
        "n": pa.array([1, 2], pa.int64()),
        "at": pa.array([datetime(2024, 1, 1), datetime(2024, 1, 2)], pa.timestamp("ns")),  # noqa: DTZ001
        "x": pa.array([[1, 2], [3, 4]], pa.list_(pa.float64())),
        "s": pa.array(["a", "b"]).dictionary_encode(),
    })  # fmt: skip
    columns = columns_of(schema, table)
    assert columns["n"].dtype == np.int32
    assert columns["at"][0] == np.datetime64(datetime(2024, 1, 1, tzinfo=UTC).replace(tzinfo=None))
    assert columns["x"].tolist() == [[1, 2], [3, 4]]
    assert columns["s"].tolist() == ["a", "b"]
    assert columns["more"].tolist() == [None, None]
    with pytest.raises(CodecError, match=r"field 'n': 3000000000 does not fit int32") as caught:
        columns_of(Schema.of(n="int32"), pa.table({"n": pa.array([1, 3_000_000_000])}))
    assert caught.value.row == 1
    with pytest.raises(CodecError, match="field 'm' is not in the table"):
        columns_of(Schema.of(m="int32"), table)


def test_raw_passes_bytes_through() -> None:
    codec = codec_for("raw", Schema.of(v="bytes"))
    decoded = codec.decode([b"a", None, b""])
    assert decoded.columns["v"].tolist() == [b"a", b""]
    assert decoded.good.tolist() == [0, 2]
    assert [row for row, _ in decoded.failed] == [1]
    assert codec.fingerprint == b""
    encoded = codec.encode({"v": column_of(FieldType("bytes"), [b"a", "b"])}, 2)
    assert encoded.values == [b"a", None]
    assert "expected bytes" in str(encoded.failed[0][1])
    empty = codec.decode([])
    assert len(empty.columns["v"]) == 0
    nullable = codec_for("raw", Schema.of(v=FieldType("bytes", nullable=True)))
    assert nullable.decode([None]).columns["v"].tolist() == [None]
    assert nullable.encode({"v": column_of(FieldType("bytes"), [None])}, 1).values == [None]
    with pytest.raises(CodecError, match="exactly one field of type bytes"):
        codec_for("raw", Schema.of(v="string"))
    with pytest.raises(CodecError, match="did you mean 'json'"):
        codec_for("jsn", Schema.of(v="string"))


@pytest.mark.parametrize("name", ["avro", "json"])
def test_a_contract_without_fields_still_counts_its_rows(name: str) -> None:
    codec = codec_for(name, Schema(()))
    encoded = codec.encode({}, 3)
    assert len(encoded.values) == 3
    assert encoded.failed == []
    assert codec.decode(encoded.values).good.tolist() == [0, 1, 2]
    with pytest.raises(ContractError, match="without fields"):
        codec_for("arrow", Schema(()))
