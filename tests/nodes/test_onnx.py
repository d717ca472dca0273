from __future__ import annotations

import decimal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from pydantic import ValidationError

from dataflow.core.batch import Batch
from dataflow.core.errors import ModelError
from dataflow.core.outcomes import Out
from dataflow.core.schema import FieldType, Schema
from dataflow.sdk import ModelInfo, Node
from dataflow.serving import ModelStore, model_info
from dataflow.testing.nodes import build_node
from nodes.onnx import OnnxNode
from tests.nodes.onnx_support import FLOWER, PETALS, X4, X10, Trained, contract, flowers, run
from tests.serving.onnx_models import (
    DOUBLE,
    FLOAT,
    INT64,
    STRING,
    write_diabetes,
    write_graph,
    write_identity,
    write_iris,
)


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = tmp_path_factory.mktemp("iris") / "iris.onnx"
    return Trained(path, write_iris(path))


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = tmp_path_factory.mktemp("diabetes") / "diabetes.onnx"
    return Trained(path, write_diabetes(path))


# --- values ----------------------------------------------------------------------------------------------------


def test_outputs_are_appended_and_equal_those_of_onnxruntime(iris: Trained) -> None:
    schema = Schema.of(id="string", X=X4)
    records = [{"id": str(i), "X": row} for i, row in enumerate(iris.rows)]
    result = run(iris.path, schema, records)
    labels, probabilities = iris.direct()
    assert contract(iris.path, schema).describe() == (
        "id: string, X: float32[4], label: int64, probabilities: float32[3]"
    )
    assert [r["id"] for r in result.out] == [str(i) for i in range(150)]
    assert [r["label"] for r in result.out] == labels.tolist()
    assert np.array_equal([r["probabilities"] for r in result.out], probabilities)


@pytest.mark.parametrize("batch_records", [1, 7, 0])
def test_batches_and_splits_change_nothing(diabetes: Trained, batch_records: int) -> None:
    schema = Schema.of(x=X10)
    records = [{"x": row} for row in diabetes.rows]
    result = run(diabetes.path, schema, records, batch_records=batch_records, config={"max_batch": 50})
    # onnxruntime adds up trees in another order for another batch size: equal but for the last bit.
    assert np.allclose([r["variable"] for r in result.out], diabetes.direct()[0][:, 0], rtol=1e-6)
    assert result.parents["out"] == list(range(len(records)))


def test_one_value_per_record_is_a_scalar_unless_kept(diabetes: Trained) -> None:
    schema = Schema.of(x=X10)
    assert contract(diabetes.path, schema)["variable"].type == FieldType("float32")
    assert contract(diabetes.path, schema, {"squeeze": False})["variable"].type == FieldType("float32", (1,))
    kept = run(diabetes.path, schema, [{"x": diabetes.rows[0]}], config={"squeeze": False})
    assert kept.out[0]["variable"].shape == (1,)


def test_scalars_are_stacked_in_the_order_given(iris: Trained) -> None:
    result = run(iris.path, FLOWER, flowers(iris.rows), config={"inputs": list(PETALS), "outputs": ["label"]})
    assert [r["label"] for r in result.out] == iris.direct()[0].tolist()
    assert list(result.out[0]) == [*PETALS, "label"]
    turned = run(
        iris.path,
        FLOWER,
        flowers(iris.rows),
        config={"inputs": {"X": ["d", "c", "b", "a"]}, "outputs": {"label": "kind"}},
    )
    assert [r["kind"] for r in turned.out] == iris.direct(np.ascontiguousarray(iris.rows[:, ::-1]))[
        0
    ].tolist()


def test_vectors_and_scalars_side_by_side(iris: Trained) -> None:
    schema = Schema.of(head=FieldType("float32", (3,)), tail="int16")
    records = [{"head": row[:3], "tail": int(row[3] * 10)} for row in iris.rows]
    rows = np.column_stack([iris.rows[:, :3], (iris.rows[:, 3] * 10).astype(np.int16)]).astype(np.float32)
    result = run(iris.path, schema, records, config={"inputs": ["head", "tail"]})
    assert [r["label"] for r in result.out] == iris.direct(rows)[0].tolist()


def test_keep_out_and_new_names(iris: Trained) -> None:
    schema = Schema.of(id="string", X=X4)
    config = {"outputs": {"label": "species", "probabilities": "p"}}
    out = Schema.of(species="int64")
    assert contract(iris.path, schema, config, keep=["id"]).describe() == (
        "id: string, species: int64, p: float32[3]"
    )
    assert contract(iris.path, schema, config, keep=["id"], out=out).names == ("id", "species")
    wide = Schema.of(p=FieldType("float64", (3,)))
    result = run(iris.path, schema, [{"id": "a", "X": iris.rows[0]}], config=config, keep=[], out=wide)
    assert list(result.out[0]) == ["p"]
    assert result.out[0]["p"].dtype == np.float64


def test_null_is_nan_for_a_float_input_and_nan_is_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_identity(path, ["n", 1])
    schema = Schema.of(v=FieldType("float64", nullable=True))
    values = [1.5, None, float("inf"), float("nan")]
    result = run(path, schema, [{"v": v} for v in values])
    assert np.array_equal([r["y"] for r in result.out], [1.5, np.nan, np.inf, np.nan], equal_nan=True)
    assert not result.failed


def test_strings_decimals_and_several_inputs(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [
        helper.make_node("Identity", ["name"], ["same"]),
        helper.make_node("Add", ["price", "tax"], ["total"]),
    ]
    write_graph(
        path,
        {"name": (STRING, [None, 1]), "price": (DOUBLE, [None]), "tax": (DOUBLE, [None])},
        {"same": (STRING, [None, 1]), "total": (DOUBLE, [None])},
        nodes,
    )
    schema = Schema.of(
        name=FieldType("enum", symbols=("tea", "milk")),
        price=FieldType("decimal", precision=6, scale=2),
        tax=FieldType("float32", (1,)),
    )
    records = [
        {"name": "tea", "price": decimal.Decimal("3.50"), "tax": [0.5]},
        {"name": "milk", "price": decimal.Decimal("1.25"), "tax": [0.25]},
    ]
    result = run(path, schema, records)
    assert [(r["same"], r["total"]) for r in result.out] == [("tea", 4.0), ("milk", 1.5)]


def test_rows_of_equal_shape_run_together_and_stay_in_order(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    nodes[0].input.append("axes")
    axes = numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")
    write_graph(
        path, {"x": (FLOAT, ["n", "w"])}, {"total": (FLOAT, ["n"]), "y": (FLOAT, ["n", "w"])}, nodes, [axes]
    )
    schema = Schema.of(x=FieldType("float32", (-1,)))
    rows = [np.arange(size, dtype=np.float32) - 1 for size in (2, 5, 2, 1, 5, 2)]
    result = run(path, schema, [{"x": row} for row in rows])
    assert result.parents["out"] == list(range(6))
    for row, made in zip(rows, result.out, strict=True):
        assert made["total"] == row.sum()
        assert np.array_equal(made["y"], np.maximum(row, 0))


@pytest.mark.parametrize("size", [1, 4])
def test_a_fixed_batch_runs_in_chunks_of_its_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m.onnx"
    write_identity(path, [size, 2])
    schema = Schema.of(x=FieldType("float32", (2,)))
    rows = np.arange(18, dtype=np.float32).reshape(9, 2)
    result = run(path, schema, [{"x": row} for row in rows])
    assert np.array_equal([r["y"] for r in result.out], rows)


# --- rows that fail --------------------------------------------------------------------------------------------


@pytest.fixture
def lookup(tmp_path: Path) -> Path:
    """y = table[x], x [N] int64: an index out of range makes the whole run fail."""
    path = tmp_path / "lookup.onnx"
    table = numpy_helper.from_array(np.array([10, 20, 30], dtype=np.float32), "table")
    gather = helper.make_node("Gather", ["table", "x"], ["y"], axis=0)
    write_graph(path, {"x": (INT64, ["n"])}, {"y": (FLOAT, ["n"])}, [gather], [table])
    return path


@pytest.mark.parametrize("batch_records", [0, 1, 3])
def test_one_bad_row_never_takes_its_batch_down(lookup: Path, batch_records: int) -> None:
    records = [{"x": i} for i in (0, 2, 99, 1, -50)]
    result = run(lookup, Schema.of(x="int64"), records, batch_records=batch_records)
    assert [r["y"] for r in result.out] == [10, 30, 20]
    assert result.parents["out"] == [0, 1, 3]
    assert [row for row, _ in result.failed] == [2, 4]
    assert "model 'm': " in result.failed[0][1]
    assert "out of data bounds" in result.failed[0][1]


def test_a_cast_that_loses_value_fails_only_its_row(lookup: Path) -> None:
    records = [{"x": v} for v in (1.0, 1.5, 2.0, float("nan"))]
    result = run(lookup, Schema.of(x="float64"), records, config={"cast": True})
    assert [r["y"] for r in result.out] == [20, 30]
    assert [row for row, _ in result.failed] == [1, 3]
    assert "value 1.5 of float64 does not fit int64" in result.failed[0][1]
    unsigned = run(lookup, Schema.of(x="uint64"), [{"x": 2**64 - 1}, {"x": 1}], config={"cast": True})
    assert [row for row, _ in unsigned.failed] == [0]


def test_a_tensor_of_the_wrong_free_size_fails_only_its_row(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_identity(path, ["n", 3])
    rows = [np.zeros(3, np.float32), np.zeros(4, np.float32), np.ones(3, np.float32)]
    result = run(path, Schema.of(x=FieldType("float32", (-1,))), [{"x": row} for row in rows])
    assert result.parents["out"] == [0, 2]
    assert [row for row, _ in result.failed] == [1]


def test_outputs_that_are_not_one_per_row_fail(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    twice = helper.make_node("Concat", ["x", "x"], ["y"], axis=0)
    write_graph(path, {"x": (FLOAT, ["n"])}, {"y": (FLOAT, ["twice"])}, [twice])
    result = run(path, Schema.of(x="float32"), [{"x": 1.0}, {"x": 2.0}])
    assert result.out == []
    assert result.failed[1] == (1, "model 'm': output 'y' is [2] for 1 rows: not one value per row")


# --- sessions --------------------------------------------------------------------------------------------------


def built(info: ModelInfo, schema: Schema, **config: Any) -> Node:
    return build_node(OnnxNode, schema, {"model": "m", **config}, models=lambda _: info)


def test_a_provider_that_is_not_there_is_an_error(iris: Trained) -> None:
    assert "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
    info = model_info("m", iris.path)
    with pytest.raises(
        ModelError, match=r"this onnxruntime has no CUDAExecutionProvider; it has .*extra 'gpu'"
    ):
        built(info, Schema.of(x=X4), device="cuda")
    with pytest.raises(ModelError, match="no NoSuchProvider"):
        built(info, Schema.of(x=X4), providers=["NoSuchProvider"])


def test_a_provider_that_silently_falls_back_is_an_error(
    iris: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime-gpu does where CUDA's libraries are not found: available, yet not active."""
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    real = onnxruntime.InferenceSession

    def fall_back(path: str, sess_options: Any, providers: list[str]) -> Any:
        return real(
            path, sess_options, providers=[p for p in providers if "CPU" in p] or ["CPUExecutionProvider"]
        )

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(
        ModelError, match="CUDAExecutionProvider was asked for, but only CPUExecutionProvider became"
    ):
        built(model_info("m", iris.path), Schema.of(x=X4), device="cuda")


def test_options_of_the_model_are_defaults_of_the_node(iris: Trained) -> None:
    info = model_info("m", iris.path, options={"device": "cuda", "unknown": 1})
    with pytest.raises(ModelError, match="has no CUDAExecutionProvider"):
        built(info, Schema.of(x=X4))
    built(info, Schema.of(x=X4), device="cpu")
    with pytest.raises(ValidationError, match="max_batch"):
        built(replace(info, options={"max_batch": 0}), Schema.of(x=X4))


def test_nodes_of_one_process_share_a_session(iris: Trained) -> None:
    store = ModelStore()
    info = model_info("m", iris.path, digest="d", share=store.sharer("m", "d"))
    nodes = [built(info, Schema.of(x=X4)) for _ in range(3)]
    (key,) = store.keys
    assert store.holders(key) == 3
    batch = Batch.of(Schema.of(x=X4), [{"x": iris.rows[0]}])
    for node in nodes:
        out = Out(batch, ("out",))
        node.process(batch, out)
        assert out.emissions[0].columns["label"][0] == 0
        assert isinstance(node, OnnxNode)
        node.close()
    assert store.keys == []


def test_a_fitting_column_is_handed_on_without_a_copy(iris: Trained) -> None:
    schema = Schema.of(x=X4)
    node = built(model_info("m", iris.path), schema)
    shared = iris.rows.view()
    shared.setflags(write=False)  # as decoded: a view of the wire's bytes
    batch = Batch(schema, {"x": shared}, Batch.of(schema, [{"x": row} for row in iris.rows]).rows)
    assert isinstance(node, OnnxNode)
    assert node._feeders["X"](batch) is shared
    out = Out(batch, ("out",))
    node.process(batch, out)
    assert out.emissions[0].columns["x"] is shared
    assert out.emissions[0].columns["label"].tolist() == iris.direct()[0].tolist()


def test_without_onnxruntime_the_extras_are_named(iris: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    info = model_info("m", iris.path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"kafka-dataflow\[cpu\].*kafka-dataflow\[gpu\]"):
        built(info, Schema.of(x=X4))
    with pytest.raises(ModelError, match="onnxruntime is not installed"):
        model_info("m", iris.path)
