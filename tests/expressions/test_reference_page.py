"""docs/reference/expressions.md: every example is run, every function is there as it is documented in the code."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflow.core.batch import Batch, to_list
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.expressions import parse_expression
from dataflow.expressions.functions import FUNCTIONS
from dataflow.expressions.grammar import MAX_CHARACTERS, MAX_DEPTH, MAX_LIST_ITEMS, MAX_PATTERN_CHARACTERS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "expressions.md").read_text(encoding="utf-8")
SCHEMA = Schema.of(
    delay="float32",
    seats="int32",
    gate=FieldType("int32", nullable=True),
    origin="string",
    tailnum="string",
    cancelled="bool",
    sched_dep="timestamp",
    dep="timestamp",
    x=FieldType("float32", (3,)),
    tags=FieldType("list", item=FieldType("string")),
    plane=FieldType(
        "record", fields=(Field("maker", FieldType("string")), Field("year built", FieldType("int32")))
    ),
)
# | `expression` | type | `value` |, with two backticks around an expression that has one.
EXAMPLES = re.findall(r"^\| (?:`` ?(.+?) ``|`([^`]+)`) \| (\S+) \| `(.+)` \|$", PAGE, re.MULTILINE)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)


def record() -> dict[str, Any]:
    found = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    row: dict[str, Any] = json.loads(found.group(1))
    return (
        row
        | {name: moment(row[name]) for name in ("sched_dep", "dep")}
        | {"x": np.array(row["x"], np.float32)}
    )


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) >= 40


@pytest.mark.parametrize(("quoted", "plain", "described", "value"), EXAMPLES)
def test_example(quoted: str, plain: str, described: str, value: str) -> None:
    expression = parse_expression((quoted or plain).strip(), SCHEMA)
    assert expression.type.describe() == described
    wanted = json.loads(value)
    if expression.type.kind == "timestamp":
        wanted = moment(wanted)
    assert to_list(expression.evaluate(Batch.of(SCHEMA, [record()]))) == [wanted]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_documented(name: str) -> None:
    function = FUNCTIONS[name]
    assert f"| `{function.usage}` | {function.doc} |" in PAGE


def test_no_function_is_documented_that_is_none() -> None:
    lines = re.findall(r"^\| `([a-z_0-9]+)\(.*?\)` \| [^|]+ \|$", PAGE, re.MULTILINE)
    assert len(lines) == len(FUNCTIONS)
    assert set(lines) == set(FUNCTIONS)


def test_limits_are_those_of_the_code() -> None:
    for limit in (MAX_CHARACTERS, MAX_DEPTH, MAX_LIST_ITEMS, MAX_PATTERN_CHARACTERS):
        assert f"{limit:,}" in PAGE.split("## Limits")[1]
