"""The real broker, processes beside it, and what a benchmark asks of a topic: fill it, time it, compare it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import psutil

from benchmarks.report import BenchmarkError
from dataflow.broker import Broker, BrokerSettings
from dataflow.core.errors import TransportError
from dataflow.transport.api import EARLIEST, LATEST
from dataflow.transport.kafka import KafkaFabric

ROOT: Final = Path(__file__).parent.parent
DEADLINE_S: Final = 600.0
# Between looks at committed offsets: each costs the broker some work of its own.
POLL_S: Final = 0.1
_CLI: Final = ("-c", "from dataflow.cli.main import main; main()")


class Process:
    """A child process; its output goes to a file that is shown when it fails."""

    def __init__(
        self,
        name: str,
        python: str,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as sink:
            self._child = subprocess.Popen(
                [python, *arguments], stdout=sink, stderr=subprocess.STDOUT, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )  # fmt: skip
        self._seen = psutil.Process(self._child.pid)

    def check(self) -> None:
        """Raises BenchmarkError if it has ended."""
        if self._child.poll() is not None:
            raise BenchmarkError(f"{self.name} ended with {self._child.returncode}:\n{self.output()[-4000:]}")

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self) -> str:
        """Wait for its end; what it printed. Raises BenchmarkError if it failed."""
        try:
            code = self._child.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.stop()
            raise BenchmarkError(f"{self.name} did not end:\n{self.output()[-4000:]}") from None
        if code:
            raise BenchmarkError(f"{self.name} ended with {code}:\n{self.output()[-4000:]}")
        return self.output()

    def cpu_s(self) -> float:
        times = self._seen.cpu_times()
        return float(times.user + times.system)

    def rss_mb(self) -> float:
        return float(self._seen.memory_info().rss) / 1e6

    def family(self) -> list[psutil.Process]:
        """It and all that it has started, and these in turn; none once it has ended."""
        try:
            return [self._seen, *self._seen.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def family_cpu_s(self) -> float:
        """CPU time of it and of what it has started and still runs."""
        spent = 0.0
        for each in self.family():
            try:
                times = each.cpu_times()
            except psutil.NoSuchProcess:
                continue
            spent += float(times.user + times.system)
        return spent

    def family_pss_mb(self) -> float:
        """Memory of it and of what it has started; what they share is counted once."""
        held = 0
        for each in self.family():
            try:
                held += each.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return held / 1e6

    def stop(self) -> None:
        """SIGTERM, as an orderly end; SIGKILL for one that does not, and for what it leaves behind."""
        family = self.family()
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(20)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        for left in psutil.wait_procs(family[1:], timeout=2)[1]:
            with suppress(psutil.NoSuchProcess):
                left.kill()


@dataclass(frozen=True)
class Progress:
    """One look at a consumer group while it works."""

    seconds: float
    committed: int
    cpu_s: float
    rss_mb: float


@dataclass(frozen=True)
class Content:
    """What a topic holds: records, a digest of values by partition and order, and when the producer made them.

    `seconds` is the time from the first record made to the last one.
    """

    records: int
    digest: str
    seconds: float

    @property
    def rate(self) -> float:
        return self.records / self.seconds if self.seconds else 0.0


@dataclass
class Cluster:
    """A broker, a client of it, a folder for projects and logs, and the processes started here."""

    bootstrap: str
    folder: Path
    stack: ExitStack
    fabric: KafkaFabric = field(init=False)
    _started: int = 0

    def __post_init__(self) -> None:
        self.fabric = KafkaFabric(self.bootstrap)
        self.stack.callback(self.fabric.close)

    def start(
        self,
        name: str,
        *arguments: str,
        python: str = sys.executable,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Process:
        """Run `python ARGUMENTS` from the repository's root until it is stopped here or ends."""
        self._started += 1
        log = self.folder / f"{self._started:03d}-{name}.log"
        process = Process(name, python, arguments, log, environment)
        self.stack.callback(process.stop)
        return process

    def start_command(self, command: str, project: Path, *more: str) -> Process:
        """Run `dataflow COMMAND` as a user would."""
        options = ("--project", str(project), "--bootstrap", self.bootstrap, *more)
        return self.start(command, *_CLI, command, *options)

    def ends(self, topic: str) -> dict[tuple[str, int], int]:
        admin = self.fabric.admin()
        partitions = admin.describe([topic])[topic].partitions
        return admin.offsets([(topic, n) for n in range(partitions)], LATEST)

    def committed(self, group: str, topic: str) -> int:
        """Records of `topic` that `group` has committed (topics here begin at offset 0)."""
        positions = sorted(self.ends(topic))
        try:
            return sum(self.fabric.admin().group_offsets(group, positions).values())
        except TransportError:  # a broker just started is still loading its groups
            return 0

    def follow(self, process: Process, group: str, topic: str, every_s: float = POLL_S) -> list[Progress]:
        """Watch `group` until its committed offsets are at the end of `topic`. Raises BenchmarkError at a deadline."""
        ends = self.ends(topic)
        wanted = sum(ends.values())
        seen = []
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            process.check()
            done = self.committed(group, topic)
            seen.append(Progress(time.monotonic(), done, process.cpu_s(), process.rss_mb()))
            if done > wanted:
                raise BenchmarkError(f"group '{group}' committed {done} of {wanted} records: beyond the end")
            if done == wanted:
                return seen
            time.sleep(every_s)
        raise BenchmarkError(
            f"group '{group}' committed {seen[-1].committed} of {wanted} records of '{topic}'"
        )

    def read(self, topic: str, each: Callable[[Any], None] | None = None) -> Content:
        """All records of a topic that are committed, by a plain consumer."""
        ends = self.ends(topic)
        consumer = self.fabric.consumer()
        digests = {p: hashlib.sha256() for p in ends}
        left = {p: end for p, end in ends.items() if end}
        times: list[int] = []
        records = 0
        try:
            consumer.assign(dict.fromkeys(ends, EARLIEST))
            deadline = time.monotonic() + DEADLINE_S
            while left and time.monotonic() < deadline:
                for message in consumer.poll(5_000, 0.5):
                    position = (message.topic(), message.partition())
                    value = message.value() or b""
                    digests[position].update(len(value).to_bytes(4, "little") + value)
                    times.append(message.timestamp()[1])
                    records += 1
                    if each is not None:
                        each(message)
                for position, end in consumer.ends().items():  # a transaction's marker is no record
                    if end >= ends[position]:
                        left.pop(position, None)
        finally:
            consumer.close()
        if left:
            raise BenchmarkError(f"topic '{topic}' could not be read to its end: {left}")
        digest = " ".join(d.hexdigest()[:16] for _, d in sorted(digests.items(), key=lambda x: x[0]))
        return Content(records, digest, (max(times) - min(times)) / 1000 if times else 0.0)


@contextmanager
def started(bootstrap: str = "", *, nodes: int = 1) -> Iterator[Cluster]:
    """The embedded broker (or so many) with nothing on it, or the one at `bootstrap`; ends with all processes started there."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dataflow-bench-")))
        if not bootstrap:
            settings = BrokerSettings(data=folder / "broker", ephemeral=True, nodes=nodes)
            broker = stack.enter_context(Broker(settings))
            bootstrap = broker.bootstrap
        yield Cluster(bootstrap, folder, stack)


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = 60.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.05)
