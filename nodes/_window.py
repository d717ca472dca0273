"""A running window node: rows into windows, windows into results, the watermark between the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dataflow.sdk import (
    Batch,
    Drop,
    Fail,
    KeyedState,
    NodeContext,
    NodeError,
    Out,
    Row,
    Schema,
    Timer,
    coerce_columns,
    ids,
    load_callable,
)

from ._event_time import NO_KEY, NO_TIME, EventClock, times_ms
from ._window_aggregates import Aggregate, cells, column
from ._window_panes import Frame, Pane, Panes, Sink
from ._window_settings import END, START, Aggregated, OwnCall, Timed, aggregates_of, event_times
from ._window_sketches import Own

# Beyond every event time and every timer: the inputs have ended.
_END_MS: Final = 1 << 61
_US_PER_MS: Final = 1_000

MakePanes = Callable[[Frame, KeyedState, Sequence[Sequence[Any] | None], Sink], Panes]


@dataclass(frozen=True)
class Plan:
    """What a window node does, worked out from settings and contracts.

    times    the event-time field of each port, "" throughout for the wall clock
    late     what becomes of a row whose windows are all over: drop, fail or port
    own      names of the aggregates that are the user's own code, whose results are checked
    """

    frame: Frame
    panes: MakePanes
    times: Mapping[str, str]
    clock: EventClock | None
    late: str
    output: Schema
    own: frozenset[str]


@dataclass
class Results:
    """Results of one call, collected: from windows that closed, and for rows that changed one."""

    name: str
    plan: Plan
    keys: list[bytes] = field(default_factory=list)
    panes: list[tuple[int, int, int]] = field(default_factory=list)  # start, end, results given before
    first_ids: list[bytes] = field(default_factory=list)
    values: list[list[Any]] = field(default_factory=list)
    causes: list[int] = field(default_factory=list)
    ended: list[tuple[Row, str, str]] = field(default_factory=list)  # identity, reason, error
    broken: dict[int, tuple[str, str]] = field(default_factory=dict)  # row of an update: reason, error

    def closed(self, key: bytes, pane: Pane, end_ms: int, cause: int) -> None:
        self._add(key, pane, end_ms, cause)

    def updated(self, row: int, pane: Pane, end_ms: int) -> None:
        self._add(b"", pane, end_ms, row)

    def _add(self, key: bytes, pane: Pane, end_ms: int, cause: int) -> None:
        self.keys.append(key)
        self.panes.append((pane.start, end_ms, pane.fired))
        self.first_ids.append(pane.first_id)
        self.causes.append(cause)
        try:
            values = [
                one.result(value) for one, value in zip(self.plan.frame.aggregates, pane.values, strict=True)
            ]
        except Exception as error:  # noqa: BLE001  (a user's aggregate: anything may come)
            values = []
            self._lose(len(self.causes) - 1, f"window result: {error}", type(error).__name__)
        self.values.append(values)

    def emit(self, out: Out) -> None:
        """Give them to `out`. Rows of updates that are in `broken` are left to the caller."""
        good, columns = self._columns()
        if self.plan.frame.updates:
            if good:
                out.emit(columns, rows=[self.causes[i] for i in good])
        elif good:
            out.create(columns, [self._row(i) for i in good], after=[self.causes[i] for i in good])
        for row, reason, error in self.ended:
            out.end(row, reason, error=error)

    def _lose(self, index: int, reason: str, error: str) -> None:
        if self.plan.frame.updates:
            self.broken[self.causes[index]] = (reason, error)
        else:
            self.ended.append((self._row(index), reason, error))

    def _columns(self) -> tuple[list[int], dict[str, Any]]:
        """The columns of all results that their contract takes, and which those are."""
        aggregates = self.plan.frame.aggregates
        own = [(place, one) for place, one in enumerate(aggregates) if one.field.name in self.plan.own]
        good = [i for i, values in enumerate(self.values) if values]
        made: dict[str, Any] = {}
        if own:
            schema = Schema(tuple(one.field for _, one in own))
            for i, why in coerce_columns(schema, self._cells(own, good), len(good), form="python").failed:
                self._lose(good[i], str(why), "ContractError")
                self.values[good[i]] = []
            good = [i for i in good if self.values[i] and self.causes[i] not in self.broken]
            made = dict(coerce_columns(schema, self._cells(own, good), len(good), form="python").columns)
        spans = {START: [self.panes[i][0] for i in good], END: [self.panes[i][1] for i in good]}
        for name, moments in spans.items():
            made[name] = column(self.plan.output[name].type, [ms * _US_PER_MS for ms in moments])
        for place, one in enumerate(aggregates):
            if one.field.name not in self.plan.own:
                made[one.field.name] = column(one.field.type, [self.values[i][place] for i in good])
        return good, {name: made[name] for name in self.plan.output.names}

    def _cells(self, own: Sequence[tuple[int, Aggregate]], rows: Sequence[int]) -> dict[str, list[Any]]:
        return {one.field.name: [self.values[i][place] for i in rows] for place, one in own}

    def _row(self, index: int) -> Row:
        """Identity of a closed window's result: of node, key and window, and of how often it was given before."""
        key, (start, end, fired) = self.keys[index], self.panes[index]
        parts = [b"window", key, self.first_ids[index] or str(start).encode()]
        if fired:
            parts.append(str(fired).encode())
        return Row(ids.joined(self.name, end, *parts), key)


class WindowNode:
    """See `window.tumbling` and its siblings for what users are told."""

    keyed = True
    copartitioned = (
        True  # the partitions of several inputs are one task, and its watermark is over all of them
    )

    def __init__(
        self, settings: Aggregated, context: NodeContext, panes: MakePanes, sizes: Mapping[str, int]
    ) -> None:
        """`sizes` are the fields of `Frame` that the kind has."""
        self._settings = settings
        self._context = context
        self._panes = panes
        self._sizes = sizes
        self._name = f"{context.pipeline}/{context.node}"

    def open(self) -> None:
        """Make the user's own aggregates. Raises NodeError."""
        settings, context = self._settings, self._context
        timed = settings if isinstance(settings, Timed) else None
        times = event_times(settings, context.inputs)
        in_event_time = timed is not None and bool(next(iter(times.values())))
        made, own = aggregates_of(settings, context)
        for name, given in settings.aggregate.items():
            if isinstance(given, OwnCall):
                made[name] = self._own(name, given)
        named = [name for name in context.output.names if name not in (START, END)]
        self._plan = Plan(
            Frame(
                tuple(made[name] for name in named),
                "event" if in_event_time else "processing",
                updates=settings.emit == "update",
                lateness_ms=timed.lateness if timed is not None else 0,
                **self._sizes,
            ),
            self._panes,
            times,
            EventClock(times, settings) if in_event_time else None,
            timed.late if timed is not None else "drop",
            context.output,
            own,
        )

    def _own(self, name: str, given: OwnCall) -> Aggregate:
        target = load_callable(self._context.folder.resolve(), given.call)
        try:
            own = Own(target(**given.arguments))
        except Exception as error:
            raise NodeError(f"{given.call}: constructing failed: {type(error).__name__}: {error}") from error
        field = self._context.output[name]
        return Aggregate(field, "*", own.start, own.add, own.merge, own.result, fallible=True)

    def process(self, batch: Batch, out: Out, port: str, state: KeyedState) -> None:
        plan, clock = self._plan, self._plan.clock
        results = Results(self._name, plan)
        columns = [cells(batch, one.column) for one in plan.frame.aggregates]
        panes = plan.panes(plan.frame, state, columns, results)
        times = times_ms(batch, plan.times[port]) if plan.times[port] else [state.now_ms] * len(batch)
        progress = clock.begin(port, state) if clock is not None else None
        mark = state.watermark_ms if clock is not None else state.now_ms
        latest = progress.latest_ms if progress is not None else _END_MS
        others = progress.others_ms if progress is not None else 0
        delay = clock.delay_ms if clock is not None else 0
        taken: list[int] = []
        late: list[int] = []
        refused: list[int] = []
        failed: dict[int, Exception] = {}
        for index, row in enumerate(batch.rows):
            key, time_ms = row.key, times[index]
            if key is None or time_ms == NO_TIME:
                refused.append(index)
                continue
            if time_ms > latest:
                latest = time_ms
                reached = min(time_ms, others) - delay
                if reached > mark:
                    mark = reached
                    if mark >= panes.due_ms:
                        state.advance(mark)
                        self._pop(panes, state, index - 1)
            try:
                (taken if panes.take(index, key, time_ms, mark, row.id) else late).append(index)
            except Exception as error:  # noqa: BLE001  (a user's aggregate: anything may come)
                failed[index] = error
        if clock is not None and progress is not None:
            state.advance(mark)
            progress.latest_ms = latest
            clock.store(progress, state)
        panes.flush()
        self._account(batch, out, results, taken, late, refused, failed)

    def fire(self, timers: Sequence[Timer], out: Out, state: KeyedState) -> None:
        plan, clock = self._plan, self._plan.clock
        results = Results(self._name, plan)
        panes = plan.panes(plan.frame, state, (), results)
        for timer in timers:
            if clock is None or not clock.owns(timer):
                panes.close(timer, state.now_ms, -1)
                continue
            clock.look(timer, state)
            self._pop(panes, state, -1)
            clock.wait(state)
        panes.flush()
        results.emit(out)

    def drain(self, out: Out, state: KeyedState) -> None:
        """All inputs have ended: every window closes that waits for event time."""
        plan = self._plan
        results = Results(self._name, plan)
        panes = plan.panes(plan.frame, state, (), results)
        state.advance(_END_MS)
        self._pop(panes, state, -1)
        panes.flush()
        results.emit(out)

    @staticmethod
    def _pop(panes: Panes, state: KeyedState, cause: int) -> None:
        mark = state.watermark_ms
        while (timer := state.pop_event_timer()) is not None:
            panes.close(timer, mark, cause)
        due_ms = state.next_event_ms()
        panes.due_ms = _END_MS if due_ms is None else due_ms

    def _account(
        self,
        batch: Batch,
        out: Out,
        results: Results,
        taken: list[int],
        late: list[int],
        refused: list[int],
        failed: Mapping[int, Exception],
    ) -> None:
        """Say of each row how it ended, and give the results."""
        results.emit(out)
        if not self._plan.frame.updates:
            out.consume(taken)
        for index, (reason, kind) in results.broken.items():
            out.fail([index], reason, error=kind)
        for index in refused:
            if batch.rows[index].key is None:
                out.fail([index], NO_KEY, error="NoKey")
            else:
                out.fail([index], "the event time is null", error="NoTime")
        for index, error in failed.items():
            if isinstance(error, Drop):
                out.drop([index], error.reason)
            else:
                reason = error.reason if isinstance(error, Fail) else str(error) or type(error).__name__
                out.fail([index], reason, error=type(error).__name__)
        if not late:
            return
        if self._plan.late == "port":
            out.emit(batch.take(late), rows=late, port="late")
        elif self._plan.late == "fail":
            out.fail(late, "late: its windows are over", error="Late")
        else:
            out.drop(late, "late")
