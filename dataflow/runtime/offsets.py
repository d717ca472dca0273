"""Which offsets may be committed: the contiguous prefix of finished work, and nothing beyond it. Pure.

Work is finished in any order; Kafka's committed offset is one number per partition. Committing past something
unfinished would lose it in a crash, so a finished batch waits for all before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from dataflow.transport.api import Position


@dataclass(eq=False, slots=True)
class Ticket:
    """One batch in hand: where its partitions stand once it and all before it are finished."""

    ends: Mapping[Position, int]
    finished: bool = False


class OffsetTracker:
    """Tickets in the order the records were read; `committable` moves over finished ones from the front only."""

    def __init__(self) -> None:
        self._open: deque[Ticket] = deque()
        self._ready: dict[Position, int] = {}

    def __len__(self) -> int:
        """Tickets not yet passed."""
        return len(self._open)

    def begin(self, ends: Mapping[Position, int]) -> Ticket:
        """Register a batch. `ends`: for each of its partitions, the offset after its last record; read when it is over."""
        ticket = Ticket(ends)
        self._open.append(ticket)
        return ticket

    def finish(self, ticket: Ticket) -> None:
        """All of the batch's outcomes are durable. Finishing twice is a bug."""
        assert not ticket.finished, "a ticket is finished once"
        ticket.finished = True
        while self._open and self._open[0].finished:
            self._ready.update(self._open.popleft().ends)

    def committable(self) -> dict[Position, int]:
        """Offsets that may be committed and were not taken yet; taking them clears them."""
        ready, self._ready = self._ready, {}
        return ready

    @property
    def waiting(self) -> bool:
        """Whether finished work waits to be committed."""
        return bool(self._ready)
