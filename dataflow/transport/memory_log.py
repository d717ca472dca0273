"""What the log in memory stores, and the clients that read and write it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dataflow.core.errors import FencedError, OffsetOutOfRangeError, RecordTooLargeError, TransportError
from dataflow.transport.api import (
    EARLIEST,
    LATEST,
    Consumer,
    Delivered,
    Header,
    Position,
    Rebalance,
    TopicInfo,
)
from dataflow.transport.murmur import murmur2_partition

if TYPE_CHECKING:
    from dataflow.transport.memory import MemoryFabric


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
class Partition:
    records: list[MemoryMessage] = field(default_factory=list)
    base: int = 0  # offset of records[0]: what came before was deleted

    @property
    def end(self) -> int:
        return self.base + len(self.records)


@dataclass
class StoredTopic:
    info: TopicInfo
    partitions: list[Partition]
    max_bytes: int
    round_robin: int = 0


@dataclass
class Group:
    offsets: dict[Position, int] = field(default_factory=dict)
    members: list[MemoryConsumer] = field(default_factory=list)


def offset_at(partition: Partition, at: int) -> int:
    """Offset at EARLIEST, LATEST or the first record with time >= `at` (Unix ms)."""
    if at == EARLIEST:
        return partition.base
    if at == LATEST:
        return partition.end
    for message in partition.records:
        if message.timestamp()[1] >= at:
            return message.offset()
    return partition.end


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


class MemoryTransaction(MemoryProducer):
    """Keeps its records until the commit: a reader of this log sees what a read-committed reader of Kafka sees."""

    def __init__(self, fabric: MemoryFabric, name: str, epoch: int) -> None:
        super().__init__(fabric)
        self._name = name
        self._epoch = epoch
        self._held: list[tuple[str, bytes | None, bytes | None, list[Header] | None, int, int]] = []
        self._waiting: list[Delivered] = []
        self._open = False

    def begin(self) -> None:
        assert not self._open, "a transaction is open already"
        self._open = True

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
        assert self._open, "no transaction is open"
        target = self._fabric.topic(topic)
        size = len(value or b"") + len(key or b"")
        if size > target.max_bytes:
            raise RecordTooLargeError(
                f"a record of {size} bytes for topic '{topic}' (limit {target.max_bytes})"
            )
        self._held.append((topic, value, key, headers, partition, timestamp_ms))
        if on_delivery is not None:
            self._waiting.append(on_delivery)

    def poll(self, timeout_s: float) -> int:
        del timeout_s
        waiting, self._waiting = self._waiting, []
        for report in waiting:
            report(None, None)
        return len(waiting)

    def flush(self, timeout_s: float) -> int:
        self.poll(timeout_s)
        return 0

    def start_commit(self, offsets: Mapping[Position, int], consumer: Consumer) -> None:
        assert self._open, "no transaction is open"
        assert isinstance(consumer, MemoryConsumer), "one fabric makes both"
        self.poll(0)
        with self._fabric.changed:
            if self._fabric.epochs[self._name] != self._epoch:
                raise FencedError(f"producer '{self._name}' was taken over")
            if offsets:
                consumer.commit(offsets, wait=True)
            for topic, value, key, headers, partition, timestamp_ms in self._held:
                super().send(topic, value, key, headers, partition, None, timestamp_ms)
            self._held, self._open = [], False

    def finish_commit(self) -> None:
        """It is through already."""

    def commit(self, offsets: Mapping[Position, int], consumer: Consumer) -> None:
        self.start_commit(offsets, consumer)
        self.finish_commit()

    def abort(self) -> None:
        self.poll(0)
        self._held, self._open = [], False

    def close(self) -> None:
        self.abort()


class MemoryConsumer:
    """A group member or a groupless reader."""

    def __init__(self, fabric: MemoryFabric, group: str | None, start: int) -> None:
        self._fabric = fabric
        self._group = group
        self._start = start
        self._rebalance: Rebalance | None = None
        self._positions: dict[Position, int] = {}
        self._paused: set[Position] = set()
        self._ended: dict[Position, int] = {}
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
                p: offset_at(self._fabric.partition(p), o) if o < 0 else o for p, o in offsets.items()
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
            group = self._fabric.groups[self._group]
            taken = {p for m in group.members if m is not self for p in m._positions}
            new = sorted(self.target - set(self._positions) - taken)
            # Ours from here on: nobody takes what somebody holds.
            self._positions.update(dict.fromkeys(new, 0))
        if not new:
            return
        self._rebalance.starting(new)
        with self._fabric.changed:
            for position in new:
                start = group.offsets.get(position)
                self._positions[position] = (
                    offset_at(self._fabric.partition(position), self._start) if start is None else start
                )
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
            offsets = self._fabric.groups.setdefault(self._group, Group()).offsets
            return {p: offsets.get(p) for p in positions}

    def position(self, positions: Sequence[Position]) -> dict[Position, int | None]:
        return {p: self._positions.get(p) for p in positions}

    def high(self, position: Position) -> int | None:
        return self._fabric.partition(position).end

    def ends(self) -> dict[Position, int]:
        with self._fabric.changed:
            unpaused = {p: at for p, at in self._positions.items() if p not in self._paused}
            reached = {p: at for p, at in unpaused.items() if self._fabric.partition(p).end == at}
        # What has got more, or was paused, is told again.
        before, self._ended = self._ended, reached
        return {p: at for p, at in reached.items() if before.get(p) != at}

    def close(self) -> None:
        if self._group is None or self._rebalance is None:
            return
        try:
            if self._positions:
                self._rebalance.revoked(sorted(self._positions))
        finally:  # whatever the callback raises: it is gone, as with the real client
            with self._fabric.changed:
                self._positions = {}
            self._fabric.leave(self, self._group)
