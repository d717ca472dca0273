"""A log in memory with Kafka's meaning: partitions, groups, committed offsets, pauses. For tests and `dataflow test`.

It passes the same contract suite as the real broker (tests/transport). Thread-safe by one lock; `poll` waits on a
condition, so nothing spins. The clock is handed in: records carry its time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dataflow.core.errors import (
    OffsetOutOfRangeError,
    RecordTooLargeError,
    TopicGoneError,
    TransportError,
    nearest,
)
from dataflow.core.limits import MAX_RECORD_BYTES
from dataflow.transport.api import EARLIEST, LATEST, Delivered, Header, Position, Rebalance, TopicInfo
from dataflow.transport.murmur import murmur2_partition


class MemoryMessage:
    """A stored record; read like confluent-kafka's Message."""

    __slots__ = ("_headers", "_key", "_offset", "_partition", "_time_ms", "_topic", "_value")

    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] | None,
        time_ms: int,
    ) -> None:
        self._topic, self._partition, self._offset = topic, partition, offset
        self._key, self._value, self._headers, self._time_ms = key, value, headers, time_ms

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> Sequence[tuple[str, bytes]] | None:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return (1, self._time_ms)


@dataclass
class _Partition:
    records: list[MemoryMessage] = field(default_factory=list)
    base: int = 0  # offset of records[0]: what came before was deleted

    @property
    def end(self) -> int:
        return self.base + len(self.records)


@dataclass
class _Topic:
    info: TopicInfo
    partitions: list[_Partition]
    max_bytes: int
    round_robin: int = 0


@dataclass
class _Group:
    offsets: dict[Position, int] = field(default_factory=dict)
    members: list[MemoryConsumer] = field(default_factory=list)


class MemoryFabric:
    """One cluster in memory."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.changed = threading.Condition(threading.RLock())
        self.stored: dict[str, _Topic] = {}
        self.groups: dict[str, _Group] = {}
        self._created = 0

    def producer(self, *, latency_first: bool = True) -> MemoryProducer:
        del latency_first
        return MemoryProducer(self)

    def consumer(self, group: str | None = None, *, start: int = EARLIEST) -> MemoryConsumer:
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
            self.stored[name] = _Topic(info, [_Partition() for _ in range(partitions)], limit)
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
            return {p: self._offset_at(self.partition(p), at) for p in positions}

    @staticmethod
    def _offset_at(partition: _Partition, at: int) -> int:
        if at == EARLIEST:
            return partition.base
        if at == LATEST:
            return partition.end
        for message in partition.records:
            if message.timestamp()[1] >= at:
                return message.offset()
        return partition.end

    def group_offsets(self, group: str, positions: Sequence[Position]) -> dict[Position, int]:
        with self.changed:
            offsets = self.groups[group].offsets if group in self.groups else {}
            return {p: offsets[p] for p in positions if p in offsets}

    # Shared with producers and consumers of this module.
    def topic(self, name: str) -> _Topic:
        topic = self.stored.get(name)
        if topic is None:
            raise TopicGoneError(f"topic '{name}' does not exist", hint=nearest(name, self.stored))
        return topic

    def partition(self, position: Position) -> _Partition:
        return self.topic(position[0]).partitions[position[1]]

    def join(self, consumer: MemoryConsumer, group: str) -> None:
        with self.changed:
            self.groups.setdefault(group, _Group()).members.append(consumer)
            self._rebalance(self.groups[group])
            self.changed.notify_all()

    def leave(self, consumer: MemoryConsumer, group: str) -> None:
        with self.changed:
            members = self.groups[group].members
            if consumer in members:
                members.remove(consumer)
                self._rebalance(self.groups[group])
                self.changed.notify_all()

    def _rebalance(self, group: _Group) -> None:
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


class MemoryProducer:
    """Writes at once; delivery callbacks wait for `poll` as the real client's do."""

    def __init__(self, fabric: MemoryFabric) -> None:
        self._fabric = fabric
        self._reports: list[tuple[Delivered, MemoryMessage]] = []

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
        fabric = self._fabric
        with fabric.changed:
            target = fabric.topic(topic)
            size = len(value or b"") + len(key or b"")
            if size > target.max_bytes:
                raise RecordTooLargeError(
                    f"a record of {size} bytes for topic '{topic}' (limit {target.max_bytes})"
                )
            if partition < 0:
                count = len(target.partitions)
                target.round_robin += 1
                partition = murmur2_partition(key, count) if key is not None else target.round_robin % count
            elif partition >= len(target.partitions):
                raise TransportError(f"topic '{topic}' has no partition {partition}")
            log = target.partitions[partition]
            made = [(n, v.encode() if isinstance(v, str) else v or b"") for n, v in headers or ()]
            time_ms = timestamp_ms or int(fabric.clock() * 1000)
            message = MemoryMessage(topic, partition, log.end, key, value, made or None, time_ms)
            log.records.append(message)
            if on_delivery is not None:
                self._reports.append((on_delivery, message))
            fabric.changed.notify_all()

    def poll(self, timeout_s: float) -> int:
        del timeout_s  # reports are ready at once
        reports, self._reports = self._reports, []
        for report, message in reports:
            report(None, message)
        return len(reports)

    def flush(self, timeout_s: float) -> int:
        while self._reports:
            self.poll(timeout_s)
        return 0

    def close(self) -> None:
        self.flush(0)


class MemoryConsumer:
    """A group member or a groupless reader."""

    def __init__(self, fabric: MemoryFabric, group: str | None, start: int) -> None:
        self._fabric = fabric
        self._group = group
        self._start = start
        self._rebalance: Rebalance | None = None
        self._positions: dict[Position, int] = {}
        self._paused: set[Position] = set()
        self._next = 0
        self.subscribed: tuple[str, ...] = ()
        self.target: set[Position] = set()

    def subscribe(self, topics: Sequence[str], rebalance: Rebalance) -> None:
        assert self._group is not None, "a groupless consumer is assigned, not subscribed"
        self.subscribed = tuple(topics)
        self._rebalance = rebalance
        self._fabric.join(self, self._group)

    def assign(self, offsets: Mapping[Position, int]) -> None:
        with self._fabric.changed:
            self._positions = {
                p: self._fabric._offset_at(self._fabric.partition(p), o) if o < 0 else o
                for p, o in offsets.items()
            }

    def poll(self, max_records: int, timeout_s: float) -> Sequence[MemoryMessage]:
        self._follow_group()
        with self._fabric.changed:
            found = self._take(max_records)
            if not found and timeout_s > 0:
                self._fabric.changed.wait(timeout_s)
                found = self._take(max_records)
        return found

    def _follow_group(self) -> None:
        if self._group is None or self._rebalance is None:
            return
        with self._fabric.changed:
            gone = sorted(set(self._positions) - self.target)
        if gone:
            self._rebalance.revoked(gone)
            with self._fabric.changed:
                for position in gone:
                    self._positions.pop(position, None)
                    self._paused.discard(position)
                self._fabric.changed.notify_all()
        with self._fabric.changed:
            others = [m for m in self._fabric.groups[self._group].members if m is not self]
            taken = set().union(*(m._positions for m in others)) if others else set()
            new = sorted(self.target - set(self._positions) - taken)
            committed = self._fabric.groups[self._group].offsets
            for position in new:
                start = committed.get(position)
                self._positions[position] = (
                    self._fabric._offset_at(self._fabric.partition(position), self._start)
                    if start is None
                    else start
                )
        if new:
            self._rebalance.assigned(new)

    def _take(self, max_records: int) -> list[MemoryMessage]:
        found: list[MemoryMessage] = []
        order = sorted(self._positions)
        self._next += 1  # fair over partitions: the first to be read changes with each poll
        for i in range(len(order)):
            position = order[(i + self._next) % len(order)]
            if position in self._paused or len(found) >= max_records:
                continue
            log = self._fabric.partition(position)
            offset = self._positions[position]
            if offset < log.base or offset > log.end:
                raise OffsetOutOfRangeError(
                    f"{position[0]}[{position[1]}]: offset {offset} is not in the log ({log.base}..{log.end})"
                )
            part = log.records[offset - log.base : offset - log.base + max_records - len(found)]
            self._positions[position] = offset + len(part)
            found.extend(part)
        return found

    def pause(self, positions: Iterable[Position]) -> None:
        self._paused |= set(positions)

    def resume(self, positions: Iterable[Position]) -> None:
        self._paused -= set(positions)

    def seek(self, position: Position, offset: int) -> None:
        self._positions[position] = offset

    def commit(self, offsets: Mapping[Position, int], *, wait: bool) -> None:
        del wait
        assert self._group is not None, "a groupless consumer commits nothing"
        with self._fabric.changed:
            foreign = [p for p in offsets if p not in self._positions]
            if foreign:
                raise TransportError(
                    f"committing {foreign[0][0]}[{foreign[0][1]}]: this member does not own it"
                )
            self._fabric.groups[self._group].offsets.update(offsets)

    def committed(self, positions: Sequence[Position]) -> dict[Position, int | None]:
        assert self._group is not None
        with self._fabric.changed:
            offsets = self._fabric.groups.setdefault(self._group, _Group()).offsets
            return {p: offsets.get(p) for p in positions}

    def position(self, positions: Sequence[Position]) -> dict[Position, int | None]:
        return {p: self._positions.get(p) for p in positions}

    def close(self) -> None:
        if self._group is None:
            return
        if self._positions and self._rebalance is not None:
            self._rebalance.revoked(sorted(self._positions))
        with self._fabric.changed:
            self._positions = {}
        self._fabric.leave(self, self._group)
