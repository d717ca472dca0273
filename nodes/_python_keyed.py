"""Row-wise Python with state and timers: one row of a key after another, each with all its changes or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from dataflow.sdk import (
    BEHIND,
    Batch,
    KeyedContext,
    KeyedState,
    Out,
    Row,
    Schema,
    Timer,
    TimerClock,
    coerce_columns,
    ids,
)

from ._event_time import NO_KEY, NO_TIME, EventClock, times_ms
from ._python_rows import Lost, Shape, settle_rows, settled

_NO_KEY: Final = Lost(NO_KEY, "NoKey")
_BEHIND: Final = Lost("an earlier record of its key waits for its retry", BEHIND, retryable=True)
# A timer whose call may be retried fires again after a wait that doubles, and fails for good after so many calls.
MAX_TIMER_CALLS: Final = 10
FIRST_WAIT_MS: Final = 1_000
MAX_WAIT_MS: Final = 60_000
# Timers fired between two rows: one that sets itself anew for a time that has passed must not stop the task.
MAX_FIRED_AT_ONCE: Final = 10_000
FAR_MS: Final = 1 << 61  # beyond every event time

RowCall = Callable[[Any, KeyedContext], Any]
TimerCall = Callable[[Timer, KeyedContext], Any]


@dataclass(slots=True)
class _Made:
    """Records that timers made: their fields and identity, and the row of the batch after which each came, -1 for none."""

    fields: list[Any] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    after: list[int] = field(default_factory=list)

    def emit(self, schema: Schema, out: Out) -> None:
        if not self.rows:
            return
        cells = {f.name: [fields.get(f.name) for fields in self.fields] for f in schema}
        columns = coerce_columns(schema, cells, len(self.rows), form="python").columns
        out.create(columns, self.rows, after=self.after)


class KeyedCalls:
    """Calls user code with the state of its key, and settles what comes of it.

    shape     what a row's call returns
    output    all fields of the node's records: what a timer's call returns, which has no row to keep fields of
    name      unique name of the node, hashed into the ids of what timers make
    clock     event time, and the field it comes from; None without
    call      the user's function; an exception comes back as `Lost`
    on_timer  likewise; None: the node has no timers
    """

    def __init__(
        self,
        shape: Shape,
        output: Schema,
        name: str,
        folder: Path,
        *,
        clock: tuple[EventClock, str] | None,
        call: RowCall,
        on_timer: TimerCall | None,
    ) -> None:
        self._shape = shape
        self._of_timers = Shape(call=f"{shape.call}: on_timer", produced=output, kept=())
        self._name = name
        self._folder = folder
        self._clock: EventClock | None = clock[0] if clock else None
        self._time = clock[1] if clock else ""
        self._call = call
        self._on_timer = on_timer
        self._clocks: tuple[TimerClock, ...] = ("processing", "event") if clock else ("processing",)
        if on_timer is None:
            self._clocks = ()

    def process(self, batch: Batch, out: Out, port: str, state: KeyedState) -> None:
        """Call the function for each row. A row's time moves the watermark first, and event timers fire that it passes."""
        rows = batch.to_dicts()
        results: list[Any] = [None] * len(rows)
        times = times_ms(batch, self._time) if self._clock is not None else None
        progress = self._clock.begin(port, state) if self._clock is not None else None
        delay_ms = self._clock.delay_ms if self._clock is not None else 0
        waiting: set[bytes] = set()
        put_off: list[Timer] = []
        made = _Made()
        for index, row in enumerate(batch.rows):
            time_ms = NO_TIME if times is None else times[index]
            if progress is not None and time_ms > progress.latest_ms:
                progress.latest_ms = time_ms
                state.advance(min(time_ms, progress.others_ms) - delay_ms)
                put_off += self._pop(state, waiting, made, out, index - 1)
            results[index] = self._row(row, rows[index], time_ms, waiting, state)
            if progress is not None:  # it may have set a timer for a time that has passed
                put_off += self._pop(state, waiting, made, out, index)
        for timer in put_off:
            state.set_timer(timer.key, timer.name, timer.at_ms, "event")
        if self._clock is not None and progress is not None:
            self._clock.store(progress, state)
        settle_rows(self._shape, batch, results, out, self._folder)
        made.emit(self._of_timers.produced, out)

    def fire(self, timers: Sequence[Timer], out: Out, state: KeyedState) -> None:
        """Call `on_timer` for processing timers that are due."""
        made = _Made()
        for timer in timers:
            if self._clock is None or not self._clock.owns(timer):
                self._timer(timer, made, out, -1, state)
                continue
            self._clock.look(timer, state)
            self._pop(state, set(), made, out, -1)
            self._clock.wait(state)
        made.emit(self._of_timers.produced, out)

    def drain(self, out: Out, state: KeyedState) -> None:
        """All inputs have ended: every event timer fires."""
        made = _Made()
        if self._clock is not None:
            state.advance(FAR_MS)
            self._pop(state, set(), made, out, -1)
        made.emit(self._of_timers.produced, out)

    def _row(self, row: Row, record: Any, time_ms: int, waiting: set[bytes], state: KeyedState) -> Any:
        """What became of one row: as `settled`, with its changes undone where it failed."""
        if row.key is None:
            return _NO_KEY
        if row.key in waiting:
            return _BEHIND
        context = KeyedContext(
            state,
            row.key,
            row.id.decode(),
            row.attempt,
            None if time_ms == NO_TIME else time_ms,
            self._clocks,
        )
        before = state.savepoint()
        result = settled(self._shape, self._call(record, context), self._folder)
        if isinstance(result, Lost) and result.error:
            state.rollback(before)
            if result.retryable:
                waiting.add(row.key)
        return result

    def _pop(self, state: KeyedState, waiting: set[bytes], made: _Made, out: Out, after: int) -> list[Timer]:
        """Fire the event timers that are due; gives those put off: a record of their key waits for its retry."""
        put_off: list[Timer] = []
        if self._on_timer is None:
            return put_off
        for _ in range(MAX_FIRED_AT_ONCE):
            timer = state.pop_event_timer()
            if timer is None:
                break
            if timer.key in waiting:
                put_off.append(timer)
            else:
                self._timer(timer, made, out, after, state)
        return put_off

    def _timer(self, timer: Timer, made: _Made, out: Out, after: int, state: KeyedState) -> None:
        if self._on_timer is None:
            return  # set by an earlier version of the code
        timer, attempt = _original(timer, state)
        row = Row(self._id(timer), timer.key, attempt=attempt)
        time_ms = timer.at_ms if timer.clock == "event" else None
        context = KeyedContext(state, timer.key, row.id.decode(), attempt, time_ms, self._clocks)
        before = state.savepoint()
        result = settled(self._of_timers, self._on_timer(timer, context), self._folder)
        if isinstance(result, Lost):
            if result.error:
                state.rollback(before)
                self._again_or_end(timer, attempt, result, row, out, state)
            return
        if result is None:
            return
        records = result if isinstance(result, list) else [result]
        made.fields += records
        made.after += [after] * len(records)
        if isinstance(result, list):
            child = partial(ids.child, row.id, self._name, "out")
            made.rows += [Row(child(n), timer.key, parents=(row.id,)) for n in range(len(records))]
        else:
            made.rows.append(row)

    def _again_or_end(
        self, timer: Timer, attempt: int, lost: Lost, row: Row, out: Out, state: KeyedState
    ) -> None:
        if not lost.retryable or attempt + 1 >= MAX_TIMER_CALLS:
            out.end(row, f"timer '{timer.name}': {lost.reason}", error=lost.error)
            return
        due_ms = state.now_ms + min(FIRST_WAIT_MS << attempt, MAX_WAIT_MS)
        state.put(timer.key, _waits(timer.name), [due_ms, attempt + 1, timer.at_ms, timer.clock])
        state.set_timer(timer.key, timer.name, due_ms)

    def _id(self, timer: Timer) -> bytes:
        parts = (b"timer", timer.key, timer.name.encode(), timer.clock.encode(), str(timer.at_ms).encode())
        return ids.joined(self._name, max(timer.at_ms, 0), *parts)


def _waits(name: str) -> str:
    return f"~retry {name}"


def _original(timer: Timer, state: KeyedState) -> tuple[Timer, int]:
    """The timer as it was set first, and how often its call failed since."""
    kept = state.get(timer.key, _waits(timer.name))
    if kept is None:
        return timer, 0
    state.delete(timer.key, _waits(timer.name))
    due_ms, attempt, at_ms, clock = kept
    if timer.clock != "processing" or timer.at_ms != due_ms:
        return timer, 0  # set anew in the meantime
    return Timer(at_ms, timer.key, timer.name, clock), attempt
