from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from dataflow.cli.model import model
from tests.serving.onnx_models import write_iris


def test_inspect_as_a_table(tmp_path: Path) -> None:
    write_iris(tmp_path / "m.onnx", zipmap=True)
    result = CliRunner().invoke(model, ["inspect", str(tmp_path / "m.onnx")])
    assert result.exit_code == 0
    assert "float32[4]" in result.output
    assert "cannot be carried" in result.output
    assert '{"zipmap": False}' in result.output


def test_inspect_as_json(tmp_path: Path) -> None:
    write_iris(tmp_path / "m.onnx")
    result = CliRunner().invoke(model, ["inspect", str(tmp_path / "m.onnx"), "--format", "json"])
    shown = json.loads(result.output)
    assert shown["batch"] is None
    assert shown["inputs"] == [
        {"name": "X", "type": "tensor(float)", "shape": [None, 4], "field": "float32[4]"}
    ]
    assert [port["field"] for port in shown["outputs"]] == ["int64", "float32[3]"]


def test_inspect_a_missing_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(model, ["inspect", str(tmp_path / "gone.onnx")])
    assert result.exit_code == 1
    assert "no model file at" in result.output
