"""The methods of `inference.GRPCInferenceService` over one gateway.

A call is served as the HTTP request it would have been: metadata are its headers, so deadlines, ids, traces, limits,
counts and messages are the same at both doors. Messages come in and go out as bytes: what cannot be parsed is told in our
own words, and the size of what is in hand is known.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, MutableMapping
from functools import partial
from typing import Any, Final, NoReturn
from urllib.parse import quote

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from dataflow.core.errors import DataflowError, GatewayError
from dataflow.core.limits import (
    GRPC_ARRIVAL_MS,
    GRPC_HURRY_MS,
    MAX_GRPC_ARRIVALS,
    MAX_GRPC_STREAMS,
    MAX_STREAM_REQUESTS,
)
from dataflow.gateway import grpc_codec, v2
from dataflow.gateway.app import Gateway
from dataflow.gateway.doors import PipelineDoor
from dataflow.gateway.exchange import Exchange
from dataflow.gateway.facts import version_of_us
from dataflow.gateway.grpc_proto import SERVICE, STREAM, UNARY, Protocol
from dataflow.gateway.http import RETRY_AFTER_S, Request, RequestError, Response
from dataflow.gateway.infer import DEADLINE_HEADER, run_call
from dataflow.gateway.model_info import EXTENSIONS, config_of, repository_index, statistics_of

log = logging.getLogger("dataflow.gateway")

DOOR: Final = "grpc"
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.INVALID_ARGUMENT,  # the same request is too large tomorrow as well
    422: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# A status and its details are one block of headers, of which clients take 8 kB unless told otherwise; a byte beyond ASCII
# takes three there.
_MAX_DETAILS_BYTES: Final = 2_000
# Of a body, not of a call: metadata of these names would say something untrue of the message.
_NOT_CARRIED: Final = frozenset(
    (b"host", b"origin", b"content-type", b"content-length", b"content-encoding", b"transfer-encoding")
)
# The longest wait that the deadline header can say: `MAX_DEADLINE_MS` cuts it anyway.
_LONGEST_MS: Final = 10**11


class GrpcDoor:
    """Belongs to the gateway's event loop. Set `stopping` to have open streams end when their requests are answered."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._protocol = Protocol.load()
        self.stopping = asyncio.Event()
        self._arrivals = asyncio.Semaphore(MAX_GRPC_ARRIVALS)
        self._arriving: dict[asyncio.Timeout, float] = {}  # since when, longest first
        self._waiting = 0
        self._streams = 0

    def handlers(self) -> Any:
        """What a grpc.aio server serves."""
        made = {
            # To a client these are unary; here the message is read when there is room for it.
            name: grpc.stream_unary_rpc_method_handler(partial(self._tell, name, told))
            for name, told in _TOLD.items()
        }
        made["ModelInfer"] = grpc.stream_unary_rpc_method_handler(self._infer)
        made[STREAM] = grpc.stream_stream_rpc_method_handler(self._stream)
        assert set(made) == {*UNARY, STREAM}
        return grpc.method_handlers_generic_handler(SERVICE, made)

    async def _tell(
        self,
        name: str,
        told: Callable[[Gateway, Any], Mapping[str, Any]],
        bodies: AsyncIterator[bytes],
        context: Any,
    ) -> bytes:
        try:
            asked = parsed(self._protocol.message(f"{name}Request"), await self._arrived(bodies))
            answer = json_format.ParseDict(
                told(self._gateway, asked), self._protocol.message(f"{name}Response")()
            )
            return bytes(answer.SerializeToString())
        except Exception as error:  # noqa: BLE001  (whatever is wrong with us, the caller gets an answer)
            failure = expected_error(error, name)
        return await abort(context, failure)

    async def _infer(self, bodies: AsyncIterator[bytes], context: Any) -> bytes:
        headers = headers_of(context.invocation_metadata() or ())
        try:
            body = await self._arrived(bodies)
        except GatewayError as error:
            self._gateway.note(DOOR, request_of(b"", headers), error.status, 0.0)
            return await abort(context, error)
        answer = await self._answer(body, headers, context.time_remaining())
        del body
        if isinstance(answer, GatewayError):
            return await abort(context, answer)
        context.set_trailing_metadata(_shown(answer.headers))
        return answer.body

    async def _arrived(self, bodies: AsyncIterator[bytes]) -> bytes:
        """The message of a call that has one. Raises GatewayError 400, 408, 503.

        Its size is known at its end: before it counts against the budget, the number of those that arrive is what bounds
        them, as nothing is sent beyond a small window that nobody reads.
        """
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(GRPC_ARRIVAL_MS / 1000) as limit:
                self._waiting += 1
                try:
                    if self._arrivals.locked():
                        self._hurry(now())
                    await self._arrivals.acquire()
                finally:
                    self._waiting -= 1
                self._arriving[limit] = now()
                try:
                    if self._waiting:
                        self._hurry(now())
                    async for body in bodies:
                        return body
                finally:
                    del self._arriving[limit]
                    self._arrivals.release()
        except TimeoutError:
            raise GatewayError(408, "the message took too long to arrive") from None
        raise GatewayError(400, "the call has no message")

    def _hurry(self, now: float) -> None:
        """Somebody waits for a place: of those who have had theirs for longest, one more gives it up soon."""
        for limit, began in self._arriving.items():
            latest = max(began + GRPC_HURRY_MS / 1000, now)
            if (limit.when() or 0.0) > latest:
                limit.reschedule(latest)
                return

    async def _answer(
        self, body: bytes, headers: dict[bytes, bytes], left_s: float | None, *, of_stream: bool = False
    ) -> Response | GatewayError:
        """One ModelInferRequest, served and counted; `left_s` until its call's own deadline, None where it has none."""
        began = time.perf_counter()
        request = request_of(body, headers)
        answer: Response | GatewayError
        try:
            message = parsed(self._protocol.message("ModelInferRequest"), body)
            request.params = {"name": message.model_name}
            if message.model_version:
                request.params = {**request.params, "version": message.model_version}
            plan = self._gateway.plans.get(message.model_name)
            # The deadline of a stream is that of all its requests: each has its pipeline's own unless less is left.
            if left_s is not None and not (of_stream and plan and left_s * 1000 >= plan.deadline_ms):
                _limit_wait(headers, left_s)
            answer = await self._gateway.run(partial(self._run, message), request)
            status = answer.status
        except Exception as error:  # noqa: BLE001  (whatever is wrong with us, the caller gets an answer)
            answer = expected_error(error, "ModelInfer")
            status = answer.status
        self._gateway.note(DOOR, request, status, time.perf_counter() - began)
        return answer

    async def _run(
        self,
        message: Any,
        exchange: Exchange,
        door: PipelineDoor,
        request: Request,
        body: bytes,
        detail: bool,
    ) -> Response:
        del body
        call, raw = grpc_codec.decode(door.request, door.answer, message)
        names, columns, shown = await run_call(exchange, door, request, call, detail)
        made = self._protocol.message("ModelInferResponse")
        answer = grpc_codec.encode(made, names, door.answer, columns, call.outputs, raw=raw)
        return Response(200, bytes(answer.SerializeToString()), headers=shown)

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        if self._streams >= MAX_GRPC_STREAMS:
            text = f"{MAX_GRPC_STREAMS} streams are open, which is the limit"
            await abort(context, GatewayError(429, text, hint="try later"))
        self._streams += 1
        try:
            await self._follow(requests, context)
        finally:
            self._streams -= 1

    async def _follow(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Answers in the order of the requests, of which `MAX_STREAM_REQUESTS` run at once; an error ends its own only."""
        headers = headers_of(context.invocation_metadata() or ())
        waiting: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        room = asyncio.Semaphore(MAX_STREAM_REQUESTS)
        answering: set[asyncio.Task[bytes]] = set()

        async def read() -> None:
            try:
                async for body in requests:
                    await room.acquire()
                    task = asyncio.create_task(self._stream_answer(body, dict(headers), context))
                    answering.add(task)
                    waiting.put_nowait(task)
            finally:
                waiting.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await self._next(waiting)) is not None:
                await context.write(await task)
                answering.discard(task)
                room.release()
            if reader.done():
                await reader  # to hear of what went wrong
                return
        finally:
            for left in (reader, *answering):
                left.cancel()
            await asyncio.gather(reader, *answering, return_exceptions=True)
        await abort(context, RequestError(503, "the gateway is stopping", hint="try later"))

    async def _next(self, waiting: asyncio.Queue[asyncio.Task[bytes] | None]) -> asyncio.Task[bytes] | None:
        """What is next in a stream; None at its end, or when nothing is under way and the gateway stops."""
        if not waiting.empty():
            return waiting.get_nowait()
        if self.stopping.is_set():
            return None
        coming = asyncio.create_task(waiting.get())
        ending = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait({coming, ending}, return_when=asyncio.FIRST_COMPLETED)
            return coming.result() if coming.done() else None
        finally:
            coming.cancel()
            ending.cancel()

    async def _stream_answer(self, body: bytes, headers: dict[bytes, bytes], context: Any) -> bytes:
        answer = await self._answer(body, headers, context.time_remaining(), of_stream=True)
        made = self._protocol.message(f"{STREAM}Response")()
        if isinstance(answer, GatewayError):
            made.error_message = _details(answer)
            self._name(made.infer_response, body)
        else:
            made.infer_response.MergeFromString(answer.body)
        return bytes(made.SerializeToString())

    def _name(self, response: Any, body: bytes) -> None:
        """Say in the answer to a failed request of a stream which one it was, as far as it can be read."""
        try:
            asked = parsed(self._protocol.message("ModelInferRequest"), body)
        except GatewayError:
            return
        response.model_name, response.model_version, response.id = (
            asked.model_name, asked.model_version, asked.id,
        )  # fmt: skip


def all_ready(gateway: Gateway) -> bool:
    return gateway.exchange.healthy and all(map(gateway.ready, gateway.plans))


def _model_ready(gateway: Gateway, asked: Any) -> Mapping[str, Any]:
    """A model that is not there is not ready, as Triton says it: clients ask until it is."""
    try:
        door = gateway.door(asked.name, asked.version or None)
    except GatewayError:
        return {"ready": False}
    return {"ready": gateway.ready(door.name)}


def _server_metadata(_: Gateway, __: Any) -> Mapping[str, Any]:
    return {"name": "dataflow", "version": version_of_us(), "extensions": list(EXTENSIONS)}


def _model_metadata(gateway: Gateway, asked: Any) -> Mapping[str, Any]:
    door = gateway.door(asked.name, asked.version or None)
    return v2.metadata(door.name, door.version, door.request, door.answer)


def _model_config(gateway: Gateway, asked: Any) -> Mapping[str, Any]:
    door = gateway.door(asked.name, asked.version or None)
    return {"config": config_of(door.name, door.request, door.answer)}


def _model_statistics(gateway: Gateway, asked: Any) -> Mapping[str, Any]:
    if asked.name:
        door = gateway.door(asked.name, asked.version or None)
        wanted = [(door.name, door.version)]
    else:
        wanted = [(n, p.version) for n, p in sorted(gateway.plans.items()) if p.answer is not None]
    return {"model_stats": [statistics_of(n, gateway.statistics.of(n, v)) for n, v in wanted]}


def _repository_index(gateway: Gateway, asked: Any) -> Mapping[str, Any]:
    return {"models": repository_index(gateway.plans, gateway.ready, ready_only=asked.ready)}


_TOLD: Final[Mapping[str, Callable[[Gateway, Any], Mapping[str, Any]]]] = {
    "ServerLive": lambda _, __: {"live": True},
    "ServerReady": lambda gateway, _: {"ready": all_ready(gateway)},
    "ModelReady": _model_ready,
    "ServerMetadata": _server_metadata,
    "ModelMetadata": _model_metadata,
    "ModelConfig": _model_config,
    "ModelStatistics": _model_statistics,
    "RepositoryIndex": _repository_index,
}


def parsed(message: Any, body: bytes) -> Any:
    """A message of a class. Raises GatewayError 400."""
    try:
        return message.FromString(body)
    except DecodeError:
        raise GatewayError(400, f"the message is no {message.DESCRIPTOR.full_name}") from None


def headers_of(metadata: Iterable[tuple[str, str | bytes]]) -> dict[bytes, bytes]:
    """Metadata as the headers of a request; of a name that is there twice the last counts."""
    return {
        name.encode(): value.encode("latin-1", "replace") if isinstance(value, str) else value
        for name, value in metadata
    }


def expected_error(error: Exception, method: str) -> GatewayError:
    """What a caller is told of a failure; one that nobody expected is logged."""
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, DataflowError):
        return RequestError(503, str(error), retry_after_s=RETRY_AFTER_S)
    log.error("gRPC %s", method, exc_info=error)
    return GatewayError(500, "the gateway failed; its log says why")


async def abort(context: Any, error: GatewayError) -> NoReturn:
    """End a call with the error's code and words; its facts are trailing metadata."""
    told: list[tuple[str, str]] = []
    retry_after_s = RETRY_AFTER_S if error.status in (429, 503) else 0
    if isinstance(error, RequestError):
        if error.record_id:
            told.append(("df-id", error.record_id.decode("ascii", "replace")))
        told += [(f"df-{name}", quote(str(value))) for name, value in error.facts.items()]
        retry_after_s = error.retry_after_s or retry_after_s
    if retry_after_s:
        # What gRPC's own retries, where a client has turned them on, wait for.
        told.append(("grpc-retry-pushback-ms", str(retry_after_s * 1000)))
    code = _CODES.get(error.status, grpc.StatusCode.UNKNOWN)
    await context.abort(code, _details(error), tuple(told))
    raise AssertionError("abort raises")


def _details(error: GatewayError) -> str:
    return str(error).encode()[:_MAX_DETAILS_BYTES].decode(errors="ignore")


def request_of(body: bytes, headers: Mapping[bytes, bytes]) -> Request:
    """The HTTP request that a call would have been."""

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body}

    kept = {name: value for name, value in headers.items() if name not in _NOT_CARRIED}
    kept[b"content-length"] = str(len(body)).encode()
    return Request("POST", "", kept, b"", receive, {}, frozenset())


def _limit_wait(headers: dict[bytes, bytes], left_s: float) -> None:
    """Have the deadline header say what is left of a call, unless it says less already."""
    left_ms = max(min(int(left_s * 1000), _LONGEST_MS), 1)
    said = headers.get(DEADLINE_HEADER, b"")
    if not said or (said.isdigit() and len(said) <= 12 and left_ms < int(said)):  # else it is refused later
        headers[DEADLINE_HEADER] = str(left_ms).encode()


def _shown(headers: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode(), value.decode("ascii", "replace")) for name, value in headers)
