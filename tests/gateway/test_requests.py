"""Requests whose callers come back, or ask twice. The log outlives every gateway here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest

from dataflow.core import headers, ids
from dataflow.core.batch import Batch
from dataflow.core.limits import IDEMPOTENCY_TTL_MS
from dataflow.gateway.app import Gateway
from dataflow.gateway.http import RequestError
from dataflow.gateway.ledger import Accepted, digest
from dataflow.gateway.tail import LoopProducer, Record
from dataflow.planner.plan import ACCEPTED, RESULTS, Plan
from dataflow.transport.api import EARLIEST, Header, Message
from dataflow.transport.memory import MemoryFabric
from tests.gateway.fixtures import Responder, Told, fabric_for, plan_of, talk, tensors, total

PLAIN = "/pipelines/sums"
INFER = "/v2/models/sums/infer"
ONE = {"x": [1, 2, 3], "name": "a"}
LATER = {"prefer": "respond-async"}
FAILED = Told(status=headers.STATUS_FAILED, reason={"reason": "no wings"})


async def post(
    client: httpx.AsyncClient, path: str, body: Any, sent: Mapping[str, str] | None = None
) -> httpx.Response:
    return await client.post(path, content=orjson.dumps(body), headers=dict(sent or {}))


async def fetched(client: httpx.AsyncClient, place: str) -> httpx.Response:
    """The answer, as soon as there is one."""
    while True:
        found = await client.get(place, headers={"prefer": "wait=5"})
        if found.status_code != 202:
            return found


def later(path: str, body: Any, sent: Mapping[str, str] | None = None, **options: Any) -> httpx.Response:
    """What comes back in the end for a request whose caller did not wait."""

    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        taken = await post(client, path, body, {**LATER, **(sent or {})})
        assert taken.status_code == 202, taken.text
        return await fetched(client, taken.headers["location"])

    return talk(steps, **options)


def test_an_id_at_once_and_the_answer_by_it() -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> None:
        taken = await post(client, PLAIN, ONE, {**LATER, "x-request-id": "mine"})
        said = taken.json()
        assert (taken.status_code, said["status"], said["pipeline"]) == (202, "pending", "sums")
        assert taken.headers["location"] == f"/requests/{said['id']}"
        assert taken.headers["preference-applied"] == "respond-async"
        assert said["accepted_at"] < said["deadline"]
        answer = await fetched(client, taken.headers["location"])
        assert answer.json() == {"total": 6.0, "label": "A"}
        assert answer.headers["df-id"] == said["id"]
        assert answer.headers["df-request-status"] == "done"
        assert answer.headers["x-request-id"] == "mine"
        again = await client.get(taken.headers["location"])
        assert again.json() == answer.json()

    talk(steps)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PLAIN, [ONE, {**ONE, "name": "b"}]),
        ("/v1/models/sums:predict", {"instances": [ONE, ONE]}),
        ("/v1/models/sums:predict", {"inputs": {"x": [[1, 2, 3]], "name": ["c"]}}),
        (INFER, {"id": "mine", **tensors(3)}),
        (
            INFER,
            {"id": "m", **tensors(2), "outputs": [{"name": "label", "parameters": {"binary_data": True}}]},
        ),
    ],
)
def test_the_answer_is_what_a_waiting_caller_gets(path: str, body: Any) -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        return await post(client, path, body)

    waited, came_back = talk(steps), later(path, body)
    assert came_back.status_code == waited.status_code == 200
    assert came_back.content == waited.content


def test_pending_until_it_is_answered_and_then_by_any_gateway() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)

    async def ask(client: httpx.AsyncClient, _: Gateway) -> str:
        taken = await post(client, INFER, tensors(2), LATER)
        place = taken.headers["location"]
        found = await client.get(place)
        assert (found.status_code, found.json()["status"]) == (202, "pending")
        assert found.headers["retry-after"] == "1"
        return place

    async def look(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        return await fetched(client, place)

    place = talk(ask, plan, answer=None, fabric=fabric)  # this gateway is gone when the answer comes
    answer = talk(look, plan, fabric=fabric)
    assert answer.json()["outputs"][0]["data"] == [3.0, 12.0]
    assert talk(look, plan, answer=None, fabric=fabric).content == answer.content


def test_a_caller_may_wait_a_little_first() -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        return await post(client, PLAIN, ONE, {"prefer": "respond-async, wait=60"})

    answer = talk(steps)
    assert (answer.status_code, answer.json()) == (200, {"total": 6.0, "label": "A"})


def test_failures_are_told_as_to_a_waiting_caller() -> None:
    answer = later(PLAIN, ONE, answer=lambda _: FAILED)
    assert answer.status_code == 500
    assert "dead letter" in answer.json()["error"]
    assert answer.headers["df-request-status"] == "failed"
    dropped = Told(status=headers.STATUS_DROPPED, reason={"reason": "short"})
    assert later(INFER, tensors(2), answer=lambda _: dropped).status_code == 422


def bad_second(record: Mapping[str, Any]) -> Told:
    return FAILED if record["name"] in ("n1", "bad") else total(record)


def test_a_failed_row_does_what_was_chosen() -> None:
    assert later(INFER, tensors(3), answer=bad_second).status_code == 500
    chosen = later(INFER, tensors(3), {"x-row-errors": "entry"}, answer=bad_second)
    assert chosen.json()["outputs"][0]["data"] == [3.0, 0.0, 21.0]
    first, second = later(PLAIN, [ONE, {**ONE, "name": "bad"}], answer=bad_second).json()
    assert (first["label"], second["status"]) == ("A", 500)


def test_what_is_not_answered_in_its_time_has_failed() -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        taken = await post(client, PLAIN, ONE, {**LATER, "x-deadline-ms": "50"})
        return await fetched(client, taken.headers["location"])

    answer = talk(steps, answer=None)
    assert (answer.status_code, answer.json()["error"]) == (504, "no answer at the deadline")


@pytest.mark.parametrize("rows", [1, 3])
def test_an_answer_that_nobody_was_told_of_is_found_on_its_edge(rows: int) -> None:
    """The worker was killed between its commit and its replies."""
    plan = plan_of()
    fabric = fabric_for(plan)

    class Killed(Responder):
        def _reply(self, message: Message, told: Told) -> None:
            codec = self._codecs["sum"]
            value = codec.encode(Batch.of(codec.schema, [told.record]).columns, 1).values[0]
            record_id = dict(message.headers() or ())[headers.ID]
            # A record keeps its id, or has one of its own and names what it comes of.
            identity: list[Header] = [(headers.ID, record_id)]
            if told.record["total"] > 6:
                identity = [(headers.ID, ids.mint(1)), (headers.PARENTS, record_id)]
            self._producer.send("sums.sum", value, None, [*identity, (headers.SCHEMA, codec.fingerprint)])

    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        taken = await post(client, INFER, tensors(rows), {**LATER, "x-deadline-ms": "400"})
        return await fetched(client, taken.headers["location"])

    with Killed(fabric, plan):
        answer = talk(steps, plan, answer=None, fabric=fabric)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [9.0 * row + 3 for row in range(rows)]


@pytest.mark.parametrize(
    ("path", "body"), [(PLAIN, [ONE, 7]), (PLAIN, []), (PLAIN, {"x": 1}), (INFER, {}), (PLAIN, "text")]
)
def test_what_cannot_be_read_is_not_accepted(path: str, body: Any) -> None:
    plan = plan_of()
    fabric = fabric_for(plan)

    async def steps(client: httpx.AsyncClient, _: Gateway) -> int:
        return (await post(client, path, body, LATER)).status_code

    assert talk(steps, plan, answer=None, fabric=fabric) == 400
    assert not fabric.stored[ACCEPTED].partitions[0].records


def test_ids_of_nothing() -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[int]:
        places = ["nonsense", ids.mint(1_000).decode(), ids.mint(2**47).decode()]
        return [(await client.get(f"/requests/{place}")).status_code for place in places]

    assert talk(steps) == [400, 404, 404]


def test_the_deadline_travels_with_the_records() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)

    async def steps(client: httpx.AsyncClient, _: Gateway) -> None:
        taken = await post(client, PLAIN, ONE, {**LATER, "x-deadline-ms": "7200000"})
        await fetched(client, taken.headers["location"])

    with Responder(fabric, plan) as worker:
        talk(steps, plan, answer=None, fabric=fabric)
    carried = dict(worker.seen[0].headers() or ())
    assert int(carried[headers.DEADLINE]) - ids.time_ms_of(carried[headers.ID]) == 7_200_000
    assert carried[headers.REPLY_TO].startswith(RESULTS.encode())


# --- Idempotency keys


def once(key: str, **more: str) -> dict[str, str]:
    return {"idempotency-key": key, **more}


def seen_by_worker(steps: Callable[[httpx.AsyncClient, Gateway], Awaitable[Any]]) -> tuple[Any, int]:
    """What `steps` gave, and how many records the pipeline got."""
    plan = plan_of()
    fabric = fabric_for(plan)
    with Responder(fabric, plan) as worker:
        return talk(steps, plan, answer=None, fabric=fabric), len(worker.seen)


def test_the_same_key_and_body_are_one_request() -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[httpx.Response]:
        first = await post(client, PLAIN, ONE, once("k"))
        second = await post(client, PLAIN, ONE, once('"k"'))
        async_too = await post(client, PLAIN, ONE, once("k", **LATER))
        return [first, second, async_too, await client.get(async_too.headers["location"])]

    (first, second, async_too, found), records = seen_by_worker(steps)
    assert records == 1
    assert first.json() == second.json() == found.json() == {"total": 6.0, "label": "A"}
    assert first.headers["df-id"] == second.headers["df-id"] == async_too.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == async_too.headers["idempotent-replayed"] == "true"


def test_the_same_key_with_another_request_is_refused() -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[int]:
        asked = [
            (PLAIN, ONE),
            (PLAIN, {**ONE, "name": "b"}),
            (PLAIN, [ONE]),
            (INFER, tensors()),
            (PLAIN, ONE),
        ]
        return [(await post(client, path, body, once("k"))).status_code for path, body in asked]

    statuses, records = seen_by_worker(steps)
    assert statuses == [200, 422, 422, 422, 200]
    assert records == 1


def test_other_keys_are_other_requests() -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> None:
        for key in ("k", "l", "K"):
            assert (await post(client, PLAIN, ONE, once(key))).status_code == 200

    assert seen_by_worker(steps)[1] == 3


def test_failures_are_the_answer_too() -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[httpx.Response]:
        return [await post(client, PLAIN, ONE, once("k")) for _ in range(2)]

    first, second = talk(steps, answer=lambda _: FAILED)
    assert first.status_code == second.status_code == 500
    assert first.json() == second.json()


def test_many_at_once_over_several_gateways_are_one_request() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)

    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[str]:
        async def other(turn: int) -> list[str]:
            gateway = Gateway(fabric, lambda: {"sums": plan})
            await gateway.start()
            try:
                transport = httpx.ASGITransport(app=gateway)
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://127.0.0.1", timeout=60
                ) as mine:
                    answers = await asyncio.gather(*(post(mine, PLAIN, ONE, once("k")) for _ in range(turn)))
                return [a.headers["df-id"] for a in answers]
            finally:
                await gateway.close()

        made = await asyncio.gather(*(other(5) for _ in range(3)))
        return [i for part in made for i in part]

    with Responder(fabric, plan) as worker:
        made = talk(steps, plan, answer=None, fabric=fabric)
    assert len(made) == 15
    assert len(set(made)) == 1
    assert len(worker.seen) == 1


def test_a_gateway_that_starts_later_knows_the_keys() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)

    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        return await post(client, PLAIN, ONE, once("k"))

    with Responder(fabric, plan) as worker:
        first = talk(steps, plan, answer=None, fabric=fabric)
        second = talk(steps, plan, answer=None, fabric=fabric)
    assert first.content == second.content
    assert second.headers["idempotent-replayed"] == "true"
    assert len(worker.seen) == 1


def claim_of_the_dead(fabric: MemoryFabric, plan: Plan, time_ms: int, step: str = "accepted") -> None:
    """A gateway claimed key "k" for ONE and was killed before it sent anything."""

    async def run() -> None:
        gateway = Gateway(fabric, lambda: {"sums": plan})
        await gateway.start()
        producer = LoopProducer(fabric.producer())
        body = orjson.dumps(ONE)
        claim = Accepted(
            ids.mint(time_ms).decode(), "accepted", "sums", "v7", 1, "one", time_ms=time_ms,
            deadline_ms=time_ms + 10, key=digest(b"sums", b"k"), body=digest(b"plain", b"", body),
        )  # fmt: skip
        await producer.write([Record(ACCEPTED, claim.written(), claim.id.encode(), [], 0, time_ms)])
        if step != "accepted":
            said = replace(claim, step=step)  # type: ignore[arg-type]
            await producer.write([Record(ACCEPTED, said.written(), claim.id.encode(), [], 0)])
        await producer.close()
        await gateway.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("ago_ms", "step"), [(60_000, "accepted"), (10, "failed"), (IDEMPOTENCY_TTL_MS + 1, "sent")]
)
def test_what_a_dead_gateway_left_is_sent_by_the_next(ago_ms: int, step: str) -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    claim_of_the_dead(fabric, plan, int(fabric.clock() * 1000) - ago_ms, step)

    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[httpx.Response]:
        return [await post(client, PLAIN, ONE, once("k")) for _ in range(2)]

    with Responder(fabric, plan) as worker:
        first, second = talk(steps, plan, answer=None, fabric=fabric)
    assert first.json() == second.json() == {"total": 6.0, "label": "A"}
    assert len(worker.seen) == 1


def test_a_fresh_claim_of_another_gateway_is_waited_for() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    claim_of_the_dead(fabric, plan, int(fabric.clock() * 1000))

    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        return await post(client, PLAIN, ONE, once("k", **LATER))

    with Responder(fabric, plan) as worker:
        answer = talk(steps, plan, answer=None, fabric=fabric)
    assert (answer.status_code, answer.headers["idempotent-replayed"]) == (202, "true")
    assert not worker.seen


def test_a_request_that_the_topic_refuses_may_be_asked_again() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    fabric.delete(["sums.requests"])

    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[int]:
        refused = await post(client, PLAIN, ONE, once("k"))
        fabric.create("sums.requests", 2, {})
        with Responder(fabric, plan):
            return [refused.status_code, (await post(client, PLAIN, ONE, once("k"))).status_code]

    assert talk(steps, plan, answer=None, fabric=fabric) == [503, 200]


@pytest.mark.parametrize("key", ["", '""', "x" * 256])
def test_keys_that_are_none(key: str) -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> int:
        return (await post(client, PLAIN, ONE, once(key))).status_code

    assert talk(steps) == 400


def test_without_the_topics_it_says_what_to_do() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)
    fabric.delete([RESULTS])

    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        return await post(client, PLAIN, ONE, LATER)

    answer = talk(steps, plan, fabric=fabric)
    assert answer.status_code == 503
    assert "deploy the pipelines again" in answer.json()["error"]


def test_a_gateway_that_stops_takes_no_more() -> None:
    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> int:
        await gateway.drain()
        return (await post(client, PLAIN, ONE, LATER)).status_code

    assert talk(steps) == 503


def test_a_producer_reports_what_the_broker_refuses() -> None:
    async def run() -> None:
        fabric = fabric_for(plan_of())
        producer = LoopProducer(fabric.producer())
        assert await producer.write([Record(ACCEPTED, b"x", b"k", [], 0) for _ in range(3)]) == [0, 1, 2]
        with pytest.raises(RequestError) as refused:
            await producer.write([Record(ACCEPTED, b"x", b"k", [], 7)])
        assert refused.value.status == 503
        with pytest.raises(RequestError) as large:
            await producer.write([Record(ACCEPTED, b"x" * 2_000_000, b"k", [], 0)])
        assert large.value.status == 413
        reader = fabric.consumer()
        reader.assign({(ACCEPTED, 0): EARLIEST})
        assert len(reader.poll(10, 0)) == 3
        await producer.close()

    asyncio.run(run())
