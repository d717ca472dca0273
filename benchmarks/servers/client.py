"""The caller: the same for every server, in a process of its own, over keep-alive connections of HTTP/1.1.

python -m benchmarks.servers.client LOAD.json        # what `load.Load.write` wrote

Closed loop: each connection has one request under way, for so many seconds. Open loop (`rate`): requests are due at the
times of a Poisson process, whatever the server does; a request's time counts from when it was due, so that a server that
makes the caller wait does not hide it. Answers are checked once all are in: checking costs the server nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvloop

from benchmarks.servers.load import Load, window_end, wrong

# What an open loop opens at most; more requests than that wait for one, and their time runs.
MAX_CONNECTIONS = 2_000
# How long an open loop waits for the last answers.
PATIENCE_S = 5.0
# An answer that comes later is none: the caller has gone.
IN_TIME_S = 1.0

Answer = tuple[int, int, bytes]  # number of the request, status, head and body


class Connection(asyncio.Protocol):
    """One connection with at most one request under way; `ended(connection, status, answer)` at each answer's end."""

    def __init__(
        self, ended: Callable[[Connection, int, bytes], None], lost: Callable[[Connection], None]
    ) -> None:
        self._ended = ended
        self._lost = lost
        self._transport: asyncio.Transport
        self._buffer = b""
        self.number = -1
        self.since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, number: int, since: float, request: bytes) -> None:
        self.number, self.since = number, since
        self._transport.write(request)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0 or not _whole(self._buffer, head):
            return
        answer, self._buffer = self._buffer, b""
        self._ended(self, int(answer[9:12]), answer)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._lost(self)


def _whole(buffer: bytes, head: int) -> bool:
    top = buffer[:head].lower()
    at = top.find(b"\r\ncontent-length:")
    if at >= 0:
        end = top.find(b"\r", at + 2)
        return len(buffer) >= head + 4 + int(top[at + 17 :] if end < 0 else top[at + 17 : end])
    return b"chunked" in top and buffer.endswith(b"\r\n0\r\n\r\n")


class Closed:
    """So many callers, each of whom asks again at once."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = load.requests()
        self._numbers = count()
        self.times: list[tuple[float, float]] = []  # when it was answered, and how long that took
        self.answers: list[Answer] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open = 0

    async def run(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        host, _, port = self._load.address.partition(":")
        made = [
            (await loop.create_connection(lambda: Connection(self._ended, self._lost), host, int(port)))[1]
            for _ in range(self._load.concurrency)
        ]
        self._open = len(made)
        started = time.perf_counter()
        self._end = started + self._load.warm_up_s + self._load.seconds
        for connection in made:
            self._send(connection)
        await self.done
        first = started + self._load.warm_up_s
        end = window_end(first, self._end, (at for at, _ in self.times))
        return {
            "seconds": round(end - first, 4),
            "asked": len(self.times),
            "latencies_ms": [round(took * 1e3, 4) for at, took in self.times if first <= at <= end],
        }

    def _send(self, connection: Connection) -> None:
        number = next(self._numbers)
        connection.send(number, time.perf_counter(), self._requests[number % len(self._requests)])

    def _ended(self, connection: Connection, status: int, answer: bytes) -> None:
        now = time.perf_counter()
        self.times.append((now, now - connection.since))
        self.answers.append((connection.number, status, answer))
        if now < self._end:
            self._send(connection)
        else:
            connection.close()

    def _lost(self, connection: Connection) -> None:
        del connection
        self._open -= 1
        if self.done.done():
            return
        if time.perf_counter() < self._end:
            self.done.set_exception(ConnectionError("the server hung up"))
        elif not self._open:
            self.done.set_result(None)


class Open:
    """Requests that come when they come."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = load.requests()
        random = np.random.default_rng(load.seed)
        span = load.warm_up_s + load.seconds
        gaps = random.exponential(1 / load.rate, int(load.rate * span * 1.2) + 100)
        due = np.cumsum(gaps)
        self._due: list[float] = due[due < span].tolist()
        self._idle: deque[Connection] = deque()
        self._waiting: deque[int] = deque()  # due, without a connection
        self._connections = 0
        self._next = 0
        self.outcomes: list[tuple[int, float, int]] = []  # number, seconds since due, status (0: hung up)
        self.answers: list[Answer] = []
        self.delays: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        for _ in range(min(self._load.concurrency, MAX_CONNECTIONS)):
            await self._connect(None)
        self._started = time.perf_counter()
        self._tick()
        span = self._load.warm_up_s + self._load.seconds
        late = loop.call_later(span + PATIENCE_S, self._give_up)
        await self.done
        late.cancel()
        return self._summary()

    def _tick(self) -> None:
        now = time.perf_counter() - self._started
        while self._next < len(self._due) and self._due[self._next] <= now:
            self.delays.append(now - self._due[self._next])
            self._ask(self._next)
            self._next += 1
        if self._next < len(self._due):
            # The loop's clock has ticks of a millisecond: `delays` tells how late requests are for that.
            asyncio.get_running_loop().call_later(max(self._due[self._next] - now, 0.0), self._tick)

    def _ask(self, number: int) -> None:
        if self._idle:
            self._send(self._idle.popleft(), number)
        elif self._connections < MAX_CONNECTIONS:
            task = asyncio.get_running_loop().create_task(self._connect(number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._waiting.append(number)

    def _send(self, connection: Connection, number: int) -> None:
        connection.send(
            number, self._started + self._due[number], self._requests[number % len(self._requests)]
        )

    async def _connect(self, number: int | None) -> None:
        self._connections += 1
        host, _, port = self._load.address.partition(":")
        try:
            _, made = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._ended, self._lost), host, int(port)
            )
        except OSError:
            self._connections -= 1
            if number is not None:
                self._count(number, 0, b"")
            return
        if number is None:
            self._idle.append(made)
        else:
            self._send(made, number)

    def _ended(self, connection: Connection, status: int, answer: bytes) -> None:
        number, connection.number = connection.number, -1
        if b"\r\nconnection: close" in answer[:1000].lower():
            connection.close()
        elif self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)
        self._count(number, status, answer)

    def _lost(self, connection: Connection) -> None:
        self._connections -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.number >= 0:
            self._count(connection.number, 0, b"")

    def _count(self, number: int, status: int, answer: bytes) -> None:
        took = time.perf_counter() - self._started - self._due[number]
        self.outcomes.append((number, took, status))
        if status == 200:
            self.answers.append((number, status, answer))
        if len(self.outcomes) == len(self._due) and not self.done.done():
            self.done.set_result(None)

    def _give_up(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _summary(self) -> dict[str, Any]:
        first = self._load.warm_up_s
        measured = [(took, status) for n, took, status in self.outcomes if self._due[n] >= first]
        asked = sum(due >= first for due in self._due)
        good = [took for took, status in measured if status == 200]
        return {
            "seconds": self._load.seconds,
            "asked": asked,
            "statuses": dict(Counter(str(status) for _, status in measured)),
            "unanswered": asked - len(measured),
            "in_time": sum(took <= IN_TIME_S for took in good),
            "generator_late_p99_ms": round(float(np.quantile(self.delays or [0.0], 0.99)) * 1e3, 3),
            "latencies_ms": [round(took * 1e3, 4) for took in good],
        }


async def measure(load: Load) -> dict[str, Any]:
    run = Open(load) if load.rate else Closed(load)
    found = await run.run()
    for number, status, answer in run.answers:
        problem = f"status {status}" if status != 200 else wrong(answer, load.expected_of(number))
        if problem:
            raise SystemExit(f"answer {number}: {problem}: {answer[:500]!r}")
    return found


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measure(Load.read(Path(sys.argv[1]))))))
