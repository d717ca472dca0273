"""The grammar: precedence against Python's own, limits, and that no text raises anything but ExpressionError."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.core.batch import Batch, to_list
from dataflow.core.errors import ExpressionError
from dataflow.core.schema import Schema
from dataflow.expressions import parse_expression
from dataflow.expressions.functions import FUNCTIONS
from dataflow.expressions.grammar import HINTS, KEYWORDS, MAX_CHARACTERS, MAX_DEPTH, MAX_LIST_ITEMS
from dataflow.expressions.parser import parse
from tests.expressions.reference import SCHEMA

ONE = Schema.of(a="int64", b="int64", p="bool", q="bool")
ROW = {"a": 7, "b": -3, "p": True, "q": False}


def value(text: str) -> Any:
    return to_list(parse_expression(text, ONE).evaluate(Batch.of(ONE, [ROW])))[0]


numbers = st.sampled_from(["a", "b", "2", "3", "(a)", "-a", "- b", "--2"])
arithmetic = st.lists(st.tuples(st.sampled_from(["+", "-", "*", "//", "%", "/"]), numbers), max_size=5)


def spelled(first: str, rest: list[tuple[str, str]]) -> str:
    return " ".join([first, *(f"{operator} {operand}" for operator, operand in rest)])


sums = st.builds(spelled, numbers, arithmetic)
tests = st.builds(lambda a, o, b: f"{a} {o} {b}", sums, st.sampled_from(["<", ">=", "==", "!="]), sums)
truths = st.one_of(
    st.sampled_from(["p", "q", "not p", "not q", "not not p"]), tests, tests.map(lambda t: f"not {t}")
)
logic = st.builds(spelled, truths, st.lists(st.tuples(st.sampled_from(["and", "or"]), truths), max_size=4))
choices = st.builds(lambda a, c, b: f"{a} if {c} else {b}", logic, logic, logic)


@settings(max_examples=300)
@given(sums | logic | choices)
def test_what_python_also_understands_means_the_same(text: str) -> None:
    try:
        wanted = eval(text, {}, dict(ROW))
    except ZeroDivisionError:
        return
    found = value(text)
    if isinstance(wanted, bool) or isinstance(found, bool):
        assert found is wanted
    else:
        assert found == pytest.approx(wanted, rel=1e-12)


words = st.sampled_from(
    [
        *SCHEMA.names,
        *KEYWORDS,
        *FUNCTIONS,
        *HINTS,
        *"()[],.+-*/%<>'\"`",
        "==",
        "//",
        "'x'",
        "1",
        "2.5",
        "1e3",
        "-",
    ]
)


@settings(max_examples=600)
@given(
    st.text(max_size=60)
    | st.lists(words, max_size=14).map(" ".join)
    | st.lists(words, max_size=14).map("".join)
)
def test_no_text_raises_anything_else(text: str) -> None:
    caught: ExpressionError | None = None
    try:
        expression = parse_expression(text, SCHEMA)
    except ExpressionError as error:
        caught = error
    else:
        for count in (0, 1, 3):
            row: dict[str, Any] = {name: None for name in SCHEMA.names if SCHEMA[name].type.nullable}
            row |= {"i": 1, "small": 2, "f": 0.5, "s": "x", "b": True, "t": "2013-01-01T05:17:00"}
            assert len(expression.evaluate(Batch.of(SCHEMA, [row] * count))) == count
    if caught is not None:
        assert 1 <= caught.column <= len(text) + 1
        assert f"column {caught.column}" in caught.message


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000, "-" * 4000 + "1", "not " * 1000 + "b", "i" + " + i" * 1000, "i" * 5000, "9" * 4000,
        "1e" + "9" * 4000, "x[" * 1000, "[" * 1000, "'" * 4001, "`" * 4001, "abs(" * 900, "b if " * 800,
        "b if b else " * 300, "s." * 2000 + "s", "\x00", "\ud800", "²", "٣", "٣ + 1", "1__0", "0x10", "1.", "..", ".",
        "i in []", "i in [1", "f()", "f(,)", "abs(,)", "i is", "i not", "x[0", "i if", "i if b", "i if b else",
    ],
)  # fmt: skip
def test_nasty_texts(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse_expression(text, SCHEMA)


def test_limits_let_through_what_is_within() -> None:
    assert parse("+".join(["1"] * MAX_DEPTH)).depth == MAX_DEPTH
    assert value(" or ".join(["q"] * 500) + " or p") is True
    assert value("a in [" + ",".join(str(n) for n in range(900)) + "]") is True
    with pytest.raises(ExpressionError, match=f"{MAX_LIST_ITEMS} are allowed"):
        value("a in [" + ",".join(["1"] * (MAX_LIST_ITEMS + 1)) + "]")
    with pytest.raises(ExpressionError, match=f"{MAX_CHARACTERS} are allowed"):
        value("a" + " " * MAX_CHARACTERS)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("'it''s'", "it's"),
        ('"say ""yes"""', 'say "yes"'),
        (r"'a\n'", r"a\n"),
        ("`a` + 1", 8),
        ("10", 10),
        (".5e1", 5.0),
        ("-9223372036854775808", -(2**63)),
        ("18446744073709551615", 2**64 - 1),
        ("a\n  +\tb", 4),
        ("1 if q else 2 if q else 3", 3),
    ],
)
def test_literals_and_layout(text: str, wanted: object) -> None:
    assert value(text) == wanted


def test_fields_with_any_name_are_quoted() -> None:
    schema = Schema.of(**{"my field": "int64", "in": "int64", "a`b": "int64", "a.b": "int64"})
    batch = Batch.of(schema, [{"my field": 1, "in": 2, "a`b": 3, "a.b": 4}])
    expression = parse_expression("`my field` + `in` + `a.b` + `a``b`", schema)
    assert expression.evaluate(batch).tolist() == [10]
    assert expression.fields == {"my field", "in", "a.b", "a`b"}
