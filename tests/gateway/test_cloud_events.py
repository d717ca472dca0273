from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import httpx
import orjson
import pytest

from dataflow.core import headers
from dataflow.gateway.app import Gateway
from tests.gateway.fixtures import Responder, Told, fabric_for, plan_of, talk, total

ONE = {"x": [1, 2, 3], "name": "a"}
EVENT = {"specversion": "1.0", "id": "e-1", "source": "/sensors/ä", "type": "made.up", "data": ONE}
BINARY = {"ce-specversion": "1.0", "ce-id": "e-1", "ce-source": "/sensors/%C3%A4", "ce-type": "made.up"}
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"


def post(body: Any, sent: Mapping[str, str] | None = None, **options: Any) -> httpx.Response:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        return await client.post("/pipelines/sums", content=content, headers=dict(sent or {}))

    return talk(steps, **options)


def event(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**EVENT, **changes}.items() if value is not None}


def structured(body: Any, **options: Any) -> httpx.Response:
    return post(body, {"content-type": f"{STRUCTURED}; charset=utf-8"}, **options)


def test_a_structured_event_is_answered_by_one() -> None:
    answer = structured(EVENT)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == STRUCTURED
    said = answer.json()
    assert said["data"] == {"total": 6.0, "label": "A"}
    assert (said["specversion"], said["type"], said["source"]) == (
        "1.0",
        "dataflow.answer",
        "/pipelines/sums",
    )
    assert said["id"] == answer.headers["df-id"]
    assert (said["causationid"], said["causationsource"]) == ("e-1", "/sensors/ä")
    assert said["time"].endswith("Z")


def test_a_binary_event_is_answered_by_one() -> None:
    answer = post(ONE, {**BINARY, "content-type": "application/json"})
    assert answer.json() == {"total": 6.0, "label": "A"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["ce-type"] == "dataflow.answer"
    assert answer.headers["ce-id"] == answer.headers["df-id"]
    assert answer.headers["ce-causationsource"] == "/sensors/%C3%A4"


def test_whoever_accepts_an_event_gets_one() -> None:
    for sent in ({}, BINARY):
        answer = post(ONE, {**sent, "accept": STRUCTURED})
        assert answer.headers["content-type"] == STRUCTURED
        assert answer.json()["data"] == {"total": 6.0, "label": "A"}
    assert post(ONE, {"accept": "*/*"}).json() == {"total": 6.0, "label": "A"}


def test_data_may_be_base64() -> None:
    data = base64.b64encode(orjson.dumps(ONE)).decode()
    assert structured(event(data=None, data_base64=data)).json()["data"]["total"] == 6.0


def test_the_id_and_the_trace_travel_with_the_record() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with Responder(fabric, plan) as worker:
        structured(event(traceparent=trace), plan=plan, fabric=fabric, answer=None)
    carried = dict(worker.seen[0].headers() or ())
    assert carried[headers.CALLER_ID] == b"e-1"
    assert carried[headers.TRACEPARENT] == trace.encode()


def test_a_batch_is_answered_event_by_event() -> None:
    events = [EVENT, event(id="e-2", data={"x": [1]}), event(id="e-3", data={**ONE, "name": "bad"})]

    def bad_fails(record: Mapping[str, Any]) -> Told:
        return (
            Told(status=headers.STATUS_DROPPED, reason={"reason": "bad"})
            if record["name"] == "bad"
            else total(record)
        )

    answer = post(events, {"content-type": BATCH}, answer=bad_fails)
    assert answer.headers["content-type"] == BATCH
    said = answer.json()
    assert [e["causationid"] for e in said] == ["e-1", "e-2", "e-3"]
    assert [e["type"] for e in said] == ["dataflow.answer", "dataflow.error", "dataflow.error"]
    assert [e["data"].get("status") for e in said] == [None, 400, 422]
    assert len({e["id"] for e in said}) == 3
    whole = post(events, {"content-type": BATCH, "x-row-errors": "request"}, answer=bad_fails)
    assert whole.status_code == 400


def test_a_failure_of_one_event_is_an_error() -> None:
    dropped = Told(status=headers.STATUS_DROPPED, reason={"reason": "short"})
    assert structured(EVENT, answer=lambda _: dropped).status_code == 422


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400), ([], 400), (7, 400), (event(id=None), 400), (event(id=""), 400), (event(source=None), 400),
        (event(type=None), 400), (event(specversion="0.3"), 400), (event(data=None), 400),
        (event(data_base64="!!"), 400), (event(data=None, data_base64="!!"), 400),
        (event(data=None, data_base64=7), 400), (event(data=7), 400), (event(datacontenttype="text/xml"), 415),
        (event(id="x" * 5_000), 400),
    ],
)  # fmt: skip
def test_what_is_no_event(body: Any, status: int) -> None:
    assert structured(body).status_code == status


def test_other_requests_that_are_no_events() -> None:
    assert post([], {"content-type": BATCH}).status_code == 400
    assert post(b"", {"content-type": "application/cloudevents+avro"}).status_code == 415
    assert post(ONE, {"ce-specversion": "1.0"}).status_code == 400
    assert post(EVENT, {"content-type": STRUCTURED, "prefer": "respond-async"}).status_code == 400
