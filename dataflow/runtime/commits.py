"""What has to be written, and acknowledged, before offsets are committed at least once."""

from __future__ import annotations

from collections.abc import Sequence

from dataflow.core import limits
from dataflow.runtime.task import Task
from dataflow.transport.api import Producer


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
