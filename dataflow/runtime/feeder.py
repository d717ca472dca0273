"""A source stage: feeds an edge from outside Kafka, in one process at a time, and goes on where the log says it was.

The members of the stage's group elect the feeder: it is whoever owns partition 0 of the edge's topic. Only the feeder
writes that topic, so the number of records in it is how far it got: no position is kept beside the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final, Protocol

from dataflow.core import ids, limits
from dataflow.core.batch import Batch, Row
from dataflow.core.errors import TransportError
from dataflow.planner.plan import Plan, StagePlan
from dataflow.runtime.parts import StageParts
from dataflow.runtime.writer import Barrier
from dataflow.transport.api import LATEST, Fabric, Position

IDLE_WAIT_S: Final = 0.05


class Source(Protocol):
    """What a kind with ``source=True`` can do, see `nodes/file.py`."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def skip(self, records: int) -> None: ...
    def due(self, now_s: float) -> int: ...
    def wait_s(self, now_s: float) -> float: ...
    def read(self, max_records: int) -> tuple[Any, int] | None: ...


class Feeder:
    """Runs one source node. `run` returns when stopped."""

    def __init__(
        self,
        build: Callable[[], StageParts],
        fabric: Fabric,
        plan: Plan,
        stage: StagePlan,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._build = build
        self._fabric = fabric
        self._edge = plan.edges[next(iter(plan.nodes[stage.nodes[0]].outputs.values()))]
        self._group = stage.group
        self._clock = clock
        self._stopping = threading.Event()
        self._elected = False

    def stop(self) -> None:
        """Ask it to end; returns at once. Thread-safe."""
        self._stopping.set()

    def run(self) -> None:
        parts = self._build()
        topic = self._edge.topics[0]
        metrics = parts.program.metrics
        with ExitStack() as stack:
            consumer = self._fabric.consumer(self._group, start=LATEST)
            stack.callback(consumer.close)
            consumer.subscribe([topic], self)
            metrics.state = "running"
            fed: ExitStack | None = None
            source: Source | None = None
            while not self._stopping.is_set():
                # Polling keeps the membership; what it fetches is our own and is left alone.
                consumer.poll(limits.MAX_BATCH_RECORDS, IDLE_WAIT_S if source is None else 0)
                if self._elected and source is None and fed is None:
                    fed = stack.enter_context(ExitStack())
                    source = self._begin(parts, fed)
                elif not self._elected and fed is not None:
                    fed.close()
                    fed, source = None, None
                if source is not None and not self._feed(source, parts):
                    source = (
                        None  # the end of the source; the membership is kept, so that nobody starts it again
                    )
        metrics.state = "stopped"

    def _begin(self, parts: StageParts, stack: ExitStack) -> Source:
        source: Source = parts.nodes[0]  # type: ignore[assignment]  # a kind with source=True has these methods
        self._producer = self._fabric.producer(latency_first=False)
        stack.callback(self._producer.close)
        source.open()
        stack.callback(source.close)
        topic = self._edge.topics[0]
        ends = self._fabric.admin().offsets([(topic, n) for n in range(self._edge.partitions)], LATEST)
        self._sent = sum(ends.values())
        source.skip(self._sent)
        return source

    def _feed(self, source: Source, parts: StageParts) -> bool:
        """Send what is due and wait until it is acknowledged; False at the end of the source."""
        now_s = self._clock()
        count = source.due(now_s)
        if count == 0:
            self._stopping.wait(min(max(source.wait_s(now_s), 0.001), IDLE_WAIT_S))
            return True
        part = source.read(min(count, limits.MAX_BATCH_RECORDS))
        if part is None:
            return False
        columns, count = part
        time_ms = int(now_s * 1000)
        seed = ids.seed_of("source", self._edge.topics[0], 0)
        made = ids.of_positions(seed, [time_ms] * count, range(self._sent, self._sent + count))
        batch = Batch(self._edge.schema, columns, [Row(i, source=n) for n, i in enumerate(made)])
        writer = parts.program.writers[self._edge.name]
        barrier = Barrier()
        encoded, failed = writer.seal(batch)
        failed += writer.write(encoded, 0, self._producer, barrier)
        if failed:
            raise TransportError(f"source '{self._edge.node}': {failed[0].reason}")
        while barrier.open:
            self._producer.poll(IDLE_WAIT_S)
        if barrier.error:
            raise TransportError(f"writing edge '{self._edge.name}': {barrier.error}")
        self._sent += count
        parts.program.metrics.records += count
        return True

    # Rebalance
    def starting(self, positions: Sequence[Position]) -> None:
        """Nobody is to be fenced: the log itself says how far an earlier feeder got."""

    def assigned(self, positions: Sequence[Position]) -> None:
        self._elected = self._elected or any(n == 0 for _, n in positions)

    def revoked(self, positions: Sequence[Position]) -> None:
        self._elected = self._elected and not any(n == 0 for _, n in positions)

    def lost(self, positions: Sequence[Position]) -> None:
        self.revoked(positions)
