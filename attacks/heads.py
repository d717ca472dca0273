"""Whole requests as bytes, torn and twisted: what the parser of HTTP gets to see. Each on a connection of its own."""

from __future__ import annotations

from random import Random
from typing import Final

_BODY: Final = b'{"x":[1,2,3],"name":"a"}'
_GOOD: Final = (
    b"POST /pipelines/sums HTTP/1.1\r\nHost: localhost\r\nContent-Length: 24\r\n\r\n" + _BODY,
    b"POST /pipelines/sums HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n18\r\n" + _BODY + b"\r\n0\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v2/models/sums HTTP/1.0\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /pipelines/sums HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 24\r\n\r\n" + _BODY,
)  # fmt: skip
_BITS: Final = (
    b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"\xff", b"Content-Length: 5\r\n", b"Content-Length: 24\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: chunked, gzip\r\n", b"Transfer-Encoding:\x0bchunked\r\n", b"Host: evil.example\r\n", b" folded\r\n",
    b"HTTP/1.1", b"HTTP/2.0", b"HTTP/0.9", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999999\r\n", b"Content-Length: 0x18\r\n", b"Content-Length: 24, 24\r\n", b"0\r\n\r\n",
    b"FFFFFFFFFFFFFFFFF\r\n", b"-1\r\n", b"18;ext=" + b"a" * 200 + b"\r\n", b"Trailer: x\r\n", b"GET http://evil/ HTTP/1.1\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
)  # fmt: skip


def head_case(random: Random) -> bytes:
    sent = random.choice(_GOOD)
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(sent) + 1)
        match random.randrange(5):
            case 0:
                sent = sent[:at] + random.choice(_BITS) + sent[at:]
            case 1:  # at the beginning of a line
                lines = sent.split(b"\r\n")
                lines.insert(random.randrange(len(lines) + 1), random.choice(_BITS).removesuffix(b"\r\n"))
                sent = b"\r\n".join(lines)
            case 2:
                sent = sent[:at] + random.randbytes(random.randrange(1, 8)) + sent[at:]
            case 3:
                sent = sent[:at] + sent[at + random.randrange(1, 9) :]
            case _:
                lines = sent.split(b"\r\n")
                lines.append(lines.pop(random.randrange(len(lines))))
                sent = b"\r\n".join(lines)
    return sent
