"""`join.lookup`: add the fields of a broadcast table's row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import model_validator

from dataflow.sdk import (
    Batch,
    Column,
    ContractContext,
    ContractError,
    DataflowError,
    Duration,
    Expression,
    Field,
    FieldType,
    NodeContext,
    Out,
    Schema,
    Settings,
    coerce_columns,
    column_of,
    nearest,
    node,
    to_list,
)

from ._expressions import expression, refuse_declarations

EXAMPLE = """
# file: planes.csv
#| tailnum,year,seats
#| N14228,1999,149
#| N24211,1998,149
kind: Topic
name: departures
fields: {flight: string, tail: string}
---
kind: Pipeline
name: seats
inputs: {departures: departures}
nodes:
  plane:
    use: join.lookup
    from: departures
    with: {table: planes.csv, by: {tailnum: tail}, select: [seats], on_missing: "null"}
tests:
  - name: a plane that is not known has null seats
    given: {departures: [{flight: UA1, tail: N14228}, {flight: UA2, tail: N0}]}
    expect: {plane: [{flight: UA1, tail: N14228, seats: 149}, {flight: UA2, tail: N0, seats: null}]}
"""

_TEXTS: Final = frozenset({"string", "enum"})
_FLOATS: Final = frozenset({"float16", "float32", "float64"})


class Lookup(Settings):
    """Which table, by what, and what happens when there is no row."""

    table: str = Setting(
        description="A compacted topic, or a .parquet or .csv file in the pipeline's folder. Kept in memory."
    )
    by: dict[str, str | int | bool] = Setting(
        min_length=1, description="For each of the table's fields to match: an expression over the input."
    )
    as_of: dict[str, str] = Setting(
        default_factory=dict,
        description=(
            "One of the table's timestamp fields, and an expression over the input that gives a time: of the rows that match "
            "`by`, the one that is latest there and not after that time is taken."
        ),
    )
    max_age: Duration | None = Setting(
        default=None,
        description="With `as_of`: a row that is older than this at that time is as if it were not there.",
    )
    on_missing: Literal["null", "drop", "fail", "default"] = Setting(
        default="null",
        description=(
            "What happens to a record without a row in the table, or with null in a key: its new fields are null, it "
            "is dropped, it fails, or it gets the values under `default`."
        ),
    )
    default: dict[str, Any] = Setting(
        default_factory=dict,
        description="Values for `on_missing: default`; a nullable field may be left out.",
    )
    select: list[str] | None = Setting(
        default=None, description="The table's fields to add. Default: all but those under `by`."
    )
    prefix: str = Setting(default="", description="Put before the names of the added fields.")

    @model_validator(mode="before")
    @classmethod
    def _spelling(cls, value: Any) -> Any:
        """`on_missing: null` is YAML's null; defaults say by themselves what happens."""
        if isinstance(value, dict):
            if "on_missing" in value and value["on_missing"] is None:
                return {**value, "on_missing": "null"}
            if value.get("default") and "on_missing" not in value:
                return {**value, "on_missing": "default"}
        return value


@node("join.lookup", settings=Lookup, example=EXAMPLE)
class JoinLookup:
    """Add the fields of the row that a broadcast table has for the record.

    The table is loaded to its end before the first record and follows its topic afterwards: a record meets the
    newest row there is when it is processed. Every worker holds all of it. Of several rows that match, the newest
    counts; a file's rows are in order. Keys match when they are equal; null matches nothing.

    With `as_of` time counts instead: a table with a row for each hour gives each record the row of its own hour, or of the
    last hour before that has one, however much later the record is processed.
    """

    def __init__(self, settings: Lookup, context: NodeContext) -> None:
        self._settings = settings
        self._context = context
        self._by = _expressions(settings, context.input)
        self._as_of = _as_of(settings, context.input)
        self._time_at = -1
        self._find: Callable[[tuple[Any, ...]], tuple[Any, ...] | None] = _not_open
        self._added: list[tuple[int, str, FieldType]] = []
        self._fill: tuple[Any, ...] | None = None

    @staticmethod
    def tables(settings: Lookup) -> tuple[str, ...]:
        return (settings.table,)

    @staticmethod
    def contract(settings: Lookup, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        try:
            table = context.topics(settings.table)
        except DataflowError as error:
            raise ContractError(error.message, path=("with", "table"), hint=error.hint) from None
        _check_keys(settings, table, context.input)
        _check_as_of(settings, table, context.input)
        added = _added_fields(settings, table, context.input)
        _defaults(settings, table)
        return {"out": Schema((*context.input.fields, *added.values()))}

    def open(self) -> None:
        """Take hold of the table; its index stays current by itself."""
        table = self._context.table(self._settings.table)
        added = _added_fields(self._settings, table.schema, self._context.input)
        names = table.schema.names
        self._added = [(names.index(name), field.name, field.type) for name, field in added.items()]
        self._find = table.index(list(self._by), next(iter(self._as_of), ""))
        self._time_at = names.index(next(iter(self._as_of))) if self._as_of else -1
        if self._settings.on_missing in {"null", "default"}:
            defaults = _defaults(self._settings, table.schema)
            self._fill = tuple(defaults.get(name) for name in names)

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        given = [to_list(key.evaluate(batch)) for key in (*self._by.values(), *self._as_of.values())]
        found = list(map(self._find, zip(*given, strict=True)))
        if self._settings.max_age is not None:
            found = self._young(found, given[-1], timedelta(milliseconds=self._settings.max_age))
        if None not in found:
            out.emit({**batch.columns, **self._columns(found)})
            return
        if self._fill is not None:
            fill = self._fill
            out.emit({**batch.columns, **self._columns([fill if row is None else row for row in found])})
            return
        self._end(batch, [index for index, row in enumerate(found) if row is None], out)
        rows = np.array([index for index, row in enumerate(found) if row is not None], dtype=np.intp)
        if len(rows):
            kept = {name: column[rows] for name, column in batch.columns.items()}
            out.emit({**kept, **self._columns([row for row in found if row is not None])}, rows=rows)

    def _young(self, found: list[Any], times: list[Any], most: timedelta) -> list[Any]:
        at = self._time_at
        return [
            None if row is None or time - row[at] > most else row
            for row, time in zip(found, times, strict=True)
        ]

    def _columns(self, found: list[Any]) -> dict[str, Column]:
        """The added columns of rows that are all there."""
        return {name: column_of(kind, [row[at] for row in found]) for at, name, kind in self._added}

    def _end(self, batch: Batch, missing: list[int], out: Out) -> None:
        table = self._settings.table
        if self._settings.on_missing == "drop":
            out.drop(missing, f"no row in {table}")
            return
        keys = {name: to_list(key.evaluate(batch)) for name, key in self._by.items()}
        for row in missing:
            said = ", ".join(f"{name}={values[row]!r}" for name, values in keys.items())
            out.fail([row], f"no row in {table} for {said}", error="LookupError")


def _not_open(_: tuple[Any, ...]) -> None:
    raise RuntimeError("join.lookup is used before it is opened")


def _expressions(settings: Lookup, schema: Schema) -> dict[str, Expression]:
    return {name: expression(text, schema, ("with", "by", name)) for name, text in settings.by.items()}


def _check_keys(settings: Lookup, table: Schema, schema: Schema) -> None:
    for name, key in _expressions(settings, schema).items():
        path = ("with", "by", name)
        if name not in table:
            raise ContractError(
                f"by: no field '{name}' in {settings.table}", path=path, hint=nearest(name, table.names)
            )
        theirs = table[name].type
        if not _comparable(key.type, theirs):
            raise ContractError(
                f"by: '{key.text}' is {key.type.describe()}, but {name} in {settings.table} is {theirs.describe()}",
                path=path,
                hint="make both the same, e.g. with int(...) or string(...)",
            )


def _as_of(settings: Lookup, schema: Schema) -> dict[str, Expression]:
    return {n: expression(text, schema, ("with", "as_of", n)) for n, text in settings.as_of.items()}


def _check_as_of(settings: Lookup, table: Schema, schema: Schema) -> None:
    if settings.max_age is not None and not settings.as_of:
        raise ContractError(
            "max_age: has no effect without as_of", path=("with", "max_age"), hint="as_of: {FIELD: TIME}"
        )
    if len(settings.as_of) > 1:
        raise ContractError("as_of: takes one field", path=("with", "as_of"), hint="the others go under by")
    for name, time in _as_of(settings, schema).items():
        path = ("with", "as_of", name)
        if name not in table:
            raise ContractError(
                f"as_of: no field '{name}' in {settings.table}", path=path, hint=nearest(name, table.names)
            )
        for what, kind in ((f"'{time.text}'", time.type), (f"{name} in {settings.table}", table[name].type)):
            if kind.kind != "timestamp" or kind.shape:
                raise ContractError(
                    f"as_of: {what} is {kind.describe()}",
                    path=path,
                    hint="times are compared: both are timestamps",
                )


def _comparable(mine: FieldType, theirs: FieldType) -> bool:
    """Whether equal values of the two types are equal in Python, and hash alike."""
    if mine.shape or theirs.shape or {mine.kind, theirs.kind} & {"list", "record"}:
        return False
    if mine.is_number and theirs.is_number:
        # 0.1 as float32 is another number than 0.1 as float64.
        return not (mine.kind in _FLOATS and theirs.kind in _FLOATS) or mine.kind == theirs.kind
    return mine.kind == theirs.kind or {mine.kind, theirs.kind} <= _TEXTS


def _added_fields(settings: Lookup, table: Schema, schema: Schema) -> dict[str, Field]:
    """The table's field name -> the field added to the input. Raises ContractError."""
    names = (
        settings.select if settings.select is not None else [n for n in table.names if n not in settings.by]
    )
    added: dict[str, Field] = {}
    for index, name in enumerate(names):
        path = ("with", "select", index) if settings.select is not None else ("with", "table")
        if name not in table:
            raise ContractError(
                f"select: no field '{name}' in {settings.table}", path=path, hint=nearest(name, table.names)
            )
        new = settings.prefix + name
        if new in schema:
            raise ContractError(
                f"field '{new}' of {settings.table} is also in the input",
                path=path,
                hint="select the others, or give a prefix, e.g. prefix: table_",
            )
        found = table[name]
        nullable = found.type.nullable or settings.on_missing == "null"
        added[name] = replace(found, name=new, type=replace(found.type, nullable=nullable), event_time=False)
    if not added:
        raise ContractError(f"select: no field of {settings.table} is added", path=("with", "select"))
    return added


def _defaults(settings: Lookup, table: Schema) -> Mapping[str, Any]:
    """Values by the table's field names, as Python scalars. Raises ContractError for one that does not fit."""
    if settings.on_missing != "default":
        if settings.default:
            raise ContractError(
                f"default: has no effect with on_missing: {settings.on_missing}", path=("with", "default")
            )
        return {}
    selected = (
        settings.select if settings.select is not None else [n for n in table.names if n not in settings.by]
    )
    for name in settings.default:
        if name not in selected:
            raise ContractError(
                f"default: '{name}' is not added",
                path=("with", "default", name),
                hint=nearest(name, selected),
            )
    made: dict[str, Any] = {}
    for name in selected:
        if name not in settings.default and not table[name].type.nullable:
            raise ContractError(
                f"default: no value for '{name}'",
                path=("with", "default"),
                hint="give one, or select fewer fields",
            )
        cells = {name: [settings.default.get(name)]}
        result = coerce_columns(table.select([name]), cells, 1)
        if result.failed:
            error = result.failed[0][1]
            raise ContractError(f"default: {error.message}", path=("with", "default", name), hint=error.hint)
        made[name] = to_list(result.columns[name])[0]
    return made
