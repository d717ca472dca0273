"""The timers of one node by one clock, in the order in which they fire: the next ones in memory, the others in the file.

In memory are all timers that were changed and not yet saved, and of the file's those before `_read_to`. So the earliest
in memory is the earliest of all if it lies before `_read_to`; otherwise the file is read on.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, NamedTuple

from dataflow.core import limits

_BEFORE_ALL: Final = (-(1 << 63), b"", "")


class Due(NamedTuple):
    """A timer as it is ordered; `entry` is its changelog key."""

    at_ms: int
    key: bytes
    name: str
    entry: bytes


class TimerQueue:
    """See the module.

    read     timers (at_ms, key, name) of the file behind the one given, in order, at most so many
    entry    the changelog key of (key, name)
    changed  whether the file does not have this entry's newest value: then it was put here, or dropped
    """

    def __init__(
        self,
        read: Callable[[tuple[int, bytes, str], int], list[tuple[int, bytes, str]]],
        entry: Callable[[bytes, str], bytes],
        changed: Callable[[bytes], bool],
    ) -> None:
        self._read = read
        self._entry = entry
        self._changed = changed
        self._at: dict[bytes, int] = {}
        # Items that `_at` does not confirm are of timers replaced since.
        self._heap: list[Due] = []
        self._read_to: tuple[int, bytes, str] | None = _BEFORE_ALL  # None: all of it

    @property
    def crowded(self) -> bool:
        """Whether it holds so many that `clear` and reading anew is worth it."""
        return len(self._heap) > limits.MAX_STATE_TIMERS_HELD

    def put(self, due: Due) -> None:
        """Add a timer, in place of the one of this entry."""
        self._at[due.entry] = due.at_ms
        heapq.heappush(self._heap, due)

    def drop(self, entry: bytes) -> None:
        """Remove a timer, if it is here."""
        self._at.pop(entry, None)

    def clear(self) -> None:
        """Forget what is held; what was changed and is not saved is to be put again."""
        self._at.clear()
        self._heap.clear()
        self._read_to = _BEFORE_ALL

    def peek(self) -> Due | None:
        """The timer that fires first."""
        heap, at = self._heap, self._at
        while True:
            while heap and at.get(heap[0].entry) != heap[0].at_ms:
                heapq.heappop(heap)
            if self._read_to is None or (heap and heap[0][:3] <= self._read_to):
                return heap[0] if heap else None
            self._read_on(self._read_to)

    def _read_on(self, after: tuple[int, bytes, str]) -> None:
        rows = self._read(after, limits.STATE_TIMERS_AHEAD)
        for at_ms, key, name in rows:
            entry = self._entry(key, name)
            if entry not in self._at and not self._changed(entry):
                self.put(Due(at_ms, key, name, entry))
        self._read_to = rows[-1] if len(rows) == limits.STATE_TIMERS_AHEAD else None
