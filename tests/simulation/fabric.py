"""A cluster in memory as processes see it that die, freeze and are cut off at any call. One thread, one seed.

What is added to `MemoryFabric`: records are under way for a while (a process that dies loses some of them), delivery reports
come late or as errors, a transaction's commit may fail with a known or an unknown outcome, a member that is not heard of
is put out of its group and learns of it only with its next poll. Nothing here waits: time is the clock's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from random import Random
from typing import Literal

from dataflow.core.errors import RecordTooLargeError, TransportError
from dataflow.testing.pipelines import HandClock
from dataflow.transport.api import EARLIEST, Consumer, Delivered, Header, Position
from dataflow.transport.memory import MemoryFabric
from dataflow.transport.memory_log import (
    Group,
    MemoryConsumer,
    MemoryMessage,
    MemoryProducer,
    MemoryTransaction,
)

Outcome = Literal["refused", "unknown"]


class Killed(BaseException):
    """The process is gone: nothing catches this but the one who killed it."""


class Process:
    """A worker's process. `fuse`: it dies within so many calls of its clients; 0 for not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.fuse = 0
        self.died_at = ""
        self.producers: list[SimProducer] = []
        self.consumers: list[SimConsumer] = []

    def call(self, what: str) -> None:
        """A client does something. Raises Killed."""
        if self.alive and self.fuse:
            self.fuse -= 1
            if not self.fuse:
                self.die(what)
        if not self.alive:
            raise Killed

    def die(self, what: str) -> None:
        """End here and now. Of what is under way some still arrives."""
        self.alive, self.died_at = False, what
        for producer in self.producers:
            producer.arrive()


class SimFabric(MemoryFabric):
    """See the module. `outcome` is what the next transaction's commit comes to; `failing` which delivery from now fails."""

    def __init__(self, clock: HandClock, rng: Random) -> None:
        super().__init__(clock)
        self.hand_clock = clock
        self.rng = rng
        self.outcome: Outcome | None = None
        self.failing = 0
        self.fences = True
        self.zombies = 0  # members that were put out alive
        self.hurt = 0  # faults that came about

    def evict(self, consumer: SimConsumer) -> None:
        """Put a member out of its group: its session is over, whether it lives or not."""
        group = self.groups[consumer.group_name]
        if consumer not in group.members:
            return
        group.members.remove(consumer)
        consumer.put_out()
        self._rebalance(group)
        self.hurt += 1


class ProcessFabric:
    """The cluster as one process sees it."""

    def __init__(self, cluster: SimFabric, process: Process) -> None:
        self._cluster = cluster
        self._process = process

    def producer(self, *, latency_first: bool = True, single_flight: bool = False) -> SimProducer:
        del latency_first, single_flight
        made = SimProducer(self._cluster, self._process)
        self._process.producers.append(made)
        return made

    def transactional(self, name: str, *, latency_first: bool = False) -> SimTransaction:
        del latency_first
        self._process.call("begin transactions")
        with self._cluster.changed:
            self._cluster.epochs[name] = self._cluster.epochs.get(name, 0) + 1
            return SimTransaction(self._cluster, self._process, name, self._cluster.epochs[name])

    def transactionals(self, names: Sequence[str], *, latency_first: bool = False) -> list[SimTransaction]:
        return [self.transactional(name, latency_first=latency_first) for name in names]

    def consumer(
        self, group: str | None = None, *, start: int = EARLIEST, together: bool = False
    ) -> SimConsumer:
        made = SimConsumer(self._cluster, self._process, group, start)
        if group is not None:
            self._process.consumers.append(made)
        return made

    def admin(self) -> SimFabric:
        return self._cluster

    def close(self) -> None:
        """Nothing to release."""


_Queued = tuple[str, bytes | None, bytes | None, list[Header] | None, int, Delivered | None, int]


class SimProducer(MemoryProducer):
    """Records are under way until a poll, a flush, or the end of the process."""

    def __init__(self, cluster: SimFabric, process: Process) -> None:
        super().__init__(cluster)
        self._cluster = cluster
        self._process = process
        self._queue: deque[_Queued] = deque()
        self._slow: set[str] = set()  # topics that take nothing for now

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
        self._process.call(f"send to {topic}")
        target = self._cluster.topic(topic)
        if len(value or b"") + len(key or b"") > target.max_bytes:
            raise RecordTooLargeError(f"too large for '{topic}'")
        self._queue.append((topic, value, key, headers, partition, on_delivery, timestamp_ms))

    def _deliver(self, count: int) -> None:
        for _ in range(count):
            if not self._queue:
                break
            if self._cluster.failing and self._queue[0][5] is not None:
                self._cluster.failing -= 1
                if not self._cluster.failing:
                    self._fail()
                    break
            super().send(*self._queue.popleft())
        super().poll(0)

    def _fail(self) -> None:
        """The connection is lost: all that is under way is reported as failed, some of it is there all the same."""
        self._cluster.hurt += 1
        arrived = self._cluster.rng.randint(0, len(self._queue))
        queue, self._queue = list(self._queue), deque()
        for queued in queue[:arrived]:
            super().send(*queued[:5], None, queued[6])
        for queued in queue:
            if queued[5] is not None:
                queued[5]("timed out", None)

    def arrive(self) -> None:
        """The process is dead: some of what was under way is in the log."""
        for queued in [self._queue.popleft() for _ in range(self._cluster.rng.randint(0, len(self._queue)))]:
            super().send(*queued[:5], None, queued[6])
        self._queue.clear()

    def poll(self, timeout_s: float) -> int:
        """Some arrive: in order on each topic, and in no order between them."""
        self._process.call("poll of a producer")
        self._cluster.hand_clock.advance(timeout_s)
        rng = self._cluster.rng
        before = len(self._queue)
        if rng.random() < 0.2:
            self._slow = {t for t in dict.fromkeys(q[0] for q in self._queue) if rng.random() < 0.4}
        fast = [q for q in self._queue if q[0] not in self._slow]
        waiting = deque(q for q in self._queue if q[0] in self._slow)
        self._queue = deque(fast)
        self._deliver(rng.randint(0, len(fast)))
        # Reports may have been answered by new records: those come last.
        self._queue = deque([*self._queue, *waiting])
        return before - len(self._queue)

    def flush(self, timeout_s: float) -> int:
        self._process.call("flush")
        self._deliver(len(self._queue))
        return 0

    def close(self) -> None:
        if self._process.alive:
            self._deliver(len(self._queue))


class SimTransaction(MemoryTransaction):
    """A transaction's records are seen with its commit; its acknowledgements come late, too."""

    def __init__(self, cluster: SimFabric, process: Process, name: str, epoch: int) -> None:
        super().__init__(cluster, name, epoch)
        self._cluster = cluster
        self._process = process

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
        self._process.call(f"send to {topic}")
        super().send(topic, value, key, headers, partition, on_delivery, timestamp_ms)

    def poll(self, timeout_s: float) -> int:
        self._process.call("poll of a transaction")
        return self._report(self._cluster.rng.randint(0, len(self._waiting)))

    def _report(self, count: int) -> int:
        reports, self._waiting = self._waiting[:count], self._waiting[count:]
        for report in reports:
            if self._cluster.failing:
                self._cluster.failing -= 1
                if not self._cluster.failing:
                    self._cluster.hurt += 1
                    report("timed out", None)
                    continue
            report(None, None)
        return count

    def flush(self, timeout_s: float) -> int:
        self._process.call("flush of a transaction")
        self._report(len(self._waiting))
        return 0

    def start_commit(self, offsets: Mapping[Position, int], consumer: Consumer) -> None:
        self._process.call("before the commit of a transaction")
        self._report(len(self._waiting))
        outcome, self._cluster.outcome = self._cluster.outcome, None
        if outcome == "refused":
            self._cluster.hurt += 1
            raise TransportError("the transaction was not committed")
        if not self._cluster.fences:
            self._epoch = self._cluster.epochs[self._name]
        # Offsets and records are one: nobody dies in between.
        fuse, self._process.fuse = self._process.fuse, 0
        super().start_commit(offsets, consumer)
        self._process.fuse = fuse
        if outcome == "unknown":
            self._cluster.hurt += 1
            raise TransportError("whether the transaction was committed is not known")
        self._process.call("after the commit of a transaction")

    def abort(self) -> None:
        if self._process.alive:
            self._report(len(self._waiting))
        self._held, self._open = [], False

    def close(self) -> None:
        self.abort()


class SimConsumer(MemoryConsumer):
    """A member may be put out of its group; it learns of it when it polls."""

    def __init__(self, cluster: SimFabric, process: Process, group: str | None, start: int) -> None:
        super().__init__(cluster, group, start)
        self._cluster = cluster
        self._process = process
        self._lost: list[Position] | None = None

    @property
    def group_name(self) -> str:
        assert self._group is not None
        return self._group

    def put_out(self) -> None:
        self._lost = sorted(self._positions)
        self._positions, self.target = {}, set()
        self._paused.clear()

    def poll(self, max_records: int, timeout_s: float) -> Sequence[MemoryMessage]:
        self._process.call("fetch")
        if self._lost is not None:
            lost, self._lost = self._lost, None
            assert self._rebalance is not None
            if lost:
                self._rebalance.lost(lost)
            self._cluster.join(self, self.group_name)
        self._follow_group()
        if self._group is None:
            return self._take(max_records)
        return self._take(min(max_records, self._cluster.rng.choice((1, 2, 3, 5, 8, 50))))

    def commit(self, offsets: Mapping[Position, int], *, wait: bool) -> None:
        if offsets:
            self._process.call("before the commit of offsets")
        if self._lost is not None and not wait:
            return  # refused, and nobody hears of it
        if self._cluster.fences:
            super().commit(offsets, wait=wait)
        else:
            self._cluster.groups.setdefault(self.group_name, Group()).offsets.update(offsets)
        if offsets:
            self._process.call("after the commit of offsets")

    def seek(self, position: Position, offset: int) -> None:
        if position in self._positions:
            super().seek(position, offset)

    def close(self) -> None:
        if self._process.alive and self._lost is None:
            super().close()
