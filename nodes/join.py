"""`join.by_id`, `join.any`: the branches of one record, together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field as Setting

from dataflow.sdk import (
    Batch,
    Column,
    ContractContext,
    ContractError,
    Duration,
    Field,
    FieldType,
    NodeContext,
    Out,
    Schema,
    Settings,
    Sides,
    column_of,
    node,
)

from ._expressions import refuse_declarations
from ._matching import Matched, check_field, check_free, match, spread
from ._sides import FieldsOfSides, check_side, taken_fields

BY_ID_EXAMPLE = """
kind: Topic
name: loans.asked
fields: {amount: float64, income: float64}
---
kind: Pipeline
name: two-opinions
inputs: {loan: loans.asked}
nodes:
  burden: {use: transform.select, from: loan, with: {set: {burden: amount / income}, keep: [burden]}}
  large:  {use: filter.when, from: loan, with: {when: amount > 1000, reason: small}}
  both:
    use: join.by_id
    from: {ratio: burden, large: large}
    with: {how: outer, required: [ratio], select: {large: [amount]}, missing: without}
tests:
  - name: a side that dropped the record leaves null and is named
    given: {loan: [{amount: 5000.0, income: 1000.0}, {amount: 10.0, income: 1000.0}]}
    expect:
      both:
        - {burden: 5.0, amount: 5000.0, without: []}
        - {burden: 0.01, amount: null, without: [large]}
"""

ANY_EXAMPLE = """
kind: Topic
name: texts.seen
fields: {text: string, language: {type: string, nullable: true}}
---
kind: Pipeline
name: with-a-fallback
inputs: {text: texts.seen}
nodes:
  known: {use: filter.when, from: text, with: {when: language is not null}}
  guess: {use: transform.select, from: text, with: {set: {language: "'en'"}, cast: {}}}
  said:  {use: transform.select, from: known, with: {set: {language: "coalesce(language, '')"}}}
  best:
    use: join.any
    from: {said: said, guess: guess}
    with: {side: by}
tests:
  - name: the first side that has the record wins
    given: {text: [{text: bonjour, language: fr}, {text: hello, language: null}]}
    expect: {best: [{text: bonjour, language: fr, by: said}, {text: hello, language: en, by: guess}]}
"""


_WAIT = (
    "Where the sides come of different stages: how long what is there waits for what is not. Default: as long as the caller; "
    "where nobody waits, for a day. A side that drops or fails the record is known at once, whatever this is."
)


class JoinOfSides(FieldsOfSides):
    """Which sides a record needs, and what each gives to the result."""

    how: Literal["inner", "outer"] = Setting(
        default="inner",
        description=(
            "`inner`: a record that any side lacks is dropped, with the reason `no SIDE`. `outer`: what a side lacks "
            "is null."
        ),
    )
    required: list[str] = Setting(
        default=[],
        description="With `outer`: sides that a record must be on. Lacking one it is dropped, with the reason `no SIDE`.",
    )
    wait: Duration | None = Setting(default=None, description=_WAIT)
    missing: str | None = Setting(
        default=None,
        description="With `outer`: the name of a field, list<string>, that names the sides which lacked the record.",
    )


@node("join.by_id", settings=JoinOfSides, inputs=("*",), example=BY_ID_EXAMPLE)
class JoinById:
    """Put the branches of one record together again: named sides, matched by the record's id.

    `from` names the sides, in order: `from: {a: EDGE, b: EDGE}`. All must branch off one stream. A join has no window:
    it runs when all upstream of it is over for the records at hand, retries included, so what is missing then was
    dropped, failed, expired or sent another way, and will not come. Where sides come of different stages, what is there is
    kept as state until the others have come or are known not to, or the time to `wait` is over.

    The result has the record's id, key and headers, and the fields of all sides in the order of `from`. Two sides that
    both have a field must say what it is to be called, by `select` or `prefix`. With `outer` the fields of sides that
    are not `required` are nullable. A side that has several records of one id (two edges feed it, and both had it)
    fails that record: which of them is meant cannot be known.
    """

    gathers = True
    apart = True

    def __init__(self, settings: JoinOfSides, context: NodeContext) -> None:
        self._settings = settings
        self._sides = tuple(context.inputs)
        self._required = _required(settings, context.inputs)
        self._taken = taken_fields(settings, context.inputs, self._required)

    @staticmethod
    def contract(settings: JoinOfSides, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        taken = taken_fields(settings, context.inputs, _required(settings, context.inputs))
        made = Schema(tuple(one.field for one in taken))
        if settings.missing is not None:
            check_free(settings.missing, made, ("with", "missing"), "choose another name")
            made = made.merged(Schema((Field(settings.missing, _NAMES, "sides that lacked the record"),)))
        if not len(made):
            raise ContractError("select: no field of any side is taken", path=("with", "select"))
        return {"out": made}

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        """One side alone; the engine calls `gather`."""
        self.gather(Sides.of({port: batch}), out)

    def gather(self, sides: Sides, out: Out) -> None:
        matched = match(sides, self._sides)
        out.consume(matched.others)
        chosen = self._end(matched, out)
        if not len(chosen):
            return
        columns: dict[str, Column] = {}
        whole = len(chosen) == len(matched)
        for side in self._sides:
            positions = matched.positions[side] if whole else matched.positions[side][chosen]
            columns |= self._columns(side, sides.batches.get(side), positions)
        if self._settings.missing is not None:
            lacking = [
                [side for side in self._sides if matched.positions[side][record] < 0]
                for record in chosen.tolist()
            ]
            columns[self._settings.missing] = column_of(_NAMES, lacking)
        out.emit(columns, rows=matched.keepers[chosen])

    def _end(self, matched: Matched, out: Out) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """Fail and drop the records that have no result; gives those that have one."""
        ended: dict[str, list[int]] = {}
        lacking = np.zeros(len(matched), dtype=np.bool_)
        for side in self._required:
            lacking |= matched.positions[side] < 0
        for record in np.flatnonzero(lacking).tolist():
            if record not in matched.doubled:
                sides = [side for side in self._required if matched.positions[side][record] < 0]
                ended.setdefault("no " + ", ".join(sides), []).append(record)
        for reason, records in ended.items():
            out.drop(matched.keepers[records].tolist(), reason)
        for record, side in matched.doubled.items():
            lacking[record] = True
            reason = f"side '{side}' has more than one record with this id"
            out.fail([int(matched.keepers[record])], reason, error="SeveralRecords")
        return np.flatnonzero(~lacking)

    def _columns(
        self, side: str, batch: Batch | None, positions: np.ndarray[tuple[int], np.dtype[np.intp]]
    ) -> dict[str, Column]:
        made: dict[str, Column] = {}
        aligned = batch is not None and np.array_equal(positions, np.arange(len(batch)))
        for taken in self._taken:
            if taken.side != side:
                continue
            kind = taken.field.type
            if batch is None:
                made[taken.field.name] = column_of(kind, [None] * len(positions))
                continue
            column = batch[taken.name]
            if aligned and column.dtype == kind.column_dtype:
                made[taken.field.name] = column
            elif side in self._required:
                made[taken.field.name] = column[positions]
            else:
                made[taken.field.name] = spread(column, kind, positions)
        return made


_NAMES = FieldType("list", item=FieldType("string"))


def _required(settings: JoinOfSides, inputs: Mapping[str, Schema]) -> tuple[str, ...]:
    """The sides without which there is no result."""
    if settings.how == "inner":
        for name, given in (("required", settings.required), ("missing", settings.missing)):
            if given:
                raise ContractError(
                    f"{name}: has no effect with how: inner, which needs all sides",
                    path=("with", name),
                    hint="how: outer",
                )
        return tuple(inputs)
    for index, side in enumerate(settings.required):
        check_side(side, inputs, ("with", "required", index))
    return tuple(side for side in inputs if side in settings.required)


class JoinOfAny(Settings):
    """What the result holds."""

    select: list[str] | None = Setting(
        default=None, description="The fields to take, which all sides have. Default: all."
    )
    wait: Duration | None = Setting(default=None, description=_WAIT)
    side: str | None = Setting(
        default=None, description="The name of a field, string, that names the side which won."
    )


@node("join.any", settings=JoinOfAny, inputs=("*",), example=ANY_EXAMPLE)
class JoinAny:
    """Take each record from the first of the sides that has it, once.

    `from` names the sides in the order in which they are preferred. All must branch off one stream, and have the same
    fields (or those under `select`). Like `join.by_id` it waits for nothing but what is under way upstream of it (across
    stages: for no longer than `wait`), so the winner follows from the declared order, never from which was faster. The
    records of the other sides end here.
    A side that has several records of one id gives the first of them.
    """

    gathers = True
    apart = True

    def __init__(self, settings: JoinOfAny, context: NodeContext) -> None:
        self._side = settings.side
        self._sides = tuple(context.inputs)
        self._common = _common(settings, context.inputs).names

    @staticmethod
    def contract(settings: JoinOfAny, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        made = _common(settings, context.inputs)
        if settings.side is not None:
            check_free(settings.side, made, ("with", "side"), "choose another name")
            symbol = Field(settings.side, FieldType("string"), "the side that the record is from")
            made = made.merged(Schema((symbol,)))
        return {"out": made}

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        """One side alone; the engine calls `gather`."""
        self.gather(Sides.of({port: batch}), out)

    def gather(self, sides: Sides, out: Out) -> None:
        matched = match(sides, self._sides)
        out.consume(matched.others)
        left = np.ones(len(matched), dtype=np.bool_)
        for side in self._sides:
            won = np.flatnonzero(left & (matched.positions[side] >= 0))
            if not len(won):
                continue
            left[won] = False
            batch = sides.batches[side].take(matched.positions[side][won])
            rows = matched.keepers[won]
            if self._side is None and set(batch.schema.names) == set(self._common):
                out.emit(batch, rows=rows)  # with the bytes it came in, where the contracts are the same
                continue
            columns = {name: batch[name] for name in self._common}
            if self._side is not None:
                columns[self._side] = column_of(FieldType("string"), [side] * len(batch))
            out.emit(columns, rows=rows)


def _common(settings: JoinOfAny, inputs: Mapping[str, Schema]) -> Schema:
    """The fields that all sides have; raises ContractError where they differ. A label of privacy on any side stays."""
    (first, schema), *others = inputs.items()
    names = settings.select if settings.select is not None else list(schema.names)
    made = []
    for index, name in enumerate(names):
        path: tuple[str | int, ...] = ("with", "select", index) if settings.select is not None else ("from",)
        field = check_field(name, schema, f"side '{first}'", path)
        for side, theirs in others:
            found = check_field(name, theirs, f"side '{side}'", path)
            if found.type != field.type:
                raise ContractError(
                    f"'{name}' is {field.type.describe()} on side '{first}', {found.type.describe()} on side '{side}'",
                    path=path,
                    hint="make both the same with transform.select, or leave it out by select: [...]",
                )
            field = replace(field, privacy=field.privacy or found.privacy)
        made.append(field)
    for side, theirs in others if settings.select is None else ():
        more = [name for name in theirs.names if name not in schema]
        if more:
            raise ContractError(
                f"'{more[0]}' is on side '{side}' and not on side '{first}'",
                path=("from", side),
                hint=f"select: [{', '.join(schema.names[:3])}, ...]",
            )
    return Schema(tuple(made))
