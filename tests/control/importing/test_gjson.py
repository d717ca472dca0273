from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.control.importing.gjson import condition_of
from dataflow.core.errors import SpecError
from dataflow.expressions.parser import parse


def only() -> str:
    return "label"


@pytest.mark.parametrize(
    ("path", "expression", "field", "kind"),
    [
        ("[@this].#(source==client)", "source == 'client'", "source", "string"),
        ('[@this].#(source=="it\'s")', "source == 'it''s'", "source", "string"),
        ("instances.#(count>10)", "count > 10", "count", "float64"),
        ("instances.#(sure==true)", "sure == true", "sure", "bool"),
        ("instances.#(user.age<=17.5)", "user.age <= 17.5", "user", ""),
        ("instances.#(name%*red_server?)", "name like '%red\\_server_'", "name", "string"),
        ('instances.#(name!%"a*")', "name not like 'a%'", "name", "string"),
        ("predictions.#(==1)", "label == 1", "label", "float64"),
        ("[@this].#(predictions.0==1)", "label == 1", "label", "float64"),
        ("predictions.0.score", "score is not null", "score", ""),
        ("predictions.0.probabilities.1", "probabilities[1] is not null", "probabilities", ""),
        ("customer", "customer is not null", "customer", ""),
        ("in", "`in` is not null", "in", ""),
        ('outputs.#(name=="y").data.#(>0.5)', "y > 0.5", "y", "float64"),
        ("inputs.#(name==y).data.0", "y is not null", "y", ""),
    ],
)
def test_conditions_that_are_expressions(path: str, expression: str, field: str, kind: str) -> None:
    found = condition_of(path, only)
    assert (found.expression, found.field, found.type) == (expression, field, kind)
    parse(found.expression)


@pytest.mark.parametrize(
    "path",
    ["", "@this", "a|b", "a.#.b", "a.*", "instances.#(a.b.#(c==1))", "inputs.0.data", "#(a==null)", "{a,b}"],
)
def test_conditions_that_have_no_counterpart(path: str) -> None:
    with pytest.raises(SpecError):
        condition_of(path, only)


@given(st.text(alphabet="ab.#()=!<>%*\"'01@[]{}| ", max_size=25))
def test_what_is_converted_parses(path: str) -> None:
    try:
        found = condition_of(path, only)
    except SpecError:
        return
    parse(found.expression)
