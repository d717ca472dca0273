from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from dataflow.cli.model import model
from tests.cli.project import call, make
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


MODEL = """
kind: Model
name: iris
file: iris.txt
build: python make.py
"""


def test_build_and_list(tmp_path: Path) -> None:
    make(
        tmp_path,
        pipelines__hello__model_yaml=MODEL,
        pipelines__hello__make_py="print('at work')\nopen('iris.txt', 'w').write('x')\n",
    )
    assert "not built" in call(tmp_path, "model", "list").output
    built = call(tmp_path, "model", "build", "iris")
    assert built.exit_code == 0
    assert built.stdout == "iris: pipelines/hello/iris.txt, sha256 2d711642b726\n"
    assert built.stderr == "model iris: at work\n"
    assert call(tmp_path, "model", "build").stderr == ""
    listed = json.loads(call(tmp_path, "model", "list", "--format", "json").output)["models"]
    assert listed == [
        {
            "name": "iris",
            "file": "pipelines/hello/iris.txt",
            "exists": True,
            "build": "python make.py",
            "doc": "",
        }
    ]


def test_build_of_an_unknown_model(tmp_path: Path) -> None:
    result = call(make(tmp_path, pipelines__hello__model_yaml=MODEL), "model", "build", "irs")
    assert (result.exit_code, result.stderr) == (1, "Error: no model 'irs' (did you mean 'iris'?)\n")


def test_no_models(tmp_path: Path) -> None:
    assert call(make(tmp_path), "model", "list").output == "no models are declared\n"
