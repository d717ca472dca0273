"""A log in memory with Kafka's meaning: partitions, groups, committed offsets, transactions. For tests.

It passes the same contract suite as the real broker (tests/transport). Thread-safe by one lock; `poll` waits on a
condition, so nothing spins. The clock is handed in: records carry its time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dataflow.core.errors import TopicGoneError, nearest
from dataflow.core.limits import MAX_RECORD_BYTES
from dataflow.transport.api import EARLIEST, Position, TopicInfo
from dataflow.transport.memory_log import (
    Group,
    MemoryConsumer,
    MemoryProducer,
    MemoryTransaction,
    Partition,
    StoredTopic,
    offset_at,
)


class MemoryFabric:
    """One cluster in memory."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.changed = threading.Condition(threading.RLock())
        self.stored: dict[str, StoredTopic] = {}
        self.groups: dict[str, Group] = {}
        self.epochs: dict[str, int] = {}  # of transactional producers, by name
        self._created = 0

    def producer(self, *, latency_first: bool = True, single_flight: bool = False) -> MemoryProducer:
        del latency_first, single_flight
        return MemoryProducer(self)

    def transactional(self, name: str, *, latency_first: bool = False) -> MemoryTransaction:
        del latency_first
        with self.changed:
            self.epochs[name] = self.epochs.get(name, 0) + 1
            return MemoryTransaction(self, name, self.epochs[name])

    def transactionals(
        self, names: Sequence[str], *, latency_first: bool = False
    ) -> Sequence[MemoryTransaction]:
        return [self.transactional(name, latency_first=latency_first) for name in names]

    def consumer(
        self, group: str | None = None, *, start: int = EARLIEST, together: bool = False
    ) -> MemoryConsumer:
        del together  # they always are
        return MemoryConsumer(self, group, start)

    def admin(self) -> MemoryFabric:
        return self

    def close(self) -> None:
        """Nothing to release."""

    # Admin
    def cluster_id(self) -> str:
        return "memory"

    def topics(self) -> dict[str, TopicInfo]:
        with self.changed:
            return {n: TopicInfo(n, t.info.topic_id, len(t.partitions)) for n, t in self.stored.items()}

    def describe(self, names: Sequence[str]) -> dict[str, TopicInfo]:
        with self.changed:
            return {n: self.stored[n].info for n in names if n in self.stored}

    def create(self, name: str, partitions: int, config: Mapping[str, str]) -> bool:
        with self.changed:
            if name in self.stored:
                return False
            # Ids are by order of creation: the same run gives the same ids, a topic made anew another one.
            self._created += 1
            info = TopicInfo(name, f"topic-{self._created}", partitions, dict(config))
            limit = int(config.get("max.message.bytes", MAX_RECORD_BYTES))
            self.stored[name] = StoredTopic(info, [Partition() for _ in range(partitions)], limit)
            for group in self.groups.values():
                self._rebalance(group)
            self.changed.notify_all()
            return True

    def alter(self, name: str, config: Mapping[str, str]) -> None:
        with self.changed:
            topic = self.topic(name)
            merged = {**topic.info.config, **config}
            topic.info = TopicInfo(name, topic.info.topic_id, topic.info.partitions, merged)

    def delete(self, names: Sequence[str]) -> None:
        with self.changed:
            for name in names:
                self.stored.pop(name, None)
                for group in self.groups.values():
                    group.offsets = {p: o for p, o in group.offsets.items() if p[0] != name}
            self.changed.notify_all()

    def delete_records(self, position: Position, before: int) -> None:
        """Drop the records of a partition before an offset, as retention does."""
        with self.changed:
            partition = self.partition(position)
            gone = max(min(before, partition.end) - partition.base, 0)
            del partition.records[:gone]
            partition.base += gone

    def offsets(self, positions: Sequence[Position], at: int) -> dict[Position, int]:
        with self.changed:
            return {p: offset_at(self.partition(p), at) for p in positions}

    def group_offsets(self, group: str, positions: Sequence[Position]) -> dict[Position, int]:
        with self.changed:
            offsets = self.groups[group].offsets if group in self.groups else {}
            return {p: offsets[p] for p in positions if p in offsets}

    # Shared with producers and consumers of this module.
    def topic(self, name: str) -> StoredTopic:
        topic = self.stored.get(name)
        if topic is None:
            raise TopicGoneError(f"topic '{name}' does not exist", hint=nearest(name, self.stored))
        return topic

    def partition(self, position: Position) -> Partition:
        return self.topic(position[0]).partitions[position[1]]

    def join(self, consumer: MemoryConsumer, group: str) -> None:
        with self.changed:
            self.groups.setdefault(group, Group()).members.append(consumer)
            self._rebalance(self.groups[group])
            self.changed.notify_all()

    def leave(self, consumer: MemoryConsumer, group: str) -> None:
        with self.changed:
            members = self.groups[group].members
            if consumer in members:
                members.remove(consumer)
                self._rebalance(self.groups[group])
                self.changed.notify_all()

    def _rebalance(self, group: Group) -> None:
        """Range assignment per topic. A partition goes to its new owner only once the old one has let go."""
        members = group.members
        wanted: dict[int, set[Position]] = {id(m): set() for m in members}
        for name, topic in self.stored.items():
            readers = [m for m in members if name in m.subscribed]
            if not readers:
                continue
            for part, numbers in zip(
                readers, np.array_split(np.arange(len(topic.partitions)), len(readers)), strict=True
            ):
                wanted[id(part)] |= {(name, int(n)) for n in numbers}
        for member in members:
            member.target = wanted[id(member)]
