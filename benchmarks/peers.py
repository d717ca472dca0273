"""Other engines, each in an environment of its own in the user's cache folder: never among what this project needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.report import tell

QUIX: Final = "quixstreams==3.28.1"
INSTALL_S: Final = 300.0


class PeerError(Exception):
    """A peer that could not be installed; the message says why."""


def python_of(requirement: str) -> str:
    """The interpreter of an environment that has `requirement` (NAME==VERSION), installed on first use.

    Raises PeerError.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(base) if base else Path.home() / ".cache") / "dataflow" / "peers"
    folder = cache / f"{requirement}-py{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    if (folder / "installed").is_file() and python.exists():
        return str(python)
    tell(f"installing {requirement} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    uv = shutil.which("uv")
    if uv:
        run_command([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
        run_command([uv, "pip", "install", "--quiet", "--python", str(python), requirement])
    else:
        run_command([sys.executable, "-m", "venv", str(folder)])
        run_command([str(python), "-m", "pip", "install", "--quiet", requirement])
    (folder / "installed").touch()
    return str(python)


def run_command(command: Sequence[str]) -> None:
    """Run it to its end. Raises PeerError with what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise PeerError(f"{' '.join(command)}: {done.stderr[-1000:]}")
