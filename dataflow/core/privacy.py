"""Fields labelled private, as those see them who lack the scope: the value is replaced, null stays null."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from dataflow.core.schema import Field, FieldType, Schema

MASK: Final = "***"


def is_private(declared: Field) -> bool:
    """Whether a field, or anything in it, is labelled."""
    return bool(declared.privacy) or any(is_private(f) for f in _members(declared.type))


def masked(declared: Field, value: Any) -> Any:
    """`value` with what is private in it replaced by MASK; a value of `masked_field(declared)`."""
    if value is None:
        return None
    if declared.privacy:
        return MASK
    members = {f.name: f for f in _members(declared.type)}
    if not members:
        return value

    def walk(part: Any) -> Any:
        if isinstance(part, list):
            return [walk(item) for item in part]
        if isinstance(part, dict):
            return {n: masked(members[n], v) if n in members else v for n, v in part.items()}
        return part

    return walk(value)


def masked_field(declared: Field) -> Field:
    """The contract of a masked field: a text that may be null where it is private, itself elsewhere."""
    if declared.privacy:
        return replace(declared, type=FieldType("string", nullable=True), event_time=False)
    return replace(declared, type=_masked_type(declared.type)) if is_private(declared) else declared


def masked_schema(schema: Schema) -> Schema:
    return Schema(tuple(masked_field(f) for f in schema))


def _masked_type(field_type: FieldType) -> FieldType:
    if field_type.kind == "list" and field_type.item is not None:
        return replace(field_type, item=_masked_type(field_type.item))
    return replace(field_type, fields=tuple(masked_field(f) for f in field_type.fields))


def _members(field_type: FieldType) -> tuple[Field, ...]:
    while field_type.kind == "list" and field_type.item is not None:
        field_type = field_type.item
    return field_type.fields
