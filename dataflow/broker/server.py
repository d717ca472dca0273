"""The embedded broker as others see it: `Broker`, `Cluster`, and `status`, `stop`, `logs` for another process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from dataflow.broker import prepare, storage
from dataflow.broker.jars import OnProgress, Progress
from dataflow.broker.locks import take_lock
from dataflow.broker.node import (
    PortTakenError,
    Process,
    Runtime,
    await_ready,
    free_ports,
    is_ours,
    port_is_free,
    send_signal,
)
from dataflow.broker.settings import HOST, Address, BrokerSettings, properties_text, server_properties
from dataflow.broker.storage import NodeState, State
from dataflow.broker.wire import ask_metadata
from dataflow.core.errors import BrokerError

_STOP_S = 25.0
_POLL_S = 0.03


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """A running broker: `answering` is whether it answers right now."""

    bootstrap: str
    pids: tuple[int, ...]
    cluster_id: str
    started_at_ms: int
    ephemeral: bool
    answering: bool
    data: Path


class Node:
    """One node of a `Broker`: it keeps its address and its data over `stop`, `kill` and `start`."""

    def __init__(self, address: Address, folder: Path, launch: Callable[[Node], Process]) -> None:
        self.address = address
        self.folder = folder
        self._launch = launch
        self.process: Process | None = None

    @property
    def pid(self) -> int:
        """The JVM's process id; 0 while it is not running."""
        return self.process.pid if self.process is not None and self.process.alive() else 0

    def start(self) -> None:
        """Start it again after `stop` or `kill`, and wait until it answers."""
        if not self.pid:
            self.process = self._launch(self)

    def stop(self) -> None:
        """End it in order. Does nothing to one that is not running."""
        if self.process is not None:
            self.process.end()
            self.process = None

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process = None


class Broker:
    """Apache Kafka as a child process, on loopback. `with Broker(settings) as broker: broker.bootstrap`.

    Owned (the default): it ends with this object or this process, whatever happens to it. `detached`: it lives
    until `stop(data)`. Not thread-safe: one owner starts and stops it.
    """

    def __init__(
        self, settings: BrokerSettings, *, on_progress: OnProgress | None = None, detached: bool = False
    ) -> None:
        self.settings = replace(settings, data=Path(settings.data).expanduser().resolve())
        self.nodes: tuple[Node, ...] = ()
        self._on_progress = on_progress or _ignore
        self._detached = detached
        self._lock: int | None = None
        self._folder = self.settings.data
        self._cluster_id = ""
        self._runtime: Runtime | None = None

    @property
    def bootstrap(self) -> str:
        """`host:port` of every node, comma-separated; empty before the first start."""
        return ",".join(node.address.bootstrap for node in self.nodes)

    @property
    def pid(self) -> int:
        """The (first) JVM's process id; 0 while it is not running."""
        return self.nodes[0].pid if self.nodes else 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and return once it answers. Raises `BrokerError`; nothing is left running then."""
        if any(node.pid for node in self.nodes):
            return
        data = self.settings.data
        with storage.disk_errors(data):
            data.mkdir(parents=True, exist_ok=True)
            self._take_folder()
        try:
            self._runtime = prepare.runtime(self._on_progress)
            with storage.disk_errors(data):
                self._make_folder()
            self._start_with_ports()
        except BaseException:
            self._release(forget=True)
            raise
        if self._detached:
            self._release(forget=False)

    def stop(self) -> None:
        """End it in order and, of an ephemeral one, delete its data."""
        if self._detached:
            stop(self.settings.data)
            return
        if not self.settings.ephemeral:
            for node in self.nodes:
                if node.process is not None:
                    node.process.ask_to_end()
            for node in self.nodes:
                node.stop()
        self._release(forget=True)

    def kill(self) -> None:
        """End every node as a power cut would. The data stays; `start` goes on from it."""
        for node in self.nodes:
            if self._detached and node.pid:
                send_signal(node.pid, signal.SIGKILL)
            node.kill()

    def _take_folder(self) -> None:
        """Become the only user of the data folder; clean up after one that was killed."""
        data = self.settings.data
        if self._lock is not None:
            return
        deadline = time.monotonic() + _STOP_S
        while (lock := take_lock(data / "lock", wait=False)) is None:
            state = storage.read_state(data)
            # The broker of an owner that was killed is on its way out: its watchdog sees to that.
            orphaned = state is not None and state.owner_pid and not is_ours(state.owner_pid, "")
            if not orphaned or time.monotonic() > deadline:
                raise _in_use(data)
            time.sleep(_POLL_S)
        self._lock = lock
        storage.forget_state(data, storage.read_state(data))

    def _make_folder(self) -> None:
        if self.settings.ephemeral and not self.nodes:
            self._folder = storage.make_ephemeral()
        storage.check_space(self._folder)
        storage.check_nodes(self._folder, self.settings.nodes)
        self._cluster_id = storage.identify(self._folder)

    def _start_with_ports(self) -> None:
        """Choose ports and start; a chosen one that was taken meanwhile is chosen again, a wished one is not."""
        for attempt in range(4):
            self.nodes = self.nodes or self._make_nodes()
            try:
                for node in self.nodes:
                    node.process = self._spawn(node)
                for node in self.nodes:
                    self._await(node, (other.address.node_id for other in self.nodes))
                return
            except PortTakenError:
                for node in self.nodes:
                    node.kill()
                if self.settings.port or attempt == 3:
                    raise
                self.nodes = ()

    def _make_nodes(self) -> tuple[Node, ...]:
        wished = self.settings.port
        if wished and not port_is_free(wished):
            raise PortTakenError(
                f"port {wished} of {HOST} is in use by another process",
                hint="leave the port out to get a free one, or stop what listens there",
            )
        ports = free_ports()
        addresses = [
            Address(node_id, wished or next(ports), next(ports))
            for node_id in range(1, self.settings.nodes + 1)
        ]
        return tuple(
            Node(address, storage.node_folder(self._folder, address.node_id), self._relaunch)
            for address in addresses
        )

    def _relaunch(self, node: Node) -> Process:
        node.process = self._spawn(node)
        try:
            self._await(node, [node.address.node_id])
        except BaseException:
            node.kill()
            raise
        return node.process

    def _spawn(self, node: Node) -> Process:
        assert self._runtime is not None
        assert self._lock is not None
        properties = server_properties(self.settings, node.address, [other.address for other in self.nodes])
        with storage.disk_errors(node.folder):
            node.folder.mkdir(parents=True, exist_ok=True)
            checkpoint = prepare.feature_checkpoint(self._runtime)
            storage.format_storage(node.folder, node.address.node_id, self._cluster_id, checkpoint)
            configuration = node.folder / "server.properties"
            configuration.write_text(properties_text(properties))
            node.process = Process(
                self._runtime,
                node.folder,
                arguments=("kafka.Kafka", str(configuration)),
                heap_mb=self.settings.heap_mb,
                owned=not self._detached,
                keep=(self._lock,),
                # The last nodes of a cluster wait in vain for a majority: Kafka loses nothing by being killed.
                grace_s=20.0 if self.settings.nodes == 1 else 5.0,
                ephemeral=self.settings.ephemeral,
            )
            storage.write_state(self.settings.data, self._state())
        return node.process

    def _await(self, node: Node, node_ids: Iterable[int]) -> None:
        assert node.process is not None
        self._on_progress(Progress(f"starting Kafka on {node.address.bootstrap}"))
        await_ready(
            node.process,
            node.address,
            cluster_id=self._cluster_id,
            node_ids=node_ids,
            timeout_s=self.settings.ready_timeout_s,
        )

    def _state(self) -> State:
        running = [(node.address, node.process.pid) for node in self.nodes if node.process is not None]
        return State(
            folder=str(self._folder),
            cluster_id=self._cluster_id,
            started_at_ms=time.time_ns() // 1_000_000,
            ephemeral=self.settings.ephemeral,
            owner_pid=0 if self._detached else os.getpid(),
            nodes=tuple(NodeState(address.node_id, pid, address.port) for address, pid in running),
        )

    def _release(self, *, forget: bool) -> None:
        """Let go of the folder; with `forget`, nothing runs in it any more."""
        if self._lock is None:
            return
        if forget:
            for node in self.nodes:
                node.kill()
            storage.forget_state(self.settings.data, storage.read_state(self.settings.data))
            if self.settings.ephemeral:
                storage.remove_ephemeral(self._folder)
                self.nodes = ()
        os.close(self._lock)
        self._lock = None


class Cluster(Broker):
    """Three nodes with replication 3 and two in-sync replicas at least, for tests of faults: see `nodes`."""

    def __init__(
        self,
        data: Path,
        *,
        ephemeral: bool = True,
        properties: Mapping[str, str] | None = None,
        doors: Mapping[int, tuple[int, int]] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        settings = BrokerSettings(
            data, ephemeral=ephemeral, heap_mb=320, nodes=3, properties=properties or {}, doors=doors or {}
        )
        super().__init__(settings, on_progress=on_progress)


def status(data: Path) -> BrokerStatus | None:
    """The broker that runs in this data folder, None if none does (a stale state file is no broker)."""
    data = Path(data).expanduser().resolve()
    state = storage.read_state(data)
    running = _running(state)
    if state is None or not running:
        return None
    view = ask_metadata(HOST, running[0].port)
    return BrokerStatus(
        bootstrap=",".join(f"{HOST}:{node.port}" for node in running),
        pids=tuple(node.pid for node in running),
        cluster_id=state.cluster_id,
        started_at_ms=state.started_at_ms,
        ephemeral=state.ephemeral,
        answering=view is not None and view.cluster_id == state.cluster_id,
        data=data,
    )


def stop(data: Path) -> bool:
    """End the broker that runs in this data folder, from any process. False if none did."""
    data = Path(data).expanduser().resolve()
    state = storage.read_state(data)
    running = _running(state)
    if state is None:
        return False
    for number, patience_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, 5.0)):
        for node in running:
            if _is_running(state, node):
                send_signal(node.pid, number)
        deadline = time.monotonic() + patience_s
        while any(_is_running(state, node) for node in running) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    storage.forget_state(data, state)
    return bool(running)


def log_files(data: Path) -> tuple[Path, ...]:
    """The log of each node of the data folder's broker, running or not."""
    data = Path(data).expanduser().resolve()
    state = storage.read_state(data)
    folder = Path(state.folder) if state is not None else data
    return tuple(sorted(folder.glob("node-*/broker.log")))


def logs(data: Path, lines: int = 50) -> list[str]:
    """The last `lines` lines of the broker's log (of several nodes, each)."""
    texts = (path.read_text(errors="replace") for path in log_files(data))
    return [line for text in texts for line in text.splitlines()[-lines:]] if lines > 0 else []


def _running(state: State | None) -> tuple[NodeState, ...]:
    return tuple(node for node in state.nodes if _is_running(state, node)) if state is not None else ()


def _is_running(state: State, node: NodeState) -> bool:
    return is_ours(node.pid, str(storage.node_folder(Path(state.folder), node.node_id)))


def _in_use(data: Path) -> BrokerError:
    running = status(data)
    if running is None:
        return BrokerError(
            f"another process is starting a broker in {data} right now",
            hint="wait for it and use its address (dataflow broker status), or choose another folder with --data DIR",
        )
    return BrokerError(
        f"a broker already runs in {data}: process {running.pids[0]}, {running.bootstrap}",
        hint=f"use it with --bootstrap {running.bootstrap}, or end it with dataflow broker stop",
    )


def _ignore(_progress: Progress) -> None:
    pass
