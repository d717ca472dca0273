"""Server-sent events of any edge: a consumer of its own per tap, outside every pipeline.

A caller who reads slowly slows nothing but its own tap: its consumer waits, the log keeps the records.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import orjson

from dataflow.core.errors import DataflowError, ExpressionError, GatewayError, nearest
from dataflow.core.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_TAP_BACKLOG
from dataflow.gateway.tap_events import Events, WriterOf
from dataflow.planner.plan import EdgePlan, Plan
from dataflow.transport.api import EARLIEST, LATEST, Consumer, Fabric, Position

log = logging.getLogger("dataflow.gateway")

# Wake-ups of an idle tap, and how long closing one may take.
POLL_S: Final = 0.2
# A line without meaning after this silence, so that proxies keep the connection and a dead one is noticed.
KEEP_ALIVE_S: Final = 15.0
# A caller who does not take what it was sent for this long is gone.
STALL_S: Final = 30.0

_AGO: Final = re.compile(r"-(\d{1,9})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_QUERY: Final = ("from", "id", "where", "limit")


@dataclass(frozen=True, slots=True)
class Start:
    """Where a tap begins: at `offset` of every partition (EARLIEST, LATEST allowed), or at `time_ms` if that is set."""

    offset: int = LATEST
    time_ms: int = -1


def parse_start(text: str, now_ms: int) -> Start:
    """``latest``, ``earliest``, an offset, an ISO 8601 time or ``-5m``. Raises GatewayError 400."""
    if text in ("latest", "earliest"):
        return Start(LATEST if text == "latest" else EARLIEST)
    if text.isascii() and text.isdigit() and len(text) < 19:
        return Start(int(text))
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return Start(time_ms=max(now_ms - int(ago[1]) * _SECONDS[ago[2]] * 1_000, 0))
    try:
        time = datetime.fromisoformat(text)
        stamp = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise GatewayError(
            400,
            f"from={text[:80]} is no place to start",
            hint="valid: latest, earliest, an offset, a time such as 2024-05-01T12:00:00Z, or -5m",
        ) from None
    return Start(time_ms=max(int(stamp * 1_000), 0))


def parse_limit(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) == 0:
        raise GatewayError(400, f"limit={text[:40]} is not a count of records above 0")
    return int(text)


def edge_of(plan: Plan, name: str) -> EdgePlan:
    edge = plan.edges.get(name)
    if edge is None:
        raise GatewayError(
            404, f"pipeline '{plan.pipeline}' has no edge '{name[:100]}'", hint=nearest(name, plan.edges)
        )
    if not edge.topics:
        raise GatewayError(404, f"edge '{name}' is declared `write: off`: there is nothing to tap")
    return edge


def check_query(query: Mapping[str, str]) -> None:
    for name in query:
        if name not in _QUERY:
            raise GatewayError(400, f"unknown query parameter '{name[:100]}'", hint=nearest(name, _QUERY))


class Tap:
    """One tap. `open` fixes where it starts; `parts` are the bytes of the event stream."""

    def __init__(
        self, fabric: Fabric, edge: EdgePlan, start: Start, events: Events, limit: int | None
    ) -> None:
        self._fabric = fabric
        self._edge = edge
        self._start = start
        self._events = events
        self._limit = limit
        self._offsets: dict[Position, int] = {}
        self._room = threading.Condition()
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._over = False
        self._stop = False
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"dataflow-tap-{edge.name}", daemon=True)

    async def open(self) -> None:
        """Find the offsets and start to read. Raises GatewayError 404, 503."""
        try:
            self._offsets = await asyncio.to_thread(self._find_offsets)
        except DataflowError as error:
            raise GatewayError(503, error.message, hint=error.hint) from error
        if not self._offsets:
            raise GatewayError(
                404, f"no topic of edge '{self._edge.name}' exists yet", hint="is the pipeline running?"
            )
        self._thread.start()

    def _find_offsets(self) -> dict[Position, int]:
        admin = self._fabric.admin()
        topics = admin.describe(self._edge.topics)
        positions = [(name, p) for name, info in topics.items() for p in range(info.partitions)]
        if not positions:
            return {}
        if self._start.time_ms >= 0:
            return admin.offsets(positions, self._start.time_ms)
        if self._start.offset < 0:
            return admin.offsets(positions, self._start.offset)
        low, high = admin.offsets(positions, EARLIEST), admin.offsets(positions, LATEST)
        return {p: min(max(self._start.offset, low[p]), high[p]) for p in positions}

    def close(self) -> None:
        """Stop reading; `parts` ends."""
        with self._room:
            self._stop = True
            self._room.notify_all()
        self._news.set()

    async def parts(self, done: Callable[[Tap], object]) -> AsyncGenerator[bytes, None]:
        """The stream; `done` is told when it ended."""
        try:
            yield b": tap of " + self._edge.name.encode() + b"\n\n"
            while not self._stop:
                try:
                    await asyncio.wait_for(self._news.wait(), KEEP_ALIVE_S)
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                self._news.clear()
                with self._room:
                    part, over = b"".join(self._backlog), self._over
                    self._backlog.clear()
                    self._backlog_bytes = 0
                    self._room.notify_all()
                if part:
                    yield part
                if over:
                    return
        finally:
            self.close()
            done(self)

    def _run(self) -> None:
        consumer: Consumer | None = None
        try:
            consumer = self._fabric.consumer()
            consumer.assign(self._offsets)
            left = self._limit
            while not self._stop and (left is None or left > 0):
                messages = consumer.poll(MAX_BATCH_RECORDS, POLL_S)
                made = self._events.of(messages)
                if left is not None:
                    made = made[:left]
                    left -= len(made)
                self._put(made)
        except DataflowError as error:
            self._put([b"event: error\ndata: " + orjson.dumps({"error": str(error)}) + b"\n\n"])
        except Exception:  # a fault of ours must end the tap, not leave it silent for ever
            log.exception("tap of edge '%s'", self._edge.name)
            self._put([b'event: error\ndata: {"error":"the tap failed"}\n\n'])
        finally:
            if consumer is not None:
                consumer.close()
            with self._room:
                self._over = True
            self._tell()

    def _put(self, made: Sequence[bytes]) -> None:
        if not made:
            return
        with self._room:
            self._room.wait_for(
                lambda: (
                    self._stop
                    or (len(self._backlog) < MAX_TAP_BACKLOG and self._backlog_bytes < MAX_BATCH_BYTES)
                )
            )
            self._backlog.extend(made)
            self._backlog_bytes += sum(map(len, made))
        self._tell()

    def _tell(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)


def open_events(
    plan: Plan,
    edge: EdgePlan,
    query: Mapping[str, str],
    *,
    private: bool,
    writer_of: WriterOf | None = None,
) -> Events:
    """The filter and the form of a tap's events. Raises GatewayError 400 for a bad filter, 403 for a private one."""
    try:
        return Events(
            plan,
            edge,
            record_id=query.get("id", ""),
            where=query.get("where", ""),
            private=private,
            writer_of=writer_of,
        )
    except ExpressionError as error:
        raise GatewayError(400, error.message, hint=error.hint) from error
