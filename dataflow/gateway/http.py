"""HTTP as the gateway needs it, straight on ASGI: a request, its bounded body, a response, an error."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from dataflow.core.errors import GatewayError
from dataflow.core.limits import MAX_BODIES_BYTES, MAX_BODY_BYTES, MAX_JSON_CONTAINERS

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

RETRY_AFTER_S: Final = 1
# A packed body is unpacked so much at once: a millisecond.
_PIECE_BYTES: Final = 1024 * 1024

# What a body may say it is. Forms are what `curl -d` says of JSON; other kinds are surely not meant for us.
_CONTENT_TYPES: Final = (
    b"application/json", b"application/octet-stream", b"application/x-www-form-urlencoded", b"text/plain",
)  # fmt: skip
JSON: Final = b"application/json"
BINARY: Final = b"application/octet-stream"


class RequestError(GatewayError):
    """A refusal with more to say: the record's id, when to come back, facts for the body of the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        hint: str = "",
        record_id: bytes = b"",
        retry_after_s: int = 0,
        facts: Mapping[str, Any] | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(status, message, hint=hint)
        self.record_id = record_id
        self.retry_after_s = retry_after_s
        self.facts = facts or {}
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """A response of unknown length; `parts` is closed when the caller goes away."""

    parts: AsyncGenerator[bytes, None]
    content_type: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    status: int = 200


@dataclass(slots=True)
class Budget:
    """Bytes of bodies in hand, of all requests."""

    used: int = 0

    def take(self, size: int) -> None:
        if self.used + size > MAX_BODIES_BYTES:
            raise RequestError(
                503, "too many large requests at once", hint="try later", retry_after_s=RETRY_AFTER_S
            )
        self.used += size


@dataclass(slots=True)
class Request:
    """One HTTP request.

    params  the named parts of its path
    scopes  those of its caller's token
    rows    how many rows its body had, once that is known
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    query_string: bytes
    receive: Receive
    params: Mapping[str, str]
    scopes: frozenset[str]
    rows: int = 0

    def query(self) -> dict[str, str]:
        """Query parameters. Raises GatewayError 400 for one that is given twice."""
        found: dict[str, str] = {}
        for name, value in parse_qsl(self.query_string.decode("latin-1"), keep_blank_values=True):
            if name in found:
                raise GatewayError(400, f"query parameter '{name[:100]}' is given twice")
            found[name] = value
        return found

    async def body(self, budget: Budget) -> bytes:
        """The whole body, decompressed. The caller gives `len(body)` back to the budget.

        Raises GatewayError 411, 413 or 415 as early as the headers allow, 400 for a body that breaks off.
        """
        declared = self._check_headers()
        message = await self.receive()
        if not message.get("more_body"):  # the usual case: one piece
            body: bytes = message.get("body", b"")
            _check_size(len(body))
            budget.take(len(body))
        else:
            body = await self._pieces(message, budget)
        if message["type"] == "http.disconnect" or (declared is not None and len(body) != declared):
            budget.used -= len(body)
            raise GatewayError(400, "the body broke off")
        encoding = self.headers.get(b"content-encoding", b"identity")
        if encoding == b"identity":
            return body
        try:
            return await _decompressed(body, encoding, budget)
        finally:
            budget.used -= len(body)

    def _check_headers(self) -> int | None:
        headers = self.headers
        length = headers.get(b"content-length")
        if length is None and b"transfer-encoding" not in headers:
            raise GatewayError(411, "the request has no body", hint="send it with Content-Length or chunked")
        if length is not None:
            if not length.isdigit():
                raise GatewayError(400, "Content-Length is not a number")
            _check_size(int(length[:19]))
        kind = headers.get(b"content-type", b"")
        if kind and kind != JSON:
            media = kind.split(b";", 1)[0].strip().lower()
            if media not in _CONTENT_TYPES and not media.endswith(b"+json"):
                raise GatewayError(
                    415,
                    f"content type '{media[:100].decode('latin-1')}' is not supported",
                    hint="use application/json",
                )
        return None if length is None else int(length)

    async def _pieces(self, message: MutableMapping[str, Any], budget: Budget) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            while True:
                piece = message.get("body", b"")
                if piece:
                    _check_size(size + len(piece))
                    budget.take(len(piece))
                    size += len(piece)
                    pieces.append(piece)
                if message["type"] == "http.disconnect":
                    raise GatewayError(400, "the body broke off")
                if not message.get("more_body"):
                    return b"".join(pieces)
                message = await self.receive()
        except BaseException:
            budget.used -= size
            raise


def _check_size(size: int) -> None:
    if size > MAX_BODY_BYTES:
        raise GatewayError(
            413, f"the body is larger than {MAX_BODY_BYTES} bytes", hint="send fewer rows at once"
        )


async def _decompressed(body: bytes, encoding: bytes, budget: Budget) -> bytes:
    """Gzip or deflate, never more than a body may be; taken from the budget. Others have their turn meanwhile."""
    if encoding not in (b"gzip", b"deflate"):
        raise GatewayError(
            415,
            f"content encoding '{encoding[:40].decode('latin-1')}' is not supported",
            hint="valid: gzip, deflate",
        )
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | (16 if encoding == b"gzip" else 0))
    pieces: list[bytes] = []
    size, rest = 0, body
    try:
        while True:
            piece = unpacker.decompress(rest, _PIECE_BYTES)
            _check_size(size + len(piece))
            budget.take(len(piece))
            size += len(piece)
            pieces.append(piece)
            rest = unpacker.unconsumed_tail
            if unpacker.eof or (not rest and len(piece) < _PIECE_BYTES):
                break
            await asyncio.sleep(0)
        if not unpacker.eof or unpacker.unused_data:
            raise GatewayError(400, f"the body is not one whole {encoding.decode()} stream")
        return b"".join(pieces)
    except zlib.error:
        budget.used -= size
        raise GatewayError(400, f"the body is not {encoding.decode()}") from None
    except BaseException:
        budget.used -= size
        raise


def parse_json(body: bytes, end: int | None = None) -> Any:
    """The value in `body`, or in its first `end` bytes.

    Raises orjson.JSONDecodeError, GatewayError 413 for what would take far more memory than it has text.
    """
    length = len(body) if end is None else end
    if length > MAX_JSON_CONTAINERS:  # else there cannot be as many
        count = body.count(b"[", 0, length) + body.count(b"{", 0, length)
        if count > MAX_JSON_CONTAINERS:
            raise GatewayError(
                413,
                f"the JSON has {count} lists and objects, valid: up to {MAX_JSON_CONTAINERS}",
                hint="send tensors flat or as binary data",
            )
    return orjson.loads(body if end is None else memoryview(body)[:end])


def error_response(error: GatewayError) -> Response:
    said: dict[str, Any] = {"error": str(error)}
    extra: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, RequestError):
        if error.record_id:
            said["id"] = error.record_id.decode()
        said |= error.facts
        extra = error.headers
        if error.retry_after_s:
            extra = (*extra, (b"retry-after", str(error.retry_after_s).encode()))
    elif error.status in (429, 503):
        extra = ((b"retry-after", str(RETRY_AFTER_S).encode()),)
    return Response(error.status, orjson.dumps(said), JSON, extra)


async def send_response(send: Send, response: Response, *, head: bool = False) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": response.status,
            "headers": [
                (b"content-type", response.content_type),
                (b"content-length", str(len(response.body)).encode()),
                *response.headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": b"" if head else response.body})


async def send_stream(send: Send, receive: Receive, stream: Stream, stall_s: float) -> None:
    """Send parts until they end, the caller goes away, or takes longer than `stall_s` to read one."""
    start = [(b"content-type", stream.content_type), (b"cache-control", b"no-store"), *stream.headers]
    await send({"type": "http.response.start", "status": 200, "headers": start})
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        while True:
            step = asyncio.ensure_future(anext(stream.parts, None))
            await asyncio.wait({step, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
                return
            part = step.result()
            if part is None:
                await send({"type": "http.response.body", "body": b""})
                return
            message = {"type": "http.response.body", "body": part, "more_body": True}
            await asyncio.wait_for(send(message), stall_s)
    except TimeoutError:
        return  # nobody is left to be told
    finally:
        gone.cancel()
        await stream.parts.aclose()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
