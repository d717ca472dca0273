"""YAML 1.2 with the place of every key and value: text in, plain values and places out.

Values follow YAML 1.2's core schema (so `on`, `yes` and `2013-01-01` are text), keys are always text, aliases and
``<<`` work, ``${VAR}`` and ``${VAR:default}`` are replaced in values before plain ones get their type (``$${`` is a
plain ``${``). Bounded: file size, depth, and the number of values after aliases are expanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from dataflow.core.errors import nearest
from dataflow.core.limits import MAX_YAML_BYTES, MAX_YAML_DEPTH, MAX_YAML_VALUES
from dataflow.spec.problems import Problem, YamlPath

_TAG: Final = "tag:yaml.org,2002:"
_VARIABLE: Final = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}|\$\{")
_INTEGER: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE: Final = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_WORDS: Final[Mapping[str, bool | float | None]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    ".nan": float("nan"), ".NaN": float("nan"), ".NAN": float("nan"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column from 1. `text_column` is where the value's own text starts, quotes not counted.

    It is 0 where the text does not stand in one line as it is (block scalars, escapes, replaced variables).
    """

    line: int
    column: int
    text_column: int = 0


@dataclass(frozen=True)
class Source:
    """One document: its value (dicts, lists, scalars) and where each key and value stands."""

    value: Any
    values: Mapping[YamlPath, Place]
    keys: Mapping[YamlPath, Place]

    def place(self, path: YamlPath, *, key: bool = False) -> Place:
        """Where the value at `path` is (or its key); of a path that is not there, the nearest above it."""
        for length in range(len(path), -1, -1):
            places = self.keys if key and path[:length] in self.keys else self.values
            if path[:length] in places:
                return places[path[:length]]
        return Place(1, 1)


def read_yaml(text: str, file: str, environ: Mapping[str, str]) -> tuple[list[Source], list[Problem]]:
    """All documents of one file. What is before a syntax error is still given; empty documents are left out."""
    if len(text.encode()) > MAX_YAML_BYTES:
        return [], [Problem(file, 1, 1, f"the file is larger than {MAX_YAML_BYTES} bytes")]
    sources: list[Source] = []
    problems: list[Problem] = []
    lines = text.splitlines()
    left = MAX_YAML_VALUES
    yaml = YAML(typ="safe", pure=True)
    try:
        for node in yaml.compose_all(text):
            reader = _Reader(file, lines, environ, left)
            value = reader.read(node, ())
            problems += reader.problems
            left = reader.left
            if value is not None:
                sources.append(Source(value, reader.values, reader.keys))
    except MarkedYAMLError as error:
        problems.append(_syntax(file, error))
    except YAMLError as error:
        problems.append(Problem(file, 1, 1, f"this is no YAML: {str(error).splitlines()[0]}"))
    except RecursionError:
        problems.append(Problem(file, 1, 1, f"nested deeper than {MAX_YAML_DEPTH}"))
    except _TooMuchError as error:
        problems.append(Problem(file, error.line, error.column, error.message))
    return sources, problems


def _syntax(file: str, error: MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    detail = (error.problem or error.context or "").strip()
    began = error.context_mark
    hint = ""
    if began is not None and mark is not None and error.context and began.line != mark.line:
        hint = f"{error.context} that begins in line {began.line + 1}"
    return Problem(file, line, column, f"this is no YAML: {detail}", hint=hint)


class _TooMuchError(Exception):
    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.message = message
        self.line = place.line
        self.column = place.column


@dataclass
class _Reader:
    """Reads one document; `left` is how many values the rest of the file may still have."""

    file: str
    lines: list[str]
    environ: Mapping[str, str]
    left: int
    values: dict[YamlPath, Place] = field(default_factory=dict)
    keys: dict[YamlPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def read(self, node: Node, path: YamlPath) -> Any:
        place = self.values[path] = self._place(node)
        self.left -= 1
        if self.left < 0:
            raise _TooMuchError(f"more than {MAX_YAML_VALUES} values once aliases are expanded", place)
        if len(path) > MAX_YAML_DEPTH:
            raise _TooMuchError(f"nested deeper than {MAX_YAML_DEPTH}", place)
        if isinstance(node, MappingNode):
            return {name: self.read(value, (*path, name)) for name, value in self._pairs(node, path).items()}
        if isinstance(node, SequenceNode):
            return [self.read(value, (*path, index)) for index, value in enumerate(node.value)]
        return self._scalar(node, path, place)

    def _pairs(self, node: MappingNode, path: YamlPath) -> dict[str, Node]:
        """Keys and values in order; those merged by ``<<`` first, so that the mapping's own win."""
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._problem(self._place(key), "a key must be plain text")
            elif key.value == "<<" and key.style is None:
                merged |= self._merged(value, path)
            elif key.value in own:
                first = self.keys[(*path, key.value)]
                self._problem(
                    self._place(key),
                    f"'{key.value}' is declared twice",
                    key.value,
                    f"first in line {first.line}",
                )
            else:
                own[key.value] = value
                self.keys[(*path, key.value)] = self._place(key)
        return merged | own

    def _merged(self, node: Node, path: YamlPath) -> dict[str, Node]:
        if len(path) > MAX_YAML_DEPTH:
            raise _TooMuchError(f"nested deeper than {MAX_YAML_DEPTH}", self._place(node))
        parts = node.value if isinstance(node, SequenceNode) else [node]
        found: dict[str, Node] = {}
        for part in reversed(parts):  # of several, the first wins
            if not isinstance(part, MappingNode):
                self._problem(self._place(part), "'<<' merges mappings only")
                continue
            for key, value in part.value:
                if isinstance(key, ScalarNode) and key.value == "<<":
                    found = self._merged(value, (*path, "<<")) | found
                elif isinstance(key, ScalarNode):
                    found[key.value] = value
                    self.keys.setdefault((*path, key.value), self._place(key))
        return found

    def _scalar(self, node: Node, path: YamlPath, place: Place) -> Any:
        text: str = node.value
        tag = str(node.tag)
        plain = getattr(node, "style", None) is None
        if not tag.startswith(_TAG) or tag in {_TAG + "binary", _TAG + "set", _TAG + "omap"}:
            self._problem(place, f"the tag '{tag.removeprefix(_TAG)}' is not known", hint="leave it out")
            return None
        replaced = self._replaced(text, place)
        if replaced is None:
            return None
        if replaced != text:
            self.values[path] = Place(place.line, place.column)
        if not plain or (tag == _TAG + "str" and typed(text) is not text):
            return replaced
        try:
            return typed(replaced)
        except ValueError:  # Python refuses to read numbers of thousands of digits
            self._problem(place, "the number is too long")
            return None

    def _replaced(self, text: str, place: Place) -> str | None:
        """`text` with variables replaced; None (and a problem) where one is not set."""
        if "${" not in text:
            return text
        parts: list[str] = []
        end = 0
        for match in _VARIABLE.finditer(text):
            parts.append(text[end : match.start()])
            end = match.end()
            name, default = match[1], match[2]
            if match[0] == "$${":
                parts.append("${")
            elif name is None:
                self._problem(
                    place, f"'{text[match.start() : match.start() + 20]}' is no variable", text, _FORM
                )
                return None
            elif name in self.environ or default is not None:
                parts.append(self.environ.get(name, default or ""))
            else:
                hint = nearest(name, self.environ)
                near = (
                    hint if hint.startswith("did you mean") else f"set it, or give a default: ${{{name}:...}}"
                )
                self._problem(place, f"the environment has no variable '{name}'", text, near)
                return None
        return "".join(parts) + text[end:]

    def _place(self, node: Node) -> Place:
        mark = node.start_mark
        text_column = 0
        if isinstance(node, ScalarNode) and mark.line < len(self.lines):
            quote = 1 if node.style in {"'", '"'} else 0
            start = mark.column + quote
            if node.value and self.lines[mark.line][start : start + len(node.value)] == node.value:
                text_column = start + 1
        return Place(mark.line + 1, mark.column + 1, text_column)

    def _problem(self, place: Place, message: str, value: str = "", hint: str = "") -> None:
        self.problems.append(Problem(self.file, place.line, place.column, message, value, hint))


_FORM: Final = "${NAME}, ${NAME:default}, or $${ for a plain ${"


def typed(text: str) -> Any:
    """The value of a plain scalar under YAML 1.2's core schema. Raises ValueError for a number beyond reading."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    infinite = _INFINITE.fullmatch(text)
    if infinite:
        return float(infinite[1] + "inf")
    return text


def step_into(value: Any, step: str | int) -> tuple[Any, bool]:
    """The member `step` of a plain value and whether it is there."""
    if isinstance(value, dict):
        return (value[step], True) if step in value else (None, False)
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return value[step], True
    return None, False


def value_at(value: Any, path: YamlPath) -> Any:
    """The part of a plain value at `path`, None if it is not there."""
    for step in path:
        value, found = step_into(value, step)
        if not found:
            return None
    return value


def walk(value: Any, path: YamlPath = ()) -> Iterator[tuple[YamlPath, Any]]:
    """Every scalar of a value with its path."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield from walk(member, (*path, name))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from walk(member, (*path, index))
    else:
        yield path, value
