from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from dataflow.cli.main import main
from dataflow.codecs.values import to_jsonable
from dataflow.control.assemble import assemble
from dataflow.gateway import v2
from dataflow.testing import run_pipeline
from tests.cli.project import call
from tests.serving.onnx_models import FLOAT, STRING, write_graph, write_identity, write_iris

HALF = TensorProto.FLOAT16


def new(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["new", *map(str, arguments)], catch_exceptions=False)


def check(folder: Path) -> None:
    """The project lints without a warning, its tests pass, and it can be planned."""
    lint = call(folder, "lint")
    assert lint.exit_code == 0, lint.output
    assert lint.output.endswith(": no problems\n")
    tested = call(folder, "test")
    assert tested.exit_code == 0, tested.output
    assert call(folder, "plan").exit_code == 0


def ask(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """request.json as the gateway reads it, run through the pipeline: the record and its answer."""
    made = assemble(folder, environ={})
    plan = made.plans[0]
    schema = plan.edges["input"].schema
    request = v2.decode(schema, plan.edges["predict"].schema, (folder / "request.json").read_bytes())
    assert request.count == 1
    records = to_jsonable(schema, request.columns, 1)
    result = run_pipeline(folder, plan, made.registry, {"input": records})
    assert result.dead_letters == []
    return records[0], result.edges["predict"][0]


def test_a_project(tmp_path: Path) -> None:
    result = new(tmp_path / "my-project")
    assert result.exit_code == 0
    assert result.output.endswith(f"  cd {tmp_path / 'my-project'}\n  dataflow test\n  dataflow up\n")
    check(tmp_path / "my-project")
    tested = call(tmp_path / "my-project", "test").output
    assert "2 passed" in tested
    files = sorted(
        p.relative_to(tmp_path / "my-project").as_posix() for p in (tmp_path / "my-project").rglob("*")
    )
    assert [f for f in files if "." in f and "pycache" not in f and ".dataflow" not in f] == [
        ".gitignore",
        "README.md",
        "dataflow.yaml",
        "nodes/clip.py",
        "pipelines/my-project/features.py",
        "pipelines/my-project/pipeline.yaml",
        "topics/readings.yaml",
    ]
    assert "@" not in (tmp_path / "my-project/README.md").read_text().replace("-d @", "")


def test_the_projects_python_is_clean(tmp_path: Path) -> None:
    new(tmp_path / "clean")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--select",
            "E,F,I,UP",
            "--line-length",
            "110",
            ".",
        ],
        cwd=tmp_path / "clean",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_its_own_kind_says_what_is_wrong(tmp_path: Path) -> None:
    new(tmp_path / "clip")
    path = tmp_path / "clip/pipelines/clip/pipeline.yaml"
    path.write_text(path.read_text().replace("field: celsius", "field: celsus"))
    result = call(tmp_path / "clip", "lint")
    assert "no field 'celsus' in the input (did you mean 'celsius'?)" in result.output
    assert "transform.clip" in call(tmp_path / "clip", "nodes").output


def test_a_name_that_yaml_or_kafka_would_not_take(tmp_path: Path) -> None:
    new(tmp_path / "My project (2)")
    check(tmp_path / "My project (2)")
    assert "name: My-project-2" in (tmp_path / "My project (2)/dataflow.yaml").read_text()
    result = new(tmp_path / "2024")
    assert result.exit_code == 1
    assert result.stderr == "Error: '2024' is no name for a project (start it with a letter)\n"


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert new(tmp_path / "mine").exit_code == 0
    (tmp_path / "mine/topics/readings.yaml").write_text("mine")
    result = new(tmp_path / "mine")
    assert result.exit_code == 1
    assert (
        result.stderr
        == f"Error: '{tmp_path / 'mine'}' is there already and not empty (choose another name)\n"
    )
    assert (tmp_path / "mine/topics/readings.yaml").read_text() == "mine"


# ---------------------------------------------------------------- from a model


def test_an_app_answers_as_the_model_itself(tmp_path: Path) -> None:
    write_iris(tmp_path / "m.onnx")
    result = new(tmp_path / "app", "--model", tmp_path / "m.onnx")
    assert result.exit_code == 0
    check(tmp_path / "app")
    assert "1 passed" in call(tmp_path / "app", "test").output
    record, answer = ask(tmp_path / "app")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    label, probabilities = session.run(None, {"X": np.array([record["X"]], dtype=np.float32)})
    assert answer["label"] == label[0]
    assert answer["probabilities"] == pytest.approx(probabilities[0].tolist())


def test_outputs_that_no_contract_carries_are_left_out_and_told(tmp_path: Path) -> None:
    write_iris(tmp_path / "m.onnx", zipmap=True)
    result = new(tmp_path / "app", "--model", tmp_path / "m.onnx")
    assert result.exit_code == 0
    assert "output 'output_probability' is left out: a contract cannot carry" in result.stderr
    check(tmp_path / "app")
    _, answer = ask(tmp_path / "app")
    assert list(answer) == ["output_label"]


def test_free_dimensions_get_a_size_that_the_model_takes(tmp_path: Path) -> None:
    # A reshape to [N, 2, 8] runs only where the free axis has 16 elements.
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [-1, 2, 8])
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    write_graph(
        tmp_path / "m.onnx", {"x": (FLOAT, ["N", "size"])}, {"y": (FLOAT, ["N", 2, 8])}, [node], [shape]
    )
    assert new(tmp_path / "app", "--model", tmp_path / "m.onnx").exit_code == 0
    # With one row, sizes that are a multiple of 16 come out as one batch of rows: the first that runs is 16.
    request = json.loads((tmp_path / "app/request.json").read_text())
    assert request["inputs"][0]["shape"] == [1, 16]
    check(tmp_path / "app")


def test_names_that_are_no_field_names(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["in:0"], ["in_0"]), helper.make_node("Neg", ["in:0"], ["1/out"])]
    write_graph(
        tmp_path / "m.onnx",
        {"in:0": (FLOAT, ["N", 3])},
        {"in_0": (FLOAT, ["N", 3]), "1/out": (FLOAT, ["N", 3])},
        nodes,
    )
    assert new(tmp_path / "app", "--model", tmp_path / "m.onnx").exit_code == 0
    check(tmp_path / "app")
    record, answer = ask(tmp_path / "app")
    assert answer["in_0_out"] == record["in_0"]
    assert answer["_1_out"] == [-value for value in record["in_0"]]


def test_half_floats_go_as_float32_through_json(tmp_path: Path) -> None:
    write_identity(tmp_path / "m.onnx", ["N", 4], HALF)
    assert new(tmp_path / "app", "--model", tmp_path / "m.onnx").exit_code == 0
    check(tmp_path / "app")
    record, answer = ask(tmp_path / "app")
    assert answer["y"] == pytest.approx(record["x"], abs=1e-3)


def test_texts_and_scalars_and_a_fixed_batch(tmp_path: Path) -> None:
    write_identity(tmp_path / "text.onnx", ["N", 1], STRING)
    assert new(tmp_path / "text", "--model", tmp_path / "text.onnx").exit_code == 0
    check(tmp_path / "text")
    assert ask(tmp_path / "text") == ({"x": "text"}, {"y": "text"})
    write_identity(tmp_path / "four.onnx", [4, 2])
    assert new(tmp_path / "four", "--model", tmp_path / "four.onnx").exit_code == 0
    check(tmp_path / "four")
    ask(tmp_path / "four")


def test_an_image_is_too_large_for_a_test_but_not_for_a_request(tmp_path: Path) -> None:
    write_identity(tmp_path / "m.onnx", ["N", 3, "height", "width"])
    assert new(tmp_path / "app", "--model", tmp_path / "m.onnx").exit_code == 0
    check(tmp_path / "app")
    write_identity(tmp_path / "big.onnx", ["N", 3, 64, 64])
    assert new(tmp_path / "big", "--model", tmp_path / "big.onnx").exit_code == 0
    assert "tests:" not in (tmp_path / "big/pipelines/big/pipeline.yaml").read_text()
    check(tmp_path / "big")


def test_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    result = new(tmp_path / "app", "--model", tmp_path / "m.onnx")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path / 'm.onnx'} is not a model that onnxruntime reads")
    assert not (tmp_path / "app").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"]
