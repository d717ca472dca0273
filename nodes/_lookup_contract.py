"""What a declaration says of a lookup, checked against the contracts of the table and of the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

from pydantic import Field as Setting
from pydantic import model_validator

from dataflow.sdk import (
    ContractError,
    Duration,
    Expression,
    Field,
    FieldType,
    Schema,
    Settings,
    coerce_columns,
    nearest,
    to_list,
)

from ._expressions import expression
from ._lookup_rows import History

DEFAULT_HISTORY: Final = "1d"
DEFAULT_HISTORY_MS: Final = 86_400_000
_TEXTS: Final = frozenset({"string", "enum"})
_FLOATS: Final = frozenset({"float16", "float32", "float64"})


class Lookup(Settings):
    """Which table, by what, and what happens when there is no row."""

    table: str | None = Setting(
        default=None,
        description=(
            "A compacted topic, or a .parquet or .csv file in the pipeline's folder. Kept in memory. Without it the table is the "
            "input `table`."
        ),
    )
    by: dict[str, str | int | bool] = Setting(
        default_factory=dict,
        description=(
            "For each of the table's fields to match: an expression over the input. An input `table` is matched by record key."
        ),
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
    history: Duration | None = Setting(
        default=None,
        description=(
            "With `as_of` and an input `table`: how long a row is kept after a later one of its key took its place, by the "
            f"table's own time; records from before that find nothing. Default: {DEFAULT_HISTORY}."
        ),
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

    @property
    def named(self) -> str:
        """The table, in messages."""
        return self.table if self.table is not None else "input 'table'"

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


def keys_of(settings: Lookup, schema: Schema) -> dict[str, Expression]:
    return {name: expression(text, schema, ("with", "by", name)) for name, text in settings.by.items()}


def check_inputs(settings: Lookup, inputs: Mapping[str, Schema]) -> None:
    """A broadcast table and `by`, or an input `table` and neither."""
    others = [name for name in inputs if name not in ("in", "table")]
    if others or "in" not in inputs:
        raise ContractError(
            f"from: no input '{(others or list(inputs))[0]}'",
            path=("from",),
            hint="from: {in: EDGE, table: EDGE}",
        )
    if (settings.table is None) != ("table" in inputs):
        both = settings.table is not None
        raise ContractError(
            "table: there is an input 'table', too" if both else "table: which table is needed",
            path=("with", "table") if both else ("with",),
            hint="leave one out" if both else "table: TOPIC, or from: {in: EDGE, table: EDGE}",
        )
    if settings.table is not None and not settings.by:
        raise ContractError("by: at least one field is needed", path=("with",), hint="by: {FIELD: FIELD}")
    if settings.table is None and "by" in settings.model_fields_set:
        raise ContractError(
            "by: an input 'table' is looked up by record key",
            path=("with", "by"),
            hint="`rekey` gives the input another key; a broadcast table (table: TOPIC) can be looked up by any field",
        )
    if settings.history is not None and (settings.table is not None or not settings.as_of):
        why = (
            "without as_of"
            if settings.table is None
            else "on a broadcast table: its topic says what it keeps"
        )
        raise ContractError(
            f"history: has no effect {why}", path=("with", "history"), hint="from: {in: EDGE, table: EDGE}"
        )


def check_keys(settings: Lookup, table: Schema, schema: Schema) -> None:
    for name, key in keys_of(settings, schema).items():
        path = ("with", "by", name)
        if name not in table:
            raise ContractError(
                f"by: no field '{name}' in {settings.named}", path=path, hint=nearest(name, table.names)
            )
        theirs = table[name].type
        if not _comparable(key.type, theirs):
            raise ContractError(
                f"by: '{key.text}' is {key.type.describe()}, but {name} in {settings.named} is {theirs.describe()}",
                path=path,
                hint="make both the same, e.g. with int(...) or string(...)",
            )


def times_of(settings: Lookup, schema: Schema) -> dict[str, Expression]:
    return {n: expression(text, schema, ("with", "as_of", n)) for n, text in settings.as_of.items()}


def history_of(settings: Lookup, times: Mapping[str, Expression]) -> History | None:
    """What an input `table` keeps for `as_of`; None where its newest row counts."""
    for name, time in times.items():
        return History(name, time, settings.history or DEFAULT_HISTORY_MS)
    return None


def check_times(settings: Lookup, table: Schema, schema: Schema) -> None:
    if settings.max_age is not None and not settings.as_of:
        raise ContractError(
            "max_age: has no effect without as_of", path=("with", "max_age"), hint="as_of: {FIELD: TIME}"
        )
    if len(settings.as_of) > 1:
        raise ContractError("as_of: takes one field", path=("with", "as_of"), hint="the others go under by")
    for name, time in times_of(settings, schema).items():
        path = ("with", "as_of", name)
        if name not in table:
            raise ContractError(
                f"as_of: no field '{name}' in {settings.named}", path=path, hint=nearest(name, table.names)
            )
        for what, kind in ((f"'{time.text}'", time.type), (f"{name} in {settings.named}", table[name].type)):
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


def added_fields(settings: Lookup, table: Schema, schema: Schema) -> dict[str, Field]:
    """The table's field name -> the field added to the input. Raises ContractError."""
    names = (
        settings.select if settings.select is not None else [n for n in table.names if n not in settings.by]
    )
    added: dict[str, Field] = {}
    for index, name in enumerate(names):
        path = ("with", "select", index) if settings.select is not None else ("with", "table")
        if name not in table:
            raise ContractError(
                f"select: no field '{name}' in {settings.named}", path=path, hint=nearest(name, table.names)
            )
        new = settings.prefix + name
        if new in schema:
            raise ContractError(
                f"field '{new}' of {settings.named} is also in the input",
                path=path,
                hint="select the others, or give a prefix, e.g. prefix: table_",
            )
        found = table[name]
        nullable = found.type.nullable or settings.on_missing == "null"
        added[name] = replace(found, name=new, type=replace(found.type, nullable=nullable), event_time=False)
    if not added:
        raise ContractError(f"select: no field of {settings.named} is added", path=("with", "select"))
    return added


def defaults_of(settings: Lookup, table: Schema) -> Mapping[str, Any]:
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
