"""The addresses that tools ask about models."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest

from dataflow.gateway.app import Gateway
from tests.gateway.fixtures import Told, plan_of, talk, tensors

MODELS = ("/v2/models/sums", "/v2/models/sums/versions/v7")


def ask(method: str, path: str, body: bytes | None = None, **options: Any) -> httpx.Response:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        return await client.request(method, path, content=body)

    return talk(steps, **options)


@pytest.mark.parametrize("model", MODELS)
def test_every_address_of_a_model_has_its_version_too(model: str) -> None:
    for rest in ("", "/ready", "/config", "/stats"):
        assert ask("GET", model + rest).status_code == 200
    assert ask("GET", "/v2/models/sums/versions/v8/config").status_code == 404
    assert ask("GET", f"{model}/config").json()["name"] == "sums"


def test_statistics_count_what_was_asked() -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[Any]:
        await client.post("/v2/models/sums/infer", content=orjson.dumps(tensors(3)))
        await client.post("/pipelines/sums", content=orjson.dumps({"x": [1, 2, 3], "name": "a"}))
        await client.post("/v1/models/sums:predict", content=b"{}")
        await client.post("/v2/models/nobody/infer", content=orjson.dumps(tensors(3)))
        paths = ("/v2/models/sums/stats", "/v2/models/sums/versions/v7/stats", "/v2/models/stats")
        return [(await client.get(path)).json() for path in paths]

    one, of_version, all_models = talk(steps)
    assert one == of_version == all_models
    (said,) = one["model_stats"]
    assert (said["name"], said["version"]) == ("sums", "v7")
    assert (said["inference_count"], said["execution_count"]) == (4, 2)
    assert said["last_inference"] > 0
    assert said["inference_stats"]["success"]["count"] == 2
    assert said["inference_stats"]["success"]["ns"] > 0
    assert said["inference_stats"]["fail"]["count"] == 1


def test_a_request_that_is_not_answered_counts_as_failed() -> None:
    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> tuple[int, int]:
        await client.post("/v2/models/sums/infer", content=orjson.dumps(tensors(3)))
        counts = gateway.statistics.of("sums", "v7")
        return counts.rows, counts.failed

    assert talk(steps, answer=lambda _: Told(status="dropped", reason={"reason": "short"})) == (0, 1)


@pytest.mark.parametrize("body", [None, b"", b"{}", b'{"ready": false}'])
def test_the_index_lists_what_answers(body: bytes | None) -> None:
    entry = {"name": "sums", "version": "v7", "state": "READY", "reason": ""}
    assert ask("POST", "/v2/repository/index", body).json() == [entry]


def test_the_index_of_what_is_ready() -> None:
    stopped: Any = {"working": lambda _: False}
    (entry,) = ask("GET", "/v2/repository/index", **stopped).json()
    assert entry["state"] == "UNAVAILABLE"
    assert ask("POST", "/v2/repository/index", b'{"ready": true}', **stopped).json() == []
    assert ask("GET", "/ping", **stopped).status_code == 503
    assert ask("GET", "/healthz", **stopped).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready": 1}', b"null"])
def test_bodies_that_are_no_index_request(body: bytes) -> None:
    assert ask("POST", "/v2/repository/index", body, plan=plan_of()).status_code == 400
