"""Worker processes that a test starts, stops, freezes and kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka.admin import AdminClient

from tests.e2e._project import Deployed


@dataclass
class WorkerProcess:
    """`dataflow worker` in a process of its own; its output is in `log`."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def terminate(self, timeout_s: float = 40.0) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self.process.wait(timeout_s)


@dataclass
class Workers:
    """All that a test started; what is left is killed at its end."""

    folder: Path
    started: list[WorkerProcess] = field(default_factory=list)

    def start(self, project: Deployed, bootstrap: str) -> WorkerProcess:
        log = self.folder / f"worker-{len(self.started)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("dataflow")), "--project", str(project.folder), "worker",
                    "--bootstrap", bootstrap, "--pipeline", project.name,
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        worker = WorkerProcess(process, log)
        self.started.append(worker)
        return worker


def members(bootstrap: str, group: str) -> int:
    """How many members of a group own something."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    found = admin.describe_consumer_groups([group], request_timeout=10)[group].result(10)
    return sum(bool(m.assignment.topic_partitions) for m in found.members)


@contextmanager
def worker_processes(folder: Path) -> Iterator[Workers]:
    workers = Workers(folder)
    try:
        yield workers
    finally:
        for worker in workers.started:
            if worker.running:
                worker.kill()
