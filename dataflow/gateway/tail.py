"""Following topics from inside the event loop, and writing to them: what doors share that do not live by replies alone."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from dataflow.core.errors import DataflowError, OffsetOutOfRangeError, RecordTooLargeError
from dataflow.core.limits import MAX_BATCH_RECORDS, MAX_PENDING_REQUESTS
from dataflow.gateway.http import RETRY_AFTER_S, RequestError
from dataflow.transport.api import EARLIEST, LATEST, Consumer, Fabric, Header, Message, Position, Producer

log = logging.getLogger("dataflow.gateway")

# Wake-ups of an idle reader, and how long `stop` may take.
POLL_S: Final = 0.05
# Between attempts to read again once the broker is back.
RETRY_S: Final = 0.5
# Delivery reports are looked for this often while any is outstanding.
REPORT_POLL_S: Final = 0.002
# A broker that does not take a record for this long is away, for whoever waits.
WRITE_TIMEOUT_S: Final = 15.0


class Tail:
    """Reads all partitions of some topics as they grow; `deliver` is called in the event loop, in each partition's order.

    While the broker cannot be read, reading waits and goes on where it stopped. Belongs to the loop of `start`.
    """

    def __init__(
        self, fabric: Fabric, topics: Sequence[str], deliver: Callable[[Sequence[Message]], None]
    ) -> None:
        self._fabric = fabric
        self._topics = topics
        self._deliver = deliver
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dataflow-tail", daemon=True)
        self._next: dict[Position, int] = {}  # the thread's
        self._reached: dict[Position, int] = {}  # the loop's: all before is delivered
        self._moved: asyncio.Event = asyncio.Event()

    async def start(self, since_ms: int = LATEST) -> None:
        """Begin at the end, or at the records of time `since_ms`. Raises TransportError, GatewayError 503."""
        self._loop = asyncio.get_running_loop()
        self._next = await self._offsets(since_ms)
        self._reached = dict(self._next)
        self._thread.start()

    async def ends(self) -> dict[Position, int]:
        """Where the topics end now. Raises as `start`."""
        return await self._offsets(LATEST)

    async def reach(self, offsets: Mapping[Position, int], timeout_s: float) -> None:
        """Wait until all records before `offsets` are delivered. Raises RequestError 503 when they are not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while any(self._reached.get(p, 0) < offset for p, offset in offsets.items()):
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise unavailable("the log is not read fast enough") from None

    async def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    async def _offsets(self, at: int) -> dict[Position, int]:
        return await asyncio.to_thread(offsets_of, self._fabric, self._topics, at)

    def _run(self) -> None:
        while not self._stop.is_set():
            consumer: Consumer | None = None
            try:
                consumer = self._fabric.consumer()
                consumer.assign(self._next)
                self._read(consumer)
            except OffsetOutOfRangeError:
                log.warning("records were deleted before they were read; going on at the first there is")
                self._next = dict.fromkeys(self._next, EARLIEST)
            except DataflowError as error:
                log.warning("following %s: %s", ", ".join(self._topics), error)
                self._stop.wait(RETRY_S)
            finally:
                if consumer is not None:
                    consumer.close()

    def _read(self, consumer: Consumer) -> None:
        assert self._loop is not None, "started"
        positions = list(self._next)
        while not self._stop.is_set():
            messages = consumer.poll(MAX_BATCH_RECORDS, POLL_S)
            # Markers of transactions are no records: where the reading stands is asked, not counted.
            at = {p: offset for p, offset in consumer.position(positions).items() if offset is not None}
            for message in messages:
                place = message.topic(), message.partition()
                at[place] = max(at.get(place, 0), message.offset() + 1)
            moved = any(self._next.get(p) != offset for p, offset in at.items())
            if (messages or moved) and not self._loop.is_closed():
                self._next.update(at)
                self._loop.call_soon_threadsafe(self._take, messages, at)

    def _take(self, messages: Sequence[Message], at: Mapping[Position, int]) -> None:
        if messages:
            self._deliver(messages)
        self._reached.update(at)
        self._moved.set()


def offsets_of(fabric: Fabric, topics: Sequence[str], at: int) -> dict[Position, int]:
    """The offset of each partition at a time, or LATEST or EARLIEST. Raises TransportError, RequestError 503."""
    admin = fabric.admin()
    found = admin.describe(topics)
    missing = [topic for topic in topics if topic not in found]
    if missing:
        raise RequestError(503, f"there is no topic '{missing[0]}' yet", hint="deploy the pipelines again")
    positions = [(name, p) for name, info in found.items() for p in range(info.partitions)]
    return admin.offsets(positions, at)


def read_between(
    fabric: Fabric,
    position: Position,
    begin: int,
    end: int,
    take: Callable[[Message], bool],
    give_up: Callable[[], bool] = lambda: False,
) -> int:
    """Show `take` the records of [begin, end) until it is satisfied; where reading stopped. Blocks; TransportError."""
    if begin >= end:
        return begin
    consumer = fabric.consumer()
    try:
        consumer.assign({position: begin})
        at = begin
        while at < end and not give_up():
            for message in consumer.poll(MAX_BATCH_RECORDS, POLL_S):
                at = message.offset() + 1
                if at > end or take(message):
                    return at
            at = max(at, consumer.position([position])[position] or at)
        return at
    finally:
        consumer.close()


@dataclass(frozen=True, slots=True)
class Record:
    """One record to be written; `partition` -1 lets the key say."""

    topic: str
    value: bytes | None
    key: bytes | None
    headers: list[Header]
    partition: int = -1
    timestamp_ms: int = 0


@dataclass(slots=True)
class _Sent:
    left: int
    done: asyncio.Future[None]
    offsets: list[int] = field(default_factory=list)


class LoopProducer:
    """Writes records and waits for their acknowledgement in the event loop. Belongs to the loop it is used in."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._outstanding = 0
        self._timer: asyncio.TimerHandle | None = None

    async def write(self, records: Sequence[Record]) -> list[int]:
        """The offsets of the records, once all are acknowledged.

        Raises RequestError: 413 for one that is too large, 429 when too many are under way, 503 when the broker does not
        take them; some of them may then be written.
        """
        if self._outstanding and self._outstanding + len(records) > MAX_PENDING_REQUESTS:
            raise RequestError(429, "too many requests are being written", retry_after_s=RETRY_AFTER_S)
        loop = asyncio.get_running_loop()
        sent = _Sent(len(records), loop.create_future(), [-1] * len(records))
        try:
            for index, record in enumerate(records):
                self._producer.send(
                    record.topic,
                    record.value,
                    record.key,
                    record.headers,
                    record.partition,
                    partial(self._delivered, sent, index),
                    record.timestamp_ms,
                )
                self._outstanding += 1
        except RecordTooLargeError as error:
            raise RequestError(413, error.message) from error
        except DataflowError as error:
            raise unavailable(error.message) from error
        finally:
            if self._outstanding and self._timer is None:
                self._timer = loop.call_soon(self._poll)  # type: ignore[assignment]
        try:
            await asyncio.wait_for(sent.done, WRITE_TIMEOUT_S)
        except TimeoutError:
            raise unavailable("the broker did not take the request in time") from None
        return sent.offsets

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.to_thread(self._producer.close)

    def _poll(self) -> None:
        self._producer.poll(0)
        again = asyncio.get_running_loop().call_later
        self._timer = again(REPORT_POLL_S, self._poll) if self._outstanding else None

    def _delivered(self, sent: _Sent, index: int, error: object | None, message: object) -> None:
        self._outstanding -= 1
        sent.left -= 1
        if sent.done.done():
            return
        if error is not None:
            sent.done.set_exception(unavailable(f"the broker did not take the request: {error}"))
            return
        sent.offsets[index] = message.offset()  # type: ignore[attr-defined]
        if not sent.left:
            sent.done.set_result(None)


def unavailable(message: str) -> RequestError:
    return RequestError(503, message, hint="try later", retry_after_s=RETRY_AFTER_S)
