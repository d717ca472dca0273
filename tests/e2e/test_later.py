"""Requests whose callers come back, ask twice, or take many records, against a running `dataflow up`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import wait_for
from tests.e2e.processes import Running
from tests.e2e.test_clients import curl

pytestmark = pytest.mark.broker

LATER = {"prefer": "respond-async"}


@pytest.fixture(scope="module")
def other(up: Running, url: str, project: Path) -> Iterator[httpx.Client]:
    """Another gateway of the same cluster, in a process of its own."""
    del up, url
    with Running(project, "gateway", "--port", "0") as gateway:
        wait_for(lambda: _ready(gateway), "the other gateway")
        with httpx.Client(base_url=gateway.url, timeout=60) as client:
            yield client


def _ready(gateway: Running) -> bool:
    try:
        return httpx.get(f"{gateway.url}/readyz").status_code == 200
    except (httpx.HTTPError, AssertionError):
        return False


def test_the_answer_is_fetched_from_another_gateway(
    door: httpx.Client, other: httpx.Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    taken = door.post("/pipelines/waits", json={"name": "one", "gate": str(gate)}, headers=LATER)
    assert taken.status_code == 202, taken.text
    place = taken.headers["location"]
    assert other.get(place).json()["status"] == "pending"
    assert door.get(place).json()["status"] == "pending"
    gate.touch()
    for client in (other, door, other):
        answer = client.get(place, headers={"prefer": "wait=60"})
        assert (answer.status_code, answer.json()) == (200, {"name": "one", "done": True})
        assert answer.headers["df-request-status"] == "done"


def test_a_failure_is_fetched_too(door: httpx.Client) -> None:
    reading = {"sensor": "a", "celsius": 13, "at": "2024-05-01T12:00:00Z"}
    taken = door.post("/pipelines/sort", json=reading, headers=LATER)
    answer = door.get(taken.headers["location"], headers={"prefer": "wait=60"})
    assert answer.status_code == 500
    assert answer.headers["df-request-status"] == "failed"


def test_one_key_is_one_request_at_all_gateways(door: httpx.Client, other: httpx.Client) -> None:
    key = {"idempotency-key": uuid.uuid4().hex}
    asked = [client.post("/pipelines/shown", json={"x": 21.0}, headers=key) for client in (door, other, door)]
    assert [a.json() for a in asked] == [{"y": 42.0}] * 3
    assert len({a.headers["df-id"] for a in asked}) == 1
    assert ["idempotent-replayed" in a.headers for a in asked] == [False, True, True]
    assert other.post("/pipelines/shown", json={"x": 22.0}, headers=key).status_code == 422


def events(text: str) -> list[dict[str, Any]]:
    return [
        json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")
    ]


def test_all_records_of_a_request_are_told(url: str, door: httpx.Client) -> None:
    body = {"words": [{"word": word} for word in ["a", "stream", "of", "words"]]}
    status, text = curl("-N", f"{url}/v2/models/words/generate_stream", "-d", "@-", given=json.dumps(body))
    assert status == 200
    assert sorted((e["index"], e["word"]) for e in events(text)) == [
        (0, "A"), (1, "STREAM"), (2, "OF"), (3, "WORDS"),
    ]  # fmt: skip
    said = door.post("/v2/models/words/generate", json=body).json()
    assert sorted(record["word"] for record in said["records"]) == ["A", "OF", "STREAM", "WORDS"]


def test_a_record_that_fails_is_told_after_the_others(door: httpx.Client) -> None:
    body = {"words": [{"word": "a"}, {"word": "bad"}, {"word": "b"}]}
    *good, last = events(door.post("/v2/models/words/generate_stream", json=body).text)
    assert sorted(event["word"] for event in good) == ["A", "B"]
    assert last["status"] == 500
