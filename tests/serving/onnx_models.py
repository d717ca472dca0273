"""Small real ONNX models: trained on scikit-learn's data sets, or graphs of a few operators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import LogisticRegression

Floats = npt.NDArray[np.float32]
FLOAT, INT64, STRING, DOUBLE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.DOUBLE


def write_iris(path: Path, *, zipmap: bool = False) -> Floats:
    """A classifier: input X [N, 4], outputs label [N] and probabilities [N, 3] (a sequence of maps with `zipmap`)."""
    x, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(x, y)
    rows: Floats = x.astype(np.float32)
    path.write_bytes(to_onnx(model, rows[:1], options={"zipmap": zipmap}).SerializeToString())
    return rows


def write_diabetes(path: Path) -> Floats:
    """A regressor: input X [N, 10], output variable [N, 1]."""
    x, y = load_diabetes(return_X_y=True)
    model = GradientBoostingRegressor(n_estimators=20, random_state=0).fit(x, y)
    rows: Floats = x.astype(np.float32)
    path.write_bytes(to_onnx(model, rows[:1]).SerializeToString())
    return rows


def write_graph(
    path: Path,
    inputs: dict[str, tuple[int, Sequence[Any] | None]],
    outputs: dict[str, tuple[int, Sequence[Any] | None]],
    nodes: Sequence[Any],
    constants: Sequence[Any] = (),
) -> None:
    """A graph of ONNX operators; ports are name -> (element type, shape)."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in outputs.items()],
        list(constants),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="tests")
    model.ir_version = 8
    helper.set_model_props(model, {"origin": "tests"})
    path.write_bytes(model.SerializeToString())


def write_identity(
    path: Path, shape: Sequence[Any], kind: int = FLOAT, out_shape: Sequence[Any] | None = None
) -> None:
    """One input x, one output y with the same values."""
    node = helper.make_node("Identity", ["x"], ["y"])
    write_graph(
        path, {"x": (kind, shape)}, {"y": (kind, out_shape if out_shape is not None else shape)}, [node]
    )
