"""`join.by_key`: records of several streams that have one key and lie near each other in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from pydantic import Field as Setting

from dataflow.sdk import (
    Batch,
    Column,
    ContractContext,
    ContractError,
    Field,
    FieldType,
    KeyedState,
    NodeContext,
    NodeError,
    Out,
    Row,
    Schema,
    Timer,
    Wait,
    codec_of,
    column_of,
    ids,
    node,
)

from ._event_time import NO_KEY, NO_TIME, EventClock, EventTimeSettings, time_field, times_ms
from ._expressions import refuse_declarations
from ._join_ends import EndsOfSides, end_alone, end_contracts, end_ports, give_alone, is_port, way_of
from ._join_pairs import Held, Match, Pairs, Window
from ._matching import check_free, spread
from ._sides import FieldsOfSides, check_side, taken_fields

EXAMPLE: Final = """
kind: Topic
name: orders
key: shop
fields: {shop: string, order: int64, pieces: int32, at: {type: timestamp, event_time: true}}
---
kind: Topic
name: stock.levels
key: shop
fields: {shop: string, level: int32, counted: {type: timestamp, event_time: true}}
---
kind: Pipeline
name: orders-and-stock
inputs: {order: orders, level: stock.levels}
nodes:
  both:
    use: join.by_key
    from: {order: order, level: level}
    with: {how: left, before: 1h, after: 5m, select: {level: [level, counted]}, missing: without}
tests:
  - name: a level of the last hour, or none
    given:
      level: [{shop: oslo, level: 7, counted: "2026-01-05T08:30:00Z"}]
      order:
        - {shop: oslo, order: 1, pieces: 2, at: "2026-01-05T09:00:00Z"}
        - {shop: rome, order: 2, pieces: 1, at: "2026-01-05T09:00:00Z"}
    expect:
      both:
        - {shop: oslo, order: 1, pieces: 2, at: "2026-01-05T09:00:00Z", level: 7, counted: "2026-01-05T08:30:00Z", without: []}
        - {shop: rome, order: 2, pieces: 1, at: "2026-01-05T09:00:00Z", level: null, counted: null, without: [level]}
"""

_NAMES: Final = FieldType("list", item=FieldType("string"))
_FAR_MS: Final = 1 << 60


class JoinOfKeys(FieldsOfSides, EndsOfSides, EventTimeSettings):
    """Which records belong together, and what becomes of those that stay alone."""

    how: Literal["inner", "left", "outer"] = Setting(
        default="inner",
        description=(
            "`inner`: only matches. `left`: a record of the first side that nothing matched comes too, when its time is "
            "over, with null for what is missing. `outer`: those of the other sides too."
        ),
    )
    within: Wait | None = Setting(
        default=None, description="How far apart two records may be: short for equal `before` and `after`."
    )
    before: Wait | None = Setting(
        default=None,
        description="How long before a record of the first side one of another may lie. Default: 0.",
    )
    after: Wait | None = Setting(
        default=None,
        description="How long after a record of the first side one of another may lie. Default: 0.",
    )
    match: Literal["all", "one"] = Setting(
        default="all",
        description=(
            "`all`: a result for each combination of records in the window. `one`: one result for each record of the first "
            "side, as soon as all others have one, with the latest of them in event time."
        ),
    )
    times: dict[str, str] = Setting(
        default={}, description="For a side, its event-time field, where it is not called as `time` says."
    )
    missing: str | None = Setting(
        default=None,
        description="With `left` and `outer`: the name of a field, list<string>, that names the sides which are missing.",
    )


@dataclass(slots=True)
class _Results:
    """What one call makes: a match for each result, its identity, and the row of the batch that caused it.

    `late` are rows of the batch for the port of their side, `alone` what waited and goes to one: see `give_alone`.
    """

    matches: list[Match] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    alone: list[tuple[str, Held, int]] = field(default_factory=list)
    answered: set[bytes] = field(default_factory=set)


@node("join.by_key", settings=JoinOfKeys, inputs=("*",), example=EXAMPLE)
class JoinByKey:
    """Join streams by record key, within a window of time around each record of the first side.

    `from` names the sides, in order: `from: {a: EDGE, b: EDGE}`; all must be keyed alike and have equally many partitions. A
    match is one record of each side, all within `before` and `after` of the one of the first side; it is given as soon as
    the last of them is there, with the first side's headers and caller. One record may be in many matches. Ids are made of those
    of the records in it, so that a match made again is known.

    Time is event time where the sides have it (`time`, `times`, or the contract's event-time field), else the wall clock at
    which the node reads a record. A record waits until nothing can match it any more: until the watermark, or the clock, has
    passed its window. That is never only because another record of its key came. A record that is late, or that nothing
    matched, may go on as it came on a port of its side: `late: {a: a_late}`, `unmatched: {b: b_alone}`.
    A caller who waits for a record of the first side has the first match as the answer; one who waits for another is told that the record
    was taken in.
    """

    keyed = pairs_keys = True

    @staticmethod
    def ports(settings: JoinOfKeys) -> tuple[str, ...]:
        return ("out", *end_ports(settings))

    def __init__(self, settings: JoinOfKeys, context: NodeContext) -> None:
        self._settings = settings
        self._sides = tuple(context.inputs)
        self._taken = taken_fields(settings, context.inputs, _required(settings, context.inputs))
        self._codecs = {side: codec_of(schema) for side, schema in context.inputs.items()}
        self._times = _times(settings, context.inputs)
        self._clock = EventClock(self._times, settings) if self._times else None
        self._window = _window(settings, len(self._sides), event=bool(self._times))
        self._name = f"{context.pipeline}/{context.node}"

    @staticmethod
    def contract(settings: JoinOfKeys, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        if len(context.inputs) < 2:
            raise ContractError(
                "a join needs two sides or more", path=("from",), hint="from: {a: ..., b: ...}"
            )
        event = bool(_times(settings, context.inputs))
        _window(settings, len(context.inputs), event=event)
        taken = taken_fields(settings, context.inputs, _required(settings, context.inputs))
        made = Schema(tuple(one.field for one in taken))
        if settings.missing is not None:
            if settings.how == "inner":
                raise ContractError(
                    "missing: has no effect with how: inner, where nothing is missing",
                    path=("with", "missing"),
                    hint="how: left",
                )
            check_free(settings.missing, made, ("with", "missing"), "choose another name")
            made = made.merged(Schema((Field(settings.missing, _NAMES, "sides that are missing"),)))
        always = {"inner": 0, "left": 1, "outer": len(context.inputs)}[settings.how]
        return {
            "out": made,
            **end_contracts(settings, context.inputs, tuple(context.inputs)[:always], event=event),
        }

    def process(self, batch: Batch, out: Out, port: str, state: KeyedState) -> None:
        """Take the rows in one after the other; the watermark moves between them."""
        side = self._sides.index(port)
        pairs = Pairs(self._window, state)
        times = times_ms(batch, self._times[port]) if self._clock is not None else [state.now_ms] * len(batch)
        values = self._codecs[port].encode(batch.columns, len(batch)).values
        progress = self._clock.begin(port, state) if self._clock is not None else None
        made = _Results()
        taken: list[int] = []
        for index, row in enumerate(batch.rows):
            time_ms = times[index]
            if self._take(index, row, (side, time_ms, values[index]), pairs, state, out, made):
                taken.append(index)
            if self._clock is None or progress is None:
                continue
            if time_ms > progress.latest_ms:
                progress.latest_ms = time_ms
                state.advance(min(time_ms, progress.others_ms) - self._clock.delay_ms)
            # Without a move, too: a record that is not late may still wait for nothing any more.
            self._close_due(pairs, state, out, made, index)
        if self._clock is not None and progress is not None:
            self._clock.store(progress, state)
        if side == 0:
            out.hold(taken)
        else:
            out.consume(taken)
        if made.late:
            out.emit(batch.take(made.late), rows=made.late, port=way_of(self._settings.late, port))
        self._emit(made, out)

    def fire(self, timers: Sequence[Timer], out: Out, state: KeyedState) -> None:
        """Records whose time is over by the clock, or a look after silent inputs."""
        pairs, made = Pairs(self._window, state), _Results()
        for timer in timers:
            if self._clock is None or not self._clock.owns(timer):
                self._close(timer, pairs, out, made, -1)
                continue
            self._clock.look(timer, state)
            self._close_due(pairs, state, out, made, -1)
            self._clock.wait(state)
        self._emit(made, out)

    def drain(self, out: Out, state: KeyedState) -> None:
        """All inputs have ended: nothing can match any more."""
        made = _Results()
        if self._clock is not None:
            state.advance(_FAR_MS)
            self._close_due(Pairs(self._window, state), state, out, made, -1)
        self._emit(made, out)

    def _take(
        self,
        index: int,
        row: Row,
        found: tuple[int, int, bytes | None],
        pairs: Pairs,
        state: KeyedState,
        out: Out,
        made: _Results,
    ) -> bool:
        """Keep one row and note what it matches; False where it ends here."""
        side, time_ms, value = found
        if row.key is None:
            out.fail([index], NO_KEY, error="NoKey")
            return False
        if time_ms == NO_TIME or value is None:
            out.fail([index], "the record has no event time", error="NoEventTime")
            return False
        if self._clock is not None and self._window.is_late(side, time_ms, state.watermark_ms):
            way = way_of(self._settings.late, self._sides[side])
            if way == "drop":
                out.drop([index], "late")
            elif way == "fail":
                out.fail([index], "it came after its time was over", error="Late")
            else:
                made.late.append(index)
            return False
        before = state.savepoint()
        try:
            matches = pairs.take(row.key, side, time_ms, row, value)
        except NodeError as error:
            state.rollback(before)
            out.fail([index], str(error), error="TooManyMatches")
            return False
        if matches is None:
            out.drop([index], "it waits here already")
            return False
        for match in matches:
            self._note(match, row.key, made, index)
        return True

    def _close_due(self, pairs: Pairs, state: KeyedState, out: Out, made: _Results, after: int) -> None:
        while (timer := state.pop_event_timer()) is not None:
            self._close(timer, pairs, out, made, after)

    def _close(self, timer: Timer, pairs: Pairs, out: Out, made: _Results, after: int) -> None:
        closed = pairs.close(timer)
        if closed is None:
            return
        held, matches = closed
        for match in matches:
            self._note(match, timer.key, made, after)
        if matches:
            return
        side = self._sides[held.side]
        way = way_of(self._settings.unmatched, side)
        if is_port(way):
            made.alone.append((way, held, after))
        else:
            end_alone(held, side, self._codecs, out, dead_letter=way == "fail")

    def _note(self, match: Match, key: bytes, made: _Results, after: int) -> None:
        present = [held for held in match if held is not None]
        lead = present[0]
        # The first result of a record of the first side answers its caller; the others are for readers.
        waits = lead.side == 0 and not lead.matched and lead.row.id not in made.answered
        made.answered.add(lead.row.id)
        parts = [b"" if held is None else held.row.id for held in match]
        made.matches.append(match)
        made.after.append(after)
        made.rows.append(
            Row(
                ids.joined(self._name, max(0, *(held.time_ms for held in present)), *parts),
                key,
                carry=lead.row.carry,
                reply=lead.row.reply if waits else b"",
                deadline_ms=lead.row.deadline_ms if waits else 0,
                attempt=lead.row.attempt,
                parents=tuple(held.row.id for held in present),
            )
        )

    def _emit(self, made: _Results, out: Out) -> None:
        give_alone(made.alone, self._codecs, out)
        if not made.matches:
            return
        columns: dict[str, Column] = {}
        for number, side in enumerate(self._sides):
            columns |= self._columns(side, [match[number] for match in made.matches])
        if self._settings.missing is not None:
            lacking = [
                [side for side, held in zip(self._sides, match, strict=True) if held is None]
                for match in made.matches
            ]
            columns[self._settings.missing] = column_of(_NAMES, lacking)
        out.create(columns, made.rows, after=made.after)

    def _columns(self, side: str, found: Sequence[Held | None]) -> dict[str, Column]:
        """What the results take of one side; each record is decoded once, however many results it is in."""
        places: dict[int, int] = {}
        values: list[bytes | None] = []
        for held in found:
            if held is not None and id(held) not in places:
                places[id(held)] = len(values)
                values.append(held.value)
        decoded = self._codecs[side].decode(values).columns
        positions = np.array([-1 if held is None else places[id(held)] for held in found], dtype=np.intp)
        made: dict[str, Column] = {}
        for taken in self._taken:
            if taken.side == side:
                column = decoded[taken.name]
                whole = column.dtype == taken.field.type.column_dtype and bool((positions >= 0).all())
                made[taken.field.name] = (
                    column[positions] if whole else spread(column, taken.field.type, positions)
                )
        return made


def _required(settings: JoinOfKeys, inputs: Mapping[str, Schema]) -> tuple[str, ...]:
    """The sides that every result has."""
    if settings.how == "inner":
        return tuple(inputs)
    return tuple(inputs)[:1] if settings.how == "left" else ()


def _times(settings: JoinOfKeys, inputs: Mapping[str, Schema]) -> dict[str, str]:
    """The event-time field of each side; {} where none has one, which is processing time."""
    for side in settings.times:
        check_side(side, inputs, ("with", "times", side))
    found = {
        side: time_field(settings.times.get(side, settings.time), schema, f"side '{side}'")
        for side, schema in inputs.items()
    }
    without = [side for side, name in found.items() if not name]
    if without and len(without) < len(found):
        other = next(side for side, name in found.items() if name)
        raise ContractError(
            f"side '{without[0]}' has no event time, and side '{other}' has one",
            path=("with", "times"),
            hint=f"times: {{{without[0]}: FIELD}} names a timestamp of it",
        )
    return {} if without else found


def _window(settings: JoinOfKeys, sides: int, *, event: bool) -> Window:
    if settings.within is None and settings.before is None and settings.after is None:
        raise ContractError(
            "within: the window of time is needed", path=("with", "within"), hint="within: 10m"
        )
    if settings.within is not None and (settings.before is not None or settings.after is not None):
        raise ContractError(
            "within: is short for before and after", path=("with", "within"), hint="leave it out"
        )
    before_ms = settings.within if settings.before is None else settings.before
    after_ms = settings.within if settings.after is None else settings.after
    return Window(
        sides,
        before_ms or 0,
        after_ms or 0,
        "event" if event else "processing",
        partial=settings.how != "inner",
        alone=settings.how == "outer",
        once=settings.match == "one",
    )
