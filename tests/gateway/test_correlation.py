from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dataflow.core.errors import GatewayError
from dataflow.core.shares import WHOLE, parted, read_share, share_of
from dataflow.gateway.correlation import Correlator, Pending


def test_last_row_ends_a_request_and_results_keep_the_rows_order() -> None:
    correlator: Correlator[str] = Correlator()
    pending = correlator.open(b"r", [b"a", b"b"], 10, 0)
    assert correlator.resolve(b"b", "two") is None
    assert correlator.resolve(b"a", "one") is pending
    assert pending.results == ["one", "two"]
    assert len(correlator) == correlator.rows == 0
    assert correlator.next_deadline() is None


def test_a_bad_row_ends_a_whole_request_at_once() -> None:
    correlator: Correlator[str] = Correlator()
    pending = correlator.open(b"r", [b"a", b"b"], 10, 0)
    assert correlator.resolve(b"b", "bad", good=False) is pending
    assert correlator.resolve(b"a", "late") is None
    assert correlator.late == 1
    assert pending.results == [None, "bad"]


def test_a_bad_row_leaves_the_others_of_a_list_waiting() -> None:
    correlator: Correlator[str] = Correlator()
    pending = correlator.open(b"r", [b"a", b"b"], 10, 0, whole=False)
    assert correlator.resolve(b"b", "bad", good=False) is None
    assert correlator.resolve(b"a", "good") is pending


def test_full_and_late_requests_are_refused() -> None:
    correlator: Correlator[str] = Correlator(max_pending=1)
    correlator.open(b"r", [b"a"], 10, 0)
    with pytest.raises(GatewayError) as full:
        correlator.open(b"s", [b"b"], 10, 0)
    assert full.value.status == 429
    correlator.resolve(b"a", "x")
    with pytest.raises(GatewayError) as past:
        correlator.open(b"s", [b"b"], 10, 10)
    assert past.value.status == 504


def test_a_row_that_went_several_ways_is_refused_when_all_of_it_is_given_back() -> None:
    left, right = (read_share(share_of(part)) for part in parted(b"a", 2))
    correlator: Correlator[str] = Correlator()
    pending = correlator.open(b"r", [b"a"], 10, 0)
    assert correlator.give_back(b"a", left, "dropped", grave=False) is None
    assert correlator.give_back(b"a", left, "dropped again", grave=False) is None
    assert correlator.give_back(b"a", right, "failed", grave=True) is pending
    assert pending.results == ["failed"]
    assert correlator.give_back(b"a", right, "failed", grave=True) is None
    assert (correlator.late, correlator.rows, len(correlator)) == (1, 0, 0)
    # The first of two that are alike; and what is answered meanwhile is answered.
    pending = correlator.open(b"r", [b"a", b"b"], 10, 0, whole=False)
    correlator.give_back(b"a", right, "failed", grave=True)
    correlator.give_back(b"b", right, "dropped", grave=False)
    assert correlator.give_back(b"a", left, "failed later", grave=True) is None
    assert correlator.resolve(b"b", "fine") is pending
    assert pending.results == ["failed", "fine"]
    # Nothing of one whose time is over stays behind.
    correlator.open(b"r", [b"a"], 10, 0)
    correlator.give_back(b"a", right, "failed", grave=True)
    assert len(correlator.expire(10)) == 1
    pending = correlator.open(b"r", [b"a"], 20, 11)
    assert correlator.give_back(b"a", left, "dropped", grave=False) is None
    assert correlator.give_back(b"a", WHOLE, "gone", grave=False) is pending
    assert pending.results == ["dropped"]


def test_deadlines_of_answered_requests_do_not_pile_up() -> None:
    correlator: Correlator[int] = Correlator()
    for i in range(10_000):
        correlator.open(b"%d" % i, [b"%d" % i], 1_000_000 + i, 0)
        correlator.resolve(b"%d" % i, i)
    assert len(correlator._deadlines) < 3_000


class Requests(RuleBasedStateMachine):
    """Every slot ends exactly once: answered, expired or closed, and nothing is held for it afterwards."""

    LIMIT = 5

    def __init__(self) -> None:
        super().__init__()
        self.correlator: Correlator[int] = Correlator(self.LIMIT)
        self.now = 0
        self.number = 0
        self.open: dict[bytes, Pending[int]] = {}
        self.rows: dict[bytes, bytes] = {}
        self.answered: dict[bytes, int] = {}
        self.late = 0

    @rule(rows=st.integers(1, 4), wait=st.integers(1, 20), whole=st.booleans())
    def ask(self, rows: int, wait: int, whole: bool) -> None:
        self.number += 1
        request = b"r%d" % self.number
        records = [request + b".%d" % i for i in range(rows)]
        if len(self.open) == self.LIMIT:
            with pytest.raises(GatewayError):
                self.correlator.open(request, records, self.now + wait, self.now, whole=whole)
            return
        self.open[request] = self.correlator.open(request, records, self.now + wait, self.now, whole=whole)
        self.rows |= dict.fromkeys(records, request)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), good=st.booleans(), value=st.integers())
    def answer(self, data: st.DataObject, good: bool, value: int) -> None:
        record = data.draw(st.sampled_from(sorted(self.rows)))
        request = self.rows[record]
        waiting = request in self.open and record not in self.answered
        ended = self.correlator.resolve(record, value, good=good)
        if not waiting:
            assert ended is None
            self.late += 1
            return
        self.answered[record] = value
        pending = self.open[request]
        done = all(r in self.answered for r in pending.record_ids) or (pending.whole and not good)
        assert (ended is pending) == done
        assert pending.results == [self.answered.get(r) for r in pending.record_ids]
        if done:
            del self.open[request]

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.open)))
        pending = self.open.pop(request)
        assert self.correlator.close(pending)
        assert not self.correlator.close(pending)

    @rule(step=st.integers(0, 15))
    def wait(self, step: int) -> None:
        self.now += step
        expired = self.correlator.expire(self.now)
        due = {r for r, p in self.open.items() if p.deadline_ms <= self.now}
        assert {p.request_id for p in expired} == due
        assert [p.deadline_ms for p in expired] == sorted(p.deadline_ms for p in expired)
        assert len(expired) == len(due)
        for request in due:
            del self.open[request]

    @invariant()
    def agree(self) -> None:
        assert len(self.correlator) == len(self.open)
        assert self.correlator.late == self.late
        waiting = [r for r, request in self.rows.items() if request in self.open and r not in self.answered]
        assert self.correlator.rows == len(waiting)
        deadlines = [p.deadline_ms for p in self.open.values()]
        assert self.correlator.next_deadline() == (min(deadlines) if deadlines else None)
        assert {p.request_id for p in self.correlator.in_flight()} == set(self.open)


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
