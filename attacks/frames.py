"""The gRPC door below gRPC: bytes that are no HTTP/2, and frames that are, in numbers that no client sends.

Frames are those of RFC 9113, header blocks literal ones of RFC 7541, without an index.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import Final

from attacks.verdict import CLOSED, HUNG, Tally
from attacks.wire import Wire
from dataflow.gateway.grpc_proto import SERVICE

FAMILY: Final = "frames"
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 8, 9
_END_STREAM, _END_HEADERS = 1, 4
# A server may leave a connection open that was merely rude; after so long we leave it ourselves.
_PATIENCE_S: Final = 3.0


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _field(name: bytes, value: bytes) -> bytes:
    """A header, literal and without an index; names and values are shorter than 127 bytes."""
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


_CALL: Final = b"".join(
    _field(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", f"/{SERVICE}/ModelInfer".encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)
_BEGIN: Final = _PREFACE + _frame(_SETTINGS, 0, 0)


def _resets(count: int) -> Iterator[bytes]:
    """Calls that are taken back as soon as they are made."""
    for stream in range(1, 2 * count, 2):
        yield _frame(_HEADERS, _END_HEADERS, stream, _CALL) + _frame(_RESET, 0, stream, struct.pack(">I", 8))


def _calls(count: int) -> Iterator[bytes]:
    """Calls of which the message never comes."""
    for stream in range(1, 2 * count, 2):
        yield _frame(_HEADERS, _END_HEADERS, stream, _CALL)


def _message(size: int, sent: int) -> bytes:
    """A call whose message says that it is longer than what comes of it."""
    body = b"\x00" + struct.pack(">I", size) + bytes(sent)
    return _frame(_HEADERS, _END_HEADERS, 1, _CALL) + _frame(_DATA, _END_STREAM, 1, body)


ATTACKS: Final[dict[str, tuple[bytes, ...]]] = {
    "nothing": (b"",),
    "no HTTP/2": (b"\x00" * 5_000,),
    "HTTP/1.1": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),),
    "half a preface": (_PREFACE[:10],),
    "a preface and junk": (_PREFACE + b"\xff" * 5_000,),
    "a frame longer than allowed": (_BEGIN, b"\xff\xff\xff" + bytes(6)),
    "a frame of no kind": (_BEGIN, *[_frame(99, 255, 0, bytes(100))] * 1_000),
    "settings without end": (_BEGIN, *[_frame(_SETTINGS, 0, 0)] * 20_000),
    "settings that are none": (_BEGIN, _frame(_SETTINGS, 0, 0, b"12345")),
    "pings without end": (_BEGIN, *[_frame(_PING, 0, 0, bytes(8))] * 20_000),
    "windows beyond all numbers": (_BEGIN, *[_frame(_WINDOW, 0, 0, struct.pack(">I", 2**31 - 1))] * 3),
    "a header block without end": (
        _BEGIN,
        _frame(_HEADERS, 0, 1, _CALL),
        *[_frame(_CONTINUATION, 0, 1, _field(b"x", b"y" * 100) * 100)] * 2_000,
    ),
    "a header block that is none": (_BEGIN, _frame(_HEADERS, _END_HEADERS, 1, b"\xff" * 200)),
    "calls taken back": (_BEGIN, *_resets(5_000)),
    "calls without a message": (_BEGIN, *_calls(3_000)),
    "a stream used again": (_BEGIN, *[_frame(_HEADERS, _END_HEADERS | _END_STREAM, 1, _CALL)] * 2),
    "data of no stream": (_BEGIN, _frame(_DATA, 0, 7, bytes(100))),
    "a message that breaks off": (_BEGIN, _message(1_000, 10)),
    "a message that says 4 GB": (_BEGIN, _message(2**32 - 1, 10)),
    "a call without a message": (_BEGIN, _frame(_HEADERS, _END_HEADERS | _END_STREAM, 1, _CALL)),
}


async def attack(port: int, tally: Tally) -> None:
    """All of them side by side; each ends with the connection, by the server or by us."""
    await asyncio.gather(*(_one(port, name, sent, tally) for name, sent in ATTACKS.items()))


async def _one(port: int, name: str, sent: tuple[bytes, ...], tally: Tally) -> None:
    async with Wire(port) as wire:
        try:
            async with asyncio.timeout(_PATIENCE_S * 10):
                await wire.open()
                sending = asyncio.ensure_future(wire.send([b"".join(sent)]))
                try:
                    async with asyncio.timeout(_PATIENCE_S):
                        await wire.ended()
                except TimeoutError:
                    pass
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        except TimeoutError:
            tally.note(FAMILY, HUNG, name)
        except OSError:
            tally.note(FAMILY, CLOSED, name)
        else:
            tally.note(FAMILY, CLOSED, name)
        wire.abort()
