"""Topics, settings and offsets of a Kafka cluster."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar

import confluent_kafka as ck
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
)

from dataflow.core.errors import TransportError
from dataflow.transport.api import EARLIEST, LATEST, Position, TopicInfo
from dataflow.transport.kafka_errors import GONE_ERRORS, SETTLING, translated

log = logging.getLogger("dataflow.kafka")

ADMIN_TIMEOUT_S: Final = 15.0
Answer = TypeVar("Answer")


class KafkaAdmin:
    """Thread-safe: librdkafka's admin client is, and every call waits for its own futures."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self._client = AdminClient(self._settings, logger=log)
        self._asking: dict[str, ck.Consumer] = {}  # by group
        self._lock = threading.Lock()

    def cluster_id(self) -> str:
        found = self._wait(
            lambda: self._client.describe_cluster(request_timeout=ADMIN_TIMEOUT_S), "asking the cluster's id"
        )
        return str(found.cluster_id)

    def topics(self) -> dict[str, TopicInfo]:
        try:
            metadata = self._client.list_topics(timeout=ADMIN_TIMEOUT_S)
        except ck.KafkaException as error:
            raise translated(error.args[0], "listing topics") from error
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
                described[name] = _answer(future)
            except ck.KafkaException as error:
                if error.args[0].code() not in GONE_ERRORS:
                    raise translated(error.args[0], f"describing topic '{name}'") from error
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
            _answer(future)
        except ck.KafkaException as error:
            if error.args[0].code() == ck.KafkaError.TOPIC_ALREADY_EXISTS:
                return False
            raise translated(error.args[0], f"creating topic '{name}'") from error
        self._await_usable(name, partitions)
        return True

    def _await_usable(self, name: str, partitions: int) -> None:
        def usable() -> bool:
            try:
                topic = self._client.list_topics(name, timeout=ADMIN_TIMEOUT_S).topics.get(name)
            except ck.KafkaException:
                return False  # it is asked again until the deadline
            there = topic is not None and topic.error is None and len(topic.partitions) == partitions
            return there and all(p.leader >= 0 for p in topic.partitions.values())

        self._await(usable, f"topic '{name}' was created but has no leader")

    @staticmethod
    def _await(condition: Callable[[], bool], otherwise: str) -> None:
        """The broker answers before its metadata is everywhere, and has no "tell me when": it is asked again."""
        deadline = time.monotonic() + ADMIN_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise TransportError(f"{otherwise} after {ADMIN_TIMEOUT_S:.0f} s")
            time.sleep(0.01)

    def alter(self, name: str, config: Mapping[str, str]) -> None:
        entries = [ConfigEntry(k, v, incremental_operation=AlterConfigOpType.SET) for k, v in config.items()]
        resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=entries)
        future = self._client.incremental_alter_configs([resource])[resource]
        self._result(future, f"changing the settings of topic '{name}'")

        def changed() -> bool:
            found = self.describe([name])[name].config
            return all(found.get(k) == v for k, v in config.items())

        self._await(changed, f"the settings of topic '{name}' were changed but are not in force")

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
        places = {ck.TopicPartition(*p): spec for p in positions}
        found = self._retried(lambda: self._list_offsets(places))
        late = [p for p, offset in found.items() if offset < 0]  # no record as young as that: the end
        return {**found, **(self.offsets(late, LATEST) if late else {})}

    def _list_offsets(self, places: Mapping[ck.TopicPartition, OffsetSpec]) -> dict[Position, int]:
        asked = self._client.list_offsets(dict(places), request_timeout=ADMIN_TIMEOUT_S)
        return {
            (p.topic, p.partition): self._result(future, f"asking offsets of {p.topic}").offset
            for p, future in asked.items()
        }

    def _retried(self, ask: Callable[[], Answer]) -> Answer:
        """Ask again while a partition's leader is settling: the broker says so, and the client passes it on.

        It goes on asking with the leader that it knows, of an epoch that is over, unless it is made to look.
        """
        deadline = time.monotonic() + ADMIN_TIMEOUT_S
        while True:
            try:
                return ask()
            except TransportError as error:
                cause = error.__cause__
                settling = isinstance(cause, ck.KafkaException) and cause.args[0].code() in SETTLING
                if not settling or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
                with suppress(ck.KafkaException):
                    self._client.list_topics(timeout=ADMIN_TIMEOUT_S)

    def group_offsets(self, group: str, positions: Sequence[Position]) -> dict[Position, int]:
        if not positions:
            return {}
        # Asked by a consumer that never joins: librdkafka's admin client ends the process with a segmentation fault
        # when the broker says that the group's coordinator has moved (its issue 5040). Read-committed it would wait for
        # open transactions with offsets, a dead worker's too, until they time out; uncommitted ones are never told.
        own = {"group.id": group, "isolation.level": "read_uncommitted"}
        with self._lock:
            asking = self._asking.get(group)
            if asking is None:
                asking = self._asking[group] = ck.Consumer({**self._settings, **own}, logger=log)
        try:
            found = asking.committed([ck.TopicPartition(*p) for p in positions], timeout=ADMIN_TIMEOUT_S)
        except ck.KafkaException as error:
            raise translated(error.args[0], f"asking the offsets of group '{group}'") from error
        return {(p.topic, p.partition): p.offset for p in found if p.offset >= 0}

    def group_session_ms(self) -> int | None:
        """Session timeout of the broker's KIP-848 groups, None where it has none or may not be asked."""
        try:
            node = next(iter(self._client.list_topics(timeout=ADMIN_TIMEOUT_S).brokers))
            resource = ConfigResource(ConfigResource.Type.BROKER, str(node))
            asked = self._client.describe_configs([resource], request_timeout=ADMIN_TIMEOUT_S)
            entries = _answer(asked[resource])
        except (ck.KafkaException, StopIteration):
            return None
        entry = entries.get("group.consumer.session.timeout.ms")
        return int(entry.value) if entry is not None else None

    def _wait(self, call: Callable[[], Future[Any]], doing: str) -> Any:
        return self._result(call(), doing)

    @staticmethod
    def _result(future: Future[Any], doing: str) -> Any:
        try:
            return _answer(future)
        except ck.KafkaException as error:
            raise translated(error.args[0], doing) from error

    def close(self) -> None:
        """The client itself is kept by the fabric: a collected one fails the futures of calls in flight."""
        with self._lock:
            for consumer in self._asking.values():
                consumer.close()
            self._asking = {}


def _answer(future: Future[Any]) -> Any:
    """What a call of the client came to. Raises KafkaException, also when the client does not keep its own time-out."""
    try:
        return future.result(ADMIN_TIMEOUT_S + 5)
    except TimeoutError:
        raise ck.KafkaException(ck.KafkaError(ck.KafkaError._TIMED_OUT)) from None
