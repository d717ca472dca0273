"""What a task with state does without a record: timers that are due, and what is left when bounded inputs have ended."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from dataflow.core import limits
from dataflow.runtime.execution import Execution, Program

if TYPE_CHECKING:
    from dataflow.state.task_state import TaskState

log = logging.getLogger("dataflow.clockwork")

# Turns of the clock at the end of bounded inputs: a timer that sets itself again and again has no end.
MAX_LAST_TIMERS: Final = 10_000
_TIMERS: Final = -1


class Clockwork:
    """Gives executions to run, like those of batches, one after another. `begin` comes first, for batches as well."""

    def __init__(self, program: Program, state: TaskState) -> None:
        self._program = program
        self._state = state
        self._now_ms = 0
        self._ahead_ms = 0  # at the end of the inputs the clock runs ahead, to the timers that are left
        self._left: deque[int] = deque()
        self._fired = 0

    def begin(self, now_ms: int) -> None:
        """A batch, or timers, begin now."""
        self._now_ms = max(now_ms, self._ahead_ms)
        self._state.begin(self._now_ms)

    def timers(self) -> Execution | None:
        """Timers that are due, fired; None if there are none."""
        due_ms = self._state.due_ms()
        if due_ms is None or due_ms > self._now_ms:
            return None
        due = self._state.pop_due(self._now_ms, limits.MAX_BATCH_RECORDS)
        if not due:
            self._state.settle()  # what expired is gone, and goes with the next commit
            return None
        execution = Execution(self._program, self._state)
        execution.fire(due)
        return execution

    def end(self) -> None:
        """All inputs have ended: `last` gives what nodes held, upstream ones first, with the timers before and after."""
        drained = [i for i, runner in enumerate(self._program.runners) if runner.drains]
        self._left.extend([x for i in drained for x in (_TIMERS, i)] + [_TIMERS])
        self._fired = 0

    @property
    def ending(self) -> bool:
        """Whether `last` has something to do."""
        return bool(self._left)

    def last(self) -> Execution | None:
        """The next part of the end; None if that gave nothing. Raises what a node raises that is told of the end."""
        if self._left[0] == _TIMERS:
            due_ms = self._state.next_timer_ms()
            if due_ms is not None and self._fired < MAX_LAST_TIMERS:
                self._fired += 1
                self._ahead_ms = max(self._ahead_ms, due_ms)
                self.begin(due_ms)
                return self.timers()
            if due_ms is not None and len(self._left) == 1:
                log.warning("timers are left that set themselves again and again: %d were fired", self._fired)
            self._left.popleft()
            return None
        execution = Execution(self._program, self._state)
        execution.drain(self._left.popleft())
        return execution
