"""Kafka by confluent-kafka (librdkafka): synchronous clients on the caller's own thread.

Settings that matter and why are beside them; a user's `kafka:` section is laid over them. Secrets never appear in an
error or a log of ours.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import confluent_kafka as ck

from dataflow.core import limits
from dataflow.core.errors import (
    OffsetOutOfRangeError,
    RecordTooLargeError,
    TopicGoneError,
)
from dataflow.transport.api import EARLIEST, LATEST, Delivered, Header, Message, Position, Rebalance
from dataflow.transport.kafka_admin import ADMIN_TIMEOUT_S, KafkaAdmin
from dataflow.transport.kafka_errors import GONE_ERRORS, OFFSET_ERRORS, PASSING_ERRORS, TOO_LARGE, translated

log = logging.getLogger("dataflow.kafka")

# A member whose group session is longer than this leaves partitions orphaned for as long after a kill -9.
MAX_SESSION_MS: Final = 10_000

_COMMON: Final[dict[str, Any]] = {
    "socket.nagle.disable": True,
    "topic.metadata.refresh.interval.ms": 30_000,
    "log.connection.close": False,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 1_000,
}
_PRODUCER: Final[dict[str, Any]] = {
    "acks": "all",
    "enable.idempotence": True,  # no reordering and no doubles on a retry
    "partitioner": "murmur2_random",  # the default (CRC32) puts keys elsewhere than Java clients do
    "queue.buffering.max.kbytes": limits.PRODUCER_QUEUE_KBYTES,
    "queue.buffering.max.messages": limits.PRODUCER_QUEUE_RECORDS,
    "message.max.bytes": 64 * 1024 * 1024,  # the topic's own limit is the one that counts
    "delivery.timeout.ms": 120_000,
}
_CONSUMER: Final[dict[str, Any]] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",  # a committed offset that left the log must stop us, not skip records
    "isolation.level": "read_committed",
    "fetch.wait.max.ms": 100,
    "fetch.queue.backoff.ms": 0,  # the default waits a second after a full queue
    "fetch.message.max.bytes": 4 * 1024 * 1024,
    "queued.max.messages.kbytes": limits.CONSUMER_QUEUE_KBYTES,
}


class KafkaFabric:
    """A Kafka cluster at `bootstrap`; `settings` are librdkafka's own and win over ours."""

    def __init__(self, bootstrap: str, settings: Mapping[str, Any] | None = None) -> None:
        self.bootstrap = bootstrap
        self._settings = {**_COMMON, **(settings or {}), "bootstrap.servers": bootstrap}
        self._admin: KafkaAdmin | None = None
        self._lock = threading.Lock()
        self._group_settings: dict[str, Any] | None = None

    def producer(self, *, latency_first: bool = True) -> KafkaProducer:
        linger = {"linger.ms": 0} if latency_first else {"linger.ms": 5, "compression.type": "lz4"}
        return KafkaProducer({**_PRODUCER, **linger, **self._for_role("producer")})

    def consumer(self, group: str | None = None, *, start: int = EARLIEST) -> KafkaConsumer:
        settings = {**_CONSUMER, **self._for_role("consumer")}
        if group is None:
            # librdkafka wants a name even where there is no group; nothing is ever committed to it.
            return KafkaConsumer({**settings, "group.id": "dataflow.none"}, start)
        return KafkaConsumer({**settings, **self._groups(), "group.id": group}, start)

    def admin(self) -> KafkaAdmin:
        with self._lock:
            if self._admin is None:
                self._admin = KafkaAdmin(self._for_role("admin"))
            return self._admin

    def close(self) -> None:
        with self._lock:
            if self._admin is not None:
                self._admin.close()
            self._admin = None

    def _for_role(self, role: str) -> dict[str, Any]:
        """Settings without those that librdkafka refuses for this client (it warns of them on every start)."""
        consumer_only = (
            "group.",
            "session.",
            "heartbeat.",
            "fetch.",
            "queued.",
            "isolation.",
            "auto.offset",
            "max.poll",
        )
        producer_only = (
            "acks",
            "linger.",
            "enable.idempotence",
            "transactional.",
            "partitioner",
            "compression",
            "batch.",
        )
        unwanted = {
            "producer": consumer_only,
            "consumer": producer_only,
            "admin": consumer_only + producer_only,
        }[role]
        return {k: v for k, v in self._settings.items() if not k.startswith(unwanted)}

    def _groups(self) -> dict[str, Any]:
        """KIP-848 where the broker's session is short enough to move a killed worker's partitions, else classic."""
        if self._group_settings is None:
            session_ms = self.admin().group_session_ms()
            self._group_settings = (
                {"group.protocol": "consumer", "group.remote.assignor": "range"}
                if session_ms is not None
                and session_ms <= MAX_SESSION_MS
                and "group.protocol" not in self._settings
                else {
                    "partition.assignment.strategy": "cooperative-sticky",
                    "session.timeout.ms": 6_000,
                    "heartbeat.interval.ms": 500,
                }
            )
        return self._group_settings


class KafkaProducer:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._producer = ck.Producer(dict(settings), logger=log)
        self._produce = self._producer.produce

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
                self._producer.poll(0.05)
            except ck.KafkaException as error:
                kafka_error = error.args[0]
                if kafka_error.code() in TOO_LARGE:
                    raise RecordTooLargeError(
                        f"a record of {len(value or b'')} bytes for topic '{topic}'"
                    ) from error
                raise translated(kafka_error, f"writing to topic '{topic}'") from error

    def poll(self, timeout_s: float) -> int:
        return int(self._producer.poll(timeout_s))

    def flush(self, timeout_s: float) -> int:
        return int(self._producer.flush(timeout_s))

    def close(self) -> None:
        self._producer.flush(limits.DRAIN_TIMEOUT_MS / 1000)
        self._producer.close()


class KafkaConsumer:
    def __init__(self, settings: Mapping[str, Any], start: int) -> None:
        self._consumer = ck.Consumer(dict(settings), logger=log)
        self._start = start
        self._topics: tuple[str, ...] = ()

    def subscribe(self, topics: Sequence[str], rebalance: Rebalance) -> None:
        self._topics = tuple(topics)

        def assigned(consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
            committed = consumer.committed(partitions, timeout=ADMIN_TIMEOUT_S) if partitions else []
            start = ck.OFFSET_BEGINNING if self._start == EARLIEST else ck.OFFSET_END
            for partition in committed:
                if partition.offset < 0:
                    partition.offset = start
            consumer.incremental_assign(committed)
            rebalance.assigned(_positions(committed))

        def revoked(consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
            rebalance.revoked(_positions(partitions))
            consumer.incremental_unassign(partitions)

        def lost(consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
            rebalance.lost(_positions(partitions))
            consumer.incremental_unassign(partitions)

        self._consumer.subscribe(list(topics), on_assign=assigned, on_revoke=revoked, on_lost=lost)

    def assign(self, offsets: Mapping[Position, int]) -> None:
        named = {EARLIEST: ck.OFFSET_BEGINNING, LATEST: ck.OFFSET_END}
        self._consumer.assign([ck.TopicPartition(t, p, named.get(o, o)) for (t, p), o in offsets.items()])

    def poll(self, max_records: int, timeout_s: float) -> Sequence[Message]:
        # `consume(n, timeout)` waits for n messages or the whole timeout; poll + drain has no such wait.
        first = self._consumer.poll(timeout_s)
        if first is None:
            return ()
        messages = [first]
        if max_records > 1:
            messages += self._consumer.consume(max_records - 1, 0)
        if any(m.error() is not None for m in messages):
            return [m for m in messages if self._is_record(m)]
        return messages

    def _is_record(self, message: ck.Message) -> bool:
        error = message.error()
        if error is None:
            return True
        place = f"{message.topic()}[{message.partition()}]"
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
        self._consumer.pause([ck.TopicPartition(*p) for p in positions])

    def resume(self, positions: Iterable[Position]) -> None:
        self._consumer.resume([ck.TopicPartition(*p) for p in positions])

    def seek(self, position: Position, offset: int) -> None:
        self._consumer.seek(ck.TopicPartition(*position, offset))

    def commit(self, offsets: Mapping[Position, int], *, wait: bool) -> None:
        partitions = [ck.TopicPartition(t, p, o) for (t, p), o in offsets.items()]
        try:
            self._consumer.commit(offsets=partitions, asynchronous=not wait)
        except ck.KafkaException as error:
            raise translated(error.args[0], "committing offsets") from error

    def committed(self, positions: Sequence[Position]) -> dict[Position, int | None]:
        found = self._consumer.committed([ck.TopicPartition(*p) for p in positions], timeout=ADMIN_TIMEOUT_S)
        return {(p.topic, p.partition): p.offset if p.offset >= 0 else None for p in found}

    def position(self, positions: Sequence[Position]) -> dict[Position, int | None]:
        found = self._consumer.position([ck.TopicPartition(*p) for p in positions])
        return {(p.topic, p.partition): p.offset if p.offset >= 0 else None for p in found}

    def close(self) -> None:
        self._consumer.close()


def _positions(partitions: Iterable[ck.TopicPartition]) -> list[Position]:
    return [(p.topic, p.partition) for p in partitions]
