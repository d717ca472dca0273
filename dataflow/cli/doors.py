"""Where `up` and `gateway` listen: the options of the HTTP and the gRPC door, and what is told of them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dataflow.cli.hosting import console
from dataflow.cli.status import STATE_FILE
from dataflow.core.errors import DataflowError

if TYPE_CHECKING:
    from dataflow.cli.fleet import Place
    from dataflow.gateway.connection import DoorLimits
    from dataflow.gateway.server import GrpcDoorAt
    from dataflow.spec import Project


def door_options(command: Callable[..., None]) -> Callable[..., None]:
    """Where `up` and `gateway` listen."""
    options = (
        click.option(
            "--host", default=None, help="Address of the doors. Default: the project's, else 127.0.0.1."
        ),
        click.option("--port", type=int, default=None, help="Port of the HTTP door; 0 takes a free one."),
        click.option(
            "--grpc-port", type=int, default=None, help="Port of the gRPC door; 0 takes a free one."
        ),
        click.option(
            "--grpc/--no-grpc",
            default=None,
            help="Open the gRPC door. Default: the project's, else yes where grpcio is installed.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def grpc_port_of(project: Project, port: int | None, *, wanted: bool | None) -> int | None:
    """The port of the gRPC door, None where it stays shut. Raises DataflowError where it is asked for and cannot be."""
    declared = project.settings.gateway
    asked = port is not None or wanted is True
    if wanted is False or not (asked or declared.grpc):
        return None
    if any(find_spec(name) is None for name in ("grpc", "grpc_health", "grpc_reflection")):
        hint = "pip install 'kafka-dataflow[grpc]', or --no-grpc"
        if asked:
            raise DataflowError(
                "the gRPC door needs grpcio with its health and reflection services", hint=hint
            )
        console().print(f"no gRPC door: grpcio is not installed ({hint})", highlight=False, markup=False)
        return None
    return declared.grpc_port if port is None else port


def free_port(host: str) -> int:
    """A port that nothing listens on just now."""
    from dataflow.gateway.server import bind

    with bind(host, 0) as found:
        return int(found.getsockname()[1])


class Door:
    """Where to listen; `state` is where `up` writes down what it runs, for `status` and others.

    One process of several (`place`) listens where its parent does.
    """

    def __init__(
        self,
        project: Project,
        host: str | None,
        port: int | None,
        state_folder: Path | None,
        grpc_port: int | None,
        place: Place | None = None,
    ) -> None:
        declared = project.settings.gateway
        self.host = host or declared.host
        self.port = declared.port if port is None else port
        token = os.environ.get("DATAFLOW_TOKEN") or declared.token
        self.tokens = {token: frozenset({"private"})} if token else {}
        self._limits = declared.limits
        self._grpc_port = grpc_port
        self._grpc_address = ""
        self._state = state_folder / ".dataflow" / STATE_FILE if state_folder is not None else None
        self.reserved: socket.socket | None = None if place is None else place.listening
        self._place = place

    def reserve(self) -> socket.socket:
        """Take the address now; callers wait in its queue until it is served. Raises DataflowError."""
        from dataflow.gateway.server import bind, check_exposure

        check_exposure(self.host, self.tokens)
        if self._grpc_port:
            bind(self.host, self._grpc_port).close()  # cannot be kept, but that it is taken is told now
        self.reserved = bind(self.host, self.port)
        return self.reserved

    @property
    def limits(self) -> DoorLimits:
        """What connections to the HTTP door may do."""
        from dataflow.gateway.connection import DoorLimits

        return DoorLimits(**self._limits.model_dump())

    @property
    def grpc(self) -> GrpcDoorAt | None:
        """Where the gRPC door is to be opened, if it is."""
        from dataflow.gateway.server import GrpcDoorAt

        if self._grpc_port is None:
            return None
        return GrpcDoorAt(self._grpc_port, self._grpc_opened, shared=self._place is not None)

    def _grpc_opened(self, port: int) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        self._grpc_address = f"{host}:{port}"

    @property
    def one_of_several(self) -> bool:
        """Whether other processes listen at the same place."""
        return self._place is not None

    def url(self, port: int) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{port}"

    def opened(self, port: int, bootstrap: str) -> None:
        """Tell where it is, a person or, as one process of several, the parent."""
        if self._place is not None:
            self._place.serves()
            return
        url = self.url(port)
        console().print(f"broker   {bootstrap}\ngateway  {url}")
        if self._grpc_address:
            console().print(f"grpc     {self._grpc_address}")
        if self._state is not None:
            state = {"pid": os.getpid(), "gateway": url, "bootstrap": bootstrap, "grpc": self._grpc_address}
            self._state.parent.mkdir(parents=True, exist_ok=True)
            self._state.write_text(json.dumps(state))

    def closed(self) -> None:
        if self._state is not None:
            self._state.unlink(missing_ok=True)
