"""What a commit of a stage's tasks takes, in order: at least once by way of the loop's offsets, exactly once by transactions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from dataflow.core import limits
from dataflow.runtime.task import Task
from dataflow.transport.api import Consumer, Producer


def commit_transactions(tasks: Sequence[Task], consumer: Consumer) -> int:
    """Commit each task's transaction, all side by side, since most of a commit is waiting; how many there were.

    Raises what the last of them raised; every commit that was started is over by then, whatever came of it.
    """
    chosen = [task for task in tasks if task.wants_transaction]
    for task in chosen:
        task.write_all()
    with ExitStack() as started:
        for task in chosen:
            task.start_commit(consumer)
            started.callback(task.finish_commit)
    return len(chosen)


def write_states(tasks: Sequence[Task], producer: Producer) -> None:
    """What batches changed in the state goes to the changelog when their outputs are there, before their offsets.

    A crash in between counts these records in the state twice; never are they missing there. Raises TransportError
    where something is not acknowledged.
    """
    if not any(task.uncommitted for task in tasks):
        return
    producer.flush(limits.DRAIN_TIMEOUT_MS / 1000)
    for task in tasks:
        task.write_state()
    producer.flush(limits.DRAIN_TIMEOUT_MS / 1000)
    for task in tasks:
        task.confirm_state()
