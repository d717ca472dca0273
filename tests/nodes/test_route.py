from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dataflow.core.batch import Batch, Encoded
from dataflow.core.errors import ContractError
from dataflow.core.outcomes import Out
from dataflow.core.schema import FieldType, Schema
from dataflow.sdk import NodeKind
from dataflow.sdk.kinds import KIND_ATTRIBUTE
from dataflow.testing import build_node, contract_of, run_node
from nodes.route import Route, RouteWhen

FLIGHTS = Schema.of(delay=FieldType("int64", nullable=True))


def rows(*delays: int | None) -> list[dict[str, Any]]:
    return [{"delay": delay} for delay in delays]


def test_each_row_goes_to_the_first_port_that_is_true() -> None:
    settings = {"very": "delay > 60", "late": "delay > 30", "on_time": "otherwise"}
    result = run_node(RouteWhen, FLIGHTS, rows(90, 45, 5, None), settings)
    assert result.ports == {"very": rows(90), "late": rows(45), "on_time": rows(5, None)}
    assert result.parents == {"very": [0], "late": [1], "on_time": [2, 3]}
    assert result.dropped == result.failed == []


def test_match_all_sends_a_row_to_every_port_that_is_true() -> None:
    settings = {"rest": "otherwise", "very": "delay > 60", "late": "delay > 30", "match": "all"}
    result = run_node(RouteWhen, FLIGHTS, rows(90, 45, 5), settings)
    assert result.ports == {"rest": rows(5), "very": rows(90), "late": rows(90, 45)}


def test_what_meets_nothing_is_dropped_with_a_reason() -> None:
    result = run_node(RouteWhen, FLIGHTS, rows(90, 5, None), {"late": "delay > 30"})
    assert result.ports == {"late": rows(90)}
    assert result.dropped == [(1, "no route"), (2, "no route")]


@given(
    delays=st.lists(st.none() | st.integers(0, 100), max_size=8),
    limits=st.lists(st.integers(0, 100), min_size=1, max_size=4),
    match=st.sampled_from(["first", "all"]),
    otherwise=st.booleans(),
)
def test_every_row_is_accounted_for(
    delays: list[int | None], limits: list[int], match: str, otherwise: bool
) -> None:
    settings: dict[str, Any] = {f"p{index}": f"delay > {limit}" for index, limit in enumerate(limits)}
    settings |= {"match": match} | ({"rest": "otherwise"} if otherwise else {})
    result = run_node(RouteWhen, FLIGHTS, rows(*delays), settings)
    for row, delay in enumerate(delays):
        hits = [f"p{index}" for index, limit in enumerate(limits) if delay is not None and delay > limit]
        wanted = hits[:1] if match == "first" else hits
        found = [port for port in result.ports if port != "rest" and row in result.parents[port]]
        assert found == wanted
        assert (row in result.parents.get("rest", [])) == (otherwise and not hits)
        assert ((row, "no route") in result.dropped) == (not otherwise and not hits)


def test_ports_and_contract_follow_from_the_settings() -> None:
    settings = {"late": "delay > 30", "match": "all", "on_time": "otherwise"}
    assert contract_of(RouteWhen, FLIGHTS, settings) == {"late": FLIGHTS, "on_time": FLIGHTS}
    kind = getattr(RouteWhen, KIND_ATTRIBUTE)
    assert isinstance(kind, NodeKind)
    assert kind.ports(Route.model_validate(settings)) == ("late", "on_time")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "a route needs a port"),
        ({"match": "all"}, "a route needs a port"),
        ({"match": "some", "late": "true"}, "'first' or 'all'"),
        ({"a": "otherwise", "b": "otherwise"}, "ports a, b all say otherwise"),
        ({"A port": "true"}, "no port name"),
        ({"late": 30}, "valid string"),
        ({"late": ["delay"]}, "valid string"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        contract_of(RouteWhen, FLIGHTS, settings)


def test_a_bad_expression_is_at_its_port() -> None:
    with pytest.raises(ContractError, match="late: column 1, at 'delai': no field") as caught:
        contract_of(RouteWhen, FLIGHTS, {"on_time": "otherwise", "late": "delai > 30"})
    assert caught.value.path == ("with", "late")
    with pytest.raises(ContractError, match="where true or false is needed"):
        contract_of(RouteWhen, FLIGHTS, {"late": "delay"})


def test_encoded_bytes_go_along() -> None:
    batch = Batch.of(FLIGHTS, rows(1, 2, 3))
    batch.encoded = Encoded(b"f", [b"a", b"b", b"c"])
    out = Out(batch, ["high", "low"])
    build_node(RouteWhen, FLIGHTS, {"high": "delay > 1", "low": "otherwise"}).process(batch, out)
    high, low = out.emissions
    assert high.reuse is not None
    assert low.reuse is not None
    assert high.reuse.encoded == Encoded(b"f", [b"b", b"c"])
    assert low.reuse.encoded == Encoded(b"f", [b"a"])
    whole = Out(batch, ["high"])
    build_node(RouteWhen, FLIGHTS, {"high": "delay > 0"}).process(batch, whole)
    assert whole.emissions[0].reuse is batch


def test_constants_are_conditions_too() -> None:
    result = run_node(RouteWhen, FLIGHTS, rows(1), {"all_of_them": True, "none": False, "match": "all"})
    assert result.ports == {"all_of_them": rows(1), "none": []}
