"""The door on its port: the standard services beside the inference service, and clients that others wrote."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.utils import InferenceServerException

from dataflow.core.errors import DataflowError
from dataflow.core.schema import FieldType, Schema
from dataflow.gateway.app import Gateway, GatewaySettings
from dataflow.gateway.grpc_proto import SERVICE
from dataflow.gateway.grpc_server import HEALTH, REFLECTION
from dataflow.gateway.server import GrpcDoorAt, serve
from tests.conftest import wait_for
from tests.gateway.fixtures import Responder, Told, edge, fabric_for, plan_of
from tests.gateway.grpc_fixtures import Client, Served, door, refused

CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def sums() -> Iterator[Client]:
    plan = plan_of()
    fabric = fabric_for(plan)
    with Responder(fabric, plan), door(plan, fabric) as (_, client):
        yield client


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    plan = plan_of()
    fabric = fabric_for(plan)
    with Responder(fabric, plan), Served(plan, fabric, None) as served:
        yield served.address


def inputs(rows: Mapping[str, tuple[str, Any]], api: Any = triton) -> list[Any]:
    made = []
    for name, (datatype, values) in rows.items():
        tensor = api.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values)
        made.append(tensor)
    return made


TWO: Mapping[str, tuple[str, Any]] = {
    "x": ("FP32", np.arange(6, dtype=np.float32).reshape(2, 3)),
    "name": ("BYTES", np.array(["zürich", "rom"], dtype=object)),
    "at": ("INT64", np.array([0, 1], dtype=np.int64)),
}


def test_tritonclient_with_its_defaults(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("sums")
        assert not client.is_model_ready("sms")
        assert client.get_server_metadata().name == "dataflow"
        assert [t.name for t in client.get_model_metadata("sums").inputs] == ["x", "name", "at"]
        assert client.get_model_config("sums").config.max_batch_size > 0
        assert [m.name for m in client.get_model_repository_index().models] == ["sums"]
        answer = client.infer("sums", inputs(TWO), request_id="mine", timeout=60_000_000, priority=1)
        assert answer.get_response().id == "mine"
        assert answer.as_numpy("total").tolist() == [3.0, 12.0]
        assert [b.decode() for b in answer.as_numpy("label")] == ["ZÜRICH", "ROM"]
        wanted = [triton.InferRequestedOutput("total")]
        for encoding in (None, "gzip", "deflate"):
            answer = client.infer("sums", inputs(TWO), outputs=wanted, compression_algorithm=encoding)
            assert answer.as_numpy("total").tolist() == [3.0, 12.0]
            assert answer.as_numpy("label") is None
        assert client.get_inference_statistics("sums").model_stats[0].inference_count >= 8
        with pytest.raises(InferenceServerException, match="no pipeline 'sum'") as told:
            client.infer("sum", inputs(TWO))
        assert told.value.status() == "StatusCode.NOT_FOUND"


def test_tritonclient_streams(address: str) -> None:
    found: list[tuple[Any, Any]] = []
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: found.append((result, error)))
        client.async_stream_infer("sums", inputs(TWO), request_id="one")
        client.async_stream_infer("nobody", inputs(TWO))
        client.async_stream_infer("sums", inputs(TWO), request_id="two")
        wait_for(lambda: len(found) == 3, "the answers")
        client.stop_stream()
    assert found[0][0].get_response().id == "one"
    assert found[0][0].as_numpy("total").tolist() == [3.0, 12.0]
    assert "no pipeline 'nobody'" in str(found[1][1])
    assert found[2][0].get_response().id == "two"


def test_tritonclient_aio_asks_many_times_at_once(address: str) -> None:
    async def ask() -> list[list[float]]:
        async with triton_aio.InferenceServerClient(address) as client:
            asked = [client.infer("sums", inputs(TWO, triton_aio)) for _ in range(50)]
            return [answer.as_numpy("total").tolist() for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [[3.0, 12.0]] * 50


def test_tritonclient_with_half_floats() -> None:
    schema = Schema.of(total=FieldType("float16", (2,)), label="string")
    plan = plan_of(edge("sum", schema))
    fabric = fabric_for(plan)

    def answer(record: Mapping[str, Any]) -> Told:
        return Told({"total": np.array(record["x"][:2], np.float16), "label": "h"})

    with Responder(fabric, plan, answer), Served(plan, fabric, None) as served:
        with triton.InferenceServerClient(served.address) as client:
            one = {name: (datatype, values[:1]) for name, (datatype, values) in TWO.items()}
            found = client.infer("sums", inputs(one)).as_numpy("total")
            assert (found.dtype, found.tolist()) == (np.float16, [[0.0, 1.0]])


def test_the_standard_health_service(sums: Client) -> None:
    stub = health_pb2_grpc.HealthStub(sums.channel)
    known = health_pb2.HealthCheckResponse
    for name in ("", SERVICE):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == known.SERVING
    code, words, _ = refused(lambda: stub.Check(health_pb2.HealthCheckRequest(service="other")))
    assert (code, words) == (CODE.NOT_FOUND, f"no service 'other' (valid: {SERVICE})")
    watching = stub.Watch(health_pb2.HealthCheckRequest(service="other"))
    assert next(watching).status == known.SERVICE_UNKNOWN
    watching.cancel()


def test_health_changes_with_the_pipelines_and_at_the_end() -> None:
    plan = plan_of()
    works = True
    known = health_pb2.HealthCheckResponse
    with door(plan, fabric_for(plan), working=lambda _: works) as (served, client):
        watching = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watching).status == known.SERVING
        works = False
        assert next(watching).status == known.NOT_SERVING
        assert not client.call("ServerReady").ready
        assert not client.call("ModelReady", name="sums").ready
        works = True
        assert next(watching).status == known.SERVING
        served.end()
        assert next(watching).status == known.NOT_SERVING
        assert list(watching) == []


def test_reflection_lists_services_and_gives_their_messages(sums: Client) -> None:
    database = ProtoReflectionDescriptorDatabase(sums.channel)
    assert set(database.get_services()) == {SERVICE, HEALTH, REFLECTION[0]}
    file = database.FindFileContainingSymbol(SERVICE)
    assert file.name == "dataflow/inference.proto"
    assert [service.name for service in file.service] == ["GRPCInferenceService"]
    assert database.FindFileContainingSymbol("inference.ModelInferRequest").name == file.name
    assert database.FindFileContainingSymbol(HEALTH).package == "grpc.health.v1"


def test_reflection_by_the_name_of_version_1(sums: Client) -> None:
    ask = sums.channel.stream_stream(
        f"/{REFLECTION[1]}/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert SERVICE in [service.name for service in answer.list_services_response.service]


def test_reflection_asks_for_a_token_where_one_is_set() -> None:
    plan = plan_of()
    with door(plan, fabric_for(plan), GatewaySettings(tokens={"secret": frozenset()})) as (_, client):
        stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        assert refused(lambda: list(stub.ServerReflectionInfo(iter([asked]))))[0] == CODE.UNAUTHENTICATED
        health = health_pb2_grpc.HealthStub(client.channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


def test_a_port_that_is_taken_is_told() -> None:
    plan = plan_of()
    gateway = Gateway(fabric_for(plan), lambda: {"sums": plan})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DataflowError, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
            asyncio.run(serve(gateway, "127.0.0.1", 0, asyncio.Event(), grpc=GrpcDoorAt(port)))


def test_a_gateway_without_the_door_and_a_worker_do_not_import_grpc() -> None:
    modules = "dataflow.gateway.app", "dataflow.gateway.server", "dataflow.control.host", "dataflow.cli.serve"
    program = f"import sys, {', '.join(modules)}; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
