"""One broker process: launch, readiness, end, and the reading of its log when it fails."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataflow.broker import watchdog
from dataflow.broker.java import Java
from dataflow.broker.settings import HOST, Address
from dataflow.broker.wire import ask_metadata
from dataflow.core.errors import BrokerError

# Below the range from which outgoing connections take their ports (32768 on Linux): a node that is started again
# must find its port as it left it.
_PORTS = range(20_000, 32_000)
_POLL_S = 0.03
_LOG_KEPT_BYTES = 8 * 1024 * 1024


class PortTakenError(BrokerError):
    """A port was free when chosen and is not any more."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What every JVM needs: Java, the folder of jars, and the shared class archive if there is one."""

    java: Java
    jars: Path
    archive: Path | None = None

    def command(self, *arguments: str, heap_mb: int = 128) -> list[str]:
        """The command line of a JVM; classes come from `environment`."""
        archive = [f"-XX:SharedArchiveFile={self.archive}", "-Xshare:auto"] if self.archive else []
        # Compression loads native code, Kafka unmaps buffers: from Java 24 on, allowed here or complained about.
        native = (
            ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]
            if self.java.major >= 24
            else []
        )
        flags = ["-XX:+UseSerialGC", "-XX:-UsePerfData", "-XX:+ExitOnOutOfMemoryError", "-Xlog:cds=off"]
        quiet = [f"-D{_LOGGER}.{name}={value}" for name, value in _LOGGING.items()]
        memory = ["-Xms64m", f"-Xmx{heap_mb}m", "-Djava.awt.headless=true", "-Djava.io.tmpdir=tmp"]
        return [str(self.java.executable), *memory, *flags, *native, *archive, *quiet, *arguments]

    def environment(self) -> dict[str, str]:
        """Only what a JVM needs: no secrets of ours, no Java options of the user's other programs."""
        kept = {
            name: os.environ[name] for name in ("PATH", "HOME", "TZ", "LD_LIBRARY_PATH") if name in os.environ
        }
        classes = os.pathsep.join(str(path) for path in sorted(self.jars.glob("*.jar")))
        return {**kept, "LC_ALL": "C.UTF-8", "CLASSPATH": classes}


_LOGGER = "org.slf4j.simpleLogger"
_LOGGING = {
    "defaultLogLevel": "warn",
    "log.kafka.server.KafkaRaftServer": "info",
    "showDateTime": "true",
    "dateTimeFormat": "yyyy-MM-dd HH:mm:ss.SSS",
}


class Process:
    """A JVM behind its watchdog (owned), or on its own (detached)."""

    def __init__(
        self,
        runtime: Runtime,
        folder: Path,
        *,
        arguments: Sequence[str],
        heap_mb: int,
        owned: bool,
        keep: Iterable[int] = (),
        grace_s: float = 20.0,
        ephemeral: bool = False,
    ) -> None:
        """Start it in `folder`; descriptors in `keep` stay open in it.

        The folder of an ephemeral one is deleted if this process dies.
        """
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self.log = folder / "broker.log"
        _shorten(self.log)
        kept = tuple(keep)
        order = {
            "command": runtime.command(*arguments, heap_mb=heap_mb),
            "environment": runtime.environment(),
            "folder": str(folder),
            "log": str(self.log),
            "keep": kept,
            "owned": owned,
            "parent": os.getpid(),
            "remove": str(folder) if ephemeral else None,
            "grace_s": grace_s,
        }
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", watchdog.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=kept,
            start_new_session=True,
        )
        assert self._watchdog.stdin is not None
        assert self._watchdog.stdout is not None
        try:
            self._watchdog.stdin.write(json.dumps(order).encode() + b"\n")
            self._watchdog.stdin.flush()
            said = self._watchdog.stdout.readline()
            if not said.strip():
                raise BrokerError(f"cannot start {runtime.java.executable}: {_tail(self.log, 3)}")
        except BaseException:
            self.end()
            raise
        self.pid = int(said)
        self._owned = owned
        self._marker = str(folder)
        if not owned:
            self._let_go()

    def alive(self) -> bool:
        return self._watchdog.poll() is None if self._owned else is_ours(self.pid, self._marker)

    def ask_to_end(self) -> None:
        """Let the watchdog end it in order, without waiting."""
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()

    def end(self) -> None:
        """Ask it to end, wait, and insist."""
        self._let_go()

    def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        if self.alive():
            send_signal(self.pid, signal.SIGKILL)
        self._let_go()

    def _let_go(self) -> None:
        assert self._watchdog.stdout is not None
        self.ask_to_end()
        self._watchdog.wait()
        self._watchdog.stdout.close()


def await_ready(
    process: Process, address: Address, *, cluster_id: str, node_ids: Iterable[int], timeout_s: float
) -> None:
    """Block until the node answers as itself and sees `node_ids` up, else say why it did not."""
    wanted = frozenset(node_ids)
    deadline = time.monotonic() + timeout_s
    while True:
        view = ask_metadata(HOST, address.port)
        if view is not None and view.cluster_id == cluster_id and wanted <= view.node_ids:
            return
        if not process.alive():
            raise explain(process.log, address)
        if time.monotonic() > deadline:
            raise BrokerError(
                f"the broker did not get ready within {timeout_s:.0f} s (log: {process.log}): {_tail(process.log, 3)}",
                hint="the machine may be busy: try again; or dataflow broker logs",
            )
        time.sleep(_POLL_S)


def explain(log: Path, address: Address) -> BrokerError:
    """The one message for a JVM that ended by itself, from its log."""
    text = _tail(log, 60)
    for pattern, kind, message, hint in _CAUSES:
        if re.search(pattern, text):
            places = {"folder": log.parent, "port": address.port}
            return kind(message.format(**places), hint=hint.format(**places))
    return BrokerError(
        f"the broker ended while starting (log: {log}): {_first_error(text)}", hint="see dataflow broker logs"
    )


_OTHER_FOLDER = "choose another folder with --data DIR"
# What the log says, and what we say.
_CAUSES: tuple[tuple[str, type[BrokerError], str, str], ...] = (
    (
        r"Address already in use|Socket server failed to bind",
        PortTakenError,
        f"port {{port}} of {HOST} is in use by another process",
        "leave the port out to get a free one, or stop what listens there",
    ),
    (
        r"No space left on device",
        BrokerError,
        "no space left for the broker's data in {folder}",
        f"free some space, or {_OTHER_FOLDER}",
    ),
    (
        r"Failed to acquire lock on file",
        BrokerError,
        "another broker process uses {folder}/kafka",
        f"find it with: ps -ef | grep {{folder}}; end it, or {_OTHER_FOLDER}",
    ),
    (
        r"OutOfMemoryError|Could not reserve enough space|insufficient memory",
        BrokerError,
        "there is not enough memory for the broker",
        "free some memory, or give the broker a smaller heap",
    ),
)


def port_is_free(port: int) -> bool:
    """Whether a server could listen there now (a connection in its last wait does not count, as for Java)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_ports() -> Iterator[int]:
    """Ports nobody listens on now, none twice."""
    for port in random.sample(_PORTS, len(_PORTS)):
        if port_is_free(port):
            yield port


def is_ours(pid: int, marker: str) -> bool:
    """Whether `pid` lives and its command line names the folder `marker`. A zombie has no command line."""
    try:
        if Path("/proc/self/cmdline").exists():
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            return bool(command) and marker.encode() in command
        told = subprocess.run(
            ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
    except OSError:
        return False
    return bool(told.stdout.strip()) and marker in told.stdout


def send_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _shorten(log: Path) -> None:
    """Keep one old log aside once it is large: only a start rotates."""
    if log.exists() and log.stat().st_size > _LOG_KEPT_BYTES:
        log.replace(log.with_suffix(".log.1"))


def _tail(log: Path, lines: int) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "no log"


def _first_error(text: str) -> str:
    lines = text.splitlines()
    telling = [line for line in lines if " ERROR " in line or line.startswith("Error") or "Exception" in line]
    return (telling or lines[-1:] or ["nothing was logged"])[0][:300]
