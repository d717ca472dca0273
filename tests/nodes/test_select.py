from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pytest

from dataflow.core.batch import Batch
from dataflow.core.errors import ContractError
from dataflow.core.outcomes import Out
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.testing import build_node, contract_of, run_node
from nodes.select import CASTS, TransformSelect

RAW = Schema(
    (
        Field("tail", FieldType("string"), doc="registration", privacy="identifier"),
        Field("at", FieldType("timestamp"), event_time=True),
        Field("distance", FieldType("string"), unit="mile"),
        Field("delay", FieldType("float64", nullable=True)),
        Field("image", FieldType("float32", (2,))),
    )
)
AT = datetime(2013, 1, 1, 5, 15)  # noqa: DTZ001  (columns are UTC)


def record(**changes: Any) -> dict[str, Any]:
    return {"tail": "N1", "at": AT, "distance": "1400", "delay": 2.5, "image": [1.0, 2.0], **changes}


def types(settings: dict[str, Any]) -> dict[str, str]:
    (schema,) = contract_of(TransformSelect, RAW, settings).values()
    return {field.name: field.type.describe() for field in schema}


def test_the_order_is_rename_cast_set_drop() -> None:
    settings = {
        "drop": ["image", "delay"],
        "set": {"far": "distance > 1000", "label": "concat(tailnum, '!')", "hour": "hour_of_day(at)"},
        "cast": {"distance": "float32"},
        "rename": {"tail": "tailnum"},
    }
    assert types(settings) == {
        "tailnum": "string", "at": "timestamp", "distance": "float32", "far": "bool", "label": "string",
        "hour": "int64",
    }  # fmt: skip
    result = run_node(TransformSelect, RAW, [record()], settings)
    assert result.out == [
        {"tailnum": "N1", "at": AT, "distance": 1400.0, "far": True, "label": "N1!", "hour": 5}
    ]


def test_nothing_asked_is_nothing_done() -> None:
    assert contract_of(TransformSelect, RAW, {}) == {"out": RAW}
    result = run_node(
        TransformSelect, RAW, [record(image=np.array([1, 2], np.float32))], {"keep": ["tail", "delay"]}
    )
    assert result.out == [{"tail": "N1", "delay": 2.5}]


def test_a_value_that_does_not_fit_fails_its_row_only() -> None:
    settings = {"cast": {"distance": "int16", "delay": "int8"}, "keep": ["distance", "delay"]}
    records = [
        record(), record(distance="far"), record(delay=None), record(delay=300.0), record(delay=float("nan")),
        record(distance="40000", delay=300.0),
    ]  # fmt: skip
    assert types(settings) == {"distance": "int16", "delay": "int8?"}
    result = run_node(TransformSelect, RAW, records, settings)
    assert result.out == [{"distance": 1400, "delay": 2}, {"distance": 1400, "delay": None}]
    assert result.parents["out"] == [0, 2]
    assert sorted(result.failed) == [
        (1, "distance: 'far' is no int16"),
        (3, "delay: 300.0 is no int8"),
        (4, "delay: nan is no int8"),
        (5, "distance: '40000' is no int16"),
    ]


def test_columns_meet_the_contract() -> None:
    settings = {
        "cast": {"distance": "int32", "image": "uint8", "delay": "string"},
        "set": {"n": 3, "r": 0.5, "ok": True, "s": "'EWR'", "late": "float(delay) > 1"},
    }
    node = build_node(TransformSelect, RAW, settings)
    (schema,) = contract_of(TransformSelect, RAW, settings).values()
    for records in ([record()], [record(delay=None), record(distance="x"), record()], [record(distance="x")]):
        batch = Batch.of(RAW, records)
        out = Out(batch, ["out"])
        node.process(batch, out)
        out.settle()
        assert len(out.failed) == sum(r["distance"] == "x" for r in records)
        for emission in out.emissions:
            assert tuple(emission.columns) == schema.names
            for field in schema:
                assert emission.columns[field.name].dtype == field.type.column_dtype
                assert emission.columns[field.name].shape[1:] == field.type.shape


def test_sets_see_the_fields_before_any_set() -> None:
    schema = Schema.of(a="int64", b="int64")
    settings = {"set": {"a": "b", "b": "a"}}
    assert run_node(TransformSelect, schema, [{"a": 1, "b": 2}], settings).out == [{"a": 2, "b": 1}]


def test_names_can_be_swapped() -> None:
    schema = Schema.of(a="int64", b="string")
    settings = {"rename": {"a": "b", "b": "a"}}
    assert run_node(TransformSelect, schema, [{"a": 1, "b": "x"}], settings).out == [{"b": 1, "a": "x"}]


def test_meaning_goes_along_and_privacy_is_inherited() -> None:
    settings = {
        "rename": {"tail": "tailnum"},
        "cast": {"distance": "float32", "at": "string"},
        "set": {"known": "tailnum is not null", "n": 1},
    }
    (schema,) = contract_of(TransformSelect, RAW, settings).values()
    assert (schema["tailnum"].doc, schema["tailnum"].privacy) == ("registration", "identifier")
    assert schema["distance"].unit == "mile"
    assert not schema["at"].event_time, "a text is no event time"
    assert (schema["known"].privacy, schema["n"].privacy) == ("identifier", "")


def test_a_private_value_is_not_in_the_reason() -> None:
    result = run_node(TransformSelect, RAW, [record(tail="N14228")], {"cast": {"tail": "int64"}})
    assert result.failed == [(0, "tail: the value is no int64")]


@pytest.mark.parametrize(
    ("settings", "path", "message", "hint"),
    [
        ({"rename": {"tial": "x"}}, ("with", "rename", "tial"), "no field 'tial'", "'tail'"),
        ({"rename": {"tail": "at"}}, ("with", "rename", "tail"), "two fields 'at'", "rename the other"),
        ({"rename": {"tail": ""}}, ("with", "rename", "tail"), "needs a name", ""),
        ({"cast": {"dist": "int8"}}, ("with", "cast", "dist"), "no field 'dist'", "distance"),
        ({"cast": {"delay": "flaot32"}}, ("with", "cast", "delay"), "'flaot32' is no type", "'float32'"),
        (
            {"cast": {"at": "int64"}},
            ("with", "cast", "at"),
            "timestamp cannot be cast to int64",
            "ts - timestamp",
        ),
        ({"cast": {"image": "string"}}, ("with", "cast", "image"), "float32[2] cannot be cast", ""),
        ({"set": {"x": "delai"}}, ("with", "set", "x"), "x: column 1, at 'delai'", "'delay'"),
        ({"set": {"x": "EWR"}}, ("with", "set", "x"), "no field 'EWR'", "needs quotes"),
        ({"set": {"x": "null"}}, ("with", "set", "x"), "null by itself", "float(null)"),
        ({"drop": ["tail", "tial"]}, ("with", "drop", 1), "drop: no field 'tial'", "'tail'"),
        ({"keep": ["tial"]}, ("with", "keep", 0), "keep: no field 'tial'", "'tail'"),
        ({"keep": ["tail"], "drop": ["at"]}, ("with", "drop"), "exclude each other", "leave one out"),
        ({"keep": []}, ("with", "keep"), "no field is left", ""),
    ],
)
def test_what_cannot_be_met_is_found_by_the_contract(
    settings: dict[str, Any], path: tuple[str | int, ...], message: str, hint: str
) -> None:
    with pytest.raises(ContractError) as caught:
        contract_of(TransformSelect, RAW, settings)
    assert caught.value.path == path
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("kind", CASTS)
def test_every_type_can_be_cast_to(kind: str) -> None:
    source = "timestamp" if kind in ("timestamp", "date", "string") else "int64"
    schema = Schema.of(a=source, b=FieldType(source, nullable=True))
    value: Any = AT if source == "timestamp" else 1
    result = run_node(
        TransformSelect,
        schema,
        [{"a": value, "b": None}, {"a": value, "b": value}],
        {"cast": {"a": kind, "b": kind}},
    )
    assert result.failed == []
    assert result.out[0]["b"] is None
    assert result.out[1]["a"] == result.out[1]["b"]


def test_a_field_of_any_name_can_be_cast() -> None:
    schema = Schema.of(**{"a`b c": "int64"})
    assert run_node(TransformSelect, schema, [{"a`b c": 1}], {"cast": {"a`b c": "string"}}).out == [
        {"a`b c": "1"}
    ]


def test_a_batch_that_stays_as_it_is_goes_on_with_its_wire_bytes() -> None:
    schema = Schema.of(a="int64", b="int64")
    batch = Batch.of(schema, [{"a": 1, "b": 2}, {"a": 3, "b": 4}])
    for settings, same in (
        ({"keep": ["a", "b"]}, True),
        ({"keep": ["b", "a"]}, False),
        ({"rename": {"a": "b", "b": "a"}}, False),
        ({"set": {"a": "a"}}, False),
    ):
        made = build_node(TransformSelect, schema, settings)
        out = Out(batch, ("out",))
        made.process(batch, out)
        assert (out.emissions[0].reuse is batch) is same, settings
