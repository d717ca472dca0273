"""The projects that are measured: written as a user would write them, planned and deployed by the engine's own way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataflow.control.assemble import assemble
from dataflow.control.deploy import deploy
from dataflow.planner.plan import Plan
from dataflow.transport.api import Fabric

WIDTH = 32
Floats = npt.NDArray[np.float32]


def write(folder: Path, files: dict[str, str]) -> Path:
    """A project of these files."""
    for name, text in {"dataflow.yaml": "kind: Project\nname: bench\n", **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def write_model(path: Path) -> Path:
    """A small network: x float32 [N, 32] -> 64 -> y [N, 1]; 9 kB, some 10 us a run."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(
            random.standard_normal(shape, dtype=np.float32) * np.float32(0.1), name
        )

    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["z"]),
            helper.make_node("Sigmoid", ["z"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [weights("w1", WIDTH, 64), weights("b1", 64), weights("w2", 64, 1), weights("b2", 1)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def session_of(path: Path) -> Any:
    """The model in plain onnxruntime, one thread, as the engine opens it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs(rows: int, seed: int = 1) -> Floats:
    """Rows for the model, rounded so that they read the same from JSON."""
    made: Floats = np.random.default_rng(seed).standard_normal((rows, WIDTH)).round(4).astype(np.float32)
    return made


def deployed(folder: Path, fabric: Fabric, pipelines: Sequence[str] = ()) -> dict[str, Plan]:
    """The plans of a project's pipelines (all of them by default), made known to the cluster."""
    plans = assemble(folder, pipelines, environ=os.environ).plans
    for plan in plans:
        deploy(fabric, plan)
    return {p.pipeline: p for p in plans}
