"""Requests out to the log, replies back to their callers: the one place where records, time and waiting meet.

Everything runs in the event loop but the reply reader's thread. The producer is polled from here too, with no wait:
a thread of its own would only take the GIL from the loop, and what a delivery report says is news only when it failed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from dataflow.core import headers, ids, limits
from dataflow.core.errors import DataflowError, RecordTooLargeError
from dataflow.core.inprocess import Given, InProcess, Reply
from dataflow.core.schema import Column
from dataflow.core.shares import read_share
from dataflow.gateway.correlation import Correlator, Pending
from dataflow.gateway.doors import PipelineDoor
from dataflow.gateway.http import RETRY_AFTER_S, RequestError
from dataflow.gateway.replies import ReplyReader
from dataflow.gateway.together import Ask, Asked, Waiter, decode, encoded
from dataflow.transport.api import Fabric, Position, Producer

# Delivery reports are looked for this often while any is outstanding.
REPORT_POLL_S: Final = 0.02
# `Producer.send` waits when its queue is full, which here would stop every caller: refuse well before.
MAX_UNSENT_RECORDS: Final = limits.PRODUCER_QUEUE_RECORDS * 3 // 4
MAX_UNSENT_BYTES: Final = limits.PRODUCER_QUEUE_KBYTES * 1024 * 3 // 4


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Exchange:
    """One gateway's requests in flight. Not thread-safe: it belongs to the event loop that called `start`."""

    def __init__(
        self,
        fabric: Fabric,
        reply_position: Position,
        *,
        inside: InProcess | None = None,
        max_pending: int = limits.MAX_PENDING_REQUESTS,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._fabric = fabric
        self._inside = inside or InProcess(handing=False)
        self._reply_position = reply_position
        self._reply_prefix = f"{reply_position[0]}/{reply_position[1]}/".encode()
        self.clock_ms = clock_ms
        self._timer: asyncio.TimerHandle | None = None
        self._timer_deadline_ms = 0
        self._report_timer: asyncio.TimerHandle | None = None
        self._unsent: list[Asked] = []
        self._unsent_records = 0
        self._unsent_bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._producers: dict[bool, Producer] = {}  # by whether it is idempotent
        self._reader: ReplyReader | None = None
        self.pending: Final[Correlator[Reply]] = Correlator(max_pending)
        # By record id: who takes all replies to a record, which then is none of `pending`.
        self.listeners: Final[dict[bytes, Callable[[Reply], None]]] = {}
        self.draining = False

    @property
    def reply_prefix(self) -> bytes:
        """Where replies to this gateway go; a record's id follows."""
        return self._reply_prefix

    @property
    def healthy(self) -> bool:
        return self._reader is not None and self._reader.healthy and not self.draining

    async def start(self) -> None:
        """Connect and find the end of the reply partition. Raises TransportError."""
        self._loop = asyncio.get_running_loop()
        self._producers[False] = await asyncio.to_thread(partial(self._fabric.producer, single_flight=True))
        self._reader = ReplyReader(self._fabric, self._reply_position, self.deliver, self._loop)
        await asyncio.to_thread(self._reader.start)
        self._inside.desk.open(self._reply_prefix, self._waits, self._deliver_soon)

    async def drain(self) -> None:
        """Take no more requests and return once each that is in flight has its answer or its deadline."""
        self.draining = True
        while len(self.pending):
            await asyncio.sleep(REPORT_POLL_S)

    async def close(self) -> None:
        """Stop at once; whoever still waits is told 503."""
        self.draining = True
        self._inside.desk.close()
        for timer in (self._timer, self._report_timer):
            if timer is not None:
                timer.cancel()
        if self._reader is not None:
            await asyncio.to_thread(self._reader.stop)
        for pending in self.pending.in_flight():
            self.pending.close(pending)
            self._wake(pending, _unavailable("the gateway is stopping", pending))
        for producer in self._producers.values():
            await asyncio.to_thread(producer.close)

    async def ask(
        self, door: PipelineDoor, columns: Mapping[str, Column], rows: int, ask: Ask
    ) -> Pending[Reply]:
        """Write the rows as records and wait: the ended request, with a reply per row.

        When `ask.whole`, rows after a bad reply may have none; otherwise rows without an answer at the deadline.
        Raises GatewayError: 400 for a row that cannot be encoded, 413 for one too large, 429 or 503 when full or the
        broker is away, 504 for a whole request at its deadline.
        """
        self._check_open()
        now = self.clock_ms()
        request_id = ids.mint(now)
        record_ids = (
            [request_id]
            if rows == 1
            else [ids.child(request_id, "gateway", "in", index) for index in range(rows)]
        )
        pending = self.pending.open(request_id, record_ids, ask.deadline_ms, now, whole=ask.whole)
        assert self._loop is not None, "started"
        waiter = self._loop.create_future()
        pending.waiter = Waiter(waiter, door)
        try:
            self._unsent.append(Asked(door, pending, columns, rows, ask))
            if len(self._unsent) == 1:
                # Requests that came in the same turn of the loop go out together: they are encoded at once, and the
                # broker, the worker and the reply reader have one batch where each would have had one record many times.
                self._loop.call_soon(self._send_all)
            self._schedule(ask.deadline_ms, now)
            await waiter
        finally:
            self.pending.close(pending)  # a caller who went away, or a record that could not be sent
        return pending

    def _check_open(self) -> None:
        if self.draining or not self._producers:
            raise _unavailable("the gateway is stopping" if self.draining else "the gateway is starting")
        if self._reader is None or not self._reader.healthy:
            raise _unavailable("the broker is away")

    def _check_room(self, values: Sequence[bytes | None]) -> None:
        rows, size = len(values), sum(len(value) for value in values if value is not None)
        # One request alone may be larger than the limit: it is let through when nothing else waits.
        full = (
            self._unsent_records + rows > MAX_UNSENT_RECORDS or self._unsent_bytes + size > MAX_UNSENT_BYTES
        )
        if full and self._unsent_records:
            raise _unavailable("the broker does not keep up with the requests")

    def _send_all(self) -> None:
        unsent, self._unsent = self._unsent, []
        doors: dict[int, list[Asked]] = {}
        for asked in unsent:
            if asked.pending.open:  # its caller did not go away meanwhile
                doors.setdefault(id(asked.door), []).append(asked)
        for group in doors.values():
            for asked, values in zip(group, encoded(group), strict=True):
                try:
                    if isinstance(values, Exception):
                        raise values
                    self._check_room(values)
                    door = asked.door
                    keys = door.keys(asked.columns, asked.rows) if door.key else None
                    if keys is not None or not self._given(door, asked.pending, values, asked.ask):
                        self._send(door, asked.pending, values, keys, asked.ask)
                except Exception as error:  # noqa: BLE001 - its caller is told; the others are not to wait for it
                    self._fail(asked.pending, error)
        self._sent()

    def _sent(self) -> None:
        self._poll_producers()
        if self._unsent_records and self._report_timer is None:
            assert self._loop is not None, "started"
            self._report_timer = self._loop.call_later(REPORT_POLL_S, self._poll_reports)

    def _fail(self, pending: Pending[Reply], error: Exception) -> None:
        if self.pending.close(pending):
            self._wake(pending, error)

    def _given(
        self, door: PipelineDoor, pending: Pending[Reply], values: Sequence[bytes | None], ask: Ask
    ) -> bool:
        """Give the request to the stage of this process that reads it, if there is one that takes it at once."""
        handover = self._inside.to(door.name, door.version)
        if handover is None or len(values) > limits.MAX_BATCH_RECORDS:
            return False

        def delivered(error: object | None) -> None:
            if error is not None:
                self._soon(self._refused, pending, error)

        def back() -> None:
            self._soon(self._send_now, door, pending, values, ask)

        shared = _shared(door, ask)
        given = Given(pending.record_ids, values, self._reply_prefix, shared, delivered, back)
        # Its stage, which may be at work, is who hears of the acknowledgements; of a refusal it tells.
        pending.delivered = len(values)
        if handover.give(given):
            return True
        pending.delivered = 0
        return False

    def _send_now(
        self, door: PipelineDoor, pending: Pending[Reply], values: Sequence[bytes | None], ask: Ask
    ) -> None:
        """Write by way of Kafka what a stage gave back."""
        pending.delivered = 0
        if pending.open:
            try:
                self._send(door, pending, values, None, ask)
            except RequestError as error:
                self._fail(pending, error)
            self._sent()

    def _send(
        self,
        door: PipelineDoor,
        pending: Pending[Reply],
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None,
        ask: Ask,
    ) -> None:
        producer = self._producer_for(door)
        turn = next(door.turns)
        shared = _shared(door, ask)
        try:
            for row, record_id in enumerate(pending.record_ids):
                value = values[row]
                key = None if keys is None else keys[row]
                size = len(value) if value is not None else 0
                producer.send(
                    door.topic,
                    value,
                    key,
                    [(headers.ID, record_id), (headers.REPLY_TO, self._reply_prefix + record_id), *shared],
                    -1 if key is not None else door.partition_of(turn, row),
                    partial(self._delivered, pending, size),
                )
                self._unsent_records += 1
                self._unsent_bytes += size
        except RecordTooLargeError as error:
            raise RequestError(413, f"row {row}: {error.message}", record_id=pending.request_id) from error
        except DataflowError as error:
            raise _unavailable(error.message, pending) from error

    def _producer_for(self, door: PipelineDoor) -> Producer:
        """At least once, a request that a retry of the client's writes twice may run twice; exactly once it must not be there twice."""
        exactly_once = door.plan.delivery == "exactly_once"
        if exactly_once not in self._producers:
            self._producers[exactly_once] = self._fabric.producer()
        return self._producers[exactly_once]

    def _poll_producers(self) -> None:
        for producer in self._producers.values():
            producer.poll(0)

    def _poll_reports(self) -> None:
        assert self._loop is not None, "started"
        self._poll_producers()
        self._report_timer = (
            self._loop.call_later(REPORT_POLL_S, self._poll_reports) if self._unsent_records else None
        )

    def _delivered(self, pending: Pending[Reply], size: int, error: object | None, message: object) -> None:
        del message
        self._unsent_records -= 1
        self._unsent_bytes -= size
        if error is None:
            pending.delivered += 1
        else:
            self._refused(pending, error)

    def _refused(self, pending: Pending[Reply], error: object) -> None:
        self._fail(pending, _unavailable(f"the broker did not take the request: {error}", pending))

    def _waits(self, record_id: bytes) -> bool:
        """Whether the reply to a record is waited for here. From any thread."""
        return self.pending.waits(record_id) or record_id in self.listeners

    def _deliver_soon(self, replies: Sequence[Reply]) -> None:
        """`deliver`, from any thread."""
        self._soon(self.deliver, replies)

    def _soon(self, call: Callable[..., None], *arguments: object) -> None:
        """Have the event loop call it, from any thread."""
        assert self._loop is not None, "started"
        # A loop that has ended told all who waited; the stage that brings something late goes on.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    def deliver(self, replies: Sequence[Reply]) -> None:
        """Take replies in, from whatever brought them."""
        resolve, listeners = self.pending.resolve, self.listeners
        all_ended = []
        for reply in replies:
            if listeners and reply.record_id in listeners:
                listeners[reply.record_id](reply)
                continue
            if reply.share and not reply.good:
                grave = reply.status == headers.STATUS_FAILED
                ended = self.pending.give_back(reply.record_id, read_share(reply.share), reply, grave=grave)
            else:
                ended = resolve(reply.record_id, reply, good=reply.good)
            if ended is not None:
                all_ended.append(ended)
        if len(all_ended) > 1:
            decode(all_ended)
        for ended in all_ended:
            self._wake(ended, None)

    def _schedule(self, deadline_ms: int, now: int) -> None:
        if self._timer is None or deadline_ms < self._timer_deadline_ms:
            if self._timer is not None:
                self._timer.cancel()
            assert self._loop is not None, "started"
            self._timer_deadline_ms = deadline_ms
            self._timer = self._loop.call_later(max(deadline_ms - now, 0) / 1000, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._poll_producers()  # or what the broker took just now would count as not taken
        now = self.clock_ms()
        for pending in self.pending.expire(now):
            if pending.delivered < len(pending.record_ids) or not (self._reader and self._reader.healthy):
                self._wake(pending, _unavailable("the broker did not take the request in time", pending))
            elif pending.whole:
                message = "no answer at the deadline"
                self._wake(pending, RequestError(504, message, record_id=pending.request_id))
            else:
                self._wake(pending, None)
        following = self.pending.next_deadline()
        if following is not None:
            # At least a ms ahead: the loop's clock and the wall clock need not agree on "now".
            self._schedule(following, min(now, following - 1))

    def _wake(self, pending: Pending[Reply], error: Exception | None) -> None:
        waiter = pending.waiter
        assert isinstance(waiter, Waiter), "set by ask"
        if waiter.future.done():
            return
        if error is None:
            waiter.future.set_result(None)
        else:
            waiter.future.set_exception(error)


def _unavailable(message: str, pending: Pending[Reply] | None = None) -> RequestError:
    record_id = b"" if pending is None else pending.request_id
    return RequestError(503, message, hint="try later", record_id=record_id, retry_after_s=RETRY_AFTER_S)


def _shared(door: PipelineDoor, ask: Ask) -> list[tuple[str, bytes]]:
    """The headers that all records of a request have."""
    schema = ((headers.SCHEMA, door.codec.fingerprint),) if door.codec.fingerprint else ()
    return [(headers.DEADLINE, str(ask.deadline_ms).encode()), *ask.headers, *schema]
