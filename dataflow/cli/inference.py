"""The contract that sample values have: the types of Python values and numpy columns, and one type for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import reduce
from typing import Any

import numpy as np

from dataflow.core.errors import ContractError
from dataflow.core.schema import FLOATS, INTEGERS, TENSOR_KINDS, Field, FieldType, Schema


@dataclass(frozen=True)
class Inferred:
    """A contract, and the fields of which only null was seen: their type is not known."""

    schema: Schema
    unknown: tuple[str, ...]


def schema_of_records(records: Sequence[Mapping[str, Any]]) -> Inferred:
    """The contract of all of `records`; a field that is null or lacks somewhere is nullable.

    Raises ContractError, naming the field, for values that no field type holds or that have no type in common.
    """
    names = list(dict.fromkeys(name for record in records for name in record))
    return _inferred({name: [record.get(name) for record in records] for name in names})


def schema_of_columns(columns: Mapping[str, Any]) -> Inferred:
    """The contract of columns whose first axis is the row: typed arrays as they are, others value by value."""
    known: dict[str, FieldType] = {}
    cells: dict[str, Sequence[Any]] = {}
    for name, column in columns.items():
        array = column if isinstance(column, np.ndarray) else None
        if array is not None and array.dtype.name in TENSOR_KINDS:
            known[name] = FieldType(array.dtype.name, array.shape[1:])
        else:
            cells[name] = list(column)
    found = _inferred(cells)
    fields = (
        Field(n, known[n]) if n in known else found.schema[n] for n in columns if n not in found.unknown
    )
    return Inferred(Schema(tuple(fields)), found.unknown)


def _inferred(cells: Mapping[str, Sequence[Any]]) -> Inferred:
    fields, unknown = [], []
    for name, values in cells.items():
        try:
            found = common_type(values)
        except ContractError as error:
            raise ContractError(f"field '{name}': {error.message}", hint=error.hint) from None
        if found is None:
            unknown.append(name)
        else:
            fields.append(Field(name, found))
    return Inferred(Schema(tuple(fields)), tuple(unknown))


def common_type(values: Iterable[Any]) -> FieldType | None:
    """One type for all values; None where all are null."""
    given = [value.value if isinstance(value, Enum) else value for value in values]
    present = [value for value in given if not _is_null(value)]
    if not present:
        return None
    records = [fields_of(value) for value in present]
    if all(
        isinstance(value, list | tuple) and fields is None
        for value, fields in zip(present, records, strict=True)
    ):
        found = _list_type([item for value in present for item in value])
    elif all(fields is not None for fields in records):
        found = _record_type([fields for fields in records if fields is not None])
    else:
        found = reduce(_merged, dict.fromkeys(map(_type_of, present)))
    return replace(found, nullable=len(present) < len(given))


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, np.datetime64) and bool(np.isnat(value)))


def _list_type(items: Sequence[Any]) -> FieldType:
    item = common_type(items)
    if item is None:
        raise ContractError("only empty lists, or null in them, were seen")
    return FieldType("list", item=item)


def _record_type(records: Sequence[Mapping[str, Any]]) -> FieldType:
    members = schema_of_records(records)
    if members.unknown:
        raise ContractError(f"only null was seen in '{members.unknown[0]}' of a record")
    return FieldType("record", fields=members.schema.fields)


def _type_of(value: Any) -> FieldType:
    """The type of one value. Raises ContractError for what a contract has no type for."""
    if isinstance(value, np.ndarray) and value.dtype.name in TENSOR_KINDS:
        return FieldType(value.dtype.name, value.shape)
    if isinstance(value, np.generic) and value.dtype.name in TENSOR_KINDS:
        return FieldType(value.dtype.name)
    for kinds, name in _SCALARS:
        if isinstance(value, kinds):
            return FieldType(name)
    if isinstance(value, Decimal):
        return _decimal(value)
    fields = fields_of(value)
    if fields is not None:
        return _record_type([fields])
    if isinstance(value, list | tuple):
        return _list_type(value)
    raise ContractError(
        f"no field type for {_shown(value)}", hint="return numbers, texts, times, lists, dicts, arrays"
    )


# bool before int and datetime before date: the one is a kind of the other.
_SCALARS: tuple[tuple[Any, str], ...] = (
    (bool, "bool"), (int, "int64"), (float, "float64"), (str, "string"), (bytes, "bytes"), (datetime, "timestamp"),
    (date, "date"), (np.datetime64, "timestamp"),
)  # fmt: skip


def fields_of(value: Any) -> Mapping[str, Any] | None:
    """The fields of a record however it was made: a mapping, dataclass or named tuple; None if it is none."""
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value._asdict() if isinstance(value, tuple) and hasattr(value, "_asdict") else None


def _decimal(value: Decimal) -> FieldType:
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ContractError(f"no decimal holds {value}")
    scale = max(-exponent, 0)
    return FieldType("decimal", precision=max(len(digits) + max(exponent, 0), scale, 1), scale=scale)


def _merged(one: FieldType, other: FieldType) -> FieldType:
    """One type for values of two different ones."""
    if one.kind in TENSOR_KINDS and other.kind in TENSOR_KINDS and len(one.shape) == len(other.shape):
        kind = _wider(one.kind, other.kind)
        if kind:
            return FieldType(
                kind, tuple(a if a == b else -1 for a, b in zip(one.shape, other.shape, strict=True))
            )
    if one.kind == other.kind == "decimal":
        scale = max(one.scale, other.scale)
        whole = max(one.precision - one.scale, other.precision - other.scale)
        return FieldType("decimal", precision=whole + scale, scale=scale)
    raise ContractError(f"it is {one.describe()} in one record and {other.describe()} in another")


def _wider(one: str, other: str) -> str:
    """The number type that holds both: whole numbers with floats are float64; "" for a number with a truth value."""
    if one == other:
        return one
    if "bool" in {one, other}:
        return ""
    if (one in INTEGERS and other in INTEGERS) or (one in FLOATS and other in FLOATS):
        wider = np.promote_types(one, other).name
        return wider if wider in INTEGERS or one in FLOATS else "float64"
    return "float64"


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
