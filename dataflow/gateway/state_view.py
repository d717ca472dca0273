"""Keyed state for people and programs: what a node keeps for a key, from a copy of the changelog partition it is in.

No worker is asked, and none is slowed: a copy is kept per partition that somebody asked about, and read on, read
committed, at each question. So the answer is what was committed when the question came.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from dataflow.codecs.keys import encode_key
from dataflow.core import limits
from dataflow.core.errors import DataflowError, GatewayError, OffsetOutOfRangeError, TopicGoneError, nearest
from dataflow.core.privacy import is_private
from dataflow.gateway.http import Request, RequestError, Response
from dataflow.planner.plan import EdgePlan, Plan
from dataflow.transport.api import EARLIEST, LATEST, Consumer, Fabric, Position
from dataflow.transport.murmur import murmur2_partition

if TYPE_CHECKING:
    from dataflow.state.replica import KeyView, Replica

POLL_RECORDS: Final = 5_000
POLL_S: Final = 0.2
_QUERY: Final = ("key", "raw", "partition")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key's state is: a record key of a node, in one partition of its stage's changelog."""

    node: str
    key: bytes
    changelog: str
    partition: int


def locate(plan: Plan, node: str, text: str, *, raw: str = "", partition: int | None = None) -> Place:
    """The place of a key given as text, as the stream's contract writes it: ``N14228``, ``7``, ``["N14228",7]``.

    raw        "hex" or "utf8": the text is the record key's bytes, whatever the contract says
    partition  where to look, for records that were not placed by their key

    Raises GatewayError 404 for a node that is not there or keeps no state, 400 for what makes no key.
    """
    if node not in plan.nodes:
        raise GatewayError(
            404,
            f"pipeline '{plan.pipeline}' has no node '{node[:100]}'",
            hint=nearest(node[:100], plan.nodes),
        )
    stage = next((s for s in plan.stages if node in s.nodes), None)
    if stage is None or not stage.changelog:
        keeping = [n for s in plan.stages if s.changelog for n in s.nodes]
        raise GatewayError(404, f"node '{node}' keeps no state", hint=_keeping(keeping))
    edge = None if plan.nodes[node].apart else _placing(plan, node)
    key = _raw_key(text, raw) if raw or edge is None else _declared_key(edge, text)
    partitions = edge.partitions if edge is not None else stage.partitions
    if partition is None and plan.nodes[node].apart and partitions > 1:
        raise GatewayError(
            400,
            f"node '{node}' keeps records by id, on the partition where they came",
            hint="say which: partition=0",
        )
    if partition is None:
        partition = murmur2_partition(key, partitions)
    elif not 0 <= partition < stage.partitions:
        raise GatewayError(400, f"partition={partition}", hint=f"valid: 0 to {stage.partitions - 1}")
    return Place(node, key, stage.changelog, partition)


def _keeping(nodes: Sequence[str]) -> str:
    return f"nodes of stages that do: {', '.join(nodes[:12])}" if nodes else "no node of this pipeline does"


def _placing(plan: Plan, node: str) -> EdgePlan | None:
    """The edge whose key is that of the records which reach a node, None where no contract says their key."""
    waiting, seen = [node], {node}
    while waiting:
        for edges in plan.nodes[waiting.pop(0)].inputs.values():
            for name in edges:
                edge = plan.edges[name]
                if edge.key:
                    return edge
                if edge.node and edge.node not in seen:
                    seen.add(edge.node)
                    waiting.append(edge.node)
    return None


def _raw_key(text: str, raw: str) -> bytes:
    if raw in ("", "utf8"):
        return text.encode()
    if raw != "hex":
        raise GatewayError(400, f"raw={raw[:40]}", hint="valid: hex, utf8")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise GatewayError(400, f"key '{text[:100]}' is not hexadecimal", hint="such as 00ff") from None


def _declared_key(edge: EdgePlan, text: str) -> bytes:
    fields = ", ".join(f"{name}: {edge.schema[name].type.describe()}" for name in edge.key)
    wrong = GatewayError(
        400, f"key '{text[:100]}' is not one of ({fields})",
        hint="give several fields as a JSON array, bytes with raw=hex",
    )  # fmt: skip
    cells: Any = text
    if len(edge.key) > 1 or edge.schema[edge.key[0]].type.kind not in ("string", "enum"):
        try:
            cells = orjson.loads(text)
        except orjson.JSONDecodeError:
            pass  # a date or a decimal is written without quotes
    if len(edge.key) == 1 and not isinstance(cells, list):
        cells = [cells]
    if not isinstance(cells, list) or len(cells) != len(edge.key):
        raise wrong
    try:
        key = encode_key(edge.schema, edge.key, dict(zip(edge.key, cells, strict=True)), edge.key_encoding)
    except DataflowError as error:
        raise GatewayError(400, f"{wrong.message}: {error.message}", hint=wrong.hint) from error
    if key is None:
        raise wrong
    return key


def private_fields(plan: Plan, node: str) -> list[str]:
    """Fields labelled private among those that a node reads: its state may hold them."""
    edges = {name for names in plan.nodes[node].inputs.values() for name in names}
    return sorted({f.name for name in edges for f in plan.edges[name].schema if is_private(f)})


class StateView:
    """See the module. Thread-safe: one question at a time."""

    def __init__(self, fabric: Fabric, wait_s: float = limits.STATE_VIEW_WAIT_MS / 1000) -> None:
        self._fabric = fabric
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._replicas: OrderedDict[Position, Replica] = OrderedDict()
        self._consumer: Consumer | None = None

    def read(self, place: Place, now_ms: int) -> dict[str, Any]:
        """The JSON-able view of a key. Raises GatewayError 404 without state, 503 while the copy is being made."""
        with self._lock:
            replica = self._replica(place)
            try:
                self._read_on(place, replica)
            except (OffsetOutOfRangeError, TopicGoneError):
                # Deleted and made anew, or cut: what is here is of another log.
                self._forget((place.changelog, place.partition))
                replica = self._replica(place)
                self._read_on(place, replica)
            view = replica.of_key(
                place.node, place.key, now_ms, limits.MAX_STATE_VIEW_ENTRIES, limits.MAX_STATE_VIEW_BYTES
            )
            if not view.values and not view.timers:
                raise GatewayError(
                    404,
                    f"node '{place.node}' keeps nothing for this key",
                    hint=f"looked in partition {place.partition} of {place.changelog} for key {_shown(place.key)!r}",
                )
            return _document(place, view, replica.next_offset)

    def _replica(self, place: Place) -> Replica:
        """The copy of a partition, an empty one if there is none of this very topic."""
        position = (place.changelog, place.partition)
        info = self._fabric.admin().describe([place.changelog]).get(place.changelog)
        if info is None or place.partition >= info.partitions:
            raise GatewayError(
                404, f"topic '{place.changelog}' is not there", hint="is the pipeline deployed?"
            )
        replica = self._replicas.get(position)
        if replica is not None and (replica.topic_id != info.topic_id or replica.outdated(time.monotonic())):
            self._forget(position)
            replica = None
        if replica is None:
            while len(self._replicas) >= limits.MAX_STATE_VIEWS:
                self._forget(next(iter(self._replicas)))
            from dataflow.state.replica import Replica  # 4 MB that nobody needs who never asks

            replica = self._replicas[position] = Replica(*position, info.topic_id, time.monotonic())
        self._replicas.move_to_end(position)
        return replica

    def _forget(self, position: Position) -> None:
        replica = self._replicas.pop(position, None)
        if replica is not None:
            replica.close()

    def _read_on(self, place: Place, replica: Replica) -> None:
        """Read what was committed since. Raises RequestError 503 if that takes too long; the next question goes on."""
        position = (place.changelog, place.partition)
        admin = self._fabric.admin()
        end = admin.offsets([position], LATEST)[position]
        if replica.next_offset > end:
            raise OffsetOutOfRangeError(f"{place.changelog}[{place.partition}] ends at {end}")
        if self._consumer is None:
            self._consumer = self._fabric.consumer()
        consumer = self._consumer
        consumer.ends()
        consumer.assign({position: replica.next_offset or admin.offsets([position], EARLIEST)[position]})
        until = time.monotonic() + self._wait_s
        at = replica.next_offset
        try:
            # The end that the consumer tells is that of what is committed; an open transaction is beyond it.
            while at < end:
                messages = consumer.poll(POLL_RECORDS, POLL_S)
                ended = position in consumer.ends()
                at = max(at, consumer.position([position])[position] or 0)
                if messages or at > replica.next_offset:
                    replica.apply([(m.offset(), m.key(), m.value()) for m in messages], at)
                if ended:
                    break
                if at < end and time.monotonic() > until:
                    raise RequestError(
                        503, f"the copy of {place.changelog} [{place.partition}] is at offset {at} of {end}",
                        hint="ask again, it goes on from there", retry_after_s=1,
                    )  # fmt: skip
            replica.read_at(time.monotonic())
        finally:
            consumer.assign({})

    def close(self) -> None:
        with self._lock:
            for position in list(self._replicas):
                self._forget(position)
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None


def _document(place: Place, view: KeyView, next_offset: int) -> dict[str, Any]:
    return {
        "node": place.node,
        "key": _shown(place.key),
        "changelog": place.changelog,
        "partition": place.partition,
        "offset": next_offset,
        "watermark_ms": view.watermark_ms,
        "values": [
            {
                "name": v.name,
                "value": jsonable(v.value),
                **({"expires_ms": v.expires_ms} if v.expires_ms else {}),
            }
            for v in view.values
        ],
        "timers": [{"name": t.name, "clock": t.clock, "at_ms": t.at_ms} for t in view.timers],
        "cut": view.cut,
    }


def _shown(key: bytes) -> str:
    """Text if it is some, else hexadecimal."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return key.hex()
    return text if text.isprintable() else key.hex()


def jsonable(value: Any) -> Any:
    """Bytes as base64, keys of maps as text."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [jsonable(item) for item in value]
    if isinstance(value, dict):
        return {k if isinstance(k, str) else str(jsonable(k)): jsonable(item) for k, item in value.items()}
    return value


class StateDoor:
    """``GET /state/...`` of one gateway. Belongs to its event loop."""

    def __init__(self, fabric: Fabric) -> None:
        self._view = StateView(fabric)
        self._turn = asyncio.Lock()
        self._callers = 0

    async def answer(self, plan: Plan, request: Request, now_ms: int, *, private: bool) -> Response:
        """Raises GatewayError 400, 403, 404, 429 or 503."""
        query = request.query()
        for name in query:
            if name not in _QUERY:
                raise GatewayError(400, f"unknown query parameter '{name[:100]}'", hint=nearest(name, _QUERY))
        text = request.params.get("key", query.get("key"))
        if text is None:
            raise GatewayError(400, "no key is given", hint="/state/PIPELINE/NODE/KEY, or ?key=KEY")
        where = query.get("partition")
        if where is not None and not (where.isascii() and where.isdigit() and len(where) < 7):
            raise GatewayError(400, f"partition={where[:40]} is no number")
        place = locate(
            plan,
            request.params["node"],
            text,
            raw=query.get("raw", ""),
            partition=None if where is None else int(where),
        )
        hidden = private_fields(plan, place.node)
        if hidden and not private:
            raise GatewayError(
                403,
                f"node '{place.node}' reads private fields ({', '.join(hidden[:5])}): its state is not shown",
                hint="use a token with scope private",
            )
        if self._callers >= limits.MAX_STATE_VIEW_CALLERS:
            raise RequestError(429, "too many ask for state at once", retry_after_s=1)
        self._callers += 1
        try:
            async with self._turn:
                document = await asyncio.to_thread(self._view.read, place, now_ms)
                body = await asyncio.to_thread(orjson.dumps, {"pipeline": plan.pipeline, **document})
        finally:
            self._callers -= 1
        return Response(200, body)

    async def close(self) -> None:
        await asyncio.to_thread(self._view.close)
