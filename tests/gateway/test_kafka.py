"""The same over the real broker."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import httpx
import orjson
import pytest

from dataflow.gateway.app import Gateway, GatewaySettings
from dataflow.planner.plan import Plan
from dataflow.transport.kafka import KafkaFabric
from tests.gateway.fixtures import Responder, plan_of, talk, tensors

pytestmark = pytest.mark.broker


def created(kafka: KafkaFabric) -> tuple[Plan, GatewaySettings]:
    """The plan, and a reply topic of this test's own."""
    admin = kafka.admin()
    suffix = uuid.uuid4().hex[:8]
    plan = plan_of(key=("name",))
    edges = {n: replace(e, topics=(f"{e.topics[0]}.{suffix}",)) for n, e in plan.edges.items()}
    requests = edges["rows"].topics[0]
    assert plan.answer is not None
    planned = replace(plan.topics["sums.requests"], name=requests)
    made = replace(
        plan,
        edges=edges,
        topics={"sums.requests": planned},
        answer=replace(plan.answer, requests_topic=requests),
    )
    admin.create(requests, 2, {})
    admin.create(f"replies.{suffix}", 2, {})
    return made, GatewaySettings(reply_topic=f"replies.{suffix}", reply_partition=1)


def test_requests_through_kafka(kafka: KafkaFabric) -> None:
    plan, settings = created(kafka)

    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> None:
        many = await client.post("/v2/models/sums/infer", content=orjson.dumps(tensors(200)))
        assert many.json()["outputs"][0]["data"] == [float(9 * i + 3) for i in range(200)]
        calls = [
            client.post("/pipelines/sums", content=orjson.dumps({"x": [i, 0, 0], "name": f"n{i}"}))
            for i in range(64)
        ]
        answers = [answer.json() for answer in await asyncio.gather(*calls)]
        assert answers == [{"total": float(i), "label": f"N{i}"} for i in range(64)]
        assert gateway.exchange.healthy
        assert gateway.exchange.pending.late == 0

    with Responder(kafka, plan) as worker:
        talk(steps, plan, answer=None, fabric=kafka, settings=settings)
    assert {m.key() for m in worker.seen} >= {b"n63"}


def test_a_tap_of_what_callers_sent(kafka: KafkaFabric) -> None:
    plan, settings = created(kafka)

    async def steps(client: httpx.AsyncClient, _: Gateway) -> str:
        answer = await client.post(
            "/pipelines/sums",
            content=orjson.dumps({"x": [1, 2, 3], "name": "secret"}),
            headers={"x-request-id": "me"},
        )
        assert answer.status_code == 200
        return (await client.get("/taps/sums/rows?from=earliest&limit=1&id=me")).text

    with Responder(kafka, plan):
        text = talk(steps, plan, answer=None, fabric=kafka, settings=settings)
    assert '"x":[1.0,2.0,3.0]' in text
    assert "secret" not in text
