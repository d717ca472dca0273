"""`batch.window`: records wait until there are enough of them, or long enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import Field as Setting

from dataflow.sdk import (
    Batch,
    ContractContext,
    Duration,
    KeyedState,
    NodeContext,
    Out,
    Schema,
    Settings,
    Timer,
    codec_of,
    node,
    pack_row,
    unpack_row,
)

from ._expressions import refuse_declarations

EXAMPLE: Final = """
kind: Topic
name: readings.raw
fields: {celsius: float32}
---
kind: Pipeline
name: in-batches
inputs: {reading: readings.raw}
nodes:
  together: {use: batch.window, from: reading, with: {size: 32, wait: 20ms}}
  warm: {use: filter.when, from: together, with: {when: celsius > 20, reason: cold}}
tests:
  - name: three are too few, and come when their time is over
    given: {reading: [{celsius: 19.0}, {celsius: 21.0}, {celsius: 22.0}]}
    expect: {warm: [{celsius: 21.0}, {celsius: 22.0}]}
"""

# The records of a task wait together: there is no key. No record has this one, as a name of the engine's own.
_ALL: Final = b""
_WAITS: Final = "waits:"
_OVER: Final = "over"
_NEXT: Final = "next"


class BatchOf(Settings):
    """How many records, and how long they wait for each other."""

    size: int = Setting(ge=2, le=10_000, description="Records go on as soon as so many are there.")
    wait: Duration = Setting(description="No record waits longer than this; fewer go on then.")


@node("batch.window", settings=BatchOf, example=EXAMPLE)
class BatchWindow:
    """Hold records back until `size` of them are there, or the oldest has waited `wait`, and let them go on together.

    For a model that is much faster on large batches, where records come one by one. What is fetched at once is a
    batch anyhow: this is for when that is too few. It counts by partition. Records keep id, key, order and caller; all callers
    are answered. What waits is kept in state, so it costs a write to the changelog for each record that does.
    """

    keyed = True
    holds = True

    def __init__(self, settings: BatchOf, context: NodeContext) -> None:
        self._size = settings.size
        self._wait_ms = settings.wait
        self._codec = codec_of(context.input)

    @staticmethod
    def contract(settings: BatchOf, context: ContractContext) -> dict[str, Schema]:
        del settings
        refuse_declarations(context)
        return {"out": context.input}

    def process(self, batch: Batch, out: Out, port: str, state: KeyedState) -> None:
        """Let all go that fill a batch with those who wait; the rest waits."""
        del port
        waiting: int = state.get(_ALL, _NEXT, 0)
        goes = (waiting + len(batch)) // self._size * self._size - waiting
        if goes > 0:
            self._release(out, state)
            whole = goes == len(batch)
            out.emit(batch if whole else batch.take(range(goes)), rows=None if whole else list(range(goes)))
            waiting = 0
        self._hold(batch, range(max(goes, 0), len(batch)), waiting, out, state)

    def fire(self, timers: Sequence[Timer], out: Out, state: KeyedState) -> None:
        """The oldest has waited long enough."""
        del timers
        self._release(out, state)

    def drain(self, out: Out, state: KeyedState) -> None:
        """Nothing more will come."""
        self._release(out, state)

    def _hold(self, batch: Batch, rows: range, waiting: int, out: Out, state: KeyedState) -> None:
        if not rows:
            return
        if not waiting:
            state.set_timer(_ALL, _OVER, state.now_ms + self._wait_ms)
        encoded = self._codec.encode(batch.take(rows).columns, len(rows)).values
        for place, (row, value) in enumerate(zip(rows, encoded, strict=True), start=waiting):
            kept: list[Any] = [pack_row(batch.rows[row]), value]
            state.put(_ALL, f"{_WAITS}{place:08x}", kept)
        state.put(_ALL, _NEXT, waiting + len(rows))
        out.hold(list(rows))

    def _release(self, out: Out, state: KeyedState) -> None:
        """Give all that waits, in the order in which it came."""
        found = state.items(_ALL, _WAITS)
        if not found:
            return
        for name, _ in found:
            state.delete(_ALL, name)
        state.delete(_ALL, _NEXT)
        state.clear_timer(_ALL, _OVER)
        rows = [unpack_row(row) for _, (row, _) in found]
        columns = self._codec.decode([value for _, (_, value) in found]).columns
        out.create(columns, rows)
