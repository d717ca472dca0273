"""The list: attacks by name, each with the answers that it may get."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from attacks.bodies import INFER
from attacks.verdict import CLOSED
from attacks.wire import Outcome, Pieces, Wire, once, request
from dataflow.core.limits import MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED, MAX_URL_BYTES

_RECORD: Final = b'{"x":[1,2,3],"name":"a"}'
_PATH: Final = "/pipelines/sums"
_HEAD: Final = b"POST /pipelines/sums HTTP/1.1\r\nHost: localhost\r\n"
_CHUNKED: Final = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_GET: Final = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
Answers = frozenset[int | str]
_ANY: Final[Answers] = frozenset((200, 400, CLOSED))


@dataclass(frozen=True)
class Attack:
    """What is sent, by `do` or as `pieces` on a connection of its own, and which outcomes are right."""

    name: str
    good: Answers
    pieces: Callable[[], Pieces] | None = None
    do: Callable[[int], Awaitable[Outcome]] | None = None

    async def run(self, port: int) -> Outcome:
        if self.do is not None:
            return await self.do(port)
        assert self.pieces is not None, "one of the two is there"
        return await once(port, self.pieces())


def _good(*statuses: int | str) -> Answers:
    return frozenset(statuses)


def _sent(name: str, good: Answers, *pieces: bytes | float) -> Attack:
    return Attack(name, good, lambda: pieces)


def _posted(
    name: str, good: Answers, body: Callable[[], bytes], *headers: tuple[str, str], path: str = _PATH
) -> Attack:
    return Attack(name, good, lambda: [request(path, body(), headers)])


def _bomb() -> bytes:
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    zeros = bytes(1 << 20)
    parts = [packer.compress(zeros) for _ in range(MAX_BODY_BYTES // len(zeros) * 4)]
    return b"".join((*parts, packer.flush()))


def _drop(text: bytes) -> list[bytes | float]:
    """A few bytes at a time."""
    return [part for byte in text for part in (bytes((byte,)), 0.05)]


def framing() -> list[Attack]:
    """Where a request ends: what two servers in a row might read differently."""
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    both = b"Content-Length: 24\r\nTransfer-Encoding: chunked\r\n\r\n18\r\n" + _RECORD + b"\r\n0\r\n\r\n"
    return [
        _sent("length and chunks", _good(400), _HEAD + both + smuggled),
        _sent("two lengths", _good(400), _HEAD + b"Content-Length: 24\r\nContent-Length: 5\r\n\r\n" + _RECORD),
        _sent("lengths in a list", _good(400), _HEAD + b"Content-Length: 24, 24\r\n\r\n" + _RECORD),
        _sent("a negative length", _good(400), _HEAD + b"Content-Length: -24\r\n\r\n" + _RECORD),
        _sent("a length beyond all numbers", _good(400, 413), _HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n"),
        _sent("an encoding nobody knows", _good(400), _HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + _RECORD),
        _sent("chunked is not the last", _good(400), _HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
        _sent("a blank before the colon", _good(400), _HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        _sent("a folded header", _good(400), _HEAD + b"X: a\r\n b\r\nContent-Length: 24\r\n\r\n" + _RECORD),
        _sent("a chunk's size that is none", _good(400), _CHUNKED + b"zz\r\n"),
        _sent("a chunk's size beyond all numbers", _good(400), _CHUNKED + b"F" * 20 + b"\r\n"),
        _sent("a negative chunk", _good(400), _CHUNKED + b"-1\r\na\r\n0\r\n\r\n"),
        _sent("a chunk that is longer than it says", _good(400), _CHUNKED + b"1\r\naaaa\r\n0\r\n\r\n"),
        _sent("an endless chunk extension", _good(400, 431, CLOSED), _CHUNKED, *[b"1;" + b"a" * 65_536] * 12),
        _sent("endless trailers", _good(400, 431, CLOSED), _CHUNKED + b"0\r\n", *[b"X: " + b"a" * 60_000 + b"\r\n"] * 20),
        _sent("one endless trailer", _good(400, 431, CLOSED), _CHUNKED + b"0\r\nX: ", *[b"a" * 60_000] * 20),
        _sent("only line feeds", _good(400), b"GET /v2 HTTP/1.1\nHost: localhost\n\n"),
        _sent("two hosts", _good(400), b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"),
        _sent("no host", _good(400), b"GET /v2 HTTP/1.1\r\n\r\n"),
        _sent("a foreign host", _good(403), b"GET /v2 HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
        _sent("HTTP/1.0", _good(200), b"GET /v2 HTTP/1.0\r\n\r\n"),
        _sent("HTTP/0.9", _good(400), b"GET /v2\r\n\r\n"),
        _sent("HTTP/2", _good(400), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        _sent("TLS", _good(400), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)),
        _sent("a method nobody knows", _good(400), b"BREAK /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        _sent("CONNECT", _good(400, 404, 405), b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        _sent("the star", _good(400, 404, 405), b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        _sent("an address that is none", _good(400), b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        _sent("an absolute address", _good(200, 400, 403, 404), b"GET http://evil.example/v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        _sent("an upgrade with a body", _good(200), _HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
              b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nContent-Length: 24\r\n\r\n" + _RECORD),
        _sent("asked whether to go on", _good(200), _HEAD + b"Expect: 100-continue\r\nContent-Length: 24\r\n\r\n", 0.2, _RECORD),
        _sent("asked whether to go on with too much", _good(413),
              _HEAD + b"Expect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n"),
    ]  # fmt: skip


def floods() -> list[Attack]:
    """More of something than there is room for."""
    many = b"".join(b"X-%d: y\r\n" % n for n in range(MAX_HEADERS + 1))
    return [
        _sent("more headers than allowed", _good(431), _HEAD + many + b"\r\n"),
        _sent("headers without end", _good(431, CLOSED), _HEAD, *[b"".join(b"X: y\r\n" for _ in range(9_000))] * 100),
        _sent("a header without end", _good(431, CLOSED), _HEAD + b"X: ", *[b"y" * 65_536] * 200),
        _sent("a header's name without end", _good(400, 431, CLOSED), _HEAD, *[b"y" * 65_536] * 200),
        _sent("large headers", _good(431), _HEAD + b"".join(b"X: " + b"y" * 8_000 + b"\r\n" for _ in range(MAX_HEAD_BYTES // 8_000 + 2))),
        _sent("an address without end", _good(414, CLOSED), b"GET /", *[b"a" * 65_536] * 200),
        _sent("a long address", _good(414), b"GET /" + b"a" * MAX_URL_BYTES + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        _sent("blank lines without end", _good(400, 408, 431, CLOSED), *[b"\r\n" * 32_000] * 100),
        _sent("more than a body says", _good(200), _HEAD + b"Content-Length: 24\r\n\r\n" + _RECORD + b"x" * 500_000),
        Attack("requests sent ahead", _good(200), do=_sent_ahead),
        Attack("far too many requests sent ahead", _good(200), do=_too_many_ahead),
        Attack("junk behind a request", _good(200), do=_junk_behind),
        _sent("a body too large, announced", _good(413), _HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1)),
        Attack("a body too large, in chunks", _good(413), lambda: _chunks(MAX_BODY_BYTES + 1)),
        Attack("a body without end behind an answer", _good(404, CLOSED), do=_endless_behind),
        _posted("a bomb in gzip", _good(413), _bomb, ("Content-Encoding", "gzip")),
        _posted("a bomb within a bomb", _good(400, 413), lambda: gzip.compress(_bomb()), ("Content-Encoding", "gzip")),
        _posted("lists without end", _good(400, 413), lambda: b'{"inputs":[' + b"[]," * 20_000_000 + b"0]}", path=INFER),
        _posted("objects without end", _good(400, 413), lambda: b"[" + b"{}," * 20_000_000 + b"{}]"),
        _posted("deep lists", _good(400), lambda: b"[" * 100_000),
        _posted("more rows than allowed", _good(413), lambda: b"[" + b",".join([_RECORD] * 10_001) + b"]"),
    ]  # fmt: skip


def slow() -> list[Attack]:
    """Those who hold us up, and those who go away. The target's time-outs are short."""
    return [
        _sent("nothing at all", _good(408, CLOSED), 0.1),
        _sent("half a head", _good(408), _HEAD),
        _sent("a head, drop by drop", _good(408, CLOSED), *_drop(_HEAD * 4)),
        _sent("half a body", _good(408), _HEAD + b"Content-Length: 24\r\n\r\n" + _RECORD[:10]),
        _sent("a body, drop by drop", _good(408, CLOSED), _HEAD + b"Content-Length: 2400\r\n\r\n", *_drop(_RECORD * 4)),
        _sent("half a chunk", _good(408), _CHUNKED + b"18\r\n" + _RECORD[:10]),
        _sent("an asked-for go-ahead and no body", _good(408), _HEAD + b"Expect: 100-continue\r\nContent-Length: 24\r\n\r\n"),
        Attack("half closed behind a request", _ANY, do=_half_closed),
        Attack("half closed within a body", _ANY, do=_half_closed_within),
        Attack("gone before the answer", _good(CLOSED), do=_gone),
        Attack("gone while requests wait", _good(CLOSED), do=_gone_ahead),
        Attack("a tap that is left, with a request behind it", _good(CLOSED), do=_tap_left),
        Attack("an answer that nobody takes", _good(CLOSED), do=_not_taken),
    ]  # fmt: skip


def every() -> list[Attack]:
    return [*framing(), *floods(), *slow()]


def _chunks(size: int) -> Pieces:
    yield _CHUNKED
    piece = bytes(1 << 20)
    for _ in range(size // len(piece) + 1):
        yield b"%x\r\n" % len(piece) + piece + b"\r\n"
    yield b"0\r\n\r\n"


async def _worst(port: int, sent: bytes, count: int) -> Outcome:
    """The answers to requests on one connection, the worst of them."""
    async with Wire(port) as wire:
        outcome = await wire.ask([sent])
        for _ in range(count - 1):
            if outcome.status != 200:
                break
            outcome = await wire.ask([])
        return outcome


async def _sent_ahead(port: int) -> Outcome:
    return await _worst(port, (_HEAD + b"Content-Length: 24\r\n\r\n" + _RECORD) * 20, 20)


async def _too_many_ahead(port: int) -> Outcome:
    """What is allowed is answered; then the connection ends."""
    return await _worst(port, _GET * (MAX_PIPELINED * 50), MAX_PIPELINED)


async def _junk_behind(port: int) -> Outcome:
    """The request before it was good, and is answered."""
    return await _worst(port, _HEAD + b"Content-Length: 24\r\n\r\n" + _RECORD + b"\x00\x01 junk\r\n\r\n", 1)


async def _endless_behind(port: int) -> Outcome:
    """An answer came early, and the body goes on."""
    async with Wire(port) as wire:
        sent = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        outcome = await wire.ask([sent])
        try:
            async with asyncio.timeout(20):
                while True:
                    await wire.send([b"1000\r\n" + bytes(4096) + b"\r\n", 0.05])
        except OSError:
            return outcome
        except TimeoutError:
            return Outcome("hung")


async def _half_closed(port: int) -> Outcome:
    async with Wire(port) as wire:
        await wire.send([_HEAD + b"Content-Length: 24\r\n\r\n" + _RECORD])
        wire.half_close()
        return await wire.ask([])


async def _half_closed_within(port: int) -> Outcome:
    async with Wire(port) as wire:
        await wire.send([_HEAD + b"Content-Length: 24\r\n\r\n" + _RECORD[:5]])
        wire.half_close()
        return await wire.ask([])


async def _gone(port: int) -> Outcome:
    async with Wire(port) as wire:
        await wire.send([_HEAD + b"Content-Length: 24\r\n\r\n" + _RECORD])
        wire.abort()
    return Outcome(CLOSED)


async def _gone_ahead(port: int) -> Outcome:
    async with Wire(port) as wire:
        await wire.send([(_HEAD + b"Content-Length: 24\r\n\r\n" + _RECORD) * 30])
        wire.abort()
    return Outcome(CLOSED)


async def _tap_left(port: int) -> Outcome:
    """The server hears of the end of a connection; whoever answers on it must, too."""
    async with Wire(port) as wire:
        await wire.send([b"GET /taps/sums/sum HTTP/1.1\r\nHost: localhost\r\n\r\n" + _GET, 0.3])
        wire.abort()
    return Outcome(CLOSED)


async def _not_taken(port: int) -> Outcome:
    """Large answers, and none of it is read; the server ends it."""
    async with Wire(port) as wire:
        sent = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await wire.open()
        assert wire._streams is not None, "just opened"
        wire._streams[1].transport.pause_reading()  # type: ignore[attr-defined]  # of its abstract class
        try:
            async with asyncio.timeout(20):
                while True:
                    await wire.send([sent, 0.01])
        except OSError:
            return Outcome(CLOSED)
        except TimeoutError:
            return Outcome("hung")
