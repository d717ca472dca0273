"""A project folder as declarations: every document read, checked by itself, and every fault placed.

Read are `dataflow.yaml`, `topics/`, `models/` and `pipelines/` (all depths), and YAML files in the project folder
itself that hold a document with a `kind:`. A document with faults is kept as far as it makes sense, so that lint can
look at the rest of it: what was left out is named in `Declared.left_out`, what is wholly unusable in `Project.broken`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import ValidationError

from dataflow.core.errors import SpecError, nearest
from dataflow.spec.documents import KINDS, ModelSpec, PipelineSpec, ProjectSpec
from dataflow.spec.messages import faults_of, is_secret, shown
from dataflow.spec.problems import Fault, Problem, YamlPath
from dataflow.spec.source import Source, read_yaml, value_at
from dataflow.spec.topics import Document, TopicSpec

SETTINGS_FILE: Final = "dataflow.yaml"
FOLDERS: Final = ("topics", "models", "pipelines")
_HAS_KIND: Final = re.compile(r"^[\"']?kind[\"']?\s*:", re.MULTILINE)
_MAX_REPAIRS: Final = 8

Spec_co = TypeVar("Spec_co", bound=Document, covariant=True)


@dataclass(frozen=True)
class Declared(Generic[Spec_co]):
    """A document and where it stands. `folder` is where its relative files are; `file` is relative to the project.

    left_out   names of nodes that have faults of their own: only partly in `spec`, or not at all
    """

    spec: Spec_co
    file: str
    folder: Path
    source: Source = field(repr=False)
    left_out: frozenset[str] = frozenset()

    def place(self, path: YamlPath, *, key: bool = False) -> tuple[int, int]:
        """Line and column of the value at `path` (or of its key); of the nearest above it, if it is not there."""
        found = self.source.place(path, key=key)
        return found.line, found.column

    def problem(self, fault: Fault) -> Problem:
        """A fault in this document with its place."""
        return placed(fault, self.source, self.file)


@dataclass(frozen=True)
class Project:
    """All declarations of one folder. Not to be run while `problems` holds an error."""

    folder: Path
    settings: ProjectSpec
    topics: Mapping[str, Declared[TopicSpec]] = field(default_factory=dict)
    models: Mapping[str, Declared[ModelSpec]] = field(default_factory=dict)
    pipelines: Mapping[str, Declared[PipelineSpec]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.settings.name

    def pipeline(self, name: str) -> Declared[PipelineSpec]:
        """Raises SpecError with the nearest name."""
        found = self.pipelines.get(name)
        if found is None:
            raise SpecError(f"no pipeline '{name}'", hint=nearest(name, self.pipelines))
        return found


def load_project(folder: Path, *, environ: Mapping[str, str]) -> Project:
    """Read everything declared in `folder`. Raises SpecError only when there is no such folder."""
    if not folder.is_dir():
        raise SpecError(f"no folder '{folder}'", hint="dataflow new NAME makes a project")
    loading = _Loading(folder)
    for path in _files(folder):
        loading.file(path, environ)
    return loading.project()


def _files(folder: Path) -> Iterator[Path]:
    """YAML files in a stable order: settings, the folder's own, then the rooms'."""
    yield from (path for path in [folder / SETTINGS_FILE] if path.is_file())
    yield from sorted(p for p in folder.iterdir() if _is_yaml(p) and p.name != SETTINGS_FILE)
    for room in FOLDERS:
        found = (folder / room).rglob("*")
        yield from sorted(p for p in found if _is_yaml(p) and not _hidden(p.relative_to(folder)))


def _is_yaml(path: Path) -> bool:
    return path.suffix in {".yaml", ".yml"} and path.is_file()


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


class _Loading:
    """What is found so far. One use, inside `load_project`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, dict[str, Declared[Any]]] = {kind: {} for kind in KINDS}
        self._broken: set[str] = set()
        self._problems: list[Problem] = []

    def file(self, path: Path, environ: Mapping[str, str]) -> None:
        name = path.relative_to(self._folder).as_posix()
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            self._problems.append(Problem(name, 1, 1, f"cannot read the file: {reason}"))
            return
        in_root = path.parent == self._folder and path.name != SETTINGS_FILE
        if in_root and not _HAS_KIND.search(text):
            return
        sources, problems = read_yaml(text, name, environ)
        self._problems += problems
        for source in sources:
            foreign = isinstance(source.value, dict) and (
                "apiVersion" in source.value or "kind" not in source.value
            )
            if not (in_root and foreign):
                self._document(source, name, path.parent)

    def project(self) -> Project:
        settings = next(iter(self._found["Project"].values()), None)
        spec: ProjectSpec = settings.spec if settings is not None else ProjectSpec()
        if not spec.name:
            spec = spec.model_copy(update={"name": self._folder.resolve().name})
        return Project(
            folder=self._folder,
            settings=spec,
            topics=self._found["Topic"],
            models=self._found["Model"],
            pipelines=self._found["Pipeline"],
            problems=sorted(set(self._problems)),
            broken=frozenset(self._broken),
        )

    def _document(self, source: Source, file: str, folder: Path) -> None:
        kind = self._kind_of(source, file)
        if kind is None:
            return
        declared, faults, invalid = declare(KINDS[kind], source, file, folder)
        self._problems += [placed(fault, source, file) for fault in faults]
        name = source.value.get("name")
        if declared is None:
            self._broken |= {name} if isinstance(name, str) else set()
            return
        known = self._found[kind]
        key = "" if kind == "Project" else declared.spec.name  # type: ignore[attr-defined]  # all kinds have one
        if invalid and kind != "Pipeline":
            self._broken.add(key)
        if key in known:
            what = "the project's settings are" if kind == "Project" else f"{kind.lower()} '{key}' is"
            first = known[key]
            place = f"first at {first.file}:{first.place(('name',))[0]}"
            self._problems.append(declared.problem(Fault(("name",), f"{what} declared twice", place)))
        elif not (invalid and kind in {"Topic", "Model"}):
            known[key] = declared

    def _kind_of(self, source: Source, file: str) -> str | None:
        valid = [kind for kind in KINDS if kind != "Project"]
        if not isinstance(source.value, dict):
            problem = Fault((), "a declaration is a mapping", f"start with kind: {', '.join(valid)}")
        elif "kind" in source.value:
            kind = source.value["kind"]
            if isinstance(kind, str) and kind in KINDS:
                return kind
            problem = Fault(("kind",), f"unknown kind {shown(kind)}", nearest(str(kind), valid))
        elif file == SETTINGS_FILE:
            return "Project"
        else:
            problem = Fault((), "'kind' is missing", f"valid: {', '.join(valid)}")
        self._problems.append(placed(problem, source, file))
        return None


Spec = TypeVar("Spec", bound=Document)


def declare(
    model: type[Spec], source: Source, file: str, folder: Path
) -> tuple[Declared[Spec] | None, list[Fault], bool]:
    """One document under its model: the declaration if one can be made, its faults, and whether parts were left out.

    Parts with faults are taken out and the rest is checked again: a pipeline with one bad node is still linted.
    """
    value: Any = source.value
    faults: list[Fault] = []
    gone: set[YamlPath] = set()
    for _ in range(_MAX_REPAIRS):
        try:
            spec = model.model_validate(value)
        except ValidationError as error:
            found = list(faults_of(error, model, value))
            # A name that is missing because we took it out is no fault of the user's.
            faults += [f for f in found if not any(path[: len(f.path)] == f.path for path in gone)]
            value = copy.deepcopy(value)
            gone |= {path for fault in found if (path := _take_out(value, fault.path, gone)) is not None}
            if () in gone:
                break
        else:
            left_out = frozenset(str(path[1]) for path in gone if len(path) > 1 and path[0] == "nodes")
            whole = not faults
            faults += spec.faults()
            return Declared(spec, file, folder, source, left_out), faults, not whole
    return None, faults, True


def _take_out(value: Any, path: YamlPath, gone: set[YamlPath]) -> YamlPath | None:
    """Remove what is at `path`, or what it is in where that cannot go alone or did so before; give what went."""
    if path[:1] == ("nodes",) and len(path) > 2:
        path = path[:2] if path[2] == "use" else path[:3]  # without a kind nothing can be said about a node
    if path[:1] == ("tests",) and len(path) > 1 and isinstance(path[1], int):
        value["tests"][path[1]] = {"name": "", "given": {}, "expect": {}}  # the others keep their places
        return None
    while path and (path in gone or isinstance(path[-1], int)):
        path = path[:-1]
    parent = value_at(value, path[:-1])
    if path and isinstance(parent, dict):
        parent.pop(path[-1], None)
    return path


def placed(fault: Fault, source: Source, file: str) -> Problem:
    """A fault with its place: inside the value's text where `text_column` is known and the text stands in one line."""
    place = source.place(fault.path, key=fault.at_key)
    column = place.column
    if fault.text_column and place.text_column:
        column = place.text_column + fault.text_column - 1
    value = None if is_secret(fault.path) else value_at(source.value, fault.path)
    text = "" if value is None or isinstance(value, dict | list) else str(value)
    return Problem(file, place.line, column, fault.message, text, fault.hint, fault.severity)
