"""Foreign declarations as parts that know which of their keys were read: what nobody read is reported, never lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from dataflow.core.errors import SpecError
from dataflow.spec.problems import YamlPath
from dataflow.spec.source import Source, read_yaml

Sort = Literal["fill in", "not converted", "differs"]
FILL_IN: Final[Sort] = "fill in"
NOT_CONVERTED: Final[Sort] = "not converted"
DIFFERS: Final[Sort] = "differs"


@dataclass(frozen=True, order=True)
class Note:
    """One thing to know of a conversion: where it is said, what it is, and what to do instead.

    ``fill in``        the file does not tell what we need: `dataflow lint` fails until it is written
    ``not converted``  our declarations have no word for it: it is left out
    ``differs``        it is converted, and behaves otherwise here
    """

    file: str
    line: int
    sort: Sort
    what: str
    instead: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.sort}: {self.what}" + (
            f"; {self.instead}" if self.instead else ""
        )


@dataclass
class Part:
    """A mapping of a foreign file, read key by key. `lists` says that every value is a list, as in the text format."""

    source: Source
    file: str
    path: YamlPath
    notes: list[Note]
    _read: set[str] = field(default_factory=set)
    _opened: dict[YamlPath, Part] = field(default_factory=dict)

    @property
    def values(self) -> Mapping[str, Any]:
        value = self.source.value
        for step in self.path:
            value = value[step]
        return value if isinstance(value, dict) else {}

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def line(self, *path: str | int) -> int:
        """The line of the value at `path` below this part; of its key, if it is a mapping or list."""
        return self.source.place((*self.path, *path), key=True).line

    def note(self, sort: Sort, what: str, instead: str = "", at: tuple[str | int, ...] = ()) -> None:
        self.notes.append(Note(self.file, self.line(*at), sort, what, instead))

    def one(self, key: str) -> Any:
        """The value of a key, None if it is not there; of a list, the last (as the text format has it)."""
        self._read.add(key)
        value = self.values.get(key)
        return (value[-1] if value else None) if isinstance(value, list) else value

    def many(self, key: str) -> list[Any]:
        self._read.add(key)
        value = self.values.get(key)
        return value if isinstance(value, list) else [] if value is None else [value]

    def text(self, key: str) -> str:
        """The text of a key, "" if it is not there. Raises SpecError where it is no text."""
        return self._typed(key, self.one(key), str, "a text") or ""

    def number(self, key: str) -> int | None:
        found: int | None = self._typed(key, self.one(key), int, "a whole number")
        return found

    def texts(self, key: str) -> list[str]:
        return [self._item(key, value, str, "a text") for value in self.many(key)]

    def numbers(self, key: str) -> list[int]:
        return [self._item(key, value, int, "a whole number") for value in self.many(key)]

    def part(self, key: str) -> Part:
        """The mapping under a key, an empty one if it is not there."""
        value = self.values.get(key)
        if isinstance(value, list) and value:
            return self.parts(key)[-1]
        self._typed(key, value, dict, "a mapping")
        return self._open(key)

    def parts(self, key: str) -> list[Part]:
        """The mappings in the list under a key."""
        self._read.add(key)
        found = []
        value = self.values.get(key)
        for index, item in enumerate(value if isinstance(value, list) else []):
            self._item(key, item, dict, "a mapping")
            found.append(self._open(key, index))
        if isinstance(value, dict):
            return [self._open(key)]
        return found

    def named(self, key: str) -> dict[str, str]:
        """A mapping of texts: plain, or as the text format's entries ``{key: ... value: ...}``."""
        value = self.values.get(key)
        if isinstance(value, list):
            entries = self.parts(key)
            return {entry.text("key"): entry.text("value") for entry in entries}
        inner = self.part(key)
        return {name: inner.text(name) for name in inner.values}

    def skip(self, *keys: str) -> None:
        """Take these keys as read: they say nothing that could be lost."""
        self._read.update(keys)

    @property
    def seen(self) -> set[str]:
        """The keys that were read."""
        return set(self._read)

    def unread(self) -> Iterator[tuple[Part, str]]:
        """Every key below this part that nobody asked for."""
        for key in self.values:
            if key not in self._read:
                yield self, key
        for part in self._opened.values():
            yield from part.unread()

    def report_unread(self, instead: Mapping[str, str]) -> None:
        """A note for every key that nobody asked for; `instead` says by key what to do."""
        for part, key in list(self.unread()):
            shown = ".".join(str(step) for step in (*part.path, key) if not isinstance(step, int))
            part.note(
                NOT_CONVERTED, shown, instead.get(key, "it has no counterpart: it is left out"), at=(key,)
            )

    def _open(self, *steps: str | int) -> Part:
        self._read.add(str(steps[0]))
        path = (*self.path, *steps)
        if path not in self._opened:
            there = _at(self.values, steps) is not None
            self._opened[path] = Part(
                self.source if there else _NOTHING, self.file, path if there else (), self.notes
            )
        return self._opened[path]

    def _item(self, key: str, value: Any, kind: type, what: str) -> Any:
        """As `_typed`, for a member of a list, which cannot be empty."""
        if value is None:
            raise SpecError(f"{self.file}:{self.line(key)}: {key}: {what} is needed, not null")
        return self._typed(key, value, kind, what)

    def _typed(self, key: str, value: Any, kind: type, what: str) -> Any:
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            shown = ".".join(str(step) for step in (*self.path, key))
            raise SpecError(f"{self.file}:{self.line(key)}: {shown}: {what} is needed, not {value!r}")
        return value


_NOTHING: Final = Source({}, {}, {})


def _at(value: Any, steps: Iterable[str | int]) -> Any:
    for step in steps:
        value = value[step] if isinstance(step, int) else value.get(step)
    return value


@dataclass(frozen=True)
class Manifest:
    """One Kubernetes object of a file."""

    kind: str
    group: str
    name: str
    part: Part


def read_manifests(files: Iterable[Path], notes: list[Note]) -> list[Manifest]:
    """The objects in YAML (or JSON) files, lists of objects included. Raises SpecError for what is no YAML."""
    found = []
    for file in files:
        sources, problems = read_yaml(_protected(_text_of(file)), str(file), {})
        if problems:
            raise SpecError("\n".join(map(str, problems)))
        for source in sources:
            part = Part(source, str(file), (), notes)
            if not isinstance(source.value, dict):
                raise SpecError(f"{file}:1: this is no Kubernetes object")
            items = part.parts("items") if "items" in part else [part]
            part.skip("apiVersion", "kind", "metadata")
            found += [_manifest(item) for item in items]
    return found


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise SpecError(f"cannot read {file}: {error}") from error


def _protected(text: str) -> str:
    """`text` with ``${`` as our own YAML writes it when no variable is meant."""
    return text.replace("${", "$${")


def _manifest(part: Part) -> Manifest:
    metadata = part.part("metadata")
    # Labels and annotations are for tools of the cluster, and a status is written by it.
    metadata.skip("labels", "annotations", "uid", "resourceVersion", "generation", "creationTimestamp")
    part.skip("status")
    name = metadata.text("name") or metadata.text("generateName").rstrip("-")
    if not name:
        raise SpecError(f"{part.file}:{part.line()}: metadata.name is missing")
    return Manifest(part.text("kind"), part.text("apiVersion").partition("/")[0], name, part)
