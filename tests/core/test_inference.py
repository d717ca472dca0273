"""Contracts from samples: of values, and of functions run over them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.codecs.values import coerce_columns
from dataflow.core.batch import Batch
from dataflow.core.errors import ContractError, NodeError
from dataflow.core.inference import infer_schema, run_sample, schema_to_yaml_fields
from dataflow.core.schema import Schema
from dataflow.spec.fields import parse_type


class Point(NamedTuple):
    east: float
    north: int


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], "int64"),
        ([1, 2.5], "float64"),
        ([True], "bool"),
        (["a", None], "string?"),
        ([b"x"], "bytes"),
        ([datetime(2024, 1, 1, tzinfo=UTC)], "timestamp"),
        ([date(2024, 1, 1)], "date"),
        ([Decimal("1.25"), Decimal(3)], "decimal(38,2)"),
        ([np.float32(1)], "float32"),
        ([np.float32(1), 1.5], "float64"),
        ([np.int8(1), np.int16(3)], "int16"),
        ([np.bool_(True)], "bool"),
        ([np.float64(1)], "float64"),
        ([np.datetime64("2024-01-01T00:00")], "timestamp"),
        ([np.datetime64("2024-01-01")], "date"),
        ([np.array(3, dtype="uint8")], "uint8"),
        ([np.zeros((2, 3), "float32")] * 2, "float32[2,3]"),
        ([np.zeros((2, 3)), np.zeros((4, 3))], "float64[?,3]"),
        ([np.zeros(0)], "float64[?]"),
        ([["a"], [], ["b"]], "list<string>"),
        ([[1, None], [2.5]], "list<float64?>"),
        ([{"a": 1}, {"a": 2, "b": "x"}], "record<a: int64, b: string?>"),
        ([Point(1.0, 2)], "record<east: float64, north: int64>"),
    ],
)
def test_types(values: list[Any], expected: str) -> None:
    schema = infer_schema([{"x": value} for value in values])
    assert schema_to_yaml_fields(schema) == {"x": expected}
    assert parse_type(expected) == schema["x"].type


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None], "field 'x' has no value in the sample"),
        ([[], []], r"field 'x\[\]' has no value in the sample"),
        ([1, "a"], r"field 'x' is of several types: int64 \(1\) and string \('a'\)"),
        ([True, 1], "several types"),
        ([object()], "field 'x' is a object, which no field can hold"),
        ([{"y": [1, "b"]}], r"field 'x\.y\[\]' is of several types"),
        ([np.zeros(2), np.zeros((2, 2))], r"arrays of \[1, 2\] dimensions"),
        ([np.array(["a"])], "has arrays of"),
    ],
)
def test_what_has_no_type(values: list[Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        infer_schema([{"x": value} for value in values])


VALUES = st.recursive(
    st.one_of(
        st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(), st.binary(), st.booleans()
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=1),
        st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, min_size=1),
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["p", "q", "r"]), VALUES, min_size=1))
def test_a_record_meets_its_own_contract(record: dict[str, Any]) -> None:
    schema = infer_schema([record, {}])
    cells = {name: [record[name], None] for name in schema.names}
    assert coerce_columns(schema, cells, 2, form="python").failed == []


SCHEMA = Schema.of(x="float64", s="string")
BATCH = Batch.of(SCHEMA, [{"x": 1.0, "s": "a"}, {"x": 2.0, "s": "b"}])


class TestRunning:
    @pytest.fixture
    def infer(self, tmp_path: Path) -> Any:
        def run(text: str, **arguments: Any) -> tuple[str, int, list[tuple[int, str]]]:
            (tmp_path / "code.py").write_text("import numpy as np\nfrom dataflow.sdk import *\n" + text)
            sample = run_sample(tmp_path, "code.f", BATCH, arguments)
            described = infer_schema(sample.records).describe() if sample.records else ""
            return described, sample.dropped, sample.failed

        return run

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("def f(row): return {'y': row['x'], 't': np.zeros(3, 'float32')}", "y: float64, t: float32[3]"),
            ("async def f(row): return {'y': row['s']}", "y: string"),
            ("def f(row): yield {'y': 1}; yield {'y': 2}", "y: int64"),
            ("async def f(row): yield {'y': 1}", "y: int64"),
            ("def f(row, context): return {'y': context.attempt}", "y: int64"),
            (
                "def f(batch: Batch): return {'y': batch['x'].astype('float32'), 's': ['p', 'q']}",
                "y: float32, s: string",
            ),
            ("def f(batch: Batch, out: Out): out.emit({'y': batch['x']})", "y: float64"),
            (
                "class f:\n    async def open(self): self.n = 1\n    def process(self, row): return {'n': self.n}",
                "n: int64",
            ),
        ],
    )
    def test_forms(self, infer: Any, text: str, expected: str) -> None:
        assert infer(text) == (expected, 0, [])

    def test_arguments(self, infer: Any) -> None:
        assert infer("def f(row, as_text): return {'y': as_text}", as_text="t")[0] == "y: string"
        assert infer("class f:\n    def __init__(self, n): self.n = n\n    def __call__(self, row): return {'n': self.n}",
                     n=1)[0] == "n: int64"  # fmt: skip

    def test_what_is_lost_is_counted(self, infer: Any) -> None:
        text = "def f(row):\n    if row['x'] == 1: raise Drop('one')\n    raise ValueError('two')"
        assert infer(text) == ("", 1, [(1, "ValueError: two")])

    def test_a_batch_that_fails(self, infer: Any) -> None:
        with pytest.raises(NodeError, match=r"code\.f failed on the sample: ValueError: no"):
            infer("def f(batch: Batch): raise ValueError('no')")
