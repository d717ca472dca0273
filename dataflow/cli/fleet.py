"""Several processes that serve on one port: started, watched, replaced one by one, and never left behind.

The parent owns the listening socket and serves nobody itself: a process that ends takes no waiting caller along, since
what it did not accept another one does. Children see the parent's end by a pipe that nothing is ever written to.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from select import select
from typing import Final

from dataflow.core import limits
from dataflow.core.errors import DataflowError

log = logging.getLogger("dataflow.serve")

# Tells a child its descriptors: the listening socket, where to say that it serves, and the parent's life.
CHILD: Final = "DATAFLOW_SERVE_CHILD"
LOOK_S: Final = 0.1
# What loading models and joining groups may take.
START_TIMEOUT_S: Final = 120.0
RESTART_BACKOFF_S: Final = 1.0
RESTART_BACKOFF_MAX_S: Final = 30.0
# Answers in flight, and what is in hand of the stages.
END_TIMEOUT_S: Final = (limits.MAX_DEADLINE_MS + limits.DRAIN_TIMEOUT_MS) / 1000 + 10


@dataclass(eq=False)
class _Child:
    process: subprocess.Popen[bytes]
    told: int
    """Where it says that it serves; -1 once it has."""

    def serves(self, wait_s: float) -> bool:
        if self.told >= 0 and select([self.told], [], [], wait_s)[0]:
            said = os.read(self.told, 1)
            os.close(self.told)
            self.told = -1
            return bool(said)
        return self.told < 0 and self.process.poll() is None


class Fleet:
    """`count` children that run `arguments` of the command line, on one socket. Not thread-safe."""

    def __init__(self, count: int, arguments: Sequence[str], listening: socket.socket) -> None:
        self._count = count
        self._command = [sys.executable, "-m", "dataflow", *arguments]
        self._listening = listening
        self._children: list[_Child] = []
        self._life, self._end_of_life = os.pipe()

    def run(self, stop: threading.Event, renew: threading.Event, tell: Callable[[str], None]) -> None:
        """Serve until `stop`; replace every child, one after another, each time `renew` is set.

        Raises DataflowError where none of the first ones comes to serve.
        """
        try:
            self._children = [self._start() for _ in range(self._count)]
            if not self._await_first(stop):
                if stop.is_set():
                    return
                raise DataflowError("none of the processes came to serve", hint="what they said is above")
            tell(f"{self._count} processes: {', '.join(str(c.process.pid) for c in self._children)}")
            backoff_s = RESTART_BACKOFF_S
            while not stop.wait(LOOK_S):
                if renew.is_set():
                    renew.clear()
                    self._renew(stop, tell)
                if self._replace_dead(stop, backoff_s):
                    backoff_s = min(backoff_s * 2, RESTART_BACKOFF_MAX_S)
                else:
                    backoff_s = max(backoff_s - LOOK_S, RESTART_BACKOFF_S)
        finally:
            self._end_all()

    def _start(self) -> _Child:
        told, tell = os.pipe()
        passed = (self._listening.fileno(), tell, self._life)
        environment = {**os.environ, CHILD: ",".join(map(str, passed))}
        process = subprocess.Popen(self._command, env=environment, pass_fds=passed, process_group=0)
        os.close(tell)
        return _Child(process, told)

    def _await_first(self, stop: threading.Event) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and not stop.is_set():
            if any(child.serves(LOOK_S) for child in self._children):
                return True
            if all(child.process.poll() is not None for child in self._children):
                return False
        return False

    def _replace_dead(self, stop: threading.Event, backoff_s: float) -> bool:
        dead = [child for child in self._children if child.process.poll() is not None]
        for child in dead:
            log.error("process %d ended with status %s", child.process.pid, child.process.returncode)
            self._forget(child)
        if dead and not stop.wait(backoff_s):
            self._children += [self._start() for _ in dead]
        return bool(dead)

    def _renew(self, stop: threading.Event, tell: Callable[[str], None]) -> None:
        """A new child for each, which serves before the old one is told to end."""
        for old in list(self._children):
            fresh = self._start()
            deadline = time.monotonic() + START_TIMEOUT_S
            while not fresh.serves(LOOK_S):
                if stop.is_set() or fresh.process.poll() is not None or time.monotonic() > deadline:
                    log.error(
                        "process %d does not come to serve: %d stays", fresh.process.pid, old.process.pid
                    )
                    self._children.append(fresh)
                    self._end([fresh])
                    return
            self._children.append(fresh)
            self._end([old])
            tell(f"process {fresh.process.pid} for {old.process.pid}")

    def _end(self, children: Sequence[_Child]) -> None:
        for child in children:
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + END_TIMEOUT_S
        for child in children:
            try:
                child.process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                log.error("process %d did not end in time and is killed", child.process.pid)  # noqa: TRY400
                child.process.kill()
                child.process.wait()
            self._forget(child)

    def _forget(self, child: _Child) -> None:
        self._children.remove(child)
        if child.told >= 0:
            os.close(child.told)

    def _end_all(self) -> None:
        self._end(list(self._children))
        os.close(self._life)
        os.close(self._end_of_life)


@dataclass(frozen=True)
class Place:
    """What a child of a fleet was given."""

    listening: socket.socket
    told: int
    life: int

    @classmethod
    def found(cls) -> Place | None:
        """The place of this process in a fleet, None if it is in none. To be asked once."""
        given = os.environ.pop(CHILD, "")
        if not given:
            return None
        listening, told, life = map(int, given.split(","))
        made = socket.socket(fileno=listening)
        made.setblocking(False)
        return cls(made, told, life)

    def serves(self) -> None:
        """Tell the parent."""
        os.write(self.told, b"1")
        os.close(self.told)

    def watch(self, stop: threading.Event) -> None:
        """Set `stop` when the parent ends, however it does."""

        def wait() -> None:
            os.read(self.life, 1)
            stop.set()

        threading.Thread(target=wait, name="parent", daemon=True).start()
