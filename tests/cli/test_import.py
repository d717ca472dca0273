from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dataflow.cli.main import main
from tests.cli.project import call
from tests.control.importing import test_kserve, test_seldon, test_triton
from tests.control.importing.examples import write_models


def run_import(product: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["import", product, *map(str, arguments)], catch_exceptions=False)


def declared(folder: Path, product: str) -> list[object]:
    """An example of the product and the options that make it complete."""
    if product == "triton":
        home = folder / "repository" / "double"
        home.mkdir(parents=True)
        write_models(home, "double")
        (home / "config.pbtxt").write_text(test_triton.DOUBLE)
        return [folder / "repository"]
    text = test_seldon.HEAD + test_seldon.CHAIN if product == "seldon" else test_kserve.SERVICE
    (folder / "manifests").mkdir()
    (folder / "manifests" / "a.yaml").write_text(text)
    return [folder / "manifests", "--models", write_models(folder / "models", "sumdiff", "double")]


@pytest.mark.parametrize("product", ["seldon", "kserve", "triton"])
def test_the_project_made_lints_and_can_be_planned(product: str, tmp_path: Path) -> None:
    result = run_import(product, *declared(tmp_path, product), "--out", tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert f"made {tmp_path / 'new' / 'dataflow.yaml'}" in result.output
    assert result.output.endswith(f"go on with: dataflow --project {tmp_path / 'new'} lint\n")
    lint = call(tmp_path / "new", "lint")
    assert lint.output.endswith(": no problems\n")
    assert call(tmp_path / "new", "plan").exit_code == 0


def test_what_is_there_is_overwritten_only_by_force(tmp_path: Path) -> None:
    arguments = [*declared(tmp_path, "seldon"), "--out", tmp_path / "new"]
    assert run_import("seldon", *arguments).exit_code == 0
    pipeline = tmp_path / "new" / "pipelines" / "p" / "pipeline.yaml"
    made = pipeline.read_text()
    pipeline.write_text("mine")
    settings = tmp_path / "new" / "dataflow.yaml"
    settings.write_text("kind: Project\nname: my-own\n")
    refused = run_import("seldon", *arguments)
    assert refused.exit_code == 1
    assert "is there already" in refused.output
    assert "--force overwrites" in refused.output
    assert pipeline.read_text() == "mine"
    assert run_import("seldon", *arguments, "--force").exit_code == 0
    assert pipeline.read_text() == made
    assert "my-own" in settings.read_text()


def test_what_cannot_be_said_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(test_seldon.HEAD + "  steps: [{name: a}]\n  dataflow: {cleanTopicsOnDelete: true}\n")
    result = run_import("seldon", file, "--out", tmp_path / "new")
    assert result.exit_code == 0
    told = result.output.splitlines()
    assert told[0].startswith(f"{file}:5: fill in: model 'a' has no ONNX file here")
    assert told[1].startswith(
        f"{file}:6: not converted: spec.dataflow; topics are not deleted with a pipeline"
    )
    assert told[-1].startswith("to fill in: 1 thing; ")
    assert call(tmp_path / "new", "lint").exit_code == 1


@pytest.mark.parametrize(
    ("product", "text", "message"),
    [
        (
            "seldon",
            "kind: ConfigMap\nmetadata: {name: x}\n",
            "there is nothing to convert (nothing is written)",
        ),
        ("seldon", "a: [\n", "this is no YAML"),
        ("kserve", "kind: InferenceGraph\n", "metadata.name is missing"),
        ("triton", "name:", "a value is needed"),
    ],
)
def test_what_it_refuses(product: str, text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.pbtxt"
    file.write_text(text)
    result = run_import(product, file, "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "new").exists()


def test_a_model_file_that_is_none_is_refused(tmp_path: Path) -> None:
    arguments = declared(tmp_path, "seldon")
    (tmp_path / "models" / "double.onnx").write_bytes(b"nonsense")
    result = run_import("seldon", *arguments, "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert "is not a model that onnxruntime reads" in result.output


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    text = test_seldon.HEAD + "  steps: [{name: a}]\n"
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(text)
    result = run_import("seldon", tmp_path / "one.yaml", tmp_path / "two.yaml", "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert "two pipelines are called 'p'" in result.output
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run_import("triton", tmp_path / "empty", "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert "has no config.pbtxt" in result.output
