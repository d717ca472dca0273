"""Models of foreign declarations: how we can run each, and what it takes and gives, as far as that can be read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from dataflow.control.importing.parts import DIFFERS, FILL_IN, Part
from dataflow.core.errors import ModelError
from dataflow.core.schema import FieldType
from dataflow.serving.signature import read_signature

# What other servers call the formats that have exporters to ONNX, and the exporter.
EXPORTERS: Final[Mapping[str, str]] = {
    "sklearn": "skl2onnx", "xgboost": "onnxmltools", "lightgbm": "onnxmltools", "catboost": "catboost",
    "spark-mlib": "onnxmltools", "mlflow": "the flavour's own exporter", "tensorflow": "tf2onnx",
    "tensorflow_savedmodel": "tf2onnx", "tensorflow_graphdef": "tf2onnx", "keras": "tf2onnx",
    "pytorch": "torch.onnx", "pytorch_libtorch": "torch.onnx", "torchscript": "torch.onnx",
    "huggingface": "optimum", "paddle": "paddle2onnx", "fil": "onnxmltools", "openvino": "the framework's own exporter",
    "tensorrt": "the framework's own exporter", "tensorrt_plan": "the framework's own exporter",
}  # fmt: skip
ONNX: Final = frozenset({"onnx", "onnxruntime", "onnxruntime_onnx"})
Tensors = Mapping[str, FieldType | None]


@dataclass(frozen=True)
class Model:
    """A model as we would run it.

    inputs, outputs   types by tensor, per record (without the batch axis); None for a tensor whose type is not
                      known. The mapping itself is None where not even the tensors are known.
    file              the artifact found, None where there is none yet
    left_out          outputs that no contract can carry
    """

    name: str
    use: Literal["model.onnx", "model.python"]
    inputs: Tensors | None = None
    outputs: Tensors | None = None
    file: Path | None = None
    doc: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def given(self) -> dict[str, FieldType | None]:
        """The outputs as fields of the edge: by field name."""
        return {field_name(name): kind for name, kind in (self.outputs or {}).items()}


def plain_name(name: str) -> str:
    """The nearest name that a pipeline, node or model may have."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", name)[:100]
    return name if re.match(r"[A-Za-z]", name) else f"m-{name}"[:100]


def field_name(tensor: str) -> str:
    """The nearest name that a field may have."""
    name = re.sub(r"\W", "_", tensor, flags=re.ASCII)
    return f"_{name}" if not name or name[0].isdigit() else name


def find_model_file(folder: Path | None, name: str) -> Path | None:
    """The ONNX file of a model in a folder of models.

    Looked for are ``NAME.onnx`` and, in the folder ``NAME`` or its newest numbered version, ``model.onnx`` or the
    only ONNX file.
    """
    if folder is None:
        return None
    if (folder / f"{name}.onnx").is_file():
        return folder / f"{name}.onnx"
    home = folder / name
    if not home.is_dir():
        return None
    versions = sorted(
        (p for p in home.iterdir() if p.is_dir() and p.name.isdigit()), key=lambda p: -int(p.name)
    )
    for place in (*versions, home):
        if (place / "model.onnx").is_file():
            return place / "model.onnx"
        files = sorted(place.glob("*.onnx"))
        if len(files) == 1:
            return files[0]
    return None


def read_model(
    name: str,
    framework: str,
    file: Path | None,
    part: Part,
    *,
    doc: str = "",
    at: tuple[str | int, ...] = (),
    options: Mapping[str, Any] | None = None,
) -> Model:
    """The model `name` of a `framework` (as its server calls it, "" if not said), with what `file` tells of it.

    What cannot be told is noted at `at` of `part`. Raises ModelError for a file that is no model.
    """
    plain = plain_name(name)
    if plain != name:
        part.note(DIFFERS, f"'{name}' is called '{plain}' here", "clients ask for the new name", at)
    chosen = dict(options or {})
    if file is not None:
        return _from_file(plain, file, part, doc, at, chosen)
    if framework in ONNX or not framework:
        part.note(
            FILL_IN,
            f"model '{name}' has no ONNX file here, so its tensors are not known",
            f"import again with --models DIR, where DIR has {name}.onnx" + (f" (of {doc})" if doc else ""),
            at,
        )
        return Model(plain, "model.onnx", doc=doc, options=chosen)
    exporter = EXPORTERS.get(framework)
    if exporter:
        part.note(
            FILL_IN,
            f"model '{name}' is of {framework}",
            f"export it to ONNX ({exporter}) and import again with --models DIR, where DIR has {name}.onnx",
            at,
        )
        return Model(plain, "model.onnx", doc=doc, options=chosen)
    part.note(
        FILL_IN,
        f"model '{name}' is of {framework}, code of your own",
        f"write predict(row) in {module_name(plain)}.py of the pipeline's folder: a model.python node calls it",
        at,
    )
    return Model(plain, "model.python", doc=doc)


def module_name(name: str) -> str:
    """The name of a Python module for a model."""
    return field_name(name.replace("-", "_")).lower()


def _from_file(
    name: str, file: Path, part: Part, doc: str, at: tuple[str | int, ...], options: dict[str, Any]
) -> Model:
    signature = read_signature(file)
    for port in signature.ports_in:
        if port.type is None:
            raise ModelError(f"{file}: input '{port.name}': {port.problem}")
    lost = [port for port in signature.ports_out if port.type is None]
    for port in lost:
        part.note(DIFFERS, f"output '{port.name}' of model '{name}' is left out", port.problem, at)
    inputs = {port.name: port.type for port in signature.ports_in}
    outputs = {port.name: port.type for port in signature.ports_out if port.type is not None}
    for tensor in (*inputs, *outputs):
        if field_name(tensor) != tensor:
            part.note(
                DIFFERS,
                f"tensor '{tensor}' of model '{name}' is the field '{field_name(tensor)}'",
                "clients say and read that name",
                at,
            )
    left_out = tuple(port.name for port in lost)
    return Model(name, "model.onnx", inputs, outputs, file, doc, options, left_out)
