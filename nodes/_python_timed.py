"""Calls of plain functions with a limit of time: each runs in a thread, which is left behind when it takes too long.

Python cannot end a thread. A call that is left behind goes on, with all that it does outside, and holds its thread until it
returns; how many of a node may do so in one process is bounded. Threads are known by their names, so that a stage that begins
anew still sees those of before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

from dataflow.sdk import NodeBrokenError

from ._python_rows import Lost, lost_by

log = logging.getLogger("dataflow.python")

# Calls of one node in one process that may go on after their time: beyond, its stage ends instead of gathering threads.
MAX_LEFT_BEHIND: Final = 8


class _Worker:
    """A thread that makes one call after another. Results go to `done`, beside the worker that has them."""

    def __init__(
        self, name: str, call: Callable[..., Any], done: SimpleQueue[tuple[_Worker, Any]], folder: Path
    ) -> None:
        self.calls: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._call = call
        self._done = done
        self._folder = folder
        # A daemon: a process that ends does not wait for a call that never will.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def leave_behind(self, name: str) -> None:
        """Nobody waits for its call any more; it ends when that is over."""
        self._thread.name = name
        self.calls.put(None)

    def _run(self) -> None:
        while (arguments := self.calls.get()) is not None:
            try:
                result = self._call(*arguments)
                if isinstance(result, Iterator):
                    result = list(result)  # a generator does its work here, within its time
            except BaseException as error:  # noqa: BLE001  (user code: anything may come)
                result = lost_by(error, self._folder)
            self._done.put((self, result))


class TimedCalls:
    """Calls a function of rows, `concurrency` at once. One thread at a time; `close` ends idle threads.

    `name` is the node's, with its pipeline. Raises NodeBrokenError, here too, when too many calls of it are left behind.
    """

    def __init__(
        self, name: str, call: Callable[..., Any], limit_ms: int, concurrency: int, folder: Path
    ) -> None:
        self._name = name
        self._call = call
        self._limit_ms = limit_ms
        self._concurrency = concurrency
        self._folder = folder
        self._done: SimpleQueue[tuple[_Worker, Any]] = SimpleQueue()
        self._idle: list[_Worker] = []
        self._running: dict[_Worker, tuple[int, float]] = {}  # row, and when its time is over
        self._check()

    def results(self, rows: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What the function gave for the arguments of each row, in order; `Lost` where it raised or took too long."""
        results: list[Any] = [None] * len(rows)
        todo = deque(enumerate(rows))
        while todo or self._running:
            while todo and len(self._running) < self._concurrency:
                worker = self._idle.pop() if self._idle else self._new()
                index, arguments = todo.popleft()
                self._running[worker] = (index, time.monotonic() + self._limit_ms / 1000)
                worker.calls.put(arguments)
            self._wait(results)
        return results

    def close(self) -> None:
        """End the threads: those that are idle now, the others when their calls are over."""
        for worker in (*self._idle, *self._running):
            worker.calls.put(None)
        self._idle.clear()
        self._running.clear()

    @property
    def left_behind(self) -> int:
        """Calls of this node in this process that go on though nobody waits for them."""
        return sum(thread.name == self._left_name for thread in threading.enumerate())

    @property
    def _left_name(self) -> str:
        return f"{self._name} left behind"

    def _new(self) -> _Worker:
        return _Worker(self._name, self._call, self._done, self._folder)

    def _wait(self, results: list[Any]) -> None:
        """Take one result, or give up what is over its time."""
        due = min(due for _, due in self._running.values())
        try:
            worker, result = self._done.get(timeout=max(due - time.monotonic(), 0))
        except Empty:
            self._give_up(results)
            return
        running = self._running.pop(worker, None)
        if running is not None:  # else it comes too late: its row has failed
            results[running[0]] = result
            self._idle.append(worker)

    def _give_up(self, results: list[Any]) -> None:
        now = time.monotonic()
        for worker, (index, due) in list(self._running.items()):
            if due > now:
                continue
            del self._running[worker]
            worker.leave_behind(self._left_name)
            results[index] = Lost(f"took longer than {self._limit_ms} ms", "TimeoutError", retryable=True)
            log.warning(
                "%s: a call took longer than %d ms and is left behind, still running: %d of at most %d",
                self._name, self._limit_ms, self.left_behind, MAX_LEFT_BEHIND,
            )  # fmt: skip
        self._check()

    def _check(self) -> None:
        left = self.left_behind
        if left > MAX_LEFT_BEHIND:
            raise NodeBrokenError(
                f"{self._name}: {left} calls that took longer than {self._limit_ms} ms are still running, at most "
                f"{MAX_LEFT_BEHIND} may",
                hint="give the client that it calls a timeout, or write `async def`; a restart of the process ends them",
            )
