"""Kafka by confluent-kafka (librdkafka): synchronous clients on the caller's own thread.

Settings that matter and why are beside them; a user's `kafka:` section is laid over them. Secrets never appear in an
error or a log of ours.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from dataflow.core import limits
from dataflow.transport import kafka_transactions
from dataflow.transport.api import EARLIEST, Producer
from dataflow.transport.kafka_admin import KafkaAdmin
from dataflow.transport.kafka_clients import KafkaConsumer, KafkaProducer
from dataflow.transport.kafka_spread import SpreadProducer
from dataflow.transport.kafka_transactions import KafkaTransaction

log = logging.getLogger("dataflow.kafka")

# A member whose group session is longer than this leaves partitions orphaned for as long after a kill -9.
MAX_SESSION_MS: Final = 10_000

_COMMON: Final[dict[str, Any]] = {
    "socket.nagle.disable": True,
    "topic.metadata.refresh.interval.ms": 30_000,
    "log.connection.close": False,
    "log_level": 3,  # librdkafka warns of every retry, also of those of a normal start
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
# By `latency_first`.
_LINGER: Final[dict[bool, dict[str, Any]]] = {
    True: {"linger.ms": 0},
    False: {"linger.ms": 5, "compression.type": "lz4"},
}
# librdkafka's idempotent producer spins while records wait longer than its linger behind a request to their partition: at
# 32 callers 200 to 1,000 us of CPU a record, and a whole core for each such producer while a broker is slow to answer.
_SINGLE_FLIGHT: Final[dict[str, Any]] = {
    "enable.idempotence": False,
    "max.in.flight.requests.per.connection": 1,
}
_CONSUMER: Final[dict[str, Any]] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",  # a committed offset that left the log must stop us, not skip records
    "isolation.level": "read_committed",
    "enable.partition.eof": True,  # the only way to know an end that is no record: a transaction's marker, say
    # A batch at a slow node may take long between two polls; who really died is known by the session.
    "max.poll.interval.ms": 1_800_000,
    "fetch.wait.max.ms": 100,
    # A full queue is looked at again so soon: the default of a second starves us, and with 0 the client's own thread
    # spins, half a core that the work then lacks.
    "fetch.queue.backoff.ms": 10,
    # Of one partition; the default is 100,000.
    "queued.min.messages": limits.CONSUMER_QUEUE_RECORDS,
    # Of one partition at once, compressed: 4 MB of small records are 100,000 in hand, 60 MB and more of each partition.
    # A larger record comes all the same.
    "fetch.message.max.bytes": 128 * 1024,
    "queued.max.messages.kbytes": limits.CONSUMER_QUEUE_KBYTES,
}

_CLASSIC: Final[dict[str, Any]] = {"session.timeout.ms": 6_000, "heartbeat.interval.ms": 500}


class KafkaFabric:
    """A Kafka cluster at `bootstrap`; `settings` are librdkafka's own and win over ours."""

    def __init__(self, bootstrap: str, settings: Mapping[str, Any] | None = None) -> None:
        self.bootstrap = bootstrap
        self._settings = {**_COMMON, **(settings or {}), "bootstrap.servers": bootstrap}
        self._admin: KafkaAdmin | None = None
        self._lock = threading.Lock()
        self._protocol: str | None = None  # of groups, once it is known

    @property
    def security(self) -> dict[str, str]:
        """What another process needs to speak to this cluster, in librdkafka's names. Secrets among it."""
        names = ("security.", "sasl.", "ssl.")
        return {k: str(v) for k, v in self._settings.items() if k.startswith(names)}

    def producer(self, *, latency_first: bool = True, single_flight: bool = False) -> Producer:
        flight = _SINGLE_FLIGHT if single_flight else {}
        settings = {**_PRODUCER, **_LINGER[latency_first], **flight, **self._for_role("producer")}
        if latency_first and single_flight:
            return SpreadProducer(lambda: KafkaProducer(settings))
        return KafkaProducer(settings)

    def transactional(self, name: str, *, latency_first: bool = False) -> KafkaTransaction:
        return self.transactionals([name], latency_first=latency_first)[0]

    def transactionals(
        self, names: Sequence[str], *, latency_first: bool = False
    ) -> Sequence[KafkaTransaction]:
        settings = {**_PRODUCER, **_LINGER[latency_first], **self._for_role("producer")}
        with ExitStack() as failing:
            made = []
            for name in names:
                own = {**kafka_transactions.SETTINGS, "transactional.id": name}
                made.append(KafkaTransaction({**settings, **own}, name))
                failing.callback(made[-1].close)
            for producer in made:
                producer.ready()
            failing.pop_all()
        return made

    def consumer(
        self, group: str | None = None, *, start: int = EARLIEST, together: bool = False
    ) -> KafkaConsumer:
        settings = {**_CONSUMER, **self._for_role("consumer")}
        if group is None:
            # librdkafka wants a name even where there is no group; nothing is ever committed to it.
            return KafkaConsumer({**settings, "group.id": "dataflow.none"}, start)
        return KafkaConsumer({**settings, **self._groups(together=together), "group.id": group}, start)

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

    def _groups(self, *, together: bool) -> dict[str, Any]:
        """KIP-848 where the broker's session is short enough to move a killed worker's partitions, else classic."""
        if self._protocol is None:
            session_ms = self.admin().group_session_ms()
            short = session_ms is not None and session_ms <= MAX_SESSION_MS
            self._protocol = self._settings.get("group.protocol") or ("consumer" if short else "classic")
        if self._protocol == "consumer":
            return {"group.protocol": "consumer", "group.remote.assignor": "range"}
        # Sticky gives one member all of one topic and another all of the other: nobody would own a partition whole.
        return {"partition.assignment.strategy": "range" if together else "cooperative-sticky", **_CLASSIC}
