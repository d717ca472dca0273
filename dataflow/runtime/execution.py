"""One fetched batch on its way through a stage. Pure: the time comes in, nothing sleeps, nothing is sent.

Nodes run in topological order, each with what its upstream nodes emitted. Rows that failed in a retryable way wait
for their time and are run again at that node; the batch is not over before them. What the node gave for other rows of
the same keys is held back until then: order per key is kept, and no other key waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from dataflow.core.batch import Batch, Row, concatenate
from dataflow.core.outcomes import Loss
from dataflow.planner.plan import RetryPolicy
from dataflow.runtime.nodes import NodeRunner


@dataclass(frozen=True, slots=True)
class Ended:
    """A row that goes no further. `error` is "" for a drop."""

    row: Row
    reason: str
    node: str
    error: str = ""


# Makes a batch what its edge will hold: the rows that can be written, and those that cannot.
Seal = Callable[[Batch], tuple[Batch, list[Ended]]]


@dataclass(frozen=True)
class Program:
    """A stage ready to run: its nodes in order, and which of them an edge feeds, as (index of node, input port).

    `seals` by edge: a row that its edge cannot hold ends there, and no node of this stage sees it either. Fused or cut,
    the same rows go on.
    """

    runners: tuple[NodeRunner, ...]
    feeds: Mapping[str, tuple[tuple[int, str], ...]]
    edges_of: tuple[Mapping[str, str], ...]  # by node index: output port -> edge name
    seals: Mapping[str, Seal] = field(default_factory=dict)
    gathering: frozenset[int] = frozenset()  # indices of nodes that take all their inputs at once
    fetched: frozenset[str] = frozenset()  # edges read from Kafka, also those that this stage itself writes


@dataclass(order=True, slots=True)
class _Work:
    """`held`: what the node gave already, by port, for rows whose keys wait for this work."""

    due_ms: int
    node: int
    sequence: int
    port: str = field(compare=False)
    batch: Batch = field(compare=False)
    attempt: int = field(compare=False, default=1)
    held: list[tuple[str, Batch]] = field(compare=False, default_factory=list)


class Execution:
    """Feed it an edge's batch, then `step` until it is `over`; results gather in `written` and `ended`."""

    def __init__(self, program: Program, edge: str, batch: Batch) -> None:
        self._program = program
        self._queue: list[_Work] = []
        self._sequence = 0
        self._sides: dict[int, dict[str, list[Batch]]] = {}  # what waits for a gathering node, by port
        self.written: list[tuple[str, Batch]] = []
        self.ended: list[Ended] = []
        self._offer(edge, batch)

    @property
    def over(self) -> bool:
        return not self._queue

    @property
    def due_ms(self) -> int:
        """When to step again; only meaningful while not over. 0 is now."""
        return self._queue[0].due_ms

    def step(self, now_ms: int) -> None:
        """Run all that is due."""
        while self._queue and self._queue[0].due_ms <= now_ms:
            self._run(heappop(self._queue), now_ms)

    def _run(self, work: _Work, now_ms: int) -> None:
        if work.node in self._program.gathering:
            self._run_gathered(work, now_ms)
            return
        runner = self._program.runners[work.node]
        result = runner.run(work.batch, work.port)
        rows = work.batch.rows
        self._drop(result.dropped, rows, runner)
        again = self._fail(work, result.failed, runner) if result.failed else []
        emitted = _merged(work.held, result.emitted) if work.held else result.emitted
        held: list[tuple[str, Batch]] = []
        if again:
            emitted, held = _split(emitted, {rows[i].key for i in again} - {None})
            due_ms = now_ms + backoff_ms(runner.plan.retry, work.attempt)
            self._push(work.node, work.port, work.batch.take(again), due_ms, work.attempt + 1, held)
        for port, batch in emitted:
            if len(batch):
                self._write(self._program.edges_of[work.node][port], batch)

    def _run_gathered(self, work: _Work, now_ms: int) -> None:
        """Run a node on all its sides at once, for the records of which nothing is under way upstream any more.

        Those of which something waits for a retry wait too, and those of their keys; no other record does.
        """
        upstream = [w for w in self._queue if w.node < work.node]  # nodes are in topological order
        due_ms = min((w.due_ms for w in upstream), default=now_ms)
        if upstream and due_ms <= now_ms:
            work.due_ms = due_ms
            heappush(self._queue, work)
            return
        found = sorted(self._sides.pop(work.node).items())
        sides = {port: _in_read_order(parts) for port, parts in found}
        if upstream:
            sides, waiting = _parted(sides, [row for w in upstream for row in self._rows_of(w)])
            if waiting:
                self._sides[work.node] = {port: [batch] for port, batch in waiting.items()}
                work.due_ms = due_ms
                heappush(self._queue, work)
        if sides:
            self._gather(work.node, sides)

    def _gather(self, node: int, sides: Mapping[str, Batch]) -> None:
        runner = self._program.runners[node]
        result = runner.gather(sides)
        rows = [row for batch in sides.values() for row in batch.rows]
        self._drop(result.dropped, rows, runner)
        for loss in result.failed:
            runner.metrics.failed.add(loss.error)
            self.ended.append(Ended(rows[loss.row], loss.reason, runner.plan.name, loss.error))
        for port, batch in result.emitted:
            if len(batch):
                self._write(self._program.edges_of[node][port], batch)

    def _rows_of(self, work: _Work) -> Iterator[Row]:
        """Every row that waits with some work."""
        if work.node in self._program.gathering:
            for parts in self._sides[work.node].values():
                for part in parts:
                    yield from part.rows
            return
        yield from work.batch.rows
        for _, batch in work.held:
            yield from batch.rows

    def _drop(self, losses: list[Loss], rows: Sequence[Row], runner: NodeRunner) -> None:
        for loss in losses:
            runner.metrics.dropped.add(loss.reason)
            self.ended.append(Ended(rows[loss.row], loss.reason, runner.plan.name))

    def _write(self, edge: str, batch: Batch) -> None:
        seal = self._program.seals.get(edge)
        if seal is not None:
            batch, ended = seal(batch)
            self.ended += ended
        if len(batch):
            self.written.append((edge, batch))
            if edge not in self._program.fetched:  # a loop's records come round by way of Kafka
                self._offer(edge, batch)

    def _fail(self, work: _Work, losses: list[Loss], runner: NodeRunner) -> list[int]:
        """End the rows that failed for good; the others, to be run again."""
        policy = runner.plan.retry
        again = sorted(x.row for x in losses if x.retryable and work.attempt < policy.attempts)
        runner.metrics.retries += len(again)
        retried = set(again)
        for loss in losses:
            if loss.row not in retried:
                runner.metrics.failed.add(loss.error)
                row = work.batch.rows[loss.row]
                self.ended.append(Ended(row, loss.reason, runner.plan.name, loss.error))
        return again

    def _offer(self, edge: str, batch: Batch) -> None:
        for node, port in self._program.feeds.get(edge, ()):
            if node not in self._program.gathering:
                self._push(node, port, batch, 0, 1)
                continue
            if node not in self._sides:
                self._push(node, port, batch, 0, 1)
            self._sides.setdefault(node, {}).setdefault(port, []).append(batch)

    def _push(
        self,
        node: int,
        port: str,
        batch: Batch,
        due_ms: int,
        attempt: int,
        held: list[tuple[str, Batch]] | None = None,
    ) -> None:
        self._sequence += 1
        # Order: due first, then upstream nodes before downstream ones, then first come.
        heappush(self._queue, _Work(due_ms, node, self._sequence, port, batch, attempt, held or []))


def _split(
    emitted: list[tuple[str, Batch]], keys: set[bytes | None]
) -> tuple[list[tuple[str, Batch]], list[tuple[str, Batch]]]:
    """What may go out, and what waits because its key does. A record without a key waits for nobody."""
    free: list[tuple[str, Batch]] = []
    held: list[tuple[str, Batch]] = []
    for port, batch in emitted:
        waits = np.array([row.key in keys for row in batch.rows], dtype=bool)
        if not waits.any():
            free.append((port, batch))
            continue
        held.append((port, batch.take(np.flatnonzero(waits))))
        free.append((port, batch.take(np.flatnonzero(~waits))))
    return free, held


def _parted(
    sides: Mapping[str, Batch], under_way: Sequence[Row]
) -> tuple[dict[str, Batch], dict[str, Batch]]:
    """The sides of records that nothing is under way of, and those of records that must wait, or whose key must."""
    sources = {row.source for row in under_way}
    keys = {row.key for row in under_way} - {None}
    ready, waiting = {}, {}
    for port, batch in sides.items():
        waits = np.array([row.source in sources or row.key in keys for row in batch.rows], dtype=bool)
        if not waits.all():
            ready[port] = batch.take(np.flatnonzero(~waits)) if waits.any() else batch
        if waits.any():
            waiting[port] = batch.take(np.flatnonzero(waits))
    return ready, waiting


def _merged(held: list[tuple[str, Batch]], emitted: list[tuple[str, Batch]]) -> list[tuple[str, Batch]]:
    """One batch a port, in the order in which the records were read."""
    made = []
    for port in dict.fromkeys(p for p, _ in (*held, *emitted)):
        made.append((port, _in_read_order([b for p, b in (*held, *emitted) if p == port])))
    return made


def _in_read_order(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    batch = concatenate(parts[0].schema, parts)
    order = np.argsort(np.array([row.source for row in batch.rows], dtype=np.intp), kind="stable")
    return batch.take(order)


def backoff_ms(policy: RetryPolicy, attempt: int) -> int:
    """Wait before attempt `attempt` + 1: doubling from backoff_ms, at most backoff_max_ms. No jitter: one task, one row."""
    return int(min(policy.backoff_ms * 2 ** (attempt - 1), max(policy.backoff_max_ms, policy.backoff_ms)))
