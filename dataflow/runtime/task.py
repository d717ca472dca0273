"""A task: one partition number of a stage. Owns its batches in hand, in log order, and nothing is shared with others.

It is driven from outside (`take`, `step`, `collect`, `commit`) and sends through the producers it was given; time comes
in as an argument. Batches are executed one after another; while rows wait for a retry those behind them go on, but for
rows of their keys (see `hands`). What waits is bounded, and the backlog's bound pauses the partition.

At least once: outputs go out as they are made, and the loop commits offsets whose outputs are acknowledged. Exactly once:
the task has a transactional producer of its own, named for this stage and partition, so that whoever takes the partition
over fences it; outputs go out once their batch is over, and a transaction holds whole batches and their offsets.

State of keyed nodes: timers that are due are run like a batch, between two batches. What a batch changed is settled with
its end, goes to the changelog with the commit of its offsets, and is lost with the task if that fails.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from dataflow.core import headers, ids, limits
from dataflow.core.batch import Batch
from dataflow.core.errors import TransportError
from dataflow.planner.plan import CONTROL
from dataflow.runtime.clockwork import Clockwork
from dataflow.runtime.closing import closures
from dataflow.runtime.execution import Execution
from dataflow.runtime.hand import InHand, Sent, find_refusals, note_answers, pass_on
from dataflow.runtime.hands import Hands
from dataflow.runtime.keeping import Keeper
from dataflow.runtime.lanes import Handed
from dataflow.runtime.letters import letters_of
from dataflow.runtime.offsets import OffsetTracker
from dataflow.runtime.program import StageProgram
from dataflow.runtime.replies import Replies
from dataflow.runtime.unread import Unread
from dataflow.runtime.writer import Barrier, send_dead_letter
from dataflow.transport.api import Consumer, Message, Position, Producer, TransactionalProducer


class Task:
    """See the module. `partition` is the number this task owns on every input of the stage."""

    def __init__(
        self,
        stage: StageProgram,
        partition: int,
        producer: Producer,
        transaction: TransactionalProducer | None = None,
        keeper: Keeper | None = None,
        replies: Replies | None = None,
    ) -> None:
        self._stage = stage
        self._partition = partition
        # Replies never wait for a transaction; all that is written for readers does.
        self._replies = Replies(producer) if replies is None else replies
        self._records: Producer = producer if transaction is None else transaction
        self._transaction = transaction
        self._in_transaction = False
        self._passed: dict[Position, int] = {}
        self._backlog: deque[tuple[Position, Sequence[Message] | int]] = deque()
        self._hands = Hands(
            one_by_one=keeper is not None, in_order=transaction is not None, deadlines=stage.on_answer_path
        )
        self._unacknowledged: deque[Sent] = deque()
        self._held_replies: list[Sent] = []
        self._passed_on = False  # whether a request left for another stage in the open transaction
        self._keeper = keeper
        self._clockwork = None if keeper is None else Clockwork(stage.program, keeper.state)
        self._timers_ran = False
        self.unread = Unread(stage.program, stage.intakes, [p for p in stage.seeds if p[1] == partition])
        self.offsets = OffsetTracker()

    @property
    def idle(self) -> bool:
        """Nothing in hand."""
        return not (self._backlog or self._hands or self._unacknowledged or self._ending)

    @property
    def full(self) -> bool:
        """Too much in hand: the task's partitions are to be paused."""
        return len(self._backlog) + len(self._unacknowledged) >= limits.MAX_BATCHES_IN_FLIGHT

    @property
    def uncommitted(self) -> bool:
        """Whether something that is over waits to be committed."""
        return self.offsets.waiting or (self._keeper is not None and self._keeper.state.wants_commit)

    @property
    def work_ms(self) -> int | None:
        """When `step` has work that is in hand: 0 now, None not before something arrives."""
        if (self._backlog and self._hands.room) or (self._ending and not self._hands):
            return 0
        return self._hands.due_ms

    @property
    def _ending(self) -> bool:
        return self._clockwork is not None and self._clockwork.ending

    @property
    def timer_ms(self) -> int | None:
        """When `step` has timers to fire, or state to tidy; None while something is in hand that comes first."""
        return None if self._keeper is None or self._hands else self._keeper.state.due_ms()

    @property
    def next_timer_ms(self) -> int | None:
        """When the earliest timer of a node is due."""
        return None if self._keeper is None else self._keeper.state.next_timer_ms()

    @property
    def caller_waits(self) -> bool:
        """Whether an acknowledgement in flight holds back somebody's answer."""
        return not self._commits_for_callers and any(h.answers or h.refusals for h in self._unacknowledged)

    @property
    def wants_commit(self) -> bool:
        """Whether callers wait for the commit itself."""
        if self._held_replies or self._passed_on or (self._keeper is not None and self._keeper.full):
            return True
        # A transaction's commit waits for the acknowledgements too: no need to wait for them first.
        return self._commits_for_callers and any(h.answers or h.refusals for h in self._unacknowledged)

    @property
    def _commits_for_callers(self) -> bool:
        return self._transaction is not None and self._stage.answer_when == "committed"

    def take(self, position: Position, messages: Sequence[Message]) -> None:
        """Records of one partition, in log order, following those taken before; `Handed` ones are on their way there."""
        self._backlog.append((position, messages))
        self.unread.read(position, end=False)

    def take_end(self, position: Position, end: int) -> None:
        """All of the partition before `end` was taken: what lies there beyond the last record is no record."""
        self.unread.read(position, end=True)
        last = next((taken for p, taken in reversed(self._backlog) if p == position), None)
        if last is None:
            self._pass(position, end)
        elif isinstance(last, int) or last[-1].offset() + 1 < end:
            self._backlog.append((position, end))

    def drain(self) -> None:
        """All inputs of the stage have ended: what is held and what waits for time comes out, in later steps."""
        if self._clockwork is not None:
            self._clockwork.end()

    def step(self, now_ms: int) -> None:
        """Run what can be run of one batch; its outputs are sent, not yet acknowledged.

        One batch only: between two the loop polls, or a slow node would cost the group membership.
        """
        self.collect()  # what is known to be refused ends the task before it writes more
        if self._hands.room and self._hands.next(now_ms) is None:
            if self._clockwork is not None and self._keeper is not None:
                self._clockwork.begin(now_ms)
                self.unread.tell(self._keeper.state, {p for p, _ in self._backlog})
            # Timers that set themselves again and again leave every second turn to the records.
            if self._clockwork is None or (self._timers_ran and self._backlog):
                self._timers_ran = False
            else:
                self._timers_ran = self._begin_unasked(self._clockwork.timers())
            if not self._timers_ran:
                self._begin_next(now_ms)
        hand = self._hands.next(now_ms)
        if hand is not None:
            self._execute(hand, now_ms)
            self._hands.ran(hand)
        for hand in self._hands.take_over(now_ms):
            self._settle(hand)
            if self._keeper is not None:
                self._keeper.state.settle()
            self._unacknowledged.append(Sent(hand.ticket, hand.barrier, hand.answers, hand.refusals))

    def _begin_next(self, now_ms: int) -> None:
        """Take the next batch in hand, if there is one."""
        if not self._backlog:
            if self._clockwork is not None and self._clockwork.ending:
                self._begin_unasked(self._clockwork.last())
            return
        position, taken = self._backlog[0]
        if isinstance(taken, int):
            self._pass(position, taken)
        else:
            # It leaves the backlog only once its ticket holds back the offsets: nothing may fall in between.
            self._hands.begin(*self._begin(position, taken, now_ms))
        self._backlog.popleft()

    def _begin_unasked(self, execution: Execution | None) -> bool:
        """Take in hand what no record brought; False for nothing."""
        if execution is not None:
            self._hands.begin(InHand(self.offsets.begin({}), (), (), execution, []))
        return execution is not None

    def _execute(self, hand: InHand, now_ms: int) -> None:
        tracing, plan = self._stage.tracing, self._stage.plan
        if tracing is None or not hand.messages:
            hand.execution.step(now_ms)
        else:
            with tracing.batch(plan.name, plan.group, hand.messages[0].topic(), hand.first):
                hand.execution.step(now_ms)
        if self._transaction is None:
            self._write(hand)

    def _pass(self, position: Position, end: int) -> None:
        """Let the offsets move over what is no record, so that a group at the end is seen to be there."""
        if end > self._passed.get(position, -1):
            self._passed[position] = end
            self.offsets.finish(self.offsets.begin({position: end}))

    def _begin(self, position: Position, messages: Sequence[Message], now_ms: int) -> tuple[InHand, Batch]:
        stage = self._stage
        topic, partition = position
        intake = stage.intakes[topic]
        seed = stage.seeds.get(position, 0) or ids.seed_of("", topic, partition)
        batch, ended = intake.read(messages, seed, now_ms, honour_deadlines=stage.on_answer_path)
        stage.metrics.records += len(messages)
        if isinstance(messages, Handed):
            stage.metrics.handed += len(messages)
            ticket, barrier = self.offsets.begin(messages.ends), messages.barrier
        else:
            end = self._passed[position] = messages[-1].offset() + 1
            ticket, barrier = self.offsets.begin({position: end}), Barrier()
        state = None if self._keeper is None else self._keeper.state
        execution = Execution(stage.program, state, deadlines=stage.on_answer_path)
        return InHand(ticket, messages, batch.rows, execution, ended, intake.edge, barrier), batch

    def _write(self, hand: InHand) -> None:
        """Send what the execution gave since the last time."""
        stage = self._stage
        self._begin_transaction()
        written = hand.execution.written[hand.written :]
        leaving = iter(pass_on(hand, [batch for edge, batch in written if edge in stage.plan.leaves]))
        for edge, batch in written:
            sent = next(leaving) if edge in stage.plan.leaves else batch
            failed = stage.writers[edge].write(sent, self._partition, self._records, hand.barrier)
            hand.ended += failed
            if edge in stage.plan.answers:
                note_answers(hand, edge, batch, {e.row.id for e in failed})
        # The next stage sees them, and goes on with what callers wait for, once the transaction is through.
        self._passed_on |= self._transaction is not None and bool(hand.left)
        hand.written += len(written)

    def _settle(self, hand: InHand) -> None:
        """The batch has run: bury what failed, and find the callers who will get no answer."""
        stage = self._stage
        # Exactly once: now and not before, in log order, as its offsets; else what timers gave.
        if self._transaction is not None or hand.written < len(hand.execution.written):
            self._write(hand)
        stage.metrics.expired += sum(e.reason == headers.STATUS_EXPIRED for e in hand.ended)
        hand.ended += hand.execution.ended
        self._bury(hand)
        if stage.plan.closes:
            self._close(hand)
        if not stage.on_answer_path:
            return
        hand.refusals = find_refusals(hand)
        if stage.answer_when == "eager":
            self._answer(hand)
            hand.answers, hand.refusals = {}, []

    def _close(self, hand: InHand) -> None:
        """Tell joins in other stages what will not come."""
        stage = self._stage
        said = closures(stage.plan, stage.outputs, hand)
        if said is not None:
            writer = stage.writers[CONTROL]
            writer.write(writer.seal(said)[0], self._partition, self._records, hand.barrier)
            # Somebody may wait for what is joined once this is known.
            self._passed_on |= self._transaction is not None and any(row.reply for row in hand.first)

    def _bury(self, hand: InHand) -> None:
        """A dead letter for each record that failed, and for each timer."""
        stage = self._stage
        if isinstance(hand.messages, Handed) and any(ended.error for ended in hand.ended):
            # A dead letter says at which offset its record is.
            hand.messages.flush(limits.DRAIN_TIMEOUT_MS / 1000)
        pipeline = stage.origin.partition("@")[0]
        for message, ended in letters_of(hand, stage.intakes, stage.codecs, self._partition, pipeline):
            send_dead_letter(self._records, stage.origin, message, ended, hand.barrier)
            stage.metrics.dead_letters += 1

    def collect(self) -> None:
        """Finish batches whose outputs are all acknowledged, and answer their callers.

        Raises TransportError if the broker refused a record: nothing of that batch is committed.
        """
        while self._unacknowledged and self._unacknowledged[0].barrier.through:
            hand = self._unacknowledged.popleft()
            self.offsets.finish(hand.ticket)
            if self._stage.answer_when == "committed" and (hand.answers or hand.refusals):
                self._held_replies.append(hand)
            else:
                self._answer(hand)
        # Not only of the first: what was written until then would lie before what is lost, and comes again after it.
        error = next((hand.barrier.error for hand in self._unacknowledged if hand.barrier.error), "")
        if error:
            raise TransportError(f"writing the outputs of stage '{self._stage.plan.name}': {error}")

    def _begin_transaction(self) -> None:
        if self._transaction is not None and not self._in_transaction:
            self._transaction.begin()
            self._in_transaction = True

    def poll(self) -> None:
        """Serve the acknowledgements of the task's own producer, if it has one."""
        if self._transaction is not None:
            self._transaction.poll(0)

    @property
    def wants_transaction(self) -> bool:
        """Exactly once: whether there is anything to commit."""
        return self._in_transaction or self.uncommitted

    def write_all(self) -> None:
        """Exactly once, the first step of a commit: send what else belongs to the transaction."""
        if self._keeper is not None:
            self._begin_transaction()
            self._keeper.write(self._records)

    def start_commit(self, consumer: Consumer) -> None:
        """Exactly once, after `write_all`: begin to commit all whole batches with their offsets; `finish_commit` is next.

        Both raise FencedError if the partition's next owner has begun, TransportError if the outcome is bad or unknown:
        then the task may only be given up.
        """
        assert self._transaction is not None, "offsets are the loop's to commit"
        if self._transaction.flush(limits.DRAIN_TIMEOUT_MS / 1000):
            raise TransportError(
                f"writing the outputs of stage '{self._stage.plan.name}': not acknowledged in time"
            )
        self.collect()
        assert not self._unacknowledged, "what is flushed is acknowledged"
        if self._keeper is not None:
            self._keeper.confirm()
        self._begin_transaction()
        self._transaction.start_commit(self.offsets.committable(), consumer)

    def finish_commit(self) -> None:
        """Wait for the commit that was started, and answer who waits for it."""
        assert self._transaction is not None, "offsets are the loop's to commit"
        self._transaction.finish_commit()
        self._in_transaction = self._passed_on = False
        self.committed()

    def write_state(self) -> None:
        """At least once: send to the changelog what batches changed whose outputs are acknowledged: all that are over.

        Raises TransportError where one is not, or was refused.
        """
        if self._keeper is None or not self._keeper.state.wants_commit:
            return
        self.collect()
        if self._unacknowledged:
            raise TransportError(
                f"writing the outputs of stage '{self._stage.plan.name}': not acknowledged in time"
            )
        self._keeper.write(self._records)

    def confirm_state(self) -> None:
        """Raises TransportError unless all that `write_state` sent is acknowledged."""
        if self._keeper is not None:
            self._keeper.confirm()

    def close(self) -> None:
        """Let go of the task's state; what was not committed of it is lost."""
        if self._keeper is not None:
            self._keeper.close()

    def committed(self) -> None:
        """The offsets handed out by `offsets.committable` are through, and what `write_state` wrote counts."""
        if self._keeper is not None:
            self._keeper.committed()
        held, self._held_replies = self._held_replies, []
        for hand in held:
            self._answer(hand)

    def _answer(self, hand: InHand | Sent) -> None:
        for reply in hand.answers.values():
            self._replies.answer(reply.row, reply.edge, reply.value, reply.fingerprint)
        for ended in hand.refusals:
            self._replies.refuse(ended)
        self._stage.metrics.replies += len(hand.answers) + len(hand.refusals)
