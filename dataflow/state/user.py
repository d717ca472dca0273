"""What user code sees of the state of its key: `KeyedContext`, with values, maps, lists and timers by name.

A map and a list are entries of their own, so that a change of one item costs one item. The names of entries, as the
changelog and `GET /state` show them: a value is ``NAME``, an item of a map ``NAME[KEY]``, an item of a list
``NAME#000000000007`` and its bounds ``NAME#``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from dataflow.core.durations import DURATION_HINT, duration_ms
from dataflow.core.errors import NodeError
from dataflow.state.api import KeyedState, TimerClock

DEFAULT_TIMER: Final = "timer"

_REFUSED: Final = {
    "": ("a timer is set and nothing would be called", "write a method on_timer, or set on_timer: module.function"),
    "event": ("there is no event time here", "set time: to a timestamp field, or declare event_time on the topic"),
}  # fmt: skip
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]*")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_ABSENT: Final = object()
# What is stored, and given, as it is.
_PLAIN: Final = frozenset({bool, int, float, str, bytes, type(None)})


class KeyedContext:
    """One call's view of the state of its key. Use it within the call only.

    id             id of the record; on a timer one that follows from node, key, name and time. The same on a retry
    key            key of the record or timer
    attempt        redrives of the record, or failed attempts at this timer, counted from 0
    now_ms         wall clock at the beginning of the batch, in Unix ms
    event_time_ms  the record's or timer's own time; None without an event-time field
    """

    __slots__ = ("_state", "attempt", "event_time_ms", "id", "key", "state", "timer")

    def __init__(
        self,
        state: KeyedState,
        key: bytes,
        id: str,  # noqa: A002  (the field's own name)
        attempt: int = 0,
        event_time_ms: int | None = None,
        clocks: Sequence[TimerClock] = ("processing", "event"),
    ) -> None:
        """`clocks` are those that timers may be set on here; none where nobody would be called."""
        self._state = state
        self.key = key
        self.id = id
        self.attempt = attempt
        self.event_time_ms = event_time_ms
        self.state = StateOfKey(state, key)
        self.timer = TimersOfKey(state, key, clocks)

    @property
    def now_ms(self) -> int:
        return self._state.now_ms

    @property
    def watermark_ms(self) -> int:
        """How far event time has come, all keys together: no earlier record is waited for."""
        return self._state.watermark_ms


class StateOfKey:
    """Values, maps and lists of one key, by name. What is read is a copy; it is stored by `set` only.

    A value is None, bool, a number, str, bytes, a datetime (UTC; without a zone, as rows have it), or lists and dicts of
    such.
    """

    __slots__ = ("_key", "_state")

    def __init__(self, state: KeyedState, key: bytes) -> None:
        self._state = state
        self._key = key

    def get(self, name: str, default: Any = None) -> Any:
        return _given(self._state.get(self._key, _checked(name), default))

    def set(self, name: str, value: Any, ttl: str | int | timedelta = 0) -> None:
        """Store a value. `ttl`, the time it lives, is ``"7d"``, ms or a timedelta; 0 is forever."""
        self._state.put(self._key, _checked(name), _stored(value), _milliseconds(ttl))

    def delete(self, name: str) -> None:
        self._state.delete(self._key, _checked(name))

    def map(self, name: str, ttl: str | int | timedelta = 0) -> MapOfKey:
        """A map from texts to values. `ttl` is that of the items set through what is returned."""
        return MapOfKey(self._state, self._key, _checked(name), _milliseconds(ttl))

    def list(self, name: str) -> ListOfKey:
        """A list of values: append, iterate, index, take the first, clear."""
        return ListOfKey(self._state, self._key, _checked(name))


class MapOfKey(MutableMapping[str, Any]):
    """A map in the state of a key, in the order of its keys; each item is an entry of its own."""

    __slots__ = ("_key", "_name", "_state", "_ttl_ms")

    def __init__(self, state: KeyedState, key: bytes, name: str, ttl_ms: int = 0) -> None:
        self._state = state
        self._key = key
        self._name = name
        self._ttl_ms = ttl_ms

    def __getitem__(self, item: str) -> Any:
        value = self._state.get(self._key, self._entry(item), _ABSENT)
        if value is _ABSENT:
            raise KeyError(item)
        return _given(value)

    def __setitem__(self, item: str, value: Any) -> None:
        self._state.put(self._key, self._entry(item), _stored(value), self._ttl_ms)

    def __delitem__(self, item: str) -> None:
        _ = self[item]
        self._state.delete(self._key, self._entry(item))

    def __iter__(self) -> Iterator[str]:
        skip = len(self._name) + 1
        return iter([entry[skip:-1] for entry, _ in self._entries()])

    def __len__(self) -> int:
        return len(self._entries())

    def __repr__(self) -> str:
        return f"MapOfKey({dict(self)!r})"

    def _entries(self) -> list[tuple[str, Any]]:
        return self._state.items(self._key, self._name + "[")

    def _entry(self, item: str) -> str:
        if not isinstance(item, str):
            raise NodeError(f"a key of the map '{self._name}' is {item!r}", hint="give it a str")
        return f"{self._name}[{item}]"


class ListOfKey:
    """A list in the state of a key; each item is an entry of its own, so that `append` costs one item."""

    __slots__ = ("_bounds", "_key", "_name", "_state")

    def __init__(self, state: KeyedState, key: bytes, name: str) -> None:
        self._state = state
        self._key = key
        self._name = name
        self._bounds = name + "#"  # number of the first item, and of the one to come

    def append(self, value: Any) -> None:
        first, end = self._span()
        self._state.put(self._key, self._entry(end), _stored(value))
        self._state.put(self._key, self._bounds, [first, end + 1])

    def popleft(self) -> Any:
        """Take the first item out. Raises IndexError when there is none."""
        value = self[0]
        first, end = self._span()
        self._state.delete(self._key, self._entry(first))
        if first + 1 == end:
            self._state.delete(self._key, self._bounds)
        else:
            self._state.put(self._key, self._bounds, [first + 1, end])
        return value

    def clear(self) -> None:
        for number in range(*self._span()):
            self._state.delete(self._key, self._entry(number))
        self._state.delete(self._key, self._bounds)

    def __getitem__(self, index: int) -> Any:
        first, end = self._span()
        number = first + index if index >= 0 else end + index
        if not first <= number < end:
            raise IndexError(f"the list '{self._name}' has {end - first} items")
        return _given(self._state.get(self._key, self._entry(number)))

    def __iter__(self) -> Iterator[Any]:
        for number in range(*self._span()):
            yield _given(self._state.get(self._key, self._entry(number)))

    def __len__(self) -> int:
        first, end = self._span()
        return end - first

    def __repr__(self) -> str:
        return f"ListOfKey({list(self)!r})"

    def _span(self) -> tuple[int, int]:
        first, end = self._state.get(self._key, self._bounds, (0, 0))
        return first, end

    def _entry(self, number: int) -> str:
        return f"{self._bounds}{number:012d}"


class TimersOfKey:
    """Timers of one key, by name: setting one replaces the one of that name. `on_timer` is called when one fires."""

    __slots__ = ("_clocks", "_key", "_state")

    def __init__(self, state: KeyedState, key: bytes, clocks: Sequence[TimerClock]) -> None:
        self._state = state
        self._key = key
        self._clocks = clocks

    def at(self, time: datetime | int, name: str = DEFAULT_TIMER) -> None:
        """Fire when the wall clock reaches `time` (datetime, UTC if it has no zone, or Unix ms)."""
        self._set(name, _moment_ms(time), "processing")

    def after(self, duration: str | int | timedelta, name: str = DEFAULT_TIMER) -> None:
        """Fire a duration (``"30m"``, ms, timedelta) after the beginning of this batch."""
        self._set(name, self._state.now_ms + _milliseconds(duration), "processing")

    def at_event_time(self, time: datetime | int, name: str = DEFAULT_TIMER) -> None:
        """Fire when event time, as the records tell it, reaches `time`."""
        self._set(name, _moment_ms(time), "event")

    def cancel(self, name: str = DEFAULT_TIMER) -> None:
        """Take a timer back; nothing happens if there is none."""
        self._state.clear_timer(self._key, _checked(name))

    def _set(self, name: str, at_ms: int, clock: TimerClock) -> None:
        if clock not in self._clocks:
            message, hint = _REFUSED["" if not self._clocks else clock]
            raise NodeError(message, hint=hint)
        self._state.set_timer(self._key, _checked(name), at_ms, clock)


@lru_cache(maxsize=1024)
def _checked(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise NodeError(
            f"{name!r} is no name in state", hint="letters, digits, _ . : and -, a letter or _ first"
        )
    return name


def _milliseconds(duration: str | int | timedelta) -> int:
    if isinstance(duration, timedelta):
        value_ms = duration // _MILLISECOND
    elif isinstance(duration, int) and not isinstance(duration, bool):
        value_ms = duration
    else:
        try:
            value_ms = _parsed_ms(duration)
        except ValueError as error:
            raise NodeError(str(error), hint=DURATION_HINT) from None
    if value_ms < 0:
        raise NodeError(f"a duration of {value_ms} ms lies in the past")
    return value_ms


@lru_cache(maxsize=256)
def _parsed_ms(text: str) -> int:
    return duration_ms(text)


def _stored(value: Any) -> Any:
    """A value as the store takes it: its datetimes have a zone."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, datetime):
        return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    if isinstance(value, dict):
        return {name: _stored(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_stored(item) for item in value]
    return value


def _given(value: Any) -> Any:
    """A stored value as rows have it: its datetimes are UTC, without a zone."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo is not None else value
    if isinstance(value, dict):
        return {name: _given(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_given(item) for item in value]
    return value


def _moment_ms(time: datetime | int) -> int:
    if isinstance(time, datetime):
        aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
        return (aware - _EPOCH) // _MILLISECOND
    if isinstance(time, int) and not isinstance(time, bool):
        return time
    raise NodeError(f"a time of a timer is {time!r}", hint="a datetime, or Unix time in ms")
