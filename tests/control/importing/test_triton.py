from __future__ import annotations

from pathlib import Path

import pytest

from dataflow.control.importing.conversion import Conversion
from dataflow.control.importing.triton import convert_triton
from dataflow.core.errors import SpecError
from tests.control.importing.examples import filled_in, problems, project, run, said, write_models

DOUBLE = """
name: "double"
platform: "onnxruntime_onnx"
max_batch_size: 16
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""
TOP = 'backend: "onnxruntime"\nmax_batch_size: 16\n'
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 16
input [ { name: "RAW:0" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "TWICE" data_type: TYPE_FP32 dims: [ 2 ] }, { name: "BEST" data_type: TYPE_FP32 dims: [ 1 ] } ]
ensemble_scheduling {
  step [
    { model_name: "top" model_version: -1
      input_map { key: "x" value: "TWICE" } output_map { key: "top" value: "BEST" } },
    { model_name: "double"
      input_map { key: "x" value: "once" } output_map { key: "y" value: "TWICE" } },
    { model_name: "double" model_version: 2
      input_map { key: "x" value: "RAW:0" } output_map { key: "y" value: "once" } }
  ]
}
"""


def repository(folder: Path, **configs: str) -> Conversion:
    """A model repository with these configurations; the ONNX models `double` and `top` are there if configured."""
    files = []
    for name, text in configs.items():
        home = folder / "repository" / name
        (home / "1").mkdir(parents=True, exist_ok=True)
        (home / "config.pbtxt").write_text(text)
        files.append(home / "config.pbtxt")
        if name in {"double", "top"}:
            write_models(home / "1", name)
            (home / "1" / f"{name}.onnx").rename(home / "1" / "model.onnx")
    return convert_triton(files, None)


def test_an_ensemble_in_any_order_of_its_steps(tmp_path: Path) -> None:
    made = repository(tmp_path, both=ENSEMBLE, double=DOUBLE, top=TOP)
    edges = run(made, tmp_path, "both", [{"RAW_0": [1, 2]}])
    assert edges["answer"] == [{"TWICE": [4.0, 8.0], "BEST": [8.0]}]
    assert [draft.name for draft in made.pipelines] == ["both"]
    assert made.models["double"].options == {"max_batch": 16}
    assert [line.partition(": ")[2].partition(";")[0] for line in said(made)] == [
        "differs: tensor 'RAW:0' is the field 'RAW_0'",
        "not converted: model_version",
    ]


def test_an_ensemble_whose_steps_wait_for_batches(tmp_path: Path) -> None:
    waits = "dynamic_batching { max_queue_delay_microseconds: 20000 }"
    made = repository(tmp_path, both=ENSEMBLE, double=DOUBLE + waits, top=TOP)
    edges = run(made, tmp_path, "both", [{"RAW_0": [1, 2]}])
    assert edges["answer"] == [{"TWICE": [4.0, 8.0], "BEST": [8.0]}]


def test_a_model_alone_is_a_pipeline(tmp_path: Path) -> None:
    made = repository(tmp_path, double=DOUBLE)
    assert run(made, tmp_path, "double", [{"x": [1, 2]}])["double"] == [{"y": [2.0, 4.0]}]


def test_without_files_the_configuration_says_the_contract(tmp_path: Path) -> None:
    text = DOUBLE.replace("double", "other").replace("TYPE_FP32 dims: [ 2 ]", "TYPE_INT64 dims: [ -1, 3 ]", 1)
    made = repository(tmp_path, other=text)
    assert [note.what for note in filled_in(made)] == [
        "model 'other' has no ONNX file here, so its tensors are not known"
    ]
    assert (
        "fields: {x: 'int64[?,3]'}" in (project(made, tmp_path) / "pipelines/other/pipeline.yaml").read_text()
    )
    assert [line for line in problems(made, tmp_path) if "warning" not in line] == [
        "models/other.yaml:3:7: no file 'other.onnx' (or say how to make it, e.g. build: python train.py)"
    ]


def test_python_backends_are_nodes_whose_contract_is_known(tmp_path: Path) -> None:
    text = DOUBLE.replace("double", "mine").replace('platform: "onnxruntime_onnx"', 'backend: "python"')
    made = repository(tmp_path, mine=text)
    assert "no module 'mine'" in "".join(problems(made, tmp_path))
    code = "def predict(row: dict) -> dict:\n    return {'y': [2 * v for v in row['x']]}\n"
    (project(made, tmp_path) / "pipelines/mine/mine.py").write_text(code)
    assert run(made, tmp_path, "mine", [{"x": [1, 2]}])["mine"] == [{"y": [2.0, 4.0]}]


@pytest.mark.parametrize(
    ("batching", "settings"),
    [
        ("dynamic_batching { }", None),
        ("dynamic_batching { preferred_batch_size: [ 4, 8 ] }", None),
        ("dynamic_batching { max_queue_delay_microseconds: 3000 }", {"size": 16, "wait": "3ms"}),
        (
            "dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 20000 }",
            {"size": 8, "wait": "20ms"},
        ),
    ],
)
def test_the_batchers_delay_is_a_node(
    tmp_path: Path, batching: str, settings: dict[str, object] | None
) -> None:
    made = repository(tmp_path, double=DOUBLE + batching)
    assert problems(made, tmp_path) == []
    assert made.pipelines[0].nodes.get("double-batch", {}).get("with") == settings


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ("dynamic_batching { max_queue_delay_microseconds: 100 }", "a delay of 100 us"),
        ("instance_group [ { count: 2 kind: KIND_CPU } ]", "instance_group.count"),
        ("version_policy: { all {} }", "version_policy"),
        ("sequence_batching { max_sequence_idle_microseconds: 5 }", "sequence_batching"),
        ('parameters { key: "k" value { string_value: "v" } }', "parameter 'k'"),
        ("unheard_of: 1", "unheard_of"),
    ],
)
def test_what_has_no_counterpart_is_told(tmp_path: Path, more: str, what: str) -> None:
    made = repository(tmp_path, double=DOUBLE + more)
    assert problems(made, tmp_path) == []
    assert [(note.line, note.sort, note.what) for note in made.notes] == [(7, "not converted", what)]


def test_options_of_a_model(tmp_path: Path) -> None:
    more = 'parameters { key: "intra_op_thread_count" value: { string_value: "2" } } instance_group { kind: KIND_CPU }'
    made = repository(tmp_path, double=DOUBLE + more)
    assert made.models["double"].options == {"max_batch": 16, "intra_threads": 2}
    assert run(made, tmp_path, "double", [{"x": [1, 2]}])["double"] == [{"y": [2.0, 4.0]}]
    made = repository(tmp_path, double=DOUBLE + "instance_group [ { kind: KIND_GPU gpus: [ 0 ] } ]")
    assert made.models["double"].options == {"max_batch": 16, "device": "cuda"}
    assert [note.what for note in made.notes] == ["instance_group.gpus"]


@pytest.mark.parametrize(
    ("tensor", "most", "field", "sort"),
    [
        ("TYPE_STRING dims: [ 1 ]", 8, "string", None),
        ("TYPE_STRING dims: [ 3 ]", 8, "unknown", "fill in"),
        ("TYPE_BF16 dims: [ 3 ]", 8, "unknown", "fill in"),
        ("TYPE_UINT8 dims: [ 1, -1 ] ", 0, "uint8[?]", None),
        ("TYPE_UINT8 dims: [ 4, 4 ] ", 0, "unknown", "fill in"),
        ("TYPE_FP64 dims: [ 1 ] reshape { shape: [ ] }", 8, "float64[1]", None),
        ("TYPE_FP64 dims: [ 4 ] reshape { shape: [ 2, 2 ] }", 8, "float64[4]", "not converted"),
    ],
)
def test_tensors_as_fields(tmp_path: Path, tensor: str, most: int, field: str, sort: str | None) -> None:
    text = f'platform: "python" max_batch_size: {most} input {{ name: "x" data_type: {tensor} }}'
    made = repository(tmp_path, mine=text)
    assert f"{{x: {field}}}" in (
        (project(made, tmp_path) / "pipelines/mine/pipeline.yaml").read_text().replace("'", "")
    )
    told = [note.sort for note in made.notes if "'x'" in note.what]
    assert told[:1] == ([sort] if sort else [])


def test_a_file_that_differs_is_followed(tmp_path: Path) -> None:
    made = repository(tmp_path, double=DOUBLE.replace("dims: [ 2 ]", "dims: [ 3 ]", 1).replace('"y"', '"z"'))
    assert problems(made, tmp_path) == []
    assert [note.sort for note in made.notes] == ["differs", "differs"]
    assert run(made, tmp_path, "double", [{"x": [1, 2]}])["double"] == [{"y": [2.0, 4.0]}]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('value: "RAW:0"', 'value: "LOST"', "config.pbtxt:13: no step and no input gives 'LOST'"),
        ('value: "BEST"', 'value: "WORST"', "no step gives the output 'BEST'"),
        ("dims: [ 2 ]", 'dims: [ "two" ]', "input.0.dims: a whole number is needed, not 'two'"),
    ],
)
def test_what_is_no_ensemble_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        repository(tmp_path, both=ENSEMBLE.replace(old, new), double=DOUBLE, top=TOP)
    assert message in str(error.value)


def test_a_cycle_is_left_out(tmp_path: Path) -> None:
    made = repository(
        tmp_path, both=ENSEMBLE.replace('value: "RAW:0"', 'value: "TWICE"'), double=DOUBLE, top=TOP
    )
    assert [draft.name for draft in made.pipelines] == ["double", "top"]
    assert "in a cycle" in said(made)[1]
