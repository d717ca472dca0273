"""The caller of `sync-plain`: keep-alive connections, each with one request under way, in a process of its own.

python -m benchmarks.http_client ADDRESS PATH BODIES CONCURRENCY WARM_UP COUNT

BODIES is a JSON file: {"bodies": [text, ...], "expected": [number, ...]}. Requests take the bodies in turn; every
answer is compared with what is expected of its body once all are in, so that checking costs the server nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any, cast

import uvloop

TOLERANCE = 1e-5


class Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._transport: asyncio.Transport
        self._buffer = b""
        self._number = -1
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        self._number = next(self._run.numbers)
        if self._number >= self._run.total:
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(self._run.requests[self._number % len(self._run.requests)])

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        top = self._buffer[:head].lower()
        at = top.index(b"content-length:") + 15
        end = top.find(b"\r", at)
        length = int(top[at:] if end < 0 else top[at:end])
        if len(self._buffer) < head + 4 + length:
            return
        answer, self._buffer = self._buffer, b""
        self._run.ended(self._number, time.perf_counter() - self._sent, answer)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.lost(exc)


class Run:
    """All requests of one measurement."""

    def __init__(self, address: str, path: str, bodies: list[str], warm_up: int, total: int) -> None:
        self.requests = [
            f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(b.encode())}\r\n\r\n{b}".encode()
            for b in bodies
        ]
        self.numbers = count()
        self.total = total
        self.seconds = 0.0
        self.times: list[float] = []
        self.answers: list[tuple[int, bytes]] = []
        self._warm_up = warm_up
        self._started = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def ended(self, number: int, seconds: float, answer: bytes) -> None:
        self.times.append(seconds)
        self.answers.append((number, answer))
        if len(self.times) == self._warm_up:
            self._started = time.perf_counter()
        if len(self.times) == self.total:
            self.seconds = time.perf_counter() - self._started
            self.done.set_result(None)

    def lost(self, error: Exception | None) -> None:
        if not self.done.done() and len(self.times) < self.total and next(self.numbers) < self.total:
            self.done.set_exception(ConnectionError(f"the server hung up: {error}"))

    def check(self, expected: list[float]) -> None:
        """Every answer is 200 and has the number that the model gives for its body."""
        for number, answer in self.answers:
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"answer {number}: {answer[:500].decode()}")
            said: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
            given = {o["name"]: o["data"] for o in said["outputs"]}["y"][0]
            wanted = expected[number % len(expected)]
            if abs(given - wanted) > TOLERANCE:
                raise SystemExit(f"answer {number}: {given} where the model gives {wanted}")


async def measure(
    address: str, path: str, bodies: Path, concurrency: int, warm_up: int, count_: int
) -> dict[str, Any]:
    said = json.loads(bodies.read_text())
    run = Run(address, path, said["bodies"], warm_up, warm_up + count_)
    host, _, port = address.partition(":")
    loop = asyncio.get_running_loop()
    for _ in range(concurrency):
        await loop.create_connection(lambda: Caller(run), host, int(port))
    await run.done
    run.check(said["expected"])
    return {"seconds": run.seconds, "latencies_ms": [round(t * 1e3, 4) for t in run.times[warm_up:]]}


def main(address: str, path: str, bodies: str, *numbers: str) -> None:
    concurrency, warm_up, total = map(int, numbers)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measure(address, path, Path(bodies), concurrency, warm_up, total))))


if __name__ == "__main__":
    main(*sys.argv[1:])
