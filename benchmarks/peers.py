"""Other engines, each in an environment of its own in the user's cache folder: never among what this project needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.report import BenchmarkError, tell

QUIX: Final = "quixstreams==3.28.1"
INSTALL_S: Final = 600.0


class PeerError(BenchmarkError):
    """A peer that could not be installed or did not start; the message says why."""


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dataflow" / "peers"


def python_of(requirement: str, *more: str) -> str:
    """The interpreter of an environment that has `requirement` (NAME==VERSION) and `more`, installed on first use.

    Raises PeerError.
    """
    cache = cache_folder()
    name = requirement.replace("[", "-").replace("]", "")
    folder = cache / f"{name}-py{sys.version_info.major}.{sys.version_info.minor}"
    python, installed = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join((requirement, *more))
    if installed.is_file() and installed.read_text() == wanted and python.exists():
        return str(python)
    tell(f"installing {requirement} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    uv = shutil.which("uv")
    if uv:
        run_command([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
        run_command([uv, "pip", "install", "--quiet", "--python", str(python), requirement, *more])
    else:
        run_command([sys.executable, "-m", "venv", str(folder)])
        run_command([str(python), "-m", "pip", "install", "--quiet", requirement, *more])
    installed.write_text(wanted)
    return str(python)


def versions_in(python: str, names: Sequence[str]) -> dict[str, str]:
    """What is installed of `names` in the environment of that interpreter. Raises PeerError."""
    code = (
        "import json, sys\nfrom importlib.metadata import version\n"
        "print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    )
    found: dict[str, str] = json.loads(run_command([python, "-c", code, *names]))
    return found


def run_command(command: Sequence[str]) -> str:
    """Run it to its end; what it printed. Raises PeerError with what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise PeerError(f"{' '.join(command)}: {done.stderr[-1000:]}")
    return done.stdout
