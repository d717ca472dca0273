"""pydantic's errors in our words: the path in the YAML, what is wrong, what is valid, the nearest name."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dataflow.core.errors import DataflowError, nearest
from dataflow.spec.problems import Fault, YamlPath
from dataflow.spec.source import step_into

_NEEDED: Final[Mapping[str, str]] = {
    "string_type": "text is needed",
    "int_type": "a whole number is needed",
    "int_parsing": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "float_parsing": "a number is needed",
    "bool_type": "true or false is needed",
    "bool_parsing": "true or false is needed",
    "dict_type": "a mapping is needed",
    "mapping_type": "a mapping is needed",
    "model_type": "a mapping is needed",
    "model_attributes_type": "a mapping is needed",
    "tuple_type": "a list is needed",
    "list_type": "a list is needed",
    "set_type": "a list is needed",
    "too_short": "it must not be empty",
    "string_too_short": "it must not be empty",
}
_LIMITS: Final[Mapping[str, str]] = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}


def faults_of(error: ValidationError, model: type[BaseModel], value: Any) -> Iterator[Fault]:
    """The faults behind `error`, which `model` raised for `value`: one each, whatever a union tried."""
    seen: set[tuple[YamlPath, str]] = set()
    for detail in error.errors(include_url=False):
        path = _yaml_path(detail["loc"], value)
        message, hint = _words(detail, model, path)
        if (path, message) not in seen:
            seen.add((path, message))
            at_key = detail["type"] == "extra_forbidden" or detail["loc"][-1:] == ("[key]",)
            yield Fault(path, message, hint, at_key=at_key)


def shown(value: object) -> str:
    """A value as it fits into a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_secret(path: YamlPath) -> bool:
    """Whether what stands at `path` of some declaration may be a password or a token: never printed."""
    return path[:1] == ("kafka",) or path[-1:] == ("token",)


def _yaml_path(location: tuple[int | str, ...], value: Any) -> YamlPath:
    """`location` without what pydantic adds (union members, ``[key]``), so that it is a path into `value`."""
    path: list[str | int] = []
    for index, step in enumerate(location):
        inner, found = step_into(value, step)
        is_missing_name = isinstance(value, dict) and index == len(location) - 1 and step != "[key]"
        if found or is_missing_name:
            value = inner
            path.append(step)
    return tuple(path)


def _words(detail: ErrorDetails, model: type[BaseModel], path: YamlPath) -> tuple[str, str]:
    """Message and hint."""
    kind, context = detail["type"], detail.get("ctx", {})
    field = next((step for step in reversed(path) if isinstance(step, str) and step), "value")
    given = "" if is_secret(path) else f", not {shown(detail['input'])}"
    if kind == "dataflow":
        message = str(context["message"])
        is_named = message.startswith(f"{field}:") or f"'{field}'" in message
        return message if is_named else f"{field}: {message}", str(context["hint"])
    if kind == "extra_forbidden":
        return f"unknown name '{path[-1]}'", nearest(str(path[-1]), _names_at(model, path[:-1]))
    if kind == "missing":
        return f"'{path[-1]}' is missing", ""
    if kind == "literal_error":
        valid = _literals_at(model, path)
        hint = nearest(str(detail["input"]), valid) if valid else f"valid: {context.get('expected', '')}"
        return f"{field}: {shown(detail['input'])} is not possible", _with_valid(hint, valid)
    if kind in _LIMITS:
        return f"{field}: {_LIMITS[kind].format(**context)} is needed{given}", ""
    if kind in {"too_short", "string_too_short"}:
        return f"{field}: {_NEEDED[kind]}", ""
    if kind in _NEEDED:
        return f"{field}: {_NEEDED[kind]}{given}", ""
    cause = context.get("error")
    if isinstance(cause, DataflowError):
        return cause.message, cause.hint
    text = str(cause) if cause is not None else detail["msg"]
    return (f"{field}: {text}" if field not in text else text), ""


def _with_valid(hint: str, valid: tuple[str, ...]) -> str:
    if not hint.startswith("did you mean"):
        return hint
    return f"{hint} valid: {', '.join(valid)}"


def _names_at(model: type[BaseModel], path: YamlPath) -> list[str]:
    """Names that the mapping at `path` may have."""
    names: list[str] = []
    for found in _types_at(model, path):
        if isinstance(found, type) and issubclass(found, BaseModel):
            names += [info.alias or name for name, info in found.model_fields.items() if name != "kind"]
    return names


def _literals_at(model: type[BaseModel], path: YamlPath) -> tuple[str, ...]:
    found = [t for t in _types_at(model, path) if get_origin(t) is Literal]
    return tuple(dict.fromkeys(str(value) for t in found for value in get_args(t)))


def _types_at(model: type[BaseModel], path: YamlPath) -> list[Any]:
    """The types that the value at `path` may have; unions give each of theirs."""
    found: list[Any] = [model]
    for step in path:
        found = [inner for outer in found for inner in _member(outer, step)]
    return found


def _member(outer: Any, step: str | int) -> list[Any]:
    if isinstance(outer, type) and issubclass(outer, BaseModel):
        for name, info in outer.model_fields.items():
            if step in {info.alias, name}:
                return _alternatives(info.annotation)
        return []
    origin, arguments = get_origin(outer), get_args(outer)
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
        return _alternatives(arguments[1])
    if origin in {list, tuple, set, frozenset} and arguments:
        return _alternatives(arguments[0])
    return []


def _alternatives(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in {Union, types.UnionType}:
        return [inner for member in get_args(annotation) for inner in _alternatives(member)]
    return [annotation]
