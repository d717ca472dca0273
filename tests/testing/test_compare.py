from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.differences import path_text
from dataflow.core.schema import FieldType, Schema
from dataflow.testing.compare import compare_edges, explain

SCHEMA = Schema.of(
    name="string",
    at="timestamp",
    n="int64",
    x="float64",
    small="float32",
    price=FieldType("decimal", precision=6, scale=2),
    tensor=FieldType("float32", (2,)),
    tags=FieldType("list", item=FieldType("string")),
    more=FieldType("record", fields=Schema.of(a="int64", b="float64").fields),
)


def wrong(expected: dict[str, Any], found: dict[str, Any], tolerance: float = 1e-6) -> list[str]:
    difference = compare_edges({"edge": [expected]}, {"edge": [found]}, {"edge": SCHEMA}, tolerance)
    return [line for one in difference for line in explain(one)]


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ({}, {"name": "a"}),
        ({"name": "a"}, {"name": "a", "n": 3}),
        ({"at": "2024-05-01T12:30:00Z"}, {"at": "2024-05-01T12:30:00.000000Z"}),
        ({"at": "2024-05-01T14:30:00+02:00"}, {"at": "2024-05-01T12:30:00.000000Z"}),
        ({"x": 1}, {"x": 1.0}),
        ({"x": 100.0}, {"x": 100.00001}),
        ({"small": 0.1}, {"small": 0.10000000149011612}),
        ({"x": float("nan")}, {"x": "NaN"}),
        ({"x": "Infinity"}, {"x": "Infinity"}),
        ({"price": "1.50"}, {"price": "1.50"}),
        ({"tensor": [1, 2]}, {"tensor": [1.0, 2.0000001]}),
        ({"more": {"a": 1}}, {"more": {"a": 1, "b": 2.0}}),
        ({"name": None}, {"name": None}),
    ],
)
def test_equal(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert wrong(expected, found) == []


@pytest.mark.parametrize(
    ("expected", "found", "lines"),
    [
        ({"name": "a"}, {"name": "b"}, ["edge: record 1: name", "  - a", "  + b"]),
        ({"nam": "a"}, {"name": "a"}, ["edge: record 1: nam", "  - a", "  + no such field"]),
        (
            {"n": 10_000_000_001},
            {"n": 10_000_000_000},
            ["edge: record 1: n", "  - 10000000001", "  + 10000000000"],
        ),
        ({"x": 1}, {"x": 1.1}, ["edge: record 1: x", "  - 1.0", "  + 1.1"]),
        ({"x": 1}, {"x": None}, ["edge: record 1: x", "  - 1.0", "  + null"]),
        ({"x": None}, {"x": 0.0}, ["edge: record 1: x", "  - null", "  + 0.0"]),
        ({"x": float("nan")}, {"x": 1.0}, ["edge: record 1: x", "  - NaN", "  + 1.0"]),
        ({"tensor": [1, 2]}, {"tensor": [1, 3]}, ["edge: record 1: tensor[1]", "  - 2.0", "  + 3"]),
        ({"tags": ["a"]}, {"tags": ["a", "b"]}, ["edge: record 1: tags", "  - [a]", "  + [a, b]"]),
        ({"more": {"a": 1}}, {"more": {"a": 2}}, ["edge: record 1: more.a", "  - 1", "  + 2"]),
        ({"name": True}, {"name": 1}, ["edge: record 1: name", "  - true", "  + 1"]),
    ],
)
def test_different(expected: dict[str, Any], found: dict[str, Any], lines: list[str]) -> None:
    assert wrong(expected, found) == lines


def test_tolerance() -> None:
    assert wrong({"x": 100}, {"x": 109}, tolerance=0.1) == []
    assert wrong({"x": 100}, {"x": 112}, tolerance=0.1) != []
    assert wrong({"n": 100}, {"n": 102}, tolerance=2) == []
    assert wrong({"n": 100}, {"n": 103}, tolerance=2) != []


def test_the_number_of_records_is_compared_and_all_are_shown() -> None:
    found = compare_edges({"a": [], "b": [{"x": 1}]}, {"a": [{"x": 1.0}], "b": []}, {}, 0)
    assert [line for one in found for line in explain(one)] == [
        "a: 0 records expected, 1 found",
        "  + {x: 1.0}",
        "b: 1 record expected, 0 found",
    ]


def test_records_are_compared_in_order() -> None:
    found = compare_edges({"a": [{"x": 1}, {"x": 2}]}, {"a": [{"x": 2}, {"x": 1}]}, {}, 0)
    assert len(found[0].differences) == 2


def test_only_some_of_many_records_are_shown() -> None:
    found = compare_edges({"a": []}, {"a": [{"x": i} for i in range(25)]}, {}, 0)
    lines = explain(found[0])
    assert len(lines) == 12
    assert lines[-1] == "  + ... 15 more"


def test_paths() -> None:
    assert path_text(("offers", 0, "price")) == "offers[0].price"
    assert path_text((0,)) == "[0]"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
records = st.lists(st.dictionaries(st.text(max_size=3), values, max_size=4), max_size=4)


@given(records)
def test_records_equal_themselves(found: list[dict[str, Any]]) -> None:
    assert compare_edges({"e": found}, {"e": found}, {}, 0.0) == []


@given(records, st.data())
def test_fewer_fields_are_still_equal(found: list[dict[str, Any]], data: st.DataObject) -> None:
    partial = [{k: v for k, v in record.items() if data.draw(st.booleans())} for record in found]
    assert compare_edges({"e": partial}, {"e": found}, {}, 0.0) == []
