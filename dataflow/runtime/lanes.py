"""The hand-off: requests of a gateway in this process are written and run without being fetched back.

A lane is a partition that this stage owns, of the topic that only gateways write to. While it was read to its end, and nobody else writes to it, requests are
written to it by the stage itself and given to the partition's task at once; fetching from it is paused. One producer
writes them in the order they run in, so each delivery report must bear the offset after the last. One that does not
says that somebody else wrote in between: then nothing more is given to that lane, the reports that are due are waited
for, and it is read again from the first offset that is not ours, past what ran already. A lane that had no request for
a moment is read, too: what strangers wrote is found by that. Kafka's log stays the truth: what a process had in hand
when it died lies there, and its offset is not committed.

Exactly once a request may leave nothing before Kafka has taken it: it is given to its task when its report is there, and
only if its offset is the expected one. What lies behind a stranger's record is fetched, as that is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, cast

from dataflow.core import headers, limits
from dataflow.core.errors import TransportError
from dataflow.core.inprocess import Given, Handover
from dataflow.runtime.writer import Barrier
from dataflow.transport.api import Consumer, Message, Position, Producer

# So long after the last request the stage still listens for them first, and to its consumer now and then.
ATTENTIVE_S: Final = 2.0
# ... this often.
LOOK_S: Final = 0.005
# A lane without requests for so long is read from.
QUIET_S: Final = 0.05
# Requests wait so long for a lane that is read to its end; if none is by then, others write there all the time,
HOLD_S: Final = 0.25
# and it is tried again after this, each time later.
RETRY_S: Final = 1.0
RETRY_MAX_S: Final = 8.0
# One wait for the reports of requests that may not run before.
REPORT_WAIT_S: Final = 0.001


class GivenRecord:
    """A request's record, read as a fetched one is. `offset` is known once the broker has said it, -1 before."""

    __slots__ = ("_headers", "_position", "_time_ms", "_value", "at")

    def __init__(
        self, position: Position, value: bytes | None, found: list[tuple[str, bytes]], time_ms: int
    ) -> None:
        self._position = position
        self._value = value
        self._headers = found
        self._time_ms = time_ms
        self.at = -1

    def topic(self) -> str:
        return self._position[0]

    def partition(self) -> int:
        return self._position[1]

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[tuple[str, bytes]]:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 1, self._time_ms


class Handed(list[Message]):
    """Requests given to a task as one batch.

    barrier  counts the acknowledgements of the requests themselves, and then those of their outputs
    flush    waits for those of the requests
    ends     where the partition stands once they are done: as far as their offsets are known to be those expected
    """

    def __init__(self, flush: Callable[[float], int]) -> None:
        super().__init__()
        self.flush = flush
        self.barrier = Barrier()
        self.ends: dict[Position, int] = {}


class Worked(Protocol):
    """What a lane needs of its task."""

    @property
    def full(self) -> bool: ...
    def take(self, position: Position, messages: Sequence[Message]) -> None: ...


class Lane:
    """One partition. `next` is the offset that the next report must bear; `eager`: requests run before their reports."""

    __slots__ = ("at_end", "beyond", "eager", "next", "paused", "position", "task", "unreported", "used_s")

    def __init__(self, position: Position, task: Worked, end: int, *, eager: bool) -> None:
        self.position = position
        self.eager = eager
        self.task = task
        self.next = end
        self.at_end = True  # and nobody else has written since, as far as is known
        self.paused = False
        self.unreported = 0
        self.beyond: set[int] = set()  # offsets that ran already, of those that will be fetched
        self.used_s = 0.0

    @property
    def ready(self) -> bool:
        """Whether it takes requests now. Those that must be acknowledged first go batch by batch."""
        return not self.task.full and (self.eager or not self.unreported)

    def write(self, given: Iterable[Given], producer: Producer, now_s: float) -> Handed:
        """Send the records of requests to this lane's partition, as one batch."""
        handed, position = Handed(producer.flush), self.position
        topic, partition = position
        barrier, now_ms = handed.barrier, int(now_s * 1000)
        for request in given:
            for record_id, value in zip(request.record_ids, request.values, strict=True):
                found = [
                    (headers.ID, record_id),
                    (headers.REPLY_TO, request.reply_prefix + record_id),
                    *request.shared,
                ]
                record = GivenRecord(position, value, found, now_ms)
                handed.append(record)
                # Counted before the call: a full queue serves reports from within it.
                barrier.left += 1
                self.unreported += 1
                told = partial(self._reported, handed, record, request)
                producer.send(topic, value, None, list(found), partition, told)
        return handed

    def _reported(
        self, handed: Handed, record: GivenRecord, request: Given, error: object | None, message: object
    ) -> None:
        self.unreported -= 1
        if error is None:
            record.at = cast("Message", message).offset()
            if self.at_end and record.at == self.next:
                self.next += 1
                handed.ends[self.position] = self.next
            else:
                self.at_end = False
                if self.eager:
                    self.beyond.add(record.at)
        request.delivered(error)
        # One that was refused never was there: its caller knows, and there is no offset of it to hold back.
        handed.barrier.acknowledged(None, message)


class Lanes:
    """Stands before a stage's consumer: `poll` gives the tasks what requests there are, and returns what is fetched.

    Belongs to the stage's thread. `tasks` are those of the stage, by partition, as they are now. Not `eager`: requests
    run only once they are acknowledged; their `producer`, which is theirs alone, is idempotent then.
    """

    def __init__(
        self,
        consumer: Consumer,
        handover: Handover,
        producer: Producer,
        tasks: Mapping[int, Worked],
        *,
        eager: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._eager = eager
        self._due: list[tuple[Lane, Handed]] = []  # not yet acknowledged, and so not given
        self._consumer = consumer
        self._handover = handover
        self._producer = producer
        self._tasks = tasks
        self._lanes: dict[Position, Lane] = {}
        self._attentive_until = 0.0
        self._looked_s = 0.0
        self._usable_s = 0.0  # when a lane was at its end for the last time
        self._listening_s = 0.0  # since when requests are taken
        self._retry_at = 0.0
        self._retry_s = RETRY_S

    def poll(self, max_records: int, timeout_s: float) -> Sequence[Message]:
        """As `Consumer.poll`; requests are handed to a task meanwhile, and end the wait."""
        now = self._clock()
        if self._handover.wanted:
            self._listen(now)
        if self._due:
            self._give_due()
            timeout_s = 0.0
        if self._lanes:
            self._read_again(now)
        if not self._takes(now):
            self._handover.close()
            return self._fetched(max_records, timeout_s)
        self._handover.open()
        ready = [lane for lane in self._lanes.values() if lane.at_end and lane.ready]
        if not ready:
            return self._fetched(max_records, min(timeout_s, LOOK_S))
        given = self._handover.take(limits.MAX_BATCH_RECORDS, min(timeout_s, LOOK_S))
        if given:
            self._attentive_until = now + ATTENTIVE_S
            self._hand(min(ready, key=lambda lane: lane.used_s), given)
        if now - self._looked_s < LOOK_S:
            return ()
        self._looked_s = now
        return self._fetched(max_records, 0.0)

    def _listen(self, now: float) -> None:
        """A gateway has requests: get ready for them, where there is a partition for them."""
        self._handover.wanted = False
        if not self._tasks or now < self._retry_at:
            return
        self._attentive_until, self._usable_s, self._listening_s = now + ATTENTIVE_S, now, now
        ours = [(self._handover.topic, partition) for partition in self._tasks]
        for position, end in self._consumer.position(ours).items():
            lane = self._lanes.get(position)
            if lane is not None and self._current(lane):
                # The client's position is not moved by what was handed.
                end = max(lane.next, end or 0)
                if lane.at_end or lane.paused:
                    continue
            if end is not None:
                self._reached(position, end, at_end=self._consumer.high(position) == end)

    def _takes(self, now: float) -> bool:
        """Whether requests are taken, if only to wait for a lane that will soon be at its end."""
        if now > self._attentive_until:
            return False
        if any(lane.at_end for lane in self._lanes.values()):
            self._usable_s = now
        elif now - self._usable_s > HOLD_S:
            lasted = now - self._listening_s > ATTENTIVE_S
            self._retry_s = RETRY_S if lasted else min(self._retry_s * 2, RETRY_MAX_S)
            self._attentive_until, self._retry_at = 0.0, now + self._retry_s
            return False
        return True

    def _read_again(self, now: float) -> None:
        """Fetch from lanes that somebody else wrote to, or had no request for a moment."""
        self._lanes = {p: lane for p, lane in self._lanes.items() if self._current(lane)}
        for lane in self._lanes.values():
            over = lane.paused and not lane.unreported and not lane.task.full
            if over and (not lane.at_end or now - lane.used_s > QUIET_S):
                lane.paused = False
                self._consumer.seek(lane.position, lane.next)
                self._consumer.resume([lane.position])

    def _hand(self, lane: Lane, given: Sequence[Given]) -> None:
        if not lane.paused:
            lane.paused = True
            self._consumer.pause([lane.position])
        lane.used_s = self._clock()
        try:
            handed = lane.write(given, self._producer, time.time())
        except TransportError as error:
            for request in given:
                request.delivered(error)
            raise
        if self._eager:
            lane.task.take(lane.position, handed)
        else:
            self._due.append((lane, handed))

    def _give_due(self) -> None:
        """Give what is acknowledged by now to its task; of a batch with a stranger's record in it what is before that."""
        self._producer.poll(REPORT_WAIT_S)
        due, self._due = self._due, []
        for lane, handed in due:
            if not handed.barrier.through:
                self._due.append((lane, handed))
                continue
            end = handed.ends.get(lane.position, 0)
            handed[:] = [record for record in handed if 0 <= record.offset() < end]
            if handed and self._current(lane):
                lane.task.take(lane.position, handed)

    def serve_reports(self, wait_s: float) -> None:
        """Take in what is acknowledged by now; waits up to `wait_s` for the first if any is due."""
        waits = any(lane.unreported for lane in self._lanes.values())
        self._producer.poll(wait_s if waits else 0)

    def _fetched(self, max_records: int, timeout_s: float) -> Sequence[Message]:
        messages = self._consumer.poll(max_records, timeout_s)
        if not messages:
            return messages
        fresh = messages
        if any(lane.beyond for lane in self._lanes.values()):
            fresh = [m for m in messages if not self._ran(m)]
        if self._handover.takes:
            for position, end in {(m.topic(), m.partition()): m.offset() + 1 for m in messages}.items():
                self._reached(position, end, at_end=self._consumer.high(position) == end)
        else:
            for lane in self._lanes.values():
                lane.at_end = lane.at_end and lane.paused
        return fresh

    def _reached(self, position: Position, end: int, *, at_end: bool) -> None:
        """All of a partition before `end` is fetched."""
        lane, task = self._lanes.get(position), self._tasks.get(position[1])
        if position[0] != self._handover.topic:
            return
        if lane is not None and self._current(lane):
            lane.next, lane.at_end = end, at_end
            lane.beyond = {offset for offset in lane.beyond if offset >= end}
        elif task is not None:
            lane = self._lanes[position] = Lane(position, task, end, eager=self._eager)
            lane.at_end = at_end

    def _ran(self, message: Message) -> bool:
        lane = self._lanes.get((message.topic(), message.partition()))
        return lane is not None and message.offset() in lane.beyond

    def ends(self) -> dict[Position, int]:
        """As `Consumer.ends`. A lane that is read to its end can take requests."""
        reached = self._consumer.ends()
        for position, end in list(reached.items()):
            lane = self._lanes.get(position)
            if lane is not None and lane.paused and self._current(lane):
                del reached[position]  # from before it was paused
            else:
                self._reached(position, end, at_end=True)
        return reached

    def resume(self, positions: Iterable[Position]) -> None:
        """As `Consumer.resume`, but for lanes that are not to be fetched from."""
        handed = {p for p, lane in self._lanes.items() if lane.paused and self._current(lane)}
        self._consumer.resume([p for p in positions if p not in handed])

    def _current(self, lane: Lane) -> bool:
        return self._tasks.get(lane.position[1]) is lane.task

    def close(self) -> None:
        """Give back what was not taken, and leave the group."""
        self._handover.close()
        self._consumer.close()
