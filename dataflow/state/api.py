"""What a keyed node sees of its state: values and timers by record key, of one node in one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

TimerClock = Literal["processing", "event"]

BEFORE_ALL_MS: Final = -(1 << 62)  # the watermark of a node that has seen no event time


@dataclass(frozen=True, slots=True, order=True)
class Timer:
    """One timer; they fire in this order. `at_ms` is Unix time of its clock."""

    at_ms: int
    key: bytes
    name: str
    clock: TimerClock = "processing"


class KeyedState(Protocol):
    """Values and timers of one node in one task, by key and name. One thread.

    Values are what msgpack carries (None, bool, 64-bit integers, floats, str, bytes, lists, dicts, datetimes); they are
    copied on their way in and out, so what `get` gave may be changed freely and is stored only by `put`. Everything here
    is committed with the offsets of the records that it came from, and comes back when the task moves.
    """

    @property
    def now_ms(self) -> int:
        """Wall clock when the engine began this batch, or fired these timers."""
        ...

    @property
    def watermark_ms(self) -> int:
        """The largest time given to `advance`; BEFORE_ALL_MS at first. It comes back with the state."""
        ...

    def unread(self, port: str) -> bool:
        """Whether an input may have records that this node was not given: in Kafka, or waiting behind a slow batch."""
        ...

    def get(self, key: bytes, name: str, default: Any = None) -> Any:
        """The value, `default` if there is none or its time to live is over."""
        ...

    def put(self, key: bytes, name: str, value: Any, ttl_ms: int = 0) -> None:
        """Store a value; `ttl_ms` 0 is forever. Raises NodeError for a value that cannot be carried, or too large."""
        ...

    def delete(self, key: bytes, name: str) -> None: ...

    def items(self, key: bytes, prefix: str = "") -> list[tuple[str, Any]]:
        """Entries of a key whose names begin with `prefix`, by name."""
        ...

    def set_timer(self, key: bytes, name: str, at_ms: int, clock: TimerClock = "processing") -> None:
        """Fire once at `at_ms`; replaces the timer of this key and name. A time that has passed fires at once."""
        ...

    def clear_timer(self, key: bytes, name: str) -> None: ...

    def advance(self, watermark_ms: int) -> None:
        """Move the watermark; an earlier one than before changes nothing."""
        ...

    def pop_event_timer(self) -> Timer | None:
        """Take the next event timer that the watermark has reached, in the order of `Timer`."""
        ...

    def next_event_ms(self) -> int | None:
        """When the next event timer is due, by the watermark; None if there is none."""
        ...

    def savepoint(self) -> int:
        """A mark to roll back to; valid until the engine's next call of the node."""
        ...

    def rollback(self, savepoint: int) -> None:
        """Undo every change made since, timers and popped timers included. The watermark stays."""
        ...
