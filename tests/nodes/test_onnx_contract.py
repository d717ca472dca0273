from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from dataflow.core.errors import ContractError, ModelError
from dataflow.core.schema import FieldType, Schema
from dataflow.serving import model_info
from dataflow.testing.nodes import build_node
from nodes.onnx import OnnxNode
from tests.nodes.onnx_support import FLOWER, X4, Trained, contract, run
from tests.serving.onnx_models import (
    FLOAT,
    INT64,
    STRING,
    write_graph,
    write_identity,
    write_iris,
)


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = tmp_path_factory.mktemp("iris") / "iris.onnx"
    return Trained(path, write_iris(path))


# --- contracts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "config", "message", "path"),
    [
        (
            Schema.of(y=FieldType("float32", (5,))),
            {},
            r"no field fits .*'X' \(float32\[4\]\)",
            ("with", "inputs"),
        ),
        (Schema.of(X=FieldType("float32", (5,))), {}, "the shape does not fit", ("with", "inputs")),
        (Schema.of(X="string"), {}, "the dtype does not fit", ("with", "inputs")),
        (Schema.of(y=X4, z=X4), {}, r"more than one field fits .*inputs: \{X: y\}", ("with", "inputs")),
        (FLOWER, {}, r"to stack scalars: inputs: \[a, b, c, d\]", ("with", "inputs")),
        (FLOWER, {"inputs": ["a", "b", "c"]}, "the fields make 3 values", ("with", "inputs")),
        (FLOWER, {"inputs": {"X": ["a", "b", "c", "dd"]}}, "no field 'dd'.*'d'", ("with", "inputs", "X")),
        (Schema.of(y=X4), {"inputs": {"x": "y"}}, "no input 'x'", ("with", "inputs", "x")),
        (Schema.of(y=X4), {"outputs": ["lable"]}, "no output 'lable'.*'label'", ("with", "outputs")),
        (Schema.of(X=X4, label="string"), {}, "has the name of an input field", ("with", "outputs")),
        (Schema.of(X=replace(X4, nullable=True)), {}, "may be null", ("with", "inputs")),
    ],
)
def test_declarations_that_cannot_fit(
    iris: Trained, schema: Schema, config: dict[str, Any], message: str, path: tuple[str, ...]
) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        contract(iris.path, schema, config)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("given", "kind", "by_itself", "by_cast"),
    [
        ("float64", FLOAT, True, True),
        ("int32", INT64, True, True),
        ("int64", FLOAT, True, True),
        ("bool", FLOAT, True, True),
        ("float32", INT64, False, True),
        ("uint64", INT64, False, True),
        ("string", FLOAT, False, False),
        ("timestamp", INT64, False, False),
        ("int64", STRING, False, False),
    ],
)
def test_which_casts_are_allowed(
    tmp_path: Path, given: str, kind: int, by_itself: bool, by_cast: bool
) -> None:
    path = tmp_path / "m.onnx"
    write_identity(path, ["n", 1], kind)
    for cast, allowed in ((False, by_itself), (True, by_cast)):
        if allowed:
            assert "y" in contract(path, Schema.of(x=given), {"cast": cast})
        else:
            with pytest.raises(ContractError, match="the dtype does not fit"):
                contract(path, Schema.of(x=given), {"cast": cast})


def test_a_missing_field_of_several_inputs_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    add = helper.make_node("Add", ["price", "tax"], ["total"])
    write_graph(path, {"price": (FLOAT, ["n"]), "tax": (FLOAT, ["n"])}, {"total": (FLOAT, ["n"])}, [add])
    with pytest.raises(
        ContractError, match=r"no field feeds .*'tax' .*did you mean 'taxes'\? .*inputs: \{tax: FIELD\}"
    ):
        contract(path, Schema.of(price="float32", taxes="float32"))
    with pytest.raises(ContractError, match="a plain list is for a model of one input; this one has 2"):
        contract(path, Schema.of(price="float32", taxes="float32"), {"inputs": ["price", "taxes"]})


def test_zipmap_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    rows = write_iris(path, zipmap=True)
    with pytest.raises(ContractError, match=r"output_probability.*zipmap.*outputs: \[output_label\]"):
        contract(path, Schema.of(x=X4))
    result = run(path, Schema.of(x=X4), [{"x": rows[0]}], config={"outputs": ["output_label"]})
    assert result.out[0]["output_label"] == 0


def test_out_must_agree_with_the_file(iris: Trained) -> None:
    with pytest.raises(ContractError, match="'label' is declared string, the model gives int64") as caught:
        contract(iris.path, Schema.of(x=X4), out=Schema.of(label="string"))
    assert caught.value.path == ("out", "label")
    with pytest.raises(ContractError, match="no output of the model becomes 'lable'"):
        contract(iris.path, Schema.of(x=X4), out=Schema.of(lable="int64"))


def test_a_model_that_is_not_built_yet(tmp_path: Path) -> None:
    schema = Schema.of(x=X4)
    with pytest.raises(ContractError, match=r"not built yet.*dataflow model build m") as caught:
        contract(tmp_path / "gone.onnx", schema)
    assert caught.value.path == ("with", "model")
    declared = contract(tmp_path / "gone.onnx", schema, out=Schema.of(label="int64"))
    assert declared.describe() == "x: float32[4], label: int64"
    info = model_info("m", tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match=r"model 'm': no file at .*dataflow model build m"):
        build_node(OnnxNode, schema, {"model": "m"}, models=lambda _: info, out=Schema.of(label="int64"))
