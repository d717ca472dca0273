"""Contracts as data: what is refused, what accepts what, and which array holds which type."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.errors import ContractError
from dataflow.core.schema import (
    FLOATS,
    INTEGERS,
    KINDS,
    Field,
    FieldType,
    Schema,
    column_of,
    empty_column,
)

NAMES = st.sampled_from("abcde")
SCHEMAS = st.lists(
    st.tuples(NAMES, st.sampled_from(["int64", "string", "float32"])), unique_by=lambda t: t[0]
).map(lambda pairs: Schema(tuple(Field(n, FieldType(k)) for n, k in pairs)))


@given(SCHEMAS, SCHEMAS)
def test_merging_replaces_in_place_and_appends(one: Schema, other: Schema) -> None:
    merged = one.merged(other)
    assert merged.names == (*one.names, *(n for n in other.names if n not in one))
    assert all(merged[f.name] == f for f in other)
    assert merged.without(other.names) == one.without(other.names)
    assert merged.merged(other) == merged


@given(SCHEMAS)
def test_selecting_and_renaming(schema: Schema) -> None:
    assert schema.select(schema.names) == schema
    assert schema.without(schema.names) == Schema(())
    renamed = schema.renamed({n: n + n for n in schema.names})
    assert renamed.names == tuple(n + n for n in schema.names)
    assert [f.type for f in renamed] == [f.type for f in schema]


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(ContractError, match="field 'a' is there twice"):
        Schema((Field("a", FieldType("int8")), Field("a", FieldType("int16"))))
    with pytest.raises(ContractError, match="field 'b' is there twice"):
        Schema.of(a="int8", b="int8").renamed({"a": "b"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "flaot32"}, "did you mean 'float32'"),
        ({"kind": "string", "shape": (2,)}, "has no shape"),
        ({"kind": "int8", "shape": (0,)}, "neither positive nor -1"),
        ({"kind": "int8", "shape": (-2, 3)}, "neither positive nor -1"),
    ],
)
def test_impossible_types_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        FieldType(**options)


TYPES = st.builds(
    FieldType,
    st.sampled_from(["bool", *INTEGERS, *FLOATS]),
    st.lists(st.sampled_from([-1, 1, 3]), max_size=2).map(tuple),
    st.booleans(),
)


@given(TYPES)
def test_every_type_accepts_itself_and_what_is_narrower(kind: FieldType) -> None:
    assert kind.accepts(kind)
    strict = FieldType(kind.kind, tuple(3 if n == -1 else n for n in kind.shape))
    assert FieldType(kind.kind, kind.shape, nullable=True).accepts(kind)
    assert kind.accepts(strict)


@given(TYPES, TYPES, TYPES)
def test_accepting_is_transitive(one: FieldType, two: FieldType, three: FieldType) -> None:
    if one.accepts(two) and two.accepts(three):
        assert one.accepts(three)


@pytest.mark.parametrize(
    ("wide", "narrow", "accepted"),
    [
        (FieldType("int64"), FieldType("int32"), True),
        (FieldType("int32"), FieldType("int64"), False),
        (FieldType("float32"), FieldType("int32"), False),
        (FieldType("float64"), FieldType("int32"), True),
        (FieldType("int8"), FieldType("int8", nullable=True), False),
        (FieldType("int8", (2,)), FieldType("int8", (3,)), False),
        (FieldType("int8", (2,)), FieldType("int8"), False),
        (FieldType("string"), FieldType("enum", symbols=("a",)), True),
        (FieldType("enum", symbols=("a", "b")), FieldType("enum", symbols=("b",)), True),
        (FieldType("enum", symbols=("a",)), FieldType("enum", symbols=("a", "b")), False),
        (FieldType("decimal", precision=9, scale=2), FieldType("decimal", precision=5, scale=2), True),
        (FieldType("decimal", precision=9, scale=2), FieldType("decimal", precision=5, scale=3), False),
        (FieldType("list", item=FieldType("int64")), FieldType("list", item=FieldType("int8")), True),
        (FieldType("date"), FieldType("timestamp"), False),
    ],
)
def test_what_accepts_what(wide: FieldType, narrow: FieldType, accepted: bool) -> None:
    assert wide.accepts(narrow) is accepted


AT = dt.datetime(2024, 1, 1)  # noqa: DTZ001  (columns hold UTC without a zone)
VALUES: dict[str, Any] = {
    "bool": True, "decimal": 3, "string": "s", "bytes": b"b", "enum": "a", "list": [1], "record": {"a": 1},
    "timestamp": AT, "date": AT.date(),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nullable", [False, True])
def test_the_column_of_each_type(kind: str, nullable: bool) -> None:
    field_type = FieldType(kind, nullable=nullable)
    value = VALUES.get(kind, 1)
    column = column_of(field_type, [value, None] if nullable else [value])
    assert column.dtype == field_type.column_dtype
    assert empty_column(field_type).dtype == field_type.column_dtype
    assert column.tolist()[0] == value
    if nullable:
        assert column.tolist()[1] is None


def test_columns_of_tensors() -> None:
    fixed, free = FieldType("float32", (2, 2)), FieldType("float32", (-1,))
    assert column_of(fixed, [[[1, 2], [3, 4]]]).shape == (1, 2, 2)
    assert column_of(fixed, []).shape == (0, 2, 2) == empty_column(fixed).shape
    ragged = column_of(free, [np.zeros(2, np.float32), np.zeros(2, np.float32)])
    assert (ragged.shape, ragged.dtype) == ((2,), np.dtype(object))


def test_a_value_that_does_not_fit_raises() -> None:
    with pytest.raises((OverflowError, ValueError)):
        column_of(FieldType("int8"), [300])
    with pytest.raises(ValueError, match=r"reshape|inhomogeneous"):
        column_of(FieldType("float32", (2,)), [[1, 2, 3]])
