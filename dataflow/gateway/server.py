"""The gateway on a port: uvicorn with uvloop and httptools, no access log, and a stop that leaves nobody unanswered."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Collection, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import uvicorn

from dataflow.core.errors import DataflowError
from dataflow.core.limits import MAX_DEADLINE_MS
from dataflow.gateway.app import Gateway, is_loopback
from dataflow.gateway.connection import DoorLimits, connections_of, farewell, room_for, watch

if TYPE_CHECKING:
    from dataflow.gateway.grpc_server import GrpcServer

# Connections waiting to be accepted: a burst of callers must not be refused by the system.
_BACKLOG: Final = 2_048


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Uvloop where there is one: half the time of asyncio's own per request."""
    try:
        import uvloop
    except ImportError:  # not on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _Server(uvicorn.Server):
    """uvicorn leaves signals to whoever runs the process: one process may hold more than a gateway."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises DataflowError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise DataflowError(
            f"the gateway cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another port, or 0 for any free one",
        ) from error
    made.setblocking(False)
    return made


def check_exposure(host: str, tokens: Collection[str]) -> None:
    """Raises DataflowError for a host that is not loopback while no token is set."""
    if not tokens and not is_loopback(host):
        raise DataflowError(
            f"the gateway would listen on {host} for everyone",
            hint="set DATAFLOW_TOKEN, or gateway.token in dataflow.yaml, or listen on 127.0.0.1",
        )


@dataclass(frozen=True)
class GrpcDoorAt:
    """Where the gRPC door is opened beside HTTP, on the same host; `started` is told the port, a free one for 0.

    `shared`: other processes listen there, too.
    """

    port: int
    started: Callable[[int], None] = lambda _: None
    shared: bool = False


@contextlib.asynccontextmanager
async def _grpc_door(gateway: Gateway, host: str, at: GrpcDoorAt | None) -> AsyncIterator[GrpcServer | None]:
    if at is None:
        yield None
        return
    from dataflow.gateway.grpc_server import GrpcServer

    door = GrpcServer(gateway, shared=at.shared)
    try:
        at.started(await door.start(host, at.port))
        yield door
    finally:
        await door.stop()


async def serve(
    gateway: Gateway,
    host: str,
    port: int,
    stop: asyncio.Event,
    started: Callable[[int], None] | None = None,
    reserved: socket.socket | None = None,
    grpc: GrpcDoorAt | None = None,
    limits: DoorLimits | None = None,
) -> None:
    """Serve until `stop` is set; then take no new connection, answer those in flight and what still comes, and end.

    `started` is told the port once requests are taken; `reserved` is what `bind(host, port)` gave before. Starts and
    closes the gateway and the socket; `grpc` opens that door as well. Raises DataflowError for a host that is not loopback
    while no token is set, and for an address that cannot be had.
    """
    check_exposure(host, gateway.settings.tokens)
    listening = reserved or bind(host, port)
    wanted = limits or DoorLimits()
    bounds = replace(wanted, connections=room_for(wanted.connections))
    try:
        await gateway.start()
        server = _Server(
            uvicorn.Config(
                gateway,
                http=connections_of(bounds),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # who calls is told by the token, never by a header
                server_header=False,
                date_header=False,
                timeout_keep_alive=max(1, bounds.keep_alive_ms // 1000),
                timeout_graceful_shutdown=MAX_DEADLINE_MS // 1000,
            )
        )
        async with _grpc_door(gateway, host, grpc) as beside:
            connections = server.server_state.connections
            running = asyncio.create_task(server.serve(sockets=[listening]))
            watching = asyncio.create_task(watch(connections, bounds))
            ending = asyncio.create_task(stop.wait())
            if started is not None:
                while not server.started and not running.done():
                    await asyncio.sleep(0.005)
                started(int(listening.getsockname()[1]))
            await asyncio.wait({running, ending}, return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            if beside is not None:
                beside.refuse()
            server.should_exit = True
            await farewell(connections, bounds)
            await gateway.settle()
            draining = asyncio.create_task(gateway.drain())
            await running
            await draining
            watching.cancel()
    finally:
        await gateway.close()
        listening.close()
