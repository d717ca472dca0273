"""What is attacked: gateway and workers in a process of their own, ``python -m attacks.target FOLDER OPTIONS``.

It prints its ports as a JSON line; for each line ``tell`` on its standard input it prints what it holds; at the end of
that input it stops.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

import psutil

from attacks import project
from attacks.mutants import MUTANTS, Mutant
from dataflow.broker import Broker, BrokerSettings
from dataflow.control.assemble import assemble
from dataflow.control.deploy import deploy
from dataflow.control.host import Host
from dataflow.core.errors import DataflowError
from dataflow.gateway.app import Gateway
from dataflow.gateway.connection import DoorLimits
from dataflow.gateway.server import GrpcDoorAt, new_event_loop, serve
from dataflow.runtime.workshop import Workshop
from dataflow.transport.api import LATEST, Fabric
from dataflow.transport.kafka import KafkaFabric
from dataflow.transport.memory import MemoryFabric

# Records of a partition that the log in memory keeps: all of a run would hide what a door keeps.
_KEPT_RECORDS: Final = 2_000
_TRIM_S: Final = 0.5
_READY_S: Final = 60.0
_START_S: Final = 120.0


@dataclass(frozen=True)
class Options:
    """How the door is set: short time-outs, that they can be waited for; `mutants` are of `attacks.mutants`."""

    head_ms: int = 2_000
    body_ms: int = 2_000
    stall_ms: int = 3_000
    keep_alive_ms: int = 10_000
    linger_ms: int = 2_000
    mutants: tuple[str, ...] = ()
    broker: bool = False


@dataclass(frozen=True)
class Held:
    """What the target has in hand at a moment."""

    tasks: int
    pending: int
    budget: int
    streams: int
    descriptors: int
    memory_mb: float


class Target:
    """The process, from outside."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.log = folder / "target.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "attacks.target", str(folder), json.dumps(asdict(options))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=Path(__file__).parent.parent,
            )
        self._lines: IO[str] = self.process.stdout  # type: ignore[assignment]  # it is a pipe
        self._orders: IO[str] = self.process.stdin  # type: ignore[assignment]  # it is a pipe
        said = self._answer()
        self.port, self.grpc_port = int(said["port"]), int(said["grpc"])
        self._process = psutil.Process(self.process.pid)

    def _answer(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise DataflowError(f"the target ended: {self.log.read_text(errors='replace')[-3_000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def tell(self) -> Held:
        """What it holds, its garbage collected. Blocks while its event loop does."""
        self._orders.write("tell\n")
        self._orders.flush()
        return Held(**self._answer())

    @property
    def memory_mb(self) -> float:
        return float(self._process.memory_info().rss) / 1e6

    def stop(self, timeout_s: float) -> bool:
        """End it; whether it came to its end by itself, in time."""
        self._orders.close()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)
            return False
        finally:
            self._lines.close()
        return self.process.returncode == 0


class _Inside:
    """The process, from inside."""

    def __init__(self, gateway: Gateway, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        self._gateway, self._loop, self._stop = gateway, loop, stop
        self._process = psutil.Process()

    def listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == "tell":
                held = asyncio.run_coroutine_threadsafe(self._held(), self._loop).result()
                print(json.dumps(asdict(held)), flush=True)
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _held(self) -> Held:
        gc.collect()
        if sys.platform == "linux":  # what was freed goes back to the system, or its size says nothing
            ctypes.CDLL(None).malloc_trim(0)
        gateway = self._gateway
        return Held(
            tasks=len(asyncio.all_tasks()),
            pending=len(gateway.exchange.pending),
            budget=gateway._budget.used,
            streams=len(gateway._taps) + len(gateway._generate),
            descriptors=self._process.num_fds(),
            memory_mb=self._process.memory_info().rss / 1e6,
        )


def _trim(fabric: MemoryFabric, ended: threading.Event) -> None:
    """Forget old records, as retention does; positions of consumers are never so far behind."""
    while not ended.wait(_TRIM_S):
        for name, topic in list(fabric.stored.items()):
            if name.startswith(("dataflow.plans", "dataflow.schemas")):
                continue
            for partition in range(len(topic.partitions)):
                position = (name, partition)
                end = fabric.offsets([position], LATEST)[position]
                fabric.delete_records(position, end - _KEPT_RECORDS)


def main(folder: Path, options: Options) -> None:
    project.write(folder)
    ended = threading.Event()
    with ExitStack() as held:
        fabric: Fabric
        if options.broker:
            broker = held.enter_context(Broker(BrokerSettings(data=folder / "broker", ephemeral=True)))
            kafka = KafkaFabric(broker.bootstrap)
            held.callback(kafka.close)
            fabric = kafka
        else:
            fabric = memory = MemoryFabric()
            threading.Thread(target=_trim, args=(memory, ended), daemon=True).start()
        assembled = assemble(folder, environ=os.environ, deployed=dict)
        for plan in assembled.plans:
            deploy(fabric, plan)
        host = Host(Workshop(folder, assembled.registry, fabric))
        held.callback(host.stop)
        held.callback(ended.set)
        host.run(assembled.plans)
        if not host.await_ready(_READY_S):
            raise DataflowError(f"the workers do not start: {host.failed}")
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_serve(host, options))


async def _serve(host: Host, options: Options) -> None:
    gateway = host.gateway({}, detail=True)
    stop = asyncio.Event()
    inside = _Inside(gateway, asyncio.get_running_loop(), stop)
    grpc_ports: list[int] = []
    limits = DoorLimits(
        head_ms=options.head_ms,
        body_ms=options.body_ms,
        stall_ms=options.stall_ms,
        keep_alive_ms=options.keep_alive_ms,
        linger_ms=options.linger_ms,
    )

    def started(port: int) -> None:
        print(json.dumps({"port": port, "grpc": grpc_ports[0]}), flush=True)
        threading.Thread(target=inside.listen, daemon=True).start()

    served: Any = gateway
    if options.mutants:
        served = _broken(gateway, options.mutants)
    await serve(served, "127.0.0.1", 0, stop, started, grpc=GrpcDoorAt(0, grpc_ports.append), limits=limits)


def _broken(gateway: Gateway, names: Sequence[str]) -> Gateway:
    """The gateway, broken for callers over HTTP and itself for all who look into it."""
    mutant = Mutant(gateway, [MUTANTS[name] for name in names])

    class Broken(type(gateway)):  # type: ignore[misc]  # made around an instance
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await mutant(scope, receive, send)

    broken = Broken.__new__(Broken)
    broken.__dict__ = gateway.__dict__
    return broken


if __name__ == "__main__":
    main(Path(sys.argv[1]), Options(**json.loads(sys.argv[2])))
