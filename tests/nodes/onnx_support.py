"""Run `model.onnx` on a model file, and what onnxruntime itself gives for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from dataflow.core.schema import FieldType, Schema
from dataflow.serving import model_info
from dataflow.testing.nodes import NodeResult, contract_of, run_node
from nodes.onnx import OnnxNode
from tests.serving.onnx_models import Floats

X4, X10 = FieldType("float32", (4,)), FieldType("float32", (10,))
PETALS = ("a", "b", "c", "d")
FLOWER = Schema.of(**dict.fromkeys(PETALS, "float64"))


@dataclass(frozen=True)
class Trained:
    path: Path
    rows: Floats

    def direct(self, rows: Floats | None = None) -> list[Any]:
        """What onnxruntime itself gives."""
        session = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        outputs: list[Any] = session.run(None, {"X": self.rows if rows is None else rows})
        return outputs


def run(path: Path, schema: Schema, records: Sequence[Mapping[str, Any]], **more: Any) -> NodeResult:
    info = model_info("m", path)
    config = {"model": "m", **more.pop("config", {})}
    return run_node(OnnxNode, schema, records, config, models=lambda _: info, **more)


def contract(path: Path, schema: Schema, config: dict[str, Any] | None = None, **more: Any) -> Schema:
    info = model_info("m", path)
    return contract_of(OnnxNode, schema, {"model": "m", **(config or {})}, models=lambda _: info, **more)[
        "out"
    ]


def flowers(rows: Floats) -> list[dict[str, float]]:
    return [dict(zip(PETALS, map(float, row), strict=True)) for row in rows]
