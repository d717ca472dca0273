"""`route.by_key`: send each record to the port that the value of a field names."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from pydantic import Field as Setting
from pydantic import model_validator

from dataflow.sdk import (
    Batch,
    ContractContext,
    ContractError,
    NodeContext,
    Out,
    Schema,
    Settings,
    coerce_columns,
    nearest,
    node,
    to_list,
)

from ._expressions import refuse_declarations
from ._matching import check_field
from ._ports import check_port, emit_where

EXAMPLE = """
kind: Topic
name: parcels
fields: {parcel: string, country: string}
---
kind: Pipeline
name: by-country
inputs: {parcel: parcels}
nodes:
  desk:
    use: route.by_key
    from: parcel
    with: {field: country, ports: {DE: inland, FR: union, IT: union}, otherwise: abroad}
tests:
  - name: several values may share a port
    given: {parcel: [{parcel: a, country: DE}, {parcel: b, country: IT}, {parcel: c, country: US}]}
    expect:
      desk.inland: [{parcel: a}]
      desk.union: [{parcel: b}]
      desk.abroad: [{parcel: c}]
"""

_KINDS: Final = frozenset(
    {"string", "enum", "bool", "date", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
)  # fmt: skip


class ByKey(Settings):
    """Which field, and the way of each of its values."""

    field: str = Setting(description="The field whose value decides: a text, whole number, bool or date.")
    ports: dict[str, str] = Setting(
        min_length=1, description="For each value the output port; several values may share one."
    )
    otherwise: str | None = Setting(
        default=None,
        description='The port of all other values and of null. Default: they are dropped, with the reason "no route".',
    )

    @model_validator(mode="after")
    def _ports_are_sound(self) -> ByKey:
        for port in (*self.ports.values(), *([self.otherwise] if self.otherwise is not None else [])):
            check_port(port)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Output ports, each once, in the order written."""
        others = [self.otherwise] if self.otherwise is not None else []
        return tuple(dict.fromkeys((*self.ports.values(), *others)))


@node("route.by_key", settings=ByKey, example=EXAMPLE, outputs=())
class RouteByKey:
    """Send each record to the port that is declared for the value of one of its fields.

    A value that no port is declared for, and null, goes to the port under `otherwise`; without one it is dropped with
    the reason "no route". Values are those of the field's type: `1` and `true` are declared as they are written in
    YAML. Every port has the contract of the input.
    """

    def __init__(self, settings: ByKey, context: NodeContext) -> None:
        self._field = settings.field
        self._names = settings.names
        place = {name: at for at, name in enumerate(self._names)}
        self._places = {value: place[port] for value, port in _values(settings, context.input).items()}
        self._otherwise = -1 if settings.otherwise is None else place[settings.otherwise]

    @staticmethod
    def ports(settings: ByKey) -> tuple[str, ...]:
        return settings.names

    @staticmethod
    def contract(settings: ByKey, context: ContractContext) -> dict[str, Schema]:
        refuse_declarations(context)
        _values(settings, context.input)
        return dict.fromkeys(settings.names, context.input)

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        values = to_list(batch[self._field])
        chosen = np.array([self._places.get(value, self._otherwise) for value in values], dtype=np.intp)
        for at, name in enumerate(self._names):
            emit_where(batch, out, chosen == at, name)
        out.drop(np.flatnonzero(chosen < 0), "no route")


def _values(settings: ByKey, schema: Schema) -> dict[Any, str]:
    """Value, as a Python scalar of the field's type -> port. Raises ContractError for one that the field cannot have."""
    found = check_field(settings.field, schema, "the input", ("with", "field"))
    if found.type.kind not in _KINDS or found.type.shape:
        raise ContractError(
            f"field: '{found.name}' is {found.type.describe()}, which is not compared for equality",
            path=("with", "field"),
            hint="route.when compares numbers, e.g. late: delay > 30",
        )
    made: dict[Any, str] = {}
    for text, port in settings.ports.items():
        path = ("with", "ports", text)
        if found.type.kind == "enum" and text not in found.type.symbols:
            raise ContractError(
                f"ports: '{text}' is no value of {found.name}",
                path=path,
                hint=nearest(text, found.type.symbols),
            )
        result = coerce_columns(schema.select([found.name]), {found.name: [text]}, 1, form="csv")
        if result.failed:
            raise ContractError(f"ports: {result.failed[0][1].message}", path=path)
        value = to_list(result.columns[found.name])[0]
        if value in made:
            raise ContractError(f"ports: '{text}' is there twice", path=path)
        made[value] = port
    return made
