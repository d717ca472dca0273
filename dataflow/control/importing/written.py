"""A conversion as the files of a project: YAML that a person goes on to edit, and the models' artifacts beside it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from dataflow.control.importing.conversion import Conversion
from dataflow.control.importing.draft import REQUEST, Draft, described
from dataflow.control.importing.models import Model, plain_name
from dataflow.core.errors import SpecError

_WIDTH: Final = 110
# What fits on a line beside its key is written in flow style.
_FLOW_CHARACTERS: Final = 90


def files_of(made: Conversion, folder: Path) -> dict[str, str | Path]:
    """The files of a project for `folder`, by path: their text, or the file to copy.

    Raises SpecError where two pipelines or two models have one name.
    """
    found: dict[str, str | Path] = {}
    if not (folder / "dataflow.yaml").exists():
        name = plain_name(folder.resolve().name)
        found["dataflow.yaml"] = _yaml({"kind": "Project", "name": name})
    for model in made.models.values():
        if model.use == "model.onnx":
            found[f"models/{model.name}.yaml"] = _yaml(_model(model))
        if model.file is not None:
            found[f"models/{model.name}.onnx"] = model.file
    for draft in made.pipelines:
        if f"pipelines/{draft.name}/pipeline.yaml" in found:
            raise SpecError(f"two pipelines are called '{draft.name}'", hint="import them into two folders")
        documents = [_pipeline(draft)] if draft.reads else [_topic(draft), _pipeline(draft)]
        found[f"pipelines/{draft.name}/pipeline.yaml"] = "---\n".join(_yaml(d) for d in documents)
    return found


def write_files(files: Mapping[str, str | Path], folder: Path, *, force: bool) -> None:
    """Write the files into `folder`, which may be a project already. Raises SpecError if one is there, unless `force`."""
    there = [name for name in files if (folder / name).exists()]
    if there and not force:
        raise SpecError(
            f"'{folder / there[0]}' is there already" + (f", and {len(there) - 1} more" if there[1:] else ""),
            hint="--force overwrites",
        )
    try:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            elif content.resolve() != path.resolve():
                shutil.copyfile(content, path)
    except OSError as error:
        raise SpecError(f"cannot write to '{folder}': {error}") from error


def _topic(draft: Draft) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, kind in draft.fields.items():
        kind = kind or draft.guesses.get(name)
        optional = name in draft.optional and draft.fields[name] is None
        fields[name] = {"type": described(kind), "nullable": True} if optional else described(kind)
    return {
        "kind": "Topic",
        "name": f"{draft.name}.inputs",
        "doc": f"What callers of {draft.name} send.",
        "fields": fields,
    }


def _model(model: Model) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": "Model", "name": model.name}
    if model.doc:
        document["doc"] = f"From {model.doc}"
    document["file"] = f"{model.name}.onnx"
    if model.options:
        document["options"] = dict(model.options)
    return document


def _pipeline(draft: Draft) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": "Pipeline", "name": draft.name}
    if draft.doc:
        document["doc"] = draft.doc
    document["inputs"] = {REQUEST: draft.reads or f"{draft.name}.inputs"}
    if draft.answer:
        document["answer"] = {"from": draft.answer}
    if draft.deadline:
        document["deadline"] = draft.deadline
    return document | {"nodes": draft.nodes}


def _yaml(document: Mapping[str, Any]) -> str:
    yaml = YAML()
    yaml.width = _WIDTH
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    yaml.dump(_styled(document, 0), stream)
    # A `$` before `{` would be read as a variable of the environment.
    return stream.getvalue().replace("${", "$${")


def _styled(value: Any, depth: int) -> Any:
    """`value` with small mappings and lists in flow style, but for the document and its nodes."""
    if not isinstance(value, dict | list):
        return value
    if isinstance(value, dict):
        made: Any = CommentedMap({key: _styled(member, depth + 1) for key, member in value.items()})
    else:
        made = CommentedSeq([_styled(member, depth + 1) for member in value])
    if not value or (depth > 0 and len(json.dumps(value)) <= _FLOW_CHARACTERS and not _is_nodes(value)):
        made.fa.set_flow_style()
    return made


def _is_nodes(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(v, dict) and "use" in v for v in value.values())
