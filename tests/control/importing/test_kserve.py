from __future__ import annotations

from pathlib import Path

import pytest

from dataflow.control.importing.conversion import Conversion
from dataflow.control.importing.kserve import convert_kserve
from dataflow.core.errors import SpecError
from tests.control.importing.examples import converted, filled_in, problems, project, run, said

HEAD = "apiVersion: serving.kserve.io/v1alpha1\nkind: InferenceGraph\nmetadata: {name: g}\nspec:\n  nodes:\n"


def graph(folder: Path, text: str, *models: str) -> Conversion:
    return converted(convert_kserve, folder, HEAD + text, *models)


def test_a_sequence_feeds_each_step_the_response_before_it(tmp_path: Path) -> None:
    text = """
    root:
      routerType: Sequence
      steps:
      - {serviceName: double, name: first}
      - {serviceName: double, name: second, data: $response, mapPredictionsToInstances: true, dependency: Hard}
      - {serviceName: top, data: $response}
"""
    made = graph(tmp_path, text, "double", "top")
    edges = run(made, tmp_path, "g", [{"x": [1, 2]}])
    assert edges["second"] == [{"y": [4.0, 8.0]}]
    assert edges["top"] == [{"top": [8.0]}]
    assert made.pipelines[0].answer == ["top"]
    assert said(made) == []


def test_a_sequence_that_ends_on_a_condition(tmp_path: Path) -> None:
    text = """
    root:
      routerType: Sequence
      steps:
      - {serviceName: top}
      - {serviceName: double, data: $request, condition: "[@this].#(predictions.0>2)"}
"""
    made = graph(tmp_path, text, "double", "top")
    edges = run(made, tmp_path, "g", [{"x": [1, 2]}, {"x": [3, 0]}])
    assert edges["double"] == [{"y": [6.0, 0.0]}]
    assert edges["double-when.end"] == [{"top": [2.0]}]
    assert made.pipelines[0].answer == ["double", "double-when.end"]


def test_a_switch_takes_the_first_condition_that_holds(tmp_path: Path) -> None:
    text = """
    root:
      routerType: Switch
      steps:
      - {serviceName: double, condition: '[@this].#(kind==pair)'}
      - {nodeName: other, condition: 'instances.#(size>=2)'}
      - {serviceName: double}
    other:
      routerType: Sequence
      steps: [{serviceName: top}]
"""
    made = graph(tmp_path, text, "double", "top")
    rows = [("pair", 5), ("odd", 2), ("odd", 1)]
    edges = run(made, tmp_path, "g", [{"x": [i, 0], "kind": k, "size": s} for i, (k, s) in enumerate(rows)])
    assert edges["double"] == [{"y": [0.0, 0.0]}]
    assert edges["top"] == [{"top": [1.0]}]
    assert said(made) == [
        "declared.yaml:12: not converted: 'double' of a Switch has no condition; it is never reached"
    ]
    contract = (project(made, tmp_path) / "pipelines/g/pipeline.yaml").read_text()
    assert "kind: string, size: float64" in contract


def test_a_splitter_shares_by_weight(tmp_path: Path) -> None:
    text = """
    root:
      routerType: Splitter
      steps: [{serviceName: double, weight: 100}, {serviceName: top, weight: 0}]
"""
    made = graph(tmp_path, text, "double", "top")
    edges = run(made, tmp_path, "g", [{"x": [1, 2]}])
    assert (edges["double"], edges["top"]) == ([{"y": [2.0, 4.0]}], [])
    assert made.pipelines[0].nodes["root"]["with"] == {"weights": {"double": 100, "top": 0}}


@pytest.mark.parametrize(
    ("dependency", "settings"),
    [("", {"how": "outer"}), (", dependency: Hard", {"how": "outer", "required": ["double"]})],
)
def test_an_ensemble_merges_under_the_names_of_its_steps(
    tmp_path: Path, dependency: str, settings: dict[str, object]
) -> None:
    text = f"""
    root:
      routerType: Ensemble
      steps: [{{serviceName: double{dependency}}}, {{serviceName: top, name: best}}]
"""
    made = graph(tmp_path, text, "double", "top")
    edges = run(made, tmp_path, "g", [{"x": [1, 2]}])
    assert edges["root"] == [{"double_y": [2.0, 4.0], "best_top": [2.0]}]
    found = dict(made.pipelines[0].nodes["root"]["with"])
    assert found.pop("prefix") == {"double": "double_", "best": "best_"}
    assert found == settings


SERVICE = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: double, annotations: {a: b}}
spec:
  predictor:
    timeout: 5
    batcher: {maxBatchSize: 4, maxLatency: 30}
    model:
      modelFormat: {name: onnx, version: "1"}
      protocolVersion: v2
      storageUri: s3://bucket/double
      resources: {limits: {cpu: 1}}
  explainer: {art: {type: x}}
"""


def test_a_service_alone_is_a_pipeline(tmp_path: Path) -> None:
    made = converted(convert_kserve, tmp_path, SERVICE, "double")
    assert run(made, tmp_path, "double", [{"x": [1, 2]}])["double"] == [{"y": [2.0, 4.0]}]
    nodes = made.pipelines[0].nodes
    assert nodes["double-batch"]["with"] == {"size": 4, "wait": "30ms"}
    assert made.pipelines[0].deadline == "5s"
    assert [line.partition(";")[0] for line in said(made)] == [
        "declared.yaml:13: not converted: spec.predictor.model.resources",
        "declared.yaml:14: not converted: spec.explainer",
    ]


def test_a_service_in_a_graph_keeps_its_batches(tmp_path: Path) -> None:
    text = SERVICE + "---\n" + HEAD + "    root: {routerType: Sequence, steps: [{serviceName: double}]}\n"
    made = converted(convert_kserve, tmp_path, text, "double")
    assert [draft.name for draft in made.pipelines] == ["g"]
    assert list(made.pipelines[0].nodes) == ["double-batch", "double"]


@pytest.mark.parametrize(
    ("predictor", "instead"),
    [
        ("sklearn: {storageUri: s3://x}", "export it to ONNX (skl2onnx)"),
        ("model: {modelFormat: {name: xgboost}}", "export it to ONNX (onnxmltools)"),
        ("containers: [{image: mine}]", "write predict(row) in s.py"),
    ],
)
def test_what_is_no_onnx_is_to_fill_in(tmp_path: Path, predictor: str, instead: str) -> None:
    text = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: s}\n"
    made = converted(convert_kserve, tmp_path, f"{text}spec:\n  predictor:\n    {predictor}\n")
    assert instead in filled_in(made)[0].instead
    assert problems(made, tmp_path) != []


def test_an_address_of_a_service_of_the_files_is_that_service(tmp_path: Path) -> None:
    text = """
    root:
      routerType: Sequence
      steps:
      - {serviceUrl: "http://double.default.svc/infer"}
      - {serviceUrl: "https://away.example.com/infer", data: $response}
      - {serviceUrl: "https://further.example.com/infer", data: $response}
"""
    made = converted(convert_kserve, tmp_path, SERVICE + "---\n" + HEAD + text, "double")
    nodes = made.pipelines[0].nodes
    assert list(nodes) == ["double-batch", "double", "away", "further"]
    assert [nodes[n]["with"]["call"] for n in ("away", "further")] == ["away.predict", "further.predict"]
    assert [note.what for note in made.notes if "serviceUrl" in note.what] == [
        "serviceUrl: taken for the InferenceService 'double' of these files"
    ]


def test_conditions_without_words_are_refused_by_lint(tmp_path: Path) -> None:
    text = """
    root:
      routerType: Switch
      steps:
      - {serviceName: double, condition: 'a|b'}
      - {serviceUrl: "http://elsewhere/infer", name: out, condition: 'b'}
"""
    made = graph(tmp_path, text, "double")
    assert filled_in(made)[0].what == "the condition 'a|b' has no counterpart"
    assert "http://elsewhere/infer" in filled_in(made)[1].what
    assert len(filled_in(made)) == 3  # and the type of `b`
    assert problems(made, tmp_path) != []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("    other: {routerType: Sequence, steps: []}\n", "declared.yaml:5: the graph has no node 'root'"),
        ("    root: {routerType: Round, steps: [{serviceName: a}]}\n", "routerType 'Round' is not known"),
        ("    root: {routerType: Sequence, steps: []}\n", "node 'root' has no steps"),
        (
            "    root: {routerType: Sequence, steps: [{nodeName: rot}]}\n",
            "no node 'rot' (did you mean 'root'?)",
        ),
        ("    root: {routerType: Sequence, steps: [{nodeName: root}]}\n", "node 'root' leads to itself"),
        ("    root: {routerType: Sequence, steps: [{data: $request}]}\n", "a step needs a serviceName"),
    ],
)
def test_what_is_no_graph_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        graph(tmp_path, text)
    assert message in str(error.value)


def test_nodes_that_nothing_reaches_are_told(tmp_path: Path) -> None:
    text = """
    root: {routerType: Sequence, steps: [{serviceName: double}]}
    spare: {routerType: Sequence, steps: [{serviceName: top}]}
"""
    made = graph(tmp_path, text, "double")
    assert said(made) == ["declared.yaml:8: not converted: node 'spare'; no step leads to it"]
