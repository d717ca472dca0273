"""The projects that are measured: written as a user would write them, planned and deployed by the engine's own way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
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


def write_model(path: Path, layers: Sequence[int] = (64,)) -> Path:
    """A network: x float32 [N, 32] -> `layers` -> y [N, 1]; as it is small, 9 kB and some 10 us a run."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    widths = (WIDTH, *layers, 1)
    nodes, weights = [], []
    given = "x"
    for number, (before, after) in enumerate(pairwise(widths), 1):
        scale = np.float32(min(0.1, before**-0.5))
        for name, shape in ((f"w{number}", (before, after)), (f"b{number}", (after,))):
            drawn = random.standard_normal(shape, dtype=np.float32) * scale
            weights.append(numpy_helper.from_array(drawn, name))
        last = number == len(widths) - 1
        nodes.append(helper.make_node("Gemm", [given, f"w{number}", f"b{number}"], [f"h{number}"]))
        nodes.append(
            helper.make_node("Sigmoid" if last else "Relu", [f"h{number}"], ["y" if last else f"a{number}"])
        )
        given = f"a{number}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        weights,
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
