"""The engine's processes: started through `faults.agent`, frozen, killed, and started again as a supervisor would."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import psutil

ROOT: Final = Path(__file__).parent.parent
# What a worker says once its signals are taken care of, and its work begins.
WORKING: Final = "pipeline "
_COMMAND: Final = "from dataflow.cli.main import main; main()"


@dataclass(eq=False)
class Agent:
    """A process of the engine. `orders` is its own folder, see `faults.agent`."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    orders: Path
    machine: int
    state: Path
    """Where its files of keyed state are: the disk of the machine that it is on."""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def working(self) -> bool:
        return WORKING in self.output()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; whether it came in time."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def order(self, name: str, text: str) -> None:
        """Leave it an order, whole or not at all."""
        fresh = self.orders / f".{name}.swp"
        fresh.write_text(text)
        fresh.replace(self.orders / name)

    def measure(self) -> tuple[int, int, int] | None:
        """Bytes of memory, threads, file descriptors; None if it is gone."""
        try:
            seen = psutil.Process(self.pid)
            return seen.memory_info().rss, seen.num_threads(), seen.num_fds()
        except psutil.Error:
            return None


@dataclass
class Stable:
    """All agents of a run; what still runs at the end is killed."""

    folder: Path
    project: Path
    patched: bool = True
    """Whether agents are `faults.agent`, or the plain command."""
    started: list[Agent] = field(default_factory=list)

    def start(self, name: str, arguments: Sequence[str], *, mutant: str = "", machine: int = 0) -> Agent:
        """Run `dataflow ARGUMENTS` as an agent, on a machine that has what was left there by others of its name."""
        orders = self.folder / f"{name}-{len(self.started)}"
        orders.mkdir(parents=True)
        log = orders / "log"
        state = self.folder / "disks" / f"{name}-{machine}"
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "FAULTS_FOLDER": str(self.project),
            "FAULTS_ORDERS": str(orders), "FAULTS_MUTANT": mutant, "DATAFLOW_STATE_DIR": str(state),
        }  # fmt: skip
        program = ["-m", "faults.agent"] if self.patched else ["-c", _COMMAND]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *program, "--project", str(self.project), *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        agent = Agent(name, process, log, orders, machine, state)
        self.started.append(agent)
        return agent

    def run(self, *arguments: str, timeout_s: float = 120) -> str:
        """Run `dataflow ARGUMENTS` to its end; what it printed. Raises RuntimeError if it failed."""
        agent = self.start(arguments[0], arguments)
        if not agent.wait(timeout_s) or agent.process.returncode:
            agent.process.kill()
            raise RuntimeError(f"dataflow {' '.join(arguments)} failed:\n{agent.output()[-3000:]}")
        return agent.output()

    def close(self) -> None:
        for agent in self.started:
            if agent.running:
                agent.kill()


@dataclass
class Crew:
    """So many agents of one kind: those that ended are replaced by `fill`, as a supervisor does."""

    stable: Stable
    name: str
    arguments: Sequence[str]
    size: int
    mutant: str = ""
    members: list[Agent] = field(default_factory=list)
    left: list[tuple[Agent, int]] = field(default_factory=list)
    """Who ended by itself, and its exit status: a finding, unless it was ordered to."""
    ordered: set[int] = field(default_factory=set)

    def fill(self) -> list[Agent]:
        """Start what is missing; the new ones."""
        for agent in list(self.members):
            if not agent.running:
                self.members.remove(agent)
                started = agent.working
                # One that finds no broker when it starts says so and ends: that is in order.
                if agent.pid not in self.ordered and (started or "does not answer" not in agent.output()):
                    self.left.append((agent, agent.process.returncode))
        fresh = []
        while len(self.members) < self.size:
            fresh.append(self.add())
        return fresh

    def add(self) -> Agent:
        taken = {a.machine for a in self.members if a.running}
        machine = next(n for n in count() if n not in taken)
        agent = self.stable.start(self.name, self.arguments, mutant=self.mutant, machine=machine)
        self.members.append(agent)
        return agent

    def end(self, agent: Agent, number: signal.Signals = signal.SIGKILL, timeout_s: float = 40) -> bool:
        """Send it a signal and wait for its end."""
        self.ordered.add(agent.pid)
        agent.signal(number)
        ended = agent.wait(timeout_s)
        if not ended:
            agent.kill()
        if agent in self.members:
            self.members.remove(agent)
        return ended


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shown(agent: Agent, pattern: str, timeout_s: float) -> re.Match[str]:
    """Wait until the process prints what matches. Raises RuntimeError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := re.search(pattern, agent.output()):
            return found
        if not agent.running:
            break
        time.sleep(0.05)
    raise RuntimeError(f"{agent.name} did not show {pattern!r}:\n{agent.output()[-3000:]}")
