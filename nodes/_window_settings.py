"""What a declaration says of windows, checked against the contracts of the node's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field as Setting
from pydantic import field_validator, model_validator

from dataflow.sdk import (
    ContractContext,
    ContractError,
    Field,
    FieldType,
    NodeContext,
    Schema,
    Settings,
    Wait,
    nearest,
    signature_of,
)

from ._event_time import EventTimeSettings, time_field
from ._window_aggregates import Aggregate, aggregate_of, parse

START: Final = "window_start"
END: Final = "window_end"
_METHODS = ("start", "add", "result")
_ADD = ("add",)


class OwnCall(Settings):
    """A class of yours as an aggregate: `start()`, `add(value, row)`, `result(value)`, and `merge(one, other)`."""

    call: str = Setting(description="`module.Class`; its field's type is declared under the node's `out:`.")
    arguments: dict[str, Any] = Setting(
        default_factory=dict, description="Keyword arguments of its constructor."
    )


class Aggregated(EventTimeSettings):
    """What windows make of their records."""

    aggregate: dict[str, str | OwnCall] = Setting(
        min_length=1,
        description=(
            "For each field of the result: `count`, `count(FIELD)`, `sum(FIELD)`, `mean(FIELD)`, `min(FIELD)`, `max(FIELD)`, "
            "`first(FIELD)`, `last(FIELD)`, `quantile(FIELD, 0.95)`, `distinct(FIELD)`, or `{call: module.Class}`."
        ),
    )
    emit: Literal["close", "update"] = Setting(
        default="close",
        description=(
            "`close`: one result when a window closes. `update`: every record goes on as the result so far of each of its "
            "windows, and closing gives nothing."
        ),
    )

    @field_validator("aggregate")
    @classmethod
    def _readable(cls, aggregate: dict[str, str | OwnCall]) -> dict[str, str | OwnCall]:
        for text in aggregate.values():
            if isinstance(text, str):
                parse(text)
        return aggregate


class Timed(Aggregated):
    """What windows in time make of their records, and how they close."""

    clock: Literal["event", "processing"] | None = Setting(
        default=None,
        description=(
            "`event`: by the records' own time. `processing`: by the wall clock when a record is processed. Default: event "
            "time if there is an event-time field."
        ),
    )
    lateness: Wait = Setting(
        default=0,
        description="So long after it closed, a window still takes records; each gives a corrected result.",
    )
    late: Literal["drop", "fail", "port"] = Setting(
        default="drop",
        description=(
            "What becomes of a record whose windows are all over: `drop` it with the reason `late`, `fail` it (dead letter), "
            "or send it on unchanged on port `late`."
        ),
    )

    @model_validator(mode="after")
    def _of_event_time(self) -> Timed:
        given = [
            n for n in ("time", "delay", "idle_timeout", "lateness", "late") if n in self.model_fields_set
        ]
        if self.clock == "processing" and given:
            raise ValueError(f"{given[0]}: has no effect with clock: processing, where no record is late")
        return self


def event_times(settings: Aggregated, inputs: Mapping[str, Schema]) -> dict[str, str]:
    """The event-time field of each input port, "" throughout for the wall clock. Raises ContractError."""
    clock = getattr(settings, "clock", None)
    if clock == "processing":
        return dict.fromkeys(inputs, "")
    found = {port: time_field(settings.time, schema, _input(port)) for port, schema in inputs.items()}
    absent = next((port for port, field in found.items() if not field), None)
    if absent is None:
        return found
    if clock == "event" or any(found.values()):
        raise ContractError(
            f"time: no event-time field in {_input(absent)}", path=("with",), hint="set time: FIELD"
        )
    given = [n for n in ("delay", "idle_timeout", "lateness", "late") if n in settings.model_fields_set]
    if given:
        raise ContractError(
            f"{given[0]}: there is no event time", path=("with", given[0]), hint="set time: FIELD"
        )
    return found


def aggregates_of(
    settings: Aggregated, context: ContractContext | NodeContext
) -> tuple[dict[str, Aggregate], frozenset[str]]:
    """The aggregates that are functions of fields, by name, and the names of the user's own. Raises ContractError.

    Fields that `keep:` names are aggregates too: the first value of the window.
    """
    schema = next(iter(context.inputs.values()))
    made: dict[str, Aggregate] = {}
    for name, text in settings.aggregate.items():
        path = ("with", "aggregate", name)
        if name in (START, END):
            raise ContractError(f"aggregate: '{name}' is there already", path=path, hint="another name")
        if isinstance(text, str):
            made[name] = aggregate_of(name, parse(text), schema, path)
    for index, name in enumerate(context.keep or ()):
        if name in (*settings.aggregate, START, END):
            raise ContractError(
                f"keep: '{name}' is a field of the result already",
                path=("keep", index),
                hint="rename the other one",
            )
        made[name] = aggregate_of(name, parse(f"first({name})"), schema, ("keep", index))
    for port, other in context.inputs.items():
        for one in made.values():
            if one.column and (one.column not in other or other[one.column].type != schema[one.column].type):
                raise ContractError(
                    f"aggregate: '{one.column}' is not of one type in all inputs: see {_input(port)}",
                    path=("from",),
                    hint="make them alike with transform.select",
                )
    return made, frozenset(settings.aggregate) - frozenset(made)


def output_of(settings: Aggregated, context: ContractContext, event_time: str) -> Schema:
    """The contract of the results. `event_time` is START or END, whichever is the result's own time."""
    made, own = aggregates_of(settings, context)
    declared = context.out or Schema(())
    for name in declared.names:
        if name not in own:
            raise ContractError(
                f"out: '{name}' follows from the settings",
                path=("out", name),
                hint="only fields of classes of yours are declared there",
            )
    fields = [
        Field(START, FieldType("timestamp"), "beginning of the window", event_time=event_time == START),
        Field(END, FieldType("timestamp"), "end of the window", event_time=event_time == END),
    ]
    for name, given in settings.aggregate.items():
        if isinstance(given, str):
            fields.append(made[name].field)
            continue
        _check_own(name, given, context)
        if name not in declared:
            raise ContractError(
                f"aggregate: the type of '{name}' is not known",
                path=("with", "aggregate", name),
                hint=f"declare it: out: {{{name}: float64}}",
            )
        fields.append(declared[name])
    fields += [made[name].field for name in context.keep or ()]
    return Schema(tuple(fields))


def late_contract(context: ContractContext) -> Schema:
    """The contract of port `late`: that of the inputs, which must be one."""
    first, *others = context.inputs.values()
    if any(other != first for other in others):
        raise ContractError(
            "late: the inputs have different contracts, and the port can have one",
            path=("with", "late"),
            hint="drop or fail",
        )
    return first


def _check_own(name: str, given: OwnCall, context: ContractContext) -> None:
    path = ("with", "aggregate", name, "call")
    try:
        user = signature_of(context.folder, given.call, _ADD)
    except ContractError as error:
        raise ContractError(error.message, path=path, hint=error.hint) from None
    missing = [method for method in _METHODS if method not in user.methods]
    if missing:
        raise ContractError(
            f"{given.call} has no method '{missing[0]}'", path=path, hint=nearest(missing[0], user.methods)
        )


def _input(port: str) -> str:
    return "the input" if port == "in" else f"input '{port}'"
