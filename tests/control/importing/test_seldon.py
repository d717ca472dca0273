from __future__ import annotations

from pathlib import Path

import pytest

from dataflow.control.assemble import assemble
from dataflow.control.importing.conversion import Conversion
from dataflow.control.importing.seldon import convert_seldon
from dataflow.core.errors import SpecError
from dataflow.testing import run_pipeline
from tests.control.importing.examples import converted, filled_in, problems, project, run, said

HEAD = "apiVersion: mlops.seldon.io/v1alpha1\nkind: Pipeline\nmetadata: {name: p}\nspec:\n"


def pipeline(folder: Path, text: str, *models: str) -> Conversion:
    return converted(convert_seldon, folder, HEAD + text, *models)


CHAIN = """
  steps:
  - name: sumdiff
  - name: double
    inputs: [sumdiff]
    tensorMap: {sumdiff.outputs.diff: x}
  output: {steps: [double]}
"""


def test_a_chain_with_a_tensor_map(tmp_path: Path) -> None:
    made = pipeline(tmp_path, CHAIN, "sumdiff", "double")
    assert run(made, tmp_path, "p", [{"a": [5, 1], "b": [2, 3]}])["double"] == [{"y": [6.0, -4.0]}]
    assert said(made) == []


def test_a_join_of_two_models_and_a_request(tmp_path: Path) -> None:
    text = """
  steps:
  - name: double
    inputs: [p.inputs.a]
    tensorMap: {p.inputs.a: x}
  - name: sumdiff
    inputs: [double.outputs.y, p.inputs.b]
    tensorMap: {double.outputs.y: a}
    joinWindowMs: 200
  output: {steps: [sumdiff.outputs.sum]}
"""
    made = pipeline(tmp_path, text, "sumdiff", "double")
    edges = run(made, tmp_path, "p", [{"a": [5, 1], "b": [2, 3]}])
    assert edges["sumdiff-answer"] == [{"sum": [12.0, 5.0]}]
    assert [line.partition(": ")[2][:23] for line in said(made)] == ["differs: joinWindowMs: "]


def test_a_step_reads_what_another_was_fed(tmp_path: Path) -> None:
    text = """
  steps:
  - name: double
    inputs: [p.inputs.a]
    tensorMap: {p.inputs.a: x}
  - name: sumdiff
    inputs: [double.inputs.x, double.outputs.y]
    tensorMap: {double.inputs.x: a, double.outputs.y: b}
  output: {steps: [sumdiff]}
"""
    made = pipeline(tmp_path, text, "sumdiff", "double")
    assert run(made, tmp_path, "p", [{"a": [1, 2]}])["sumdiff"] == [{"sum": [3.0, 6.0], "diff": [-1.0, -2.0]}]


@pytest.mark.parametrize(
    ("how", "ran"),
    [("any", [True, True, False]), ("inner", [True, False, False]), ("outer", [True, True, False])],
)
def test_triggers_of_the_request_are_tensors_that_are_there(
    tmp_path: Path, how: str, ran: list[bool]
) -> None:
    text = f"""
  steps:
  - name: double
    inputs: [p.inputs.x]
    triggers: [p.inputs.one, p.inputs.two]
    triggersJoinType: {how}
  output: {{steps: [double]}}
"""
    made = pipeline(tmp_path, text, "double")
    assert [note.what for note in filled_in(made)] == [
        "pipeline 'p': the type of 'one' is not known",
        "pipeline 'p': the type of 'two' is not known",
    ]
    assert len(problems(made, tmp_path)) == 2
    path = project(made, tmp_path) / "pipelines/p/pipeline.yaml"
    path.write_text(path.read_text().replace("unknown", "bool"))
    out = tmp_path / "out"
    assembled = assemble(out, ["p"], environ={})
    triggers = [(True, False), (True, None), (None, None)]
    records = [{"x": [index, 0], "one": one, "two": two} for index, (one, two) in enumerate(triggers)]
    result = run_pipeline(out, assembled.plans[0], assembled.registry, {"request": records})
    assert [r["y"][0] / 2 for r in result.edges["double"]] == [i for i, there in enumerate(ran) if there]


def test_triggers_of_steps_gate_and_give_nothing(tmp_path: Path) -> None:
    text = """
  steps:
  - {name: double}
  - {name: top}
  - name: sumdiff
    inputs: [p.inputs.a, double.outputs.y]
    tensorMap: {double.outputs.y: b}
    triggers: [top.outputs.top, double]
    triggersJoinType: any
  output: {steps: [sumdiff]}
"""
    made = pipeline(tmp_path, text, "sumdiff", "double", "top")
    edges = run(made, tmp_path, "p", [{"a": [1, 1], "x": [1, 2]}])
    assert edges["sumdiff"] == [{"sum": [3.0, 5.0], "diff": [-1.0, -3.0]}]
    assert edges["top"] == [{"top": [2.0]}]


def test_any_takes_the_first_side_with_the_record(tmp_path: Path) -> None:
    text = """
  steps:
  - {name: double}
  - {name: top, inputs: [double], tensorMap: {double.outputs.y: x}}
  - name: double-again
    inputs: [double.outputs.y, p.inputs.x]
    inputsJoinType: any
    tensorMap: {double.outputs.y: x}
  output: {steps: [double-again, top], stepsJoin: any}
"""
    made = pipeline(tmp_path, text, "double", "top", "double-again")
    edges = run(made, tmp_path, "p", [{"x": [1, 2]}])
    assert edges["double-again"] == [{"y": [4.0, 8.0]}]
    assert made.pipelines[0].answer == ["double-again", "top"]
    assert "runs for each input that comes" in said(made)[0]


def test_outputs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    text = """
  steps: [{name: double}, {name: double-two}]
  output:
    steps: [double, double-two]
    tensorMap: {double-two.outputs.y: z}
"""
    made = pipeline(tmp_path, text, "double", "double-two")
    edges = run(made, tmp_path, "p", [{"x": [1, 2]}])
    assert edges["answer-renamed"] == [{"y": [2.0, 4.0], "z": [2.0, 4.0]}]


def test_a_batch_with_and_without_a_window(tmp_path: Path) -> None:
    text = "  steps: [{name: double, batch: {size: 2%s}}]\n  output: {steps: [double]}\n"
    made = pipeline(tmp_path, text % ", windowMs: 50", "double")
    assert run(made, tmp_path, "p", [{"x": [1, 1]}])["double"] == [{"y": [2.0, 2.0]}]
    made = pipeline(tmp_path, text % ", rolling: true", "double")
    assert [line.partition(": ")[2].partition(";")[0] for line in said(made)] == [
        "fill in: the batch of 2 has no time after which fewer go on",
        "not converted: spec.steps.batch.rolling",
    ]
    assert "'wait' is missing" in "".join(problems(made, tmp_path))


def test_a_batch_before_a_join(tmp_path: Path) -> None:
    text = """
  steps:
  - {name: double, batch: {size: 2, windowMs: 50}}
  - {name: top}
  output: {steps: [double, top]}
"""
    made = pipeline(tmp_path, text, "double", "top")
    assert run(made, tmp_path, "p", [{"x": [1, 2]}])["answer"] == [{"y": [2.0, 4.0], "top": [2.0]}]


def test_a_pipeline_behind_another(tmp_path: Path) -> None:
    text = (
        CHAIN
        + "---\n"
        + HEAD.replace("name: p", "name: behind")
        + """
  input: {externalInputs: [p.outputs], tensorMap: {p.outputs.y: x}}
  steps: [{name: top}]
  output: {steps: [top]}
"""
    )
    made = pipeline(tmp_path, text, "sumdiff", "double", "top")
    assert problems(made, tmp_path) == []
    text = (project(made, tmp_path) / "pipelines/behind/pipeline.yaml").read_text()
    assert "inputs: {request: p.double}" in text
    assert "inputs: {x: y}" in text


def test_models_that_no_pipeline_uses_are_served_alone(tmp_path: Path) -> None:
    text = """
apiVersion: mlops.seldon.io/v1alpha1
kind: Model
metadata: {name: %s, namespace: ns, labels: {a: b}}
spec:
  storageUri: gs://models/it
  requirements: [%s]
  memory: 3Mi
"""
    made = converted(convert_seldon, tmp_path, text % ("top", "onnx"), "top")
    assert run(made, tmp_path, "top", [{"x": [1, 2]}])["top"] == [{"top": [2.0]}]
    assert [line.partition(";")[0] for line in said(made)] == [
        "declared.yaml:4: not converted: metadata.namespace",
        "declared.yaml:8: not converted: spec.memory",
    ]
    made = converted(convert_seldon, tmp_path, text % ("forest", "sklearn"))
    assert "export it to ONNX (skl2onnx)" in filled_in(made)[0].instead
    assert "no file 'forest.onnx'" in "".join(problems(made, tmp_path))
    made = converted(convert_seldon, tmp_path, text % ("mine", "python"))
    assert filled_in(made)[0].instead.startswith("write predict(row) in mine.py")
    assert "mine/pipeline.yaml:4:9: fields: it must not be empty" in "".join(problems(made, tmp_path))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "  allowCycles: true\n  steps: [{name: a, inputs: [b]}, {name: b, inputs: [a]}]\n",
            "its steps are a cycle",
        ),
        ("  input: {externalInputs: [a.outputs, b.outputs]}\n  steps: [{name: a}]\n", "joins 2 streams"),
        ("  input: {externalInputs: [a.outputs]}\n  steps: [{name: a}]\n", "import both at once"),
        (
            "  input: {externalInputs: [a.inputs]}\n  steps: [{name: a}]\n",
            "reads a.inputs: it is no one edge here",
        ),
    ],
)
def test_pipelines_that_cannot_be_said_are_left_out(tmp_path: Path, text: str, what: str) -> None:
    made = pipeline(tmp_path, text)
    assert made.pipelines == []
    assert what in "\n".join(said(made))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "  steps: [{name: a, inputs: [c]}]\n",
            "declared.yaml:5: 'c' names no step and no input (valid: a, p)",
        ),
        ("  steps: []\n", "pipeline 'p' has no steps"),
        ("  steps: [{inputs: [p.inputs]}]\n", "a step needs a name"),
        ("  steps: {a: 1}\n", "a step needs a name"),
        ("  steps: [{name: a, inputs: [null]}]\n", "inputs: a text is needed, not null"),
        ("  steps: [null]\n", "steps: a mapping is needed, not null"),
        ("  steps: [{name: 3}]\n", "spec.steps.0.name: a text is needed, not 3"),
        ("  steps: [{name: a}\n", "this is no YAML"),
    ],
)
def test_what_is_no_pipeline_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        pipeline(tmp_path, text)
    assert message in str(error.value)


def test_tensors_that_do_not_meet_are_to_fill_in(tmp_path: Path) -> None:
    text = "  steps: [{name: double}, {name: sumdiff, inputs: [double.outputs.z, double]}]\n  output: {steps: [sumdiff]}\n"
    made = pipeline(tmp_path, text, "double", "sumdiff")
    assert [note.what for note in filled_in(made)] == [
        "'double.outputs.z': there is no such tensor",
        "nothing feeds input 'a' of model 'sumdiff'",
        "nothing feeds input 'b' of model 'sumdiff'",
    ]
    assert any("no field feeds the model's input 'a'" in problem for problem in problems(made, tmp_path))
