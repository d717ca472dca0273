"""One stage of one pipeline in this process: the thin I/O loop around its tasks, on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import Final

from dataflow.core import limits
from dataflow.planner.plan import transactional_id
from dataflow.runtime.commits import commit_transactions, write_states
from dataflow.runtime.keeping import Keeper
from dataflow.runtime.lanes import Lanes
from dataflow.runtime.loop_wait import BUSY_WAIT_S, IDLE_WAIT_S, wait_s
from dataflow.runtime.parts import StageParts
from dataflow.runtime.replies import Replies
from dataflow.runtime.restore import Restorer
from dataflow.runtime.task import Task
from dataflow.transport.api import (
    EARLIEST,
    Consumer,
    Fabric,
    Message,
    Position,
    Producer,
    TransactionalProducer,
)

log = logging.getLogger("dataflow.stage")

# One wait for acknowledgements that a caller's answer hangs on; it returns with the first of them.
ACK_WAIT_S: Final = 0.001
# Under steady load a change of a broadcast table is seen this late.
TABLE_REFRESH_S: Final = 0.05


class StageLoop:
    """Fetch, hand to tasks, wait for acknowledgements, commit. `run` returns when stopped or raises what stopped it."""

    def __init__(
        self, build: Callable[[], StageParts], fabric: Fabric, clock: Callable[[], float] = time.time
    ) -> None:
        self._build = build
        self._fabric = fabric
        self._clock = clock
        self._stopping = threading.Event()
        self._tasks: dict[int, Task] = {}
        self._owned: dict[int, set[Position]] = {}
        self.paused: set[int] = set()
        self._transactions: dict[int, TransactionalProducer] = {}
        self._committed_at = 0.0
        self._torn = False
        self._refreshed_at = 0.0
        self._inputs_ended = threading.Event()
        self._told = False
        self.drained = threading.Event()
        self._restorer: Restorer | None = None
        self._parts: StageParts
        self._consumer: Consumer
        self._source: Consumer | Lanes  # where records come from: the same, or with the hand-off before it
        self._producer: Producer
        self._replies: Replies

    def stop(self) -> None:
        """Ask the loop to drain and end; returns at once. Thread-safe."""
        self._stopping.set()

    def abandon(self) -> None:
        """Ask the loop to end without another commit: its offsets no longer mean what they did. Thread-safe."""
        self._torn = True
        self._stopping.set()

    def end_inputs(self) -> None:
        """Say that all inputs have ended: every task tells its nodes, once. Thread-safe.

        `drained` is set when all that they gave is committed.
        """
        self._inputs_ended.set()

    def run(self) -> None:
        """Open, turn until stopped, drain, close."""
        with ExitStack() as stack:
            self.open(stack)
            while not self._stopping.is_set():
                self.turn()
            self._drain(list(self._tasks), time.monotonic() + limits.DRAIN_TIMEOUT_MS / 1000)
        self._parts.program.metrics.state = "stopped"

    def open(self, stack: ExitStack) -> None:
        """Build the stage, load its tables, open its nodes, join the group. What is opened is closed by `stack`."""
        self._parts = self._build()
        program = self._parts.program
        answers = program.answer_when is not None
        self._producer = self._fabric.producer(latency_first=answers, single_flight=True)
        stack.callback(self._producer.close)
        self._replies = Replies(self._producer, self._parts.desk)
        stack.callback(self._parts.tables.close)
        self._parts.tables.load()
        for node in self._parts.nodes:
            # Even a node whose open fails half way is closed.
            stack.callback(getattr(node, "close", _nothing))
            getattr(node, "open", _nothing)()
        together = len(program.intakes) > 1
        self._source = self._consumer = self._fabric.consumer(program.plan.group, together=together)
        if self._parts.handover is not None:
            eager = not program.exactly_once
            # Its own connection: behind one another, a request and what is made of it would take two round trips.
            writer = self._fabric.producer(single_flight=eager)
            stack.callback(writer.close)
            self._source = Lanes(self._consumer, self._parts.handover, writer, self._tasks, eager=eager)
        stack.callback(self._end_transactions)
        stack.callback(self._close_states)
        stack.callback(self._source.close)
        if program.state is not None:
            self._restorer = Restorer(self._fabric, program.state.changelog)
        self._consumer.subscribe(sorted(program.intakes), self)
        program.metrics.state, program.metrics.error = "running", ""

    @property
    def idle(self) -> bool:
        """Nothing in hand, nothing to restore and nothing to commit."""
        return not self._restoring and all(t.idle and not t.uncommitted for t in self._tasks.values())

    @property
    def _restoring(self) -> int:
        return 0 if self._restorer is None else len(self._restorer)

    @property
    def tasks(self) -> int:
        """How many tasks have begun."""
        return len(self._tasks)

    @property
    def due_ms(self) -> int | None:
        """When the next retry is due, None when there is none."""
        return min((due for t in self._tasks.values() if (due := t.work_ms) is not None), default=None)

    @property
    def timer_ms(self) -> int | None:
        """When the next timer of a node is due, None when there is none."""
        times = [due for t in self._tasks.values() if (due := t.next_timer_ms) is not None]
        return min(times, default=None)

    def turn(self, max_wait_s: float = IDLE_WAIT_S) -> None:
        """One round: everything that can be done now, waiting (at most so long) only when there is nothing.

        After an error work in hand may be torn, e.g. a batch without all of its outputs: nothing is committed any more,
        and the next owner runs again what was not.
        """
        try:
            self._turn(max_wait_s)
        except BaseException:
            self._torn = True
            raise

    def _turn(self, max_wait_s: float) -> None:
        wait = 0.0 if self._restoring else wait_s(self._tasks.values(), self._clock() * 1000)
        messages = self._source.poll(limits.MAX_BATCH_RECORDS, min(wait, max_wait_s))
        if messages:
            self.dispatch(messages)
        for position, end in self._source.ends().items():
            if position in self._owned.get(position[1], ()) and position[1] in self._tasks:
                self._tasks[position[1]].take_end(position, end)
        now = time.monotonic()
        if not messages or now - self._refreshed_at > TABLE_REFRESH_S:
            self._refreshed_at = now
            self._parts.tables.refresh()
        if self._restorer is not None and self._restoring:
            self._restore(self._restorer)
        now_ms = int(self._clock() * 1000)
        for task in self._tasks.values():
            task.step(now_ms)
        self._serve_reports(ACK_WAIT_S if any(t.caller_waits for t in self._tasks.values()) else 0)
        for task in self._tasks.values():
            task.poll()
            task.collect()
        self._hold_back()
        self._commit_if_due()
        self._replies.hand_over()
        if self._inputs_ended.is_set():
            self._tell_end()

    def _serve_reports(self, wait_s: float) -> None:
        if isinstance(self._source, Lanes):
            self._source.serve_reports(wait_s)
        self._producer.poll(wait_s)

    def _restore(self, restorer: Restorer) -> None:
        """Go on restoring state, and start the tasks whose state is complete."""
        for partition, keeper in restorer.step().items():
            self._begin_task(partition, keeper)
        # A stage of which some partitions work is up.
        self._parts.program.metrics.state = "running" if self._tasks else "restoring"

    def _tell_end(self) -> None:
        """Tell the nodes that the inputs have ended, when all state is there; and the world, when that is over."""
        if self._restoring or self.drained.is_set():
            return
        if not self._told:
            self._told = True
            for task in self._tasks.values():
                task.drain()
        elif self.idle:
            self.drained.set()

    def dispatch(self, messages: Sequence[Message]) -> None:
        """Hand fetched records to their tasks; what is no longer ours is left to its next owner."""
        position = _position(messages[0])
        if len({m.partition() for m in messages}) == 1 and len(self._parts.program.intakes) == 1:
            # The usual case: a fetch gives many records of one partition, and a stage reads one topic.
            if position in self._owned.get(position[1], ()) and position[1] in self._tasks:
                self._tasks[position[1]].take(position, messages)
            return
        # The client returns runs of records of one partition; order within a partition is that of the log.
        for position, run in groupby(messages, key=_position):
            if position in self._owned.get(position[1], ()) and position[1] in self._tasks:
                self._tasks[position[1]].take(position, list(run))

    def _hold_back(self) -> None:
        """Pause what is full, resume what has room again. Polling goes on, so membership is kept."""
        for partition, task in self._tasks.items():
            if task.full and partition not in self.paused:
                self.paused.add(partition)
                self._consumer.pause(self._owned[partition])
                task.unread.lose_sight()
            elif partition in self.paused and not task.full:
                self.paused.discard(partition)
                self._source.resume(self._owned[partition])

    def _commit_if_due(self) -> None:
        now = time.monotonic()
        asked = any(t.wants_commit for t in self._tasks.values())
        if asked or now - self._committed_at >= self._parts.commit_every_ms / 1000:
            self._committed_at = now
            self._commit(self._tasks.values(), wait=asked)

    def commit_now(self) -> None:
        """Commit what is finished without waiting for the interval."""
        self._commit(self._tasks.values(), wait=True)

    def _commit(self, tasks: Iterable[Task], *, wait: bool) -> None:
        if self._torn:
            return
        chosen = list(tasks)
        if any(t.uncommitted for t in chosen):
            for node in self._parts.nodes:
                getattr(node, "flush", _nothing)()
        metrics = self._parts.program.metrics
        if self._parts.program.exactly_once:
            metrics.commits += commit_transactions(chosen, self._consumer)
            return
        if self._restorer is not None:
            write_states(chosen, self._producer)
        offsets: dict[Position, int] = {}
        if any(t.offsets.waiting for t in chosen):
            for task in chosen:
                offsets.update(task.offsets.committable())
            metrics.commits += 1
        # With nothing new, too: what was refused before goes along.
        self._consumer.commit(offsets, wait=wait)
        for task in chosen:
            task.committed()

    def _drain(self, partitions: Sequence[int], deadline: float) -> None:
        """Finish what is in hand and commit it; what is not done by the deadline is left to the next owner.

        After an error it all is: nothing of it could be committed, and a transaction may not be written to any more.
        """
        if self._torn:
            return
        try:
            self._finish([self._tasks[p] for p in partitions if p in self._tasks], deadline)
        except BaseException:
            self._torn = True
            raise

    def _finish(self, tasks: Sequence[Task], deadline: float) -> None:
        while any(not t.idle for t in tasks) and time.monotonic() < deadline:
            now_ms = int(self._clock() * 1000)
            for task in tasks:
                task.step(now_ms)
            self._serve_reports(BUSY_WAIT_S)
            for task in tasks:
                task.poll()
                task.collect()
        self._commit(tasks, wait=True)
        self._replies.hand_over()
        self._producer.flush(max(deadline - time.monotonic(), 0.0))

    # Rebalance: called from within consumer.poll and close, on this thread.
    def starting(self, positions: Sequence[Position]) -> None:
        """Fence earlier owners and undo what they left open, before anybody looks up where to go on."""
        program = self._parts.program
        taken = {p for _, p in positions} if program.exactly_once else set()
        fresh = sorted(taken - set(self._transactions))
        names = [transactional_id(program.plan, p) for p in fresh]
        made = self._fabric.transactionals(names, latency_first=program.answer_when == "durable")
        self._transactions.update(zip(fresh, made, strict=True))

    def assigned(self, positions: Sequence[Position]) -> None:
        for position in positions:
            self._owned.setdefault(position[1], set()).add(position)
        for partition in sorted({p for _, p in positions}):
            if partition in self.paused or (self._restorer is not None and partition in self._restorer):
                self._consumer.pause(self._owned[partition])
            elif partition not in self._tasks:
                self._start_task(partition)

    def _start_task(self, partition: int) -> None:
        """Begin to work on a partition number; with transactions or state only when it is owned on every input.

        Two members that each own it on some inputs would fence each other's transactions, and write one changelog. What
        has state begins when that is restored.
        """
        program = self._parts.program
        wanted = {p for p in program.seeds if p[1] == partition}
        alone = program.exactly_once or program.state is not None
        if alone and not self._owned[partition] >= wanted:
            self._consumer.pause(self._owned[partition])
            return
        if program.state is None:
            self._begin_task(partition, None)
            return
        assert self._restorer is not None, "a stage with state has a restorer"
        self._consumer.pause(self._owned[partition])
        self._restorer.add(partition, program.state.open(partition, int(self._clock() * 1000)))

    def _begin_task(self, partition: int, keeper: Keeper | None) -> None:
        transaction = self._transactions.get(partition)
        self._tasks[partition] = Task(
            self._parts.program, partition, self._producer, transaction, keeper, self._replies
        )
        self._source.resume(self._owned[partition])

    def _rewind(self, positions: Iterable[Position]) -> None:
        """Read on from the committed offsets: what was fetched beyond them is fetched again."""
        committed = self._consumer.committed(list(positions))
        fresh = [p for p, offset in committed.items() if offset is None]
        starts = self._fabric.admin().offsets(fresh, EARLIEST) if fresh else {}
        for position, offset in committed.items():
            self._consumer.seek(position, starts[position] if offset is None else offset)

    def revoked(self, positions: Sequence[Position]) -> None:
        self._drain(sorted({p for _, p in positions}), time.monotonic() + limits.DRAIN_TIMEOUT_MS / 1000)
        self._forget(positions)

    def lost(self, positions: Sequence[Position]) -> None:
        """Somebody else owns them already: nothing may be committed, their records will run there."""
        log.warning("lost %d partitions of stage %s", len(positions), self._parts.program.plan.name)
        self._forget(positions)

    def _forget(self, positions: Sequence[Position]) -> None:
        """Let go of partitions. What is left of a task's inputs is taken up anew, from where it was committed."""
        for _, partition in positions:
            task = self._tasks.pop(partition, None)
            if task is not None:
                task.close()
            if self._restorer is not None:
                self._restorer.drop(partition)
        for position in positions:
            partition = position[1]
            owned = self._owned.get(partition, set())
            owned.discard(position)
            if not owned:
                self._owned.pop(partition, None)
                self.paused.discard(partition)
                transaction = self._transactions.pop(partition, None)
                if transaction is not None:
                    transaction.close()
        for partition in sorted({p for _, p in positions} & set(self._owned)):
            if partition in self._transactions:
                self._transactions[partition].abort()
            self._rewind(self._owned[partition])
            self.paused.discard(partition)
            self._start_task(partition)

    def _close_states(self) -> None:
        """What is left after an error; what was not committed is lost with it."""
        if self._restorer is not None:
            self._restorer.close()
        for task in self._tasks.values():
            task.close()
        self._tasks.clear()

    def _end_transactions(self) -> None:
        for transaction in self._transactions.values():
            transaction.close()


def _position(message: Message) -> Position:
    return message.topic(), message.partition()


def _nothing() -> None:
    """What a node without open, close or flush does."""
