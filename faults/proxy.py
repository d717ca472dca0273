"""The network between workers and brokers, in a process of its own, that can be cut: one process's connections at a time.

Kafka tells these clients to come here (a listener of its own, advertised with the proxy's port), so nothing goes round it.
A cut is ordered by a line of JSON on standard input and stays until it is healed:

    {"cut": PID, "how": "silence"}   nothing passes in either direction, nothing is closed: as an unplugged cable
    {"cut": PID, "how": "deaf"}      requests arrive, answers do not: whoever asked does not know what became of it
    {"cut": PID, "how": "reset"}     connections are reset and refused
    {"heal": PID}
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any, Final

import psutil

HOST: Final = "127.0.0.1"
_CHUNK: Final = 1 << 16
_LOOK_S: Final = 0.05


class Link:
    """One connection of a client, and ours to the broker behind it. `port` is the client's own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int) -> None:
        self._client = (reader, writer)
        self._target = target
        self.port: int = writer.get_extra_info("peername")[1]
        self.open_up = asyncio.Event()
        self.open_down = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._writers = [writer]

    async def run(self) -> None:
        try:
            reader, writer = await asyncio.open_connection(HOST, self._target)
        except OSError:
            self.close()
            return
        self._writers.append(writer)
        self._tasks = [
            asyncio.create_task(_pump(self._client[0], writer, self.open_up)),
            asyncio.create_task(_pump(reader, self._client[1], self.open_down)),
        ]
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self.close()

    def let(self, *, up: bool, down: bool) -> None:
        for event, wanted in ((self.open_up, up), (self.open_down, down)):
            if wanted:
                event.set()
            else:
                event.clear()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    try:
        while chunk := await reader.read(_CHUNK):
            await gate.wait()
            writer.write(chunk)
            await writer.drain()
    except OSError:
        pass


class Network:
    """All links, and the cuts in force by process id."""

    def __init__(self) -> None:
        self.links: set[Link] = set()
        self.cuts: dict[int, str] = {}

    async def serve(self, port: int, target: int) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            link = Link(reader, writer, target)
            self.links.add(link)
            try:
                self.apply([link])
                await link.run()
            finally:
                self.links.discard(link)

        await asyncio.start_server(accept, HOST, port)

    def order(self, line: str) -> None:
        order = json.loads(line)
        if "cut" in order:
            self.cuts[order["cut"]] = order["how"]
        else:
            self.cuts.pop(order["heal"], None)
        self.apply(list(self.links))

    def apply(self, links: list[Link]) -> None:
        """Let pass what may: whose connections they are is asked of the system, and only while there is a cut."""
        owners = {port: how for pid, how in self.cuts.items() for port in _ports(pid)}
        for link in links:
            how = owners.get(link.port, "")
            link.let(up=how in {"", "deaf"}, down=not how)
            if how == "reset":
                link.close()


def _ports(pid: int) -> set[int]:
    """The local ports of a process's connections."""
    try:
        return {c.laddr.port for c in psutil.Process(pid).net_connections("tcp4") if c.raddr}
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return set()


async def _main(routes: Mapping[int, int]) -> None:
    network, loop = Network(), asyncio.get_running_loop()
    ended = asyncio.Event()
    for port, target in routes.items():
        await network.serve(port, target)

    def listen() -> None:
        for line in sys.stdin:
            asyncio.run_coroutine_threadsafe(_order(network, line), loop).result()
            _say("done")
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=listen, daemon=True).start()
    _say("ready")
    await ended.wait()
    os._exit(0)


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def _order(network: Network, line: str) -> None:
    network.order(line)


class Proxy:
    """The proxy's process, from outside. `routes`: the port clients come to -> the port of the broker behind it."""

    def __init__(self, routes: Mapping[int, int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.proxy", json.dumps({str(k): v for k, v in routes.items()})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            # Linux gives each session its share of the processors: what the workers do is not to starve the network.
            start_new_session=True,
        )  # fmt: skip
        self._expect("ready")

    def cut(self, pid: int, how: str) -> None:
        self._order({"cut": pid, "how": how})

    def heal(self, pid: int) -> None:
        self._order({"heal": pid})

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _order(self, order: Mapping[str, Any]) -> None:
        stdin: IO[str] = self._process.stdin  # type: ignore[assignment]  # a pipe, see above
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        self._expect("done")

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != word:
            raise RuntimeError(f"the proxy said {said!r} instead of {word!r}")


if __name__ == "__main__":
    asyncio.run(_main({int(k): int(v) for k, v in json.loads(sys.argv[1]).items()}))
