from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping
from typing import Any

import httpx
import orjson
import pytest

from dataflow.core import headers, ids
from dataflow.core.limits import MAX_BODY_BYTES
from dataflow.core.schema import Schema
from dataflow.gateway.app import Gateway, GatewaySettings
from dataflow.transport.api import EARLIEST
from tests.gateway.fixtures import (
    ANSWER,
    LATE,
    Responder,
    Told,
    client_of,
    edge,
    fabric_for,
    plan_of,
    talk,
    tensors,
    total,
)  # fmt: skip

INFER = "/v2/models/sums/infer"


def post(
    path: str, body: Any, plan: Any = None, *, sent: Mapping[str, str] | None = None, **options: Any
) -> httpx.Response:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        return await client.post(path, content=content, headers=dict(sent or {}))

    return talk(steps, plan, **options)


def get(path: str, **options: Any) -> httpx.Response:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        return await client.get(path, headers=options.get("sent"))

    return talk(steps, **{k: v for k, v in options.items() if k != "sent"})


@pytest.mark.parametrize("path", [INFER, "/v2/models/sums/versions/v7/infer", "/v2/pipelines/sums/infer"])
def test_v2_answers_rows_in_order(path: str) -> None:
    answer = post(path, {"id": "mine", **tensors(3)})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "model_name": "sums",
        "model_version": "v7",
        "id": "mine",
        "outputs": [
            {"name": "total", "datatype": "FP32", "shape": [3], "data": [3.0, 12.0, 21.0]},
            {"name": "label", "datatype": "BYTES", "shape": [3], "data": ["N0", "N1", "N2"]},
        ],
    }


def test_v2_without_an_id_tells_the_records_id() -> None:
    answer = post(INFER, tensors())
    assert answer.json()["id"] == answer.headers["df-id"]


def test_v2_output_selection() -> None:
    answer = post(INFER, {**tensors(), "outputs": [{"name": "label"}]})
    assert [o["name"] for o in answer.json()["outputs"]] == ["label"]


def test_many_rows() -> None:
    answer = post(INFER, tensors(1_000))
    assert answer.json()["outputs"][0]["data"] == [float(9 * i + 3) for i in range(1_000)]


def test_record_headers_and_partitions() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        body = orjson.dumps({"id": "mine", **tensors(2)})
        return await client.post(INFER, content=body, headers={"traceparent": trace, "x-deadline-ms": "9000"})

    with Responder(fabric, plan) as worker:
        answer = talk(steps, plan, answer=None, fabric=fabric)
    request_id = answer.headers["df-id"].encode()
    for row, message in enumerate(worker.seen):
        carried = dict(message.headers() or ())
        record_id = ids.child(request_id, "gateway", "in", row)
        assert carried[headers.ID] == record_id
        assert carried[headers.REPLY_TO] == b"dataflow.replies/0/" + record_id
        assert int(carried[headers.DEADLINE]) - ids.time_ms_of(request_id) == pytest.approx(9_000, abs=1_000)
        assert carried[headers.CALLER_ID] == b"mine"
        assert carried[headers.TRACEPARENT] == trace.encode()
        assert headers.SCHEMA in carried
    # A small request stays together.
    assert len({m.partition() for m in worker.seen}) == 1


def test_requests_without_key_take_turns_over_the_partitions() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)

    async def steps(client: httpx.AsyncClient, _: Gateway) -> None:
        for _i in range(4):
            assert (await client.post(INFER, content=orjson.dumps(tensors()))).status_code == 200

    with Responder(fabric, plan) as worker:
        talk(steps, plan, answer=None, fabric=fabric)
    assert sorted(m.partition() for m in worker.seen) == [0, 0, 1, 1]


def test_a_key_of_the_input_contract_is_the_records_key() -> None:
    plan = plan_of(key=("name",))
    fabric = fabric_for(plan)

    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        return await client.post(INFER, content=orjson.dumps(tensors(3)))

    with Responder(fabric, plan) as worker:
        assert talk(steps, plan, answer=None, fabric=fabric).status_code == 200
    assert sorted(m.key() or b"" for m in worker.seen) == [b"n0", b"n1", b"n2"]


def test_answers_from_several_edges_are_one_union() -> None:
    def split(record: Mapping[str, Any]) -> Told:
        if record["name"] == "n1":
            from decimal import Decimal

            return Told({"total": 9.0, "offer": Decimal("1.50")}, "late")
        return total(record)

    plan = plan_of(edge("sum", ANSWER), edge("late", LATE, "json"))
    answer = post(INFER, tensors(3), plan, answer=split).json()
    assert answer["outputs"] == [
        {"name": "total", "datatype": "FP32", "shape": [3], "data": [3.0, 9.0, 21.0]},
        {
            "name": "label", "datatype": "BYTES", "shape": [3], "data": ["N0", "", "N2"],
            "parameters": {"null_rows": "1"},
        },
        {
            "name": "offer", "datatype": "BYTES", "shape": [3], "data": ["", "1.50", ""],
            "parameters": {"null_rows": "0,2"},
        },
    ]  # fmt: skip
    records = [{"x": [1, 2, 3], "name": "n1"}, {"x": [1, 2, 3], "name": "n2"}]
    assert post("/pipelines/sums", records, plan, answer=split).json() == [
        {"total": 9.0, "offer": "1.50"},
        {"total": 6.0, "label": "N2"},
    ]


def test_answers_that_disagree_are_told() -> None:
    plan = plan_of(edge("sum", ANSWER), edge("other", Schema.of(total="string")))
    answer = post(INFER, tensors(), plan)
    assert answer.status_code == 503
    assert "disagree on field 'total'" in answer.json()["error"]


def bad_second(told: Told) -> Any:
    return lambda record: told if record["name"] in ("n1", "bad") else total(record)


DROPPED = Told(status=headers.STATUS_DROPPED, reason={"reason": "too short", "node": "trim"})
FAILED = Told(
    status=headers.STATUS_FAILED, reason={"reason": "no wings", "node": "fly", "error": "ValueError"}
)
EXPIRED = Told(status=headers.STATUS_EXPIRED, reason={"reason": "too late"})


@pytest.mark.parametrize(
    ("told", "status", "message"),
    [
        (DROPPED, 422, "row 1: dropped: too short"),
        (FAILED, 500, "row 1: the record failed; it is kept as a dead letter"),
        (EXPIRED, 504, "row 1: no answer at the deadline"),
    ],
)
def test_one_bad_row_decides_a_v2_request(told: Told, status: int, message: str) -> None:
    answer = post(INFER, tensors(3), answer=bad_second(told))
    assert answer.status_code == status
    said = answer.json()
    assert said["error"] == message
    assert said["row"] == 1
    assert "node" not in said
    ids.time_ms_of(said["id"].encode())


def test_detail_names_node_and_error() -> None:
    answer = post(INFER, tensors(2), answer=bad_second(FAILED), settings=GatewaySettings(detail=True))
    assert answer.json()["error"] == "row 1: node 'fly': ValueError: no wings"
    assert answer.json()["node"] == "fly"


def test_a_reply_that_comes_twice_is_counted_and_ignored() -> None:
    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> int:
        for _ in range(2):
            assert (await client.post(INFER, content=orjson.dumps(tensors()))).status_code == 200
        while gateway.exchange.pending.late < 2:
            await asyncio.sleep(0.001)
        return gateway.exchange.pending.late

    def twice(record: Mapping[str, Any]) -> Told:
        told = total(record)
        return Told(told.record, times=2)

    assert talk(steps, answer=twice) == 2


def test_deadline_is_answered() -> None:
    answer = post(INFER, tensors(), answer=None, sent={"x-deadline-ms": "30"})
    assert answer.status_code == 504
    assert answer.json()["error"] == "no answer at the deadline"
    timeout = {**tensors(), "parameters": {"timeout": 30_000}}
    assert post(INFER, timeout, answer=None).status_code == 504


@pytest.mark.parametrize("deadline", ["0", "-1", "soon", "1e3", "9" * 40])
def test_bad_deadlines(deadline: str) -> None:
    answer = post(INFER, tensors(), sent={"x-deadline-ms": deadline})
    assert answer.status_code == 400
    assert "x-deadline-ms" in answer.json()["error"]


def test_plain_json_one_record() -> None:
    answer = post("/pipelines/sums", {"x": [1, 2, 3.5], "name": "n"}, sent={"x-request-id": "abc"})
    assert answer.json() == {"total": 6.5, "label": "N"}
    assert answer.headers["x-request-id"] == "abc"


def test_plain_json_failures_of_one_record() -> None:
    wrong = post("/pipelines/sums", {"x": [1, 2], "name": "n"})
    assert wrong.status_code == 400
    assert "field 'x'" in wrong.json()["error"]
    missing = post("/pipelines/sums", {"x": [1, 2, 3]})
    assert "field 'name' is missing" in missing.json()["error"]
    dropped = post("/pipelines/sums", {"x": [1, 2, 3], "name": "bad"}, answer=bad_second(DROPPED))
    assert (dropped.status_code, dropped.json()["error"]) == (422, "dropped: too short")


def test_plain_json_list_answers_row_by_row() -> None:
    rows = [{"x": [1, 2, 3], "name": "a"}, {"x": [1], "name": "b"}, {"x": [1, 2, 3], "name": "bad"}, 7]
    answer = post("/pipelines/sums", rows, answer=bad_second(FAILED))
    assert answer.status_code == 200
    first, second, third, fourth = answer.json()
    assert first == {"total": 6.0, "label": "A"}
    assert second["status"] == 400
    assert third["status"] == 500
    assert third["row"] == 1  # of the records that were sent
    assert fourth["status"] == 400


def test_plain_json_list_at_the_deadline_keeps_what_there_is() -> None:
    rows = [{"x": [1, 2, 3], "name": "a"}, {"x": [1, 2, 3], "name": "bad"}]
    silent = bad_second(Told(silent=True))
    first, second = post("/pipelines/sums", rows, answer=silent, sent={"x-deadline-ms": "300"}).json()
    assert first == {"total": 6.0, "label": "A"}
    assert second["status"] == 504


def test_plain_json_empty_list() -> None:
    assert post("/pipelines/sums", []).json() == []


def test_unknown_names_are_404_with_a_hint() -> None:
    answer = post("/v2/models/sum/infer", tensors())
    assert answer.status_code == 404
    assert "did you mean 'sums'?" in answer.json()["error"]
    assert post("/v2/models/sums/versions/v8/infer", tensors()).status_code == 404
    assert get("/v3").status_code == 404


def test_wrong_method_names_the_right_one() -> None:
    answer = get(INFER)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"inputs": 1}', b"null"])
def test_bodies_that_are_no_request(body: bytes) -> None:
    assert post(INFER, body).status_code == 400
    if body not in (b"[]", b'{"inputs": 1}'):
        assert post("/pipelines/sums", body).status_code == 400


def test_content_types_and_encodings() -> None:
    body = orjson.dumps(tensors())
    assert post(INFER, body, sent={"content-type": "image/png"}).status_code == 415
    assert post(INFER, body, sent={"content-type": "application/json; charset=utf-8"}).status_code == 200
    assert post(INFER, gzip.compress(body), sent={"content-encoding": "gzip"}).status_code == 200
    assert post(INFER, body, sent={"content-encoding": "gzip"}).status_code == 400
    assert post(INFER, body, sent={"content-encoding": "br"}).status_code == 415


def test_a_small_body_that_unpacks_to_a_huge_one() -> None:
    bomb = gzip.compress(b" " * (MAX_BODY_BYTES + 1))
    assert post(INFER, bomb, sent={"content-encoding": "gzip"}).status_code == 413


def test_bodies_are_bounded_and_given_back() -> None:
    async def pieces() -> Any:
        for _ in range(65):
            yield b" " * 1024 * 1024

    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> tuple[int, int, int]:
        too_long = await client.post(INFER, content=b"x", headers={"content-length": str(MAX_BODY_BYTES + 1)})
        streamed = await client.post(INFER, content=pieces())
        return too_long.status_code, streamed.status_code, gateway._budget.used

    assert talk(steps) == (413, 413, 0)


def test_too_many_requests_at_once() -> None:
    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> httpx.Response:
        first = asyncio.create_task(
            client.post(INFER, content=orjson.dumps(tensors()), headers={"x-deadline-ms": "500"})
        )
        while not len(gateway.exchange.pending):
            await asyncio.sleep(0.001)
        second = await client.post(INFER, content=orjson.dumps(tensors()))
        assert (await first).status_code == 504
        return second

    answer = talk(steps, answer=None, settings=GatewaySettings(max_pending=1))
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"


def test_a_record_that_the_topic_refuses() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    fabric.delete(["sums.requests"])
    fabric.create("sums.requests", 2, {"max.message.bytes": "10"})
    answer = post(INFER, tensors(), plan, fabric=fabric, answer=None)
    assert answer.status_code == 413
    fabric.delete(["sums.requests"])
    gone = post(INFER, tensors(), plan, fabric=fabric, answer=None)
    assert gone.status_code == 503
    assert gone.headers["retry-after"] == "1"


def test_drain_answers_what_is_in_flight_and_refuses_the_rest() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)

    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> None:
        first = asyncio.create_task(client.post(INFER, content=orjson.dumps(tensors())))
        while not len(gateway.exchange.pending):
            await asyncio.sleep(0.001)
        draining = asyncio.create_task(gateway.drain())
        await asyncio.sleep(0)
        assert (await client.post(INFER, content=orjson.dumps(tensors()))).status_code == 503
        assert (await client.get("/readyz")).status_code == 503
        with Responder(fabric, plan):
            assert (await first).status_code == 200
            await draining

    talk(steps, plan, answer=None, fabric=fabric)


def test_close_tells_who_still_waits() -> None:
    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> int:
        first = asyncio.create_task(client.post(INFER, content=orjson.dumps(tensors())))
        while not len(gateway.exchange.pending):
            await asyncio.sleep(0.001)
        await gateway.close()
        return (await first).status_code

    assert talk(steps, answer=None) == 503


def test_metadata_and_health() -> None:
    assert "binary_tensor_data" in get("/v2").json()["extensions"]
    for path in (
        "/v2/health/live", "/livez", "/healthz", "/-/healthz", "/v2/health/ready", "/readyz", "/health", "/ping",
        "/v2/models/sums/ready", "/v2/models/sums/versions/v7/ready", "/v1/models/sums",
    ):  # fmt: skip
        assert get(path).status_code == 200
    assert get("/v2/models").json() == {"models": ["sums"]}
    model = get("/v2/models/sums").json()
    assert model["platform"] == "dataflow_pipeline"
    assert model["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "name", "datatype": "BYTES", "shape": [-1]},
        {"name": "at", "datatype": "INT64", "shape": [-1]},
    ]
    (pipeline,) = get("/pipelines").json()
    assert pipeline["answer"] == ["sum"]


def test_before_start_nothing_is_ready() -> None:
    async def run() -> list[int]:
        plan = plan_of()
        gateway = Gateway(fabric_for(plan), lambda: {"sums": plan})
        async with client_of(gateway) as client:
            body = orjson.dumps(tensors())
            answers = [await client.get("/readyz"), await client.post(INFER, content=body)]
        return [a.status_code for a in answers]

    assert asyncio.run(run()) == [503, 503]


def test_openapi_describes_every_route_and_pipeline() -> None:
    from dataflow.gateway.routes import ROUTES

    document = get("/openapi.json").json()
    for route in ROUTES:
        assert route.method.lower() in document["paths"][route.path]
    assert "/pipelines/sums" in document["paths"]
    text = orjson.dumps(document).decode()
    schemas = document["components"]["schemas"]
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in schemas


def test_providers() -> None:
    assert get("/graph").status_code == 404
    assert get("/graph", graph=lambda: {"nodes": []}).json() == {"nodes": []}
    assert get("/metrics", metrics=lambda: b"up 1\n").text == "up 1\n"


def test_observer_sees_each_request() -> None:
    seen: list[tuple[str, str, int]] = []
    post(INFER, tensors(), observe=lambda p, d, s, _: seen.append((p, d, s)))
    post("/pipelines/nobody", {}, observe=lambda p, d, s, _: seen.append((p, d, s)))
    assert seen == [("sums", "v2", 200), ("", "json", 404)]


def test_token() -> None:
    settings = GatewaySettings(tokens={"secret": frozenset()})
    refused = get("/v2/models", settings=settings)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert get("/v2/models", settings=settings, sent={"authorization": "Bearer wrong"}).status_code == 401
    assert get("/v2/models", settings=settings, sent={"authorization": "Bearer secret"}).status_code == 200
    assert get("/v2/health/live", settings=settings).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        {"host": "example.org"},
        {"origin": "https://example.org"},
        {"origin": "null"},
        {"host": "127.0.0.1.x:1"},
    ],
)
def test_without_a_token_strangers_pages_are_refused(sent: dict[str, str]) -> None:
    assert get("/v2/models", sent=sent).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080"])
def test_without_a_token_this_machine_is_served(host: str) -> None:
    assert get("/v2/models", sent={"host": host, "origin": f"http://{host}"}).status_code == 200


def test_replies_go_to_the_replicas_own_partition() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    assert (
        post(INFER, tensors(), plan, fabric=fabric, settings=GatewaySettings(reply_partition=1)).status_code
        == 200
    )
    reader = fabric.consumer()
    reader.assign({("dataflow.replies", p): EARLIEST for p in (0, 1)})
    assert [m.partition() for m in reader.poll(10, 0)] == [1]


def test_an_answer_under_another_contract_is_not_misread() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    newer = plan_of(edge("sum", Schema.of(label="string", total="float32")))

    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[int]:
        body = {"x": [1, 2, 3], "name": "n"}
        answers = [await client.post("/pipelines/sums", content=orjson.dumps(body))]
        answers.append(await client.post(INFER, content=orjson.dumps(tensors())))
        return [a.status_code for a in answers]

    with Responder(fabric, newer):
        assert talk(steps, plan, answer=None, fabric=fabric) == [503, 503]
