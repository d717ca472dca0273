"""What callers are told when the log is not what it should be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import orjson
import pytest

from dataflow.core import headers
from dataflow.core.errors import TransportError
from dataflow.core.inprocess import InProcess, Reply
from dataflow.core.limits import MAX_RECORD_BYTES
from dataflow.core.schema import Column
from dataflow.gateway import exchange, replies, together
from dataflow.gateway.app import Gateway
from dataflow.gateway.doors import PipelineDoor
from dataflow.gateway.replies import ReplyReader
from dataflow.planner.plan import REPLIES
from dataflow.transport.api import EARLIEST, Delivered, Header
from dataflow.transport.memory import MemoryFabric
from dataflow.transport.memory_log import MemoryConsumer, MemoryMessage, MemoryProducer
from tests.gateway.fixtures import Responder, Told, fabric_for, plan_of, talk, tensors, total

INFER = "/v2/models/sums/infer"


class Undelivered(MemoryFabric):
    """A broker that takes nothing: reports come as failures, or (`silent`) never."""

    def __init__(self, silent: bool) -> None:
        super().__init__()
        self.silent = silent

    def producer(self, *, latency_first: bool = True, single_flight: bool = False) -> MemoryProducer:
        del latency_first, single_flight
        return _UndeliveredProducer(self, self.silent)


class _UndeliveredProducer(MemoryProducer):
    def __init__(self, fabric: MemoryFabric, silent: bool) -> None:
        super().__init__(fabric)
        self._silent = silent
        self._held: list[Delivered] = []

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: list[Header] | None = None,
        partition: int = -1,
        on_delivery: Delivered | None = None,
        timestamp_ms: int = 0,
    ) -> None:
        assert on_delivery is not None
        self._held.append(on_delivery)

    def poll(self, timeout_s: float) -> int:
        if self._silent:
            return 0
        held, self._held = self._held, []
        for report in held:
            report("Local: Message timed out", None)
        return len(held)


def prepared(fabric: MemoryFabric) -> MemoryFabric:
    for name in ("sums.requests", "dataflow.replies"):
        fabric.create(name, 2, {})
    return fabric


async def one(client: httpx.AsyncClient, gateway: Gateway) -> httpx.Response:
    answer = await client.post(INFER, content=orjson.dumps(tensors(2)), headers={"x-deadline-ms": "40"})
    assert len(gateway.exchange.pending) == gateway.exchange.pending.rows == 0
    return answer


def test_a_failed_delivery_is_told_at_once() -> None:
    answer = talk(one, answer=None, fabric=prepared(Undelivered(silent=False)))
    assert answer.status_code == 503
    assert "Message timed out" in answer.json()["error"]
    assert answer.headers["retry-after"] == "1"


def test_a_deadline_without_delivery_is_the_brokers_fault() -> None:
    answer = talk(one, answer=None, fabric=prepared(Undelivered(silent=True)))
    assert answer.status_code == 503
    assert "did not take the request in time" in answer.json()["error"]


def test_a_queue_that_fills_refuses_before_it_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_UNSENT_RECORDS", 3)

    async def steps(client: httpx.AsyncClient, _: Gateway) -> str:
        await one(client, _)
        return str((await client.post(INFER, content=orjson.dumps(tensors(2)))).json()["error"])

    assert "does not keep up" in talk(steps, answer=None, fabric=prepared(Undelivered(silent=True)))


def test_a_caller_who_leaves_is_forgotten() -> None:
    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> None:
        call = asyncio.create_task(client.post(INFER, content=orjson.dumps(tensors(2))))
        while not len(gateway.exchange.pending):
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert len(gateway.exchange.pending) == gateway.exchange.pending.rows == 0

    talk(steps, answer=None)


def test_a_later_request_with_an_earlier_deadline_is_not_kept_waiting() -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[int]:
        body = orjson.dumps(tensors())
        calls = [
            client.post(INFER, content=body, headers={"x-deadline-ms": wait}) for wait in ("400", "20", "200")
        ]
        order: list[int] = []
        tasks = [asyncio.create_task(_ended(call, i, order)) for i, call in enumerate(calls)]
        await asyncio.gather(*tasks)
        return order

    assert talk(steps, answer=None) == [1, 2, 0]


async def _ended(call: object, index: int, order: list[int]) -> None:
    answer = await call  # type: ignore[misc]  # a coroutine of httpx
    assert answer.status_code == 504
    order.append(index)


class Flaky(MemoryFabric):
    """A broker that goes away while replies are read, as often as `faults` says."""

    def __init__(self, faults: int) -> None:
        super().__init__()
        self.faults = faults
        self.away = threading.Event()

    def consumer(
        self, group: str | None = None, *, start: int = EARLIEST, together: bool = False
    ) -> MemoryConsumer:
        return _FlakyConsumer(self, group, start)


class _FlakyConsumer(MemoryConsumer):
    def __init__(self, fabric: Flaky, group: str | None, start: int) -> None:
        super().__init__(fabric, group, start)
        self._flaky = fabric

    def poll(self, max_records: int, timeout_s: float) -> Sequence[MemoryMessage]:
        if self._flaky.faults:
            self._flaky.faults -= 1
            self._flaky.away.set()
            raise TransportError("the broker is gone")
        return super().poll(max_records, timeout_s)


def test_reading_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "RETRY_S", 0.01)
    fabric = Flaky(faults=2)
    prepared(fabric)

    async def run() -> list[Reply]:
        found: list[Reply] = []
        done = asyncio.Event()

        def deliver(some: Sequence[Reply]) -> None:
            found.extend(some)
            if len(found) == 2:
                done.set()

        reader = ReplyReader(fabric, ("dataflow.replies", 1), deliver, asyncio.get_running_loop())
        producer = fabric.producer()
        producer.send("dataflow.replies", b"before", b"id-0", partition=1)
        await asyncio.to_thread(reader.start)
        producer.send("dataflow.replies", b"one", b"id-1", [("df-edge", b"sum")], 1)
        producer.send("dataflow.replies", b"no reply", partition=1)
        producer.send("dataflow.replies", None, b"id-2", [("df-status", b"failed"), ("df-reason", b"{")], 1)
        producer.send("dataflow.replies", b"another replica's", b"id-3", partition=0)
        await asyncio.wait_for(done.wait(), 30)
        assert reader.healthy
        await asyncio.to_thread(reader.stop)
        return found

    first, second = asyncio.run(run())
    assert fabric.away.is_set()
    assert first == Reply(b"id-1", "ok", b"one", "sum", b"")
    assert (second.good, second.why()) == (False, {})


def test_replies_that_were_deleted_unread_do_not_stop_the_reader() -> None:
    plan = plan_of()
    fabric = fabric_for(plan)

    async def steps(client: httpx.AsyncClient, gateway: Gateway) -> int:
        reader = gateway.exchange._reader
        assert reader is not None
        await asyncio.to_thread(reader.stop)
        fabric.producer().send("dataflow.replies", b"x", b"old", partition=0)
        again = ReplyReader(
            fabric, ("dataflow.replies", 0), gateway.exchange.deliver, asyncio.get_running_loop()
        )
        await asyncio.to_thread(again.start)
        again._offset = 0
        fabric.delete_records(("dataflow.replies", 0), 1)
        gateway.exchange._reader = again
        return (await client.post(INFER, content=orjson.dumps(tensors()))).status_code

    with Responder(fabric, plan):
        assert talk(steps, plan, answer=None, fabric=fabric) == 200


def test_a_request_larger_than_a_record_may_be() -> None:
    async def steps(client: httpx.AsyncClient, _: Gateway) -> httpx.Response:
        record = {"x": [1, 2, 3], "name": "n" * (MAX_RECORD_BYTES + 1)}
        return await client.post("/pipelines/sums", content=orjson.dumps(record))

    answer = talk(steps, answer=None)
    assert answer.status_code == 413
    assert "row 0" in answer.json()["error"]


def test_what_a_stage_brings_after_the_gateway_has_ended_does_no_harm() -> None:
    inside = InProcess()

    async def live() -> None:
        made = exchange.Exchange(fabric_for(plan_of()), (REPLIES, 0), inside=inside)
        await made.start()
        assert not inside.desk.waits(f"{REPLIES}/0/unknown".encode())
        await made.close()

    asyncio.run(live())
    inside.desk.deliver([Reply(b"late", "ok", b"", "sums", b"")])


def test_requests_that_come_together_are_told_each_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are encoded in one go, and their answers decoded; one that cannot be encoded fails alone, one without an answer too."""
    sizes: list[int] = []

    def counted(group: Sequence[together.Asked]) -> list[list[bytes | None] | Exception]:
        sizes.append(len(group))
        return together.encoded(group)

    monkeypatch.setattr(exchange, "encoded", counted)

    def body(first: int, rows: int, name: str = "") -> bytes:
        asked = tensors(rows, data=[float(first + row // 3) for row in range(rows * 3)])
        asked["inputs"][1]["data"] = [name or f"n{first + row}" for row in range(rows)]
        return orjson.dumps(asked)

    asked = [(0, 1), (10, 2), (20, 1), (30, 3), (40, 1)]
    bodies = [*(body(first, rows) for first, rows in asked), body(50, 1, "n" * (MAX_RECORD_BYTES + 1))]

    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[httpx.Response]:
        entry = {"x-row-errors": "entry"}
        calls = [client.post(INFER, content=c, headers=entry if i == 1 else {}) for i, c in enumerate(bodies)]
        found = await asyncio.gather(*calls)
        return [*found, *await asyncio.gather(*(client.post(INFER, content=b) for b in bodies[:-1]))]

    def answer(record: Mapping[str, Any]) -> Told:
        bad = record["name"] == "n40"
        return Told(status=headers.STATUS_FAILED, reason={"reason": "no"}) if bad else total(record)

    answers = talk(steps, answer=answer)
    assert [a.status_code for a in answers] == [200, 200, 200, 200, 500, 413, 200, 200, 200, 200, 500]
    for (first, rows), *told in zip(asked[:4], answers[:4], answers[6:10], strict=True):
        for outputs in (t.json()["outputs"] for t in told):
            assert outputs[0]["data"] == [3.0 * (first + row) for row in range(rows)]
            assert outputs[1]["data"] == [f"N{first + row}" for row in range(rows)]
    assert answers[1].json()["parameters"] == {"row_errors": "[]"}
    assert max(sizes) > 1


def test_what_we_do_wrong_with_one_request_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    values = PipelineDoor.values

    def broken(door: PipelineDoor, columns: Mapping[str, Column], rows: int) -> list[bytes | None]:
        if "n50" in columns["name"].tolist():
            raise ZeroDivisionError
        return values(door, columns, rows)

    monkeypatch.setattr(PipelineDoor, "values", broken)
    good, bad = tensors(1), tensors(1)
    bad["inputs"][1]["data"] = ["n50"]

    async def steps(client: httpx.AsyncClient, _: Gateway) -> list[int]:
        calls = [client.post(INFER, content=orjson.dumps(body)) for body in (good, bad, good)]
        return [answer.status_code for answer in await asyncio.gather(*calls)]

    assert talk(steps) == [200, 500, 200]
