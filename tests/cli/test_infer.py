from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflow.cli.inference import common_type, schema_of_columns, schema_of_records
from dataflow.core.errors import ContractError
from tests.cli.project import call, make

PIPELINE = """
kind: Pipeline
name: hello
inputs: {readings: readings}
nodes:
  made: {use: transform.python, from: readings, with: {call: double.made}}
  last: {use: filter.when, from: made, with: {when: "true"}}
"""
ROWS = "sensor,value\na,1.5\nb,20\nc,-3\n"


def infer(
    folder: Path, code: str, *arguments: str, pipeline: str = PIPELINE, rows: str = ROWS
) -> tuple[str, str, int]:
    make(folder, pipeline, pipelines__hello__double_py=code)
    (folder / "sample.csv").write_text(rows)
    result = call(folder, "infer", "made", "--sample", str(folder / "sample.csv"), *arguments)
    return result.stdout, result.stderr, result.exit_code


def test_what_lint_hints_at_makes_the_project_lint(tmp_path: Path) -> None:
    out, err, _ = infer(
        tmp_path, "def made(row):\n    return {'twice': row['value'] * 2, 'name': row['sensor']}\n"
    )
    assert "see `dataflow infer made --sample FILE`" in call(tmp_path, "lint").output
    assert out == "out:\n  twice: float64\n  name: string\n"
    assert err == "# node 'made' of pipeline 'hello', seen in 3 records\n"
    block = "\n".join(f"    {line}" for line in out.splitlines())
    made = PIPELINE.replace(
        "  made: {use: transform.python, from: readings, with: {call: double.made}}",
        "  made:\n    use: transform.python\n    from: readings\n    with: {call: double.made}\n" + block,
    )
    (tmp_path / "pipelines/hello/pipeline.yaml").write_text(made)
    assert call(tmp_path, "lint").exit_code == 0


def test_rows_that_are_dropped_fail_or_become_many(tmp_path: Path) -> None:
    code = """
from dataflow.sdk import Drop

def made(row):
    if row["sensor"] == "a":
        raise Drop("no a")
    if row["sensor"] == "b":
        raise KeyError("nothing")
    return [{"n": 1, "x": None}, {"n": 2.5, "x": None}]
"""
    out, err, code_ = infer(tmp_path, code)
    assert code_ == 0
    assert out == "out:\n  n: float64\n  # x: only null was seen; give it a type that ends in ?\n"
    assert err == (
        "record 2 failed: KeyError: 'nothing'\n"
        "# node 'made' of pipeline 'hello', seen in 3 records, 1 dropped, 1 failed\n"
    )


def test_nothing_was_returned(tmp_path: Path) -> None:
    out, err, code = infer(tmp_path, "def made(row):\n    return None\n")
    assert (out, code) == ("", 1)
    assert "node 'made' returned no record for 3 of the sample: 0 failed, 3 were dropped" in err


def test_async_functions_and_contexts(tmp_path: Path) -> None:
    code = "async def made(row, context):\n    return {'id': context.id, 'tries': context.attempt}\n"
    assert infer(tmp_path, code)[0] == "out:\n  id: string\n  tries: int64\n"


def test_classes_with_a_life(tmp_path: Path) -> None:
    code = """
class made:
    def __init__(self, factor):
        self.factor = factor
    def open(self):
        self.opened = True
    def process(self, row):
        return {"x": row["value"] * self.factor, "opened": self.opened}
    def close(self):
        print("closed")
"""
    pipeline = PIPELINE.replace("call: double.made", "call: double.made, arguments: {factor: 2}")
    out, _, _ = infer(tmp_path, code, pipeline=pipeline)
    assert out == "closed\nout:\n  x: float64\n  opened: bool\n"


def test_array_wise(tmp_path: Path) -> None:
    code = """
import numpy as np
from dataflow.sdk import Batch

def made(batch: Batch):
    return {"x": np.zeros((len(batch), 4), dtype=np.float32), "name": batch["sensor"], "n": np.arange(len(batch))}
"""
    assert infer(tmp_path, code)[0] == "out:\n  x: float32[4]\n  name: string\n  n: int64\n"


def test_array_wise_with_out(tmp_path: Path) -> None:
    code = """
import numpy as np
from dataflow.sdk import Batch, Out

def made(batch: Batch, out: Out):
    out.emit({"y": batch["value"][1:].astype(np.float16)}, rows=np.array([1, 2]))
    out.drop(np.array([0]), "first")
"""
    out, err, _ = infer(tmp_path, code)
    assert out == "out:\n  y: float16\n"
    assert "1 dropped" in err


def test_the_sample_is_held_to_the_contract(tmp_path: Path) -> None:
    _, err, code = infer(tmp_path, "def made(row):\n    return row\n", rows="sensor,value\na,high\n")
    assert code == 1
    assert "sample.csv:2: field 'value'" in err
    assert "the sample holds records of 'readings'" in err


def test_names(tmp_path: Path) -> None:
    infer(tmp_path, "def made(row):\n    return row\n")
    sample = ("--sample", str(tmp_path / "sample.csv"))
    assert (
        "no pipeline has a node 'mad' (did you mean 'made'?)"
        in call(tmp_path, "infer", "mad", *sample).stderr
    )
    assert "its contract follows from its settings" in call(tmp_path, "infer", "last", *sample).stderr
    assert "no pipeline 'x'" in call(tmp_path, "infer", "made", "--pipeline", "x", *sample).stderr
    other = PIPELINE.replace("name: hello", "name: other")
    make(
        tmp_path,
        pipelines__hello__other_yaml=other,
        pipeline=PIPELINE,
        pipelines__hello__double_py="def made(row):\n    return row\n",
    )
    assert (
        "pipelines other, hello have a node 'made' (--pipeline NAME)"
        in call(tmp_path, "infer", "made", *sample).stderr
    )
    assert call(tmp_path, "infer", "made", "--pipeline", "other", *sample).exit_code == 0


# ---------------------------------------------------------------- types


@dataclass
class Point:
    x: float
    tag: str


Pair = namedtuple("Pair", ["a", "b"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], "int64"),
        ([True], "bool"),
        ([1, 2.5, None], "float64?"),
        (["a"], "string"),
        ([b"a"], "bytes"),
        ([datetime(2024, 1, 1, tzinfo=UTC)], "timestamp"),
        ([np.datetime64("2024-01-01"), np.datetime64("NaT")], "timestamp?"),
        ([date(2024, 1, 1)], "date"),
        ([Decimal("1.50"), Decimal(100)], "decimal(5,2)"),
        ([Decimal("1E+3")], "decimal(4,0)"),
        ([np.float32(1), np.float16(2)], "float32"),
        ([np.uint64(1), np.int8(2)], "float64"),
        ([np.zeros((2, 3), np.uint8), np.zeros((2, 5), np.uint8)], "uint8[2,?]"),
        ([[1, 2], [], [None]], "list<int64?>"),
        ([[[1.0]], [[2]]], "list<list<float64>>"),
        ([{"a": 1}, {"a": 2, "b": "x"}], "record<a: int64, b: string?>"),
        ([{"a": None}, {"a": [None, {"b": 1}]}], "record<a: list<record<b: int64>?>?>"),
        ([Point(1.0, "a")], "record<x: float64, tag: string>"),
        ([Pair(1, "b")], "record<a: int64, b: string>"),
    ],
)
def test_types(values: list[Any], expected: str) -> None:
    found = common_type(values)
    assert found is not None
    assert found.describe() == expected


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"a": 1}, {"a": "x"}], "field 'a': it is int64 in one record and string in another"),
        ([{"a": True}, {"a": 1}], "field 'a': it is bool in one record and int64 in another"),
        ([{"a": [1]}, {"a": 1}], "field 'a': it is list<int64> in one record and int64 in another"),
        ([{"a": [[], []]}], "field 'a': only empty lists"),
        ([{"a": object}], "field 'a': no field type for <class 'object'> (type)"),
        ([{"a": {"b": None}}], "field 'a': only null was seen in 'b' of a record"),
        (
            [{"a": np.zeros(2)}, {"a": np.zeros((2, 2))}],
            "field 'a': it is float64[2] in one record and float64[2,2]",
        ),
    ],
)
def test_values_without_a_common_type(records: list[Mapping[str, Any]], message: str) -> None:
    with pytest.raises(ContractError) as caught:
        schema_of_records(records)
    assert caught.value.message.startswith(message)


def test_columns_of_all_sorts() -> None:
    found = schema_of_columns(
        {
            "a": np.zeros((3, 2), np.float32),
            "b": ["x", None, "y"],
            "c": np.array(["2024-01-01"] * 3, dtype="datetime64[us]"),
            "d": [None] * 3,
        }
    )
    assert found.schema.describe() == "a: float32[2], b: string?, c: timestamp"
    assert found.unknown == ("d",)
