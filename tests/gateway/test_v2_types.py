"""The reference page says what the table in code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dataflow.core.schema import KINDS, FieldType, Schema
from dataflow.gateway.v2_types import datatype_of, fits

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "v2-types.md"


def test_the_page_names_every_type_and_its_datatype() -> None:
    said = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    made = {
        kind: datatype_of(FieldType(kind, item=FieldType("bool"), fields=Schema.of(a="bool").fields))
        for kind in KINDS
    }
    assert said == made


@pytest.mark.parametrize(
    ("kind", "datatype", "taken"),
    [
        ("int64", "INT32", True),
        ("int64", "UINT32", True),
        ("int64", "UINT64", False),
        ("float32", "FP64", False),
        ("float64", "FP32", True),
        ("float64", "INT32", True),
        ("float32", "INT64", False),
        ("int8", "BOOL", False),
        ("bool", "INT8", False),
        ("timestamp", "INT64", True),
        ("timestamp", "BYTES", True),
        ("timestamp", "FP64", False),
        ("string", "INT8", False),
        ("int8", "BYTES", False),
    ],
)
def test_only_what_loses_nothing_is_taken(kind: str, datatype: str, taken: bool) -> None:
    assert fits(FieldType(kind), datatype) is taken
