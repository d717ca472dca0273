"""Triton Inference Server: model configurations (`config.pbtxt`), ensembles among them.

The format: `model_config.proto` of Triton's common repository and its user guide, "Model Configuration" and "Ensemble
Models". `dims` are without the batch axis where `max_batch_size` is above 0, and with it where it is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from dataflow.control.importing.conversion import Conversion
from dataflow.control.importing.draft import (
    REQUEST,
    Batch,
    Draft,
    Tensor,
    both_types,
    finish,
    lone_pipeline,
    rename_note,
)
from dataflow.control.importing.models import Model, field_name, find_model_file, plain_name, read_model
from dataflow.control.importing.parts import DIFFERS, FILL_IN, NOT_CONVERTED, Part
from dataflow.control.importing.pbtxt import parse_pbtxt
from dataflow.core.errors import SpecError
from dataflow.core.schema import FieldType

KINDS: Final[Mapping[str, str]] = {
    "TYPE_BOOL": "bool", "TYPE_UINT8": "uint8", "TYPE_UINT16": "uint16", "TYPE_UINT32": "uint32",
    "TYPE_UINT64": "uint64", "TYPE_INT8": "int8", "TYPE_INT16": "int16", "TYPE_INT32": "int32",
    "TYPE_INT64": "int64", "TYPE_FP16": "float16", "TYPE_FP32": "float32", "TYPE_FP64": "float64",
    "TYPE_STRING": "string",
}  # fmt: skip
INSTEAD: Final[Mapping[str, str]] = {
    "version_policy": "keep the version that you want under the model's `file`",
    "model_version": "keep the version that you want under the model's `file`",
    "instance_group": "start more workers: `dataflow worker`; `options` of the model say the device",
    "count": "start more workers: `dataflow worker`",
    "gpus": "start a worker for each GPU, with CUDA_VISIBLE_DEVICES",
    "optimization": "`options: {providers: [...]}` of the model names onnxruntime's execution providers",
    "sequence_batching": "keep the state in a node: `ctx.state` of a Python node, by key",
    "model_warmup": "nothing to do: a model runs one row of zeros when it is opened (`warm_up`)",
    "response_cache": "`distinct` drops records that were there already",
    "model_transaction_policy": "a node may emit many records for one: `each.split`, or Python that yields",
    "parameters": "they were for the other server's backend: use the model's `options`",
    "cc_model_filenames": "one file for all devices",
    "default_model_filename": "name the file by `file` of the model",
    "label_filename": "map the label in a `transform.python` node behind the model",
    "format": "nothing to do: a tensor's axes are those of the model",
    "allow_ragged_batch": "nothing to do: rows of different sizes run apart",
    "optional": "every input of a model needs a field",
    "preserve_ordering": "nothing to do: order by key is kept",
    "default_queue_policy": "`deadline` of the pipeline: work that is too late is not done",
    "max_inflight_requests": "the gateway limits the requests that wait",
}


@dataclass(frozen=True)
class Config:
    """One configuration: its model (None for an ensemble), and what it says of batches."""

    name: str
    part: Part
    model: Model | None
    batch: Batch | None = None


def convert_triton(files: list[Path], models: Path | None) -> Conversion:
    """Our declarations for the configurations in `files`.

    ONNX files are looked for in `models` and in the model repository that a file is part of. Raises SpecError and
    ModelError.
    """
    made = Conversion()
    configs = {}
    for file in files:
        config = _config(file, models, made)
        if config.name in configs:
            raise SpecError(f"{file}:1: model '{config.name}' is there twice")
        configs[config.name] = config
    for config in configs.values():
        if config.model is None:
            drawn = _Ensemble(config, configs, models).draw()
            if drawn is not None:
                made.pipelines.append(drawn)
    used = {name for draft in made.pipelines for name in draft.models}
    for config in configs.values():
        if config.model is not None and config.model.name not in used:
            made.pipelines.append(lone_pipeline(config.model, config.part, config.batch))
        config.part.report_unread(INSTEAD)
    for draft in made.pipelines:
        finish(draft)
    return made


def _config(file: Path, models: Path | None, made: Conversion) -> Config:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise SpecError(f"cannot read {file}: {error}") from error
    part = Part(parse_pbtxt(text, str(file)), str(file), (), made.notes)
    name = part.text("name") or file.resolve().parent.name
    platform, backend = part.text("platform"), part.text("backend")
    if "ensemble_scheduling" in part or platform == "ensemble":
        return Config(name, part, None)
    found = find_model_file(models, name) or find_model_file(file.resolve().parent.parent, name)
    most = part.number("max_batch_size") or 0
    at = ("platform",) if platform else ("backend",) if backend else ()
    model = read_model(name, platform or backend, found, part, at=at, options=_options(part, most))
    model = _with_declared(model, part, most)
    return Config(name, part, model, _batch(part.part("dynamic_batching"), most))


def _options(part: Part, most: int) -> dict[str, Any]:
    """What the configuration says of how the model runs, as `options` of a model."""
    found: dict[str, Any] = {"max_batch": most} if most > 0 else {}
    for group in part.parts("instance_group"):
        kind = group.one("kind")
        if kind == "KIND_GPU":
            found["device"] = "cuda"
        if group.values.get("count") in (None, [1]):
            group.skip("count")
    for entry in part.parts("parameters"):
        key, value = entry.text("key"), entry.part("value").text("string_value")
        if key == "intra_op_thread_count" and value.isdigit() and int(value) > 0:
            found["intra_threads"] = int(value)
        else:
            entry.note(NOT_CONVERTED, f"parameter '{key}'", INSTEAD["parameters"])
    return found


def _batch(part: Part, most: int) -> Batch | None:
    """A node for the batcher's delay; without a delay there is nothing to do: what is fetched at once is a batch."""
    preferred = part.numbers("preferred_batch_size")
    delay_us = part.number("max_queue_delay_microseconds") or 0
    size = max(preferred or [most])
    if delay_us == 0 or size < 2:
        return None
    if delay_us < 1000:
        part.note(
            NOT_CONVERTED,
            f"a delay of {delay_us} us",
            "what is fetched at once is a batch; `batch.window` waits 1 ms and more",
            ("max_queue_delay_microseconds",),
        )
        return None
    return Batch(size, delay_us // 1000, part)


def _with_declared(model: Model, part: Part, most: int) -> Model:
    """`model` with the types that the configuration states; those of its file where the two differ."""
    inputs, outputs = _tensors(part, "input", most), _tensors(part, "output", most)
    return replace(
        model,
        inputs=_merged(model, "input", inputs, model.inputs, part),
        outputs=_merged(model, "output", outputs, model.outputs, part),
    )


def _merged(
    model: Model,
    key: str,
    declared: Mapping[str, FieldType | None],
    found: Mapping[str, FieldType | None] | None,
    part: Part,
) -> Mapping[str, FieldType | None] | None:
    if model.file is None or found is None:
        return declared or None
    for name in declared:
        if name not in found:
            part.note(DIFFERS, f"{model.file} has no {key} '{name}'", "the file is followed", (key,))
    merged: dict[str, FieldType | None] = {}
    for name, kind in found.items():
        stated = declared.get(name)
        both = both_types(stated, kind) if stated is not None and kind is not None else kind
        if both is None and kind is not None and stated is not None:
            part.note(
                DIFFERS,
                f"{key} '{name}' is {stated.describe()} here and {kind.describe()} in {model.file}",
                "the file is followed",
                (key,),
            )
        merged[name] = both or kind
    return merged


def _tensors(part: Part, key: str, most: int) -> dict[str, FieldType | None]:
    """Types by tensor, per record; None where no field type is the like (which is noted)."""
    found: dict[str, FieldType | None] = {}
    for tensor in part.parts(key):
        name, word = tensor.text("name"), tensor.text("data_type")
        dims = tensor.numbers("dims")
        shape = tensor.part("reshape").numbers("shape") if "reshape" in tensor else dims
        if [d for d in shape if d != 1] != [d for d in dims if d != 1]:
            tensor.note(
                NOT_CONVERTED, f"reshape of '{name}'", "reshape it in a `transform.python` node", ("reshape",)
            )
        if most == 0 and dims and dims[0] in {-1, 1}:
            dims = dims[1:]
        elif most == 0 and dims:
            tensor.note(
                FILL_IN,
                f"'{name}' has no batch axis: one request, not one row, is {dims}",
                "export the model with a free first axis",
                ("dims",),
            )
            found[name] = None
            continue
        if word == "TYPE_STRING" and any(size != 1 for size in dims):
            tensor.note(FILL_IN, f"'{name}' is a tensor of texts", "a field holds one text", ("data_type",))
            found[name] = None
            continue
        kind = KINDS.get(word)
        if kind is None:
            tensor.note(FILL_IN, f"'{name}' is {word or 'of no type'}: no field holds it", "", ("data_type",))
        shape = [] if kind == "string" else [max(size, -1) for size in dims]
        found[name] = FieldType(kind, tuple(shape)) if kind is not None else None
    return found


@dataclass
class _Ensemble:
    """One ensemble in conversion. `where` is the field of each of its tensors."""

    config: Config
    configs: Mapping[str, Config]
    models: Path | None

    def draw(self) -> Draft | None:
        """The pipeline, None where its steps are a cycle (which is noted)."""
        part, name = self.config.part, self.config.name
        plain = plain_name(name)
        rename_note(part, name, plain)
        self.draft = draft = Draft(plain, part)
        most = part.number("max_batch_size") or 0
        self.where = {
            tensor: draft.ask(field_name(tensor), kind, ("input",))
            for tensor, kind in _tensors(part, "input", most).items()
        }
        self.outputs = _tensors(part, "output", most)
        self.renamed({*self.where, *self.outputs})
        waiting = part.part("ensemble_scheduling").parts("step")
        while waiting:
            ready = [s for s in waiting if all(t in self.where for t in s.named("input_map").values())]
            if not ready:
                self.stuck(waiting)
                return None
            for step in ready:
                self.step(step)
            waiting = [s for s in waiting if s not in ready]
        self.answer()
        return draft

    def renamed(self, tensors: set[str]) -> None:
        for tensor in sorted(tensors):
            if field_name(tensor) != tensor:
                self.config.part.note(
                    DIFFERS,
                    f"tensor '{tensor}' is the field '{field_name(tensor)}'",
                    "clients say and read that name",
                )

    def stuck(self, waiting: list[Part]) -> None:
        """Note of each step that cannot be reached what it waits for."""
        given = {t for step in waiting for t in step.named("output_map").values()}
        for step in waiting:
            missing = [t for t in step.named("input_map").values() if t not in self.where]
            lost = [t for t in missing if t not in given]
            if lost:
                raise SpecError(
                    f"{step.file}:{step.line('input_map')}: no step and no input gives '{lost[0]}'"
                )
            step.note(
                NOT_CONVERTED,
                f"ensemble '{self.config.name}': step '{step.text('model_name')}' waits for '{missing[0]}' in a cycle",
                "write the loop with `loop.until`",
            )

    def step(self, step: Part) -> None:
        name = step.text("model_name")
        inputs, outputs = step.named("input_map"), step.named("output_map")
        if step.number("model_version") in {None, -1}:
            step.skip("model_version")
        else:
            step.note(NOT_CONVERTED, "model_version", INSTEAD["model_version"], ("model_version",))
        config = self.configs.get(name)
        if config is not None and config.model is None:
            step.note(
                FILL_IN,
                f"step '{name}' is an ensemble itself",
                "put its nodes here in place of this one",
                ("model_name",),
            )
        model = config.model if config is not None else None
        if model is None:
            model = self.draft.models.get(plain_name(name)) or read_model(
                name, "", find_model_file(self.models, name), step, at=("model_name",)
            )
        for tensor in inputs:
            if model.inputs is not None and tensor not in model.inputs:
                step.note(FILL_IN, f"model '{name}' has no input '{tensor}'", "", ("input_map",))
        kinds = dict(model.inputs or {})
        wanted = {t: self.known(given, kinds.get(t)) for t, given in inputs.items()}
        edges, fed = self.draft.gather(f"{name}-inputs", wanted)
        if config is not None and config.batch is not None:
            edges = config.batch.before(self.draft, name, edges)
        renamed = {tensor: field_name(given) for tensor, given in outputs.items()}
        edge = self.draft.run(name, self.typed(model, outputs), edges, fed, renamed)
        self.draft.models[model.name] = model
        for tensor, given in outputs.items():
            kind = (model.outputs or {}).get(tensor) or self.outputs.get(given)
            self.where[given] = Tensor((edge,), field_name(given), kind)

    def known(self, tensor: str, kind: FieldType | None) -> Tensor:
        """Where a tensor of the ensemble is; one of the request is of the model's type where its own is not told."""
        found = self.where[tensor]
        if found.type is None and found.edges == (REQUEST,):
            self.where[tensor] = found = self.draft.ask(found.field, kind)
        return found

    def typed(self, model: Model, outputs: Mapping[str, str]) -> Model:
        """`model` with the types that the ensemble states of its own outputs, where the model's are not known."""
        known = dict(model.outputs or {})
        stated = {tensor: known.get(tensor) or self.outputs.get(given) for tensor, given in outputs.items()}
        return replace(model, outputs=known | stated)

    def answer(self) -> None:
        missing = [t for t in self.outputs if t not in self.where]
        if missing:
            part = self.config.part
            raise SpecError(f"{part.file}:{part.line('output')}: no step gives the output '{missing[0]}'")
        wanted = {field_name(t): self.where[t] for t in self.outputs}
        edges, fields = self.draft.gather("answer", wanted)
        known = self.draft.known.get(edges[0]) or {}
        renamed = {new: Tensor(edges, field, known.get(field)) for new, field in fields.items()}
        self.draft.answer = [self.draft.select("answer", edges, renamed)]
