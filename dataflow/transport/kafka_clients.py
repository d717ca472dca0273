"""Producer and consumer over confluent-kafka's synchronous clients."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import confluent_kafka as ck

from dataflow.core import limits
from dataflow.core.errors import FencedError, OffsetOutOfRangeError, RecordTooLargeError, TopicGoneError
from dataflow.transport.api import EARLIEST, LATEST, Delivered, Header, Message, Position, Rebalance
from dataflow.transport.kafka_admin import ADMIN_TIMEOUT_S
from dataflow.transport.kafka_errors import (
    FENCED,
    GONE_ERRORS,
    OFFSET_ERRORS,
    PASSING_ERRORS,
    TOO_LARGE,
    refused,
    translated,
)
from dataflow.transport.kafka_signs import Signs, leave_behind

log = logging.getLogger("dataflow.kafka")

# A member that the group refused learns with a heartbeat or two that it has lost its partitions.
MAX_FENCED_S: Final = 10.0
# Where nobody waits, a commit whose answer does not come by then is sent again: around the death of a coordinator the
# client may never give one, and without new records there would be no other commit.
COMMIT_ANSWER_S: Final = 5.0


class KafkaProducer:
    doing = "writing"
    """What it is at when the client fails for good."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.client = ck.Producer(dict(settings), logger=log)
        self._produce = self.client.produce

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
        while True:
            try:
                self._produce(
                    topic, value, key, partition, on_delivery, timestamp=timestamp_ms, headers=headers
                )
                return
            except BufferError:  # our own queue is full: the broker is slower than we are
                self.poll(0.05)
            except ck.KafkaException as error:
                kafka_error = error.args[0]
                if kafka_error.code() in TOO_LARGE:
                    raise RecordTooLargeError(
                        f"a record of {len(value or b'')} bytes for topic '{topic}'"
                    ) from error
                raise translated(kafka_error, f"writing to topic '{topic}'") from error

    def poll(self, timeout_s: float) -> int:
        return self._serve(self.client.poll, timeout_s)

    def flush(self, timeout_s: float) -> int:
        return self._serve(self.client.flush, timeout_s)

    @property
    def under_way(self) -> int:
        """Records that are not acknowledged, and reports that are not served."""
        return len(self.client)

    def _serve(self, call: Callable[[float], int], timeout_s: float) -> int:
        """A call that serves reports, from which the client raises its fatal errors: between two as a SystemError's cause."""
        try:
            return call(timeout_s)
        except (ck.KafkaException, SystemError) as error:
            cause = error if isinstance(error, ck.KafkaException) else error.__cause__
            if not isinstance(cause, ck.KafkaException):
                raise
            raise refused(cause.args[0], self.doing) from error

    def close(self) -> None:
        self.client.flush(limits.DRAIN_TIMEOUT_MS / 1000)
        self.client.close()


@dataclass(slots=True)
class _Asked:
    """The newest offset of a partition that is to be committed, not known to be, and when it is sent again: 0 is now.

    It goes along with the next commit then. Always the newest: an older one after it would lead back.
    """

    offset: int
    again_s: float


class KafkaConsumer:
    def __init__(self, settings: Mapping[str, Any], start: int) -> None:
        self._signs = Signs(int(settings.get("log_level", 3)), time.monotonic())
        own = {**self._signs.settings(), "on_commit": self._on_commit}
        self.client = ck.Consumer({**settings, **own}, logger=self._signs)
        # A member gives up all it owns whenever the group changes.
        self._eager = settings.get("partition.assignment.strategy") == "range"
        self._start = start
        self._asked: dict[Position, _Asked] = {}
        # The newest offset that is known to be committed, of what was asked for since it is ours: -1 where none is.
        self._confirmed: dict[Position, int] = {}
        self._gone: set[Position] = set()
        self._starts: dict[Position, int] = {}
        self._topics: tuple[str, ...] = ()
        self._told: dict[str, Callable[..., None]] = {}
        # Where an end was reached beyond the last record: transaction markers and compacted records take offsets too.
        self._ends: dict[Position, int] = {}
        self._new_ends: dict[Position, int] = {}
        self._raised: BaseException | None = None
        self._fenced_s: float | None = (
            None  # when the group first refused us, not yet followed by a rebalance
        )

    def subscribe(self, topics: Sequence[str], rebalance: Rebalance) -> None:
        self._topics = tuple(topics)

        def assigned(consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
            rebalance.starting(_positions(partitions))
            committed = self._committed(partitions) if partitions else []
            start = ck.OFFSET_BEGINNING if self._start == EARLIEST else ck.OFFSET_END
            for partition in committed:
                if partition.error is not None:  # taken for "none committed", everything would run again
                    raise translated(partition.error, f"asking the offset of {partition.topic}")
                if partition.offset < 0:
                    partition.offset = start
                self._starts[partition.topic, partition.partition] = partition.offset
            if self._eager:
                consumer.assign(committed)
            else:
                consumer.incremental_assign(committed)
            rebalance.assigned(_positions(committed))

        def revoked(consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
            rebalance.revoked(_positions(partitions))
            leave(consumer, partitions)

        def lost(consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
            rebalance.lost(_positions(partitions))
            leave(consumer, partitions)

        def leave(consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
            self._forget(partitions)
            if self._eager:
                consumer.unassign()
            else:
                consumer.incremental_unassign(partitions)

        told = {"on_assign": assigned, "on_revoke": revoked, "on_lost": lost}
        self._told = {name: self._kept(call) for name, call in told.items()}
        self.client.subscribe(list(topics), **self._told)

    def _kept(self, call: Callable[[ck.Consumer, list[ck.TopicPartition]], None]) -> Callable[..., None]:
        """A callback whose exception is raised by `poll` or `close`, and not by the client within them.

        What its `close` makes of one is no exception: Python can neither log nor chain it.
        """

        def kept(consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
            self._fenced_s = None
            try:
                call(consumer, partitions)
            except BaseException as error:  # noqa: BLE001 - see above
                self._raised = self._raised or error

        return kept

    def _raise_kept(self) -> None:
        if self._fenced_s is not None and time.monotonic() - self._fenced_s > MAX_FENCED_S:
            # After a restart of its coordinator the client may stop its heartbeats for good and never notice.
            raise FencedError(
                "the group does not know this member any more, and the client has not noticed",
                hint="it is begun anew with a new one",
            )
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised

    def _forget(self, partitions: Iterable[ck.TopicPartition]) -> None:
        for position in _positions(partitions):
            self._ends.pop(position, None)
            self._new_ends.pop(position, None)
            self._asked.pop(position, None)
            self._confirmed.pop(position, None)
            self._starts.pop(position, None)
            self._gone.add(position)

    def assign(self, offsets: Mapping[Position, int]) -> None:
        named = {EARLIEST: ck.OFFSET_BEGINNING, LATEST: ck.OFFSET_END}
        self._ends = {}
        self.client.assign([ck.TopicPartition(t, p, named.get(o, o)) for (t, p), o in offsets.items()])

    def poll(self, max_records: int, timeout_s: float) -> Sequence[Message]:
        if self._signs.polled(time.monotonic()):
            self.client.unsubscribe()
            self.client.subscribe(list(self._topics), **self._told)
        # `consume(n, timeout)` waits for n messages or the whole timeout; poll + drain has no such wait.
        first = self.client.poll(timeout_s)
        self._raise_kept()
        if first is None:
            return ()
        messages = [first]
        if max_records > 1:
            self._gone.clear()
            messages += self.client.consume(max_records - 1, 0)
            self._raise_kept()
            if self._gone:
                messages = self._without_gone(messages)
        if self._new_ends or any(m.error() is not None for m in messages):
            return [m for m in messages if self._is_record(m)]
        return messages

    def _without_gone(self, messages: Sequence[ck.Message]) -> list[ck.Message]:
        """Without records that were fetched before their partition went away within the same call.

        One that even came back is read again from where it started: what of it came before and after is not known.
        """
        for position in self._gone & self._starts.keys():
            self.seek(position, self._starts[position])
        return [m for m in messages if (m.topic(), m.partition()) not in self._gone]

    def _is_record(self, message: ck.Message) -> bool:
        error = message.error()
        if error is None:
            # Also in one batch: it was the end, and then this was written.
            self._new_ends.pop((message.topic(), message.partition()), None)
            return True
        place = f"{message.topic()}[{message.partition()}]"
        if error.code() == ck.KafkaError._PARTITION_EOF:
            end = {(message.topic(), message.partition()): message.offset()}
            self._ends.update(end)
            self._new_ends.update(end)
            return False
        if error.code() in OFFSET_ERRORS:
            raise OffsetOutOfRangeError(
                f"{place}: the committed offset is no longer in the log: {error.str()}",
                hint="records were deleted before they were processed; move the group's offset to go on",
            )
        if error.code() in GONE_ERRORS:
            raise TopicGoneError(f"{place}: {error.str()}", hint="was the topic deleted or created anew?")
        if error.fatal() or (not error.retriable() and error.code() not in PASSING_ERRORS):
            raise translated(error, f"reading {place}")
        return False

    def pause(self, positions: Iterable[Position]) -> None:
        self.client.pause([ck.TopicPartition(*p) for p in positions])

    def resume(self, positions: Iterable[Position]) -> None:
        self.client.resume([ck.TopicPartition(*p) for p in positions])

    def seek(self, position: Position, offset: int) -> None:
        self._ends.pop(position, None)
        self.client.seek(ck.TopicPartition(*position, offset))

    def commit(self, offsets: Mapping[Position, int], *, wait: bool) -> None:
        now_s = time.monotonic()
        again = {p: a.offset for p, a in self._asked.items() if now_s >= a.again_s}
        if silent := [p for p in again if self._asked[p].again_s]:
            log.warning("no answer to a commit of %s within %.0f s: sent again", silent, COMMIT_ANSWER_S)
        asked = {**again, **offsets}
        if not asked:
            return
        self._asked.update({p: _Asked(offset, now_s + COMMIT_ANSWER_S) for p, offset in asked.items()})
        self._confirmed = {**dict.fromkeys(asked, -1), **self._confirmed}
        partitions = [ck.TopicPartition(t, p, offset) for (t, p), offset in asked.items()]
        try:
            done = self.client.commit(offsets=partitions, asynchronous=not wait)
        except ck.KafkaException as error:
            raise translated(error.args[0], "committing offsets") from error
        for partition in done or ():
            if partition.error is not None:  # of some partitions only: the client does not raise then
                raise translated(partition.error, f"committing the offset of {partition.topic}")
        if wait:
            self._on_commit(None, partitions)

    def _on_commit(self, error: ck.KafkaError | None, partitions: Sequence[ck.TopicPartition]) -> None:
        for partition in partitions:
            position = (partition.topic, partition.partition)
            asked, found = self._asked.get(position), partition.error or error
            if position not in self._confirmed:  # let go of since
                continue
            if found is None:
                self._confirm(position, partition.offset)
            elif asked is None:
                pass  # a later one is through
            elif 0 <= partition.offset < asked.offset:
                pass  # a later one is on its way
            elif found.code() == ck.KafkaError.STALE_MEMBER_EPOCH or found.code() not in FENCED:
                # With an epoch out of date the partition may be ours all the same: the next heartbeat tells.
                asked.again_s = 0.0
            else:  # whoever is fenced has lost its partitions, and is told so
                asked.again_s = math.inf
                self._fenced_s = self._fenced_s or time.monotonic()

    def _confirm(self, position: Position, offset: int) -> None:
        newest = self._confirmed[position]
        if offset < newest:
            # The client tries a commit again by itself, and does not look what it sent since: this one led back.
            self._asked.setdefault(position, _Asked(newest, 0.0))
            return
        self._confirmed[position] = offset
        asked = self._asked.get(position)
        if asked is not None and asked.offset <= offset:
            del self._asked[position]

    def committed(self, positions: Sequence[Position]) -> dict[Position, int | None]:
        found = self._committed([ck.TopicPartition(*p) for p in positions])
        return {(p.topic, p.partition): p.offset if p.offset >= 0 else None for p in found}

    def _committed(self, partitions: list[ck.TopicPartition]) -> list[ck.TopicPartition]:
        try:
            return list(self.client.committed(partitions, timeout=ADMIN_TIMEOUT_S))
        except ck.KafkaException as error:
            raise translated(error.args[0], "asking the group's offsets") from error

    def position(self, positions: Sequence[Position]) -> dict[Position, int | None]:
        found = self.client.position([ck.TopicPartition(*p) for p in positions])
        made: dict[Position, int | None] = {}
        for partition in found:
            position = (partition.topic, partition.partition)
            known = max(partition.offset, self._ends.get(position, -1))
            made[position] = known if known >= 0 else None
        return made

    def high(self, position: Position) -> int | None:
        _, high = self.client.get_watermark_offsets(ck.TopicPartition(*position), cached=True)
        return high if high >= 0 else None

    def ends(self) -> dict[Position, int]:
        reached, self._new_ends = self._new_ends, {}
        return reached

    def close(self) -> None:
        if self._signs.dead:
            leave_behind(self.client)
            return
        self.client.close()
        self._fenced_s = None
        self._raise_kept()


def _positions(partitions: Iterable[ck.TopicPartition]) -> list[Position]:
    return [(p.topic, p.partition) for p in partitions]
