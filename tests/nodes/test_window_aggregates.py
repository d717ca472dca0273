"""Aggregates of windows: their types, their values, and a user's own."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dataflow.core.errors import ContractError, NodeError
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.testing import contract_of
from nodes._window_sketches import EXACT_VALUES, Distinct, Quantile
from nodes.window import WindowCount, WindowHopping, WindowSession, WindowTumbling
from tests.nodes.keyed import KeyedRun

MONEY = FieldType("decimal", precision=10, scale=2)
INPUT = Schema((
    Field("at", FieldType("timestamp"), event_time=True),
    Field("whole", FieldType("int32")),
    Field("real", FieldType("float32")),
    Field("maybe", FieldType("float64", nullable=True)),
    Field("money", MONEY, unit="EUR"),
    Field("text", FieldType("string", nullable=True)),
    Field("day", FieldType("date")),
    Field("image", FieldType("uint8", (2, 2))),
    Field("flag", FieldType("bool")),
))  # fmt: skip


@pytest.fixture(autouse=True)
def path_as_before() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


def moment(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC).replace(tzinfo=None)


def record(second: int = 1, **fields: Any) -> tuple[bytes, dict[str, Any]]:
    plain = {
        "at": moment(second), "whole": 1, "real": 1.0, "maybe": None,
        "money": Decimal("1.00"), "text": None, "day": date(2024, 5, 1), "image": np.zeros((2, 2), np.uint8), "flag": True,
    }  # fmt: skip
    return b"k", {**plain, **fields}


def result(
    aggregate: Mapping[str, Any], records: Sequence[Any], cuts: int = 2, **options: Any
) -> dict[str, Any]:
    """The result of one window, with a restart in the middle."""
    with KeyedRun(WindowTumbling, INPUT, {"size": "1h", "aggregate": aggregate}, **options) as node:
        for start in range(0, len(records), cuts):
            node.give(records[start : start + cuts])
            node.restart()
        node.drain()
    (made,) = node.out
    return {name: value for name, value in made.items() if not name.startswith("window_")}


def contract(target: type[Any] = WindowTumbling, **given: Any) -> Schema:
    options = {name: given.pop(name) for name in ("keep", "out", "folder", "inputs") if name in given}
    found = {"size": "1m", "aggregate": {"n": "count"}, **given}
    if target in (WindowSession, WindowCount):
        del found["size"]
    return contract_of(target, options.pop("inputs", INPUT), found, **options)["out"]


class TestContract:
    def test_types_follow_from_the_fields(self) -> None:
        texts = {
            "a": "count", "b": "sum(whole)", "c": "sum(real)", "d": "sum(money)", "e": "mean(money)", "f": "min(real)",
            "g": "max(text)", "h": "quantile(maybe, 0.5)", "i": "distinct(text)", "j": "first(flag)", "k": "mean(maybe)",
            "l": "count(image)", "m": "max(day)",
        }  # fmt: skip
        found = contract(aggregate=texts, keep=["text"])
        assert [f"{f.name} {f.type.describe()}" for f in found] == [
            "window_start timestamp", "window_end timestamp", "a int64", "b int64", "c float64", "d decimal(38,2)",
            "e float64", "f float32", "g string?", "h float64?", "i int64", "j bool", "k float64?", "l int64", "m date",
            "text string?",
        ]  # fmt: skip
        assert [f.name for f in found if f.event_time] == ["window_start"]

    def test_the_time_of_a_session_is_its_end(self) -> None:
        assert [f.name for f in contract(WindowSession, gap="1m") if f.event_time] == ["window_end"]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"aggregate": {"n": "sum(wole)"}}, "no field 'wole' in the input .*whole"),
            ({"aggregate": {"n": "sum(text)"}}, "sum of 'text', which is string"),
            ({"aggregate": {"n": "max(image)"}}, "max of 'image', which is uint8"),
            ({"aggregate": {"n": "mean(flag)"}}, "mean of 'flag'"),
            ({"aggregate": {"window_end": "count"}}, "is there already"),
            ({"keep": ["n"]}, "is a field of the result already"),
            ({"keep": ["image"]}, "first of 'image'"),
            ({"keep": ["txt"]}, "no field 'txt'"),
            ({"out": Schema.of(n="int64")}, "follows from the settings"),
            ({"time": "day"}, "'day' is date"),
            ({"clock": "event", "inputs": Schema.of(x="int64")}, "no event-time field in the input"),
            ({"delay": "1s", "inputs": Schema.of(x="int64")}, "there is no event time"),
            (
                {"inputs": {"a": INPUT, "b": Schema.of(x="int64")}},
                "no event-time field in input 'b'",
            ),
            (
                {"aggregate": {"n": "sum(whole)"}, "inputs": {"a": INPUT, "b": INPUT.select(["at"])}},
                "not of one type in all inputs: see input 'b'",
            ),
            ({"late": "port", "inputs": {"a": INPUT, "b": INPUT.select(["at"])}}, "different contracts"),
        ],
    )
    def test_what_does_not_fit(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ContractError, match=message):
            contract(**given)

    @pytest.mark.parametrize(
        ("target", "given", "message"),
        [
            (WindowTumbling, {"aggregate": {"n": "cont"}}, "unknown aggregate 'cont' .*count"),
            (WindowTumbling, {"aggregate": {"n": "sum"}}, "'sum' needs a field"),
            (WindowTumbling, {"aggregate": {"n": "sum(a, 1)"}}, "takes one field"),
            (WindowTumbling, {"aggregate": {"n": "quantile(a)"}}, "needs a share between 0 and 1"),
            (WindowTumbling, {"aggregate": {"n": "quantile(a, 95)"}}, "needs a share between 0 and 1"),
            (WindowTumbling, {"aggregate": {"n": "a + b"}}, "is no aggregate"),
            (WindowTumbling, {"aggregate": {}}, "at least 1"),
            (WindowTumbling, {"size": "0s"}, "duration of zero"),
            (WindowTumbling, {"size": 5}, "a duration is needed"),
            (WindowTumbling, {"clock": "processing", "delay": "1s"}, "has no effect with clock: processing"),
            (WindowHopping, {"every": "2m"}, "longer than the size"),
            (WindowHopping, {"every": "1ms"}, "more than 1000 windows"),
            (WindowCount, {"count": 0}, "greater than or equal to 1"),
            (WindowCount, {"count": 2, "delay": "1s"}, "has no watermark"),
        ],
    )
    def test_settings_that_cannot_be(self, target: type[Any], given: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            contract(target, **given)


class TestValues:
    def test_null_and_nan_are_left_out(self) -> None:
        made = result(
            {"n": "count", "of": "count(maybe)", "sum": "sum(real)", "mean": "mean(maybe)", "least": "min(real)",
             "median": "quantile(maybe, 0.5)", "last": "last(maybe)"},
            [record(maybe=None, real=2.0), record(maybe=math.nan, real=math.nan), record(maybe=3.0, real=1.0),
             record(maybe=5.0, real=math.nan), record(maybe=None)],
        )  # fmt: skip
        assert made == {"n": 5, "of": 2, "sum": 4.0, "mean": 4.0, "least": 1.0, "median": 4.0, "last": 5.0}

    def test_of_nothing(self) -> None:
        texts = {
            "sum": "sum(maybe)",
            "mean": "mean(maybe)",
            "max": "max(text)",
            "q": "quantile(maybe, 0.5)",
            "d": "distinct(text)",
        }
        assert result(texts, [record()]) == {"sum": 0.0, "mean": None, "max": None, "q": None, "d": 0}
        found = result({"real": "max(real)", "mean": "mean(real)"}, [record(real=math.nan)])
        assert all(math.isnan(value) for value in found.values())

    def test_decimals_are_exact(self) -> None:
        texts = {
            "sum": "sum(money)",
            "mean": "mean(money)",
            "most": "max(money)",
            "different": "distinct(money)",
        }
        records = [record(money=Decimal(m)) for m in ("99999999.99", "0.01", "0.10", "0.1")]
        found = result(texts, records)
        assert found == {
            "sum": Decimal("100000000.20"),
            "mean": pytest.approx(25000000.05),
            "most": Decimal("99999999.99"),
            "different": 3,
        }

    def test_dates_and_times(self) -> None:
        found = result({"first": "min(at)", "day": "max(day)"}, [record(9, day=date(2023, 1, 1)), record(7)])
        assert found == {"first": moment(7), "day": date(2024, 5, 1)}

    def test_a_record_that_would_leave_the_type_fails_alone(self) -> None:
        schema = Schema(
            (Field("x", FieldType("int64")), Field("at", FieldType("timestamp"), event_time=True))
        )
        at = moment(0)
        given = {
            "size": "10s",
            "every": "5s",
            "aggregate": {"n": "count", "sum": "sum(x)", "different": "distinct(x)"},
        }
        with KeyedRun(WindowHopping, schema, given) as node:
            node.give([(b"k", {"x": x, "at": at}) for x in ((1 << 63) - 1, 1, -5)])
            node.drain()
        assert [made["n"] for made in node.out] == [2, 2]
        assert [made["different"] for made in node.out] == [2, 2]
        assert [made["sum"] for made in node.out] == [(1 << 63) - 6] * 2
        assert [(row, error) for row, error, _ in node.ends.failed] == [(1, "Fail")]

    def test_kept_fields_are_those_of_the_first_record(self) -> None:
        records = [record(text="a"), record(text="b")]
        assert result({"n": "count"}, records, cuts=1, keep=["text", "day"]) == {
            "n": 2, "text": "a", "day": date(2024, 5, 1),
        }  # fmt: skip


class TestSketches:
    @settings(max_examples=40, deadline=None)
    @given(
        values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=EXACT_VALUES - 1),
        share=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
    )
    def test_few_values_have_exact_quantiles(self, values: list[float], share: float) -> None:
        sketch = Quantile(share)
        state = sketch.start()
        for value in values:
            state = sketch.add(state, value)
        found = sketch.result(state)
        assert found == pytest.approx(float(np.quantile(values, share)), abs=1e-6)

    def test_many_values(self) -> None:
        values = np.random.default_rng(1).normal(size=50_000)
        for share in (0.01, 0.5, 0.99):
            sketch = Quantile(share)
            state = sketch.start()
            for value in values.tolist():
                state = sketch.add(state, value)
            found = sketch.result(state)
            assert found is not None
            assert abs(float((values <= found).mean()) - share) < 0.01

    def test_merged_quantiles(self) -> None:
        values = np.random.default_rng(2).normal(size=10_000).tolist()
        sketch = Quantile(0.5)
        states = [sketch.start() for _ in range(4)]
        for index, value in enumerate(values):
            states[index % 4] = sketch.add(states[index % 4], value)
        merged = states[0]
        for state in states[1:]:
            merged = sketch.merge(merged, state)
        found = sketch.result(merged)
        assert found is not None
        assert abs(sum(v <= found for v in values) / len(values) - 0.5) < 0.01

    def test_distinct_values(self) -> None:
        sketch = Distinct()
        state, others = sketch.start(), sketch.start()
        for number in range(20_000):
            state = sketch.unpack(sketch.pack(sketch.add(state, f"visitor {number}")))
            others = sketch.add(others, f"visitor {number + 10_000}")
        assert sketch.result(state) == pytest.approx(20_000, rel=0.05)
        assert sketch.result(sketch.merge(state, others)) == pytest.approx(30_000, rel=0.05)

    def test_equal_values_are_one(self) -> None:
        sketch = Distinct()
        state = sketch.start()
        for value in (0.0, -0.0, Decimal("1.10"), Decimal("1.1"), b"\x00", b"\x00", (1 << 64) - 1, True):
            state = sketch.add(state, value)
        assert sketch.result(state) == 5

    @settings(max_examples=15, deadline=None)
    @given(
        values=st.lists(st.integers(0, 5_000), min_size=1, max_size=900),
        cuts=st.lists(st.integers(1, 200), min_size=1, max_size=20),
    )
    def test_how_records_were_cut_does_not_matter(self, values: list[int], cuts: list[int]) -> None:
        schema = Schema(
            (Field("x", FieldType("int64")), Field("at", FieldType("timestamp"), event_time=True))
        )
        records = [(b"k", {"x": x, "at": moment(0)}) for x in values]
        found = []
        for sizes in ([len(values)], cuts):
            given = {"size": "1h", "aggregate": {"q": "quantile(x, 0.9)", "d": "distinct(x)", "m": "mean(x)"}}
            with KeyedRun(WindowTumbling, schema, given) as node:
                left, number = records, 0
                while left:
                    size = sizes[number % len(sizes)]
                    node.give(left[:size])
                    node.restart()
                    left, number = left[size:], number + 1
                node.drain()
                found.append(node.out)
        assert found[0] == found[1]


OWN = """
class Longest:
    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
    def start(self):
        return {"text": "", "seen": []}
    def add(self, value, row):
        value["seen"].append(row["whole"])
        if row["whole"] < 0:
            raise ValueError("below zero")
        if len(row["text"] or "") > len(value["text"]):
            value["text"] = row["text"]
        return value
    def merge(self, one, other):
        seen = one["seen"] + other["seen"]
        return {"text": max(one["text"], other["text"], key=len), "seen": seen}
    def result(self, value):
        if len(value["seen"]) > self.limit:
            return None
        return {"a": "bad"}[value["text"]] if value["text"] == "?" else value["text"] + str(len(value["seen"]))
"""


class TestOwn:
    OUT = Schema.of(longest="string")
    SETTINGS: dict[str, Any] = {"n": "count", "longest": {"call": "own.Longest"}}  # noqa: RUF012

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "own.py").write_text(dedent(OWN))
        sys.modules.pop("own", None)
        return tmp_path

    def test_it_is_called_per_record(self, folder: Path) -> None:
        records = [record(text="a"), record(text="abc"), record(text="ab")]
        found = result(self.SETTINGS, records, out=self.OUT, folder=folder)
        assert found == {"n": 3, "longest": "abc3"}

    def test_a_record_that_it_refuses_changes_nothing(self, folder: Path) -> None:
        with KeyedRun(
            WindowTumbling, INPUT, {"size": "1h", "aggregate": self.SETTINGS}, out=self.OUT, folder=folder
        ) as node:
            node.give([record(text="a"), record(whole=-1, text="abc")])
            node.drain()
        assert node.out[0]["longest"] == "a1"
        assert node.out[0]["n"] == 1
        assert node.ends.failed == [(1, "ValueError", "below zero")]

    def test_sessions_merge_it(self, folder: Path) -> None:
        given = {"gap": "10s", "delay": "1m", "aggregate": self.SETTINGS}
        with KeyedRun(WindowSession, INPUT, given, out=self.OUT, folder=folder) as node:
            node.give([record(0, text="a"), record(15, text="abc"), record(8, text="ab")])
            node.drain()
        assert [made["longest"] for made in node.out] == ["abc3"]

    @pytest.mark.parametrize("emit", ["close", "update"])
    def test_a_result_that_cannot_be_given_is_told(self, folder: Path, emit: str) -> None:
        given = {
            "size": "1h",
            "emit": emit,
            "aggregate": {"longest": {"call": "own.Longest", "arguments": {"limit": 1}}},
        }
        with KeyedRun(WindowTumbling, INPUT, given, out=self.OUT, folder=folder) as node:
            node.give([record(text="?"), record(3600, text="b"), record(3600, text="c")])
            node.drain()
        if emit == "close":
            errors = [(end.error, end.row.key) for end in node.ends.ended]
            assert errors == [("KeyError", b"k"), ("ContractError", b"k")]
            assert node.out == []
        else:
            assert [end[:2] for end in node.ends.failed] == [(0, "KeyError"), (2, "ContractError")]
            assert [made["longest"] for made in node.out] == ["b1"]

    def test_its_type_is_declared(self, folder: Path) -> None:
        with pytest.raises(ContractError, match=r"the type of 'longest' is not known .*out:"):
            contract(aggregate=self.SETTINGS, folder=folder)
        assert contract(aggregate=self.SETTINGS, folder=folder, out=self.OUT)["longest"].type.kind == "string"

    def test_what_it_lacks(self, folder: Path) -> None:
        (folder / "own.py").write_text("class Longest:\n    def add(self, value, row): ...\n")
        with pytest.raises(ContractError, match="has no method 'start'"):
            contract(aggregate=self.SETTINGS, folder=folder, out=self.OUT)
        (folder / "own.py").write_text("class Longest: ...\n")
        with pytest.raises(ContractError, match="has no method 'add'"):
            contract(aggregate=self.SETTINGS, folder=folder, out=self.OUT)

    def test_a_constructor_that_fails(self, folder: Path) -> None:
        given = {"longest": {"call": "own.Longest", "arguments": {"nothing": 1}}}
        with pytest.raises(NodeError, match=r"own\.Longest: constructing failed: TypeError"):
            result(given, [record()], out=self.OUT, folder=folder)
