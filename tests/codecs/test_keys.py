from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.codecs.keys import check_key, decode_key, encode_key, encode_keys
from dataflow.core.batch import Batch
from dataflow.core.errors import CodecError, ContractError
from dataflow.core.schema import FieldType, Schema, column_of

DECIMAL = FieldType("decimal", precision=6, scale=2)


def single(field_type: FieldType | str, value: Any) -> bytes | None:
    schema = Schema.of(k=field_type)
    return encode_keys(schema, ["k"], {"k": column_of(schema["k"].type, [value])}, 1)[0]


def test_string_is_utf8_text() -> None:
    assert single("string", "Zürich") == "Zürich".encode()
    assert single(FieldType("enum", symbols=("a", "b")), "b") == b"b"


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint32"])
def test_integers_of_every_width_meet(kind: str) -> None:
    assert single(kind, 7) == b"\0\0\0\0\0\0\0\x07"


def test_integer_is_what_javas_long_serializer_writes() -> None:
    assert single("int64", -2) == b"\xff" * 7 + b"\xfe"
    assert single("uint64", 2**64 - 1) == b"\xff" * 8
    assert single(FieldType("int32", nullable=True), -2) == b"\xff" * 7 + b"\xfe"


def test_texts_of_the_rest() -> None:
    assert single("date", np.datetime64("2024-05-01")) == b"2024-05-01"
    assert single(DECIMAL, Decimal("12.50")) == b"12.50"
    assert single("bool", True) == b"true"
    assert single("bytes", b"\0\1") == b"\0\1"


def test_null_makes_no_key() -> None:
    assert single(FieldType("string", nullable=True), None) is None
    assert single(FieldType("timestamp", nullable=True), None) is None


def test_several_fields_are_a_json_array() -> None:
    schema = Schema.of(a="string", b="int64", c=FieldType("string", nullable=True))
    batch = Batch.of(schema, [{"a": "N1", "b": 7}, {"a": "x", "b": 1, "c": "y"}])
    assert encode_keys(schema, ["a", "b", "c"], batch.columns, 2) == [b'["N1",7,null]', b'["x",1,"y"]']


def test_no_key_fields_no_key() -> None:
    assert encode_keys(Schema.of(a="string"), [], {}, 3) == [None] * 3


def test_one_record_of_json_values() -> None:
    schema = Schema.of(at="timestamp", n="int32")
    micros = encode_key(schema, ["at"], {"at": "1970-01-01T00:00:01Z", "n": 1})
    assert micros == (1_000_000).to_bytes(8, "big")
    with pytest.raises(CodecError, match="key field 'n'"):
        encode_key(schema, ["n"], {"n": "one"})


@pytest.mark.parametrize("kind", [FieldType("float32"), FieldType("int32", (2,)), FieldType("record")])
def test_types_that_make_no_key(kind: FieldType) -> None:
    with pytest.raises(ContractError, match="cannot be part of a key"):
        check_key(Schema.of(k=kind), ["k"])


@pytest.mark.parametrize(
    ("kind", "value"), [("int64", b"123"), ("date", b"yesterday"), ("string", b"\xff"), ("bool", b"1")]
)
def test_bytes_that_are_no_key(kind: str, value: bytes) -> None:
    with pytest.raises(CodecError, match="key"):
        decode_key(Schema.of(k=kind), ["k"], value)


TIMES = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31))  # noqa: DTZ001  naive is UTC here
CELLS = {
    "string": st.text(st.characters(exclude_categories=["Cs"])),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "int16": st.integers(-(2**15), 2**15 - 1),
    "bool": st.booleans(),
    "bytes": st.binary(),
    "date": st.dates(),
    "timestamp": TIMES,
}


@given(st.data(), st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=3))
def test_there_and_back(data: st.DataObject, kinds: list[str]) -> None:
    record = {f"f{i}": data.draw(CELLS[kind]) for i, kind in enumerate(kinds)}
    schema = Schema.of(**{f"f{i}": kind for i, kind in enumerate(kinds)})
    columns = {n: column_of(schema[n].type, [v]) for n, v in record.items()}
    (key,) = encode_keys(schema, schema.names, columns, 1)
    assert key is not None
    assert decode_key(schema, schema.names, key) == record


def test_same_key_from_columns_and_from_a_record() -> None:
    schema = Schema.of(d="date", m=DECIMAL, t="timestamp")
    record = {"d": date(2024, 5, 1), "m": Decimal("1.20"), "t": datetime(2024, 5, 1, tzinfo=UTC)}
    plain = {**record, "t": datetime(2024, 5, 1)}  # noqa: DTZ001  naive is UTC here
    columns = {n: column_of(schema[n].type, [v]) for n, v in plain.items()}
    assert encode_key(schema, ["d", "m", "t"], record) == encode_keys(schema, ["d", "m", "t"], columns, 1)[0]
