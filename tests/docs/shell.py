"""One who follows a page: a shell that keeps its folder and variables, and terminals where commands go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from tests.conftest import wait_for
from tests.docs.pages import Block, commands_of, pattern_of

# The longest that one command may take: the first of a model's build, or the start of a broker on a busy machine.
PATIENCE_S: Final = 60.0
_MARK: Final = "--- done "


@dataclass
class Terminal:
    """A command that goes on. `seen` is how far its output is explained by the page."""

    process: int
    log: Path
    seen: int = 0

    @property
    def alive(self) -> bool:
        try:
            return psutil.Process(self.process).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class Shell:
    """A bash in `folder`, with `dataflow` and `python` of these tests first on the path.

    Pages say port 8080; here it is `port`, a free one, in commands and back again in what they print.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = str(port)
        self._out = folder / ".shell.log"
        self._terminals: list[Terminal] = []
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("DATAFLOW_", "OTEL_"))}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if "DATAFLOW_CACHE" in os.environ:
            environment["DATAFLOW_CACHE"] = os.environ["DATAFLOW_CACHE"]
        self._written = self._out.open("wb")
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=self._written,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._end_all()
        finally:
            # Whatever a failed page left running is in the shell's own session.
            os.killpg(self._bash.pid, signal.SIGKILL)
            self._bash.communicate()
            self._written.close()

    def _end_all(self) -> None:
        while self._terminals:
            self._end(self._terminals.pop())

    def _end(self, terminal: Terminal) -> None:
        """As by Ctrl-C: it drains, ends with 0, and has told of no failure."""
        status, _ = self._run(f"kill -TERM {terminal.process}; wait {terminal.process}")
        told = terminal.log.read_text()
        assert status == 0, f"a command in the background ended with {status}\n{told}"
        # Normal work is silent: no warning, no error, in whichever form logs have.
        assert not re.search(r"Traceback| (WARNING|ERROR) |\"level\":", told), told

    def follow(self, block: Block) -> None:
        """Do what the block says; AssertionError with place, command and output where it is not as the page says."""
        if block.value("skip"):
            return
        if block.value("file") or block.value("append"):
            self._write(block)
        elif block.language == "console" and "background" in block.words:
            self._start(block)
        elif block.language == "console":
            if "after" in block.words:
                self._end_all()
            self._converse(block)
        elif block.language == "text" and "background" in block.words:
            self._expect(block, tuple(block.text.splitlines()))
        elif block.language == "python":
            self._check(block, "python - <<'PROGRAM'\n" + block.text + "PROGRAM", (), 0)

    def _write(self, block: Block) -> None:
        name = block.value("file") or block.value("append")
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if block.value("file") else "a", encoding="utf-8") as file:
            file.write(block.text)

    def _converse(self, block: Block) -> None:
        commands = commands_of(block)
        for command in commands:
            last = command is commands[-1]
            self._check(block, command.text, command.expected, int(block.value("exit") or 0) if last else 0)

    def _check(self, block: Block, text: str, expected: tuple[str, ...], status: int) -> None:
        found, output = self._run(text.replace("8080", self._port))
        told = f"{block.place}: $ {text}\n{output}"
        assert found == status, f"{told}\nexit {found}, expected {status}{self._background_told()}"
        if expected:
            wanted = "\n".join(expected)
            matched = pattern_of(expected).fullmatch(output)
            assert matched, f"{told}\n--- expected\n{wanted}{self._background_told()}"

    def _background_told(self) -> str:
        return "".join(f"\n--- in the background\n{t.log.read_text()}" for t in self._terminals)

    def _run(self, text: str) -> tuple[int, str]:
        """Exit status and output of a command; the port is 8080 there again."""
        start = self._out.stat().st_size
        assert self._bash.stdin is not None
        # A command must not read what is meant for the shell.
        self._bash.stdin.write(
            f"{{ {text}\n}} </dev/null\n_status=$?; echo; echo '{_MARK}'$_status\n".encode()
        )
        self._bash.stdin.flush()

        def output() -> re.Match[str] | None:
            with self._out.open("rb") as file:
                file.seek(start)
                return re.match(rf"(.*?)\n?{_MARK}(\d+)\n\Z", file.read().decode(errors="replace"), re.DOTALL)

        done = wait_for(output, f"$ {text}\n{self._out.read_text()[start:]}", PATIENCE_S)
        assert isinstance(done, re.Match)
        printed = done[1].replace(self._port, "8080").rstrip()
        return int(done[2]), printed + "\n" if printed else ""

    def _start(self, block: Block) -> None:
        (command,) = commands_of(block)
        text = command.text.replace("8080", self._port)
        if text.startswith("dataflow up") and "--port" not in text:
            text = text.replace("dataflow up", f"dataflow up --port {self._port}", 1)
        log = self._folder / f".terminal-{len(self._terminals)}.log"
        log.touch()
        status, process = self._run(f"{text} >{log} 2>&1 & echo $!")
        assert status == 0, block.place
        self._terminals.append(Terminal(int(process), log))
        self._expect(block, command.expected)

    def _expect(self, block: Block, lines: tuple[str, ...]) -> None:
        """Wait for `lines` in the output of the newest terminal, after what was explained before."""
        assert self._terminals, f"{block.place}: nothing is in the background"
        terminal = self._terminals[-1]
        pattern = pattern_of(lines)
        wanted = "\n".join(lines)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            alive = terminal.alive
            told = terminal.log.read_text().replace(self._port, "8080")
            found = pattern.search(told, terminal.seen)
            if found is not None:
                terminal.seen = found.end()
                return
            assert alive, f"{block.place}: ended\n{told}\n--- expected\n{wanted}"
            assert time.monotonic() < deadline, f"{block.place}:\n{told}\n--- expected\n{wanted}"
            time.sleep(0.02)
