from __future__ import annotations

import json
from io import BytesIO

import fastavro
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from dataflow.codecs import codec_for, fingerprint
from dataflow.codecs.export import from_avsc, schema_from_dict, schema_to_dict, to_avsc, to_json_schema
from dataflow.codecs.values import to_jsonable
from dataflow.core.errors import ContractError
from dataflow.core.schema import Column, Field, FieldType, Schema, column_of
from tests.codecs.strategies import SCHEMAS, contracts_with_batches, same_cell

SLOW = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)


@given(schema=SCHEMAS)
@SLOW
def test_contracts_come_back_from_their_documents(schema: Schema) -> None:
    assert schema_from_dict(json.loads(json.dumps(schema_to_dict(schema)))) == schema
    assert from_avsc(json.loads(json.dumps(to_avsc(schema, "Record")))) == schema
    json.dumps(to_json_schema(schema, "Record", "doc"))


@given(case=contracts_with_batches())
@SLOW
def test_a_plain_avro_reader_reads_every_record(case: tuple[Schema, dict[str, Column], int]) -> None:
    schema, columns, count = case
    avsc = fastavro.parse_schema(json.loads(json.dumps(to_avsc(schema, "flights.Departure", "doc"))))
    values = codec_for("avro", schema, record_name="flights.Departure").encode(columns, count).values
    for row, value in enumerate(values):
        assert value is not None
        stream = BytesIO(value)
        record = fastavro.schemaless_reader(stream, avsc, None)
        assert stream.read() == b""
        assert isinstance(record, dict)
        for field in schema:
            plain = field.type.kind in ("bool", "string", "bytes", "int32", "uint64", "float64", "decimal")
            if plain and not field.type.shape:
                want = columns[field.name][row : row + 1].tolist()[0]
                have = record[field.name]
                assert same_cell(want, have) or want == have


def test_a_tensor_is_read_with_the_properties_of_the_schema() -> None:
    schema = Schema.of(x=FieldType("float32", (2, 3)), y=FieldType("int16", (-1, 3)))
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    y = column_of(schema["y"].type, [np.zeros((0, 3), np.int16)])
    (value,) = codec_for("avro", schema).encode({"x": x, "y": y}, 1).values
    avsc = to_avsc(schema, "R")
    assert value is not None
    record = fastavro.schemaless_reader(BytesIO(value), avsc, None)
    assert isinstance(record, dict)
    said = avsc["fields"][0]["type"]
    dtype = np.dtype(said["dtype"]).newbyteorder("<")
    assert said["byteorder"] == "little"
    assert np.array_equal(np.frombuffer(record["x"], dtype).reshape(said["shape"]), x[0])
    assert record["y"] == {"shape": [0, 3], "data": b""}


def test_docs_units_and_privacy_are_exported() -> None:
    declared = Field(
        "delay", FieldType("float32"), doc="how late", unit="min", privacy="none", event_time=True
    )
    (field,) = to_avsc(Schema((declared,)), "R", "flights")["fields"]
    assert {k: field[k] for k in ("doc", "unit", "privacy")} == {
        "doc": "how late",
        "unit": "min",
        "privacy": "none",
    }
    said = to_json_schema(Schema((declared,)), "R", "flights")
    assert said["description"] == "flights"
    assert said["properties"]["delay"]["description"] == "how late"
    assert said["required"] == ["delay"]


@pytest.mark.parametrize(
    ("avro_type", "message"),
    [
        ({"type": "map", "values": "int"}, "map"),
        (["int", "string"], "union of 2"),
        ({"type": "long", "logicalType": "timestamp-millis"}, "timestamp-millis"),
        ("Missing", "Missing"),
    ],
)
def test_avro_that_no_contract_can_say_is_refused(avro_type: object, message: str) -> None:
    document = {"type": "record", "name": "R", "fields": [{"name": "x", "type": avro_type}]}
    with pytest.raises(ContractError, match=f"field 'x'.*{message}"):
        from_avsc(document)


def test_names_that_avro_cannot_say_are_refused() -> None:
    with pytest.raises(ContractError, match="'a-b' is not an Avro name"):
        codec_for("avro", Schema.of(**{"a-b": "int8"}))
    with pytest.raises(ContractError, match="not a stored contract"):
        schema_from_dict({"no": 1})


def test_the_fingerprint_is_of_the_wire_only() -> None:
    plain = Schema.of(x="int32", name="string")
    # Stored in headers and topics: a change here orphans every record written before.
    assert fingerprint(plain, "avro") == b"4c5caf4cb60b79f5"
    documented = Schema((Field("x", FieldType("int32"), doc="a"), Field("name", FieldType("string"))))
    assert (
        fingerprint(documented, "avro") == fingerprint(plain, "avro") == codec_for("avro", plain).fingerprint
    )
    others = [Schema.of(name="string", x="int32"), Schema.of(x="int64", name="string")]
    marks = {fingerprint(s, c) for s in [plain, *others] for c in ("avro", "json", "arrow")}
    assert len(marks) == 9
    assert fingerprint(Schema.of(x="bytes"), "raw") == b""


@given(case=contracts_with_batches())
@SLOW
def test_jsonable_is_what_json_schema_says(case: tuple[Schema, dict[str, Column], int]) -> None:
    schema, columns, count = case
    said = to_json_schema(schema, "R")
    for record in to_jsonable(schema, columns, count):
        assert set(record) == set(said["properties"])
        assert all(record[name] is not None for name in said["required"])
