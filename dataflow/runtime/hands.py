"""The batches that a task has in hand: while records of one wait for a retry, those behind it go on, but for their keys.

Pure but for the marks on what is in hand. A record whose key is not done yet in an earlier batch is held back until it
is, so that order per key is kept.
"""

from __future__ import annotations

from collections.abc import Set
from itertools import chain

from dataflow.core import headers, limits
from dataflow.core.batch import Batch
from dataflow.runtime.execution import Ended
from dataflow.runtime.hand import InHand


class Hands:
    """In log order. With state there is one at a time: what a batch changed is settled with its end.

    `in_order`: a batch that is over counts as such only when those before it are (exactly once: outputs go with offsets).
    """

    def __init__(self, *, one_by_one: bool, in_order: bool, deadlines: bool) -> None:
        self._one_by_one = one_by_one
        self._in_order = in_order
        self._deadlines = deadlines
        self._hands: list[InHand] = []

    def __len__(self) -> int:
        return len(self._hands)

    @property
    def room(self) -> bool:
        """Whether another may begin once none of them has work."""
        if not self._hands:
            return True
        if self._one_by_one or len(self._hands) >= limits.MAX_BATCHES_WAITING:
            return False
        return sum(len(hand.messages) for hand in self._hands) < limits.MAX_RECORDS_WAITING

    @property
    def due_ms(self) -> int | None:
        """When the next of them has work, None where there is none."""
        return min((h.execution.due_ms for h in self._hands if not h.execution.over), default=None)

    def begin(self, hand: InHand, batch: Batch | None = None) -> None:
        """Take one in hand, with the rows that its execution is to be fed."""
        if batch is not None and not self._hands:
            hand.execution.feed(hand.edge, batch)
        elif batch is not None:
            hand.behind = batch
            self._let_on(hand, set(chain.from_iterable(h.keys for h in self._hands)), 0)
        self._hands.append(hand)

    def next(self, now_ms: int) -> InHand | None:
        """The first with work now. What it holds back may have become free."""
        busy: set[bytes] = set()
        for hand in self._hands:
            hand.execution.see(now_ms)
            if hand.behind is not None:
                self._let_on(hand, busy, now_ms if self._deadlines else 0)
            if not hand.execution.over and hand.execution.due_ms <= now_ms:
                return hand
            busy |= hand.keys
        return None

    def ran(self, hand: InHand) -> None:
        """Some of its work is done: in order, one that is over waits here, and holds back nobody."""
        hand.keys = {row.key for row in hand.under_way() if row.key is not None}

    def take_over(self, now_ms: int) -> list[InHand]:
        """Those that are over leave, and what only waited for them has work."""
        taken: list[InHand] = []
        for hand in self._hands:
            if hand.over:
                taken.append(hand)
            elif self._in_order:
                break
        if taken:
            self._hands = [hand for hand in self._hands if hand not in taken]
            self.next(now_ms)
        return taken

    def _let_on(self, hand: InHand, busy: Set[bytes], now_ms: int) -> None:
        """Feed the rows held back whose keys are done before; those whose callers have given up meanwhile end here."""
        batch = hand.behind
        assert batch is not None, "something is held back"
        rows = batch.rows
        free = [i for i, row in enumerate(rows) if row.key is None or row.key not in busy]
        if len(free) < len(rows):
            held = [i for i, row in enumerate(rows) if row.key is not None and row.key in busy]
            hand.behind = batch.take(held)
        else:
            hand.behind = None
        late = {i for i in free if rows[i].reply and 0 < rows[i].deadline_ms <= now_ms}
        hand.ended += [Ended(rows[i], headers.STATUS_EXPIRED, "") for i in sorted(late)]
        alive = [i for i in free if i not in late]
        if alive:
            hand.execution.feed(hand.edge, batch if len(alive) == len(rows) else batch.take(alive))
        self.ran(hand)
