from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from dataflow.codecs import codec_for
from dataflow.codecs.compatibility import check_compatible, unreadable
from dataflow.core.errors import CodecError, ContractError
from dataflow.core.schema import FieldType, Schema, column_of
from tests.codecs.strategies import SCHEMAS

CODECS = ["avro", "arrow", "json"]
OLD = Schema.of(carrier="string", delay="float32")


@given(schema=SCHEMAS)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_contract_is_compatible_with_itself(schema: Schema) -> None:
    for codec in CODECS:
        assert check_compatible(schema, schema, codec) == []


@pytest.mark.parametrize("codec", CODECS)
def test_a_nullable_field_may_come_and_go(codec: str) -> None:
    new = Schema.of(note=FieldType("string", nullable=True), carrier="string", delay="float32")
    assert check_compatible(OLD, new, codec) == []
    assert check_compatible(new, OLD, codec) == []


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("new", "parts"),
    [
        (Schema.of(carrier="string"), ["'delay'", "old contract", "nullable"]),
        (Schema.of(carrier="string", delay="float32", x="int8"), ["'x'", "new contract", "nullable"]),
        (Schema.of(carrier="string", delay="float64"), ["'delay'", "float64", "float32", "old contract"]),
        (
            Schema.of(carrier=FieldType("string", nullable=True), delay="float32"),
            ["'carrier'", "null", "old contract"],
        ),
        (Schema.of(carrier="string", delay=FieldType("float32", (2,))), ["'delay'", "float32[2]"]),
    ],
)
def test_other_changes_are_reported_one_way_at_least(codec: str, new: Schema, parts: list[str]) -> None:
    problems = check_compatible(OLD, new, codec)
    assert problems
    for part in parts:
        assert any(part in problem for problem in problems), problems


def test_widening_is_readable_backward_only() -> None:
    wide = Schema.of(carrier="string", delay="float64")
    assert unreadable(OLD, wide, "avro") == []
    assert len(check_compatible(OLD, wide, "avro")) == 1


def test_enum_symbols_and_nested_members_are_named() -> None:
    def record(symbols: tuple[str, ...]) -> Schema:
        inner = Schema.of(state=FieldType("enum", symbols=symbols)).fields
        return Schema.of(trip=FieldType("list", item=FieldType("record", fields=inner)))

    (problem,) = check_compatible(record(("on", "off")), record(("on", "off", "late")), "avro")
    assert "'trip[].state'" in problem
    assert "late" in problem


def test_raw_and_unknown_codecs() -> None:
    assert check_compatible(OLD, Schema.of(x="bytes"), "raw") == []
    with pytest.raises(CodecError, match="did you mean 'avro'"):
        check_compatible(OLD, OLD, "avrO")


def test_avro_refuses_a_writer_whose_bytes_mean_something_else() -> None:
    with pytest.raises(ContractError, match=r"'at'.*date.*timestamp"):
        codec_for("avro", Schema.of(at="timestamp"), writer=Schema.of(at="date"))
    with pytest.raises(ContractError, match=r"'x'.*int32\[2\]"):
        codec_for(
            "avro",
            Schema.of(x=FieldType("float32", (2,))),
            writer=Schema.of(x=FieldType("int32", (2,))),
        )


@pytest.mark.parametrize("codec", CODECS)
def test_old_records_are_read_by_the_new_contract_and_back(codec: str) -> None:
    symbols = FieldType("enum", symbols=("b", "a"))
    old = Schema.of(
        x="int32", state=FieldType("enum", symbols=("a", "b")), gone=FieldType("int8", nullable=True)
    )
    new = Schema.of(note=FieldType("timestamp", nullable=True), state=symbols, x="int64")
    columns = {
        "x": column_of(FieldType("int32"), [1, -2]),
        "state": column_of(symbols, ["a", "b"]),
        "gone": column_of(FieldType("int8", nullable=True), [None, 3]),
    }
    values = codec_for(codec, old).encode(columns, 2).values
    decoded = codec_for(codec, new, writer=old).decode(values)
    assert decoded.failed == []
    assert decoded.columns["x"].tolist() == [1, -2]
    assert decoded.columns["x"].dtype == "int64"
    assert decoded.columns["state"].tolist() == ["a", "b"]
    assert decoded.columns["note"].tolist() == [None, None]
    back = codec_for(codec, new).encode(decoded.columns, 2).values
    reader = Schema.of(state=symbols, gone=FieldType("int8", nullable=True))
    assert codec_for(codec, reader, writer=new).decode(back).columns["gone"].tolist() == [None, None]
