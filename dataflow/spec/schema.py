"""JSON Schema of the declarations, for editors: completion, documentation and errors while typing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from dataflow.sdk import NodeKind, Settings
from dataflow.spec.documents import KINDS, NodeSpec
from dataflow.spec.units import format_duration_ms

_DIALECT: Final = "http://json-schema.org/draft-07/schema#"
_MODE: Final[JsonSchemaMode] = "validation"
_VARIABLE: Final = {"type": "string", "pattern": r"\$\{"}


def declarations_schema(kinds: Sequence[NodeKind]) -> dict[str, Any]:
    """One schema for every declaration file: `kind` decides what a document is, `use` what is under a node's `with`.

    A document without `kind` is taken for `dataflow.yaml`. Where a number or a switch is needed, ``${VAR}`` is too.
    """
    described = {kind.name: kind.settings for kind in kinds if _is_describable(kind.settings)}
    models: list[type[BaseModel]] = list(dict.fromkeys([*KINDS.values(), NodeSpec, *described.values()]))
    references, collected = models_json_schema(
        [(model, _MODE) for model in models], ref_template="#/definitions/{model}"
    )
    definitions = {name: _with_variables(schema) for name, schema in collected["$defs"].items()}
    settings = {name: references[model, _MODE] for name, model in described.items()}
    node = definitions[references[NodeSpec, _MODE]["$ref"].rpartition("/")[2]]
    node["properties"]["use"] = {
        "anyOf": [{"const": kind.name, "description": kind.doc} for kind in kinds] or [{"type": "string"}]
    }
    node["allOf"] = [_settings_rule(kind, settings.get(kind.name, {"type": "object"})) for kind in kinds]
    rules = [
        {"if": _is("kind", name), "then": references[model, _MODE]}
        for name, model in KINDS.items()
        if name != "Project"
    ]
    project = references[KINDS["Project"], _MODE]
    rules.append({"if": {"not": {"required": ["kind"]}}, "then": project})
    return {
        "$schema": _DIALECT,
        "title": "dataflow declarations",
        "type": "object",
        "properties": {"kind": {"enum": list(KINDS)}},
        "allOf": rules,
        "definitions": definitions,
    }


def _is(name: str, value: str) -> dict[str, Any]:
    return {"properties": {name: {"const": value}}, "required": [name]}


def _settings_rule(kind: NodeKind, settings: dict[str, Any]) -> dict[str, Any]:
    needed = any(info.is_required() for info in kind.settings.model_fields.values())
    then: dict[str, Any] = {"properties": {"with": settings}}
    return {"if": _is("use", kind.name), "then": then | ({"required": ["with"]} if needed else {})}


def _is_describable(settings: type[Settings]) -> bool:
    try:
        settings.model_json_schema(mode=_MODE)
    except PydanticInvalidForJsonSchema:
        return False
    return True


def _with_variables(schema: Any) -> Any:
    """`schema` that also lets an environment variable stand where YAML needs no text, defaults as users write them."""
    if isinstance(schema, list):
        return [_with_variables(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: _with_variables(part) for name, part in schema.items()}
    kind = schema.get("type")
    if "$ref" in parts:
        parts.pop("default", None)
    if kind == "string" and isinstance(parts.get("default"), int):
        parts["default"] = format_duration_ms(parts["default"])
    if not isinstance(kind, str) or kind not in {"integer", "number", "boolean"}:
        return parts
    outside = {name: parts.pop(name) for name in ("default", "title", "description") if name in parts}
    return {"anyOf": [parts, _VARIABLE], **outside}
