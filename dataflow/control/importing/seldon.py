"""Seldon Core 2: `Model` and `Pipeline` manifests of ``mlops.seldon.io/v1alpha1``.

The format: the API types of its operator and docs.seldon.ai, "Pipelines". A reference is ``step``,
``step.inputs|outputs`` or ``step.inputs|outputs.tensor``; the pipeline's own name stands for its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dataflow.control.importing.conversion import Conversion
from dataflow.control.importing.draft import Draft, finish, lone_pipeline, rename_note
from dataflow.control.importing.models import EXPORTERS, ONNX, Model, find_model_file, plain_name, read_model
from dataflow.control.importing.parts import NOT_CONVERTED, Manifest, Part, read_manifests
from dataflow.control.importing.seldon_ends import add_answer, read_input
from dataflow.control.importing.seldon_steps import add_step
from dataflow.control.importing.seldon_wiring import Wiring
from dataflow.core.errors import SpecError

GROUP: Final = "mlops.seldon.io"
INSTEAD: Final[Mapping[str, str]] = {
    "namespace": "a project has one space of names: put what must be apart into projects of their own",
    "memory": "memory is not declared: models are loaded by the workers that run their nodes",
    "replicas": "start more workers: `dataflow worker`",
    "minReplicas": "start more workers: `dataflow worker`",
    "maxReplicas": "start more workers: `dataflow worker`",
    "server": "a node runs in any worker of the project; `isolate: true` gives it a stage of its own",
    "dedicated": "`isolate: true` of the node gives it a stage of its own",
    "preloaded": "models are loaded when a worker starts",
    "artifactVersion": "keep the version that you want under the model's `file`",
    "secretName": "fetch the artifact yourself, e.g. by the model's `build`",
    "schemaUri": "the contract is read from the ONNX file",
    "logger": "nothing to do: every edge is a topic that can be tapped",
    "parameters": "they were for the other server's runtime: use the model's `options`",
    "explainer": "run the explainer in a `model.python` node beside the answer: it never slows it",
    "llm": "call it from a `logic.python` node",
    "modelRef": "see `explainer`",
    "dataflow": "topics are not deleted with a pipeline: their retention says how long they stay",
    "allowCycles": "write the loop with `loop.until`",
    "maxStepRevisits": "write the loop with `loop.until`, whose limit says how often",
    "externalTriggers": "put both pipelines into one, and the trigger's edge into `from` of a join",
    "rolling": "batches do not overlap; for a moving window use `window.hopping`",
}


def convert_seldon(files: list[Path], models: Path | None) -> Conversion:
    """Our declarations for the manifests in `files`; `models` has ONNX files. Raises SpecError and ModelError."""
    made = Conversion()
    manifests = read_manifests(files, made.notes)
    declared: dict[str, tuple[Model, Part]] = {}
    pipelines: list[Manifest] = []
    for manifest in manifests:
        if manifest.group != GROUP or manifest.kind not in {"Model", "Pipeline"}:
            instead = (
                "`route.weighted` shares records by weight" if manifest.kind == "Experiment" else "left out"
            )
            manifest.part.note(NOT_CONVERTED, f"{manifest.kind} '{manifest.name}'", instead)
        elif manifest.kind == "Model":
            declared[manifest.name] = (_model(manifest, models), manifest.part)
        else:
            pipelines.append(manifest)
    outputs = {m.name: m.part.part("spec").part("output").texts("steps") for m in pipelines}
    for manifest in pipelines:
        drawn = _draw(manifest, declared, models, outputs)
        if drawn is not None:
            made.pipelines.append(drawn)
            _report(manifest)
    used = {name for draft in made.pipelines for name in draft.models}
    for manifest in manifests:
        if manifest.name in declared and manifest.kind == "Model":
            model, part = declared[manifest.name]
            if model.name not in used:
                made.pipelines.append(lone_pipeline(model, part))
            _report(manifest)
    for draft in made.pipelines:
        finish(draft)
    return made


def _report(manifest: Manifest) -> None:
    manifest.part.report_unread(INSTEAD)


def _model(manifest: Manifest, models: Path | None) -> Model:
    spec = manifest.part.part("spec")
    asked = [spec.text("modelType")] if "modelType" in spec else spec.texts("requirements")
    spec.skip("requirements")
    framework = next((word for word in asked if word in ONNX or word in EXPORTERS), asked[0] if asked else "")
    at = ("requirements",) if "requirements" in spec else ("storageUri",)
    if "explainer" in spec:
        framework = "explainer"
    file = find_model_file(models, manifest.name)
    return read_model(manifest.name, framework, file, spec, doc=spec.text("storageUri"), at=at)


def _draw(
    manifest: Manifest,
    declared: Mapping[str, tuple[Model, Part]],
    models: Path | None,
    outputs: Mapping[str, list[str]],
) -> Draft | None:
    """The pipeline, None where it cannot be said in our words (which is noted)."""
    part, name = manifest.part, manifest.name
    spec = part.part("spec")
    rename_note(part, name, plain_name(name))
    wiring = Wiring(name, spec, Draft(plain_name(name), spec))
    if not read_input(wiring, spec.part("input"), outputs):
        return None
    steps = dict(zip(wiring.names, spec.parts("steps"), strict=True))
    if not steps:
        raise SpecError(f"{part.file}:{spec.line()}: pipeline '{name}' has no steps")
    for step in wiring.order(steps) or ():
        found = declared.get(step)
        model = (
            found[0]
            if found
            else read_model(step, "", find_model_file(models, step), steps[step], at=("name",))
        )
        add_step(wiring, step, steps[step], model)
    if not wiring.edges:
        return None
    add_answer(wiring, spec.part("output"))
    return wiring.draft
