"""HTTP clients whose packages cannot be in our environment, unmodified, each in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_clients import FIELDS, address, flowers, onnx_answers, same_probabilities
from tests.test_packaging import uv

pytestmark = [pytest.mark.broker, pytest.mark.slow]

# Not what the day brings.
KSERVE = "kserve==0.21.0"
MLSERVER = "mlserver==1.7.1"
# Address, rows as JSON; prints a JSON object.
PROGRAM = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

url, rows = sys.argv[1], np.array(json.loads(sys.argv[2]), dtype=np.float32)
names = ("sepal_length", "sepal_width", "petal_length", "petal_width")

def request(binary):
    inputs = []
    for index, name in enumerate(names):
        tensor = InferInput(name, [len(rows)], "FP32")
        tensor.set_data_from_numpy(rows[:, index], binary_data=binary)
        inputs.append(tensor)
    return InferRequest(model_name="iris", infer_inputs=inputs, request_id="mine")

async def main():
    told = {}
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    told["live"] = await client.is_server_live(url)
    told["ready"] = await client.is_server_ready(url)
    told["model"] = await client.is_model_ready(url, "iris")
    for form, binary in (("json", False), ("binary", True)):
        answer = await client.infer(url, request(binary), model_name="iris")
        told[form] = {output.name: output.as_numpy().tolist() for output in answer.outputs}
        told["id"] = answer.id
    try:
        await client.infer(url, request(False), model_name="irsi")
    except Exception as error:
        told["unknown"] = str(error)
    first = InferenceRESTClient(RESTConfig(protocol="v1"))
    instances = [dict(zip(names, row)) for row in rows.tolist()]
    told["v1"] = await first.infer(url, {"instances": instances}, model_name="iris")
    told["v1_ready"] = await first.is_model_ready(url, "iris")
    print(json.dumps(told))

asyncio.run(main())
"""


def environment(folder: Path, package: str) -> Path:
    """The folder of the commands of an environment with one package."""
    made = folder / "env"
    subprocess.run([uv(), "venv", "--quiet", "--python", sys.executable, str(made)], check=True)
    python = str(made / "bin" / "python")
    subprocess.run([uv(), "pip", "install", "--quiet", "--python", python, package], check=True)
    return made / "bin"


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inference_rest_client_of_kserve(tmp_path: Path, url: str, project: Path) -> None:
    rows = flowers()[::30]
    labels, probabilities = onnx_answers(project, rows)
    python = environment(tmp_path, KSERVE) / "python"
    told = json.loads(run(python, "-c", PROGRAM, url, json.dumps(rows.tolist())).splitlines()[-1])
    assert told["live"]
    assert told["ready"]
    assert told["model"]
    assert told["v1_ready"]
    assert told["id"] == "mine"
    for form in ("json", "binary"):
        assert told[form]["species"] == labels.tolist()
        same_probabilities(told[form]["probabilities"], probabilities)
    assert [prediction["species"] for prediction in told["v1"]["predictions"]] == labels.tolist()
    assert "did you mean 'iris'?" in told["unknown"]


@pytest.mark.parametrize("binary", [False, True])
def test_mlserver_infer(mlserver: Path, tmp_path: Path, url: str, project: Path, binary: bool) -> None:
    rows = flowers()[::30]
    labels, probabilities = onnx_answers(project, rows)
    asked, answered = tmp_path / "asked.jsonl", tmp_path / "answered.jsonl"
    asked.write_text("".join(json.dumps(request(row.tolist())) + "\n" for row in rows))
    options = ["--binary-data"] if binary else []
    run(
        mlserver, "infer", "-u", address(url), "-m", "iris", "-i", asked, "-o", answered,
        "--batch-size", "2", "--workers", "2", *options,
    )  # fmt: skip
    answers = [json.loads(line) for line in answered.read_text().splitlines()]
    answers.sort(key=lambda answer: answer["parameters"]["batch_index"])
    found = [{output["name"]: output["data"] for output in answer["outputs"]} for answer in answers]
    assert [label for answer in found for label in answer["species"]] == labels.tolist()
    for answer, expected in zip(found, probabilities.tolist(), strict=True):
        same_probabilities(answer["probabilities"], expected)


def request(row: list[float]) -> dict[str, Any]:
    inputs = [
        {"name": name, "shape": [1], "datatype": "FP32", "data": [value]}
        for name, value in zip(FIELDS, row, strict=True)
    ]
    return {"inputs": inputs}


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("mlserver"), MLSERVER) / "mlserver"
