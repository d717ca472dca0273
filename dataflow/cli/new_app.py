"""A project around one ONNX file: contract, pipeline, an inline test and a request, all from the model's signature."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dataflow.cli.new import copy_template, project_name, write_folder
from dataflow.core.errors import ModelError
from dataflow.core.schema import FLOATS, Field, FieldType
from dataflow.gateway.v2_types import DATATYPE_OF
from dataflow.serving.signature import Port, Signature, import_onnxruntime, read_signature

# Sizes tried for free dimensions, until the model runs.
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 224)
# A test in YAML is to be read by people: larger samples go into request.json only.
_MAX_TEST_VALUES: Final = 256
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Feed:
    """A model input, the field that feeds it, and one record's sample value."""

    port: Port
    field: Field
    sample: Array


@dataclass(frozen=True)
class Output:
    """A model output and the field it becomes. `value` is what the model gives for the sample, None if not run."""

    port: Port
    field: Field
    value: Array | None


def make_app(folder: Path, model: Path) -> list[str]:
    """Write a project that serves `model` into the new folder `folder`; gives what the user should know of it.

    Raises ModelError for a file that is no model or has inputs or outputs that no contract can carry.
    """
    signature = read_signature(model)
    feeds, outputs, notes = describe(model, signature)
    name = project_name(folder)

    def write(part: Path) -> None:
        copy_template("app", part, {"name": name, "model_file": model.name})
        home = part / "pipelines" / name
        home.mkdir(parents=True)
        shutil.copyfile(model, home / model.name)
        try:
            read_signature(home / model.name)
        except ModelError as error:
            raise ModelError(
                f"{model} does not load from another place: {error}",
                hint="are its weights in a second file? save it as one: onnx.save_model(model, path)",
            ) from error
        (home / "pipeline.yaml").write_text(
            "\n".join(pipeline_text(name, model.name, feeds, outputs)) + "\n", encoding="utf-8"
        )
        (part / "request.json").write_text(request_text(feeds), encoding="utf-8")

    write_folder(folder, write)
    return notes


def describe(model: Path, signature: Signature) -> tuple[list[Feed], list[Output], list[str]]:
    """Inputs with samples, outputs with what the model gives for them, and notes for the user."""
    for port in signature.ports_in:
        if port.type is None:
            raise ModelError(f"input '{port.name}': {port.problem}")
    given = [p for p in signature.ports_out if p.type is not None]
    notes = [f"output '{p.name}' is left out: {p.problem}" for p in signature.ports_out if p.type is None]
    if not given:
        raise ModelError(f"{model} has no output that a contract can carry: {'; '.join(notes)}")
    names = _names([p.name for p in signature.ports_in], ())
    outs = _names([p.name for p in given], tuple(names))
    samples, results = _try(model, signature, [p.name for p in given])
    if results is None:
        notes.append("the model refuses the made-up values: put real ones into request.json")
    feeds = [
        Feed(port, Field(name, _json_type(port)), sample)
        for port, name, sample in zip(signature.ports_in, names, samples, strict=True)
    ]
    outputs = [
        Output(port, Field(name, _squeezed(_json_type(port))), results[index] if results else None)
        for index, (port, name) in enumerate(zip(given, outs, strict=True))
    ]
    return feeds, outputs, notes


def _names(wanted: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Field names like the model's own, all different."""
    found: list[str] = []
    for name in wanted:
        plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
        plain = f"_{plain}" if plain[0].isdigit() else plain
        if plain in taken:
            plain += "_out"
        while plain in found or plain in taken:
            plain += "_"
        found.append(plain)
    return found


def _json_type(port: Port) -> FieldType:
    """The port's type, half floats as float32: JSON requests cannot say FP16."""
    assert port.type is not None, "checked before"
    return replace(port.type, kind="float32") if port.type.kind == "float16" else port.type


def _squeezed(field_type: FieldType) -> FieldType:
    return replace(field_type, shape=()) if field_type.shape == (1,) else field_type


# ---------------------------------------------------------------- sample


def _try(model: Path, signature: Signature, outputs: Sequence[str]) -> tuple[list[Array], list[Array] | None]:
    """A sample value for each input, and the first row of each output; None where the model runs on none tried."""
    session = import_onnxruntime().InferenceSession(str(model), providers=["CPUExecutionProvider"])
    rows = max(signature.batch, 1)
    for size in _SIZES:
        samples = [sample_value(port, size) for port in signature.ports_in]
        feeds = {
            port.name: np.stack([sample] * rows).reshape(rows, *sample.shape)
            for port, sample in zip(signature.ports_in, samples, strict=True)
        }
        for port in signature.ports_in:
            if port.type is not None and port.type.kind == "string" and len(port.shape) == 2:
                feeds[port.name] = feeds[port.name].reshape(rows, 1)
        try:
            return samples, [np.asarray(found)[0] for found in session.run(list(outputs), feeds)]
        except Exception as error:  # noqa: BLE001  (onnxruntime's errors have no common base)
            if not any(p.type is not None and p.type.has_free_dimension for p in signature.ports_in):
                del error
                break
    return [sample_value(port, _SIZES[0]) for port in signature.ports_in], None


def sample_value(port: Port, size: int) -> Array:
    """One record's value for an input: small numbers that differ along it; `size` for free dimensions."""
    assert port.type is not None, "checked before"
    kind, shape = port.type.kind, [size if s == -1 else s for s in port.type.shape]
    if kind == "string":
        return np.array("text", dtype=object)
    ramp = np.arange(int(np.prod(shape, dtype=int))) * 7 % 10
    if kind in FLOATS:
        return (ramp / 10).astype(kind).reshape(shape)
    return (ramp % 2 == 0 if kind == "bool" else ramp % 2).astype(kind).reshape(shape)


# ---------------------------------------------------------------- files


def request_of(feeds: Sequence[Feed]) -> dict[str, Any]:
    """A request of the Open Inference Protocol v2 for one record."""
    return {
        "inputs": [
            {
                "name": feed.field.name,
                "shape": [1, *feed.sample.shape],
                "datatype": DATATYPE_OF.get(feed.field.type.kind, "BYTES"),
                "data": plain(feed.sample),
            }
            for feed in feeds
        ]
    }


def request_text(feeds: Sequence[Feed]) -> str:
    """The request as JSON that can be read and edited: one tensor a line."""
    tensors = ",\n".join(f"  {json.dumps(tensor)}" for tensor in request_of(feeds)["inputs"])
    return f'{{"inputs": [\n{tensors}\n]}}\n'


def plain(value: Array) -> list[Any]:
    """The elements in row-major order, floats in as few digits as their own precision needs."""
    flat = value.reshape(-1)
    if (
        flat.dtype.kind == "f" and flat.dtype.itemsize > 2
    ):  # half floats are declared as float32, which tells more
        return [float(str(item)) for item in flat]
    return flat.tolist()


def pipeline_text(name: str, file: str, feeds: Sequence[Feed], outputs: Sequence[Output]) -> Iterator[str]:
    """The declarations: a topic, a model, a pipeline of one node, and a test where the sample is small."""
    yield from ("kind: Topic", f"name: {name}.inputs", f"doc: {_flow(f'What {file} is given.')}", "fields:")
    for feed in feeds:
        yield f"  {feed.field.name}: {_flow(feed.field.type.describe())}"
    yield from ("---", "kind: Model", f"name: {name}", f"file: {_flow(file)}")
    yield from (
        "---",
        "kind: Pipeline",
        f"name: {name}",
        f"inputs: {{input: {name}.inputs}}",
        "answer: predict",
    )
    yield from (
        "nodes:",
        "  predict:",
        "    use: model.onnx",
        "    from: input",
        "    with:",
        f"      model: {name}",
    )
    inputs = {f.port.name: f.field.name for f in feeds if f.port.name != f.field.name}
    if inputs:
        yield f"      inputs: {_flow(inputs)}"
    yield f"      outputs: {_flow({o.port.name: o.field.name for o in outputs})}"
    if any(o.port.type is not None and o.port.type.kind == "float16" for o in outputs):
        yield f"    out: {_flow({o.field.name: o.field.type.describe() for o in outputs})}"
    yield "    keep: []"
    small = sum(f.sample.size for f in feeds) <= _MAX_TEST_VALUES
    expected = _expected(outputs)
    if small and expected:
        yield from ("tests:", "  - name: the model's own answer to a made-up record")
        given = {feed.field.name: _nested(feed.sample) for feed in feeds}
        yield f"    given: {{input: [{_flow(given)}]}}"
        yield f"    expect: {{predict: [{_flow(expected)}]}}"


def _expected(outputs: Sequence[Output]) -> dict[str, Any]:
    """What the model gave for the sample, where all of it is finite and short."""
    found = {}
    for output in outputs:
        value = output.value
        if value is None or value.size > _MAX_TEST_VALUES:
            return {}
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return {}
        found[output.field.name] = _nested(
            value.reshape(output.field.type.shape) if value.size == 1 else value
        )
    return found


def _nested(value: Array) -> Any:
    made = np.empty(value.shape, dtype=object)
    made.reshape(-1)[:] = plain(value)
    return made.tolist()


def _flow(value: object) -> str:
    """A value in YAML's flow style, which JSON is."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
