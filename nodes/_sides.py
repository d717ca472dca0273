"""What a join takes of each of its sides: the fields of its result, and whose they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from pydantic import Field as Setting

from dataflow.sdk import ContractError, Field, Schema, Settings, nearest

from ._matching import check_field, optional


class FieldsOfSides(Settings):
    """What each side gives to the result."""

    select: dict[str, list[str]] = Setting(
        default={}, description="For a side, the fields taken of it. Default: all."
    )
    prefix: dict[str, str] = Setting(
        default={}, description="For a side, what is put before the names of its fields."
    )


@dataclass(frozen=True)
class Taken:
    """A field of the result: which side's, its name there, and what it is in the result."""

    side: str
    name: str
    field: Field


def check_side(side: str, inputs: Mapping[str, Schema], path: tuple[str | int, ...]) -> None:
    """Raise ContractError with the nearest name for a side that there is not."""
    if side not in inputs:
        hint = nearest(side, inputs) or f"its sides: {', '.join(inputs)}"
        raise ContractError(f"{path[1]}: no side '{side}'", path=path, hint=hint)


def taken_fields(
    settings: FieldsOfSides, inputs: Mapping[str, Schema], required: Collection[str]
) -> tuple[Taken, ...]:
    """The fields of the result in order; those of sides that are not required are nullable.

    Raises ContractError for what does not fit.
    """
    for name, by_side in (("select", settings.select), ("prefix", settings.prefix)):
        for side in by_side:
            check_side(side, inputs, ("with", name, side))
    made: dict[str, Taken] = {}
    timed = False
    for side, schema in inputs.items():
        names = settings.select.get(side, list(schema.names))
        for index, name in enumerate(names):
            found = check_field(name, schema, f"side '{side}'", ("with", "select", side, index))
            field = replace(found, name=settings.prefix.get(side, "") + name)
            if side not in required:
                field = optional(field)
            if field.name in made:
                _refuse_clash(made[field.name], side, name)
            made[field.name] = Taken(side, name, replace(field, event_time=field.event_time and not timed))
            timed |= field.event_time
    return tuple(made.values())


def _refuse_clash(there: Taken, side: str, name: str) -> None:
    if there.side == side:
        raise ContractError(
            f"select: field '{name}' of side '{side}' is there twice", path=("with", "select", side)
        )
    raise ContractError(
        f"field '{there.field.name}' is on side '{there.side}' and on side '{side}'",
        path=("with",),
        hint=f"select: {{{side}: [...]}} without it, or prefix: {{{side}: {side}_}}",
    )
