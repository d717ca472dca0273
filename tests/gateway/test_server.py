from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
import pytest

from dataflow.core.errors import DataflowError, TransportError
from dataflow.core.schema import FieldType, Schema
from dataflow.gateway.app import Gateway, GatewaySettings
from dataflow.gateway.connection import DoorLimits
from dataflow.gateway.server import bind, new_event_loop, serve
from dataflow.planner.plan import Plan
from dataflow.transport.api import Fabric
from tests.gateway.fixtures import Responder, Told, edge, fabric_for, plan_of, tensors, total

INFER = "/v2/models/sums/infer"


@contextmanager
def served(
    plan: Plan,
    fabric: Fabric,
    settings: GatewaySettings | None = None,
    limits: DoorLimits | None = None,
    **providers: Any,
) -> Iterator[tuple[int, Any]]:
    """A gateway on a free port, in a thread as `up` has it; gives the port and a way to stop it."""
    started: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        gateway = Gateway(fabric, lambda: {plan.pipeline: plan}, settings, **providers)
        await serve(
            gateway,
            "127.0.0.1",
            0,
            stop,
            lambda port: started.set_result((port, loop, stop)),
            limits=limits,
        )

    def main() -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=main)
    thread.start()
    port, loop, stop = started.result(30)

    def end() -> None:
        loop.call_soon_threadsafe(stop.set)

    try:
        yield port, end
    finally:
        if thread.is_alive():
            end()
        thread.join(30)
        assert not thread.is_alive()


def call(port: int, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_tritonclient_with_its_defaults() -> None:
    import tritonclient.http as triton

    plan = plan_of()
    fabric = fabric_for(plan)
    with served(plan, fabric) as (port, _), Responder(fabric, plan):
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("sums")
        assert client.is_model_ready("sums", "v7")
        assert client.get_model_metadata("sums")["inputs"][0]["datatype"] == "FP32"
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        x = triton.InferInput("x", [2, 3], "FP32")
        x.set_data_from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))
        name = triton.InferInput("name", [2], "BYTES")
        name.set_data_from_numpy(np.array(["zürich", "rom"], dtype=object))
        at = triton.InferInput("at", [2], "INT64")
        at.set_data_from_numpy(np.array([0, 1], dtype=np.int64))
        answer = client.infer("sums", [x, name, at], request_id="mine")
        assert answer.get_response()["id"] == "mine"
        assert answer.as_numpy("total").tolist() == [3.0, 12.0]
        assert [b.decode() for b in answer.as_numpy("label")] == ["ZÜRICH", "ROM"]
        wanted = [triton.InferRequestedOutput("total", binary_data=False)]
        for encoding in (None, "gzip", "deflate"):
            answer = client.infer("sums", [x, name], outputs=wanted, request_compression_algorithm=encoding)
            assert answer.as_numpy("total").tolist() == [3.0, 12.0]
            assert answer.as_numpy("label") is None
        with pytest.raises(triton.InferenceServerException, match="no pipeline 'sum'"):
            client.infer("sum", [x])
        client.close()


def test_tritonclient_with_half_floats() -> None:
    import tritonclient.http as triton

    schema = Schema.of(total=FieldType("float16", (2,)), label="string")
    plan = plan_of(edge("sum", schema))
    fabric = fabric_for(plan)

    def answer(record: Mapping[str, Any]) -> Told:
        return Told({"total": np.array(record["x"][:2], np.float16), "label": "h"})

    with served(plan, fabric) as (port, _), Responder(fabric, plan, answer):
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        x = triton.InferInput("x", [1, 3], "FP32")
        x.set_data_from_numpy(np.array([[0.5, 2, 3]], dtype=np.float32), binary_data=False)
        name = triton.InferInput("name", [1], "BYTES")
        name.set_data_from_numpy(np.array(["n"], dtype=object), binary_data=False)
        found = client.infer("sums", [x, name]).as_numpy("total")
        assert (found.dtype, found.tolist()) == (np.float16, [[0.5, 2.0]])
        client.close()


def test_plain_sockets_and_broken_requests() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    with served(plan, fabric) as (port, _), Responder(fabric, plan):
        # What `curl -d` sends: a form by its header.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", INFER, orjson.dumps(tensors()), kind)
        assert connection.getresponse().status == 200
        connection.close()
        for sent, status in (
            (b"POST /pipelines/sums HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"411"),
            (
                b"POST /pipelines/sums HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n",
                b"413",
            ),
            (b"GET /v2/models/%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
            (b"nonsense\r\n\r\n", b"400"),
        ):
            with socket.create_connection(("127.0.0.1", port), 30) as raw:
                raw.sendall(sent)
                assert raw.recv(100).split()[1] == status


def test_stop_answers_those_who_wait() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    held = threading.Event()
    seen = threading.Event()

    def answer(record: Mapping[str, Any]) -> Told:
        seen.set()
        assert held.wait(30)
        return total(record)

    with served(plan, fabric) as (port, end), Responder(fabric, plan, answer):
        found: list[tuple[int, bytes]] = []
        caller = threading.Thread(target=lambda: found.append(call(port, INFER, orjson.dumps(tensors()))))
        caller.start()
        assert seen.wait(30)
        end()
        while True:  # the door closes first
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                break
        held.set()
        caller.join(30)
    assert found[0][0] == 200


def test_only_loopback_without_a_token() -> None:
    plan = plan_of()
    gateway = Gateway(fabric_for(plan), lambda: {"sums": plan})
    with pytest.raises(DataflowError, match="set DATAFLOW_TOKEN"):
        asyncio.run(serve(gateway, "0.0.0.0", 0, asyncio.Event()))


def test_a_port_in_use() -> None:
    taken = bind("127.0.0.1", 0)
    try:
        with pytest.raises(DataflowError, match=r"cannot listen on 127.0.0.1:\d+: Address already in use"):
            bind("127.0.0.1", taken.getsockname()[1])
    finally:
        taken.close()


def test_a_reply_topic_that_is_not_there() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    fabric.delete(["dataflow.replies"])
    gateway = Gateway(fabric, lambda: {"sums": plan})
    with pytest.raises(TransportError):
        asyncio.run(serve(gateway, "127.0.0.1", 0, asyncio.Event()))
