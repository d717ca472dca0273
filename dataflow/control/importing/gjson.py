"""Conditions of KServe's router, written in GJSON's path syntax, as expressions over the fields of a record.

The router asks whether a path *exists* in the JSON of a request or response. What a record of ours is, is one row of
it: the object itself (``[@this].#(a==1)``), one of its `instances` or `predictions`, or named tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dataflow.core.errors import SpecError
from dataflow.expressions.grammar import KEYWORDS

_QUERY: Final = re.compile(
    r"#\((?P<path>[\w.\-]*?)\s*(?:(?P<operator>==|!=|<=|>=|<|>|!%|%)\s*(?P<value>.*))?\)#?"
)
_OPERATORS: Final = frozenset({"==", "!=", "<=", ">=", "<", ">"})
_ROWS: Final = frozenset({"@this", "[@this]", "instances", "predictions"})
_TENSORS: Final = frozenset({"inputs", "outputs"})


@dataclass(frozen=True)
class Condition:
    """An expression, and the type that a field must have for GJSON's comparison to mean the same; "" if any."""

    expression: str
    field: str
    type: str


def condition_of(path: str, only: Callable[[], str]) -> Condition:
    """`path` as a condition. `only` gives the one field of the record, for paths that name none.

    Raises SpecError where the path is none that we have words for.
    """
    steps = _steps(path.strip())
    if len(steps) > 1 and steps[0] in _TENSORS:
        return _tensor_condition(path, steps)
    while steps and (steps[0] in _ROWS or steps[0].isdigit()):
        steps = steps[1:]
    if not steps:
        raise SpecError(f"'{path}' is true for every record", hint="leave the condition out")
    *names, last = steps
    query = _QUERY.fullmatch(last)
    if query is None:
        return _compared(path, steps, "", "", only)
    inner = [step for step in query["path"].split(".") if step]
    # `predictions.0` below a query is the row itself again
    while inner and (inner[0] in _ROWS or inner[0].isdigit()) and not names:
        inner = inner[1:]
    return _compared(path, [*names, *inner], query["operator"] or "", (query["value"] or "").strip(), only)


def _tensor_condition(path: str, steps: list[str]) -> Condition:
    """``inputs.#(name=="x").data.#(>3)``: the named tensor's value in this row."""
    query = _QUERY.fullmatch(steps[1])
    if (
        query is None
        or query["path"] != "name"
        or query["operator"] != "=="
        or steps[2:3] not in (["data"], [])
    ):
        raise _unknown(path)
    name = _constant(query["value"] or "").strip("'")
    rest = steps[3:]
    if not rest or rest == ["0"]:
        return _compared(path, [name], "", "", lambda: name)
    value = _QUERY.fullmatch(rest[0])
    if value is None or value["path"] or len(rest) > 1 or not value["operator"]:
        raise _unknown(path)
    return _compared(path, [name], value["operator"], (value["value"] or "").strip(), lambda: name)


def _compared(path: str, steps: list[str], operator: str, value: str, only: Callable[[], str]) -> Condition:
    if any(not re.fullmatch(r"[A-Za-z_]\w*|\d+", step, re.ASCII) for step in steps) or "#" in steps:
        raise _unknown(path)
    names = steps or [only()]
    if names[0].isdigit():
        names = [only(), *names]
    shown = _quoted(names[0]) + "".join(f"[{s}]" if s.isdigit() else f".{_quoted(s)}" for s in names[1:])
    plain = len(names) == 1
    if not operator:
        return Condition(f"{shown} is not null", names[0], "")
    if operator in {"%", "!%"}:
        pattern = _constant(value, force_text=True)[1:-1]
        like = re.sub(r"([%_])", r"\\\1", pattern).replace("*", "%").replace("?", "_")
        word = "like" if operator == "%" else "not like"
        return Condition(f"{shown} {word} '{like}'", names[0], "string" if plain else "")
    assert operator in _OPERATORS
    constant = _constant(value)
    kind = "string" if constant[0] == "'" else "bool" if constant in {"true", "false"} else "float64"
    if constant == "null":
        raise _unknown(path)
    return Condition(f"{shown} {operator} {constant}", names[0], kind if plain else "")


def _constant(text: str, *, force_text: bool = False) -> str:
    """A GJSON constant as ours: a JSON text, number or bool; what is none of them is a text without quotes."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = re.sub(r"\\(.)", r"\1", text[1:-1])
    elif not force_text and (text in {"true", "false", "null"} or re.fullmatch(r"-?\d+(\.\d+)?", text)):
        return text
    return "'" + text.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return f"`{name}`" if name in KEYWORDS else name


def _steps(path: str) -> list[str]:
    """The path's steps: at dots that are in no parentheses or quotes."""
    steps, start, depth, quoted = [], 0, 0, False
    for index, character in enumerate(path):
        if character == '"' and path[index - 1 : index] != "\\":
            quoted = not quoted
        elif not quoted:
            depth += (character == "(") - (character == ")")
            if character == "." and depth == 0:
                steps.append(path[start:index])
                start = index + 1
    return [*steps, path[start:]]


def _unknown(path: str) -> SpecError:
    return SpecError(f"the condition '{path}' has no counterpart", hint="write an expression over the fields")
