"""The cluster as a replay sees it: it reads everything and writes to no topic but its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dataflow.core.errors import TransportError
from dataflow.transport.api import (
    EARLIEST,
    Admin,
    Consumer,
    Delivered,
    Fabric,
    Header,
    Position,
    Producer,
    TransactionalProducer,
)


class ShadowFabric:
    """A fabric whose producers take records for topics that begin with `prefix`, and refuse all others.

    `renamed` are topics that the engine names by itself, and what they are called here.
    """

    def __init__(self, fabric: Fabric, prefix: str, renamed: Mapping[str, str]) -> None:
        self._fabric = fabric
        self._prefix = prefix
        self._renamed = dict(renamed)

    def own(self, topic: str) -> str:
        """The name under which records for `topic` are written. Raises TransportError for what is not the replay's."""
        name = self._renamed.get(topic, topic)
        if not name.startswith(self._prefix):
            raise TransportError(f"a replay does not write to topic '{topic}'")
        return name

    def producer(self, *, latency_first: bool = True, single_flight: bool = False) -> Producer:
        return _Shadowed(
            self, self._fabric.producer(latency_first=latency_first, single_flight=single_flight)
        )

    def transactional(self, name: str, *, latency_first: bool = False) -> TransactionalProducer:
        return self.transactionals([name], latency_first=latency_first)[0]

    def transactionals(
        self, names: Sequence[str], *, latency_first: bool = False
    ) -> list[TransactionalProducer]:
        made = self._fabric.transactionals(names, latency_first=latency_first)
        return [_ShadowedTransaction(self, producer) for producer in made]

    def consumer(
        self, group: str | None = None, *, start: int = EARLIEST, together: bool = False
    ) -> Consumer:
        return self._fabric.consumer(group, start=start, together=together)

    def admin(self) -> Admin:
        return self._fabric.admin()

    def close(self) -> None:
        """The fabric below belongs to whoever made it."""


class _Shadowed:
    """A producer, see `ShadowFabric`."""

    def __init__(self, fabric: ShadowFabric, producer: Producer) -> None:
        self._own = fabric.own
        self._producer = producer

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
        self._producer.send(self._own(topic), value, key, headers, partition, on_delivery, timestamp_ms)

    def poll(self, timeout_s: float) -> int:
        return self._producer.poll(timeout_s)

    def flush(self, timeout_s: float) -> int:
        return self._producer.flush(timeout_s)

    def close(self) -> None:
        self._producer.close()


class _ShadowedTransaction(_Shadowed):
    """A transactional producer, see `ShadowFabric`."""

    def __init__(self, fabric: ShadowFabric, producer: TransactionalProducer) -> None:
        super().__init__(fabric, producer)
        self._transaction = producer

    def begin(self) -> None:
        self._transaction.begin()

    def start_commit(self, offsets: Mapping[Position, int], consumer: Consumer) -> None:
        self._transaction.start_commit(offsets, consumer)

    def finish_commit(self) -> None:
        self._transaction.finish_commit()

    def commit(self, offsets: Mapping[Position, int], consumer: Consumer) -> None:
        self._transaction.commit(offsets, consumer)

    def abort(self) -> None:
        self._transaction.abort()
