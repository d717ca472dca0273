"""One HTTP connection, held to bounds: uvicorn's protocol on httptools takes heads without end and waits for ever.

What a stranger can keep busy is bounded in number, bytes and time: connections, headers, addresses, requests sent ahead,
slow heads, slow bodies, answers that nobody takes. What was asked properly before something went wrong on the same
connection is answered first. Times are looked at by `watch`, once for all connections, so that a request costs no timer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from dataflow.core.errors import GatewayError
from dataflow.core.limits import (
    BODY_TIMEOUT_MS,
    FAREWELL_MS,
    HEAD_TIMEOUT_MS,
    KEEP_ALIVE_MS,
    LINGER_MS,
    MAX_CONNECTIONS,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_UNSENT_BYTES,
    MAX_URL_BYTES,
    MIN_BODY_BYTES_PER_S,
    OTHER_DESCRIPTORS,
    STALL_TIMEOUT_MS,
)
from dataflow.gateway.http import RequestError, Response, error_response

# How often connections are looked at, at the most.
_WATCH_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """What connections may do; the reasons are in `dataflow.core.limits`."""

    connections: int = MAX_CONNECTIONS
    head_ms: int = HEAD_TIMEOUT_MS
    body_ms: int = BODY_TIMEOUT_MS
    keep_alive_ms: int = KEEP_ALIVE_MS
    stall_ms: int = STALL_TIMEOUT_MS
    linger_ms: int = LINGER_MS
    farewell_ms: int = FAREWELL_MS

    @property
    def watch_s(self) -> float:
        """Between two looks: a time-out is over by a quarter at the most."""
        return min(_WATCH_S, min(self.head_ms, self.body_ms, self.stall_ms) / 4000)


def room_for(connections: int) -> int:
    """How many of these connections the file descriptors allow; asks the system for more descriptors first."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return connections
    wanted = connections + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    if soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
            soft = max(soft, raised)
        except (OSError, ValueError):  # a system that keeps its own limit below the one it tells
            pass
    return max(1, min(connections, soft - OTHER_DESCRIPTORS))


class Connection(HttpToolsProtocol):
    """Belongs to its server's event loop; times are those of the loop's clock, in seconds."""

    def __init__(
        self, *arguments: Any, limits: DoorLimits, idle: dict[Connection, None], **named: Any
    ) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        # Connections without a request under way, longest first: one dict for all of a server.
        self._idle = idle
        self._running: RequestResponseCycle | None = None
        self._refusal: GatewayError | None = None
        self._deaf = False  # what comes is not listened to any more
        self._muted = False  # the parser is told what was heard already
        self._last = False  # the next answer is the connection's last
        self._heard = False  # whether the parser told something of the latest bytes
        self._silent_bytes = 0  # what it took without a word
        self._head_bytes = 0
        self._hosts = 0
        self._head_since: float | None = None  # a head is awaited or coming
        self._body_since: float | None = None  # a body is coming
        self._body_bytes = 0
        self._unsent = 0
        self.unsent_since = 0.0
        self._leave_at = math.inf

    # ---------------------------------------------------------------- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._head_since = self.loop.time()
        if len(self.connections) > self._limits.connections:
            longest = next(iter(self._idle), None)
            if longest is None:
                self.refuse(RequestError(503, "too many connections", hint="try later", retry_after_s=1))
                return
            longest.close()
        self._idle[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle.pop(self, None)
        running = self._running
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        if running is not None and not running.response_complete:
            # uvicorn tells the newest request only; the one that is answered may be another.
            running.disconnected = True
            running.message_event.set()

    def close(self) -> None:
        """End it when what was written is sent."""
        self._idle.pop(self, None)
        self._deaf = True
        if not self.transport.is_closing():
            self.unsent_since = self.loop.time()
            self.transport.close()

    def shutdown(self) -> None:
        """Be polite: the next answer says that it is the last, and an idle connection has a moment left for one."""
        self._last = True
        if self.under_way:
            super().shutdown()
        else:
            self.loop.call_later(self._limits.farewell_ms / 1000, self._leave)

    def _leave(self) -> None:
        if not self.under_way and self._leave_at == math.inf:
            self.close()

    @property
    def told(self) -> bool:
        """Whether its next answer is the last."""
        return self._last

    @property
    def under_way(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    # ---------------------------------------------------------------- what comes

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deaf or self.transport.is_closing():
            return
        if self._head_since is None and self._body_since is None:
            self._head_since = self.loop.time()
        self._heard = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self.refuse(self._refusal or GatewayError(400, "this is not a request of HTTP/1.1"))
            return
        if self._heard:
            self._silent_bytes = 0
            return
        self._silent_bytes += len(data)
        if self._silent_bytes > MAX_HEAD_BYTES:
            self.refuse(GatewayError(431, f"a header or line is longer than {MAX_HEAD_BYTES} bytes"))

    def _go_on(self, rest: bytes) -> None:
        """Behind the head of a request that offers another protocol (Java's own client does), which we leave unanswered.

        The parser has taken it for done; its body is what comes next.
        """
        framing = [(n, v) for n, v in self.headers if n in (b"content-length", b"transfer-encoding")]
        self.parser = httptools.HttpRequestParser(self)
        if self.cycle.more_body:
            self._muted = True
            head = b"".join(b"%b: %b\r\n" % header for header in framing)
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + head + b"\r\n")
            self._muted = False
        if rest:
            self.data_received(rest)

    def _stop(self, status: int, message: str) -> None:
        """End the parser's work from one of its callbacks."""
        self._refusal = GatewayError(status, message)
        raise self._refusal

    def on_message_begin(self) -> None:
        if self._muted:
            return
        super().on_message_begin()
        self._heard = True
        self._head_bytes = self._hosts = 0
        if self._head_since is None:
            self._head_since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        if self._muted:
            return
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._stop(414, f"the address is longer than {MAX_URL_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._muted:
            return
        self._heard = True
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        self.headers.append((name, value))
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._stop(431, f"more than {MAX_HEADERS} headers, or {MAX_HEAD_BYTES} bytes of them")

    def on_headers_complete(self) -> None:
        if self._muted:
            return
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._stop(400, f"this is HTTP/{version}, valid: HTTP/1.1")
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            self._stop(400, f"the request has {self._hosts} Host headers where there must be one")
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop(400, f"more than {MAX_PIPELINED} requests sent ahead")
        super().on_headers_complete()
        self._idle.pop(self, None)
        self._head_since = None
        self._body_since, self._body_bytes = self.loop.time(), 0
        if self._last:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._heard = True
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._heard = True
        if self.parser.should_upgrade() and self._has_body():
            return  # see `_go_on`
        self._body_since = None
        super().on_message_complete()

    def _has_body(self) -> bool:
        return any(
            (name == b"content-length" and int(value) > 0) or name == b"transfer-encoding"
            for name, value in self.headers
        )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()  # first what is here already
        elif not self.transport.is_closing():
            self._idle[self] = None

    # ---------------------------------------------------------------- what goes wrong

    def refuse(self, error: GatewayError) -> None:
        """Say what is wrong and close, when what was asked before it on this connection is answered."""
        self._deaf = True
        self._head_since = self._body_since = None
        cycle: RequestResponseCycle | None = self.cycle
        if self.pipeline and self.pipeline[0][0] is cycle and cycle.more_body:
            self.pipeline.popleft()  # it never came whole
            cycle = self.pipeline[0][0] if self.pipeline else self._running
            assert cycle is not None, "a request waits behind it"
            self.cycle = cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            cycle.keep_alive = False
            self.flow.pause_reading()
            return
        told = cycle is None or cycle.response_complete or not cycle.response_started
        if told:
            self._write(error_response(error))
        if cycle is not None and not cycle.response_complete:
            # Whoever waits for the body hears that it broke off; the answer to that is this one.
            cycle.disconnected = True
            cycle.message_event.set()
        if told and self.transport.can_write_eof() and error.status != 503:
            # A socket closed on bytes not yet read would take the answer back: what comes is listened to for a moment.
            self._idle.pop(self, None)
            self._leave_at = self.loop.time() + self._limits.linger_ms / 1000
            self.transport.write_eof()
        else:
            self.close()

    def _write(self, answer: Response) -> None:
        parts = [STATUS_LINE[answer.status]]
        for name, value in (
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(answer.body)),
            (b"connection", b"close"),
            *answer.headers,
        ):
            parts += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join((*parts, b"\r\n", answer.body)))

    def look(self, now: float) -> int:
        """End what takes too long; the bytes that wait to be taken by the caller."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._unsent or self._unsent == 0:
            self.unsent_since = now
        self._unsent = unsent
        if (unsent or self.transport.is_closing()) and now - self.unsent_since > self._limits.stall_ms / 1000:
            self.transport.abort()
            return 0
        if now > self._leave_at:
            self.close()
        elif self._body_since is not None:
            self._look_at_body(now)
        elif self._head_since is not None and now - self._head_since > self._limits.head_ms / 1000:
            self.refuse(GatewayError(408, "the request's headers took too long"))
        return unsent

    def _look_at_body(self, now: float) -> None:
        assert self._body_since is not None, "asked by `look`"
        if self.flow.read_paused:  # it is we who are slow
            self._body_since, self._body_bytes = now, 0
            return
        took = now - self._body_since
        if self.under_way:
            if took > self._limits.body_ms / 1000 + self._body_bytes / MIN_BODY_BYTES_PER_S:
                self.refuse(GatewayError(408, "the request's body took too long"))
        elif took > self._limits.linger_ms / 1000:
            self.close()


async def watch(connections: Iterable[Any], limits: DoorLimits) -> None:
    """Look at all connections again and again, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(limits.watch_s)
        now = loop.time()
        unsent = {c: n for c in list(connections) if (n := c.look(now))}
        total = sum(unsent.values())
        for connection in sorted(unsent, key=lambda c: c.unsent_since):
            if total <= MAX_UNSENT_BYTES:
                break
            total -= unsent[connection]
            connection.transport.abort()


async def farewell(connections: Iterable[Any], limits: DoorLimits) -> None:
    """Wait until all were told to end, and none is idle any more: each that was got its moment for a last request."""
    loop = asyncio.get_running_loop()
    # uvicorn looks ten times a second whether it is to end.
    until = loop.time() + limits.farewell_ms / 1000 + 0.5
    while any(not (c.told and c.under_way) for c in list(connections)) and loop.time() < until:
        await asyncio.sleep(0.02)


def connections_of(limits: DoorLimits) -> Any:
    """What uvicorn makes for each connection that comes."""
    return partial(Connection, limits=limits, idle={})
