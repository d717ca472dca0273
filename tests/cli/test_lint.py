from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.project import PIPELINE, call, make

BAD = """
kind: Pipeline
name: hello
inputs: {readings: reading}
nodes:
  route: {use: route.when, from: readings, with: {high: valu > 10}}
"""


def test_no_problems(tmp_path: Path) -> None:
    result = call(make(tmp_path), "lint")
    assert result.exit_code == 0
    assert result.output == "1 pipeline, 1 topic: no problems\n"


def test_problems_with_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, BAD)
    monkeypatch.chdir(tmp_path)
    result = call(tmp_path, "lint")
    assert result.exit_code == 1
    assert result.output == (
        "pipelines/hello/pipeline.yaml:3:20: unknown topic 'reading' (did you mean 'readings'?)\n"
        "1 pipeline, 1 topic: 1 error\n"
    )


def test_places_work_from_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, BAD)
    monkeypatch.chdir(tmp_path / "pipelines")
    assert call(tmp_path, "lint").output.startswith("hello/pipeline.yaml:3:20: ")
    monkeypatch.chdir(tmp_path / "topics")
    assert call(tmp_path, "lint").output.startswith(f"{tmp_path}/pipelines/hello/pipeline.yaml:3:20: ")


def test_warnings_do_not_fail(tmp_path: Path) -> None:
    make(tmp_path, PIPELINE.replace("[doubled, route.low]}", "[doubled, route.low], when: eager}"))
    result = call(tmp_path, "lint")
    assert result.exit_code == 0
    assert "warning: when: an eager answer may be lost" in result.output
    assert result.output.endswith("1 pipeline, 1 topic: 1 warning\n")


def test_json(tmp_path: Path) -> None:
    result = call(make(tmp_path, BAD), "lint", "--format", "json")
    assert result.exit_code == 1
    found = json.loads(result.output)
    assert (found["errors"], found["warnings"]) == (1, 0)
    assert found["problems"] == [
        {
            "file": "pipelines/hello/pipeline.yaml",
            "line": 3,
            "column": 20,
            "message": "unknown topic 'reading'",
            "value": "reading",
            "hint": "did you mean 'readings'?",
            "severity": "error",
        }
    ]


def test_an_empty_folder_is_no_clean_project(tmp_path: Path) -> None:
    result = call(tmp_path, "lint")
    assert result.exit_code == 1
    assert f"nothing is declared in {tmp_path}" in result.output


def test_node_files_that_do_not_load_are_problems_beside_the_others(tmp_path: Path) -> None:
    make(
        tmp_path,
        "kind: Pipelin\n",
        nodes__clip_py="import nowhere_to_be_found\n",
        nodes__other_py="def x(:\n",
    )
    result = call(tmp_path, "lint")
    assert result.exit_code == 1
    lines = result.output.replace(f"{tmp_path}/", "").splitlines()
    assert lines == [
        "nodes/clip.py:1:1: cannot load nodes: ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        "nodes/other.py:1:1: cannot load nodes: invalid syntax",
        "pipelines/hello/pipeline.yaml:1:7: unknown kind 'Pipelin' (did you mean 'Pipeline'?)",
        "1 topic: 3 errors",
    ]


def test_build_finds_what_only_a_built_model_shows(tmp_path: Path) -> None:
    model = "kind: Model\nname: m\nfile: m.onnx\nbuild: python no_such_file.py\n"
    make(tmp_path, pipelines__hello__model_yaml=model)
    assert call(tmp_path, "lint").exit_code == 0
    result = call(tmp_path, "lint", "--build")
    assert result.exit_code == 1
    assert "pipelines/hello/model.yaml:4:8: model 'm': `python no_such_file.py`" in result.output


def test_schema_is_json(tmp_path: Path) -> None:
    schema = json.loads(call(make(tmp_path), "schema").output)
    assert schema["properties"]["kind"]["enum"] == ["Topic", "Model", "Pipeline", "Project"]
