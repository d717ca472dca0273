"""Contracts as data: field types, fields and schemas, and the numpy column that holds each type.

A *column* is a numpy array whose first axis is the row. One rule says which array holds which type:

=====================================  ==================================================================
field type                             column of N rows
=====================================  ==================================================================
bool, int8..uint64, float16..float64   array [N] of that dtype
the same with a fixed shape            array [N, *shape] of that dtype
the same with a free dimension (-1)    object array [N] of arrays
timestamp                              datetime64[us] [N], UTC; NaT is null
date                                   datetime64[D] [N]; NaT is null
string, enum / bytes / decimal         object array [N] of str / bytes / decimal.Decimal
list / record                          object array [N] of lists / dicts
nullable (all but timestamp, date)     object array [N], None is null, Python scalars (or arrays) elsewhere
=====================================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dataflow.core.errors import ContractError, nearest

Column = npt.NDArray[Any]

INTEGERS: Final = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS: Final = ("float16", "float32", "float64")
NUMBERS: Final = INTEGERS + FLOATS
TENSOR_KINDS: Final = ("bool", *NUMBERS)
KINDS: Final = (*TENSOR_KINDS, "decimal", "string", "bytes", "timestamp", "date", "enum", "list", "record")


@dataclass(frozen=True, slots=True)
class FieldType:
    """The type of one field. `shape` is per record: () is a scalar, -1 a free dimension.

    `item` is the element type of a list, `fields` the members of a record, `symbols` those of an enum,
    `precision` and `scale` (digits) belong to decimal. Anything else is left at its default.
    """

    kind: str
    shape: tuple[int, ...] = ()
    nullable: bool = False
    item: FieldType | None = None
    fields: tuple[Field, ...] = ()
    symbols: tuple[str, ...] = ()
    precision: int = 0
    scale: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ContractError(f"unknown field type '{self.kind}'", hint=nearest(self.kind, KINDS))
        if self.shape and self.kind not in TENSOR_KINDS:
            raise ContractError(f"a field of type '{self.kind}' has no shape", hint="use a list")
        if any(size < -1 or size == 0 for size in self.shape):
            raise ContractError(f"shape {list(self.shape)} has a size that is neither positive nor -1")

    @property
    def is_tensor(self) -> bool:
        return bool(self.shape)

    @property
    def is_number(self) -> bool:
        """A scalar that arithmetic accepts (decimal included)."""
        return not self.shape and (self.kind in NUMBERS or self.kind == "decimal")

    @property
    def has_free_dimension(self) -> bool:
        return -1 in self.shape

    @property
    def column_dtype(self) -> np.dtype[Any]:
        """The dtype of the column that holds this type (see the table at the top of the module)."""
        if self.kind == "timestamp":
            return np.dtype("datetime64[us]")
        if self.kind == "date":
            return np.dtype("datetime64[D]")
        if self.nullable or self.kind not in TENSOR_KINDS or self.has_free_dimension:
            return np.dtype(object)
        return np.dtype(self.kind)

    def describe(self) -> str:
        """Short text for messages and tables, e.g. ``float32[12]``, ``list<string>?``."""
        text = self.kind
        if self.kind == "list" and self.item is not None:
            text = f"list<{self.item.describe()}>"
        elif self.kind == "record":
            text = "record<" + ", ".join(f"{f.name}: {f.type.describe()}" for f in self.fields) + ">"
        elif self.kind == "enum":
            text = "enum<" + "|".join(self.symbols) + ">"
        elif self.kind == "decimal":
            text = f"decimal({self.precision},{self.scale})"
        if self.shape:
            text += "[" + ",".join("?" if size == -1 else str(size) for size in self.shape) + "]"
        return text + ("?" if self.nullable else "")

    def accepts(self, other: FieldType) -> bool:
        """Whether every value of `other` is a value of this type without loss (nullability and shape included)."""
        if other.nullable and not self.nullable:
            return False
        if len(self.shape) != len(other.shape):
            return False
        if any(mine not in (-1, theirs) for mine, theirs in zip(self.shape, other.shape, strict=True)):
            return False
        if self.kind == "list" and other.kind == "list" and self.item is not None and other.item is not None:
            return self.item.accepts(other.item)
        if self.kind == "record" and other.kind == "record":
            mine = {f.name: f.type for f in self.fields}
            theirs = {f.name: f.type for f in other.fields}
            return mine.keys() == theirs.keys() and all(t.accepts(theirs[n]) for n, t in mine.items())
        if self.kind == "enum" and other.kind == "enum":
            return set(other.symbols) <= set(self.symbols)
        if self.kind == "decimal" and other.kind == "decimal":
            return self.scale == other.scale and self.precision >= other.precision
        if self.kind == "string" and other.kind == "enum":
            return True
        if self.kind in TENSOR_KINDS and other.kind in TENSOR_KINDS:
            return bool(np.can_cast(np.dtype(other.kind), np.dtype(self.kind), "safe"))
        return self.kind == other.kind


@dataclass(frozen=True, slots=True)
class Field:
    """One named field of a contract. `privacy` is a free label such as ``identifier``; "" is public."""

    name: str
    type: FieldType
    doc: str = ""
    unit: str = ""
    privacy: str = ""
    event_time: bool = False


@dataclass(frozen=True)
class Schema:
    """An ordered set of fields with unique names: the contract of an edge or topic. Immutable."""

    fields: tuple[Field, ...]
    _by_name: Mapping[str, Field] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        by_name = {f.name: f for f in self.fields}
        if len(by_name) != len(self.fields):
            names = [f.name for f in self.fields]
            doubled = next(n for n in names if names.count(n) > 1)
            raise ContractError(f"field '{doubled}' is there twice")
        object.__setattr__(self, "_by_name", by_name)

    @staticmethod
    def of(**types: FieldType | str) -> Schema:
        """Shorthand for tests and node authors: ``Schema.of(x="float32", name="string")``."""
        return Schema(
            tuple(Field(n, t if isinstance(t, FieldType) else FieldType(t)) for n, t in types.items())
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, name: str) -> Field:
        found = self._by_name.get(name)
        if found is None:
            raise ContractError(f"no field '{name}'", hint=nearest(name, self._by_name))
        return found

    def select(self, names: Iterable[str]) -> Schema:
        return Schema(tuple(self[n] for n in names))

    def without(self, names: Iterable[str]) -> Schema:
        gone = set(names)
        return Schema(tuple(f for f in self.fields if f.name not in gone))

    def merged(self, other: Schema) -> Schema:
        """The fields of this schema and, appended, those of `other`; one of the same name takes its place."""
        mine = [other._by_name.get(f.name, f) for f in self.fields]
        return Schema((*mine, *(f for f in other.fields if f.name not in self._by_name)))

    def renamed(self, names: Mapping[str, str]) -> Schema:
        return Schema(tuple(replace(f, name=names.get(f.name, f.name)) for f in self.fields))

    def describe(self) -> str:
        return ", ".join(f"{f.name}: {f.type.describe()}" for f in self.fields)


def column_of(field_type: FieldType, values: Sequence[Any]) -> Column:
    """Make the column that holds `values` (Python scalars, None for null, arrays for tensors) of one type.

    Raises ValueError, TypeError or OverflowError when a value does not fit; use `codecs.json` or
    `core.values.coerce` for values from outside.
    """
    dtype = field_type.column_dtype
    if dtype.hasobject:
        column: Column = np.empty(len(values), dtype=object)
        # Element by element: numpy would turn a list of equal-length lists into a matrix.
        for index, value in enumerate(values):
            column[index] = value
        return column
    if dtype.kind == "M":
        return np.array([np.datetime64("NaT") if v is None else v for v in values], dtype=dtype)
    if field_type.shape:
        return np.asarray(values, dtype=dtype).reshape((len(values), *field_type.shape))
    return np.array(values, dtype=dtype)


def empty_column(field_type: FieldType) -> Column:
    return np.empty(
        (0, *(() if field_type.column_dtype.hasobject else field_type.shape)), field_type.column_dtype
    )
