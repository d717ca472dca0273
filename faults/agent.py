"""A worker or gateway of the engine, with what a fault needs laid over it: ``python -m faults.agent ARGUMENTS OF dataflow``.

None of this is known to the engine: its classes are patched here, in the process that is to die.

FAULTS_FOLDER   the project's folder: a file `slow` there makes a node slow, a file `clock` holds seconds by which this
                process's wall clock is wrong
FAULTS_ORDERS   this process's own folder: a file `crash` there names a point at which it kills itself
FAULTS_DEBUG    what librdkafka is to log in agents of one name, e.g. `plain:cgrp,fetch`
FAULTS_STATS    set: clients write what they say of themselves to files `stats-N` beside the orders, every five seconds
FAULTS_MUTANT   the name of a defect of `faults.mutants`, to show that the judge sees it
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Final

_PARENT_DEATH_SIGNAL: Final = 1
# A crash point: what the producer is doing, and whether the process dies before or after it. Stages that answer callers
# come by one with every request: they die of it, but it is not they who get there first.
POINTS: Final = {
    "after output, before its offsets": ("before", "adding offsets"),
    "after its offsets, before the commit": ("before", "committing"),
    "in the commit": ("during", "committing"),
    "after the commit": ("after", "committing"),
    "taking over, before": ("before", "taking over"),
    "taking over, after": ("after", "taking over"),
    "first transaction after taking over": ("before", "beginning"),
    "restoring state": ("before", "restoring"),
}
# The same, of pipelines that are at least once: around the plain commit of offsets.
PLAIN_POINTS: Final = {
    "before the offsets": ("before", "offsets"),
    "after the offsets": ("during", "offsets"),
}


def die() -> None:
    """As kill -9 from outside: nothing is flushed, closed or said."""
    os.kill(os.getpid(), signal.SIGKILL)


def lay_crash_points(orders: Path) -> None:
    """Let every step of a commit and of a restore look whether this is where the process is to die."""
    from dataflow.runtime.restore import Restorer
    from dataflow.transport.kafka_clients import KafkaConsumer
    from dataflow.transport.kafka_transactions import KafkaTransaction
    from faults.mutants import patch

    step = KafkaTransaction._step
    commit, restore = KafkaConsumer.commit, Restorer.step
    order = orders / "crash"

    def reached(doing: str, call: Callable[[], Any]) -> Any:
        known = {**POINTS, **PLAIN_POINTS}
        when, what = known.get(order.read_text(), ("", "")) if order.exists() else ("", "")
        if what != doing:
            return call()
        if when == "before":
            die()
        if when == "during":
            # The request is on its way when the process ends, or has just been answered: nobody knows.
            threading.Timer(random.uniform(0, 0.004), die).start()
        made = call()
        if when == "after":
            die()
        return made

    def stepped(self: KafkaTransaction, doing: str, call: Callable[[float], object]) -> None:
        if self._name.startswith("dataflow.asked."):
            step(self, doing, call)
        else:
            reached(doing, lambda: step(self, doing, call))

    def committed(self: KafkaConsumer, offsets: Mapping[Any, int], *, wait: bool) -> None:
        if offsets:
            reached("offsets", lambda: commit(self, offsets, wait=wait))
        else:
            commit(self, offsets, wait=wait)

    def restored(self: Restorer) -> Any:
        return reached("restoring", lambda: restore(self)) if len(self) else restore(self)

    patch(KafkaTransaction, "_step", stepped)
    patch(KafkaConsumer, "commit", committed)
    patch(Restorer, "step", restored)


def lay_clock(folder: Path) -> None:
    """Let `time.time` and `time.time_ns` be wrong by what the file `clock` says, looked at twice a second."""
    path, real, monotonic = folder / "clock", time.time, time.monotonic
    known: dict[str, float] = {"until": 0.0, "offset": 0.0}

    def offset() -> float:
        now = monotonic()
        if now >= known["until"]:
            known["until"] = now + 0.5
            try:
                known["offset"] = float(path.read_text() or 0)
            except (OSError, ValueError):
                known["offset"] = 0.0
        return known["offset"]

    time.time = lambda: real() + offset()
    time.time_ns = lambda: int((real() + offset()) * 1e9)


def lay_debug(contexts: str, stats: Path | None) -> None:
    """Let the clients write librdkafka's own debug log to standard error, and their statistics to files."""
    import confluent_kafka as ck

    from dataflow.transport import kafka_clients

    numbers = count()

    def told(settings: dict[str, Any]) -> dict[str, Any]:
        made = {**settings, **({"debug": contexts, "log_level": 7} if contexts else {})}
        if stats is not None:
            path = stats / f"stats-{next(numbers)}"
            made |= {"statistics.interval.ms": 5_000, "stats_cb": both(path.write_text, made.get("stats_cb"))}
        return made

    def both(write: Callable[[str], object], heard: Callable[[str], None] | None) -> Callable[[str], None]:
        def told(text: str) -> None:
            write(text)
            if heard is not None:
                heard(text)

        return told

    def loud(made: Any) -> Callable[..., Any]:
        # With a logger its lines wait for the next poll: without one they are written by the client's own threads.
        return lambda settings, **more: made(told(settings), **({} if contexts else more))

    class Loud:
        """The client library, but for its two constructors."""

        Producer, Consumer = (staticmethod(loud(c)) for c in (ck.Producer, ck.Consumer))

        def __getattr__(self, name: str) -> Any:
            return getattr(ck, name)

    kafka_clients.ck = Loud()  # type: ignore[attr-defined]  # in place of the module


def tell_tasks(*_: object) -> None:
    """Say on standard error what each task of this process has in hand: for a group that stands still (SIGUSR1)."""
    import gc

    from dataflow.runtime.task import Task

    for task in (x for x in gc.get_objects() if isinstance(x, Task)):
        hands = [
            (h.ticket.ends, h.over, h.execution.over, h.behind is not None, len(h.messages))
            for h in task._hands._hands
        ]
        sent = [(s.ticket.ends, s.barrier.left, s.barrier.error) for s in task._unacknowledged]
        tickets = [(t.ends, t.finished) for t in task.offsets._open]
        print(
            f"{task._stage.plan.name}[{task._partition}]: backlog {len(task._backlog)}, due {task.work_ms}, in hand "
            f"{hands}, sent {sent}, tickets {tickets}, ready {task.offsets._ready}",
            file=sys.stderr,
            flush=True,
        )


def die_with_parent() -> None:
    """Let the system kill this process when the harness is gone, however that ended (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def main() -> Any:
    folder, orders = Path(os.environ["FAULTS_FOLDER"]), Path(os.environ["FAULTS_ORDERS"])
    die_with_parent()
    signal.signal(signal.SIGUSR1, tell_tasks)
    lay_clock(folder)  # before the engine is imported: it may keep the function
    from dataflow.cli.main import main as engine

    lay_crash_points(orders)
    name, _, contexts = os.environ.get("FAULTS_DEBUG", "").partition(":")
    stats = orders if os.environ.get("FAULTS_STATS") else None
    contexts = contexts if orders.name.startswith(f"{name}-") else ""
    if contexts or stats:
        lay_debug(contexts, stats)
    if mutant := os.environ.get("FAULTS_MUTANT", ""):
        from faults.mutants import MUTANTS

        MUTANTS[mutant]()
    return engine()


if __name__ == "__main__":
    sys.exit(main())
