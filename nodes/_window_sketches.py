"""Quantiles and distinct counts in bounded memory (the latter by Apache DataSketches); and a user's own aggregate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final, Protocol

# So many values of a window have exact quantiles; beyond, a quantile is off by some 0.5 % in rank (n values: at most
# log2(n / 256) / 512, which is 2.3 % for a million). Even.
EXACT_VALUES: Final = 256
# HyperLogLog of 2^12 registers: a standard error of 1.6 %, exact for small counts, at most 2.1 kB.
_LOG_REGISTERS: Final = 12
_UNSIGNED: Final = 1 << 63

# For each level: which of two neighbours went up last, 0 or 1, and the values, each standing for 2^level.
Levels = list[tuple[int, list[float]]]


class Quantile:
    """One quantile, by a sketch of compacting levels that throws no coins.

    A full level is sorted, and every second value goes to the next one, where it stands for two: in turn those at even
    and those at odd places (Manku, Rajagopalan, Lindsay 1998). DataSketches' KLL draws lots there, so that running the
    same records again would give other values. An accumulator is `Levels`, changed in place.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    def start(self) -> Levels:
        return [(0, [])]

    def add(self, levels: Levels, value: float | Decimal) -> Levels:
        values = levels[0][1]
        values.append(float(value))
        if len(values) >= EXACT_VALUES:
            _compact(levels)
        return levels

    def merge(self, one: Levels, other: Levels) -> Levels:
        longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
        made = [(turn, list(values)) for turn, values in longer]
        for level, (_, values) in enumerate(shorter):
            made[level][1].extend(values)
        _compact(made)
        return made

    def result(self, levels: Levels) -> float | None:
        if len(levels) == 1:
            values = levels[0][1]
            return _between(sorted(values), self._share) if values else None
        weighed = sorted((v, 1 << level) for level, (_, values) in enumerate(levels) for v in values)
        left = self._share * sum(weight for _, weight in weighed)
        for value, weight in weighed:
            left -= weight
            if left <= 0:
                return value
        return weighed[-1][0]


def _compact(levels: Levels) -> None:
    """Move values up from every level that is full. Of an odd number the largest stays: no weight is lost."""
    level = 0
    while level < len(levels):
        turn, values = levels[level]
        if len(values) >= EXACT_VALUES:
            values.sort()
            stays = values[len(values) - len(values) % 2 :]
            if level + 1 == len(levels):
                levels.append((0, []))
            levels[level + 1][1].extend(values[turn : len(values) - len(stays) : 2])
            levels[level] = (1 - turn, stays)
        level += 1


def _between(ordered: Sequence[float], share: float) -> float:
    """The quantile of sorted values, between two of them by proportion (R type 7, numpy's default)."""
    place = share * (len(ordered) - 1)
    below = int(place)
    if below + 1 >= len(ordered) or place == below:
        return ordered[below]
    return ordered[below] + (ordered[below + 1] - ordered[below]) * (place - below)


class Distinct:
    """The number of different values. An accumulator is the sketch itself, changed in place."""

    def __init__(self) -> None:
        import datasketches  # a worker without this aggregate does without it

        self._library = datasketches

    def start(self) -> Any:
        return self._library.hll_sketch(_LOG_REGISTERS, self._library.tgt_hll_type.HLL_4)

    def add(self, sketch: Any, value: Any) -> Any:
        sketch.update(_hashed(value))
        return sketch

    def merge(self, one: Any, other: Any) -> Any:
        union = self._library.hll_union(_LOG_REGISTERS)
        union.update(one)
        union.update(other)
        return union.get_result(self._library.tgt_hll_type.HLL_4)

    def result(self, sketch: Any) -> int:
        return round(float(sketch.get_estimate()))

    def pack(self, sketch: Any) -> bytes:
        packed: bytes = sketch.serialize_compact()
        return packed

    def unpack(self, packed: bytes) -> Any:
        return self._library.hll_sketch.deserialize(packed)


def _hashed(value: Any) -> int | float | str:
    """A value as the sketch takes it; equal values give equal ones."""
    if isinstance(value, bool | int):
        number = int(value)
        return number if number < _UNSIGNED else number - 2 * _UNSIGNED
    if isinstance(value, float):
        return value + 0.0  # -0.0 is 0.0
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    if isinstance(value, datetime | date):
        return value.isoformat()
    return str(value)


class OwnAggregate(Protocol):
    """A user's class under `aggregate: {NAME: {call: module.Class}}`. Values between calls are what msgpack carries."""

    def start(self) -> Any: ...

    def add(self, value: Any, row: dict[str, Any]) -> Any: ...

    def merge(self, one: Any, other: Any) -> Any: ...

    def result(self, value: Any) -> Any: ...


class Own:
    """Runs it. An accumulator is packed bytes: whatever the user's code does to what it was given, it is undone."""

    def __init__(self, instance: OwnAggregate) -> None:
        from msgspec import msgpack

        self._instance = instance
        self._encode, self._decode = msgpack.encode, msgpack.decode

    def start(self) -> bytes:
        return self._encode(self._instance.start())

    def add(self, packed: bytes, row: dict[str, Any]) -> bytes:
        return self._encode(self._instance.add(self._decode(packed), dict(row)))

    def merge(self, one: bytes, other: bytes) -> bytes:
        values = self._decode(one), self._decode(other)
        return self._encode(self._instance.merge(*values))

    def result(self, packed: bytes) -> Any:
        return self._instance.result(self._decode(packed))
