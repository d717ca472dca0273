"""gRPC clients that others wrote, unmodified, against a running `dataflow up`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.utils import InferenceServerException

from tests.conftest import wait_for
from tests.e2e.test_clients import FIELDS, Array, flowers, onnx_answers, same_probabilities

pytestmark = pytest.mark.broker


@pytest.fixture(scope="session")
def address(url: str, project: Path) -> str:
    """Of the gRPC door, as the state file says; `url` waits until every pipeline is ready."""
    del url
    return str(json.loads((project / ".dataflow/up.json").read_text())["grpc"])


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address) as client:
        yield client


def tensors(columns: dict[str, tuple[str, Array]]) -> list[Any]:
    made = []
    for name, (datatype, values) in columns.items():
        tensor = triton.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values)
        made.append(tensor)
    return made


def flower_tensors(rows: Array) -> list[Any]:
    return tensors({name: ("FP32", rows[:, i]) for i, name in enumerate(FIELDS)})


def test_tritonclient_with_its_defaults_gets_what_onnxruntime_gives(client: Any, project: Path) -> None:
    rows = flowers()
    labels, probabilities = onnx_answers(project, rows)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("iris")
    assert not client.is_model_ready("irsi")
    assert [(t.name, t.datatype, list(t.shape)) for t in client.get_model_metadata("iris").inputs] == [
        (name, "FP32", [-1]) for name in FIELDS
    ]
    answer = client.infer("iris", flower_tensors(rows), request_id="all-flowers")
    assert answer.get_response().id == "all-flowers"
    np.testing.assert_array_equal(answer.as_numpy("species"), labels)
    same_probabilities(answer.as_numpy("probabilities"), probabilities)


def test_tritonclient_chooses_outputs_and_versions(client: Any, project: Path) -> None:
    rows = flowers()[:3]
    labels, _ = onnx_answers(project, rows)
    version = client.get_model_metadata("iris").versions[-1]
    wanted = [triton.InferRequestedOutput("species")]
    answer = client.infer("iris", flower_tensors(rows), model_version=version, outputs=wanted)
    assert [o.name for o in answer.get_response().outputs] == ["species"]
    np.testing.assert_array_equal(answer.as_numpy("species"), labels)
    with pytest.raises(InferenceServerException, match="version"):
        client.infer("iris", flower_tensors(rows), model_version="nine")


def test_tritonclient_aio_asks_many_times_at_once(address: str, project: Path) -> None:
    rows = flowers()
    labels, _ = onnx_answers(project, rows)

    async def ask() -> list[int]:
        async with triton_aio.InferenceServerClient(address) as client:
            answers = await asyncio.gather(
                *(client.infer("iris", flower_tensors(rows[i : i + 1])) for i in range(len(rows)))
            )
        return [int(answer.as_numpy("species")[0]) for answer in answers]

    assert asyncio.run(ask()) == labels.tolist()


def test_tritonclient_streams_in_order(client: Any, project: Path) -> None:
    rows = flowers()
    labels, _ = onnx_answers(project, rows)
    found: list[tuple[Any, Any]] = []
    client.start_stream(lambda result, error: found.append((result, error)))
    for i in range(len(rows)):
        client.async_stream_infer("iris", flower_tensors(rows[i : i + 1]))
    wait_for(lambda: len(found) == len(rows), "the answers")
    client.stop_stream()
    assert [int(result.as_numpy("species")[0]) for result, _ in found] == labels.tolist()


def test_tensors_ragged_rows_and_halves_go_through(client: Any) -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    signal = np.array([[1, 5, 2], [7, 3, 1]], dtype=np.float32)
    half = np.array([[0.5, 1.5], [-2.0, 65504.0]], dtype=np.float16)
    columns: dict[str, tuple[str, Array]] = {
        "image": ("UINT8", image), "signal": ("FP32", signal), "half": ("FP16", half),
    }  # fmt: skip
    answer = client.infer("images", tensors(columns))
    np.testing.assert_array_equal(answer.as_numpy("scaled"), image.astype(np.float32) / 255)
    np.testing.assert_array_equal(answer.as_numpy("peak"), [5.0, 7.0])
    np.testing.assert_array_equal(answer.as_numpy("signal"), signal)
    np.testing.assert_array_equal(answer.as_numpy("half"), half)


def test_texts_and_times_of_tritonclient(client: Any) -> None:
    columns: dict[str, tuple[str, Array]] = {
        "sensor": ("BYTES", np.array(["ä", "b"], dtype=object)),
        "celsius": ("FP64", np.array([40.0, 20.0])),
        "at": ("INT64", np.array([1714566600000000, 1714568400000000])),
    }
    answer = client.infer("sort", tensors(columns))
    assert answer.as_numpy("fahrenheit").tolist() == [104.0, 68.0]
    assert [text.decode() for text in answer.as_numpy("sensor")] == ["ä", "b"]


def test_tritonclient_is_told_what_is_wrong(client: Any, tmp_path: Path) -> None:
    wrong = tensors({"sepal_length": ("FP64", np.array([1.0]))})
    with pytest.raises(InferenceServerException, match=r"sepal_length.*FP64.*FP32") as refused:
        client.infer("iris", wrong)
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException, match="iris") as refused:
        client.infer("irsi", wrong)
    assert refused.value.status() == "StatusCode.NOT_FOUND"
    gate = tmp_path / "gate"
    names = {"name": "one", "gate": str(gate)}
    waiting = tensors({n: ("BYTES", np.array([text], dtype=object)) for n, text in names.items()})
    for limit in ({"timeout": 200_000}, {"client_timeout": 0.2}):
        with pytest.raises(InferenceServerException) as deadline:
            client.infer("waits", waiting, **limit)
        assert deadline.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    gate.touch()


def test_statistics_and_configuration_for_tools(client: Any) -> None:
    def rows() -> int:
        return int(client.get_inference_statistics("iris").model_stats[0].inference_count)

    before = rows()
    client.infer("iris", flower_tensors(flowers()[:5]))
    assert rows() == before + 5
    config = client.get_model_config("iris", as_json=True)["config"]
    assert [tensor["name"] for tensor in config["input"]] == list(FIELDS)
    index = {model.name: model.state for model in client.get_model_repository_index().models}
    assert index["iris"] == "READY"


def test_a_plain_client_finds_out_what_is_served(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        known = health_pb2.HealthCheckResponse
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == known.SERVING
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
        assert "ModelInfer" in [method.name for method in file.service[0].method]
