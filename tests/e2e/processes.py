"""The command `dataflow` as users start it: a process of its own, with output in a file and an end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil

from tests.conftest import wait_for

COMMAND = str(Path(sys.executable).with_name("dataflow"))


def environment(extra: Mapping[str, str] = {}) -> dict[str, str]:
    """Ours without DATAFLOW_* (but for the cache), and `extra`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DATAFLOW_") or name == "DATAFLOW_CACHE"
    }
    return {**kept, "NO_COLOR": "1", "COLUMNS": "160", **extra}


def dataflow(
    folder: Path, *arguments: str, given: str = "", **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run `dataflow ARGUMENTS` in `folder` to its end; `extra` are environment variables."""
    return subprocess.run(
        [COMMAND, *arguments],
        cwd=folder,
        env=environment(extra),
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def succeed(folder: Path, *arguments: str, given: str = "", **extra: str) -> str:
    """As `dataflow`, give its standard output; it must exit 0."""
    done = dataflow(folder, *arguments, given=given, **extra)
    assert done.returncode == 0, (
        f"dataflow {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


def json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def javas_of(folder: Path) -> list[psutil.Process]:
    """The JVMs whose command line names `folder`: brokers of that project, orphans too."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if line and "java" in Path(line[0]).name and any(str(folder) in part for part in line):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


class Running:
    """A `dataflow` process that goes on: `with Running(folder, "up", "--port", "0") as up: ...`; ended by SIGINT."""

    def __init__(self, folder: Path, *arguments: str, **extra: str) -> None:
        self.folder = folder
        self._log = folder / f".{arguments[0]}-{id(self):x}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [COMMAND, *arguments],
                cwd=folder,
                env=environment(extra),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        """All that it printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def shows(self, pattern: str, timeout_s: float = 60) -> re.Match[str]:
        """Wait until it printed `pattern`."""

        def seen() -> re.Match[str] | None:
            found = re.search(pattern, self.text)
            if found is None and self.process.poll() is not None:
                raise AssertionError(
                    f"ended with {self.process.returncode} without {pattern!r}:\n{self.text}"
                )
            return found

        try:
            found = wait_for(seen, f"{pattern!r} to be printed", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; printed:\n{self.text}") from None
        assert isinstance(found, re.Match)
        return found

    @property
    def url(self) -> str:
        """Of its HTTP door, once it says that it serves."""
        return self.shows(r"gateway +(http://\S+)")[1]

    def ends(self, timeout_s: float = 30) -> int:
        """Its exit status, once it ended by itself."""
        return self.process.wait(timeout_s)

    def stop(self, by: signal.Signals = signal.SIGINT, timeout_s: float = 30) -> int:
        """Send it `by` and give its exit status."""
        self.process.send_signal(by)
        return self.ends(timeout_s)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                if error is None:
                    raise
