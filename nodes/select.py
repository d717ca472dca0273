"""`transform.select`: rename, cast, set and drop fields."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from pydantic import Field as Setting

from dataflow.sdk import (
    Batch,
    Column,
    ContractContext,
    ContractError,
    DataflowError,
    Expression,
    Field,
    FieldType,
    NodeContext,
    Out,
    Schema,
    Settings,
    nearest,
    node,
    parse_expression,
)

from ._expressions import expression, refuse_declarations

_INTEGERS: Final = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
CASTS: Final = ("bool", *_INTEGERS, "float16", "float32", "float64", "string", "timestamp", "date")

EXAMPLE = """
kind: Topic
name: flights.raw
fields:
  tail:      {type: string, privacy: identifier}
  sched_dep: {type: timestamp, event_time: true}
  distance:  {type: string, unit: mile}
  note:      {type: string, nullable: true}
---
kind: Pipeline
name: tidy-flights
inputs: {raw: flights.raw}
nodes:
  tidy:
    use: transform.select
    from: raw
    with:
      rename: {tail: tailnum}
      cast: {distance: float32}
      set: {hour: hour_of_day(sched_dep), far: distance > 1000, source: "'csv'"}
      drop: [note]
tests:
  - name: texts become numbers
    given: {raw: [{tail: N1, sched_dep: "2013-01-01T05:15:00Z", distance: "1400", note: null}]}
    expect: {tidy: [{tailnum: N1, sched_dep: "2013-01-01T05:15:00Z", distance: 1400.0, hour: 5, far: true, source: csv}]}
"""


class Select(Settings):
    """What is done, in this order: `rename`, `cast`, `set`, then `drop` or `keep`."""

    rename: dict[str, str] = Setting(default_factory=dict, description="Old name to new name.")
    cast: dict[str, str] = Setting(
        default_factory=dict,
        description=f"Field (by its new name) to type: {', '.join(CASTS)}. Of a tensor, its elements.",
    )
    set: dict[str, str | int | float | bool] = Setting(
        default_factory=dict,
        description=(
            "Field, new or replaced, to an expression over the fields as renamed and cast. A number or bool is a "
            "constant; a constant text has quotes of its own: \"'EWR'\"."
        ),
    )
    drop: list[str] = Setting(default_factory=list, description="Fields to leave out.")
    keep: list[str] | None = Setting(
        default=None, description="The only fields to leave in; not with `drop`."
    )


@dataclass(frozen=True)
class _Program:
    """Settings compiled against one contract. `casts` run on the renamed batch, `sets` on the cast one."""

    renamed: Schema
    casts: dict[str, Expression]
    cast: Schema
    sets: dict[str, Expression]
    output: Schema


def _compile(settings: Select, schema: Schema) -> _Program:
    """Raises ContractError with the path of the setting that cannot be met."""
    renamed = _renamed(settings, schema)
    casts = {name: _cast(name, kind, renamed) for name, kind in settings.cast.items()}
    cast = renamed.merged(
        Schema(tuple(_cast_field(renamed[name], casts[name].type, settings.cast[name]) for name in casts))
    )
    sets = {name: expression(value, cast, ("with", "set", name)) for name, value in settings.set.items()}
    complete = cast.merged(Schema(tuple(_set_field(name, made, cast) for name, made in sets.items())))
    return _Program(renamed, casts, cast, sets, _left(settings, complete))


def _need(name: str, schema: Schema, path: tuple[str | int, ...]) -> None:
    if name not in schema:
        message = f"{path[1]}: no field '{name}'"
        raise ContractError(message, path=path, hint=nearest(name, schema.names))


def _renamed(settings: Select, schema: Schema) -> Schema:
    for old in settings.rename:
        _need(old, schema, ("with", "rename", old))
    names = [settings.rename.get(name, name) for name in schema.names]
    for old, new in settings.rename.items():
        if not new:
            raise ContractError("rename: a field needs a name", path=("with", "rename", old))
        if names.count(new) > 1:
            message = f"rename: there would be two fields '{new}'"
            raise ContractError(message, path=("with", "rename", old), hint="rename the other one too")
    return schema.renamed(settings.rename)


def _cast(name: str, kind: str, schema: Schema) -> Expression:
    path = ("with", "cast", name)
    _need(name, schema, path)
    if kind not in CASTS:
        hint = nearest(kind, CASTS)
        raise ContractError(f"cast: '{kind}' is no type that a field can be cast to", path=path, hint=hint)
    quoted = "`" + name.replace("`", "``") + "`"
    try:
        return parse_expression(f"{kind}({quoted})", schema)
    except DataflowError as error:
        shown = schema[name].type.describe()
        raise ContractError(f"cast: {shown} cannot be cast to {kind}", path=path, hint=error.hint) from error


def _cast_field(field: Field, result: FieldType, kind: str) -> Field:
    """A value that does not fit fails its row: so the field is null only where it was."""
    made = replace(result, nullable=field.type.nullable)
    return replace(field, type=made, event_time=field.event_time and kind == "timestamp")


def _set_field(name: str, made: Expression, schema: Schema) -> Field:
    """A field made from private ones is private, too."""
    labels = {schema[read].privacy for read in made.fields} - {""}
    return Field(name, made.type, privacy=",".join(sorted(labels)))


def _left(settings: Select, schema: Schema) -> Schema:
    if settings.keep is not None and settings.drop:
        raise ContractError("keep and drop exclude each other", path=("with", "drop"), hint="leave one out")
    for index, name in enumerate(settings.drop):
        _need(name, schema, ("with", "drop", index))
    for index, name in enumerate(settings.keep or ()):
        _need(name, schema, ("with", "keep", index))
    left = schema.without(settings.drop) if settings.keep is None else schema.select(settings.keep)
    if not len(left):
        raise ContractError("no field is left", path=("with", "drop" if settings.keep is None else "keep"))
    return left


@node("transform.select", settings=Select, example=EXAMPLE)
class TransformSelect:
    """Rename, cast, set and leave out fields; all others go through as they are.

    The order is fixed: `rename`, then `cast`, then `set`, then `drop` or `keep`. Expressions under `set` see the
    fields as renamed and cast, not one another. A value that a cast cannot convert fails its record, with the field
    and (unless it is private) the value in the reason; null stays null. Casts to an integer cut towards zero; float64 to float32 rounds.
    """

    def __init__(self, settings: Select, context: NodeContext) -> None:
        self._program = _compile(settings, context.input)
        self._old_names = {settings.rename.get(name, name): name for name in context.input.names}
        self._kinds = settings.cast
        unchanged = not (self._program.casts or self._program.sets) and self._program.output == context.input
        self._passes_on = unchanged and not settings.rename

    @staticmethod
    def contract(settings: Select, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        return {"out": _compile(settings, context.input).output}

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        if self._passes_on:
            out.emit(batch)  # with its wire bytes
            return
        program = self._program
        columns = {new: batch.columns[old] for new, old in self._old_names.items()}
        rows: np.ndarray[tuple[int], np.dtype[np.intp]] | None = None
        kept = batch.rows
        if program.casts:
            renamed = batch.replaced(program.renamed, columns)
            made = {name: cast.evaluate(renamed) for name, cast in program.casts.items()}
            rows = self._fail_misfits(renamed, made, out)
            if not len(rows):
                return
            kept = [batch.rows[row] for row in rows.tolist()]
            columns = {name: made.get(name, column)[rows] for name, column in columns.items()}
            for name, cast in program.casts.items():
                columns[name] = _dense(columns[name], cast.type, program.cast[name].type)
        ready = Batch(program.cast, columns, kept)
        columns = columns | {name: made.evaluate(ready) for name, made in program.sets.items()}
        out.emit({name: columns[name] for name in program.output.names}, rows=rows)

    def _fail_misfits(
        self, batch: Batch, made: dict[str, Column], out: Out
    ) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """Fail the rows with a value that has no cast; gives the others. The first such field is the reason."""
        sound = np.ones(len(batch), dtype=np.bool_)
        for name, column in made.items():
            misfits = _is_null(column) & ~_is_null(batch[name]) & sound
            for row in np.flatnonzero(misfits).tolist():
                shown = _shown(batch[name][row], batch.schema[name])
                out.fail([row], f"{name}: {shown} is no {self._kinds[name]}", error="CastError")
            sound &= ~misfits
        return np.flatnonzero(sound)


def _shown(value: object, field: Field) -> str:
    """The value for a message; that of a private field stays out of dead letters' headers and replies."""
    if field.privacy:
        return "the value"
    shown = repr(value.item() if isinstance(value, np.generic) else value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _is_null(column: Column) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    if column.dtype.kind == "M":
        return np.isnat(column)
    if column.dtype.kind != "O":
        return np.zeros(len(column), dtype=np.bool_)
    return np.fromiter((value is None for value in column), np.bool_, len(column))


def _dense(column: Column, found: FieldType, wanted: FieldType) -> Column:
    """A column of a nullable type in which no null is left, as that of the type without nulls."""
    if found.nullable == wanted.nullable or column.dtype == wanted.column_dtype:
        return column
    return np.array(column.tolist(), dtype=wanted.column_dtype).reshape((len(column), *wanted.shape))
