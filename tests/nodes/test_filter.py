from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dataflow.core.batch import Batch, Encoded
from dataflow.core.errors import ContractError, ExpressionError
from dataflow.core.outcomes import Out
from dataflow.core.schema import FieldType, Schema
from dataflow.testing import build_node, contract_of, run_node
from nodes.filter import FilterWhen

FLIGHTS = Schema.of(tailnum="string", delay=FieldType("float32", nullable=True))
RECORDS: list[dict[str, Any]] = [
    {"tailnum": "N1", "delay": 45.0},
    {"tailnum": "N2", "delay": 5.0},
    {"tailnum": "N3", "delay": None},
]


def test_rows_that_do_not_match_are_dropped_and_null_does_not_match() -> None:
    result = run_node(FilterWhen, FLIGHTS, RECORDS, {"when": "delay > 30", "reason": "on time"})
    assert result.out == [{"tailnum": "N1", "delay": 45.0}]
    assert result.parents["out"] == [0]
    assert result.dropped == [(1, "on time"), (2, "on time")]
    assert result.failed == []


@pytest.mark.parametrize(("when", "kept"), [(True, 3), (False, 0), ("true", 3), ("delay is null", 1)])
def test_constants_and_default_reason(when: str | bool, kept: int) -> None:
    result = run_node(FilterWhen, FLIGHTS, RECORDS, {"when": when})
    assert len(result.out) == kept
    assert {reason for _, reason in result.dropped} <= {"filtered"}
    assert len(result.dropped) == 3 - kept


def test_the_contract_is_the_input() -> None:
    assert contract_of(FilterWhen, FLIGHTS, {"when": "delay > 30"}) == {"out": FLIGHTS}


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("delai > 30", "no field 'delai'"),
        ("delay", "where true or false"),
        ("(", "a value is expected"),
    ],
)
def test_a_bad_expression_is_found_by_the_contract(when: str, message: str) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        contract_of(FilterWhen, FLIGHTS, {"when": when})
    assert caught.value.path == ("with", "when")


def test_the_place_within_the_expression_is_the_cause() -> None:
    with pytest.raises(ContractError) as caught:
        contract_of(FilterWhen, FLIGHTS, {"when": "1 < delai"})
    assert isinstance(caught.value.__cause__, ExpressionError)
    assert caught.value.__cause__.column == 5


def test_settings_are_checked() -> None:
    for settings in ({}, {"when": "true", "reason": ""}, {"when": "true", "whn": 1}, {"when": ["a"]}):
        with pytest.raises(ValidationError):
            contract_of(FilterWhen, FLIGHTS, settings)


def test_declarations_that_would_be_ignored_are_refused() -> None:
    declarations: list[tuple[str, dict[str, Any]]] = [
        ("out", {"out": FLIGHTS}),
        ("keep", {"keep": ["delay"]}),
    ]
    for name, declared in declarations:
        with pytest.raises(ContractError) as caught:
            contract_of(FilterWhen, FLIGHTS, {"when": "true"}, **declared)
        assert caught.value.path == (name,)


def test_encoded_bytes_go_along() -> None:
    batch = Batch.of(FLIGHTS, RECORDS)
    batch.encoded = Encoded(b"f", [b"a", b"b", b"c"])
    out = Out(batch, ["out"])
    build_node(FilterWhen, FLIGHTS, {"when": "delay is null or delay > 30"}).process(batch, out)
    (emission,) = out.emissions
    assert emission.reuse is not None
    assert emission.reuse.encoded == Encoded(b"f", [b"a", b"c"])
    assert np.array_equal(emission.parents, [0, 2])
    everything = Out(batch, ["out"])
    build_node(FilterWhen, FLIGHTS, {"when": True}).process(batch, everything)
    assert everything.emissions[0].reuse is batch
