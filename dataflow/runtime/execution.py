"""One fetched batch on its way through a stage. Pure: the time comes in, nothing sleeps, nothing is sent.

Nodes run in topological order, each with what its upstream nodes emitted. Rows that failed in a retryable way wait
for their time and are run again at that node; the batch is not over before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from dataflow.core.batch import Batch, Row
from dataflow.core.outcomes import Loss
from dataflow.planner.plan import RetryPolicy
from dataflow.runtime.nodes import NodeRunner


@dataclass(frozen=True)
class Program:
    """A stage ready to run: its nodes in order, and which of them an edge feeds, as (index of node, input port)."""

    runners: tuple[NodeRunner, ...]
    feeds: Mapping[str, tuple[tuple[int, str], ...]]
    edges_of: tuple[Mapping[str, str], ...]  # by node index: output port -> edge name


@dataclass(frozen=True, slots=True)
class Ended:
    """A row that goes no further. `error` is "" for a drop."""

    row: Row
    reason: str
    node: str
    error: str = ""


@dataclass(order=True, slots=True)
class _Work:
    due_ms: int
    node: int
    sequence: int
    port: str = field(compare=False)
    batch: Batch = field(compare=False)
    attempt: int = field(compare=False, default=1)


class Execution:
    """Feed it an edge's batch, then `step` until it is `over`; results gather in `written` and `ended`."""

    def __init__(self, program: Program, edge: str, batch: Batch) -> None:
        self._program = program
        self._queue: list[_Work] = []
        self._sequence = 0
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
        runner = self._program.runners[work.node]
        result = runner.run(work.batch, work.port)
        edges = self._program.edges_of[work.node]
        for port, batch in result.emitted:
            if len(batch):
                edge = edges[port]
                self.written.append((edge, batch))
                self._offer(edge, batch)
        rows = work.batch.rows
        for loss in result.dropped:
            runner.metrics.dropped.add(loss.reason)
            self.ended.append(Ended(rows[loss.row], loss.reason, runner.plan.name))
        if result.failed:
            self._fail(work, result.failed, runner, now_ms)

    def _fail(self, work: _Work, losses: list[Loss], runner: NodeRunner, now_ms: int) -> None:
        policy = runner.plan.retry
        again = [x.row for x in losses if x.retryable and work.attempt < policy.attempts]
        if again:
            runner.metrics.retries += len(again)
            due_ms = now_ms + backoff_ms(policy, work.attempt)
            self._push(work.node, work.port, work.batch.take(again), due_ms, work.attempt + 1)
        retried = set(again)
        for loss in losses:
            if loss.row not in retried:
                runner.metrics.failed.add(loss.error)
                row = work.batch.rows[loss.row]
                self.ended.append(Ended(row, loss.reason, runner.plan.name, loss.error))

    def _offer(self, edge: str, batch: Batch) -> None:
        for node, port in self._program.feeds.get(edge, ()):
            self._push(node, port, batch, 0, 1)

    def _push(self, node: int, port: str, batch: Batch, due_ms: int, attempt: int) -> None:
        self._sequence += 1
        # Order: due first, then upstream nodes before downstream ones, then first come.
        heappush(self._queue, _Work(due_ms, node, self._sequence, port, batch, attempt))


def backoff_ms(policy: RetryPolicy, attempt: int) -> int:
    """Wait before attempt `attempt` + 1: doubling from backoff_ms, at most backoff_max_ms. No jitter: one task, one row."""
    return int(min(policy.backoff_ms * 2 ** (attempt - 1), max(policy.backoff_max_ms, policy.backoff_ms)))
