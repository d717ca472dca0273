"""Engines that are broken on purpose: each shows that the judge sees what it says it looks for.

They are laid over the engine's classes by `faults.agent`, in the workers of a run that must then be found wanting.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from typing import Any, Final


def patch(owner: Any, name: str, value: Any) -> None:
    """Put a thing in the place of another, which must be there: a defect that changes nothing shows nothing."""
    assert hasattr(owner, name), f"{owner} has no {name}"
    setattr(owner, name, value)


def commit_before_output() -> None:
    """Offsets first, on their own, and then the transaction with the outputs."""
    from dataflow.transport.kafka_transactions import KafkaTransaction

    commit = KafkaTransaction.start_commit

    def hasty(self: KafkaTransaction, offsets: Mapping[Any, int], consumer: Any) -> None:
        if offsets:
            consumer.commit(offsets, wait=True)
            # The crash points of this suite lie in the steps: one of them is now between offsets and outputs.
            self._step("adding offsets", lambda _: None)
        commit(self, {}, consumer)

    patch(KafkaTransaction, "start_commit", hasty)


def without_fencing() -> None:
    """Every process has transactional ids of its own, works on with what it lost, and asks no group before it commits.

    Its transactions stay open until it does: the broker must not end them first, however slow the machine.
    """
    from dataflow.core.errors import TransportError
    from dataflow.runtime import stage
    from dataflow.transport import kafka_transactions
    from dataflow.transport.kafka_transactions import KafkaTransaction

    commit = KafkaTransaction.start_commit

    def careless(self: KafkaTransaction, offsets: Mapping[Any, int], consumer: Any) -> None:
        commit(self, {}, consumer)
        with suppress(TransportError):
            consumer.commit(offsets, wait=True)

    patch(KafkaTransaction, "start_commit", careless)
    mark = uuid.uuid4().hex
    patch(stage, "transactional_id", lambda plan, partition: f"{plan.group}.{partition}.{mark}")

    def go_on(self: stage.StageLoop, positions: Any) -> None:
        del self, positions

    patch(stage.StageLoop, "lost", go_on)
    patch(stage.StageLoop, "revoked", go_on)
    patient = {"transaction.timeout.ms": 120_000, "delivery.timeout.ms": 120_000}
    patch(kafka_transactions, "SETTINGS", {**kafka_transactions.SETTINGS, **patient})


def without_contiguous_tracking() -> None:
    """An offset may be committed as soon as its record is taken, whatever becomes of it; and outputs take their time."""
    from dataflow.runtime.offsets import OffsetTracker, Ticket
    from dataflow.transport import kafka

    def begin(self: OffsetTracker, ends: Mapping[Any, int]) -> Ticket:
        self._ready.update(ends)
        return Ticket(dict(ends))

    patch(OffsetTracker, "begin", begin)
    patch(OffsetTracker, "finish", lambda *_: None)
    patch(kafka, "_LINGER", {first: {**own, "linger.ms": 1_000} for first, own in kafka._LINGER.items()})


def loses_dead_letters() -> None:
    """What fails is gone."""
    from dataflow.runtime import task

    patch(task, "send_dead_letter", lambda *_: None)


def reads_uncommitted() -> None:
    """Consumers see what is aborted later."""
    from dataflow.transport import kafka

    patch(kafka, "_CONSUMER", {**kafka._CONSUMER, "isolation.level": "read_uncommitted"})


def loses_a_timer() -> None:
    """One timer in twenty is never set."""
    from dataflow.state.node_state import NodeState

    set_timer, calls = NodeState.set_timer, count()

    def forgetful(self: NodeState, *told: Any, **more: Any) -> None:
        if next(calls) % 20:
            set_timer(self, *told, **more)

    patch(NodeState, "set_timer", forgetful)


def undoes_nothing() -> None:
    """What a failing record did to the state of its key stays."""
    from dataflow.state.node_state import NodeState

    patch(NodeState, "rollback", lambda *_: None)


def restores_nothing() -> None:
    """A task that comes from elsewhere begins with what is in the process's own files."""
    from dataflow.state.task_state import TaskState

    patch(TaskState, "restore", lambda *_: None)


def passes_over_strangers() -> None:
    """Whatever offset a handed request got, it counts as the one that was expected."""
    from dataflow.runtime.lanes import GivenRecord, Handed, Lane

    reported = Lane._reported

    def trusting(
        self: Lane, handed: Handed, record: GivenRecord, request: Any, error: Any, message: Any
    ) -> None:
        if error is None:
            self.next = message.offset()
        reported(self, handed, record, request, error, message)

    patch(Lane, "_reported", trusting)


MUTANTS: Final[Mapping[str, Callable[[], None]]] = {
    "commit before output": commit_before_output,
    "without fencing": without_fencing,
    "without contiguous tracking": without_contiguous_tracking,
    "loses dead letters": loses_dead_letters,
    "reads uncommitted": reads_uncommitted,
    "loses a timer": loses_a_timer,
    "undoes nothing": undoes_nothing,
    "restores nothing": restores_nothing,
    "passes over strangers": passes_over_strangers,
}
