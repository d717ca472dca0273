from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from dataflow.core.errors import ModelError
from dataflow.serving import model_info, read_signature
from tests.serving.onnx_models import FLOAT, INT64, STRING, write_graph, write_identity, write_iris


def test_a_trained_classifier(tmp_path: Path) -> None:
    write_iris(tmp_path / "m.onnx")
    signature = read_signature(tmp_path / "m.onnx")
    assert signature.inputs.describe() == "X: float32[4]"
    assert signature.outputs.describe() == "label: int64, probabilities: float32[3]"
    assert signature.batch == -1
    assert signature.opset > 8
    assert signature.producer == "skl2onnx"
    assert signature.size_bytes == (tmp_path / "m.onnx").stat().st_size


def test_zipmap_is_recorded_with_the_way_out(tmp_path: Path) -> None:
    write_iris(tmp_path / "m.onnx", zipmap=True)
    signature = read_signature(tmp_path / "m.onnx")
    assert signature.outputs.names == ("output_label",)
    assert '{"zipmap": False}' in signature.uncarryable["output_probability"]


def test_free_and_fixed_axes(tmp_path: Path) -> None:
    write_identity(tmp_path / "free.onnx", ["n", 3, "width"])
    free = read_signature(tmp_path / "free.onnx")
    assert free.batch == -1
    assert free.inputs["x"].type.shape == (3, -1)
    assert free.metadata == {"origin": "tests"}
    assert free.opset == 17
    write_identity(tmp_path / "one.onnx", [1, 3])
    one = read_signature(tmp_path / "one.onnx")
    assert one.batch == 1
    assert one.inputs["x"].type.shape == one.outputs["y"].type.shape == (3,)
    assert one.ports_in[0].shape == (1, 3)


def test_every_element_type_has_its_kind(tmp_path: Path) -> None:
    kinds = {
        "BOOL": "bool", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8",
        "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "FLOAT16": "float16", "FLOAT": "float32",
        "DOUBLE": "float64", "STRING": "string",
    }  # fmt: skip
    for name, kind in kinds.items():
        write_identity(tmp_path / "m.onnx", ["n"], getattr(TensorProto, name))
        assert read_signature(tmp_path / "m.onnx").inputs["x"].type.kind == kind


def test_what_cannot_be_a_field(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_identity(path, ["n", 1], STRING)
    assert read_signature(path).inputs["x"].type.shape == ()
    write_identity(path, ["n", 2], STRING)
    with pytest.raises(ModelError, match="input 'x': a field holds one string"):
        model_info("m", path)
    write_identity(path, [])
    with pytest.raises(ModelError, match="input 'x': it has no batch axis"):
        model_info("m", path)
    write_identity(path, [12])
    with pytest.raises(ModelError, match=r"shape \[12\] has no batch axis"):
        model_info("m", path)
    write_identity(path, ["n", 2], TensorProto.BFLOAT16)
    with pytest.raises(ModelError, match="no field type holds bfloat16"):
        model_info("m", path)


def test_inputs_of_different_fixed_batches(tmp_path: Path) -> None:
    node = helper.make_node("Concat", ["a", "b"], ["y"], axis=0)
    path = tmp_path / "m.onnx"
    write_graph(path, {"a": (FLOAT, [2, 3]), "b": (FLOAT, [4, 3])}, {"y": (FLOAT, [6, 3])}, [node])
    with pytest.raises(ModelError, match="input 'b': first axis of size 4 where another input has 2"):
        model_info("m", path)


def test_an_output_without_a_batch_axis(tmp_path: Path) -> None:
    shape = helper.make_node("Shape", ["x"], ["size"])
    keep = helper.make_node("Identity", ["x"], ["y"])
    path = tmp_path / "m.onnx"
    write_graph(path, {"x": (FLOAT, ["n", 3])}, {"size": (INT64, [2]), "y": (FLOAT, ["n", 3])}, [shape, keep])
    info = model_info("m", path)
    assert info.outputs.names == ("y",)
    assert "first axis of fixed size 2 is no batch axis" in info.uncarryable["size"]


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model file at .*gone.onnx"):
        read_signature(tmp_path / "gone.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"this is no protobuf")
    with pytest.raises(ModelError, match=r"junk.onnx is not a model that onnxruntime reads"):
        read_signature(tmp_path / "junk.onnx")
    assert len(model_info("m", tmp_path / "gone.onnx").inputs) == 0
