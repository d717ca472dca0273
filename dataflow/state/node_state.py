"""What one node sees of its task's state."""

from __future__ import annotations

import struct
from collections.abc import Set
from functools import partial
from typing import Any, Final

import msgspec

from dataflow.core import limits
from dataflow.core.errors import NodeError, StateError, nearest
from dataflow.state import changelog
from dataflow.state.api import BEFORE_ALL_MS, Timer, TimerClock
from dataflow.state.changelog import (
    CLOCKS,
    EXPIRING,
    FOREVER,
    TIMER,
    VALUE,
    WATERMARK,
    pack_length,
    pack_time,
)
from dataflow.state.layers import Layers
from dataflow.state.timers import Due, TimerQueue


def _refuse(value: object) -> object:
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__}")


_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_refuse)
_DECODER: Final = msgspec.msgpack.Decoder()
_CARRIED: Final = (
    "valid: None, bool, 64-bit integers, floats, str, bytes, lists, dicts, datetimes with a time zone"
)


class NodeState:
    """KeyedState of a node; see there. `now_ms` and `unread_ports`, as (node, port), are set by the task."""

    def __init__(self, name: str, layers: Layers) -> None:
        self.name = name
        self.now_ms = 0
        self.unread_ports: Set[tuple[str, str]] = frozenset()
        self._layers = layers
        self._values = changelog.head_of(VALUE, name)
        self._timers = changelog.head_of(TIMER, name)
        self._mark = changelog.head_of(WATERMARK, name)
        self._queues: dict[TimerClock, TimerQueue] = {
            clock: TimerQueue(partial(layers.store.timers, name, number), self._timer_entry, layers.changed)
            for number, clock in enumerate(CLOCKS)
        }
        # Entries in `live` by the head of their record key: what `items` has to lay over the file's. Made by its first use.
        self._held: dict[bytes, set[bytes]] | None = None
        self._watermark_ms = self._settled_mark_ms = self._read_mark()

    @property
    def watermark_ms(self) -> int:
        return self._watermark_ms

    def unread(self, port: str) -> bool:
        return (self.name, port) in self.unread_ports

    def get(self, key: bytes, name: str, default: Any = None) -> Any:
        entry = self._values + pack_length(len(key)) + key + self._encoded(name)
        raw = self._layers.read(entry)
        if self._held is not None:
            self._hold(entry, len(key))
        return default if raw is None or self._is_over(raw) else unpacked(raw, name)

    def put(self, key: bytes, name: str, value: Any, ttl_ms: int = 0) -> None:
        entry = self._values + pack_length(len(key)) + key + self._encoded(name)
        try:
            packed = _ENCODER.encode(value)
            raw = EXPIRING + pack_time(self.now_ms + ttl_ms) + packed if ttl_ms else FOREVER + packed
        except (
            TypeError,
            ValueError,
            OverflowError,
            RecursionError,
            struct.error,
            msgspec.MsgspecError,
        ) as error:
            raise NodeError(
                f"state '{name}' cannot hold {type(value).__name__}: {error}", hint=_CARRIED
            ) from None
        if ttl_ms < 0:
            raise NodeError(
                f"state '{name}' with a time to live of {ttl_ms} ms", hint="valid: from 1; 0 is forever"
            )
        self._check_size(name, len(entry) + len(raw))
        self._layers.write(entry, raw)
        if self._held is not None:
            self._hold(entry, len(key))

    def delete(self, key: bytes, name: str) -> None:
        entry = self._values + pack_length(len(key)) + key + self._encoded(name)
        self._layers.write(entry, None)
        if self._held is not None:
            self._hold(entry, len(key))

    def items(self, key: bytes, prefix: str = "") -> list[tuple[str, Any]]:
        head = self._values + pack_length(len(key)) + key
        sought = head + self._encoded(prefix)
        live = self._layers.live
        stored = self._layers.store.items(sought, limits.MAX_STATE_ITEMS + 1)
        newest: dict[bytes, bytes | None] = dict(stored)
        for entry in self._held_entries().get(head, ()):
            if entry.startswith(sought):
                newest[entry] = live[entry]
        if len(newest) > limits.MAX_STATE_ITEMS:
            raise NodeError(
                f"more than {limits.MAX_STATE_ITEMS} entries of one key, asked for at once by '{self.name}'",
                hint="give a longer prefix, or spread them over more record keys",
            )
        given = [(e[len(head) :].decode(), r) for e, r in sorted(newest.items()) if r is not None]
        return [(name, unpacked(raw, name)) for name, raw in given if not self._is_over(raw)]

    def set_timer(self, key: bytes, name: str, at_ms: int, clock: TimerClock = "processing") -> None:
        if clock not in CLOCKS:
            raise NodeError(f"timer '{name}' by clock '{clock}'", hint=nearest(clock, CLOCKS))
        entry = self._timer_entry(key, name)
        try:
            raw = changelog.encode_timer(clock, at_ms)
        except struct.error:
            raise NodeError(
                f"timer '{name}' at {at_ms!r}", hint="valid: Unix time in whole milliseconds"
            ) from None
        self._check_size(name, len(entry) + len(raw))
        if self._layers.write(entry, raw):
            self.track(entry, key, name, raw)

    def clear_timer(self, key: bytes, name: str) -> None:
        entry = self._timer_entry(key, name)
        if self._layers.write(entry, None):
            self.track(entry, key, name, None)

    def advance(self, watermark_ms: int) -> None:
        self._watermark_ms = max(self._watermark_ms, watermark_ms)

    def pop_event_timer(self) -> Timer | None:
        due = self.peek("event")
        if due is None or due.at_ms > self._watermark_ms:
            return None
        return self.pop(due, "event")

    def next_event_ms(self) -> int | None:
        due = self.peek("event")
        return None if due is None else due.at_ms

    def savepoint(self) -> int:
        return self._layers.savepoint()

    def rollback(self, savepoint: int) -> None:
        layers = self._layers
        undone = layers.rollback(savepoint)
        self._held = None
        for entry in undone:
            if entry[:1] == TIMER:
                # While it was changed, the queue may have read past its row in the file: ask for it.
                _, _, key, name = changelog.decode_key(entry)
                self.track(entry, key, name, layers.read(entry))

    # For the task.

    def peek(self, clock: TimerClock) -> Due | None:
        """The timer of a clock that fires first, due or not."""
        return self._queues[clock].peek()

    def pop(self, due: Due, clock: TimerClock) -> Timer:
        """Take a timer that `peek` gave."""
        self._layers.write(due.entry, None)
        self._queues[clock].drop(due.entry)
        return Timer(due.at_ms, due.key, due.name, clock)

    def track(self, entry: bytes, key: bytes, name: str, raw: bytes | None) -> None:
        """Have the queues follow a timer's newest value."""
        for queue in self._queues.values():
            queue.drop(entry)
        if raw is not None:
            clock, at_ms = changelog.decode_timer(raw)
            self._queues[clock].put(Due(at_ms, key, name, entry))

    @property
    def crowded(self) -> bool:
        return any(queue.crowded for queue in self._queues.values())

    def reload(self) -> None:
        """Forget all that was read from the layers; their changed timers are to be tracked again."""
        self.forget_timers()
        self._watermark_ms = self._settled_mark_ms = self._read_mark()
        self.release()

    def forget_timers(self) -> None:
        """Read timers anew from the file; the changed ones are to be tracked again."""
        for queue in self._queues.values():
            queue.clear()

    def release(self) -> None:
        """The layers let values go that were read before."""
        self._held = None

    def settle(self) -> None:
        """Write the watermark: once per batch, not per row."""
        if self._watermark_ms != self._settled_mark_ms:
            self._layers.write(self._mark, pack_time(self._watermark_ms))
            self._settled_mark_ms = self._watermark_ms

    def _read_mark(self) -> int:
        raw = self._layers.read(self._mark)
        return BEFORE_ALL_MS if raw is None else changelog.decode_time(raw)

    def _timer_entry(self, key: bytes, name: str) -> bytes:
        return self._timers + pack_length(len(key)) + key + self._encoded(name)

    def _encoded(self, name: str) -> bytes:
        try:
            return name.encode()
        except UnicodeEncodeError:
            raise NodeError(f"{name!r} names no state", hint="valid: text that UTF-8 has") from None

    def _is_over(self, raw: bytes) -> bool:
        return raw[0] == 1 and changelog.expires_of(raw) <= self.now_ms

    def _check_size(self, name: str, size_bytes: int) -> None:
        if size_bytes > limits.MAX_STATE_RECORD_BYTES:
            raise NodeError(
                f"state '{name}' of '{self.name}' would take {size_bytes} bytes (limit {limits.MAX_STATE_RECORD_BYTES})",
                hint="spread it over several names",
            )

    def _hold(self, entry: bytes, key_bytes: int) -> None:
        assert self._held is not None, "asked for by `items`"
        self._held.setdefault(entry[: len(self._values) + 4 + key_bytes], set()).add(entry)

    def _held_entries(self) -> dict[bytes, set[bytes]]:
        if self._held is None:
            self._held = {}
            start = len(self._values)
            for entry in self._layers.live:
                if entry.startswith(self._values):
                    self._hold(entry, int.from_bytes(entry[start : start + 4]))
        return self._held


def unpacked(raw: bytes, name: str) -> Any:
    """The value in a value's entry. Raises StateError."""
    try:
        return _DECODER.decode(changelog.packed_of(raw))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StateError(f"state '{name}' does not decode: {error}") from None
