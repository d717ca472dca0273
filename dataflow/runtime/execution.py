"""One fetched batch on its way through a stage. Pure: the time comes in, nothing sleeps, nothing is sent.

Nodes run in topological order, each with what its upstream nodes emitted. Rows that failed in a retryable way wait
for their time and are run again at that node; the batch is not over before them. What the node gave for other rows of
the same keys is held back until then: order per key is kept, and no other key waits. A keyed node says itself which
later rows of such a key it did not run (BEHIND).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

import numpy as np

from dataflow.core.batch import UNPACKED, Batch, Encoded, Row
from dataflow.core.errors import shortened
from dataflow.core.headers import STATUS_EXPIRED
from dataflow.core.outcomes import BEHIND, Loss
from dataflow.planner.plan import FAILED_FIELDS, FAILED_PORT
from dataflow.runtime.nodes import NOTHING, NodeResult, NodeRunner
from dataflow.runtime.waiting import backoff_ms, in_order, merged, parted, places_of, split
from dataflow.state.api import KeyedState, Timer


@dataclass(frozen=True, slots=True)
class Content:
    """What a record was that is not among those fetched with the batch in hand.

    A record made from state has its wire bytes, in `encoded` (of one value); one that was held, the fields it had on
    `edge`, as far as its node told.
    """

    edge: str = ""
    record: Mapping[str, Any] | None = None
    encoded: Encoded | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A row that goes no further. `error` is "" for a drop.

    With `goes_on` it does, as a record of what failed: there is no dead letter, and a caller is told of the failure only
    if nothing answers.
    """

    row: Row
    reason: str
    node: str
    error: str = ""
    content: Content | None = None
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Misfire:
    """A timer whose node raised: what it did is undone, and the timer is gone."""

    timer: Timer
    node: str
    reason: str
    error: str


class States(Protocol):
    """The state of a task, by node."""

    def node_state(self, name: str) -> KeyedState: ...


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
    """`held`: what the node gave already, by port, for rows whose keys wait for this work; `places` they all had at first."""

    due_ms: int
    node: int
    sequence: int
    port: str = field(compare=False)
    batch: Batch = field(compare=False)
    attempts: Sequence[int] | None = field(compare=False, default=None)  # by row; None: the first, of all
    held: list[tuple[str, Batch]] = field(compare=False, default_factory=list)
    places: Mapping[bytes, int] = field(compare=False, default_factory=dict)


class Execution:
    """Feed it an edge's batch (or timers), then `step` until it is `over`; results gather in `written` and `ended`.

    `holds` are rows that a node holds, `kept` their callers (`Row.reply`), `made` records made from state, by caller. `states`
    is the task's. With `deadlines`, a row that waited for its retry and whose caller is gone is not run again.
    """

    def __init__(self, program: Program, states: States | None = None, *, deadlines: bool = False) -> None:
        self._program = program
        self._states = states
        self._deadlines = deadlines
        self._queue: list[_Work] = []
        self._sequence = 0
        self._now_ms = 0
        self._sides: dict[int, dict[str, list[Batch]]] = {}  # what waits for a gathering node, by port
        self.written: list[tuple[str, Batch]] = []
        self.ended: list[Ended] = []
        self.misfired: list[Misfire] = []
        self.kept: Counter[bytes] = Counter()
        self.made: dict[bytes, Row] = {}
        self.holds: list[tuple[str, Sequence[Row], Sequence[int]]] = []

    def feed(self, edge: str, batch: Batch) -> None:
        self._offer(edge, batch)

    def fire(self, due: Sequence[tuple[str, Timer]]) -> None:
        """Fire timers, given as (node, timer), in their order. Where a node raises, its timers are fired one by one."""
        at = {runner.plan.name: index for index, runner in enumerate(self._program.runners)}
        for name, group in groupby(due, key=itemgetter(0)):
            timers = [timer for _, timer in group]
            try:
                self._fire(at[name], timers)
            except (Exception, SystemExit) as error:  # noqa: BLE001  (user code: whatever comes is the timer's failure)
                if len(timers) == 1:
                    self._misfire(name, timers[0], error)
                    continue
                for timer in timers:
                    try:
                        self._fire(at[name], [timer])
                    except (Exception, SystemExit) as cause:  # noqa: BLE001
                        self._misfire(name, timer, cause)

    def _fire(self, node: int, timers: Sequence[Timer]) -> None:
        self._end(node, self._program.runners[node].fire(timers, self._state(node)))

    def _misfire(self, node: str, timer: Timer, error: BaseException) -> None:
        self.misfired.append(Misfire(timer, node, str(error) or type(error).__name__, type(error).__name__))

    def drain(self, node: int) -> None:
        """Tell a node that its inputs have ended. Raises what it raises."""
        self._end(node, self._program.runners[node].drain(self._state(node)))

    def _end(self, node: int, result: NodeResult) -> None:
        """Take what a call without rows gave."""
        self._keep(node, result, ())
        for port, batch in result.emitted:
            if len(batch):
                self._write(self._program.edges_of[node][port], batch)

    def _state(self, node: int) -> KeyedState:
        assert self._states is not None, "a stage with keyed nodes has state"
        return self._states.node_state(self._program.runners[node].plan.name)

    @property
    def over(self) -> bool:
        return not self._queue

    def under_way(self) -> Iterator[Row]:
        """Every row that some work waits with."""
        return (row for work in self._queue for row in self._rows_of(work))

    @property
    def due_ms(self) -> int:
        """When to step again; only meaningful while not over. 0 is now."""
        return self._queue[0].due_ms

    def see(self, now_ms: int) -> None:
        """Note the time: where the clock has gone back, what waits does so no longer than it was to."""
        for work in self._queue if now_ms < self._now_ms else ():
            work.due_ms -= self._now_ms - now_ms
        self._now_ms = now_ms

    def step(self, now_ms: int) -> None:
        """Run all that is due."""
        self.see(now_ms)
        while self._queue and self._queue[0].due_ms <= now_ms:
            self._run(heappop(self._queue), now_ms)

    def _run(self, work: _Work, now_ms: int) -> None:
        if work.node in self._program.gathering:
            self._run_gathered(work, now_ms)
            return
        runner = self._program.runners[work.node]
        if self._deadlines and work.attempts is not None:
            self._expire(work, work.attempts, now_ms)
        state = self._state(work.node) if runner.keyed else None
        result = runner.run(work.batch, work.port, state) if len(work.batch) else NOTHING
        rows = work.batch.rows
        self._drop(result.dropped, rows, runner)
        if runner.keyed:
            self._keep(work.node, result, rows)
        again = self._fail(work, result.failed, runner) if result.failed else {}
        emitted = merged(work.held, result.emitted, work.places) if work.held else result.emitted
        held: list[tuple[str, Batch]] = []
        if again:
            emitted, held = split(emitted, {rows[i].key for i in again} - {None})
            # Rows that were only behind others need no wait once these have ended.
            tried = [n - 1 for i, n in again.items() if work.attempts is None or n > work.attempts[i]]
            seed = rows[next(iter(again))].id
            due_ms = now_ms + (backoff_ms(runner.plan.retry, max(tried), seed) if tried else 0)
            attempts = list(again.values())
            left = work.batch.take(list(again))
            self._push(work.node, work.port, left, due_ms, attempts, held, work.places or places_of(rows))
        for port, batch in emitted:
            if len(batch):
                self._write(self._program.edges_of[work.node][port], batch)

    def _expire(self, work: _Work, attempts: Sequence[int], now_ms: int) -> None:
        """End the rows of some work whose callers have given up; only where somebody waits is there one to tell."""
        rows = work.batch.rows
        late = {i for i, row in enumerate(rows) if row.reply and 0 < row.deadline_ms <= now_ms}
        if not late:
            return
        runner = self._program.runners[work.node]
        for i in sorted(late):
            runner.metrics.dropped.add(STATUS_EXPIRED)
            self.ended.append(Ended(rows[i], STATUS_EXPIRED, runner.plan.name))
        alive = [i for i in range(len(rows)) if i not in late]
        work.batch = work.batch.take(alive)
        work.attempts = [attempts[i] for i in alive]

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
        sides = {port: in_order(parts) for port, parts in found}
        if upstream:
            sides, waiting = parted(sides, [row for w in upstream for row in self._rows_of(w)])
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
            row = rows[loss.row]
            content = _content(list(sides.values()), loss.row) if row.source < 0 else None
            self.ended.append(Ended(row, loss.reason, runner.plan.name, loss.error, content))
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

    def _keep(self, node: int, result: NodeResult, rows: Sequence[Row]) -> None:
        """Note whose rows the node holds now, and what became of those it held."""
        runner = self._program.runners[node]
        if result.held:
            self.kept.update(rows[i].reply for i in result.held)
            self.holds.append((runner.plan.name, rows, result.held))
        if self._deadlines:
            for _, batch in result.emitted:
                for row in batch.rows:
                    if row.reply and row.source < UNPACKED:
                        self.made[row.reply] = row
                        self._let_go(row.reply)
        for x in result.endings:
            counts = runner.metrics.failed if x.error else runner.metrics.dropped
            counts.add(x.error or x.reason)
            content = Content(next(iter(runner.plan.inputs.get(x.port, ())), ""), x.record)
            self.ended.append(Ended(x.row, x.reason, runner.plan.name, x.error, content))
            self._let_go(x.row.reply)

    def _let_go(self, reply: bytes) -> None:
        """A node holds one row less of a caller, if it came with this batch."""
        if self.kept[reply] > 1:
            self.kept[reply] -= 1
        else:
            del self.kept[reply]

    def _write(self, edge: str, batch: Batch) -> None:
        seal = self._program.seals.get(edge)
        if seal is not None:
            batch, ended = seal(batch)
            self.ended += ended
        if len(batch):
            self.written.append((edge, batch))
            if edge not in self._program.fetched:  # a loop's records come round by way of Kafka
                self._offer(edge, batch)

    def _fail(self, work: _Work, losses: list[Loss], runner: NodeRunner) -> dict[int, int]:
        """End the rows that failed for good; the others, to be run again, with the number of their next attempt."""
        policy, rows = runner.plan.retry, work.batch.rows
        # A row is behind another one that failed; one that says so without any has made an attempt.
        ahead = {rows[x.row].key for x in losses if x.error != BEHIND}
        again: dict[int, int] = {}
        over: list[Loss] = []
        for loss in sorted(losses, key=lambda x: x.row):
            attempt = work.attempts[loss.row] if work.attempts is not None else 1
            row = rows[loss.row]
            if loss.retryable and loss.error == BEHIND and row.key in ahead:
                again[loss.row] = attempt
            elif loss.retryable and attempt < policy.attempts:
                again[loss.row] = attempt + 1
                runner.metrics.retries += 1
            else:
                over.append(loss)
        if over:
            self._give_up(work, over, runner)
        return again

    def _give_up(self, work: _Work, losses: Sequence[Loss], runner: NodeRunner) -> None:
        """End rows that failed for good; where the node has a port for them, they go out there."""
        goes_on = runner.failed is not None
        for loss in losses:
            runner.metrics.failed.add(loss.error)
            row = work.batch.rows[loss.row]
            content = _content([work.batch], loss.row) if row.source < 0 and not goes_on else None
            self.ended.append(Ended(row, loss.reason, runner.plan.name, loss.error, content, goes_on))
        if runner.failed is not None:
            batch = work.batch.take([loss.row for loss in losses])
            told = {
                "error": [loss.error for loss in losses],
                "reason": [shortened(loss.reason) for loss in losses],
            }
            columns = {**batch.columns, **{n: np.array(told[n], dtype=object) for n in FAILED_FIELDS}}
            failed = Batch(runner.failed, columns, batch.rows)
            self._write(self._program.edges_of[work.node][FAILED_PORT], failed)

    def _offer(self, edge: str, batch: Batch) -> None:
        for node, port in self._program.feeds.get(edge, ()):
            if node not in self._program.gathering:
                self._push(node, port, batch, 0)
                continue
            if node not in self._sides:
                self._push(node, port, batch, 0)
            self._sides.setdefault(node, {}).setdefault(port, []).append(batch)

    def _push(
        self,
        node: int,
        port: str,
        batch: Batch,
        due_ms: int,
        attempts: Sequence[int] | None = None,
        held: list[tuple[str, Batch]] | None = None,
        places: Mapping[bytes, int] | None = None,
    ) -> None:
        self._sequence += 1
        # Order: due first, then upstream nodes before downstream ones, then first come.
        work = _Work(due_ms, node, self._sequence, port, batch, attempts, held or [], places or {})
        heappush(self._queue, work)


def _content(batches: Sequence[Batch], index: int) -> Content:
    """What row `index`, counted over all batches, was as it was written."""
    for batch in batches:
        if index < len(batch):
            encoded = batch.encoded
            return Content(encoded=Encoded(encoded.fingerprint, [encoded.values[index]]) if encoded else None)
        index -= len(batch)
    raise AssertionError("a row that ended is one of its batch")
