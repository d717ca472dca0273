"""Broken engines, to see that a simulation finds them. Each is a patch that holds for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any, Final
from unittest.mock import patch

from dataflow.core.errors import TransportError
from dataflow.runtime import stage
from dataflow.runtime.offsets import OffsetTracker, Ticket
from dataflow.runtime.task import Task
from dataflow.state.node_state import NodeState
from dataflow.state.task_state import TaskState
from tests.simulation.fabric import SimFabric

Mutant = Callable[[ExitStack], None]


def commit_before_outputs(stack: ExitStack) -> None:
    """Offsets are through as soon as a batch was taken in hand."""
    begin = OffsetTracker.begin

    def eager(self: OffsetTracker, ends: Mapping[Any, int]) -> Ticket:
        ticket = begin(self, ends)
        self._ready.update(ends)
        return ticket

    stack.enter_context(patch.object(OffsetTracker, "begin", eager))


def offsets_not_contiguous(stack: ExitStack) -> None:
    """What is acknowledged is committed, whatever lies before it."""

    def finish(self: OffsetTracker, ticket: Ticket) -> None:
        ticket.finished = True
        self._ready.update(ticket.ends)

    def collect(self: Task) -> None:
        for hand in [h for h in self._unacknowledged if not h.barrier.open]:
            if hand.barrier.error:
                raise TransportError(hand.barrier.error)
            self._unacknowledged.remove(hand)
            self.offsets.finish(hand.ticket)

    stack.enter_context(patch.object(OffsetTracker, "finish", finish))
    stack.enter_context(patch.object(Task, "collect", collect))


def lost_timer(stack: ExitStack) -> None:
    """Timers are not written to the changelog."""
    changes = TaskState.changes

    def without(self: TaskState) -> list[tuple[bytes, bytes | None]]:
        return [(key, value) for key, value in changes(self) if key[:1] != b"t" or value is None]

    stack.enter_context(patch.object(TaskState, "changes", without))


def state_kept_over_an_abort(stack: ExitStack) -> None:
    """Changes go to the changelog beside the transaction: they are there though it is not."""
    write_all = Task.write_all

    def beside(self: Task) -> None:
        keeper, beside_it = self._keeper, self._replies._producer
        if keeper is None:
            write_all(self)
            return
        keeper.write(beside_it)
        beside_it.flush(1)

    stack.enter_context(patch.object(Task, "write_all", beside))


def no_fencing(stack: ExitStack) -> None:
    """Each owner has a transactional id of its own, and the group's generation is not looked at."""
    numbers = count()
    init = SimFabric.__init__

    def without(self: SimFabric, *given: Any) -> None:
        init(self, *given)
        self.fences = False

    stack.enter_context(patch.object(SimFabric, "__init__", without))
    stack.enter_context(
        patch.object(stage, "transactional_id", lambda plan, partition: f"{plan.group}-{next(numbers)}")
    )


def state_not_whole(stack: ExitStack) -> None:
    """Offsets are committed with a part of the state that belongs to them."""
    changes = TaskState.changes

    def first(self: TaskState) -> list[tuple[bytes, bytes | None]]:
        return changes(self)[:1]

    stack.enter_context(patch.object(TaskState, "changes", first))


def state_before_it_is_restored(stack: ExitStack) -> None:
    """A task begins with whatever part of its changelog was read first."""
    stack.enter_context(patch.object(TaskState, "restore", lambda self, records, next_offset: None))


def a_key_forgets(stack: ExitStack) -> None:
    """A value that is stored is not always."""
    put = NodeState.put
    numbers = count(1)

    def sometimes(self: NodeState, key: bytes, name: str, value: Any, ttl_ms: int = 0) -> None:
        if next(numbers) % 50:
            put(self, key, name, value, ttl_ms)

    stack.enter_context(patch.object(NodeState, "put", sometimes))


MUTANTS: Final[tuple[Mutant, ...]] = (
    commit_before_outputs,
    offsets_not_contiguous,
    lost_timer,
    state_kept_over_an_abort,
    no_fencing,
    state_not_whole,
    state_before_it_is_restored,
    a_key_forgets,
)


@contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """The engine with one fault of its own."""
    with ExitStack() as stack:
        mutant(stack)
        yield
