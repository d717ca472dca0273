"""A task: one partition number of a stage. Owns its batches in hand, in log order, and nothing is shared with others.

It is driven from outside (`take`, `step`, `collect`, `commit`) and sends through the producers it was given; time comes
in as an argument. Batches are executed one after another, so a row that waits for a retry holds back all behind it: order
per key is kept, and the backlog's bound pauses the partition.

At least once: outputs go out as they are made, and the loop commits offsets whose outputs are acknowledged. Exactly once:
the task has a transactional producer of its own, named for this stage and partition, so that whoever takes the partition
over fences it; outputs go out once their batch is over, and a transaction holds whole batches and their offsets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dataflow.core import ids, limits
from dataflow.core.batch import Batch, Row
from dataflow.core.errors import TransportError
from dataflow.observe.metrics import StageMetrics
from dataflow.observe.traces import Tracing
from dataflow.planner.plan import AnswerWhen, StagePlan
from dataflow.runtime.execution import Ended, Execution, Program
from dataflow.runtime.intake import Intake
from dataflow.runtime.offsets import OffsetTracker, Ticket
from dataflow.runtime.writer import Barrier, EdgeWriter, send_dead_letter, send_refusal, send_reply
from dataflow.transport.api import Consumer, Message, Position, Producer, TransactionalProducer


@dataclass(frozen=True)
class StageProgram:
    """What all tasks of a stage share: the nodes, how to read each topic, how to write each edge."""

    plan: StagePlan
    origin: str
    program: Program
    intakes: Mapping[str, Intake]  # by topic
    writers: Mapping[str, EdgeWriter]  # by edge
    answer_when: AnswerWhen | None
    on_answer_path: bool
    seeds: Mapping[Position, int]
    metrics: StageMetrics
    tracing: Tracing | None = None
    exactly_once: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer ready to go: the record of the request on an answer edge, as it was written there."""

    row: Row
    edge: str
    value: bytes | None
    fingerprint: bytes


@dataclass(eq=False, slots=True)
class _InHand:
    """A batch between fetch and the writing of its last output."""

    ticket: Ticket
    messages: Sequence[Message]
    first: Batch
    execution: Execution
    ended: list[Ended]
    barrier: Barrier = field(default_factory=Barrier)
    written: int = 0  # how many of execution.written are sent
    answers: dict[int, Reply] = field(default_factory=dict)  # by source index
    left: set[int] = field(default_factory=set)  # sources that went on to another stage of the answer's path
    refusals: list[Ended] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Sent:
    """What is left of a batch whose outputs are on their way: its records and columns, the most of it, are let go."""

    ticket: Ticket
    barrier: Barrier
    answers: Mapping[int, Reply]
    refusals: Sequence[Ended]


class Task:
    """See the module. `partition` is the number this task owns on every input of the stage."""

    def __init__(
        self,
        stage: StageProgram,
        partition: int,
        producer: Producer,
        transaction: TransactionalProducer | None = None,
    ) -> None:
        self._stage = stage
        self._partition = partition
        # Replies never wait for a transaction; all that is written for readers does.
        self._replies = producer
        self._records: Producer = producer if transaction is None else transaction
        self._transaction = transaction
        self._in_transaction = False
        self._passed: dict[Position, int] = {}
        self._backlog: deque[tuple[Position, Sequence[Message] | int]] = deque()
        self._running: _InHand | None = None
        self._unacknowledged: deque[_Sent] = deque()
        self._held_replies: list[_Sent] = []
        self.offsets = OffsetTracker()

    @property
    def idle(self) -> bool:
        """Nothing in hand."""
        return not self._backlog and self._running is None and not self._unacknowledged

    @property
    def full(self) -> bool:
        """Too much in hand: the task's partitions are to be paused."""
        return len(self._backlog) + len(self._unacknowledged) >= limits.MAX_BATCHES_IN_FLIGHT

    @property
    def due_ms(self) -> int | None:
        """When `step` has something to do: 0 now, None not before something arrives."""
        if self._running is not None:
            return self._running.execution.due_ms
        return 0 if self._backlog else None

    @property
    def caller_waits(self) -> bool:
        """Whether an acknowledgement in flight holds back somebody's answer."""
        return not self._commits_for_callers and any(h.answers or h.refusals for h in self._unacknowledged)

    @property
    def wants_commit(self) -> bool:
        """Whether callers wait for the commit itself."""
        if self._held_replies:
            return True
        # A transaction's commit waits for the acknowledgements too: no need to wait for them first.
        return self._commits_for_callers and any(h.answers or h.refusals for h in self._unacknowledged)

    @property
    def _commits_for_callers(self) -> bool:
        return self._transaction is not None and self._stage.answer_when == "committed"

    def take(self, position: Position, messages: Sequence[Message]) -> None:
        """Records of one partition, in log order, following those taken before."""
        self._backlog.append((position, messages))

    def take_end(self, position: Position, end: int) -> None:
        """All of the partition before `end` was taken: what lies there beyond the last record is no record."""
        self._backlog.append((position, end))

    def step(self, now_ms: int) -> None:
        """Run what can be run of one batch; its outputs are sent, not yet acknowledged.

        One batch only: between two the loop polls, or a slow node would cost the group membership.
        """
        if self._running is None:
            if not self._backlog:
                return
            position, taken = self._backlog[0]
            if isinstance(taken, int):
                self._pass(position, taken)
                self._backlog.popleft()
                return
            # It leaves the backlog only once its ticket holds back the offsets: nothing may fall in between.
            self._running = self._begin(position, taken, now_ms)
            self._backlog.popleft()
        hand = self._running
        self._execute(hand, now_ms)
        if hand.execution.over:
            self._settle(hand)
            self._running = None
            self._unacknowledged.append(_Sent(hand.ticket, hand.barrier, hand.answers, hand.refusals))

    def _execute(self, hand: _InHand, now_ms: int) -> None:
        tracing, plan = self._stage.tracing, self._stage.plan
        if tracing is None:
            hand.execution.step(now_ms)
        else:
            with tracing.batch(plan.name, plan.group, hand.messages[0].topic(), hand.first.rows):
                hand.execution.step(now_ms)
        if self._transaction is None or hand.execution.over:
            self._write(hand)

    def _pass(self, position: Position, end: int) -> None:
        """Let the offsets move over what is no record, so that a group at the end is seen to be there."""
        if end > self._passed.get(position, -1):
            self._passed[position] = end
            self.offsets.finish(self.offsets.begin({position: end}))

    def _begin(self, position: Position, messages: Sequence[Message], now_ms: int) -> _InHand:
        stage = self._stage
        topic, partition = position
        intake = stage.intakes[topic]
        seed = stage.seeds.get(position, 0) or ids.seed_of("", topic, partition)
        batch, ended = intake.read(messages, seed, now_ms, honour_deadlines=stage.on_answer_path)
        end = messages[-1].offset() + 1
        self._passed[position] = end
        ticket = self.offsets.begin({position: end})
        stage.metrics.records += len(messages)
        return _InHand(ticket, messages, batch, Execution(stage.program, intake.edge, batch), ended)

    def _write(self, hand: _InHand) -> None:
        """Send what the execution gave since the last time."""
        stage = self._stage
        self._begin_transaction()
        written = hand.execution.written
        for edge, batch in written[hand.written :]:
            failed = stage.writers[edge].write(batch, self._partition, self._records, hand.barrier)
            hand.ended += failed
            if edge in stage.plan.leaves:
                hand.left.update(row.source for row in batch.rows)
            if edge in stage.plan.answers:
                self._note_answers(hand, edge, batch, {e.row.id for e in failed})
        hand.written = len(written)

    @staticmethod
    def _note_answers(hand: _InHand, edge: str, batch: Batch, unsent: set[bytes]) -> None:
        encoded = batch.encoded
        assert encoded is not None, "an edge is encoded before its answers are noted"
        for row, value in zip(batch.rows, encoded.values, strict=True):
            # The first record of a request on any answer edge is its answer.
            if row.reply and row.source not in hand.answers and row.id not in unsent:
                hand.answers[row.source] = Reply(row, edge, value, encoded.fingerprint)

    def _settle(self, hand: _InHand) -> None:
        """The batch has run: bury what failed, and find the callers who will get no answer."""
        stage = self._stage
        hand.ended += hand.execution.ended
        buried: set[int] = set()
        for ended in hand.ended:
            # A record is buried once, with its first cause, however many of its children failed: it is redriven once.
            if ended.error and ended.row.source not in buried:
                buried.add(ended.row.source)
                message = hand.messages[ended.row.source]
                send_dead_letter(self._records, stage.origin, message, ended, hand.barrier)
                stage.metrics.dead_letters += 1
        if not stage.on_answer_path:
            return
        over: dict[int, Ended] = {}
        for ended in hand.ended:
            row = ended.row
            if row.reply and row.source not in hand.answers and row.source not in hand.left:
                before = over.get(row.source)
                if before is None or (ended.error and not before.error):
                    over[row.source] = ended
        for row in hand.first.rows:
            if row.reply and not (
                row.source in hand.answers or row.source in hand.left or row.source in over
            ):
                over[row.source] = Ended(row, "the request ended on a branch without an answer", "")
        hand.refusals = list(over.values())
        if stage.answer_when == "eager":
            self._answer(hand)
            hand.answers, hand.refusals = {}, []

    def collect(self) -> None:
        """Finish batches whose outputs are all acknowledged, and answer their callers.

        Raises TransportError if the broker refused a record: nothing of that batch is committed.
        """
        while self._unacknowledged and not self._unacknowledged[0].barrier.open:
            hand = self._unacknowledged.popleft()
            if hand.barrier.error:
                raise TransportError(
                    f"writing the outputs of stage '{self._stage.plan.name}': {hand.barrier.error}"
                )
            self.offsets.finish(hand.ticket)
            if self._stage.answer_when == "committed" and (hand.answers or hand.refusals):
                self._held_replies.append(hand)
            else:
                self._answer(hand)

    def _begin_transaction(self) -> None:
        if self._transaction is not None and not self._in_transaction:
            self._transaction.begin()
            self._in_transaction = True

    def poll(self) -> None:
        """Serve the acknowledgements of the task's own producer, if it has one."""
        if self._transaction is not None:
            self._transaction.poll(0)

    def commit(self, consumer: Consumer) -> bool:
        """Exactly once: commit all whole batches with their offsets; False if there is nothing to commit.

        Raises FencedError if the partition's next owner has begun, TransportError if the outcome is bad or unknown: then
        the task may only be given up.
        """
        assert self._transaction is not None, "offsets are the loop's to commit"
        if not self._in_transaction and not self.offsets.waiting:
            return False
        if self._transaction.flush(limits.DRAIN_TIMEOUT_MS / 1000):
            raise TransportError(
                f"writing the outputs of stage '{self._stage.plan.name}': not acknowledged in time"
            )
        self.collect()
        assert not self._unacknowledged, "what is flushed is acknowledged"
        self._begin_transaction()
        self._transaction.commit(self.offsets.committable(), consumer)
        self._in_transaction = False
        self.committed()
        return True

    def committed(self) -> None:
        """The offsets handed out by `offsets.committable` are through."""
        held, self._held_replies = self._held_replies, []
        for hand in held:
            self._answer(hand)

    def _answer(self, hand: _InHand | _Sent) -> None:
        for reply in hand.answers.values():
            send_reply(self._replies, reply.row, reply.edge, reply.value, reply.fingerprint)
        for ended in hand.refusals:
            send_refusal(self._replies, ended)
        self._stage.metrics.replies += len(hand.answers) + len(hand.refusals)
