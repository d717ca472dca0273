"""Node kinds by name, found by scanning packages: ours, other distributions' entry points, the project's `nodes/`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Final

import dataflow
from dataflow.core.errors import SpecError, nearest
from dataflow.sdk import NodeKind
from dataflow.sdk.kinds import KIND_ATTRIBUTE

ENTRY_POINT_GROUP: Final = "dataflow.nodes"


@dataclass(frozen=True)
class Registry:
    """Kinds by name, and the file that each comes from. An object, never a global: tests make their own."""

    by_name: Mapping[str, NodeKind] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(*targets: object) -> Registry:
        """The kinds attached to functions and classes, e.g. in a test."""
        return _collect((kind, "") for target in targets if (kind := _kind_of(target)) is not None)

    @staticmethod
    def scan(packages: Iterable[str | ModuleType]) -> Registry:
        """The kinds in packages (each module whose name does not start with ``_``) and single modules.

        Raises SpecError for modules that cannot be imported (all of them, with file and line) and for a name that
        two kinds have (with both files).
        """
        modules: list[ModuleType] = []
        failed: list[str] = []
        for package in packages:
            _load(package, modules, failed)
        if failed:
            raise SpecError("\n".join(failed))
        return _collect(
            (kind, module.__file__ or module.__name__) for module in modules for kind in _kinds_in(module)
        )

    @staticmethod
    def default(project_folder: Path | None = None) -> Registry:
        """First-party kinds, those of installed distributions, and those in the project's own `nodes/`."""
        own = _first_party()
        packages: list[str | ModuleType] = [own, *_plugins(entry_points(group=ENTRY_POINT_GROUP))]
        if project_folder is not None:
            folder = (project_folder / "nodes").resolve()
            ours = {Path(path).resolve() for path in own.__path__}
            if folder.is_dir() and folder not in ours:
                packages.append(_package_at(folder))
        return Registry.scan(packages)

    def get(self, name: str) -> NodeKind:
        """Raises SpecError with the nearest name."""
        found = self.by_name.get(name)
        if found is None:
            raise SpecError(f"unknown node kind '{name}'", hint=nearest(name, self.by_name))
        return found

    def kinds(self) -> tuple[NodeKind, ...]:
        """All kinds by name."""
        return tuple(self.by_name[name] for name in sorted(self.by_name))


def _kind_of(target: object) -> NodeKind | None:
    kind = getattr(target, KIND_ATTRIBUTE, None)
    return kind if isinstance(kind, NodeKind) else None


def _kinds_in(module: ModuleType) -> list[NodeKind]:
    """Kinds defined in `module` itself; what it imports from a sibling belongs to the sibling."""
    kinds: dict[str, NodeKind] = {}
    for value in vars(module).values():
        kind = _kind_of(value)
        if kind is not None and getattr(kind.target, "__module__", "") == module.__name__:
            kinds.setdefault(kind.name, kind)
    return list(kinds.values())


def _collect(found: Iterable[tuple[NodeKind, str]]) -> Registry:
    kinds: dict[str, NodeKind] = {}
    files: dict[str, str] = {}
    for kind, file in found:
        if kind.name in kinds and kinds[kind.name].target is not kind.target:
            raise SpecError(
                f"node kind '{kind.name}' is there twice: in {files[kind.name]} and in {file}",
                hint="rename one of the two",
            )
        kinds[kind.name] = kind
        files[kind.name] = file
    return Registry(kinds, files)


def _load(package: str | ModuleType, modules: list[ModuleType], failed: list[str]) -> None:
    """Import a package and its public modules; what cannot be imported is one line in `failed`."""
    root = _import(package, failed) if isinstance(package, str) else package
    if root is None:
        return
    modules.append(root)
    names = (info.name for info in pkgutil.iter_modules(getattr(root, "__path__", ())))
    for name in sorted(names):
        module = None if name.startswith("_") else _import(f"{root.__name__}.{name}", failed)
        if module is not None:
            modules.append(module)


def _import(name: str, failed: list[str]) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  (user code: anything may come)
        failed.append(_import_failure(name, error))
        return None


def _import_failure(name: str, error: Exception) -> str:
    """``file:line: cannot load nodes: what happened``, the line being the last one in the file itself."""
    spec = importlib.util.find_spec(name)
    file = spec.origin if spec is not None and spec.origin else name
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno or 1}: cannot load nodes: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{file}:{lines[-1] if lines else 1}: cannot load nodes: {type(error).__name__}: {error}"


def _first_party() -> ModuleType:
    """`dataflow.nodes` in an installed wheel, the folder `nodes/` beside the package in our own tree."""
    if importlib.util.find_spec("dataflow.nodes") is not None:
        return importlib.import_module("dataflow.nodes")
    folder = Path(dataflow.__file__).resolve().parent.parent / "nodes"
    try:
        module = importlib.import_module("nodes")
    except ImportError:
        module = None
    # A user's own package `nodes` may be first on the path: then ours is loaded from where it is.
    if module is not None and folder in {Path(path).resolve() for path in module.__path__}:
        return module
    if not folder.is_dir():
        raise SpecError(
            f"the node kinds that come with dataflow are not at {folder}", hint="install it again"
        )
    return _package_at(folder)


def _plugins(points: Iterable[EntryPoint]) -> Sequence[ModuleType]:
    found: list[ModuleType] = []
    for point in sorted(points, key=lambda p: (p.name, p.value)):
        try:
            loaded = point.load()
        except Exception as error:
            owner = point.dist.name if point.dist is not None else point.name
            raise SpecError(
                f"node kinds of '{owner}' ({point.value}) cannot be loaded: {type(error).__name__}: {error}",
                hint=f"upgrade or remove '{owner}'",
            ) from error
        if not isinstance(loaded, ModuleType):
            raise SpecError(
                f"entry point '{point.name}' of group {ENTRY_POINT_GROUP} names no module or package"
            )
        found.append(loaded)
    return found


def _package_at(folder: Path) -> ModuleType:
    """A package of a private name whose modules are the files of `folder`.

    The name holds a digest of the files: what is edited is loaded anew, what is not stays the same module, and no
    user's `nodes` ever meets ours.
    """
    digest = hashlib.sha256(str(folder).encode())
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    name = f"_dataflow_nodes_{digest.hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    importlib.invalidate_caches()
    start = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, start, submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None or not start.is_file():
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
        return package
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    try:
        spec.loader.exec_module(package)
    except Exception as error:
        failure = _import_failure(name, error)
        del sys.modules[name]
        raise SpecError(failure) from error
    return package
