"""Random contracts and random values of them, and equality of columns that knows NaN and NaT."""

from __future__ import annotations

import math
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
from hypothesis import strategies as st

from dataflow.core.schema import TENSOR_KINDS, Column, Field, FieldType, Schema, column_of

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
SYMBOLS = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4, unique=True) | st.lists(
    NAMES, min_size=1, max_size=4, unique=True
)
SIZES = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
FREE = st.lists(st.sampled_from([-1, 1, 2]), min_size=1, max_size=3).map(tuple).filter(lambda s: -1 in s)
# What both `datetime` and the columns can hold.
TIMES = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999))  # noqa: DTZ001
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def scalar_types(draw: st.DrawFn) -> FieldType:
    nullable = draw(st.booleans())
    kind = draw(
        st.sampled_from([*TENSOR_KINDS, "decimal", "string", "bytes", "timestamp", "date", "enum", "tensor"])
    )
    if kind == "tensor":
        return FieldType(draw(st.sampled_from(TENSOR_KINDS)), draw(SIZES | FREE), nullable)
    if kind == "enum":
        return FieldType("enum", nullable=nullable, symbols=tuple(draw(SYMBOLS)))
    if kind == "decimal":
        precision = draw(st.integers(1, 38))
        return FieldType(
            "decimal", nullable=nullable, precision=precision, scale=draw(st.integers(0, precision))
        )
    return FieldType(kind, nullable=nullable)


def _nested(types: st.SearchStrategy[FieldType]) -> st.SearchStrategy[FieldType]:
    lists = st.builds(
        lambda item, nullable: FieldType("list", nullable=nullable, item=item), types, st.booleans()
    )
    records = st.builds(
        lambda names, inner, nullable: FieldType(
            "record",
            nullable=nullable,
            fields=tuple(Field(n, t) for n, t in zip(names, inner, strict=False)),
        ),
        st.lists(NAMES, min_size=3, max_size=3, unique=True),
        st.lists(types, min_size=1, max_size=3),
        st.booleans(),
    )
    return lists | records


TYPES = st.recursive(scalar_types(), _nested, max_leaves=4)
FIELDS = st.builds(Field, NAMES, TYPES, doc=TEXTS, unit=TEXTS, privacy=TEXTS, event_time=st.booleans())
SCHEMAS = st.lists(FIELDS, min_size=1, max_size=5, unique_by=lambda f: f.name).map(lambda f: Schema(tuple(f)))


def elements(kind: str) -> st.SearchStrategy[Any]:
    if kind == "bool":
        return st.booleans()
    if kind.startswith("float"):
        return st.floats(width=int(kind[5:]))  # type: ignore[arg-type]
    limits = np.iinfo(kind)
    return st.integers(int(limits.min), int(limits.max))


@st.composite
def cells(draw: st.DrawFn, field_type: FieldType) -> Any:
    kind = field_type.kind
    if field_type.nullable and draw(st.integers(0, 3)) == 0:
        return None
    if field_type.shape:
        shape: tuple[int, ...] = ()
        for size in field_type.shape:
            # Nested lists cannot say a size inside an empty dimension, so 0 is what JSON would bring back.
            shape += (size if size != -1 else 0 if 0 in shape else draw(st.integers(0, 3)),)
        count = math.prod(shape)
        flat = draw(st.lists(elements(kind), min_size=count, max_size=count))
        return np.array(flat, dtype=kind).reshape(shape)
    if kind in TENSOR_KINDS:
        return draw(elements(kind))
    if kind == "decimal":
        limit = 10**field_type.precision - 1
        digits = draw(st.integers(-limit, limit))
        return Decimal(f"{digits}E{-field_type.scale}") if field_type.scale else Decimal(digits)
    if kind == "list":
        assert field_type.item is not None
        return draw(st.lists(cells(field_type.item), max_size=3))
    if kind == "record":
        return {f.name: draw(cells(f.type)) for f in field_type.fields}
    if kind == "enum":
        return draw(st.sampled_from(field_type.symbols))
    simple: dict[str, st.SearchStrategy[Any]] = {
        "string": TEXTS,
        "bytes": st.binary(max_size=8),
        "timestamp": TIMES,
        "date": st.dates(date(1, 1, 1), date(9999, 12, 31)),
    }
    return draw(simple[kind])


@st.composite
def batches(draw: st.DrawFn, schema: Schema, max_rows: int = 4) -> tuple[dict[str, Column], int]:
    count = draw(st.integers(0, max_rows))
    columns = {f.name: column_of(f.type, [draw(cells(f.type)) for _ in range(count)]) for f in schema}
    return columns, count


@st.composite
def contracts_with_batches(
    draw: st.DrawFn, schemas: st.SearchStrategy[Schema] = SCHEMAS, max_rows: int = 4
) -> tuple[Schema, dict[str, Column], int]:
    schema = draw(schemas)
    columns, count = draw(batches(schema, max_rows))
    return schema, columns, count


def same_cell(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and one.dtype == other.dtype
            and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_cell(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same_cell(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and bool(one == other)


def assert_same_columns(one: dict[str, Column], other: dict[str, Column]) -> None:
    assert one.keys() == other.keys()
    for name, column in one.items():
        found = other[name]
        assert column.dtype == found.dtype, name
        assert column.shape == found.shape, name
        if column.dtype == object:
            for a, b in zip(column.tolist(), found.tolist(), strict=True):
                assert same_cell(a, b), (name, a, b)
        else:
            assert np.array_equal(column, found, equal_nan=column.dtype.kind in "fM"), name
