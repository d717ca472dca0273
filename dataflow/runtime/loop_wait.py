"""How long a stage's loop may wait when nothing is in hand that can be done now. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dataflow.runtime.task import Task

# How long a poll may wait when nothing is in hand: only a stop request is noticed this late.
IDLE_WAIT_S: Final = 0.05
# ... and while acknowledgements are due that nobody waits for.
BUSY_WAIT_S: Final = 0.005


def wait_s(tasks: Iterable[Task], now_ms: float) -> float:
    """Until a task has something to do by itself; 0 while an acknowledgement holds back somebody's answer."""
    wait = IDLE_WAIT_S
    for task in tasks:
        timer_ms = task.timer_ms
        if timer_ms is not None:
            wait = min(wait, max((timer_ms - now_ms) / 1000, 0.0))
        if task.idle and not task.uncommitted:
            continue
        if task.caller_waits:
            return 0.0
        due_ms = task.work_ms
        wait = min(wait, BUSY_WAIT_S if due_ms is None else max((due_ms - now_ms) / 1000, 0.0))
    return wait
