"""Windows in the making: which of them a record belongs to, when they close, and how state carries them.

One object of these serves one call of the node, and holds what that call has in hand; `flush` gives it to the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from dataflow.sdk import KeyedState, Timer, TimerClock

from ._window_aggregates import Aggregate

_FAR_MS: Final = 1 << 60  # event time after all others, which comes when the inputs have ended


@dataclass(slots=True, eq=False)
class Pane:
    """One window of one key, `values` being the accumulators in the order of the aggregates.

    last     time of the last record of a session; of an aligned window the end
    records  taken in so far
    fired    results given so far
    dirty    changed since then
    kept     it is in the state as it is here
    """

    start: int
    last: int
    values: list[Any]
    records: int = 0
    fired: int = 0
    dirty: bool = False
    kept: bool = False
    first_id: bytes = b""


class Sink(Protocol):
    """Where results go: of a window that closed, and of one that a row of the batch changed."""

    def closed(self, key: bytes, pane: Pane, end_ms: int, cause: int) -> None: ...

    def updated(self, row: int, pane: Pane, end_ms: int) -> None: ...


@dataclass(frozen=True)
class Frame:
    """What all windows of a node have in common. `every_ms` is the size where they do not overlap."""

    aggregates: tuple[Aggregate, ...]
    clock: TimerClock
    updates: bool = False
    lateness_ms: int = 0
    size_ms: int = 0
    every_ms: int = 0
    offset_ms: int = 0
    gap_ms: int = 0
    count: int = 0
    timeout_ms: int = 0


class Panes:
    """What the kinds of windows share. `due_ms` is a time before which no event timer fires."""

    def __init__(
        self, frame: Frame, state: KeyedState, columns: Sequence[Sequence[Any] | None], sink: Sink
    ) -> None:
        """`columns` are the batch's values for each aggregate, None for one that needs none."""
        self.frame = frame
        self.state = state
        self.sink = sink
        self._event = frame.clock == "event"
        due_ms = state.next_event_ms() if self._event else None
        self.due_ms = _FAR_MS if due_ms is None else due_ms
        self._steps = [
            (place, one.add, column)
            for place, (one, column) in enumerate(zip(frame.aggregates, columns, strict=False))
            if not one.fallible
        ]
        self._risky = [
            (place, one.add, column)
            for place, (one, column) in enumerate(zip(frame.aggregates, columns, strict=False))
            if one.fallible
        ]

    def take(self, row: int, key: bytes, time_ms: int, mark_ms: int, record_id: bytes) -> bool:
        """Put a row into its windows; False: they are all over. An exception means that it changed nothing."""
        raise NotImplementedError

    def close(self, timer: Timer, mark_ms: int, cause: int) -> None:
        """A timer of ours is due, and its clock at `mark_ms`. `cause` is the row that moved it, -1 for none."""
        raise NotImplementedError

    def flush(self) -> None:
        """Give the state what changed."""
        raise NotImplementedError

    def _prepared(self, values: list[Any], row: int) -> list[tuple[int, Any]]:
        """The new values of those aggregates that may raise."""
        return [
            (place, add(values[place], 1 if column is None else column[row]))
            for place, add, column in self._risky
            if column is None or column[row] is not None
        ]

    def _apply(self, pane: Pane, row: int, prepared: list[tuple[int, Any]] | None) -> None:
        values = pane.values
        for place, add, column in self._steps:
            if column is None:
                values[place] = add(values[place], 1)
            elif (value := column[row]) is not None:
                values[place] = add(values[place], value)
        if prepared:
            for place, value in prepared:
                values[place] = value
        pane.records += 1
        pane.dirty = True
        pane.kept = False

    def _fresh(self) -> list[Any]:
        return [one.start() for one in self.frame.aggregates]

    def _set_timer(self, key: bytes, name: str, at_ms: int) -> None:
        self.state.set_timer(key, name, at_ms, self.frame.clock)
        self.due_ms = min(self.due_ms, at_ms)

    def _packed(self, pane: Pane) -> list[Any]:
        values = [
            value if one.pack is None else one.pack(value)
            for one, value in zip(self.frame.aggregates, pane.values, strict=True)
        ]
        return [pane.start, pane.last, pane.records, pane.fired, pane.dirty, pane.first_id, values]

    def _unpacked(self, packed: Sequence[Any]) -> Pane:
        start, last, records, fired, dirty, first_id, values = packed
        accumulators = [
            value if one.unpack is None else one.unpack(value)
            for one, value in zip(self.frame.aggregates, values, strict=True)
        ]
        return Pane(start, last, accumulators, records, fired, dirty, True, first_id)

    def _settle(self, key: bytes, name: str, pane: Pane, mark_ms: int, cause: int) -> bool:
        """Do what is due for a window at this time; False when it is over for good. `last` is its end less the gap."""
        frame = self.frame
        end_ms = pane.last + frame.gap_ms
        if end_ms > mark_ms:
            self._set_timer(key, name, end_ms)  # it went on since the timer was set
            return True
        if pane.dirty:
            if not frame.updates:
                self.sink.closed(key, pane, end_ms, cause)
            pane.fired += 1
            pane.dirty = pane.kept = False
        if end_ms + frame.lateness_ms > mark_ms:
            self._set_timer(key, name, end_ms + frame.lateness_ms)
            return True
        return False


class AlignedPanes(Panes):
    """Windows of one size that begin at multiples of `every`. State has an entry and a timer for each."""

    def __init__(
        self, frame: Frame, state: KeyedState, columns: Sequence[Sequence[Any] | None], sink: Sink
    ) -> None:
        super().__init__(frame, state, columns, sink)
        self._held: dict[tuple[bytes, int], Pane] = {}

    def take(self, row: int, key: bytes, time_ms: int, mark_ms: int, record_id: bytes) -> bool:
        del record_id
        frame = self.frame
        start = time_ms - (time_ms - frame.offset_ms) % frame.every_ms
        past = max(time_ms, mark_ms - frame.lateness_ms) - frame.size_ms
        if start <= past:
            return False
        panes = []
        while start > past:
            panes.append(self._held.get((key, start)) or self._found(key, start))
            start -= frame.every_ms
        prepared = [self._prepared(pane.values, row) for pane in panes] if self._risky else None
        for place in range(len(panes) - 1, -1, -1):
            pane = panes[place]
            if not pane.records:
                self._held[key, pane.start] = pane
                self._set_timer(key, f"w:{pane.start}", pane.last)
            self._apply(pane, row, None if prepared is None else prepared[place])
            if frame.updates:
                self.sink.updated(row, pane, pane.last)
            if pane.last <= mark_ms:
                self._settle(key, f"w:{pane.start}", pane, mark_ms, row)
        return True

    def close(self, timer: Timer, mark_ms: int, cause: int) -> None:
        start = int(timer.name[2:])
        pane = self._held.get((timer.key, start)) or self._found(timer.key, start)
        if pane.records and not self._settle(timer.key, timer.name, pane, mark_ms, cause):
            self._held.pop((timer.key, start), None)
            self.state.delete(timer.key, timer.name)

    def flush(self) -> None:
        for (key, start), pane in self._held.items():
            if not pane.kept:
                self.state.put(key, f"w:{start}", self._packed(pane))

    def _found(self, key: bytes, start: int) -> Pane:
        """The window as the state has it, or an empty one that is not held yet."""
        packed = self.state.get(key, f"w:{start}")
        if packed is None:
            return Pane(start, start + self.frame.size_ms, self._fresh())
        pane = self._held[key, start] = self._unpacked(packed)
        return pane


class SessionPanes(Panes):
    """Windows that go on while records come no further than `gap` apart. State has one entry for all of a key."""

    def __init__(
        self, frame: Frame, state: KeyedState, columns: Sequence[Sequence[Any] | None], sink: Sink
    ) -> None:
        super().__init__(frame, state, columns, sink)
        self._held: dict[bytes, list[Pane]] = {}
        self._changed: set[bytes] = set()

    def take(self, row: int, key: bytes, time_ms: int, mark_ms: int, record_id: bytes) -> bool:
        del record_id
        gap_ms = self.frame.gap_ms
        panes = self._held.get(key)
        if panes is None:
            panes = self._load(key)
        near = [pane for pane in panes if pane.start - gap_ms < time_ms < pane.last + gap_ms]
        if not near and time_ms + gap_ms + self.frame.lateness_ms <= mark_ms:
            return False
        pane = near[0] if len(near) == 1 else self._joined(near, time_ms)
        prepared = self._prepared(pane.values, row) if self._risky else None
        self._apply(pane, row, prepared)
        start = min(pane.start, time_ms)
        if len(near) != 1 or start < pane.start:
            for old in near:
                self.state.clear_timer(key, f"s:{old.start}")
            pane.start = start
            panes[:] = sorted([*(p for p in panes if p not in near), pane], key=_by_start)
            self._set_timer(key, f"s:{start}", max(pane.last, time_ms) + gap_ms)
        pane.last = max(pane.last, time_ms)
        self._changed.add(key)
        if self.frame.updates:
            self.sink.updated(row, pane, pane.last + gap_ms)
        if pane.last + gap_ms <= mark_ms:
            self._settle(key, f"s:{pane.start}", pane, mark_ms, row)
        return True

    def close(self, timer: Timer, mark_ms: int, cause: int) -> None:
        start, key = int(timer.name[2:]), timer.key
        panes = self._held.get(key)
        if panes is None:
            panes = self._load(key)
        pane = next((p for p in panes if p.start == start), None)
        if pane is None:
            return
        if not self._settle(key, timer.name, pane, mark_ms, cause):
            panes.remove(pane)
            pane.kept = False
        if not pane.kept:
            self._changed.add(key)

    def flush(self) -> None:
        for key in self._changed:
            panes = self._held[key]
            if panes:
                self.state.put(key, "s", [self._packed(pane) for pane in panes])
            else:
                self.state.delete(key, "s")

    def _load(self, key: bytes) -> list[Pane]:
        panes = [self._unpacked(packed) for packed in self.state.get(key, "s", ())]
        self._held[key] = panes
        return panes

    def _joined(self, near: list[Pane], time_ms: int) -> Pane:
        """What the sessions become that a record connects; an empty one for none."""
        if not near:
            return Pane(time_ms, time_ms, self._fresh())
        values = list(near[0].values)
        for later in near[1:]:
            values = [
                one.merge(value, other)
                for one, value, other in zip(self.frame.aggregates, values, later.values, strict=True)
            ]
        records, fired = sum(p.records for p in near), max(p.fired for p in near)
        return Pane(near[0].start, max(p.last for p in near), values, records, fired)


class CountPanes(Panes):
    """Windows of so many records of a key. State has one entry for the window of a key that is not full."""

    def __init__(
        self, frame: Frame, state: KeyedState, columns: Sequence[Sequence[Any] | None], sink: Sink
    ) -> None:
        super().__init__(frame, state, columns, sink)
        self._held: dict[bytes, Pane | None] = {}

    def take(self, row: int, key: bytes, time_ms: int, mark_ms: int, record_id: bytes) -> bool:
        del mark_ms
        pane = self._held[key] if key in self._held else self._load(key)
        if pane is None:
            pane = Pane(time_ms, time_ms, self._fresh(), first_id=record_id)
        prepared = self._prepared(pane.values, row) if self._risky else None
        if not pane.records:
            self._held[key] = pane
            self._wait(key)
        self._apply(pane, row, prepared)
        pane.start, pane.last = min(pane.start, time_ms), max(pane.last, time_ms)
        if self.frame.updates:
            self.sink.updated(row, pane, pane.last)
        if pane.records == self.frame.count:
            self._end(key, pane, row)
            self.state.clear_timer(key, "c")
        return True

    def close(self, timer: Timer, mark_ms: int, cause: int) -> None:
        del mark_ms
        pane = self._held[timer.key] if timer.key in self._held else self._load(timer.key)
        if pane is not None:
            self._end(timer.key, pane, cause)

    def flush(self) -> None:
        for key, pane in self._held.items():
            if pane is None:
                self.state.delete(key, "c")
            elif not pane.kept:
                self.state.put(key, "c", self._packed(pane))

    def _wait(self, key: bytes) -> None:
        """A window that does not fill ends by its timeout, or when the inputs have ended."""
        if self.frame.timeout_ms:
            self.state.set_timer(key, "c", self.state.now_ms + self.frame.timeout_ms)
        else:
            self.state.set_timer(key, "c", _FAR_MS, "event")

    def _end(self, key: bytes, pane: Pane, cause: int) -> None:
        if not self.frame.updates:
            self.sink.closed(key, pane, pane.last, cause)
        self._held[key] = None

    def _load(self, key: bytes) -> Pane | None:
        packed = self.state.get(key, "c")
        pane = self._held[key] = None if packed is None else self._unpacked(packed)
        return pane


def _by_start(pane: Pane) -> int:
    return pane.start
