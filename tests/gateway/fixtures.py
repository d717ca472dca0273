"""A pipeline, a worker's stand-in that answers over the log, and a way to call the gateway in process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx
import numpy as np
import orjson

from dataflow.codecs import codec_for
from dataflow.core import headers
from dataflow.core.batch import Batch, Row
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.gateway.app import Gateway, GatewaySettings
from dataflow.planner.plan import ACCEPTED, REPLIES, RESULTS, AnswerPlan, EdgePlan, Plan, TopicPlan
from dataflow.transport.api import EARLIEST, Fabric, Header, Message
from dataflow.transport.memory import MemoryFabric

Result = TypeVar("Result")

REQUEST = Schema(
    (
        Field("x", FieldType("float32", (3,))),
        Field("name", FieldType("string"), privacy="identifier"),
        Field("at", FieldType("timestamp", nullable=True)),
    )
)
ANSWER = Schema.of(total="float32", label="string")
LATE = Schema.of(total="float32", offer=FieldType("decimal", precision=6, scale=2))


def edge(name: str, schema: Schema, codec: str = "avro", key: tuple[str, ...] = ()) -> EdgePlan:
    return EdgePlan(name, (f"sums.{name}",), schema, codec, 2, key)


def plan_of(*edges: EdgePlan, key: tuple[str, ...] = (), deadline_ms: int = 20_000) -> Plan:
    """Pipeline `sums`: input `rows`, answered by the edges given (`sum` unless said otherwise)."""
    answers = edges or (edge("sum", ANSWER),)
    entrance = replace(edge("rows", REQUEST, key=key), topics=("sums.requests",))
    return Plan(
        pipeline="sums",
        version="v7",
        folder="",
        delivery="at_least_once",
        deadline_ms=deadline_ms,
        inputs={"rows": "rows"},
        edges={e.name: e for e in (entrance, *answers)},
        nodes={},
        stages=(),
        topics={"sums.requests": TopicPlan("sums.requests", 2, "requests")},
        tables={},
        models={},
        answer=AnswerPlan("rows", "sums.requests", tuple(e.name for e in answers), "durable"),
    )


@dataclass(frozen=True)
class Told:
    """What the stand-in says of a row."""

    record: Mapping[str, Any] = field(default_factory=dict)
    edge: str = "sum"
    status: str = headers.STATUS_OK
    reason: Mapping[str, str] = field(default_factory=dict)
    silent: bool = False
    times: int = 1


def total(record: Mapping[str, Any]) -> Told:
    return Told({"total": float(np.sum(record["x"])), "label": record["name"].upper()})


class Responder:
    """Reads the requests topic and answers each record as `answer` says, like the last stage of a pipeline."""

    def __init__(
        self, fabric: Fabric, plan: Plan, answer: Callable[[Mapping[str, Any]], Told] = total
    ) -> None:
        self._plan = plan
        self._answer = answer
        self._codecs = {e.name: codec_for(e.codec, e.schema) for e in plan.edges.values()}
        self._consumer = fabric.consumer()
        self._producer = fabric.producer()
        topic = plan.topics["sums.requests"]
        self._consumer.assign({(topic.name, p): EARLIEST for p in range(topic.partitions)})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seen: list[Message] = []

    def __enter__(self) -> Responder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()
        self._producer.close()

    def _run(self) -> None:
        codec = self._codecs["rows"]
        while not self._stop.is_set():
            messages = self._consumer.poll(100, 0.05)
            if not messages:
                continue
            self.seen.extend(messages)
            decoded = codec.decode([m.value() for m in messages])
            assert not decoded.failed
            rows = [Row(b"") for _ in messages]
            for message, record in zip(
                messages, Batch(codec.schema, decoded.columns, rows).to_dicts(), strict=True
            ):
                self._reply(message, self._answer(record))
            self._producer.poll(0)

    def _reply(self, message: Message, told: Told) -> None:
        if told.silent:
            return
        carried = dict(message.headers() or ())
        topic, partition, record_id = carried[headers.REPLY_TO].decode().split("/")
        value: bytes | None = None
        said: list[Header] = [(headers.STATUS, told.status.encode())]
        if told.status == headers.STATUS_OK:
            codec = self._codecs[told.edge]
            columns = Batch.of(codec.schema, [told.record]).columns
            encoded = codec.encode(columns, 1)
            assert not encoded.failed
            value = encoded.values[0]
            said += [(headers.EDGE, told.edge.encode()), (headers.SCHEMA, codec.fingerprint)]
        else:
            said.append((headers.REASON, orjson.dumps(told.reason)))
        for _ in range(told.times):
            self._producer.send(topic, value, record_id.encode(), said, int(partition))


def fabric_for(plan: Plan, reply_partitions: int = 2) -> MemoryFabric:
    fabric = MemoryFabric()
    for topic in plan.topics.values():
        fabric.create(topic.name, topic.partitions, {})
    for e in plan.edges.values():
        for name in e.topics:
            fabric.create(name, e.partitions, {})
    fabric.create(REPLIES, reply_partitions, {})
    fabric.create(ACCEPTED, 1, {})
    fabric.create(RESULTS, 2, {})
    return fabric


def client_of(gateway: Gateway, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=gateway, raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", timeout=60, **options)


def talk(
    steps: Callable[[httpx.AsyncClient, Gateway], Awaitable[Result]],
    plan: Plan | None = None,
    *,
    answer: Callable[[Mapping[str, Any]], Told] | None = total,
    settings: GatewaySettings | None = None,
    fabric: Fabric | None = None,
    **providers: Any,
) -> Result:
    """Run `steps` against a gateway over an in-memory log; `answer` None leaves requests unanswered."""
    used = plan or plan_of()
    log = fabric or fabric_for(used)

    async def run() -> Result:
        gateway = Gateway(log, lambda: {used.pipeline: used}, settings, **providers)
        await gateway.start()
        try:
            async with client_of(gateway) as client:
                return await steps(client, gateway)
        finally:
            await gateway.close()

    if answer is None:
        return asyncio.run(run())
    with Responder(log, used, answer):
        return asyncio.run(run())


def tensors(rows: int = 1, **changes: Any) -> dict[str, Any]:
    """A V2 request of `rows` rows; `changes` replace members of input x."""
    x = {
        "name": "x",
        "datatype": "FP32",
        "shape": [rows, 3],
        "data": [float(i) for i in range(rows * 3)],
        **changes,
    }
    name = {"name": "name", "datatype": "BYTES", "shape": [rows], "data": [f"n{i}" for i in range(rows)]}
    return {"inputs": [x, name]}
