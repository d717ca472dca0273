"""Find and load user code: in isolation, and fresh after a change.

A reference is ``module.function`` or ``package.module.Class``. The module is looked for in the pipeline's folder, then
in the project's root (the nearest folder above with a `dataflow.yaml`, `pyproject.toml` or `.git`), then on `sys.path`.

Modules of the pipeline's folder are loaded under a private package whose name holds the folder and a digest of its
code: two pipelines may both have a `features.py`, and a changed file is loaded afresh while what was loaded before
lives on. Inside, ``import helpers`` and ``from .helpers import x`` find the neighbours in the same private package.
Modules from elsewhere are imported the ordinary way: once per process.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

from dataflow.core.annotations import find_module
from dataflow.core.errors import ContractError, NodeError, nearest

CALL_PATH: Final = ("with", "call")
_PREFIX: Final = "_dataflow_user_"
_ROOT_MARKS: Final = ("dataflow.yaml", "pyproject.toml", ".git")
_LOCK: Final = threading.RLock()


def project_root(folder: Path) -> Path:
    """The nearest folder at or above `folder` that holds a project; `folder` itself if there is none."""
    folder = folder.resolve()
    for candidate in (folder, *folder.parents):
        if any((candidate / mark).exists() for mark in _ROOT_MARKS):
            return candidate
    return folder


def user_files(folder: Path) -> list[Path]:
    """The .py files below `folder` in stable order, hidden folders, caches and virtual environments left out."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            f
            for f in folders
            if not f.startswith((".", "__pycache__", "node_modules"))
            and not Path(place, f, "pyvenv.cfg").exists()
        )
        found.extend(Path(place, f) for f in sorted(files) if f.endswith(".py"))
    return found


def code_digest(folder: Path, refs: Iterable[str]) -> str:
    """SHA-256 (hex) over the folder's .py files and over those files of `refs` that lie elsewhere."""
    folder = folder.resolve()
    digest = hashlib.sha256()
    named = {str(file.relative_to(folder)): file for file in user_files(folder)}
    for ref in refs:
        file, _, _ = find_callable(folder, ref)
        if not file.is_relative_to(folder):
            named[ref.rpartition(".")[0]] = file
    for name in sorted(named):
        content = named[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def find_callable(folder: Path, ref: str) -> tuple[Path, str, str]:
    """File, module and name that `ref` means. Raises ContractError naming the nearest module."""
    module, _, name = ref.rpartition(".")
    if not module or not all(part.isidentifier() for part in ref.split(".")):
        raise ContractError(
            f"'{ref}' names no function", path=CALL_PATH, hint="write module.function, e.g. features.build"
        )
    roots = (folder.resolve(), project_root(folder), *map(Path, sys.path))
    file = find_module(roots, module)
    if file is None:
        relative = [f.relative_to(folder.resolve()).with_suffix("") for f in user_files(folder.resolve())]
        modules = [".".join(p.parts[:-1] if p.name == "__init__" else p.parts) for p in relative]
        raise ContractError(
            f"'{ref}': no module '{module}' in {folder} or its project",
            path=CALL_PATH,
            hint=nearest(module, modules),
        )
    return file, module, name


def load_callable(folder: Path, ref: str) -> Callable[..., Any]:
    """Import the module of `ref` and return the function or class. Fresh when a .py file of the folder has changed.

    Raises ContractError for what does not exist and NodeError, with the cause chained, when importing fails.
    """
    folder = folder.resolve()
    file, module, name = find_callable(folder, ref)
    try:
        if file.is_relative_to(folder) and find_module((folder,), module) == file:
            loaded = _Package.of(folder).load(module)
        else:
            _reach(project_root(folder))
            loaded = importlib.import_module(module)
    except Exception as error:
        raise NodeError(
            f"'{ref}': importing {file} failed: {type(error).__name__}: {error}",
            hint="run it with python to see the whole traceback",
        ) from error
    target = getattr(loaded, name, None)
    if not callable(target):
        names = [n for n, value in vars(loaded).items() if callable(value) and not n.startswith("_")]
        raise ContractError(
            f"'{ref}': no function or class '{name}' in {file.name}",
            path=CALL_PATH,
            hint=nearest(name, names),
        )
    found: Callable[..., Any] = target
    return found


def _reach(root: Path) -> None:
    """Make the project's root importable. Last in the path: it hides nothing that is installed."""
    if str(root) not in sys.path:
        sys.path.append(str(root))


class _Loader(SourceFileLoader):
    """Loads one file of a private package.

    No byte-code cache: its key is the file's time in whole seconds, too coarse for a reload on save.
    """

    def __init__(self, fullname: str, path: str, package: _Package) -> None:
        super().__init__(fullname, path)
        self._package = package

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = compile(self.get_data(path), path, "exec", dont_inherit=True)
        return code

    def exec_module(self, module: ModuleType) -> None:
        # The import statement takes `__import__` from the module's own builtins: that is how neighbours are found
        # without a folder on sys.path, where the first pipeline with a `features.py` would win.
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._package.import_}
        super().exec_module(module)


class _Package:
    """The private package of one folder at one digest; its modules are in `sys.modules` like any other."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        root = project_root(folder)
        self._dotted = ".".join(folder.relative_to(root).parts) if folder.is_relative_to(root) else ""

    @staticmethod
    def of(folder: Path) -> _Package:
        place = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
        name = f"{_PREFIX}{place}_{code_digest(folder, ())[:12]}"
        package = _Package(folder, name)
        _reach(project_root(folder))
        with _LOCK:
            package.load("")
        return package

    def load(self, module: str) -> ModuleType:
        """The module `module` (dotted, relative to the folder), run on first use."""
        fullname = f"{self.name}.{module}" if module else self.name
        with _LOCK:
            if fullname in sys.modules:
                return sys.modules[fullname]
            if not module:
                return self._run(fullname, module)
            above, _, last = module.rpartition(".")
            parent = self.load(above)
            made = self._run(fullname, module)
            setattr(parent, last, made)
            return made

    def _run(self, fullname: str, module: str) -> ModuleType:
        file = self._file(module)
        if file is None:  # a folder without __init__.py
            made = ModuleType(fullname)
            made.__path__ = [str(self.folder.joinpath(*module.split(".")))]
            sys.modules[fullname] = made
            return made
        inner = [str(file.parent)] if file.name == "__init__.py" else None
        spec = importlib.util.spec_from_file_location(
            fullname, file, loader=_Loader(fullname, str(file), self), submodule_search_locations=inner
        )
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules[fullname] = made
        try:
            spec.loader.exec_module(made)
        except BaseException:
            del sys.modules[fullname]
            raise
        return made

    def import_(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002  (the names that `__import__` has)
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """`__import__` as the folder's modules see it: neighbours first."""
        module = self._own(name, globals or {}, level)
        if module is None:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        found = self.load(module)
        for item in fromlist or ():
            inner = f"{module}.{item}" if module else item
            if not hasattr(found, item) and self._is_own(inner):
                self.load(inner)
        if fromlist or level:
            return found
        return self.load(name.partition(".")[0]) if module == name else builtins.__import__(name)

    def _own(self, name: str, scope: Mapping[str, Any], level: int) -> str | None:
        """The module's name relative to the folder, None if it is not one of ours."""
        if level:
            package = str(scope.get("__package__") or self.name).split(".")
            base = package[: len(package) - level + 1]
            return ".".join([*base[1:], *([name] if name else [])]) if base else None
        if self._dotted and f"{name}.".startswith(f"{self._dotted}."):
            inner = name[len(self._dotted) + 1 :]
            if not inner or self._is_own(inner):
                return inner
        return name if self._is_own(name) else None

    def _file(self, module: str) -> Path | None:
        if module:
            return find_module((self.folder,), module)
        file = self.folder / "__init__.py"
        return file if file.is_file() else None

    def _is_own(self, module: str) -> bool:
        folder = self.folder.joinpath(*module.split("."))
        return find_module((self.folder,), module) is not None or (
            folder.is_dir() and any(folder.glob("*.py"))
        )
