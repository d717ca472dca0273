"""A gateway with its gRPC door, in a thread as `up` has it, and a client that speaks the protocol and no more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from dataflow.gateway.app import Gateway, GatewaySettings
from dataflow.gateway.grpc_proto import SERVICE, Protocol
from dataflow.gateway.server import GrpcDoorAt, new_event_loop, serve
from dataflow.planner.plan import Plan
from dataflow.transport.api import Fabric

TIMEOUT_S = 60


class Served:
    """One that serves: its gRPC port, and `end` to begin its drain."""

    def __init__(
        self, plan: Plan, fabric: Fabric, settings: GatewaySettings | None, **providers: Any
    ) -> None:
        self._arguments = (plan, fabric, settings, providers)
        self._ports: Future[int] = Future()
        self._ready: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self.thread = threading.Thread(target=self._main)
        self.gateway: Gateway

    def __enter__(self) -> Served:
        self.thread.start()
        self.http_port, self.loop, self._stop = self._ready.result(TIMEOUT_S)
        self.port = self._ports.result(0)
        return self

    def __exit__(self, *_: object) -> None:
        if self.thread.is_alive():
            self.end()
        self.thread.join(TIMEOUT_S)
        assert not self.thread.is_alive()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(self._run())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _run(self) -> None:
        plan, fabric, settings, providers = self._arguments
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.gateway = Gateway(fabric, lambda: {plan.pipeline: plan}, settings, **providers)
        door = GrpcDoorAt(0, self._ports.set_result)
        await serve(
            self.gateway,
            "127.0.0.1",
            0,
            stop,
            lambda port: self._ready.set_result((port, loop, stop)),
            grpc=door,
        )


class Client:
    """Calls by name with dicts, over one channel; `call` gives the answer, its code is in the RpcError it raises."""

    def __init__(self, address: str, metadata: Mapping[str, str] | None = None) -> None:
        self._channel = grpc.insecure_channel(address)
        self._metadata = tuple((metadata or {}).items())
        self._protocol = Protocol.load()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def raw(self, method: str, body: bytes, timeout_s: float | None = TIMEOUT_S) -> tuple[bytes, Any]:
        """The bytes of an answer, and the call that brought it."""
        ask = self._channel.unary_unary(f"/{SERVICE}/{method}")
        answer, call = ask.with_call(body, timeout=timeout_s, metadata=self._metadata)
        return answer, call

    def call(self, method: str, *, timeout_s: float | None = TIMEOUT_S, **fields: Any) -> Any:
        request = self._protocol.message(f"{method}Request")(**fields)
        answer, _ = self.raw(method, request.SerializeToString(), timeout_s)
        return self._protocol.message(f"{method}Response").FromString(answer)

    def infer(self, request: Any, timeout_s: float | None = TIMEOUT_S) -> Any:
        answer, _ = self.raw("ModelInfer", request.SerializeToString(), timeout_s)
        return self._protocol.message("ModelInferResponse").FromString(answer)

    def stream(self, requests: Iterator[Any]) -> Any:
        """The answers of a stream, as they come."""
        return self._channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            lambda message: message.SerializeToString(),
            self._protocol.message("ModelStreamInferResponse").FromString,
        )(requests, timeout=TIMEOUT_S, metadata=self._metadata)

    @property
    def channel(self) -> Any:
        return self._channel


def refused(ask: Callable[[], Any]) -> tuple[Any, str, dict[str, str]]:
    """The code, the words and the trailing metadata of a call that must fail."""
    try:
        ask()
    except grpc.RpcError as error:
        return error.code(), error.details(), dict(error.trailing_metadata())
    raise AssertionError("it was answered")


def request(rows: int = 1, model: str = "sums", *, typed: bool = False, **fields: Any) -> Any:
    """A ModelInferRequest to pipeline `sums`: x counts up, names are n0, n1, ..."""
    made = Protocol.load().message("ModelInferRequest")(model_name=model, **fields)
    x = np.arange(rows * 3, dtype="<f4")
    names = [f"n{i}".encode() for i in range(rows)]
    numbers = made.inputs.add(name="x", datatype="FP32", shape=[rows, 3])
    texts = made.inputs.add(name="name", datatype="BYTES", shape=[rows])
    if typed:
        numbers.contents.fp32_contents.extend(x.tolist())
        texts.contents.bytes_contents.extend(names)
    else:
        made.raw_input_contents.append(x.tobytes())
        made.raw_input_contents.append(b"".join(len(n).to_bytes(4, "little") + n for n in names))
    return made


@contextmanager
def door(
    plan: Plan, fabric: Fabric, settings: GatewaySettings | None = None, **providers: Any
) -> Iterator[tuple[Served, Client]]:
    with Served(plan, fabric, settings, **providers) as served, Client(served.address) as client:
        yield served, client
