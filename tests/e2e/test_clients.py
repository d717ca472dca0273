"""Clients that others wrote, unmodified, against a running `dataflow up`."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from sklearn.datasets import load_iris
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.broker

FIELDS = ("sepal_length", "sepal_width", "petal_length", "petal_width")
Array = np.ndarray[Any, np.dtype[Any]]


def flowers() -> Array:
    return np.asarray(load_iris().data, dtype=np.float32)


def onnx_answers(project: Path, rows: Array) -> tuple[Array, Array]:
    session = onnxruntime.InferenceSession(
        project / "pipelines/iris/iris.onnx", providers=["CPUExecutionProvider"]
    )
    labels, probabilities = session.run(["label", "probabilities"], {"X": rows})
    return labels, probabilities


def tensors(columns: dict[str, tuple[str, Array]]) -> list[Any]:
    made = []
    for name, (datatype, values) in columns.items():
        tensor = triton.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values)
        made.append(tensor)
    return made


def same_probabilities(given: Array, expected: Array) -> None:
    """But for the last bits: rows of one request may run in batches of any size, which sum in another order."""
    np.testing.assert_allclose(given, expected, rtol=1e-5)


def flower_tensors(rows: Array) -> list[Any]:
    return tensors({name: ("FP32", rows[:, i]) for i, name in enumerate(FIELDS)})


def address(url: str) -> str:
    return url.removeprefix("http://")


def test_tritonclient_with_its_defaults_gets_what_onnxruntime_gives(url: str, project: Path) -> None:
    rows = flowers()
    labels, probabilities = onnx_answers(project, rows)
    with triton.InferenceServerClient(address(url)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("iris")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        described = client.get_model_metadata("iris")
        assert [(t["name"], t["datatype"], t["shape"]) for t in described["inputs"]] == [
            (name, "FP32", [-1]) for name in FIELDS
        ]
        answer = client.infer("iris", flower_tensors(rows), request_id="all-flowers")
    assert answer.get_response()["id"] == "all-flowers"
    np.testing.assert_array_equal(answer.as_numpy("species"), labels)
    same_probabilities(answer.as_numpy("probabilities"), probabilities)


def test_tritonclient_asks_what_measuring_tools_ask(url: str) -> None:
    rows = flowers()[:5]
    with triton.InferenceServerClient(address(url)) as client:
        index = {entry["name"]: entry for entry in client.get_model_repository_index()}
        assert index["iris"]["state"] == "READY"
        config = client.get_model_config("iris", index["iris"]["version"])
        assert [(i["name"], i["data_type"], i["dims"]) for i in config["input"]] == [
            (name, "TYPE_FP32", []) for name in FIELDS
        ]
        (before,) = client.get_inference_statistics("iris")["model_stats"]
        client.infer("iris", flower_tensors(rows), priority=1, timeout=10_000_000)
        (after,) = client.get_inference_statistics("iris")["model_stats"]
        assert after["inference_count"] - before["inference_count"] == len(rows)
        assert (
            after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
        )
        named = {stats["name"] for stats in client.get_inference_statistics()["model_stats"]}
        assert {"iris", "sort", "words"} <= named
        assert client.is_model_ready("iris", index["iris"]["version"])


def test_tritonclient_aio_asks_what_measuring_tools_ask(url: str) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(address(url)) as client:
            assert "iris" in {entry["name"] for entry in await client.get_model_repository_index()}
            assert (await client.get_model_config("iris"))["max_batch_size"] > 0
            assert (await client.get_inference_statistics("iris"))["model_stats"]

    asyncio.run(ask())


def test_tritonclient_chooses_outputs_and_versions(url: str, project: Path) -> None:
    rows = flowers()[:3]
    labels, _ = onnx_answers(project, rows)
    with triton.InferenceServerClient(address(url)) as client:
        version = client.get_model_metadata("iris")["versions"][-1]
        wanted = [triton.InferRequestedOutput("species", binary_data=False)]
        answer = client.infer("iris", flower_tensors(rows), model_version=version, outputs=wanted)
        assert [o["name"] for o in answer.get_response()["outputs"]] == ["species"]
        np.testing.assert_array_equal(answer.as_numpy("species"), labels)
        with pytest.raises(InferenceServerException, match="version"):
            client.infer("iris", flower_tensors(rows), model_version="nine")


def test_tritonclient_aio_asks_many_times_at_once(url: str, project: Path) -> None:
    rows = flowers()
    labels, _ = onnx_answers(project, rows)

    async def ask() -> list[int]:
        async with triton_aio.InferenceServerClient(address(url)) as client:
            answers = await asyncio.gather(
                *(client.infer("iris", flower_tensors(rows[i : i + 1])) for i in range(len(rows)))
            )
        return [int(answer.as_numpy("species")[0]) for answer in answers]

    assert asyncio.run(ask()) == labels.tolist()


def test_tensors_ragged_rows_and_halves_go_through(url: str) -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    signal = np.array([[1, 5, 2], [7, 3, 1]], dtype=np.float32)
    half = np.array([[0.5, 1.5], [-2.0, 65504.0]], dtype=np.float16)
    columns: dict[str, tuple[str, Array]] = {
        "image": ("UINT8", image),
        "signal": ("FP32", signal),
        "half": ("FP16", half),
    }
    with triton.InferenceServerClient(address(url)) as client:
        answer = client.infer("images", tensors(columns))
    np.testing.assert_array_equal(answer.as_numpy("scaled"), image.astype(np.float32) / 255)
    np.testing.assert_array_equal(answer.as_numpy("peak"), [5.0, 7.0])
    np.testing.assert_array_equal(answer.as_numpy("signal"), signal)
    np.testing.assert_array_equal(answer.as_numpy("half"), half)


def test_texts_and_times_of_tritonclient(url: str) -> None:
    columns: dict[str, tuple[str, Array]] = {
        "sensor": ("BYTES", np.array(["ä", "b"], dtype=object)),
        "celsius": ("FP64", np.array([40.0, 20.0])),
        "at": ("INT64", np.array([1714566600000000, 1714568400000000])),
    }
    with triton.InferenceServerClient(address(url)) as client:
        answer = client.infer("sort", tensors(columns))
    assert answer.as_numpy("fahrenheit").tolist() == [104.0, 68.0]
    assert [text.decode() for text in answer.as_numpy("sensor")] == ["ä", "b"]


def test_tritonclient_is_told_what_is_wrong(url: str, tmp_path: Path) -> None:
    wrong = tensors({"sepal_length": ("FP64", np.array([1.0]))})
    with triton.InferenceServerClient(address(url)) as client:
        with pytest.raises(InferenceServerException, match=r"sepal_length.*FP64.*FP32") as refused:
            client.infer("iris", wrong)
        assert refused.value.status() == "400"
        with pytest.raises(InferenceServerException, match="iris"):
            client.infer("irsi", wrong)
        with pytest.raises(InferenceServerException) as deadline:
            client.infer("waits", waiting(tmp_path / "gate"), timeout=200_000)
        (tmp_path / "gate").touch()
        assert deadline.value.status() == "504"


def waiting(gate: Path) -> list[Any]:
    names = {"name": "one", "gate": str(gate)}
    return tensors({name: ("BYTES", np.array([text], dtype=object)) for name, text in names.items()})


def curl(*arguments: str, given: str = "") -> tuple[int, str]:
    """(status, body) of one curl."""
    done = subprocess.run(
        ["curl", "-sS", "-w", "\n%{http_code}", *arguments],
        input=given,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_curl_gets_what_onnxruntime_gives(url: str, project: Path) -> None:
    rows = flowers()[::30]
    labels, probabilities = onnx_answers(project, rows)
    inputs = [
        {"name": name, "shape": [len(rows)], "datatype": "FP32", "data": rows[:, i].tolist()}
        for i, name in enumerate(FIELDS)
    ]
    status, body = curl(f"{url}/v2/models/iris/infer", "-d", "@-", given=json.dumps({"inputs": inputs}))
    outputs = {o["name"]: o for o in json.loads(body)["outputs"]}
    assert status == 200
    assert outputs["species"]["data"] == labels.tolist()
    assert outputs["probabilities"]["shape"] == [len(rows), 3]
    same_probabilities(np.array(outputs["probabilities"]["data"]).reshape(-1, 3), probabilities)

    records = [dict(zip(FIELDS, row.tolist(), strict=True)) for row in rows]
    status, body = curl(f"{url}/pipelines/iris", "-d", "@-", given=json.dumps(records))
    assert status == 200
    assert [answer["species"] for answer in json.loads(body)] == labels.tolist()
    same_probabilities(np.array([answer["probabilities"] for answer in json.loads(body)]), probabilities)


def test_curl_taps(url: str, door: httpx.Client) -> None:
    asked = door.post("/pipelines/shown", json={"x": 21.0})
    status, body = curl("-N", f"{url}/taps/shown/times?id={asked.headers['df-id']}&from=earliest&limit=1")
    data = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    assert status == 200
    assert [json.loads(line)["value"] for line in data] == [asked.json()]
