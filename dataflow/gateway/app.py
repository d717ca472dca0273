"""The gateway: a raw ASGI application over one fabric. `start` before the first request, `close` after the last."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Final, TypeVar

import orjson

from dataflow.core import headers
from dataflow.core.errors import DataflowError, GatewayError, nearest
from dataflow.core.inprocess import InProcess
from dataflow.core.limits import MAX_PENDING_REQUESTS, MAX_TAPS
from dataflow.gateway.cloud_events import answer_event, is_event
from dataflow.gateway.doors import PipelineDoor
from dataflow.gateway.exchange import REPORT_POLL_S, Exchange
from dataflow.gateway.facts import tell
from dataflow.gateway.generate import GenerateDoor
from dataflow.gateway.http import (
    Budget,
    Receive,
    Request,
    RequestError,
    Response,
    Scope,
    Send,
    Stream,
    error_response,
    send_response,
    send_stream,
)
from dataflow.gateway.infer import KEY_HEADER, infer
from dataflow.gateway.model_info import Statistics
from dataflow.gateway.plain import plain, predict
from dataflow.gateway.requests import PREFER, RequestsDoor, wanted
from dataflow.gateway.routes import Route, Router
from dataflow.gateway.state_view import StateDoor
from dataflow.gateway.tap_events import WriterOf
from dataflow.gateway.taps import STALL_S, Tap, check_query, edge_of, open_events, parse_limit, parse_start
from dataflow.observe.traces import Tracing
from dataflow.planner.plan import REPLIES, Plan
from dataflow.transport.api import Fabric

log = logging.getLogger("dataflow.gateway")

PRIVATE: Final = "private"
Plans = Callable[[], Mapping[str, Plan]]
# pipeline ("" if unknown), door (v2 | v1 | json | grpc | tap), HTTP status, seconds
Observe = Callable[[str, str, int, float], None]
_TRACEPARENT: Final = headers.TRACEPARENT.encode()
_DOORS: Final = {
    "infer": "v2", "plain": "json", "predict": "v1", "tap": "tap",
    "generate": "generate", "generate_stream": "generate",
}  # fmt: skip
Answer = TypeVar("Answer", Response, Stream)
Handler = Callable[[Exchange, PipelineDoor, Request, bytes, bool], Awaitable[Answer]]
_HANDLERS: Final[Mapping[str, Handler[Response]]] = {"infer": infer, "plain": plain, "predict": predict}


@dataclass(frozen=True)
class GatewaySettings:
    """How one replica serves.

    tokens           what ``Authorization: Bearer`` may say, each with its scopes ("private" shows private fields);
                     none: no token is asked for, and only loopback callers are served
    reply_partition  the partition of `reply_topic` that is this replica's alone
    detail           whether a failed request tells node and error, or its id only
    """

    tokens: Mapping[str, frozenset[str]] = field(default_factory=dict)
    reply_topic: str = REPLIES
    reply_partition: int = 0
    detail: bool = False
    max_pending: int = MAX_PENDING_REQUESTS


class Gateway:
    """All doors of one replica; belongs to the event loop in which `start` is awaited.

    plans      the pipelines served now: the same `Plan` object until a pipeline changes (its door is kept as long)
    graph      a JSON-able document; `metrics` the Prometheus text; both may take their time
    writer_of  the contract of a df-schema fingerprint, for taps of records of other versions
    observe    told of every request
    working    whether a pipeline's stages run, where this process knows it: what does not work is not ready
    inside     shared with stages in this process: requests and replies go between them without being fetched back
    """

    def __init__(
        self,
        fabric: Fabric,
        plans: Plans,
        settings: GatewaySettings | None = None,
        *,
        graph: Callable[[], Any] | None = None,
        metrics: Callable[[], bytes] | None = None,
        writer_of: WriterOf | None = None,
        observe: Observe | None = None,
        tracing: Tracing | None = None,
        working: Callable[[str], bool] = lambda _: True,
        inside: InProcess | None = None,
    ) -> None:
        self.settings = settings or GatewaySettings()
        self.exchange = Exchange(
            fabric,
            (self.settings.reply_topic, self.settings.reply_partition),
            inside=inside,
            max_pending=self.settings.max_pending,
        )
        self._fabric = fabric
        self._plans = plans
        self._graph = graph
        self._metrics = metrics
        self._writer_of = writer_of
        self._observe = observe
        self._tracing = tracing
        self._working = working
        self.statistics = Statistics()
        self._router = Router()
        self._budget = Budget()
        self._doors: dict[str, PipelineDoor] = {}
        self._taps: set[Tap] = set()
        self._under_way = 0
        self._state = StateDoor(fabric)
        self._generate = GenerateDoor(fabric, self.exchange)
        self._requests = RequestsDoor(fabric, self.exchange.clock_ms)

    async def start(self) -> None:
        """Connect. Raises TransportError when the broker or the reply partition is not there."""
        await self.exchange.start()

    async def settle(self) -> None:
        """Wait until no HTTP request is under way, streams apart: for whoever lets no new ones come."""
        while self._under_way:
            await asyncio.sleep(REPORT_POLL_S)

    async def drain(self) -> None:
        """Take no new request, end the taps, and wait until those in flight are answered or past their deadline."""
        self.exchange.draining = True
        for tap in list(self._taps):
            tap.close()
        await self.exchange.drain()
        while len(self._generate):
            await asyncio.sleep(REPORT_POLL_S)

    async def close(self) -> None:
        for tap in list(self._taps):
            tap.close()
        await self._state.close()
        await self._requests.close()
        await self._generate.close()
        await self.exchange.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"ASGI scope '{scope['type']}'")  # the protocol's way to say "not mine"
        began = time.perf_counter()
        method, path = scope["method"], scope["path"]
        request = Request(
            method, path, dict(scope["headers"]), scope["query_string"], receive, {}, frozenset()
        )
        answer: Response | Stream
        door = ""
        self._under_way += 1
        try:
            route, request.params = self._router.find(method, path)
            door = _DOORS.get(route.handler, "")
            request.scopes = self.scopes_of(request, free=route.free)
            answer = await self._answer(route, request)
        except GatewayError as error:
            answer = error_response(error)
        except DataflowError as error:
            answer = error_response(RequestError(503, str(error), retry_after_s=1))
        except Exception:  # whatever is wrong with us, the caller gets an answer
            log.exception("%s %s", method, path)
            answer = error_response(GatewayError(500, "the gateway failed; its log says why"))
        finally:
            self._under_way -= 1
        if isinstance(answer, Response):
            await send_response(send, answer, head=method == "HEAD")
        else:
            await send_stream(send, receive, answer, STALL_S)
        if door:
            self.note(door, request, answer.status, time.perf_counter() - began)

    def note(self, door: str, request: Request, status: int, seconds: float) -> None:
        """Count a request that is over, in HTTP's status whatever the door."""
        name = request.params.get("name") or request.params.get("pipeline", "")
        plan = self._plans().get(name)
        if plan is not None and door != "tap":
            took_ns = int(seconds * 1e9)
            now = self.exchange.clock_ms()
            self.statistics.count(name, plan.version, request.rows, took_ns, now, good=status < 400)
        if self._observe is not None:
            # Strangers must not make up label values.
            self._observe(name if plan is not None else "", door, status, seconds)

    async def _answer(self, route: Route, request: Request) -> Response | Stream:
        handler = _HANDLERS.get(route.handler)
        if handler is not None:
            if handler is plain and is_event(request):
                handler = answer_event
            elif (PREFER in request.headers or KEY_HEADER in request.headers) and wanted(request):
                handler = partial(self._requests.take, route.handler)
            return await self.run(handler, request)
        if route.handler == "tap":
            return await self._tap(request)
        if route.handler == "generate":
            return await self.run(self._generate.one, request)
        if route.handler == "generate_stream":
            return await self.run(self._generate.stream, request)
        if route.handler == "request":
            return await self._requests.find(
                request.params["id"], request, self.door, detail=self.settings.detail
            )
        if route.handler == "state":
            plan = self._plan(request.params["pipeline"])
            private = PRIVATE in request.scopes
            return await self._state.answer(plan, request, self.exchange.clock_ms(), private=private)
        if route.handler == "graph":
            return _json(200, await asyncio.to_thread(_needed(self._graph, "graph")))
        if route.handler == "metrics":
            text = await asyncio.to_thread(_needed(self._metrics, "metrics"))
            return Response(200, text, b"text/plain; version=0.0.4; charset=utf-8")
        return await tell(self, route.handler, request)

    async def run(self, handler: Handler[Answer], request: Request) -> Answer:
        """A request to the pipeline of its params `name` and `version`, within the budget for bodies and traced."""
        door = self.door(request.params["name"], request.params.get("version"))
        body = await request.body(self._budget)
        try:
            if self._tracing is None:
                return await handler(self.exchange, door, request, body, self.settings.detail)
            with self._tracing.request(
                door.name, request.headers.get(_TRACEPARENT, b"").decode("latin-1")
            ) as span:
                request.headers = {**request.headers, _TRACEPARENT: span.traceparent.encode()}
                answer = await handler(self.exchange, door, request, body, self.settings.detail)
                span.status = answer.status
                return answer
        finally:
            self._budget.used -= len(body)

    @property
    def plans(self) -> Mapping[str, Plan]:
        """The pipelines served now."""
        return self._plans()

    def ready(self, name: str) -> bool:
        """Whether a pipeline can answer now, as far as this replica knows."""
        return self.exchange.healthy and self._working(name)

    async def small_body(self, request: Request) -> bytes:
        """The body of a request that may have none; nothing of it is held afterwards."""
        if b"content-length" not in request.headers and b"transfer-encoding" not in request.headers:
            return b""
        body = await request.body(self._budget)
        self._budget.used -= len(body)
        return body

    def door(self, name: str, wanted_version: str | None = None) -> PipelineDoor:
        """The door of a pipeline. Raises GatewayError 404 for one that is not there or gives no answer."""
        plan = self._plan(name)
        door = self._doors.get(name)
        if door is None or door.plan is not plan:
            if plan.answer is None:
                raise GatewayError(
                    404, f"pipeline '{name}' gives no answer", hint="produce to its input topic"
                )
            door = self._doors[name] = PipelineDoor.of(plan)
        if wanted_version is not None and wanted_version != door.version:
            raise GatewayError(
                404,
                f"pipeline '{name}' has no version '{wanted_version[:100]}'",
                hint=f"valid: {door.version}",
            )
        return door

    def _plan(self, name: str) -> Plan:
        plans = self._plans()
        plan = plans.get(name)
        if plan is None:
            raise GatewayError(404, f"no pipeline '{name[:100]}'", hint=nearest(name[:100], plans))
        return plan

    async def _tap(self, request: Request) -> Stream:
        query = request.query()
        check_query(query)
        plan = self._plan(request.params["pipeline"])
        edge = edge_of(plan, request.params["edge"])
        start = parse_start(query.get("from", "latest"), self.exchange.clock_ms())
        limit = parse_limit(query.get("limit"))
        events = open_events(plan, edge, query, private=PRIVATE in request.scopes, writer_of=self._writer_of)
        if len(self._taps) >= MAX_TAPS:
            raise GatewayError(429, f"{MAX_TAPS} taps are open, which is the limit", hint="try later")
        if self.exchange.draining:
            raise GatewayError(503, "the gateway is stopping", hint="try later")
        tap = Tap(self._fabric, edge, start, events, limit)
        self._taps.add(tap)
        try:
            await tap.open()
        except BaseException:
            self._taps.discard(tap)
            raise
        return Stream(tap.parts(self._taps.discard), b"text/event-stream; charset=utf-8")

    def scopes_of(self, request: Request, *, free: bool) -> frozenset[str]:
        """The scopes of the caller. Raises GatewayError 401 without a token where one is needed, 403 for strangers."""
        tokens = self.settings.tokens
        if not tokens:
            _check_local(request.headers)
            return frozenset()
        if free:
            return frozenset()
        kind, _, given = request.headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer":
            for token, scopes in tokens.items():
                if hmac.compare_digest(given.strip(), token.encode()):
                    return scopes
        raise RequestError(
            401,
            "a token is needed",
            hint="Authorization: Bearer TOKEN",
            headers=((b"www-authenticate", b"Bearer"),),
        )


def _check_local(headers: Mapping[bytes, bytes]) -> None:
    """Without a token only programs on this machine are served, and no web page that a browser here has open.

    A page may post to loopback (it cannot hide its Origin), and may read from it under a name that its owner points
    at 127.0.0.1 (it cannot hide that name, which is the Host).
    """
    origin = headers.get(b"origin")
    for value in (headers.get(b"host"), None if origin is None else origin.rpartition(b"//")[2]):
        if value is not None and not is_loopback(_host_of(value.decode("latin-1"))):
            raise GatewayError(
                403,
                f"'{value[:100].decode('latin-1')}' is not this machine",
                hint="set a token to serve others",
            )


def _host_of(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if ":" in address else address


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _needed(provider: Callable[[], Any] | None, name: str) -> Callable[[], Any]:
    if provider is None:
        raise GatewayError(404, f"this gateway serves no {name}")
    return provider


def _json(status: int, document: Any) -> Response:
    return Response(status, orjson.dumps(document))
