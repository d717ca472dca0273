"""Finding what became of a request, by its id, in the topics that hold it: nothing else knows of it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Final, TypeVar

from dataflow.core import headers, ids
from dataflow.core.inprocess import Reply
from dataflow.core.limits import MAX_LOOKUPS
from dataflow.core.shares import WHOLE, Share, read_share, union
from dataflow.gateway.doors import PipelineDoor
from dataflow.gateway.ledger import Accepted
from dataflow.gateway.replies import reply_of
from dataflow.gateway.tail import Tail, offsets_of, read_between, unavailable
from dataflow.planner.plan import ACCEPTED, RESULTS
from dataflow.transport.api import LATEST, Fabric, Message, Position

Value = TypeVar("Value")

# How far clocks of gateways and workers may be apart.
CLOCKS_APART_MS: Final = 60_000
# Requests whose search is remembered, so that whoever comes back often does not read from the beginning each time.
MAX_REMEMBERED: Final = 1_024
# Records of answer edges looked through for an answer that nobody was told of.
MAX_EDGE_RECORDS: Final = 200_000


@dataclass(slots=True)
class Found:
    """The replies to a request's rows as far as they are found; `offset` is where the search goes on.

    A row that went several ways at once has no answer when all of its shares are given back: see `core.shares`.
    """

    rows: int
    offset: int = -1
    replies: dict[bytes, Reply] = field(default_factory=dict)
    back: dict[bytes, tuple[Share, Reply]] = field(default_factory=dict)
    waiting: int = 0
    edges_seen: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, reply: Reply) -> None:
        """The first reply of a row counts."""
        if reply.record_id in self.replies:
            return
        if reply.share and not reply.good:
            before, first = self.back.get(reply.record_id, ((), reply))
            grave = reply.status == headers.STATUS_FAILED and first.status != headers.STATUS_FAILED
            known, told = union((*before, *read_share(reply.share))), reply if grave else first
            self.back[reply.record_id] = known, told
            if known != WHOLE:
                return
            reply = told
        self.replies[reply.record_id] = reply
        self.changed.set()
        self.changed = asyncio.Event()  # each change is an event of its own: several may wait

    async def change(self) -> None:
        """Wait for the next row."""
        await self.changed.wait()

    @property
    def over(self) -> bool:
        return len(self.replies) >= self.rows


class Lookup:
    """Belongs to the gateway's event loop; reading is done in threads."""

    def __init__(self, fabric: Fabric, clock_ms: Callable[[], int]) -> None:
        self._fabric = fabric
        self._clock_ms = clock_ms
        self._reading = asyncio.Semaphore(MAX_LOOKUPS)
        self._found: OrderedDict[str, Found] = OrderedDict()
        self._accepted: OrderedDict[str, Accepted] = OrderedDict()
        self._waiting: dict[bytes, Found] = {}
        self._tail: Tail | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> dict[Position, int]:
        """The ends of the topic of results. Raises RequestError 503 if there is none, TransportError."""
        return await asyncio.to_thread(offsets_of, self._fabric, (RESULTS,), LATEST)

    async def close(self) -> None:
        if self._tail is not None:
            await self._tail.stop()

    async def accepted(self, request_id: str) -> Accepted | None:
        """What was asked under this id."""
        known = self._accepted.get(request_id)
        if known is None:
            async with self._reading:
                known = await asyncio.to_thread(self._find_accepted, request_id)
        if known is not None:
            _remember(self._accepted, request_id, known)
        return known

    async def wait(self, accepted: Accepted, wait_ms: int) -> Found:
        """What is found of a request now, or when it is over, or after `wait_ms`; at once for 0 or less."""
        record_ids = accepted.record_ids()
        found = self._found.get(accepted.id) or self._waiting.get(record_ids[0]) or Found(accepted.rows)
        _remember(self._found, accepted.id, found)
        if found.over:
            return found
        if wait_ms > 0:
            await self._follow()
        found.waiting += 1
        for record_id in record_ids:
            self._waiting[record_id] = found
        try:
            await self._search(accepted, found, set(record_ids))
            until = asyncio.get_running_loop().time() + wait_ms / 1000
            async with asyncio.timeout_at(until):
                while not found.over and wait_ms > 0 and not (accepted.whole and _failed(found)):
                    await found.change()
        except TimeoutError:
            pass
        finally:
            found.waiting -= 1
            for record_id in record_ids if not found.waiting else ():
                self._waiting.pop(record_id, None)
        return found

    async def _follow(self) -> None:
        """Hear of results as they come: before the search, so that none falls between the two."""
        async with self._starting:
            if self._tail is None:
                tail = Tail(self._fabric, (RESULTS,), self._take)
                await tail.start()
                self._tail = tail

    def _take(self, messages: Sequence[Message]) -> None:
        for message in messages:
            found = self._waiting.get(message.key() or b"")
            reply = reply_of(message) if found is not None else None
            if found is not None and reply is not None:
                found.take(reply)

    async def _search(self, accepted: Accepted, found: Found, record_ids: set[bytes]) -> None:
        position = RESULTS, accepted.partition
        last_ms = accepted.deadline_ms + CLOCKS_APART_MS

        def read() -> list[Reply]:
            begin, replies = found.offset, list[Reply]()
            ends = offsets_of(self._fabric, (RESULTS,), LATEST)
            if position not in ends:
                raise unavailable(f"topic '{RESULTS}' has no partition {accepted.partition}")
            if begin < 0:
                since = max(accepted.time_ms - CLOCKS_APART_MS, 0)
                begin = self._fabric.admin().offsets([position], since)[position]
            left = set(record_ids)

            def take(message: Message) -> bool:
                if (message.key() or b"") in record_ids:
                    reply = reply_of(message)
                    if reply is not None:
                        replies.append(reply)
                        if reply.good or not reply.share:
                            left.discard(reply.record_id)
                return not left or message.timestamp()[1] > last_ms

            found.offset = read_between(self._fabric, position, begin, ends[position], take)
            return replies

        async with self._reading:
            replies = await asyncio.to_thread(read)
        for reply in replies:
            found.take(reply)

    async def on_edges(self, door: PipelineDoor, accepted: Accepted, found: Found) -> None:
        """Look for answers on the answer edges themselves, once: a worker that is killed may not have told of them."""
        if found.edges_seen:
            return
        left = {i for i in accepted.record_ids() if i not in found.replies}
        edges = {topic: name for name in door.codecs for topic in door.plan.edges[name].topics}

        def read() -> list[Reply]:
            replies: list[Reply] = []
            seen = 0
            since = max(accepted.time_ms - CLOCKS_APART_MS, 0)
            until = accepted.deadline_ms + CLOCKS_APART_MS
            begins, ends = (offsets_of(self._fabric, tuple(edges), at) for at in (since, until))
            last = offsets_of(self._fabric, tuple(edges), LATEST)

            def take(message: Message) -> bool:
                nonlocal seen
                seen += 1
                reply = _on_edge(message, edges[message.topic()], left)
                if reply is not None:
                    left.discard(reply.record_id)
                    replies.append(reply)
                return not left or seen > MAX_EDGE_RECORDS

            for position, begin in begins.items():
                read_between(self._fabric, position, begin, min(ends[position], last[position]), take)
            return replies

        async with self._reading:
            replies = await asyncio.to_thread(read) if edges and left else []
        found.edges_seen = True
        for reply in replies:
            found.take(reply)

    def _find_accepted(self, request_id: str) -> Accepted | None:
        position = ACCEPTED, 0
        time_ms = ids.time_ms_of(request_id.encode())
        ends = offsets_of(self._fabric, (ACCEPTED,), LATEST)
        begin = self._fabric.admin().offsets([position], time_ms)[position]
        made: list[Accepted] = []

        def take(message: Message) -> bool:
            if message.key() == request_id.encode():
                step = Accepted.read(message.value())
                if step is not None and step.step == "accepted" and step.rows:
                    made.append(step)
                    return True
            return message.timestamp()[1] > time_ms + CLOCKS_APART_MS

        read_between(self._fabric, position, begin, ends[position], take)
        return made[0] if made else None


def _on_edge(message: Message, edge: str, wanted: Set[bytes]) -> Reply | None:
    """The record of an answer edge as the reply to the record that it is, or comes of."""
    carried = dict(message.headers() or ())
    origins = (carried.get(headers.ID, b""), *carried.get(headers.PARENTS, b"").split(b","))
    record_id = next((origin for origin in origins if origin in wanted), None)
    if record_id is None:
        return None
    schema = carried.get(headers.SCHEMA, b"")
    return Reply(record_id, headers.STATUS_OK, message.value(), edge, b"", schema)


def _failed(found: Found) -> bool:
    return any(not reply.good for reply in found.replies.values())


def _remember(kept: OrderedDict[str, Value], request_id: str, value: Value) -> None:
    kept[request_id] = value
    kept.move_to_end(request_id)
    if len(kept) > MAX_REMEMBERED:
        kept.popitem(last=False)
