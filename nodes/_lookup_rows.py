"""A table that comes as a stream: its rows lie in state by record key, so that each task has those of its partition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from dataflow.sdk import Batch, KeyedState, Out, Row, Schema, codec_of, pack_row, to_list, unpack_row

from ._event_time import NO_KEY

# How often a task looks whether the table is read to its end, while records wait for that; and how many go on at once then.
LOOK_MS: Final = 50
MAX_AT_ONCE: Final = 2_000
_ROW: Final = "row"
# What belongs to the task and not to a key. A record may have the key b"": no name of a user begins with ~.
_TASK: Final = b""
_PLACE: Final = "~table"
_LOOK: Final = "~look"
_END_MS: Final = 1 << 60


class StreamedTable:
    """The newest row of each key, and the records that wait until the table was first read to its end.

    All of it is in the state of the task at hand: an object serves all tasks. Records wait in the order of event timers,
    whose time is their number: the watermark moves when they may go on.
    """

    def __init__(self, table: Schema, records: Schema) -> None:
        self._rows = codec_of(table)
        self._records = codec_of(records)
        self._names = table.names

    def keep(self, batch: Batch, out: Out, state: KeyedState) -> None:
        """Take in rows of the table; the newest of a key counts."""
        taken = []
        values = self._rows.encode(batch.columns, len(batch)).values
        for index, (row, value) in enumerate(zip(batch.rows, values, strict=True)):
            if row.key is None:
                out.fail([index], NO_KEY, error="NoKey")
            elif value is None:
                out.fail([index], "the row cannot be kept", error="CodecError")
            else:
                state.put(row.key, _ROW, value)
                taken.append(index)
        out.consume(taken)

    def find(self, rows: Sequence[Row], state: KeyedState) -> list[tuple[Any, ...] | None]:
        """For each record the values of the row of its key, in the table's order; None where there is none."""
        keys = dict.fromkeys(row.key for row in rows if row.key is not None)
        kept = {key: value for key in keys if (value := state.get(key, _ROW)) is not None}
        columns = self._rows.decode(list(kept.values())).columns
        cells = zip(*(to_list(columns[name]) for name in self._names), strict=True)
        found: dict[bytes | None, tuple[Any, ...]] = dict(zip(kept, cells, strict=True))
        return [found.get(row.key) for row in rows]

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
