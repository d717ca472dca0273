from __future__ import annotations

import struct
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.core.batch import Batch, to_list
from dataflow.core.errors import GatewayError
from dataflow.core.limits import MAX_JSON_CONTAINERS
from dataflow.core.schema import Column, Field, FieldType, Schema
from dataflow.gateway import v2
from dataflow.gateway.v2_types import fits

PLACE = FieldType("record", fields=(Field("lat", FieldType("float64")), Field("tag", FieldType("string"))))
ALL = Schema.of(
    flag="bool",
    small="int8",
    big="uint64",
    single="float32",
    double="float64",
    image=FieldType("uint8", (2, 2)),
    ragged=FieldType("float32", (-1,)),
    free=FieldType("int64", (-1, 2), nullable=True),
    maybe=FieldType("int32", nullable=True),
    at="timestamp",
    seen=FieldType("timestamp", nullable=True),
    day=FieldType("date", nullable=True),
    price=FieldType("decimal", precision=8, scale=2),
    name="string",
    colour=FieldType("enum", symbols=("red", "green")),
    blob="bytes",
    tags=FieldType("list", item=FieldType("string")),
    place=FieldType("record", nullable=True, fields=PLACE.fields),
)
ROWS: list[dict[str, Any]] = [
    {
        "flag": True, "small": -128, "big": 2**64 - 1, "single": 0.1, "double": 1e300,
        "image": np.array([[1, 2], [3, 4]], np.uint8), "ragged": np.array([1.5], np.float32),
        "free": np.array([[1, 2], [3, 4]]), "maybe": 7, "at": datetime.fromisoformat("2024-05-01T12:00:00.000001"),
        "seen": None, "day": date(2024, 5, 1), "price": Decimal("12.50"), "name": "Zürich", "colour": "red",
        "blob": b"\x00\xff", "tags": ["a", "b"], "place": {"lat": 1.5, "tag": "x"},
    },
    {
        "flag": False, "small": 127, "big": 0, "single": -3.25, "double": -0.0,
        "image": np.array([[5, 6], [7, 255]], np.uint8), "ragged": np.array([], np.float32),
        "free": None, "maybe": None, "at": datetime.fromisoformat("1969-12-31"), "seen": datetime.fromisoformat("2000-01-01"),
        "day": None, "price": Decimal("-0.01"), "name": "", "colour": "green",
        "blob": b"", "tags": [], "place": None,
    },
]  # fmt: skip


def same(left: Column, right: Column) -> bool:
    def plain(value: Any) -> Any:
        return (value.dtype.str, value.tolist()) if isinstance(value, np.ndarray) else value

    return left.dtype == right.dtype and [plain(v) for v in to_list(left)] == [
        plain(v) for v in to_list(right)
    ]


def as_request(body: bytes, header_length: int) -> tuple[bytes, bytes | None]:
    """An answer's bytes as a request: what we say, we understand."""
    text, blobs = (body[:header_length], body[header_length:]) if header_length else (body, b"")
    document = orjson.loads(text)
    said = orjson.dumps({"inputs": document["outputs"]})
    return said + blobs, str(len(said)).encode() if header_length else None


@pytest.mark.parametrize("binary", [False, True])
def test_every_type_there_and_back(binary: bool) -> None:
    batch = Batch.of(ALL, ROWS)
    outputs = [v2.Choice(name, binary) for name in ALL.names]
    body, header_length = v2.encode({"model_name": "m"}, ALL, batch.columns, outputs)
    assert (header_length > 0) == binary
    request = v2.decode(ALL, ALL, *as_request(body, header_length))
    assert request.count == 2
    for name in ALL.names:
        assert same(request.columns[name], batch[name]), name


def test_ragged_rows_are_padded_and_told() -> None:
    schema = Schema.of(r=FieldType("float32", (-1,)))
    batch = Batch.of(schema, [{"r": np.array([1, 2], np.float32)}, {"r": np.array([3], np.float32)}])
    body, _ = v2.encode({}, schema, batch.columns, [v2.Choice("r", False)])
    assert orjson.loads(body)["outputs"] == [
        {
            "name": "r", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 0.0],
            "parameters": {"row_shapes": "[[2],[1]]"},
        }
    ]  # fmt: skip


def test_padding_that_would_fill_the_memory_is_refused() -> None:
    schema = Schema.of(r=FieldType("float64", (-1, -1)))
    rows = [{"r": np.zeros((1, 100_000))}, {"r": np.zeros((100_000, 1))}]
    with pytest.raises(GatewayError, match="very different shapes"):
        v2.encode({}, schema, Batch.of(schema, rows).columns, [v2.Choice("r", False)])


def ask(
    *inputs: dict[str, Any], schema: Schema, answer: Schema | None = None, **more: Any
) -> v2.InferRequest:
    return v2.decode(schema, answer or schema, orjson.dumps({"inputs": list(inputs), **more}))


X = Schema.of(x=FieldType("float32", (2,)))


def x(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}


def test_flat_and_nested_data_are_the_same() -> None:
    flat = ask(x(shape=[2, 2], data=[1, 2, 3, 4]), schema=X)
    nested = ask(x(shape=[2, 2], data=[[1, 2], [3, 4]]), schema=X)
    assert same(flat.columns["x"], nested.columns["x"])


def test_scalars_take_a_column_too() -> None:
    schema = Schema.of(n="int64")
    for shape, data in (([2], [1, 2]), ([2, 1], [1, 2]), ([2, 1], [[1], [2]])):
        made = ask({"name": "n", "datatype": "INT64", "shape": shape, "data": data}, schema=schema)
        assert made.columns["n"].tolist() == [1, 2]


def test_narrower_datatypes_are_taken_without_loss_only() -> None:
    schema = Schema.of(n="int64", f="float64")
    narrow = [
        {"name": "n", "datatype": "INT8", "shape": [1], "data": [1]},
        {"name": "f", "datatype": "FP32", "shape": [1], "data": [0.5]},
    ]
    assert ask(*narrow, schema=schema).columns["n"].dtype == np.int64
    narrow[0]["datatype"] = "UINT64"
    with pytest.raises(GatewayError, match=r"input 'n': datatype UINT64.*datatype INT64, shape \[-1\]"):
        ask(*narrow, schema=schema)


def test_timestamps_as_text() -> None:
    schema = Schema.of(t="timestamp")
    tensor = {"name": "t", "datatype": "BYTES", "shape": [1], "data": ["2024-05-01T14:00:00+02:00"]}
    assert str(ask(tensor, schema=schema).columns["t"][0]) == "2024-05-01T12:00:00.000000"


def test_absent_nullable_inputs_are_null() -> None:
    schema = Schema(
        (*X, Field("n", FieldType("int32", nullable=True)), Field("t", FieldType("timestamp", nullable=True)))
    )
    columns = ask(x(), schema=schema).columns
    assert columns["n"].tolist() == [None]
    assert np.isnat(columns["t"]).all()


def test_bytes_in_json_are_text_or_base64() -> None:
    schema = Schema.of(b="bytes")
    tensor: dict[str, Any] = {"name": "b", "datatype": "BYTES", "shape": [1], "data": ["aGk="]}
    assert ask(tensor, schema=schema).columns["b"].tolist() == [b"aGk="]
    tensor["parameters"] = {"content_type": "base64"}
    assert ask(tensor, schema=schema).columns["b"].tolist() == [b"hi"]


def test_fp16_is_binary_only() -> None:
    schema = Schema.of(h="float16")
    with pytest.raises(GatewayError, match="FP16, which has no JSON form"):
        ask(x(), schema=X, answer=schema)
    with pytest.raises(GatewayError, match="FP16 has no JSON form"):
        ask({"name": "h", "datatype": "FP16", "shape": [1], "data": [1]}, schema=schema, answer=X)
    outputs = [{"name": "h", "parameters": {"binary_data": True}}]
    assert ask(x(), schema=X, answer=schema, outputs=outputs).outputs == [v2.Choice("h", True)]


def test_binary_for_all_outputs_or_each() -> None:
    schema = Schema.of(a="int8", b="int8")
    every = ask(x(), schema=X, answer=schema, parameters={"binary_data_output": True})
    assert [c.binary for c in every.outputs] == [True, True]
    outputs = [{"name": "b", "parameters": {"binary_data": False}}, {"name": "a"}]
    mixed = ask(x(), schema=X, answer=schema, outputs=outputs, parameters={"binary_data_output": True})
    assert mixed.outputs == [v2.Choice("b", False), v2.Choice("a", True)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datatype": "FP33"}, r"unknown datatype 'FP33'.*did you mean 'FP32'"),
        ({"datatype": None}, "unknown datatype"),
        ({"datatype": "INT32"}, r"datatype FP32, shape \[-1, 2\] is expected") ,
        ({"shape": [1, 3], "data": [1, 2, 3]}, r"datatype FP32, shape \[-1, 2\]"),
        ({"shape": [2]}, r"shape \[2\] where"),
        ({"shape": []}, "'shape' must be a list"),
        ({"shape": [1] * 33}, "'shape' must be a list"),
        ({"shape": [-1, 2]}, "a size that is no count"),
        ({"shape": [True, 2]}, "a size that is no count"),
        ({"shape": [1.0, 2]}, "a size that is no count"),
        ({"shape": [2**40, 2**40]}, "elements where shape"),
        ({"shape": [2**63, 2]}, "elements where shape"),
        ({"shape": [0, 2], "data": []}, "0 rows"),
        ({"data": [1]}, "1 elements where shape"),
        ({"data": [[1, 2], [3, 4]]}, "does not follow shape"),
        ({"data": [[1], 2]}, "does not follow shape"),
        ({"data": [[[1, 2]]]}, "does not follow shape"),
        ({"data": "12"}, "'data' must be a list"),
        ({"data": ["1", "2"]}, r"row 0: '1' \(str\) is not valid, expected float32"),
        ({"data": [None, 2]}, "null is not allowed"),
        ({"data": [True, 2]}, "row 0"),
        ({"data": [1e39, 2]}, "does not fit float32"),
        ({"data": [{}, []]}, "row 0"),
        ({"parameters": 7}, "'parameters' of input 'x' must be an object"),
        ({"parameters": {"shared_memory_region": "r"}}, "not supported"),
        ({"parameters": {"binary_data_size": 8}}, "0 are left"),
        ({"parameters": {"binary_data_size": -8}}, "count of bytes"),
        ({"parameters": {"null_rows": "0"}}, "null is not allowed"),
        ({"parameters": {"null_rows": "9"}}, "expected row numbers below 1"),
        ({"parameters": {"null_rows": 0}}, "expected row numbers"),
        ({"name": "y"}, r"no input 'y'"),
        ({"name": 7}, "must be an object with 'name'"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GatewayError, match=message) as caught:
        ask(x(**change), schema=X)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"outputs": [{"name": "y"}]}, "no output 'y'"),
        ({"outputs": [{"name": "x"}, {"name": "x"}]}, "asked for twice"),
        ({"outputs": {"name": "x"}}, "'outputs' must be a list"),
        ({"outputs": ["x"]}, "each of 'outputs'"),
        ({"outputs": [{"name": "x", "parameters": {"classification": 3}}]}, "not supported"),
        ({"id": 7}, "'id' must be a text"),
        ({"id": "x" * 300}, "'id' must be a text"),
        ({"parameters": []}, "must be an object"),
        ({"parameters": {"timeout": "soon"}}, "microseconds"),
        ({"parameters": {"timeout": True}}, "microseconds"),
        ({"parameters": {"sequence_id": 1}}, "not supported"),
    ],
)
def test_wrong_requests_are_named(more: dict[str, Any], message: str) -> None:
    with pytest.raises(GatewayError, match=message):
        ask(x(), schema=X, **more)


def test_inputs_must_be_there_once_and_agree_on_rows() -> None:
    schema = Schema((*X, Field("n", FieldType("int8"))))
    number = {"name": "n", "datatype": "INT8", "shape": [2], "data": [1, 2]}
    with pytest.raises(GatewayError, match=r"input 'n' is missing.*datatype INT8"):
        ask(x(), schema=schema)
    with pytest.raises(GatewayError, match="there twice"):
        ask(x(), x(), schema=X)
    with pytest.raises(GatewayError, match="'n' has 2 rows where 'x' has 1"):
        ask(x(), number, schema=schema)
    with pytest.raises(GatewayError) as many:
        ask(
            {"name": "n", "datatype": "INT8", "shape": [10_001], "data": [1] * 10_001},
            schema=Schema.of(n="int8"),
        )
    assert many.value.status == 413


def binary(blob: bytes, header: bytes | None = None, **changes: Any) -> v2.InferRequest:
    tensor = x(parameters={"binary_data_size": changes.pop("size", len(blob))}, **changes)
    del tensor["data"]
    text = orjson.dumps({"inputs": [tensor]})
    return v2.decode(X, X, text + blob, str(len(text)).encode() if header is None else header)


def test_binary_input() -> None:
    assert binary(struct.pack("<2f", 1.5, 2.5)).columns["x"].tolist() == [[1.5, 2.5]]


def raw(schema: Schema, body: bytes) -> v2.InferRequest:
    return v2.decode(schema, schema, body, b"0")


def test_a_raw_request_is_the_bytes_of_its_one_input() -> None:
    rows = np.arange(6, dtype="<f4")
    made = raw(Schema((*X, Field("maybe", FieldType("string", nullable=True)))), rows.tobytes())
    assert made.count == 3
    assert made.columns["x"].tolist() == rows.reshape(3, 2).tolist()
    assert made.columns["maybe"].tolist() == [None] * 3
    assert all(choice.binary for choice in made.outputs)
    free = raw(Schema.of(image=FieldType("uint8", (-1, 3))), bytes(range(12)))
    assert (free.count, free.columns["image"][0].shape) == (1, (4, 3))
    assert raw(Schema.of(blob="bytes"), b"\x00\xff").columns["blob"].tolist() == [b"\x00\xff"]
    assert raw(Schema.of(name="string"), "Zürich".encode()).columns["name"].tolist() == ["Zürich"]


@pytest.mark.parametrize(
    ("schema", "body", "message"),
    [
        (Schema.of(a="int8", b="int8"), b"12", "one input, this one has 2"),
        (X, b"1234567", r"7 bytes are no whole rows.*shape \[-1, 2\]"),
        (X, b"", "0 bytes are no whole rows"),
        (Schema.of(x=FieldType("int8", (-1, -1))), b"1234", "no whole rows"),
        (Schema.of(name="string"), b"\xff", "row 0"),
        (Schema.of(x="int8"), bytes(20_000), "20000 rows"),
    ],
)
def test_raw_requests_that_mean_nothing(schema: Schema, body: bytes, message: str) -> None:
    with pytest.raises(GatewayError, match=message):
        raw(schema, body)


def test_more_lists_than_memory_is_given_for() -> None:
    body = b'{"inputs":[' + b"[]," * MAX_JSON_CONTAINERS + b"0]}"
    with pytest.raises(GatewayError, match="lists and objects") as caught:
        v2.decode(X, X, body)
    assert caught.value.status == 413


@pytest.mark.parametrize("header", [b"00", b"-1", b"x", b"99999", b"9" * 30, b"+5", "٣".encode(), b""])
def test_header_lengths_that_are_none(header: bytes) -> None:
    with pytest.raises(GatewayError, match="Inference-Header-Content-Length is"):
        binary(b"12345678", header)


def test_binary_that_is_too_short_or_too_long() -> None:
    with pytest.raises(GatewayError, match=r"4 bytes of binary data where .* needs 8"):
        binary(b"1234")
    with pytest.raises(GatewayError, match="says 12 bytes of binary data where 8 are left"):
        binary(b"12345678", size=12)
    with pytest.raises(GatewayError, match="1 bytes follow the last"):
        binary(b"123456789", size=8)
    with pytest.raises(GatewayError, match="needs 9671406556917033397649408"):
        binary(b"12345678", shape=[2**40, 2**41])


NAMES = Schema.of(s="string")


def texts(blob: bytes, rows: int) -> v2.InferRequest:
    tensor = {
        "name": "s",
        "datatype": "BYTES",
        "shape": [rows],
        "parameters": {"binary_data_size": len(blob)},
    }
    text = orjson.dumps({"inputs": [tensor]})
    return v2.decode(NAMES, NAMES, text + blob, str(len(text)).encode())


def test_binary_texts() -> None:
    assert texts(b"\1\0\0\0a\0\0\0\0", 2).columns["s"].tolist() == ["a", ""]


@pytest.mark.parametrize(
    ("blob", "rows", "message"),
    [
        (b"\xff\xff\xff\xffa", 1, "says 4294967295 bytes where 1 are left"),
        (b"\1\0\0\0a\0", 1, "1 bytes follow"),
        (b"\1\0\0\0a\0\0\0\0", 3, "too few"),
        (b"\5\0\0\0abcde", 2, "ends before element 1"),
        (b"\1\0\0\0\xff", 1, "row 0: the text is not UTF-8"),
        (b"", 2**62, "too few"),
    ],
)
def test_binary_texts_that_are_broken(blob: bytes, rows: int, message: str) -> None:
    with pytest.raises(GatewayError, match=message):
        texts(blob, rows)


def test_nan_is_null_in_json_and_kept_in_binary() -> None:
    column = {"x": np.array([[np.nan, np.inf]], np.float32)}
    body, _ = v2.encode({}, X, column, [v2.Choice("x", False)])
    assert orjson.loads(body)["outputs"][0]["data"] == [None, None]
    body, length = v2.encode({}, X, column, [v2.Choice("x", True)])
    assert struct.unpack("<2f", body[length:])[1] == np.inf


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
PARAMETERS = st.none() | JSON | st.fixed_dictionaries(
    {},
    optional={
        "binary_data_size": st.integers(-2, 40) | JSON,
        "null_rows": st.sampled_from(["0", "1,0", "", ",", "x", "-1"]) | JSON,
        "row_shapes": st.sampled_from(["[[1]]", "[[2],[1]]", "[[-1]]", "[1]", "{", "null"]) | JSON,
        "content_type": st.just("base64") | JSON,
    },
)  # fmt: skip
TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(ALL.names) | JSON},
    optional={
        "datatype": st.sampled_from(["FP32", "INT64", "BYTES", "BOOL", "UINT8", "FP16"]) | JSON,
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**63]), max_size=4) | JSON,
        "data": st.lists(JSON, max_size=6) | JSON,
        "parameters": PARAMETERS,
    },
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=4) | JSON},
    optional={"outputs": st.lists(TENSOR, max_size=2) | JSON, "id": JSON, "parameters": PARAMETERS},
)


def only_refuses(schema: Schema, body: bytes, header: bytes | None) -> None:
    try:
        made = v2.decode(schema, schema, body, header)
    except GatewayError as error:
        refused = error.status
    else:
        for declared in schema:
            assert len(made.columns[declared.name]) == made.count
            assert made.columns[declared.name].dtype == declared.type.column_dtype
        return
    assert refused in (400, 413)


@settings(deadline=None)
@given(JSON | REQUEST, st.binary(max_size=40), st.none() | st.integers(-3, 3))
def test_whatever_is_sent_is_taken_or_refused(document: Any, blob: bytes, shift: int | None) -> None:
    try:
        text = orjson.dumps(document)
    except TypeError:  # an integer that JSON libraries do not write
        return
    header = None if shift is None else str(len(text) + shift).encode()
    only_refuses(ALL, text + blob if header is not None else text, header)


@settings(deadline=None)
@given(st.sampled_from(ALL.names), st.data())
def test_one_field_alone(name: str, data: st.DataObject) -> None:
    """One input of a one-field contract: deeper into each type's own path."""
    from dataflow.gateway.v2_types import datatype_of

    schema = ALL.select([name])
    declared = schema[name]
    sizes = [2, *(abs(s) for s in declared.type.shape)]
    shape = data.draw(st.just(sizes) | st.lists(st.integers(0, 3), min_size=1, max_size=3))
    cells = st.lists(JSON, min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
    tensor = {
        "name": name,
        "datatype": data.draw(st.just(datatype_of(declared.type)) | st.sampled_from(["INT8", "BYTES"])),
        "shape": shape,
        "data": data.draw(cells),
        "parameters": data.draw(PARAMETERS),
    }
    try:
        only_refuses(schema, orjson.dumps({"inputs": [tensor]}), None)
    except orjson.JSONEncodeError:
        return


@settings(deadline=None)
@given(st.binary(max_size=200), st.none() | st.binary(max_size=8))
def test_bytes_at_random(body: bytes, header: bytes | None) -> None:
    only_refuses(X, body, header)


@settings(deadline=None)
@given(st.sampled_from(ALL.names), st.integers(1, 3), st.binary(max_size=60))
def test_binary_at_random(name: str, rows: int, blob: bytes) -> None:
    from dataflow.gateway.v2_types import datatype_of

    schema = ALL.select([name])
    field_type = schema[name].type
    tensor = {
        "name": name,
        "datatype": datatype_of(field_type),
        "shape": [rows, *(abs(s) for s in field_type.shape)],
        "parameters": {"binary_data_size": len(blob)},
    }
    text = orjson.dumps({"inputs": [tensor]})
    only_refuses(schema, text + blob, str(len(text)).encode())


def test_bf16_is_taken_where_float32_and_float64_are() -> None:
    halves = (np.array([1.5, -2.0, 3.140625, np.inf], np.float32).view(np.uint32) >> 16).astype("<u2")
    for kind in ("float32", "float64"):
        schema = Schema.of(v=kind)
        said = {"name": "v", "datatype": "BF16", "shape": [4], "parameters": {"binary_data_size": 8}}
        text = orjson.dumps({"inputs": [said]})
        made = v2.decode(schema, schema, text + halves.tobytes(), str(len(text)).encode())
        assert made.columns["v"].dtype == np.dtype(kind)
        assert made.columns["v"].tolist() == [1.5, -2.0, 3.140625, np.inf]
    with pytest.raises(GatewayError, match="BF16 has no JSON form"):
        ask({"name": "v", "datatype": "BF16", "shape": [1], "data": [1]}, schema=Schema.of(v="float32"))
    assert not fits(FieldType("float16"), "BF16")


@pytest.mark.parametrize("name", ["timeout", "priority"])
def test_schedule_parameters_are_counts(name: str) -> None:
    assert ask(x(), schema=X, parameters={name: 2}).count == 1
    for wrong in (-1, 1.5, "1", True):
        with pytest.raises(GatewayError, match=f"parameter '{name}'"):
            ask(x(), schema=X, parameters={name: wrong})
