from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from pydantic import ValidationError

from dataflow.core.errors import ContractError
from dataflow.core.schema import FieldType, Schema
from dataflow.testing import contract_of, run_node
from nodes.by_key import RouteByKey

LAND = Schema.of(country=FieldType("string", nullable=True))


def rows(*countries: str | None) -> list[dict[str, Any]]:
    return [{"country": country} for country in countries]


def test_each_value_goes_to_its_port_and_others_to_otherwise() -> None:
    settings = {
        "field": "country",
        "ports": {"DE": "near", "FR": "near", "US": "far"},
        "otherwise": "unknown",
    }
    result = run_node(RouteByKey, LAND, rows("FR", "US", None, "DE", "XX"), settings)
    assert result.ports == {"near": rows("FR", "DE"), "far": rows("US"), "unknown": rows(None, "XX")}
    assert result.parents == {"near": [0, 3], "far": [1], "unknown": [2, 4]}
    assert result.dropped == result.failed == []


def test_without_otherwise_others_are_dropped() -> None:
    result = run_node(RouteByKey, LAND, rows("DE", None, "XX"), {"field": "country", "ports": {"DE": "near"}})
    assert result.ports == {"near": rows("DE")}
    assert result.dropped == [(1, "no route"), (2, "no route")]


@pytest.mark.parametrize(
    ("kind", "values", "texts"),
    [
        (FieldType("int32"), [1, 2], ["1", "2"]),
        (FieldType("bool"), [True, False], ["true", "false"]),
        (FieldType("date"), [date(2024, 5, 1), date(2024, 5, 2)], ["2024-05-01", "2024-05-02"]),
        (FieldType("enum", symbols=("RED", "BLUE")), ["RED", "BLUE"], ["RED", "BLUE"]),
        (FieldType("uint8", nullable=True), [7, 255], ["7", "255"]),
    ],
    ids=lambda found: found.describe() if isinstance(found, FieldType) else "",
)
def test_values_are_those_of_the_fields_type(kind: FieldType, values: list[Any], texts: list[str]) -> None:
    schema = Schema.of(x=kind)
    settings = {"field": "x", "ports": {texts[0]: "one", texts[1]: "two"}}
    result = run_node(RouteByKey, schema, [{"x": value} for value in values], settings)
    assert result.parents == {"one": [0], "two": [1]}


def test_otherwise_may_be_a_port_that_values_have_too() -> None:
    settings = {"field": "country", "ports": {"DE": "near", "US": "far"}, "otherwise": "far"}
    assert contract_of(RouteByKey, LAND, settings) == {"near": LAND, "far": LAND}
    assert run_node(RouteByKey, LAND, rows("XX", "US"), settings).parents == {"near": [], "far": [0, 1]}


@pytest.mark.parametrize(
    ("kind", "ports", "message", "path"),
    [
        ("string", {}, "no field 'x'", ("with", "field")),
        ("float32", {"1": "a"}, "float32, which is not compared for equality", ("with", "field")),
        ("int8", {"one": "a"}, "'one'", ("with", "ports", "one")),
        ("int8", {"300": "a"}, "300", ("with", "ports", "300")),
        ("int8", {"1": "a", "01": "b"}, "'01' is there twice", ("with", "ports", "01")),
    ],
)
def test_a_bad_value_is_told_at_its_place(
    kind: str, ports: dict[str, str], message: str, path: tuple[str, ...]
) -> None:
    schema = Schema.of(**({"x": kind} if ports else {"y": kind}))
    with pytest.raises(ContractError, match=message) as caught:
        contract_of(RouteByKey, schema, {"field": "x", "ports": ports or {"a": "a"}})
    assert caught.value.path == path


def test_an_enums_symbol_is_looked_for() -> None:
    schema = Schema.of(x=FieldType("enum", symbols=("RED", "BLUE")))
    with pytest.raises(ContractError, match="'BLEU' is no value of x") as caught:
        contract_of(RouteByKey, schema, {"field": "x", "ports": {"BLEU": "a"}})
    assert "BLUE" in (caught.value.hint or "")


def test_ports_are_names() -> None:
    with pytest.raises(ValidationError, match="no port name"):
        contract_of(RouteByKey, LAND, {"field": "country", "ports": {"DE": "Near by"}})
    with pytest.raises(ValidationError, match="at least 1"):
        contract_of(RouteByKey, LAND, {"field": "country", "ports": {}})
