"""Vectorised evaluation against the naive interpreter, on random expressions over random rows with nulls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.core.batch import Batch, to_list
from dataflow.expressions import parse_expression
from tests.expressions.reference import SCHEMA, Case, bools, cases, rows

quick = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(found, float):
        return (math.isnan(found) and math.isnan(wanted)) or found == wanted
    return type(found) is type(wanted) and bool(found == wanted)


@quick
@given(cases, st.lists(rows, max_size=5))
def test_every_row_gets_what_the_naive_interpreter_gives(
    case: Case, records: list[Mapping[str, Any]]
) -> None:
    expression = parse_expression(case.text, SCHEMA)
    column = expression.evaluate(Batch.of(SCHEMA, records))
    assert column.dtype == expression.type.column_dtype
    assert len(column) == len(records)
    for found, record in zip(to_list(column), records, strict=True):
        wanted = case.run(record)
        assert same(found, wanted), (case.text, record, found, wanted)
        assert expression.type.nullable or wanted is not None, (
            "the static type promises that there is no null"
        )


@quick
@given(bools, st.lists(rows, max_size=5))
def test_matches_is_evaluate_with_null_as_false(case: Case, records: list[Mapping[str, Any]]) -> None:
    expression = parse_expression(case.text, SCHEMA)
    found = expression.matches(Batch.of(SCHEMA, records))
    assert found.dtype == np.bool_
    assert found.tolist() == [case.run(record) is True for record in records]


@quick
@given(cases, st.lists(rows, min_size=2, max_size=5))
def test_rows_do_not_depend_on_one_another(case: Case, records: list[Mapping[str, Any]]) -> None:
    expression = parse_expression(case.text, SCHEMA)
    batch = Batch.of(SCHEMA, records)
    together = to_list(expression.evaluate(batch))
    for index, found in enumerate(together):
        assert same(to_list(expression.evaluate(batch.take([index])))[0], found)


@quick
@given(cases)
def test_fields_are_those_that_the_text_names(case: Case) -> None:
    words = set(case.text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    expression = parse_expression(case.text, SCHEMA)
    assert expression.fields <= set(SCHEMA.names)
    assert {name for name in expression.fields if name not in words} == set()
