"""The demo's HTTP requests: Open Inference Protocol v2 and plain JSON, compared with onnxruntime's own answers."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnxruntime
import pyarrow.parquet as pq

from scripts._flights import Flights
from scripts._stage import PIPELINE, ROOT, DemoError, Stage, check

Column = np.ndarray[Any, np.dtype[Any]]

TOLERANCE = 1e-4
SINGLE_REQUESTS = 100
LATE_MINUTES = 30.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked and answered: the id of a late flight's request, and how long one request took."""

    late_id: str
    late_flight: str
    median_ms: float
    largest_difference: float


def plain_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON says it."""
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in record.items()}


def v2_body(inputs: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A V2 request of N rows, for a model with such metadata. Instants go as microseconds."""
    tensors = []
    for port in inputs:
        values = [record[port["name"]] for record in records]
        if isinstance(values[0], datetime):
            values = [round(v.timestamp() * 1_000_000) for v in values]
        tensors.append(
            {"name": port["name"], "datatype": port["datatype"], "shape": [len(values)], "data": values}
        )
    return {"id": "demo", "inputs": tensors}


class Door:
    """One kept-alive connection to the gateway."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)

    def post(self, path: str, body: Any) -> tuple[Any, str]:
        """The answer as JSON, and the record's id for `dataflow trace`. Raises DemoError for another status than 200."""
        try:
            self._connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = self._connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise DemoError(f"POST {path}: {error!r}") from error
        check(answer.status == 200, f"POST {path} was answered with {answer.status}: {text}")
        return json.loads(text), answer.getheader("df-id", "")

    def close(self) -> None:
        self._connection.close()


def ask_flights(stage: Stage, door: Door, flights: Flights) -> Asked:
    """All flights in one V2 request, all in one plain list, then one by one. Raises DemoError where a delay differs."""
    model = stage.get(f"/v2/models/{PIPELINE}")
    path = f"/v2/models/{PIPELINE}/infer"
    answer, _ = door.post(path, v2_body(model["inputs"], flights.asked))
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    stage.say(f"POST {path}: {len(flights.asked)} rows in one request, one answer in their order")
    difference = compare(flights.expected, outputs["delay"], "V2")
    names = [record["flight_id"] for record in flights.asked]
    check(outputs["flight_id"] == names, "the rows of the V2 answer are in another order")

    path = f"/pipelines/{PIPELINE}"
    rows, _ = door.post(path, [plain_json(record) for record in flights.asked])
    difference = max(difference, compare(flights.expected, [row.get("delay") for row in rows], "plain JSON"))
    late = [row for row in rows if "action" in row]
    expected_late = int((flights.expected >= LATE_MINUTES).sum())
    check(
        len(late) == expected_late > 0, f"{len(late)} flights were offered a rebooking, not {expected_late}"
    )
    stage.say(
        f"POST {path}: {len(rows)} records; {len(late)} answers come from the branch 'rebook', the others from 'triage.on_time'"
    )

    worst = int(flights.expected.argmax())
    answer, late_id = door.post(path, plain_json(flights.asked[worst]))
    compare(flights.expected[[worst]], [answer["delay"]], "a single request")
    check(late_id, "the answer does not say the id of its record")
    stage.say(f"the latest of them: [italic]{answer['text']}[/]")
    return Asked(late_id, names[worst], single_ms(door, path, flights), difference)


def compare(expected: Column, found: Sequence[Any], door: str) -> float:
    """The largest difference. Raises DemoError if it is beyond `TOLERANCE`, or an answer is missing."""
    check(
        len(found) == len(expected) and None not in found,
        f"{door}: {len(expected)} delays were asked for, not all came",
    )
    difference = float(np.abs(np.array(found, dtype=np.float64) - expected).max())
    check(difference <= TOLERANCE, f"{door}: a delay differs from onnxruntime's own by {difference} minutes")
    return difference


def single_ms(door: Door, path: str, flights: Flights) -> float:
    """Median time of single requests, one after the other, each answer compared."""
    times = []
    for record, expected in zip(flights.asked[:SINGLE_REQUESTS], flights.expected, strict=False):
        body = plain_json(record)
        began = time.perf_counter()
        answer, _ = door.post(path, body)
        times.append((time.perf_counter() - began) * 1_000)
        check(
            abs(answer["delay"] - float(expected)) <= TOLERANCE, f"{record['flight_id']}: {answer['delay']}"
        )
    return float(np.median(times))


def ask_digits(stage: Stage, door: Door) -> None:
    """All held-out images as tensors in one request. Raises DemoError where an answer differs from onnxruntime's own."""
    folder = ROOT / "pipelines" / "digits"
    table = pq.read_table(folder / "digits_test.parquet")
    images = np.array(table["image"].to_pylist(), dtype=np.uint8).reshape(-1, 8, 8)
    session = onnxruntime.InferenceSession(
        (folder / "digits.onnx").read_bytes(), providers=["CPUExecutionProvider"]
    )
    pixels = images.reshape(len(images), 64).astype(np.float32) / np.float32(16)
    digit, probabilities = session.run(["label", "probabilities"], {"pixels": pixels})
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": list(images.shape),
        "data": images.ravel().tolist(),
    }
    answer, _ = door.post("/v2/models/digits/infer", {"inputs": [tensor]})
    outputs = {output["name"]: np.array(output["data"]) for output in answer["outputs"]}
    check((outputs["digit"] == digit).all(), "a digit is not the one that onnxruntime reads")
    difference = float(np.abs(outputs["probabilities"].reshape(probabilities.shape) - probabilities).max())
    check(difference <= TOLERANCE, f"a probability differs from onnxruntime's own by {difference}")
    right = float((digit == table["label"].to_numpy()).mean())
    unsure = int((outputs["confidence"] < 0.9).sum())
    stage.done(
        f"digits: {len(images)} images as one tensor, all read as onnxruntime reads them ({right:.1%} right, {unsure} for a person to see)"
    )
