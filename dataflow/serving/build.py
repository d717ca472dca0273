"""Build a model's artifact on first use, and again when what it is made from has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from dataflow.core.errors import ModelError

DEFAULT_INPUTS: Final = ("*.py",)
_SHOWN_LINES: Final = 20  # of a failed build's output: enough for the end of a traceback


@dataclass(frozen=True)
class BuiltModel:
    """An artifact that is there: `digest` is the sha256 of its bytes, `built` whether this call made it."""

    path: Path
    digest: str
    built: bool


@dataclass(frozen=True)
class _Stamp:
    """The side file: what the artifact was made from, and its digest for as long as size and time stand still."""

    inputs: str
    digest: str
    size_bytes: int
    modified_ns: int


def ensure_built(
    name: str,
    folder: Path,
    file: str,
    build: str = "",
    inputs: Sequence[str] = (),
    *,
    on_line: Callable[[str], None] | None = None,
) -> BuiltModel:
    """Return model `name`'s artifact `file`, building it with the command `build` in `folder` where needed.

    It is built when the file is missing, was not made by a finished build, or the hash of the command and the files
    of `inputs` (globs in `folder`; default: its ``*.py``) differs from that at the last build, which a side file
    ``<file>.build.json`` keeps. Processes that ask at once build once: one holds the lock file, the others wait.
    A command that begins with ``python`` runs under this interpreter. `on_line` gets its output line by line.

    Raises ModelError, with the end of the output, when the command fails or leaves no file.
    """
    path = folder / file
    if not build:
        if not path.is_file():
            raise ModelError(
                f"model '{name}': no file at {path}",
                hint="put it there, or declare `build:` with its command",
            )
        return BuiltModel(path, digest_of(path), built=False)
    wanted = inputs_digest(name, folder, file, build, inputs)
    if found := _fresh(path, wanted):
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(_beside(path, ".build.lock")):
        if found := _fresh(path, wanted):  # another process built it while this one waited
            return found
        _beside(path, ".build.json").unlink(missing_ok=True)
        _run(name, folder, build, on_line)
        if not path.is_file():
            raise ModelError(
                f"model '{name}': `{_short(build)}` succeeded but left no file at {path}",
                hint="let it write the declared `file:`, relative to the pipeline's folder",
            )
        digest = digest_of(path)
        _write_stamp(path, wanted, digest)
    return BuiltModel(path, digest, built=True)


def inputs_digest(name: str, folder: Path, file: str, build: str, inputs: Sequence[str] = ()) -> str:
    """sha256 over the command and the names and bytes of the input files. Raises ModelError for an empty glob.

    What a build makes is no input of it, whatever the globs say: the artifact and side files are left out.
    """
    digest = hashlib.sha256(build.encode())
    for pattern in inputs or DEFAULT_INPUTS:
        files = sorted(p for p in folder.glob(pattern) if p.is_file() and not _is_made(p, folder / file))
        if not files and inputs:
            raise ModelError(f"model '{name}': inputs: '{pattern}' matches no file in {folder}")
        for path in files:
            digest.update(f"\0{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(bytes.fromhex(digest_of(path)))
    return digest.hexdigest()


def _is_made(path: Path, artifact: Path) -> bool:
    return path == artifact or path.name.endswith((".build.json", ".build.lock", ".build.json.part"))


def digest_of(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _fresh(path: Path, wanted: str) -> BuiltModel | None:
    """The artifact, if it is there and made from inputs of digest `wanted`."""
    try:
        stamp = _Stamp(**json.loads(_beside(path, ".build.json").read_text()))
        state = path.stat()
    except (OSError, ValueError, TypeError):
        return None
    if stamp.inputs != wanted:
        return None
    same = (stamp.size_bytes, stamp.modified_ns) == (state.st_size, state.st_mtime_ns)
    return BuiltModel(path, stamp.digest if same else digest_of(path), built=False)


def _write_stamp(path: Path, inputs: str, digest: str) -> None:
    state = path.stat()
    side = _beside(path, ".build.json")
    part = _beside(path, ".build.json.part")
    part.write_text(json.dumps(asdict(_Stamp(inputs, digest, state.st_size, state.st_mtime_ns)), indent=1))
    part.replace(side)


def _run(name: str, folder: Path, build: str, on_line: Callable[[str], None] | None) -> None:
    try:
        command = shlex.split(build)
    except ValueError as error:
        raise ModelError(f"model '{name}': build: {error} in `{_short(build)}`") from error
    if not command:
        raise ModelError(f"model '{name}': build: the command is empty")
    if command[0] in {"python", "python3"}:
        command[0] = sys.executable
    last: deque[str] = deque(maxlen=_SHOWN_LINES)
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise ModelError(f"model '{name}': build: `{_short(build)}` does not start: {error}") from error
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last.append(line.rstrip())
                if on_line is not None:
                    on_line(line.rstrip())
            code = process.wait()
        except BaseException:  # Ctrl-C, or an error of `on_line`: leave no orphan
            process.kill()
            raise
    if code:
        shown = "\n".join(f"    {line}" for line in last) or "    (no output)"
        raise ModelError(
            f"model '{name}': `{_short(build)}` in {folder} failed with exit code {code}:\n{shown}"
        )


def _short(command: str) -> str:
    line = " ".join(command.split())
    return line if len(line) <= 100 else line[:97] + "..."


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`. The system lets go of it when the process dies, however it dies."""
    with path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield
