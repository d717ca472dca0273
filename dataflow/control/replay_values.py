"""Pairs of records, as recorded and as replayed, compared value by value; columns first, one by one where they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dataflow.codecs import Codec, codec_for
from dataflow.codecs.values import to_jsonable
from dataflow.control.records import Stream, key_text
from dataflow.control.replay_ledger import Wire
from dataflow.control.replay_report import MAX_LISTED, EdgeComparison, FieldDifference, FieldSummary
from dataflow.core.differences import ABSENT, differences, number_of, path_text, shown
from dataflow.core.privacy import MASK, is_private
from dataflow.core.schema import Column

KEY: Final = "(key)"
RECORD: Final = "(record)"
_BATCH: Final = 500


class Side:
    """One side of an edge: its contract, and how records of an older one are read."""

    def __init__(self, stream: Stream, find_codec: Callable[[bytes], Codec | None]) -> None:
        self.stream = stream
        self._own = codec_for(stream.codec, stream.schema)
        self._find_codec = find_codec

    def values(self, wires: Sequence[Wire]) -> list[dict[str, Any] | str]:
        """Each record as JSON says it; a text for one that does not decode."""
        made: list[dict[str, Any] | str] = [""] * len(wires)
        for fingerprint in dict.fromkeys(w.schema for w in wires):
            indices = [i for i, w in enumerate(wires) if w.schema == fingerprint]
            codec = self._codec(fingerprint)
            if codec is None:
                for i in indices:
                    made[i] = f"schema {fingerprint.decode('ascii', 'replace')} is not known, or does not fit"
                continue
            decoded = codec.decode([wires[i].value for i in indices])
            for i, error in decoded.failed:
                made[indices[i]] = f"it does not decode: {error}"
            good = decoded.good.tolist()
            told = to_jsonable(self.stream.schema, decoded.columns, len(good))
            for i, value in zip(good, told, strict=True):
                made[indices[i]] = value
        return made

    def columns(self, wires: Sequence[Wire]) -> dict[str, Column] | None:
        """All of them as columns, where that can be done at once."""
        fingerprints = {w.schema for w in wires}
        codec = self._codec(fingerprints.pop()) if len(fingerprints) == 1 else None
        decoded = codec.decode([w.value for w in wires]) if codec is not None else None
        return None if decoded is None or decoded.failed else decoded.columns

    def _codec(self, fingerprint: bytes) -> Codec | None:
        if fingerprint in (b"", self._own.fingerprint) or self.stream.codec == "raw":
            return self._own
        return self._find_codec(fingerprint)


class Comparer:
    """Counts and lists the differences of one edge in `result`; `add` pairs, then `flush`."""

    def __init__(
        self, recorded: Side, replayed: Side, tolerance: float, result: EdgeComparison, *, show_private: bool
    ) -> None:
        self._recorded = recorded
        self._replayed = replayed
        self._tolerance = tolerance
        self._result = result
        schemas = (recorded.stream.schema, replayed.stream.schema)
        self._private = set() if show_private else {f.name for s in schemas for f in s if is_private(f)}
        if not show_private and (recorded.stream.private_key or replayed.stream.private_key):
            self._private.add(KEY)
        if self._private:
            self._private.add(RECORD)  # what does not decode is shown in the cause
        self._pairs: list[tuple[str, Wire, Wire]] = []

    def add(self, record_id: str, recorded: Wire, replayed: Wire) -> None:
        if recorded == replayed:
            self._result.equal += 1
            return
        self._pairs.append((record_id, recorded, replayed))
        if len(self._pairs) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Compare what was added."""
        pairs, self._pairs = self._pairs, []
        if not pairs:
            return
        exact, within = self._at_once(pairs)
        self._result.equal += int(exact.sum())
        self._result.within += int((within & ~exact).sum())
        left = [pairs[i] for i in np.flatnonzero(~within).tolist()]
        one_side = self._recorded.values([p[1] for p in left])
        other_side = self._replayed.values([p[2] for p in left])
        for pair, one, other in zip(left, one_side, other_side, strict=True):
            self._compare(pair, one, other)

    def _at_once(
        self, pairs: Sequence[tuple[str, Wire, Wire]]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which pairs are surely equal, and which surely within the tolerance (the equal ones too)."""
        nothing = np.zeros(len(pairs), dtype=bool)
        schema = self._recorded.stream.schema
        if schema != self._replayed.stream.schema:
            return nothing, nothing
        one = self._recorded.columns([p[1] for p in pairs])
        other = self._replayed.columns([p[2] for p in pairs])
        if one is None or other is None:
            return nothing, nothing
        exact = np.array([p[1].key == p[2].key for p in pairs], dtype=bool)
        within = exact.copy()
        for name in schema.names:
            equal, near = _alike(one[name], other[name], self._tolerance)
            exact &= equal
            within &= near
        return exact, within

    def _compare(
        self,
        pair: tuple[str, Wire, Wire],
        one: dict[str, Any] | str,
        other: dict[str, Any] | str,
    ) -> None:
        record_id, recorded, replayed = pair
        places: list[tuple[tuple[str | int, ...], Any, Any]] = []
        if recorded.key != replayed.key:
            was = key_text(recorded.key, self._recorded.stream)
            places.append(((KEY,), was, key_text(replayed.key, self._replayed.stream)))
        if isinstance(one, str) or isinstance(other, str):
            if one != other:
                places.append(((RECORD,), one, other))
        else:
            places += differences(one, other, self._tolerance)
        if not places:
            exact = one == other
            self._result.equal += exact
            self._result.within += not exact
            return
        self._result.differing += 1
        for name in {str(path[0]) for path, _, _ in places}:
            self._result.fields.setdefault(name, FieldSummary()).records += 1
        for path, was, now in places:
            self._note(record_id, path, was, now)

    def _note(self, record_id: str, path: tuple[str | int, ...], was: Any, now: Any) -> None:
        field = str(path[0])
        private = field in self._private
        numbers = number_of(was), number_of(now)
        if numbers[0] is not None and numbers[1] is not None and not private:
            delta = abs(numbers[0] - numbers[1])
            summary = self._result.fields[field]
            summary.largest = max(summary.largest, delta)
        if len(self._result.differences) < MAX_LISTED:
            told = [MASK if private and v is not None and v is not ABSENT else shown(v) for v in (was, now)]
            where = field if private else path_text(path)
            self._result.differences.append(FieldDifference(record_id, where, told[0], told[1]))


def _alike(
    one: Column, other: Column, tolerance: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Row by row: whether the cells are equal, and whether they are within the tolerance."""
    if one.dtype != other.dtype or one.shape != other.shape:
        nothing = np.zeros(len(one), dtype=bool)
        return nothing, nothing
    if one.dtype.hasobject:
        cells = np.array([_equal(a, b) for a, b in zip(one, other, strict=True)], dtype=bool)
        return cells, cells
    axes = tuple(range(1, one.ndim))
    equal = (one == other) | (_void(one) & _void(other))
    near = equal
    if one.dtype.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):
            a, b = one.astype(np.float64), other.astype(np.float64)
            scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), 1.0)
            near = equal | ((np.abs(a - b) <= tolerance * scale) & np.isfinite(a) & np.isfinite(b))
    return equal.all(axis=axes), near.all(axis=axes)


def _void(column: Column) -> npt.NDArray[np.bool_]:
    """NaN and NaT, which equal nothing, themselves included."""
    found: npt.NDArray[np.bool_] = column != column  # noqa: PLR0124
    return found


def _equal(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return (
            isinstance(one, np.ndarray)
            and isinstance(other, np.ndarray)
            and bool(one.dtype == other.dtype and np.array_equal(one, other))
        )
    return type(one) is type(other) and bool(one == other)


def fields_of(found: Mapping[str, FieldSummary]) -> list[str]:
    """Fields that differ, the most frequent first."""
    return sorted(found, key=lambda name: -found[name].records)
