"""TaskState against plain dicts, over any history; and the comparison condemns states that are broken on purpose."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from dataflow.state.api import Timer, TimerClock
from dataflow.state.node_state import NodeState
from dataflow.state.store import Change
from dataflow.state.task_state import TaskState
from dataflow.state.timers import Due
from tests.state.model import StateMachine

LONG = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
# A broken one is to be found, not explained.
FIND = settings(
    LONG,
    max_examples=1_000,
    stateful_step_count=100,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
)


def test_any_history_is_that_of_plain_dicts() -> None:
    run_state_machine_as_test(StateMachine, settings=LONG)


class LosesTombstones(TaskState):
    def changes(self) -> list[Change]:
        return [change for change in super().changes() if change[1] is not None]


class CommitsTheBatchInHand(TaskState):
    def changes(self) -> list[Change]:
        self.settle()
        return super().changes()


class LosesWhatSettlesTwice(TaskState):
    def settle(self) -> None:
        self._layers.settled.clear()
        super().settle()


class SaysToHaveReadMore(TaskState):
    def committed(self, next_offset: int) -> None:
        super().committed(next_offset)
        self._next_offset += 1


class KeepsWhatIsOver(TaskState):
    def begin(self, now_ms: int) -> None:
        super().begin(now_ms)
        for node in self._nodes.values():
            node.now_ms = 0


class ForgetsTimersOfTheFile(TaskState):
    def begin(self, now_ms: int) -> None:
        super().begin(now_ms)
        for node in self._nodes.values():
            for queue in node._queues.values():
                queue._read_to = None


class Undoes(TaskState):
    """... values, but leaves the queues of timers as they are."""

    def node_state(self, name: str) -> NodeState:
        node = super().node_state(name)
        node.rollback = self._layers.rollback  # type: ignore[method-assign, assignment]
        return node


class FiresAgain(TaskState):
    """... once the file is read: what fired is only taken from the queue."""

    def node_state(self, name: str) -> NodeState:
        node = super().node_state(name)

        def pop(due: Due, clock: TimerClock) -> Timer:
            node._queues[clock].drop(due.entry)
            return Timer(due.at_ms, due.key, due.name, clock)

        node.pop = pop  # type: ignore[method-assign]
        return node


@pytest.mark.parametrize("broken", [
    LosesTombstones, CommitsTheBatchInHand, LosesWhatSettlesTwice, SaysToHaveReadMore, KeepsWhatIsOver,
    ForgetsTimersOfTheFile, Undoes, FiresAgain,
])  # fmt: skip
def test_a_broken_state_is_found(broken: type[TaskState]) -> None:
    machine = type(broken.__name__, (StateMachine,), {"make": broken})
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(machine, settings=FIND)
