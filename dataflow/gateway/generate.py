"""``generate`` and ``generate_stream``: one record in, all records out that come of it on the answer edges.

The request's records carry header ``df-stream``, which travels on to whatever comes of them. Who takes them reads the
answer edges, and knows from the replies (by their shares, see `core.shares`) when nothing of the request is left.
Protocol: Triton's `extension_generate.md`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from dataflow.codecs.values import coerce_records, to_jsonable
from dataflow.core import headers, ids
from dataflow.core.errors import GatewayError
from dataflow.core.inprocess import Reply
from dataflow.core.limits import MAX_STREAM_BACKLOG, MAX_STREAMS
from dataflow.core.shares import WHOLE, Share, read_share, union
from dataflow.gateway.doors import PipelineDoor
from dataflow.gateway.exchange import Exchange
from dataflow.gateway.http import JSON, RETRY_AFTER_S, Request, RequestError, Response, Stream, parse_json
from dataflow.gateway.infer import KEY_HEADER, RECORD_ID_HEADER, ask_of, caller_id_of, failure
from dataflow.gateway.tail import LoopProducer, Record, Tail
from dataflow.gateway.together import Ask
from dataflow.transport.api import Fabric, Header, Message

EVENTS: Final = b"text/event-stream; charset=utf-8"
# The edges are read up to where they end once the last reply is there; a broker that takes longer is away.
_LAST_RECORDS_S: Final = 15.0


@dataclass
class _Taking:
    """One request under way: what came of it and is not yet told."""

    request_id: bytes
    caller_id: str
    deadline_ms: int
    told: Share = ()
    refusal: Reply | None = None
    queue: deque[Message] = field(default_factory=deque)
    seen: set[bytes] = field(default_factory=set)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> bool:
        """Whether nothing of the request is under way."""
        return self.told == WHOLE

    def reply(self, reply: Reply) -> None:
        if not reply.good and (self.refusal is None or self.refusal.status != headers.STATUS_FAILED):
            self.refusal = reply
        self.told = union((*self.told, *read_share(reply.share)))
        self.news.set()

    def take(self, message: Message, record_id: bytes) -> None:
        # What is run again is written again.
        if record_id not in self.seen:
            self.seen.add(record_id)
            self.queue.append(message)
            self.news.set()


class _Edges:
    """The answer edges of one plan, followed once for all who take from them."""

    def __init__(self, fabric: Fabric, door: PipelineDoor) -> None:
        self.plan: Final = door.plan
        self.edge_of: Final = {topic: name for name in door.codecs for topic in door.plan.edges[name].topics}
        missing = [name for name in door.codecs if not door.plan.edges[name].topics]
        if missing:
            raise GatewayError(
                501,
                f"edge '{missing[0]}' is declared `write: off`: its records cannot be followed",
                hint="use infer",
            )
        self.taking: Final[dict[bytes, _Taking]] = {}
        self.tail: Final = Tail(fabric, tuple(self.edge_of), self._take)

    def _take(self, messages: Sequence[Message]) -> None:
        if not self.taking:
            return
        for message in messages:
            carried = dict(message.headers() or ())
            taking = self.taking.get(carried.get(headers.STREAM, b""))
            if taking is not None:
                taking.take(message, carried.get(headers.ID, b""))


class GenerateDoor:
    """Belongs to the gateway's event loop. Its clients are made when the first such request comes."""

    def __init__(self, fabric: Fabric, exchange: Exchange) -> None:
        self._fabric = fabric
        self._exchange = exchange  # the one that all methods are given
        self._producer: LoopProducer | None = None
        self._edges: dict[str, _Edges] = {}
        self._former: list[_Edges] = []  # of plans that were changed while somebody took from them
        self._starting = asyncio.Lock()

    def __len__(self) -> int:
        """Requests under way."""
        return sum(len(edges.taking) for edges in (*self._edges.values(), *self._former))

    async def close(self) -> None:
        for edges in (*self._edges.values(), *self._former):
            await edges.tail.stop()
        if self._producer is not None:
            await self._producer.close()

    async def one(
        self, exchange: Exchange, door: PipelineDoor, request: Request, body: bytes, detail: bool
    ) -> Response:
        """All records at once: the first one's fields as Triton has them, and ``records`` with all of them."""
        del exchange
        taking, edges = await self._begin(door, request, body)
        records: list[dict[str, Any]] = []
        async for record in self._records(door, taking, edges, detail):
            records.append(record)
        said = {"records": records, **_names(door, taking), **records[0]}
        return Response(200, orjson.dumps(said), JSON, ((RECORD_ID_HEADER, taking.request_id),))

    async def stream(
        self, exchange: Exchange, door: PipelineDoor, request: Request, body: bytes, detail: bool
    ) -> Stream:
        """An event per record. The status tells how the first went; a later failure is the last event."""
        del exchange
        taking, edges = await self._begin(door, request, body)
        records = self._records(door, taking, edges, detail)
        try:
            first = await anext(records)
        except BaseException:
            await records.aclose()
            raise
        return Stream(
            _events(records, first, _names(door, taking)), EVENTS, ((RECORD_ID_HEADER, taking.request_id),)
        )

    async def _begin(self, door: PipelineDoor, request: Request, body: bytes) -> tuple[_Taking, _Edges]:
        if KEY_HEADER in request.headers:
            raise GatewayError(
                400, "a stream is not kept: no Idempotency-Key goes with generate", hint="use infer"
            )
        record, caller_id = _read(door, body, caller_id_of(request))
        decoded = coerce_records(door.request, [record])
        for _, cause in decoded.failed:
            raise GatewayError(400, cause.message, hint=cause.hint)
        request.rows = 1
        now = self._exchange.clock_ms()
        ask = ask_of(door, request, now, caller_id)
        values = door.values(decoded.columns, 1)
        key = door.keys(decoded.columns, 1)[0] if door.key else None
        if self._exchange.draining or not self._exchange.healthy:
            raise RequestError(
                503, "the gateway cannot answer now", hint="try later", retry_after_s=RETRY_AFTER_S
            )
        if len(self) >= MAX_STREAMS:
            raise GatewayError(
                429, f"{MAX_STREAMS} requests take streams, which is the limit", hint="try later"
            )
        edges = await self._edges_of(door)
        taking = _Taking(ids.mint(now), caller_id, ask.deadline_ms)
        edges.taking[taking.request_id] = taking
        self._exchange.listeners[taking.request_id] = taking.reply
        try:
            assert self._producer is not None, "made with the edges"
            head = self._head(door, taking, ask)
            partition = -1 if key is not None else door.partition_of(next(door.turns), 0)
            await self._producer.write([Record(door.topic, values[0], key, head, partition)])
        except BaseException:
            self._end(taking, edges)
            raise
        return taking, edges

    def _head(self, door: PipelineDoor, taking: _Taking, ask: Ask) -> list[Header]:
        head: list[Header] = [
            (headers.ID, taking.request_id),
            (headers.REPLY_TO, self._exchange.reply_prefix + taking.request_id),
            (headers.DEADLINE, str(ask.deadline_ms).encode()),
            (headers.STREAM, taking.request_id),
            *ask.headers,
        ]
        if door.codec.fingerprint:
            head.append((headers.SCHEMA, door.codec.fingerprint))
        return head

    async def _edges_of(self, door: PipelineDoor) -> _Edges:
        async with self._starting:
            if self._producer is None:
                self._producer = LoopProducer(await asyncio.to_thread(self._fabric.producer))
            known = self._edges.get(door.name)
            if known is None or known.plan is not door.plan:
                made = _Edges(self._fabric, door)
                await made.tail.start()
                if known is not None:
                    self._former.append(known)
                known = self._edges[door.name] = made
            for former in [f for f in self._former if not f.taking]:
                self._former.remove(former)
                await former.tail.stop()
            return known

    def _end(self, taking: _Taking, edges: _Edges) -> None:
        edges.taking.pop(taking.request_id, None)
        self._exchange.listeners.pop(taking.request_id, None)

    async def _records(
        self, door: PipelineDoor, taking: _Taking, edges: _Edges, detail: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The records as they come. Raises RequestError when there is none, for a failure, and at the deadline."""
        count = 0
        try:
            last = False
            while True:
                if len(taking.queue) > MAX_STREAM_BACKLOG:
                    raise RequestError(
                        503, "the records are not taken fast enough", record_id=taking.request_id
                    )
                while taking.queue:
                    count += 1
                    yield _decoded(door, edges, taking.queue.popleft())
                if last:
                    break
                if taking.over:
                    await edges.tail.reach(await edges.tail.ends(), _LAST_RECORDS_S)
                    last = True
                    continue
                taking.news.clear()
                # No timeout may span a `yield`: who takes the next record may be another task.
                left_s = (taking.deadline_ms - self._exchange.clock_ms()) / 1000
                await asyncio.wait_for(taking.news.wait(), left_s)
        except TimeoutError:
            message = "no answer at the deadline"
            raise RequestError(504, message, record_id=taking.request_id) from None
        finally:
            self._end(taking, edges)
        failed = taking.refusal is not None and taking.refusal.status != headers.STATUS_DROPPED
        if taking.refusal is not None and (failed or not count):
            raise failure([taking.request_id], 0, taking.refusal, detail)
        if not count:
            raise RequestError(422, "nothing came of the record", record_id=taking.request_id)


def _read(door: PipelineDoor, body: bytes, caller_id: str) -> tuple[Mapping[str, Any], str]:
    """The record in a body, and the caller's id; what is no input is taken for a parameter, as Triton does."""
    try:
        said = parse_json(body)
    except orjson.JSONDecodeError as error:
        raise GatewayError(400, f"the body is not JSON: {error.msg} at byte {error.pos}") from None
    if not isinstance(said, dict):
        raise GatewayError(400, "the body must be a JSON object with the fields of one record")
    given = said.get("id")
    if "id" not in door.request and isinstance(given, str) and len(given) <= 256:
        caller_id = given
    return {name: value for name, value in said.items() if name in door.request}, caller_id


def _names(door: PipelineDoor, taking: _Taking) -> dict[str, Any]:
    record_id = taking.request_id.decode()
    return {"model_name": door.name, "model_version": door.version, "id": taking.caller_id or record_id}


def _decoded(door: PipelineDoor, edges: _Edges, message: Message) -> dict[str, Any]:
    carried = dict(message.headers() or ())
    edge = edges.edge_of[message.topic()]
    reply = Reply(b"", headers.STATUS_OK, message.value(), edge, b"", carried.get(headers.SCHEMA, b""))
    (record,) = to_jsonable(door.codecs[edge].schema, door.decoded(edge, [reply]), 1)
    return dict(record)


async def _events(
    records: AsyncGenerator[dict[str, Any], None], first: dict[str, Any], names: Mapping[str, Any]
) -> AsyncGenerator[bytes, None]:
    try:
        yield _event({**names, **first})
        async for record in records:
            yield _event({**names, **record})
    except GatewayError as error:
        yield _event({"error": str(error), "status": error.status})
    finally:
        await records.aclose()


def _event(said: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(said) + b"\n\n"
