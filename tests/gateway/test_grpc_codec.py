from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.errors import GatewayError
from dataflow.core.schema import Column, Field, FieldType, Schema
from dataflow.gateway import v2
from dataflow.gateway.grpc_codec import CONTENTS_OF, decode, encode
from dataflow.gateway.grpc_proto import Protocol
from dataflow.gateway.v2_types import DATATYPE_OF

REQUEST = Protocol.load().message("ModelInferRequest")
RESPONSE = Protocol.load().message("ModelInferResponse")
ANSWER = Schema.of(y="float32")
KINDS = [kind for kind in DATATYPE_OF if kind != "timestamp"]


def asked(
    datatype: str, shape: list[int], contents: list[Any] | None = None, raw: bytes | None = None
) -> Any:
    message = REQUEST()
    entry = message.inputs.add(name="x", datatype=datatype, shape=shape)
    if contents is not None:
        getattr(entry.contents, CONTENTS_OF[datatype]).extend(contents)
    if raw is not None:
        message.raw_input_contents.append(raw)
    return message


def schema(kind: str, *shape: int) -> Schema:
    return Schema((Field("x", FieldType(kind, shape)),))


def samples(kind: str) -> Column:
    if kind == "bool":
        return np.array([True, False, True])
    dtype = np.dtype(kind)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    return np.array([limits.min, 1, limits.max], dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_goes_both_ways_raw(kind: str) -> None:
    values = samples(kind)
    call, raw = decode(schema(kind), ANSWER, asked(DATATYPE_OF[kind], [3], raw=values.tobytes()))
    assert raw
    np.testing.assert_array_equal(call.columns["x"], values)
    answer = encode(RESPONSE, {}, schema(kind), call.columns, [v2.Choice("x", True)], raw=True)
    assert bytes(answer.raw_output_contents[0]) == values.tobytes()
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == (DATATYPE_OF[kind], [3])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "float16"])
def test_every_number_goes_both_ways_typed(kind: str) -> None:
    values = samples(kind)
    call, raw = decode(schema(kind), ANSWER, asked(DATATYPE_OF[kind], [3], values.tolist()))
    assert not raw
    np.testing.assert_array_equal(call.columns["x"], values)
    assert call.columns["x"].dtype == values.dtype
    answer = encode(RESPONSE, {}, schema(kind), call.columns, [v2.Choice("x", True)], raw=False)
    contents = getattr(answer.outputs[0].contents, CONTENTS_OF[DATATYPE_OF[kind]])
    np.testing.assert_array_equal(np.array(contents, dtype=kind), values)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5), st.booleans())
def test_bytes_go_both_ways(elements: list[bytes], typed: bool) -> None:
    packed = b"".join(len(e).to_bytes(4, "little") + e for e in elements)
    message = (
        asked("BYTES", [len(elements)], elements) if typed else asked("BYTES", [len(elements)], raw=packed)
    )
    call, raw = decode(schema("bytes"), ANSWER, message)
    assert call.columns["x"].tolist() == elements
    answer = encode(RESPONSE, {}, schema("bytes"), call.columns, [v2.Choice("x", True)], raw=raw)
    if typed:
        assert list(answer.outputs[0].contents.bytes_contents) == elements
    else:
        assert bytes(answer.raw_output_contents[0]) == packed


def test_bfloat16_is_taken_for_wider_floats() -> None:
    values = np.array([0.0, 1.5, -2.0], dtype=np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2")
    for kind in ("float32", "float64"):
        call, _ = decode(schema(kind), ANSWER, asked("BF16", [3], raw=halves.tobytes()))
        np.testing.assert_array_equal(call.columns["x"], values)


def test_typed_floats_may_be_what_json_cannot_say() -> None:
    call, _ = decode(schema("float32"), ANSWER, asked("FP32", [3], [float("nan"), float("inf"), -0.0]))
    np.testing.assert_array_equal(call.columns["x"], np.array([np.nan, np.inf, -0.0], np.float32))


def test_parameters_say_what_they_say_over_http() -> None:
    message = asked("FP32", [1], [1.0])
    message.parameters["timeout"].uint64_param = 7
    message.parameters["row_errors"].string_param = "entry"
    message.parameters["other"].double_param = 0.5
    message.outputs.add(name="y")
    call, raw = decode(schema("float32"), ANSWER, message)
    assert (call.timeout_us, call.row_errors, [c.name for c in call.outputs], raw) == (
        7,
        "entry",
        ["y"],
        False,
    )


def test_rows_of_tensors_and_ragged_ones() -> None:
    ragged = schema("int32", -1)
    message = asked("INT32", [2, 2], [1, 2, 3, 0])
    message.inputs[0].parameters["row_shapes"].string_param = "[[2],[1]]"
    call, _ = decode(ragged, ANSWER, message)
    assert [row.tolist() for row in call.columns["x"]] == [[1, 2], [3]]
    answer = encode(RESPONSE, {"id": "7"}, ragged, call.columns, [v2.Choice("x", True)], raw=False)
    assert (answer.id, list(answer.outputs[0].shape)) == ("7", [2, 2])
    assert list(answer.outputs[0].contents.int_contents) == [1, 2, 3, 0]
    assert answer.outputs[0].parameters["row_shapes"].string_param == "[[2],[1]]"


def test_nulls_are_named() -> None:
    nullable = Schema((Field("x", FieldType("int64", nullable=True)),))
    message = asked("INT64", [2], [5, 0])
    message.inputs[0].parameters["null_rows"].string_param = "1"
    call, _ = decode(nullable, ANSWER, message)
    assert call.columns["x"].tolist() == [5, None]
    answer = encode(RESPONSE, {}, nullable, call.columns, [v2.Choice("x", True)], raw=False)
    assert answer.outputs[0].parameters["null_rows"].string_param == "1"


def both() -> Any:
    return asked("FP32", [1], [1.0], b"\0\0\0\0")


def wrong_member() -> Any:
    message = asked("FP32", [1], [1.0])
    message.inputs[0].contents.int_contents.append(1)
    return message


def one_of_two_raw() -> Any:
    message = asked("FP32", [1], raw=b"\0\0\0\0")
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    return message


def shared_memory() -> Any:
    message = asked("FP32", [1])
    message.inputs[0].parameters["shared_memory_region"].string_param = "mine"
    return message


def empty_parameter() -> Any:
    message = asked("FP32", [1], [1.0])
    message.parameters["timeout"].SetInParent()
    return message


@pytest.mark.parametrize(
    ("kind", "message", "words"),
    [
        ("float32", both(), "input 'x' has both 'contents' and 'raw_input_contents'"),
        ("float32", wrong_member(), "'int_contents' is filled where datatype FP32 needs 'fp32_contents'"),
        ("float32", one_of_two_raw(), "'raw_input_contents' has 1 parts where there are 2 inputs"),
        ("float32", shared_memory(), "parameter 'shared_memory_region' of input 'x' is not supported"),
        ("float32", empty_parameter(), "parameter 'timeout' is None"),
        ("float32", REQUEST(), "'inputs' must be a list"),
        ("float32", asked("FP32", [2], [1.0]), "1 elements where shape"),
        ("float32", asked("FP32", [], [1.0]), "'shape' must be a list"),
        ("float32", asked("FP32", [-1], [1.0]), "a size that is no count"),
        ("float32", asked("FP32", [2**62, 2**62], []), "0 elements where shape"),
        ("float32", asked("FP32", [1], raw=b"\0\0\0"), "3 bytes of binary data where"),
        ("float16", asked("FP16", [1]), "FP16 has no typed contents"),
        ("float32", asked("FP3", [1]), "unknown datatype 'FP3'"),
        ("float32", asked("FP64", [1], [1.0]), "datatype FP64"),
        ("int8", asked("INT8", [1], [128]), "element 0 is 128, which is no INT8"),
        ("uint16", asked("UINT16", [2], [1, 65536]), "element 1 is 65536, which is no UINT16"),
        ("string", asked("BYTES", [1], [b"\xff"]), "the text is not UTF-8"),
        ("string", asked("BYTES", [1], raw=b"\xff\xff\xff\xff"), "says 4294967295 bytes where 0 are left"),
    ],
)
def test_what_is_wrong_is_told(kind: str, message: Any, words: str) -> None:
    with pytest.raises(GatewayError) as refused:
        decode(schema(kind), ANSWER, message)
    assert words in str(refused.value)
    assert refused.value.status in (400, 413)


@given(st.data())
def test_whatever_a_request_holds_it_is_read_or_refused(data: Any) -> None:
    message = REQUEST(id=data.draw(st.text(max_size=3)))
    for _ in range(data.draw(st.integers(0, 3))):
        entry = message.inputs.add(
            name=data.draw(st.sampled_from(["x", "y", "z"])),
            datatype=data.draw(st.sampled_from(["FP32", "BYTES", "INT8", "FP16", "BOOL", "?"])),
            shape=data.draw(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2), max_size=3)),
        )
        if data.draw(st.booleans()):
            entry.contents.fp32_contents.extend(data.draw(st.lists(st.floats(width=32), max_size=3)))
            entry.contents.bytes_contents.extend(data.draw(st.lists(st.binary(max_size=3), max_size=3)))
        entry.parameters[
            data.draw(st.sampled_from(["null_rows", "row_shapes", "a"]))
        ].string_param = data.draw(st.sampled_from(["0", "[[1]]", "?"]))
    message.raw_input_contents.extend(data.draw(st.lists(st.binary(max_size=8), max_size=3)))
    fields = Schema((Field("x", FieldType("float32", nullable=True)), Field("y", FieldType("string"))))
    try:
        call, _ = decode(fields, ANSWER, REQUEST.FromString(message.SerializeToString()))
    except GatewayError as error:
        refused = error.status
    else:
        refused = 0
        assert all(len(column) == call.count for column in call.columns.values())
    assert refused in (0, 400, 413)
