"""Kafka by confluent-kafka (librdkafka): synchronous clients on the caller's own thread.

Settings that matter and why are beside them; a user's `kafka:` section is laid over them. Secrets never appear in an
error or a log of ours.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, ConfigEntry, ConfigResource, NewTopic, OffsetSpec

from dataflow.core import limits
from dataflow.core.errors import (
    DataflowError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    TopicGoneError,
    TransportError,
)
from dataflow.transport.api import (
    EARLIEST,
    LATEST,
    Delivered,
    Header,
    Message,
    Position,
    Rebalance,
    TopicInfo,
)

log = logging.getLogger("dataflow.kafka")

ADMIN_TIMEOUT_S: Final = 15.0
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
_OFFSET_ERRORS: Final = (ck.KafkaError._AUTO_OFFSET_RESET, ck.KafkaError.OFFSET_OUT_OF_RANGE)
_GONE_ERRORS: Final = (
    ck.KafkaError.UNKNOWN_TOPIC_OR_PART,
    ck.KafkaError._UNKNOWN_TOPIC,
    ck.KafkaError._UNKNOWN_PARTITION,
)
_TOO_LARGE: Final = (ck.KafkaError.MSG_SIZE_TOO_LARGE, ck.KafkaError.INVALID_MSG_SIZE)


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
                if kafka_error.code() in _TOO_LARGE:
                    raise RecordTooLargeError(
                        f"a record of {len(value or b'')} bytes for topic '{topic}'"
                    ) from error
                raise _translated(kafka_error, f"writing to topic '{topic}'") from error

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
        if error.code() in _OFFSET_ERRORS:
            raise OffsetOutOfRangeError(
                f"{place}: the committed offset is no longer in the log: {error.str()}",
                hint="records were deleted before they were processed; move the group's offset to go on",
            )
        if error.code() in _GONE_ERRORS:
            raise TopicGoneError(f"{place}: {error.str()}", hint="was the topic deleted or created anew?")
        if error.fatal() or (not error.retriable() and error.code() not in _PASSING_ERRORS):
            raise _translated(error, f"reading {place}")
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
            raise _translated(error.args[0], "committing offsets") from error

    def committed(self, positions: Sequence[Position]) -> dict[Position, int | None]:
        found = self._consumer.committed([ck.TopicPartition(*p) for p in positions], timeout=ADMIN_TIMEOUT_S)
        return {(p.topic, p.partition): p.offset if p.offset >= 0 else None for p in found}

    def position(self, positions: Sequence[Position]) -> dict[Position, int | None]:
        found = self._consumer.position([ck.TopicPartition(*p) for p in positions])
        return {(p.topic, p.partition): p.offset if p.offset >= 0 else None for p in found}

    def close(self) -> None:
        self._consumer.close()


_PASSING_ERRORS: Final = (
    ck.KafkaError._ALL_BROKERS_DOWN,
    ck.KafkaError._TRANSPORT,
    ck.KafkaError._TIMED_OUT,
    ck.KafkaError._PARTITION_EOF,
    ck.KafkaError.COORDINATOR_NOT_AVAILABLE,
    ck.KafkaError.NOT_COORDINATOR,
    ck.KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    ck.KafkaError._MAX_POLL_EXCEEDED,
)


class KafkaAdmin:
    """Thread-safe: librdkafka's admin client is, and every call waits for its own futures."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._client = AdminClient(dict(settings), logger=log)

    def cluster_id(self) -> str:
        found = self._wait(
            lambda: self._client.describe_cluster(request_timeout=ADMIN_TIMEOUT_S), "asking the cluster's id"
        )
        return str(found.cluster_id)

    def topics(self) -> dict[str, TopicInfo]:
        try:
            metadata = self._client.list_topics(timeout=ADMIN_TIMEOUT_S)
        except ck.KafkaException as error:
            raise _translated(error.args[0], "listing topics") from error
        return {n: TopicInfo(n, "", len(t.partitions)) for n, t in metadata.topics.items() if t.error is None}

    def describe(self, names: Sequence[str]) -> dict[str, TopicInfo]:
        if not names:
            return {}
        asked = self._client.describe_topics(ck.TopicCollection(list(names)), request_timeout=ADMIN_TIMEOUT_S)
        resources = {n: ConfigResource(ConfigResource.Type.TOPIC, n) for n in names}
        found: dict[str, TopicInfo] = {}
        described = {}
        for name, future in asked.items():
            try:
                described[name] = future.result(ADMIN_TIMEOUT_S)
            except ck.KafkaException as error:
                if error.args[0].code() not in _GONE_ERRORS:
                    raise _translated(error.args[0], f"describing topic '{name}'") from error
        if not described:
            return {}
        configs = self._client.describe_configs(
            [resources[n] for n in described], request_timeout=ADMIN_TIMEOUT_S
        )
        for resource, future in configs.items():
            entries = self._result(future, f"reading the settings of topic '{resource.name}'")
            # Source 1 is a setting of the topic itself, not a default of the broker.
            config = {n: e.value for n, e in entries.items() if e.source == 1}
            topic = described[resource.name]
            found[resource.name] = TopicInfo(
                resource.name, str(topic.topic_id), len(topic.partitions), config
            )
        return found

    def create(self, name: str, partitions: int, config: Mapping[str, str]) -> bool:
        future = self._client.create_topics(
            [NewTopic(name, partitions, config=dict(config))], operation_timeout=ADMIN_TIMEOUT_S
        )[name]
        try:
            future.result(ADMIN_TIMEOUT_S)
        except ck.KafkaException as error:
            if error.args[0].code() == ck.KafkaError.TOPIC_ALREADY_EXISTS:
                return False
            raise _translated(error.args[0], f"creating topic '{name}'") from error
        self._await_usable(name, partitions)
        return True

    def _await_usable(self, name: str, partitions: int) -> None:
        deadline = time.monotonic() + ADMIN_TIMEOUT_S
        while time.monotonic() < deadline:
            topic = self._client.list_topics(name, timeout=ADMIN_TIMEOUT_S).topics.get(name)
            usable = topic is not None and topic.error is None and len(topic.partitions) == partitions
            if usable and all(p.leader >= 0 for p in topic.partitions.values()):
                return
            time.sleep(0.01)  # the broker has no "tell me when": metadata is asked for again
        raise TransportError(f"topic '{name}' was created but has no leader after {ADMIN_TIMEOUT_S:.0f} s")

    def alter(self, name: str, config: Mapping[str, str]) -> None:
        entries = [
            ConfigEntry(k, v, incremental_operation=ck.admin.AlterConfigOpType.SET) for k, v in config.items()
        ]
        resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=entries)
        future = self._client.incremental_alter_configs([resource])[resource]
        self._result(future, f"changing the settings of topic '{name}'")

    def delete(self, names: Sequence[str]) -> None:
        if not names:
            return
        for name, future in self._client.delete_topics(
            list(names), operation_timeout=ADMIN_TIMEOUT_S
        ).items():
            self._result(future, f"deleting topic '{name}'")

    def offsets(self, positions: Sequence[Position], at: int) -> dict[Position, int]:
        if not positions:
            return {}
        spec = OffsetSpec.earliest() if at == EARLIEST else OffsetSpec.latest()
        if at >= 0:
            spec = OffsetSpec.for_timestamp(at)
        asked = self._client.list_offsets(
            {ck.TopicPartition(*p): spec for p in positions}, request_timeout=ADMIN_TIMEOUT_S
        )
        found = {
            (p.topic, p.partition): self._result(f, f"asking offsets of {p.topic}").offset
            for p, f in asked.items()
        }
        late = [p for p, offset in found.items() if offset < 0]  # no record as young as that: the end
        return {**found, **(self.offsets(late, LATEST) if late else {})}

    def group_offsets(self, group: str) -> dict[Position, int]:
        request = [ck.ConsumerGroupTopicPartitions(group)]
        future = self._client.list_consumer_group_offsets(request, request_timeout=ADMIN_TIMEOUT_S)[group]
        try:
            found = future.result(ADMIN_TIMEOUT_S)
        except ck.KafkaException as error:
            if error.args[0].code() == ck.KafkaError.GROUP_ID_NOT_FOUND:
                return {}
            raise _translated(error.args[0], f"asking the offsets of group '{group}'") from error
        return {(p.topic, p.partition): p.offset for p in found.topic_partitions or () if p.offset >= 0}

    def group_session_ms(self) -> int | None:
        """Session timeout of the broker's KIP-848 groups, None where it has none or may not be asked."""
        try:
            node = next(iter(self._client.list_topics(timeout=ADMIN_TIMEOUT_S).brokers))
            resource = ConfigResource(ConfigResource.Type.BROKER, str(node))
            entries = self._client.describe_configs([resource], request_timeout=ADMIN_TIMEOUT_S)[
                resource
            ].result(ADMIN_TIMEOUT_S)
        except (ck.KafkaException, StopIteration):
            return None
        entry = entries.get("group.consumer.session.timeout.ms")
        return int(entry.value) if entry is not None else None

    def _wait(self, call: Callable[[], Future[Any]], doing: str) -> Any:
        return self._result(call(), doing)

    @staticmethod
    def _result(future: Future[Any], doing: str) -> Any:
        try:
            return future.result(ADMIN_TIMEOUT_S + 5)
        except ck.KafkaException as error:
            raise _translated(error.args[0], doing) from error

    def close(self) -> None:
        """Kept by the fabric: a collected AdminClient fails the futures of calls in flight."""


def _positions(partitions: Iterable[ck.TopicPartition]) -> list[Position]:
    return [(p.topic, p.partition) for p in partitions]


def _translated(error: ck.KafkaError, doing: str) -> DataflowError:
    hints = {
        ck.KafkaError._ALL_BROKERS_DOWN: "is the broker up?",
        ck.KafkaError._TRANSPORT: "is the broker up, and the address right?",
        ck.KafkaError._TIMED_OUT: "is the broker up, and the address right?",
        ck.KafkaError.TOPIC_AUTHORIZATION_FAILED: "`dataflow plan` prints the ACLs that are needed",
        ck.KafkaError.GROUP_AUTHORIZATION_FAILED: "`dataflow plan` prints the ACLs that are needed",
    }
    return TransportError(f"{doing}: {error.str()}", hint=hints.get(error.code(), ""))
