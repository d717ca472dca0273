"""What a task has in hand between fetch and answer: who of it gets which answer, and who is told that none will come.

Callers are known by `Row.reply`, not by the fetched record: a record made from state may answer one who came batches
ago. Pure but for the marks on what is in hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from dataflow.core.batch import Batch, Row
from dataflow.core.shares import parted
from dataflow.runtime.execution import Ended, Execution
from dataflow.runtime.offsets import Ticket
from dataflow.runtime.writer import Barrier
from dataflow.transport.api import Message


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer ready to go: the record of the request on an answer edge, as it was written there."""

    row: Row
    edge: str
    value: bytes | None
    fingerprint: bytes


@dataclass(eq=False, slots=True)
class InHand:
    """A batch of an edge, or timers, between fetch and the writing of its last output.

    `left` and the keys of `answers` are callers; `shares` what is left here of those of whom a part went on already.
    """

    ticket: Ticket
    messages: Sequence[Message]
    first: Sequence[Row]
    execution: Execution
    ended: list[Ended]
    edge: str = ""
    barrier: Barrier = field(default_factory=Barrier)
    # Rows whose keys are not done yet in earlier batches: the execution does not have them.
    behind: Batch | None = None
    keys: Set[bytes] = frozenset()  # of all rows that are not done
    written: int = 0  # how many of execution.written are sent
    answers: dict[bytes, Reply] = field(default_factory=dict)
    left: set[bytes] = field(default_factory=set)  # went on to another stage of the answer's path
    shares: dict[bytes, bytes] = field(default_factory=dict)
    refusals: list[Ended] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.behind is None and self.execution.over

    def under_way(self) -> list[Row]:
        """Rows that are not done."""
        return [*self.execution.under_way(), *(() if self.behind is None else self.behind.rows)]


@dataclass(eq=False, slots=True)
class Sent:
    """What is left of a batch whose outputs are on their way: its records and columns, the most of it, are let go."""

    ticket: Ticket
    barrier: Barrier
    answers: Mapping[bytes, Reply]
    refusals: Sequence[Ended]


def note_answers(hand: InHand, edge: str, batch: Batch, unsent: Set[bytes]) -> None:
    """Remember the answers among the records of an answer edge; `unsent` are ids of those that could not be written."""
    encoded = batch.encoded
    assert encoded is not None, "an edge is encoded before its answers are noted"
    for row, value in zip(batch.rows, encoded.values, strict=True):
        # The first record of a request on any answer edge is its answer.
        if row.reply and row.reply not in hand.answers and row.id not in unsent:
            hand.answers[row.reply] = Reply(row, edge, value, encoded.fingerprint)


def pass_on(hand: InHand, batches: Sequence[Batch]) -> list[Batch]:
    """The records that go on to other stages, each with its share of its caller where several do. Marks who left.

    What is under way yet of a caller keeps a share for what may still come of it; what failed gives one back, so that the
    caller hears of that if nothing else comes.
    """
    callers = [row.reply for batch in batches for row in batch.rows if row.reply]
    over = hand.over
    failed = {e.row.reply for e in hand.execution.ended if e.error and not e.goes_on}
    alone = len(callers) == len(set(callers)) and failed.isdisjoint(callers)
    if over and not hand.shares and alone:
        hand.left.update(callers)
        return list(batches)
    later = failed if over else failed | {row.reply for row in hand.under_way()}
    parts: dict[bytes, list[bytes]] = {}
    for reply, count in Counter(callers).items():
        made = parted(hand.shares.pop(reply, reply), count + (reply in later))
        if reply in later:
            hand.shares[reply] = made.pop()
        parts[reply] = made[::-1]
    hand.left.update(callers)
    return [
        Batch(
            batch.schema,
            batch.columns,
            [_answering(row, parts[row.reply].pop()) if row.reply else row for row in batch.rows],
            batch.encoded,
        )
        for batch in batches
    ]


def _answering(row: Row, reply: bytes) -> Row:
    if reply == row.reply:
        return row
    return Row(row.id, row.key, row.source, row.carry, reply, row.deadline_ms, row.attempt, row.parents)


def find_refusals(hand: InHand) -> list[Ended]:
    """Why each caller of whom nothing is left gets no answer: a failure rather than a drop, where there are both.

    Of one who went on in part, and of whom the rest came to nothing, the rest is given back.
    """
    kept = hand.execution.kept
    over: dict[bytes, Ended] = {}
    for ended in hand.ended:
        reply = ended.row.reply
        left = reply in hand.left and reply not in hand.shares
        if reply and not (left or reply in hand.answers or reply in kept):
            before = over.get(reply)
            if before is None or (ended.error and not before.error):
                over[reply] = ended
    for row in (*hand.first, *hand.execution.made.values()):
        reply = row.reply
        left = reply in hand.left and reply not in hand.shares
        if reply and not (left or reply in hand.answers or reply in over or reply in kept):
            over[reply] = Ended(row, "the request ended on a branch without an answer", "")
    for reply, rest in hand.shares.items():
        if reply in over:
            over[reply] = replace(over[reply], row=_answering(over[reply].row, rest))
    return list(over.values())
