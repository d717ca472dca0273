"""HTTP/1.1 by hand: what no client would send, and what came back, within a bound."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from attacks.verdict import CLOSED, HUNG

HOST: Final = "127.0.0.1"
# No case may take longer: the door's own deadline is 5 s, its time-outs less.
BOUND_S: Final = 30.0
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
# A read of an answer's body stops here: enough to say what was wrong.
_SHOWN: Final = 2_000
Pieces = Iterable[bytes | float]


@dataclass(frozen=True)
class Outcome:
    """`status` is the HTTP status, CLOSED or HUNG; `last` whether the server ends the connection."""

    status: int | str
    body: bytes = b""
    last: bool = True


def request(
    path: str, body: bytes, headers: Iterable[tuple[str, str]] = (), method: str = "POST", host: str = HOST
) -> bytes:
    """A whole request with its length."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


class Wire:
    """One connection. What breaks on it is an outcome, not an error."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> None:
        self._streams = await asyncio.open_connection(HOST, self._port, limit=1 << 20)

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()
            try:
                await asyncio.wait_for(writer.wait_closed(), BOUND_S)
            except (OSError, TimeoutError):
                pass

    def abort(self) -> None:
        """End it with a reset, as a process that is killed may."""
        if self._streams is not None:
            self._streams[1].transport.abort()

    def half_close(self) -> None:
        if self._streams is not None and self._streams[1].can_write_eof():
            self._streams[1].write_eof()

    async def send(self, pieces: Pieces) -> None:
        """Send bytes one after the other; a number is a pause in seconds."""
        if self._streams is None:
            await self.open()
        assert self._streams is not None, "opened above"
        writer = self._streams[1]
        for piece in pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
                continue
            writer.write(piece)
            await writer.drain()

    async def ask(self, pieces: Pieces, bound_s: float = BOUND_S, *, head: bool = False) -> Outcome:
        """Send, and read one answer (to method HEAD: `head`). Both go on side by side: an answer may come early."""
        try:
            async with asyncio.timeout(bound_s):
                if self._streams is None:
                    await self.open()
                sending = asyncio.ensure_future(self.send(pieces))
                try:
                    outcome = await self.answer(head=head)
                finally:
                    if not sending.done():
                        sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except TimeoutError:
            outcome = Outcome(HUNG)
        except (OSError, asyncio.IncompleteReadError):
            outcome = Outcome(CLOSED)
        if outcome.last:
            await self.close()
        return outcome

    async def ended(self) -> bool:
        """Wait until the server ends the connection; what it says until then is passed over."""
        if self._streams is not None:
            try:
                while await self._streams[0].read(1 << 16):
                    pass
            except OSError:
                pass
        return True

    async def answer(self, *, head: bool = False) -> Outcome:
        """The next answer on the wire, its body cut short. Raises OSError or IncompleteReadError where there is none."""
        assert self._streams is not None, "opened before"
        reader, _ = self._streams
        while True:
            try:
                top = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                return Outcome(CLOSED, b"an endless head")
            status = int(top[9:12])
            if status != 100:
                break
        last = b"connection: close" in top.lower()
        length = _LENGTH.search(top)
        if head:
            return Outcome(status, b"", last)
        if length is None:  # a stream without end: how it begins is enough
            first = b"" if last else await reader.readline()
            return Outcome(status, first[:_SHOWN])
        left, body = int(length[1]), b""
        while left:
            part = await reader.read(min(left, 1 << 20))
            if not part:
                raise asyncio.IncompleteReadError(body, left)
            left -= len(part)
            body += part[: max(0, _SHOWN - len(body))]
        return Outcome(status, body, last)


async def once(port: int, pieces: Pieces) -> Outcome:
    """One exchange on a connection of its own."""
    async with Wire(port) as wire:
        return await wire.ask(pieces)
