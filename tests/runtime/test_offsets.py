"""The tracker against a model: nothing unfinished is ever passed, everything finished becomes committable once."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dataflow.runtime.offsets import OffsetTracker, Ticket

POSITION = ("t", 0)


class Tracking(RuleBasedStateMachine):
    """Batches of one partition begin in order and finish in any."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = OffsetTracker()
        self.begun: list[tuple[Ticket, int]] = []
        self.finished: set[int] = set()
        self.end = 0
        self.committed = 0

    @rule(count=st.integers(1, 500))
    def begin(self, count: int) -> None:
        self.end += count
        self.begun.append((self.tracker.begin({POSITION: self.end}), self.end))

    @precondition(lambda self: len(self.finished) < len(self.begun))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        open_ends = [(t, e) for t, e in self.begun if e not in self.finished]
        ticket, end = data.draw(st.sampled_from(open_ends))
        self.tracker.finish(ticket)
        self.finished.add(end)

    @rule()
    def commit(self) -> None:
        taken = self.tracker.committable()
        assert self.tracker.committable() == {}
        assert not self.tracker.waiting
        if taken:
            assert taken[POSITION] > self.committed
            self.committed = taken[POSITION]
        assert self.committed == self.contiguous()

    @invariant()
    def waits_for_exactly_the_contiguous_prefix(self) -> None:
        assert self.tracker.waiting == (self.contiguous() > self.committed)
        assert len(self.tracker) == sum(end > self.contiguous() for _, end in self.begun)

    def contiguous(self) -> int:
        last = 0
        for _, end in self.begun:
            if end not in self.finished:
                break
            last = end
        return last


TestTracking = Tracking.TestCase


def test_a_batch_over_two_partitions_moves_both() -> None:
    tracker = OffsetTracker()
    first = tracker.begin({("a", 0): 5, ("b", 0): 7})
    second = tracker.begin({("a", 0): 9})
    tracker.finish(second)
    assert tracker.committable() == {}
    tracker.finish(first)
    assert tracker.committable() == {("a", 0): 9, ("b", 0): 7}


def test_finishing_twice_is_a_bug() -> None:
    tracker = OffsetTracker()
    ticket = tracker.begin({POSITION: 1})
    tracker.finish(ticket)
    with pytest.raises(AssertionError):
        tracker.finish(ticket)
