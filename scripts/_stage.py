"""What the steps of the demo share: where things are, how a step is told and checked, child processes that always end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".dataflow" / "demo"
COMMAND = Path(sys.executable).with_name("dataflow")
PIPELINE = "flight-delay"
STOP_S = 25.0

Found = TypeVar("Found")


class DemoError(Exception):
    """Something that the demo promises did not happen."""


def check(condition: object, otherwise: str) -> None:
    """Raise `DemoError(otherwise)` unless `condition` holds."""
    if not condition:
        raise DemoError(otherwise)


@dataclass
class Stage:
    """The running demo: its console, its cluster, its gateway, and what `dataflow up` says.

    `bootstrap` and `url` are "" and `serving` is None until they are there.
    """

    console: Console
    bootstrap: str = ""
    url: str = ""
    began_s: float = field(default_factory=time.monotonic)
    steps: int = 0
    serving: Output | None = None

    def step(self, title: str, why: str) -> None:
        """Begin a step; its number and the time so far go with it."""
        self.steps += 1
        self.console.print()
        seconds = time.monotonic() - self.began_s
        self.console.rule(f"[bold]{self.steps}. {escape(title)}[/]  [dim]{seconds:.0f} s[/]", align="left")
        self.console.print(f"[dim]{escape(why)}[/]")

    def say(self, text: str) -> None:
        """One line of what was found."""
        self.console.print(f"  {text}", highlight=False)

    def done(self, text: str) -> None:
        """One line of what was checked, and held."""
        self.console.print(f"  [green]ok[/] {text}", highlight=False)

    def environment(self) -> dict[str, str]:
        """For commands: the demo's own cluster, no colours of a terminal, no settings of the user's own cluster."""
        made = {k: v for k, v in os.environ.items() if not k.startswith("DATAFLOW_")}
        if self.bootstrap:
            made["DATAFLOW_BOOTSTRAP"] = self.bootstrap
        return {**made, "COLUMNS": str(min(self.console.width, 160)), "PYTHONUNBUFFERED": "1"}

    def run(self, *arguments: str, show: int = 0, quiet: bool = False) -> str:
        """Run `dataflow ARGUMENTS` to its end, show so many lines of its output, return the output.

        Raises DemoError, with what it said, unless it exits with 0. `quiet`: show neither.
        """
        if not quiet:
            self.command(*arguments)
        with (
            self.console.status("[dim]working[/]"),
            child([str(COMMAND), *arguments], self.environment(), stderr=subprocess.PIPE) as process,
        ):
            output, errors = process.communicate()
        if process.returncode:
            raise DemoError(
                f"dataflow {' '.join(arguments)} exited with {process.returncode}:\n{output}{errors}"
            )
        lines = (output or errors).rstrip().splitlines()
        for line in lines[:show]:
            self.quote(line)
        if show and len(lines) > show:
            self.quote(f"... {len(lines) - show} more lines")
        return str(output)

    def command(self, *arguments: str) -> None:
        """Show a command as the user would type it."""
        shown = " ".join(arguments).replace(f"{ROOT}/", "")
        self.console.print(f"  [bold cyan]$ dataflow {escape(shown)}[/]", highlight=False, soft_wrap=True)

    def quote(self, line: str) -> None:
        """A line that a command said, cut at the terminal's width."""
        self.console.print(f"    [dim]{escape(line)}[/]", highlight=False, no_wrap=True, overflow="ellipsis")

    def get(self, path: str) -> Any:
        """The JSON document at a path of the gateway. Raises DemoError where it does not answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:  # noqa: S310  (our own address)
                return json.load(answer)
        except OSError as error:
            raise DemoError(f"GET {self.url}{path}: {error}") from error

    def graph(self) -> dict[str, Any]:
        """The running flagship with its rates and lag."""
        found: dict[str, Any] = next(p for p in self.get("/graph")["pipelines"] if p["name"] == PIPELINE)
        return found

    def wait(self, what: str, condition: Callable[[], Found | None], timeout_s: float = 60.0) -> Found:
        """Wait until `condition()` is truthy, and return it. Raises DemoError at the deadline."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            time.sleep(0.1)
        raise DemoError(f"waited {timeout_s:.0f} s for {what}")


@contextmanager
def child(
    command: Sequence[str], environment: dict[str, str], stderr: int = subprocess.STDOUT
) -> Iterator[subprocess.Popen[str]]:
    """A child process that is ended, by its id, when the block ends: asked first, killed if it does not listen.

    In a session of its own: Ctrl-C reaches the demo alone, which ends its children in the right order.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


class Output:
    """The lines that a running child says, read on a thread so that its pipe never fills up."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: deque[str] = deque(maxlen=1_000)
        self._process = process
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self.lines.append(line.rstrip())
        except ValueError:
            return  # closed while it was read: the child has ended

    def find(self, pattern: str) -> re.Match[str] | None:
        """The first line that matches. Raises DemoError if the child ended before it came."""
        found = next((m for line in list(self.lines) if (m := re.search(pattern, line))), None)
        if found is None and self._process.poll() is not None:
            self._thread.join(5)
            raise DemoError("it ended by itself:\n" + "\n".join(self.lines))
        return found
