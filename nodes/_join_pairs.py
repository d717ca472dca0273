"""Records of several streams that wait for each other by key and time: what is kept, what matches, when one is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

from dataflow.sdk import KeyedState, NodeError, Row, Timer, TimerClock, pack_row, unpack_row

# Matches of one record: beyond, the window is too wide for streams so dense.
MAX_MATCHES: Final = 10_000
_SIGN: Final = 1 << 63  # times before 1970 sort before the others


@dataclass(frozen=True, slots=True)
class Held:
    """A record that waits. `value` is its bytes under its side's contract; `matched`: it is in some result."""

    side: int
    time_ms: int
    row: Row
    value: bytes
    matched: bool = False

    @property
    def name(self) -> str:
        """Its entry: the records of a side by time, then by id."""
        return f"{self.side}:{self.time_ms + _SIGN:016x}:{self.row.id.decode()}"


Match = tuple[Held | None, ...]  # one for each side, None for a side that has none


@dataclass(frozen=True)
class Window:
    """When records belong together: a record of another side lies from `before_ms` before one of side 0 to `after_ms` after.

    Of more than two sides all others must lie so around the one of side 0. `partial`: results with sides missing are
    wanted of side 0, `alone`: of the others too. `once`: one result for each record of side 0, with the latest of the others.
    """

    sides: int
    before_ms: int
    after_ms: int
    clock: TimerClock
    partial: bool = False
    alone: bool = False
    once: bool = False

    def over_ms(self, held: Held) -> int:
        """When no match can come to it any more, in time of the window's clock."""
        if held.side == 0:
            return held.time_ms + self.after_ms + 1
        # One of three sides is looked for again when the third comes, as long as a record of side 0 waits.
        longer_ms = self.after_ms if self.sides > 2 else 0
        return held.time_ms + self.before_ms + longer_ms + 1

    def is_late(self, side: int, time_ms: int, mark_ms: int) -> bool:
        """Whether all that it could belong to is over."""
        reach_ms = self.after_ms if side == 0 else self.before_ms + self.after_ms
        return time_ms + reach_ms + 1 <= mark_ms

    def takes(self, first: Held, other: Held) -> bool:
        """Whether a record that comes now may be in a result of one of side 0 that waits."""
        return self.holds(first, other) and not (self.once and first.matched)

    def chosen(self, first: Held, waiting: Sequence[Held]) -> list[Held]:
        """Those of a side that a record of side 0 is matched with."""
        found = [one for one in waiting if self.holds(first, one)]
        return found[-1:] if self.once else found

    def holds(self, first: Held, other: Held) -> bool:
        return first.time_ms - self.before_ms <= other.time_ms <= first.time_ms + self.after_ms


class Pairs:
    """The records that wait in one task's state. One object serves one call of the node."""

    def __init__(self, window: Window, state: KeyedState) -> None:
        self._window = window
        self._state = state

    def take(self, key: bytes, side: int, time_ms: int, row: Row, value: bytes) -> list[Match] | None:
        """Keep a record; the matches that it completes, in the order of their times. None: it waits here already.

        Raises NodeError for too many, having kept nothing.
        """
        held = Held(side, time_ms, row, value)
        if self._state.get(key, held.name) is not None:
            return None
        others = [self._waiting(key, n) if n != side else [] for n in range(self._window.sides)]
        matches: list[Match] = []
        for first in [held] if side == 0 else [f for f in others[0] if self._window.takes(f, held)]:
            for match in self._around(first, others, held):
                matches.append(match)
                if len(matches) > MAX_MATCHES:
                    raise NodeError(f"more than {MAX_MATCHES} matches of one record", hint="a shorter window")
        if matches:
            self._mark(
                key, [one for match in matches for one in match if one is not None and one is not held]
            )
        self._keep(key, replace(held, matched=bool(matches)))
        self._state.set_timer(key, held.name, self._window.over_ms(held), self._window.clock)
        return matches

    def close(self, timer: Timer) -> tuple[Held, list[Match]] | None:
        """A record's time is over: it is let go. The record if nothing ever matched it, and its results all the same."""
        packed = self._state.get(timer.key, timer.name)
        if packed is None:
            return None
        held = _unpacked(packed)
        self._state.delete(timer.key, timer.name)
        if held.matched:
            return None
        window = self._window
        if held.side:
            alone: Match = tuple(held if n == held.side else None for n in range(window.sides))
            return held, [alone] if window.alone else []
        if not window.partial:
            return held, []
        others = [self._waiting(timer.key, n) if n else [] for n in range(window.sides)]
        found: list[Sequence[Held | None]] = [[held]]
        for waiting in others[1:]:
            found.append(window.chosen(held, waiting) or [None])
        matches: list[Match] = []
        for match in product(*found):
            matches.append(match)
            if len(matches) > MAX_MATCHES:
                raise NodeError(f"more than {MAX_MATCHES} matches of one record", hint="a shorter window")
        self._mark(
            timer.key, [one for match in matches for one in match if one is not None and one is not held]
        )
        return held, matches

    def _around(self, first: Held, others: Sequence[Sequence[Held]], new: Held) -> Iterator[Match]:
        """The matches of a record of side 0 that `new` is in."""
        sides: list[Sequence[Held]] = [[first]]
        for number in range(1, self._window.sides):
            if number == new.side:
                sides.append([new])
            else:
                sides.append(self._window.chosen(first, others[number]))
        return product(*sides)

    def _waiting(self, key: bytes, side: int) -> list[Held]:
        return [_unpacked(packed) for _, packed in self._state.items(key, f"{side}:")]

    def _mark(self, key: bytes, found: Sequence[Held]) -> None:
        for one in dict.fromkeys(one.name for one in found if not one.matched):
            packed = self._state.get(key, one)
            packed[3] = True
            self._state.put(key, one, packed)

    def _keep(self, key: bytes, held: Held) -> None:
        packed: list[Any] = [held.side, held.time_ms, held.value, held.matched, pack_row(held.row)]
        self._state.put(key, held.name, packed)


def _unpacked(packed: Sequence[Any]) -> Held:
    side, time_ms, value, matched, row = packed
    return Held(side, time_ms, unpack_row(row), value, matched)
