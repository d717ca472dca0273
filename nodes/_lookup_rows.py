"""A table that comes as a stream: its rows lie in state by record key, so that each task has those of its partition."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from dataflow.sdk import (
    Batch,
    Expression,
    KeyedState,
    Out,
    Row,
    Schema,
    codec_of,
    pack_row,
    to_list,
    unpack_row,
)

from ._event_time import NO_KEY

# How often a task looks whether the table is read to its end, while records wait for that; and how many go on at once then.
LOOK_MS: Final = 50
MAX_AT_ONCE: Final = 2_000
# The newest row of a key; where time counts, each of its rows has a name of its own, in the order of their times.
_ROW: Final = "row"
_VERSION: Final = "row "
_BEFORE_ALL_US: Final = 1 << 62
# What belongs to the task and not to a key. A record may have the key b"": no name of a user begins with ~.
_TASK: Final = b""
_PLACE: Final = "~table"
_LOOK: Final = "~look"
_END_MS: Final = 1 << 60

_Entry = tuple[bytes, str]  # a row in the state: its key and its name


@dataclass(frozen=True)
class History:
    """Where time counts: the table's field that says from when a row holds, and the records' expression that asks.

    A row is kept for `keep_ms` after a later one of its key took its place, by the table's own time.
    """

    field: str
    time: Expression
    keep_ms: int


class StreamedTable:
    """The rows of each key, and the records that wait until the table was first read to its end.

    All of it is in the state of the task at hand: an object serves all tasks. Records wait in the order of event timers,
    whose time is their number: the watermark moves when they may go on.
    """

    def __init__(self, table: Schema, records: Schema, history: History | None = None) -> None:
        self._rows = codec_of(table)
        self._records = codec_of(records)
        self._names = table.names
        self._history = history

    def keep(self, batch: Batch, out: Out, state: KeyedState) -> None:
        """Take in rows of the table; the newest of a key counts, or each from its time on. A tombstone ends them all."""
        taken = []
        values = self._rows.encode(batch.columns, len(batch)).values
        names = self._names_of(batch)
        for index, (row, value) in enumerate(zip(batch.rows, values, strict=True)):
            name = names[index]
            if row.key is None:
                out.fail([index], NO_KEY, error="NoKey")
                continue
            if index in batch.deleted:
                for known, _ in state.items(row.key, _ROW):
                    state.delete(row.key, known)
            elif value is None:
                out.fail([index], "the row cannot be kept", error="CodecError")
                continue
            elif name is None:
                out.drop([index], "the row has no time")
                continue
            else:
                state.put(row.key, name, value)
            taken.append(index)
        if self._history is not None:
            for key in {key for i in taken if (key := batch.rows[i].key) is not None}:
                self._prune(key, state, self._history.keep_ms * 1000)
        out.consume(taken)

    def _names_of(self, batch: Batch) -> list[str | None]:
        """The name of each row in the state; None for one without a time where that counts."""
        if self._history is None:
            return [_ROW] * len(batch)
        times = _micros(batch[self._history.field])
        return [None if us is None else _version(us) for us in times]

    @staticmethod
    def _prune(key: bytes, state: KeyedState, keep_us: int) -> None:
        """Forget what another row took the place of so long ago."""
        names = [name for name, _ in state.items(key, _VERSION)]
        if len(names) > 1:
            oldest = _version(_time_of(names[-1]) - keep_us)
            for name in names[: max(bisect_right(names, oldest) - 1, 0)]:
                state.delete(key, name)

    def find(self, batch: Batch, state: KeyedState) -> list[tuple[Any, ...] | None]:
        """For each record the values of its row, in the table's order; None where there is none."""
        wanted, kept = self._newest(batch.rows, state) if self._history is None else self._as_of(batch, state)
        columns = self._rows.decode(list(kept.values())).columns
        cells = zip(*(to_list(columns[name]) for name in self._names), strict=True)
        found: dict[_Entry | None, tuple[Any, ...]] = dict(zip(kept, cells, strict=True))
        return [found.get(entry) for entry in wanted]

    @staticmethod
    def _newest(rows: Sequence[Row], state: KeyedState) -> tuple[list[_Entry | None], dict[_Entry, bytes]]:
        """The entry for each record, and the value of each entry."""
        wanted = [None if row.key is None else (row.key, _ROW) for row in rows]
        entries = dict.fromkeys(entry for entry in wanted if entry is not None)
        return wanted, {entry: value for entry in entries if (value := state.get(*entry)) is not None}

    def _as_of(self, batch: Batch, state: KeyedState) -> tuple[list[_Entry | None], dict[_Entry, bytes]]:
        """As `_newest`: of each key the last row that holds at the record's time."""
        assert self._history is not None
        known: dict[bytes, list[tuple[str, bytes]]] = {}
        wanted: list[_Entry | None] = []
        kept: dict[_Entry, bytes] = {}
        for row, us in zip(batch.rows, _micros(self._history.time.evaluate(batch)), strict=True):
            place = -1
            if row.key is not None and us is not None:
                versions = known.get(row.key)
                if versions is None:
                    versions = known[row.key] = state.items(row.key, _VERSION)
                place = bisect_right(versions, _version(us), key=lambda version: version[0]) - 1
            if row.key is None or place < 0:
                wanted.append(None)
                continue
            name, value = known[row.key][place]
            wanted.append((row.key, name))
            kept[row.key, name] = value
        return wanted, kept

    def ready(self, state: KeyedState) -> bool:
        """Whether records may be looked up at once: the table was read to its end once, and nothing waits."""
        return self._loaded(state) and state.next_event_ms() is None

    def hold(self, batch: Batch, out: Out, state: KeyedState) -> None:
        """Keep records until they may be looked up, in their order."""
        held = []
        first, loaded = state.get(_TASK, _PLACE, [0, False])
        values = self._records.encode(batch.columns, len(batch)).values
        for index, (row, value) in enumerate(zip(batch.rows, values, strict=True)):
            if value is None:
                out.fail([index], "the record cannot be kept", error="CodecError")
                continue
            name, key = f"w{first + index:016x}", row.key or b""
            state.put(key, name, [value, pack_row(row)])
            state.set_timer(key, name, first + index, "event")
            held.append(index)
        state.put(_TASK, _PLACE, [first + len(batch), loaded])
        state.set_timer(_TASK, _LOOK, state.now_ms if loaded else state.now_ms + LOOK_MS)
        out.hold(held)

    def release(self, state: KeyedState, *, ended: bool = False) -> Batch | None:
        """Records that may go on now, some of them, in their order; None for none. Sees to it that the others follow.

        `ended`: there will be no more of the table.
        """
        if not (self._loaded(state) or ended):
            state.set_timer(_TASK, _LOOK, state.now_ms + LOOK_MS)
            return None
        state.advance(_END_MS)
        values: list[bytes | None] = []
        rows: list[Row] = []
        while len(rows) < MAX_AT_ONCE and (timer := state.pop_event_timer()) is not None:
            value, packed = state.get(timer.key, timer.name)
            state.delete(timer.key, timer.name)
            values.append(value)
            rows.append(unpack_row(packed))
        if state.next_event_ms() is not None:
            state.set_timer(_TASK, _LOOK, state.now_ms)
        return Batch(self._records.schema, self._records.decode(values).columns, rows) if rows else None

    @staticmethod
    def _loaded(state: KeyedState) -> bool:
        following, loaded = state.get(_TASK, _PLACE, [0, False])
        if not loaded and not state.unread("table"):
            loaded = True
            state.put(_TASK, _PLACE, [following, loaded])
        return bool(loaded)


def _version(us: int) -> str:
    """A name whose order is that of the times, those before 1970 too."""
    return f"{_VERSION}{us + _BEFORE_ALL_US:020d}"


def _time_of(name: str) -> int:
    return int(name.removeprefix(_VERSION)) - _BEFORE_ALL_US


def _micros(times: Any) -> list[int | None]:
    """A timestamp column as microseconds of Unix time; None where it is null."""
    found = np.asarray(times, dtype="datetime64[us]")
    empty = np.isnat(found)
    return [
        None if none else us for us, none in zip(found.astype(np.int64).tolist(), empty.tolist(), strict=True)
    ]
