"""One record in, all records out that come of it; a worker's stand-in writes the answer edge and tells of shares."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx
import orjson
import pytest

from dataflow.core import headers, ids
from dataflow.core.batch import Batch
from dataflow.core.shares import address_of, parted, share_of
from dataflow.gateway.app import Gateway
from dataflow.transport.api import Header, Message
from tests.gateway.fixtures import ANSWER as ANSWER_SCHEMA
from tests.gateway.fixtures import Responder, Told, edge, fabric_for, plan_of, talk, total

MODEL = "/v2/models/sums"
ONE = {"x": [1, 2, 3], "name": "a"}


@dataclass(frozen=True)
class Part(Told):
    """One of the records that come of a row; `twice` writes it twice, as a worker that was killed does."""

    twice: bool = False


class Fan(Responder):
    """Writes `parts` of each row on the answer edge, each with its share of the caller; the rest as it is told."""

    def __init__(self, *arguments: Any, parts: int = 3, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parts = parts

    def _reply(self, message: Message, told: Told) -> None:
        carried = dict(message.headers() or ())
        replies = parted(carried[headers.REPLY_TO], self.parts)
        codec = self._codecs["sum"]
        for part, reply in enumerate(replies):
            topic, partition, record_id = address_of(reply).decode().split("/")
            share: list[Header] = [(headers.SHARE, share_of(reply))] if share_of(reply) else []
            if part == 1 and told.status != headers.STATUS_OK:
                said: list[Header] = [
                    (headers.STATUS, told.status.encode()),
                    (headers.REASON, orjson.dumps(told.reason)),
                ]
                self._producer.send(topic, None, record_id.encode(), [*said, *share], int(partition))
                continue
            record = {"total": float(part), "label": "part"}
            value = codec.encode(Batch.of(codec.schema, [record]).columns, 1).values[0]
            made = ids.child(record_id.encode(), "fan", "out", part)
            head: list[Header] = [
                (headers.ID, made), (headers.SCHEMA, codec.fingerprint), (headers.PARENTS, record_id.encode()),
                (headers.STREAM, carried[headers.STREAM]),
            ]  # fmt: skip
            for _ in range(2 if getattr(told, "twice", False) else 1):
                self._producer.send("sums.sum", value, None, head, part % 2)
                said = [(headers.STATUS, b"ok"), (headers.EDGE, b"sum"), (headers.SCHEMA, codec.fingerprint)]
                if not told.silent:
                    self._producer.send(topic, value, record_id.encode(), [*said, *share], int(partition))


def generate(
    rest: str = "generate_stream",
    body: Any = ONE,
    told: Told | None = None,
    *,
    parts: int = 3,
    sent: Mapping[str, str] | None = None,
) -> httpx.Response:
    plan = plan_of()
    fabric = fabric_for(plan)

    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> httpx.Response:
        answer = await client.post(f"{MODEL}/{rest}", content=orjson.dumps(body), headers=dict(sent or {}))
        assert not len(gateway._generate)
        assert not gateway.exchange.listeners
        return answer

    with Fan(fabric, plan, lambda record: told or total(record), parts=parts):
        return talk(steps, plan, answer=None, fabric=fabric)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    return [orjson.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_an_event_per_record(parts: int) -> None:
    answer = generate(parts=parts, body={**ONE, "id": "mine", "parameters": {"a": 1}, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["df-id"]
    said = events(answer)
    assert sorted(event["total"] for event in said) == list(range(parts))
    assert {(e["model_name"], e["model_version"], e["id"], e["label"]) for e in said} == {
        ("sums", "v7", "mine", "part")
    }


def test_all_records_at_once() -> None:
    said = generate("generate").json()
    assert sorted(record["total"] for record in said["records"]) == [0, 1, 2]
    assert said["total"] == said["records"][0]["total"]
    assert (said["model_name"], said["model_version"]) == ("sums", "v7")
    assert generate("generate", parts=1).json()["records"] == [{"total": 0.0, "label": "part"}]


def test_records_that_are_written_twice_are_told_once() -> None:
    assert sorted(e["total"] for e in events(generate(told=Part(twice=True)))) == [0, 1, 2]


def test_a_part_that_fails_is_the_last_event() -> None:
    failed = Told(status=headers.STATUS_FAILED, reason={"reason": "no wings"})
    *good, last = events(generate(told=failed))
    assert sorted(event["total"] for event in good) == [0, 2]
    assert last["status"] == 500
    at_once = generate("generate", told=failed)
    assert at_once.status_code == 500


def test_a_part_that_is_dropped_is_none() -> None:
    dropped = Told(status=headers.STATUS_DROPPED, reason={"reason": "short"})
    assert sorted(e["total"] for e in events(generate(told=dropped))) == [0, 2]


def test_a_request_that_comes_to_nothing_has_its_status() -> None:
    plan = plan_of()

    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[httpx.Response]:
        return [
            await client.post(f"{MODEL}/{rest}", content=orjson.dumps(ONE))
            for rest in ("generate", "generate_stream")
        ]

    dropped = Told(status=headers.STATUS_DROPPED, reason={"reason": "short"})
    answers = talk(steps, plan, answer=lambda _: dropped)
    assert [a.status_code for a in answers] == [422, 422]
    assert answers[0].json()["error"] == "dropped: short"


def test_the_deadline_ends_it() -> None:
    silent = Told(silent=True)
    answer = generate(told=silent, sent={"x-deadline-ms": "400"})
    *good, last = events(answer)
    assert len(good) == 3
    assert last == {"error": "no answer at the deadline", "status": 504}


@pytest.mark.parametrize("body", [[], 7, {"x": [1]}, {"name": "a"}])
def test_bodies_that_are_no_record(body: Any) -> None:
    assert generate(body=body).status_code == 400


def test_a_stream_takes_no_key() -> None:
    assert generate(sent={"idempotency-key": "k"}).status_code == 400


def test_an_edge_that_is_not_written_cannot_be_followed() -> None:
    unwritten = replace(edge("sum", ANSWER_SCHEMA), topics=())
    plan = plan_of(unwritten)

    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        return await client.post(f"{MODEL}/generate", content=orjson.dumps(ONE))

    answer = talk(steps, plan)
    assert answer.status_code == 501
    assert "write: off" in answer.json()["error"]


def test_requests_side_by_side_get_their_own() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)

    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[httpx.Response]:
        async def ask(turn: int) -> httpx.Response:
            body = {**ONE, "id": f"r{turn}"}
            return await client.post(f"{MODEL}/generate_stream", content=orjson.dumps(body))

        return await asyncio.gather(*(ask(turn) for turn in range(8)))

    with Fan(fabric, plan):
        answers = talk(steps, plan, answer=None, fabric=fabric)
    for turn, answer in enumerate(answers):
        assert [event["id"] for event in events(answer)] == [f"r{turn}"] * 3
