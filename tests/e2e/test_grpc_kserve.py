"""KServe's InferenceGRPCClient against a running `dataflow up`, in an environment of its own.

Its package pins what our development environment has newer, and its stubs register protobuf names that tritonclient's
register as well: neither can be in this process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_clients import flowers, onnx_answers, same_probabilities
from tests.e2e.test_grpc import address
from tests.test_packaging import uv

__all__ = ["address"]  # a fixture
pytestmark = [pytest.mark.broker, pytest.mark.slow]

KSERVE = "kserve==0.21.0"  # not what the day brings
# address, rows as JSON; prints a JSON object.
PROGRAM = """
import asyncio, json, sys
import grpc, numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

address, rows = sys.argv[1], np.array(json.loads(sys.argv[2]), dtype=np.float32)
names = ("sepal_length", "sepal_width", "petal_length", "petal_width")

def request(raw):
    inputs = []
    for index, name in enumerate(names):
        tensor = InferInput(name, [len(rows)], "FP32")
        tensor.set_data_from_numpy(rows[:, index], binary_data=raw)
        inputs.append(tensor)
    return InferRequest(model_name="iris", infer_inputs=inputs, request_id="mine")

async def main():
    told = {}
    async with InferenceGRPCClient(address) as client:
        told["live"] = await client.is_server_live()
        told["ready"] = await client.is_server_ready()
        told["model"] = await client.is_model_ready("iris")
        for form, raw in (("typed", False), ("raw", True)):
            answer = await client.infer(request(raw))
            told[form] = {output.name: output.as_numpy().tolist() for output in answer.outputs}
            told["id"] = answer.id
        half = InferInput("half", [1, 2], "FP16")
        half.set_data_from_numpy(np.array([[0.5, 65504.0]], dtype=np.float16), binary_data=True)
        image = InferInput("image", [1, 2, 3], "UINT8")
        image.set_data_from_numpy(np.arange(6, dtype=np.uint8).reshape(1, 2, 3), binary_data=True)
        signal = InferInput("signal", [1, 2], "FP32")
        signal.set_data_from_numpy(np.array([[1, 2]], dtype=np.float32), binary_data=True)
        halves = await client.infer(InferRequest("images", [image, signal, half]))
        told["half"] = {o.name: o for o in halves.outputs}["half"].as_numpy().tolist()
        try:
            await client.infer(InferRequest("irsi", request(False).inputs))
        except grpc.RpcError as error:
            told["unknown"] = [error.code().name, error.details()]
    print(json.dumps(told))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with KServe's package."""
    environment = tmp_path_factory.mktemp("kserve") / "env"
    subprocess.run([uv(), "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run([uv(), "pip", "install", "--quiet", "--python", str(python), KSERVE], check=True)
    return python


def test_inference_grpc_client(python: Path, address: str, project: Path) -> None:
    rows = flowers()[::30]
    labels, probabilities = onnx_answers(project, rows)
    done = subprocess.run(
        [python, "-c", PROGRAM, address, json.dumps(rows.tolist())],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["live"]
    assert told["ready"]
    assert told["model"]
    assert told["id"] == "mine"
    for form in ("typed", "raw"):
        assert told[form]["species"] == labels.tolist()
        same_probabilities(told[form]["probabilities"], probabilities)
    assert told["half"] == [[0.5, 65504.0]]
    assert told["unknown"] == ["NOT_FOUND", "no pipeline 'irsi' (did you mean 'iris'?)"]
