"""The gRPC door on a port: the inference service, the standard health service and reflection, on grpc.aio.

Imported only where the door is opened: a process without it neither needs grpcio nor pays for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NoReturn

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from dataflow.core.errors import DataflowError, GatewayError
from dataflow.core.limits import (
    HEAD_TIMEOUT_MS,
    KEEP_ALIVE_MS,
    MAX_BODY_BYTES,
    MAX_CONNECTIONS,
    MAX_DEADLINE_MS,
    MAX_GRPC_STREAMS,
    MAX_HEALTH_WATCHES,
)
from dataflow.gateway.app import Gateway
from dataflow.gateway.connection import room_for
from dataflow.gateway.grpc_door import GrpcDoor, abort, all_ready, headers_of, request_of
from dataflow.gateway.grpc_proto import PACKAGE, SERVICE, Protocol

HEALTH: Final = "grpc.health.v1.Health"
REFLECTION: Final = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
# As over HTTP, where no token is asked for them either.
FREE: Final = frozenset(
    (
        f"/{SERVICE}/ServerLive",
        f"/{SERVICE}/ServerReady",
        *(f"/{HEALTH}/{name}" for name in ("Check", "Watch")),
    )
)
# How often a health stream looks whether there is news.
_WATCH_S: Final = 1.0
# What is left to be written when the last request is answered.
_LAST_WORDS_S: Final = 2.0


class GrpcServer:
    """One gateway's gRPC door, in the event loop of `start`."""

    def __init__(self, gateway: Gateway, *, shared: bool = False) -> None:
        self._door = GrpcDoor(gateway)
        limits = gateway.settings.max_pending
        self._server = grpc.aio.server(
            interceptors=(_Guard(gateway),) if gateway.settings.tokens else (),
            maximum_concurrent_rpcs=limits,
            options=(
                ("grpc.max_receive_message_length", MAX_BODY_BYTES),
                ("grpc.max_send_message_length", -1),  # what a client takes is the client's to say
                ("grpc.so_reuseport", int(shared)),  # or a port that is taken is told
                ("grpc.max_allowed_incoming_connections", room_for(MAX_CONNECTIONS)),
                ("grpc.max_concurrent_streams", MAX_GRPC_STREAMS),
                ("grpc.max_connection_idle_ms", KEEP_ALIVE_MS),
                ("grpc.server_handshake_timeout_ms", HEAD_TIMEOUT_MS),
            ),
        )
        self._server.add_generic_rpc_handlers((self._door.handlers(),))
        self._server.add_generic_rpc_handlers((_health(_Health(gateway, self._door)),))
        _add_reflection(self._server)
        self._refusing: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; gives the port, which is a free one for 0. Raises DataflowError when the address cannot be had."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            got = int(self._server.add_insecure_port(address))
        except RuntimeError:
            got = 0
        if not got:
            raise DataflowError(
                f"the gRPC door cannot listen on {address}", hint="choose another port, or 0 for any free one"
            )
        await self._server.start()
        return got

    def refuse(self) -> None:
        """Take no new calls; those under way go on. Clients that are connected are told to go elsewhere."""
        self._door.stopping.set()
        self._refusing = asyncio.create_task(self._server.stop(MAX_DEADLINE_MS / 1000))

    async def stop(self) -> None:
        """End, once the gateway has drained or shall not."""
        self._door.stopping.set()
        await self._server.stop(_LAST_WORDS_S)
        if self._refusing is not None:
            await self._refusing


class _Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # of a package without types
    """No call without a token but those that are free, before anything of it is read."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        headers = headers_of(handler_call_details.invocation_metadata or ())
        try:
            self._gateway.scopes_of(request_of(b"", headers), free=handler_call_details.method in FREE)
        except GatewayError as error:
            refusal = error

            async def refuse(_: AsyncIterator[bytes], context: Any) -> NoReturn:
                await abort(context, refusal)

            # On the wire a refusal is the same for every kind of method; this kind does not wait for a message first.
            return grpc.stream_stream_rpc_method_handler(refuse)
        return await continuation(handler_call_details)


def _lenient(message: Any) -> Callable[[bytes], Any]:
    """A deserializer that gives None for what it cannot read: an error there would be told as a fault of ours."""

    def read(body: bytes) -> Any:
        try:
            return message.FromString(body)
        except DecodeError:
            return None

    return read


async def _unreadable(context: Any, message: Any) -> NoReturn:
    await abort(context, GatewayError(400, f"the message is no {message.DESCRIPTOR.full_name}"))


def _health(servicer: _Health) -> Any:
    asked, told = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    made = {
        name: kind(method, _lenient(asked), told.SerializeToString)
        for name, kind, method in (
            ("Check", grpc.unary_unary_rpc_method_handler, servicer.Check),
            ("Watch", grpc.unary_stream_rpc_method_handler, servicer.Watch),
        )
    }
    return grpc.method_handlers_generic_handler(HEALTH, made)


class _Health:
    """SERVING while the gateway and all pipelines can answer; asked for the server or for the inference service."""

    def __init__(self, gateway: Gateway, door: GrpcDoor) -> None:
        self._gateway = gateway
        self._door = door
        self._watches = 0

    def _status(self, service: str) -> int:
        if service not in ("", SERVICE):
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        good = all_ready(self._gateway) and not self._door.stopping.is_set()
        known = health_pb2.HealthCheckResponse
        return int(known.SERVING if good else known.NOT_SERVING)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  (the protocol's name)
        if request is None:
            await _unreadable(context, health_pb2.HealthCheckRequest)
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await abort(
                context, GatewayError(404, f"no service '{request.service[:100]}'", hint=f"valid: {SERVICE}")
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802  (the protocol's name)
        if request is None:
            await _unreadable(context, health_pb2.HealthCheckRequest)
        if self._watches >= MAX_HEALTH_WATCHES:
            text = f"{MAX_HEALTH_WATCHES} watches of health are open, which is the limit"
            await abort(context, GatewayError(429, text, hint="try later"))
        self._watches += 1
        try:
            await self._watch(request.service, context)
        finally:
            self._watches -= 1

    async def _watch(self, service: str, context: Any) -> None:
        told = -1
        while True:
            status = self._status(service)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            if self._door.stopping.is_set():
                return
            try:
                await asyncio.wait_for(self._door.stopping.wait(), _WATCH_S)
            except TimeoutError:
                continue


def _add_reflection(server: Any) -> None:
    """Reflection from a pool that holds what is served and nothing else: the default one may hold a client's."""
    pool = descriptor_pool.DescriptorPool()
    ours = Protocol.load().pool.FindFileByName(f"dataflow/{PACKAGE}.proto")
    for file in (ours, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
    servicer = reflection.aio.ReflectionServicer((SERVICE, HEALTH, REFLECTION[0]), pool=pool)

    async def reflect(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async def readable() -> AsyncIterator[Any]:
            async for request in requests:
                if request is None:
                    await _unreadable(context, reflection_pb2.ServerReflectionRequest)
                yield request

        async for answer in servicer.ServerReflectionInfo(readable(), context):
            yield answer

    # Version 1 has the messages of v1alpha under another name; newer tools ask for it first.
    for name in REFLECTION:
        handler = grpc.stream_stream_rpc_method_handler(
            reflect,
            _lenient(reflection_pb2.ServerReflectionRequest),
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
        )
