"""Settings and node kinds described for people, from the same pydantic models that check them. Pure."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import PydanticUndefined

if TYPE_CHECKING:
    from dataflow.registry import Registry
    from dataflow.sdk import NodeKind

_WORDS: Final = {
    "string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null",
    "object": "mapping", "array": "list",
}  # fmt: skip
_LIMITS: Final = {
    "minimum": "at least {}", "exclusiveMinimum": "above {}", "maximum": "at most {}", "exclusiveMaximum": "below {}",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One row of a settings table. `default` is "" where the setting is required."""

    name: str
    type: str
    default: str
    required: bool
    doc: str


def settings_of(model: type[BaseModel]) -> list[Setting]:
    """The settings of a model by their names in YAML, in declared order."""
    properties, definitions = _properties(model)
    found = []
    for field_name, info in model.model_fields.items():
        name = info.alias or field_name
        schema = properties.get(name, {})
        required = info.is_required()
        default = "" if required else _default(info.get_default(call_default_factory=True), schema)
        found.append(Setting(name, type_text(schema, definitions), default, required, info.description or ""))
    extra = _extra_text(model)
    if extra:
        found.append(Setting("...", extra, "", False, "Any other name."))
    return found


def _properties(model: type[BaseModel]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    try:
        schema = model.model_json_schema(mode="validation")
    except PydanticInvalidForJsonSchema:
        return {}, {}
    definitions: Mapping[str, Any] = schema.get("$defs", {})
    # A model that holds itself is a reference; one with a shorthand is one of several forms.
    root = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for form in (root, *root.get("anyOf", ())):
        if "properties" in form:
            return form["properties"], definitions
    return {}, definitions


def _extra_text(model: type[BaseModel]) -> str:
    if model.model_config.get("extra") != "allow":
        return ""
    try:
        extra = model.model_json_schema(mode="validation").get("additionalProperties")
    except PydanticInvalidForJsonSchema:
        extra = None
    return type_text(extra, {}) if isinstance(extra, dict) else "any"


def type_text(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A JSON Schema in words: ``text or list of text``, ``whole number, at least 1``, ``one of a, b``."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        target = definitions.get(name, {})
        return "mapping" if not target else type_text(target, definitions)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return " or ".join(dict.fromkeys(type_text(o, definitions) for o in options))
    if "enum" in schema:
        return "one of " + ", ".join(_plain(v) for v in schema["enum"])
    if "const" in schema:
        return _plain(schema["const"])
    kind = schema.get("type")
    if isinstance(kind, list):
        text = " or ".join(_WORDS.get(str(k), str(k)) for k in kind)
    elif kind == "array" and isinstance(schema.get("items"), dict):
        text = f"list of {type_text(schema['items'], definitions)}"
    elif kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        text = f"mapping of text to {type_text(schema['additionalProperties'], definitions)}"
    else:
        text = _WORDS.get(kind, "any") if isinstance(kind, str) else "any"
    limits = [words.format(schema[key]) for key, words in _LIMITS.items() if key in schema]
    examples = [f"e.g. {_plain(e)}" for e in schema.get("examples", ())[:1]]
    return ", ".join([text, *limits, *examples])


def _default(value: Any, schema: Mapping[str, Any]) -> str:
    from dataflow.spec.units import format_duration_ms

    if value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):
        return "its own defaults"
    is_duration = schema.get("type") == "string" and isinstance(value, int) and not isinstance(value, bool)
    if is_duration:
        return format_duration_ms(value)
    return _plain(list(value) if isinstance(value, tuple | set | frozenset) else value)


def _plain(value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    return json.dumps(value, default=str)


# ---------------------------------------------------------------- node kinds


def first_line(kind: NodeKind) -> str:
    """The first sentence of a kind's documentation, one line."""
    return kind.doc.partition("\n\n")[0].replace("\n", " ").strip()


def ports_text(kind: NodeKind) -> str:
    """``in → out``; ports that depend on settings are said so."""
    inputs = ", ".join(kind.inputs) if not kind.source else "none"
    declared = hasattr(kind.target, "ports")
    outputs = "as declared" if declared else ", ".join(kind.outputs) or "none"
    return f"{inputs} → {outputs}"


def kind_as_dict(kind: NodeKind, file: str = "") -> dict[str, Any]:
    """All that is known of a kind, for programs."""
    return {
        "name": kind.name,
        "doc": kind.doc,
        "pure": kind.pure,
        "source": kind.source,
        "inputs": [] if kind.source else list(kind.inputs),
        "outputs": None if hasattr(kind.target, "ports") else list(kind.outputs),
        "settings_doc": kind.settings.__doc__ or "",
        "settings": [vars_of(s) for s in settings_of(kind.settings)],
        "example": kind.example,
        "file": file,
    }


def vars_of(setting: Setting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "type": setting.type,
        "required": setting.required,
        "default": setting.default if not setting.required else None,
        "doc": setting.doc,
    }


def kind_as_markdown(kind: NodeKind, *, level: int = 2) -> str:
    """One kind as a section of a page."""
    effects = "Pure: may be run again" if kind.pure else "Has effects: off in replays"
    parts = [
        f"{'#' * level} `{kind.name}`",
        kind.doc,
        f"Ports: {ports_text(kind)}. {effects}.",
    ]
    settings = settings_of(kind.settings)
    if settings:
        parts.append(_settings_doc(kind))
        parts.append(table(("setting", "type", "default", "meaning"), list(_rows(settings))))
    else:
        parts.append("It has no settings.")
    if kind.example:
        parts.append(f"```yaml\n{kind.example}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def _settings_doc(kind: NodeKind) -> str:
    return inspect.cleandoc(kind.settings.__doc__ or "")


def paragraphs(text: str) -> str:
    """Text whose paragraphs are one line each, to be wrapped at the reader's width."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _rows(settings: Sequence[Setting]) -> Iterator[tuple[str, str, str, str]]:
    for setting in settings:
        default = "required" if setting.required else f"`{setting.default}`" if setting.default else ""
        yield f"`{setting.name}`", setting.type, default, setting.doc


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([_cell(c) for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


def kinds_reference(registry: Registry) -> str:
    """The page docs/reference/kinds.md: every kind of a registry."""
    kinds = registry.kinds()
    overview = [
        (f"[`{k.name}`](#{_anchor(k.name)})", ports_text(k), "yes" if k.pure else "no", first_line(k))
        for k in kinds
    ]
    head = "# Node kinds\n\n<!-- generated by `dataflow reference --write`: edit the kinds, not this page -->\n\n"
    intro = table(("kind", "ports", "pure", "what it does"), overview)
    return head + intro + "\n\n" + "\n".join(kind_as_markdown(kind) for kind in kinds)


def _anchor(name: str) -> str:
    return name.replace(".", "").lower()
